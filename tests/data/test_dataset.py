"""Datasets: pure functions of indices, checked at the border; every name of the table loads."""

from __future__ import annotations

import pytest
import torch

from wayfield.core.errors import ConditionError, DTypeError, NonFiniteError, RangeError, ShapeError, UnknownNameError
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
    data = load_dataset(name)
    assert isinstance(data, Dataset)
    x0, cond = data.batch([0, len(data) - 1])
    assert x0.shape == (2, *data.shape)
    assert cond.keys() == data.schema.fields.keys()
    data.schema.bind(cond, 2, "cpu")


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UnknownNameError, match="digits"):
        load_dataset("digit")


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
