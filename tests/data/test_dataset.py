"""Datasets: pure functions of indices, checked at the border; every name of the table loads, and so do paths."""

from __future__ import annotations

import pytest
import torch
from test_folder import fill

from wayfield.core.errors import (
    CheckpointError,
    ConditionError,
    DTypeError,
    MissingExtraError,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownNameError,
)
from wayfield.data import DATASETS, Dataset, InMemory, load_dataset
from wayfield.field.cond import Field, Schema

SCHEMA = Schema({"label": Field(values=4)}, {"label": 3})


def small() -> InMemory:
    return InMemory(torch.arange(12.0).reshape(6, 2), {"label": torch.arange(6) % 3}, SCHEMA)


def test_batch_is_the_rows_asked_for_in_their_order():
    data = small()
    for rows in ([4, 0, 4], torch.tensor([4, 0, 4])):
        x0, cond = data.batch(rows)
        assert torch.equal(x0, torch.tensor([[8.0, 9.0], [0.0, 1.0], [8.0, 9.0]]))
        assert cond["label"].tolist() == [1, 0, 1]
    assert len(data) == 6
    assert data.shape == (2,)


def test_samples_become_float32_on_the_host():
    assert InMemory(torch.zeros(3, 2, dtype=torch.float64)).batch([0])[0].dtype == torch.float32


@pytest.mark.parametrize("name", DATASETS)
def test_every_name_loads(name):
    try:
        data = load_dataset(name)
    except MissingExtraError as absent:
        pytest.skip(f"{absent.what} is absent; run: make data")
    assert isinstance(data, Dataset)
    x0, cond = data.batch([0, len(data) - 1])
    assert x0.shape == (2, *data.shape)
    assert cond.keys() == data.schema.fields.keys()
    data.schema.bind(cond, 2, "cpu")


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UnknownNameError, match="digits"):
        load_dataset("digit")


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path / "set")
    return tmp_path / "set"


def test_a_folder_by_its_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for spec in (folder, str(folder), "set", "./set"):
        data = load_dataset(spec)
        assert (len(data), data.shape, data.schema.null) == (5, (3, 32, 32), {"label": 3})


def test_a_name_of_the_table_wins_over_a_folder(folder, monkeypatch):
    folder.rename(folder.parent / "digits")
    monkeypatch.chdir(folder.parent)
    assert load_dataset("digits").shape == (1, 8, 8)
    assert load_dataset("./digits").shape == (3, 32, 32)


def test_a_folder_with_settings(folder, tmp_path):
    spec = {"folder": str(folder), "size": 8, "channels": 1, "labels": None, "cache": str(tmp_path / "c")}
    data = load_dataset(spec | {"corrupt": "skip"})
    assert (data.shape, dict(data.schema.fields)) == ((1, 8, 8), {})
    assert (tmp_path / "c.json").exists()
    assert load_dataset({"folder": str(folder)}).shape == (3, 32, 32)


def test_cifar_with_settings(tmp_path):
    (tmp_path / "train.bin").write_bytes(bytes([3, 4]) + bytes(3072))
    spec = {"cifar": str(tmp_path), "split": "train"}
    assert load_dataset(spec).batch([0])[1]["label"].tolist() == [4]
    assert load_dataset(spec | {"labels": "coarse"}).batch([0])[1]["label"].tolist() == [3]


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ({"folders": "x"}, "'folder'"),
        ({}, "cifar, folder"),
        ({"folder": "x", "sizes": 32}, "'size'"),
        ({"folder": "x", "path": "y"}, "cache"),
        ({"cifar": "x", "splits": "test"}, "'split'"),
        ({"folder": "x", "cifar": "y"}, "cache"),
    ],
)
def test_unknown_kinds_and_keys_get_the_nearest(spec, nearest):
    with pytest.raises(UnknownNameError, match=nearest):
        load_dataset(spec)


@pytest.mark.parametrize("spec", ["no/such/folder", "./digits"])
def test_a_path_to_nothing(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_dataset(spec)


@pytest.mark.parametrize("spec", [3, None, ["digits"]])
def test_neither_name_path_nor_mapping(spec):
    with pytest.raises(DTypeError, match="name, a path or a mapping"):
        load_dataset(spec)


@pytest.mark.parametrize(
    ("x", "cond", "error"),
    [
        (torch.zeros(3), {}, ShapeError),
        (torch.zeros(0, 2), {}, ShapeError),
        (torch.zeros(3, 2, dtype=torch.int64), {}, DTypeError),
        (torch.tensor([[0.0], [float("nan")]]), {"label": torch.tensor([0, 1])}, NonFiniteError),
        (torch.zeros(3, 2), {"label": torch.tensor([0, 1])}, ConditionError),
        (torch.zeros(2, 2), {"label": torch.tensor([0, 4])}, ConditionError),
        (torch.zeros(2, 2), {"labels": torch.tensor([0, 1])}, UnknownNameError),
    ],
)
def test_bad_tensors_are_refused(x, cond, error):
    with pytest.raises(error):
        InMemory(x, cond, SCHEMA)


@pytest.mark.parametrize(("rows", "error"), [([6], RangeError), ([-1], RangeError), ([0.5], DTypeError)])
def test_bad_indices_are_refused(rows, error):
    with pytest.raises(error):
        small().batch(rows)
