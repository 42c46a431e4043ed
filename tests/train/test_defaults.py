"""What a folder of pictures is taken for, and that every config made from it can be trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from wayfield.core.errors import CheckpointError, RangeError, UnknownNameError, UnsupportedError
from wayfield.data import InMemory
from wayfield.data.pictures import Pictures, label_schema
from wayfield.field.cond import Field, Schema
from wayfield.train import setup
from wayfield.train.defaults import Survey, default_config, folder_spec, survey
from wayfield.train.prepare import setup_denoiser


def paint(folder: Path, sizes, mode="RGB", prefix="", ending=".png"):
    for k, size in enumerate(sizes):
        path = folder / prefix / f"{k}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(path)
    return folder


@pytest.mark.parametrize(
    ("side", "size"), [(3, 8), (8, 8), (11, 8), (12, 16), (25, 24), (28, 32), (40, 40), (65, 64), (999, 64)]
)
def test_the_side_that_suits_pictures(tmp_path, side, size):
    assert survey(paint(tmp_path, [(side, side + 9)])).size == size


def test_the_middle_picture_decides_the_size_and_one_in_colour_the_channels(tmp_path):
    paint(tmp_path, [(16, 20), (500, 16), (17, 16), (32, 33), (99, 98)], mode="L")
    assert survey(tmp_path) == Survey(5, 16, 1, 0)
    paint(tmp_path, [(16, 16)], prefix="deep/er")
    assert survey(tmp_path) == Survey(6, 16, 3, 0)


def test_classes_are_sub_folders_if_every_picture_is_in_one(tmp_path):
    paint(tmp_path, [(8, 8)] * 2, prefix="cats")
    assert survey(tmp_path).classes == 1
    assert folder_spec(tmp_path, survey(tmp_path))["labels"] is None  # one class is none
    paint(tmp_path, [(8, 8)], prefix="dogs")
    assert folder_spec(tmp_path, survey(tmp_path))["labels"] == "folders"
    assert folder_spec(tmp_path, survey(tmp_path), labels=False)["labels"] is None
    paint(tmp_path, [(8, 8)], prefix="")
    assert survey(tmp_path).classes == 0
    assert folder_spec(tmp_path, survey(tmp_path))["labels"] is None


def test_a_large_folder_is_looked_at_here_and_there(tmp_path, monkeypatch):
    real, opened = Image.open, []
    paint(tmp_path, [(8, 8)] * 150)
    monkeypatch.setattr(Image, "open", lambda file, **options: opened.append(options) or real(file, **options))
    assert survey(tmp_path).pictures == 150
    assert sum(not options for options in opened) == 50  # every third; the others were only checked


def test_damaged_files_are_refused_or_left_out(tmp_path):
    paint(tmp_path, [(8, 8)] * 2)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(CheckpointError, match=r"bad\.png"):
        survey(tmp_path)
    assert survey(tmp_path, corrupt="skip").pictures == 2


def test_the_spec_of_a_folder_loads_it(tmp_path):
    paint(tmp_path / "in", [(20, 24)] * 3, prefix="a")
    paint(tmp_path / "in", [(20, 24)] * 2, prefix="b")
    spec = folder_spec(tmp_path / "in", survey(tmp_path / "in"), size=12, cache=tmp_path / "cache")
    config = {"data": spec, "net": {"net": "ResidualMLP", "width": 8, "blocks": 1}, "path": "Cosine", "kind": "v"}
    task, dataset, _ = setup_denoiser(config)
    assert (len(dataset), dataset.shape, task.schema.fields["label"].values) == (5, (3, 12, 12), 3)
    assert (tmp_path / "cache").stat().st_size == 5 * 3 * 12 * 12
    for wrong in (0, 7, -4):
        with pytest.raises(RangeError, match="multiple of 4"):
            folder_spec(tmp_path / "in", survey(tmp_path / "in"), size=wrong)


def data(shape, number=20, classes=3):
    pixels, schema = torch.zeros((1, *shape), dtype=torch.uint8).expand(number, *shape), Schema()
    if not classes:
        return Pictures(pixels)
    schema = label_schema(classes)
    return Pictures(pixels, {"label": torch.arange(number) % classes}, schema)


SHAPES = [(1, 4, 4), (1, 8, 8), (3, 25, 25), (1, 28, 28), (3, 32, 32), (3, 40, 40), (3, 48, 64), (3, 64, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("net", ["unet", "dit"])
def test_every_config_can_be_set_up_and_asked(shape, net, monkeypatch):
    dataset = data(shape)
    monkeypatch.setattr("wayfield.train.prepare.load_dataset", lambda spec: dataset)
    config = default_config("mine", dataset, net=net)
    task, _, settings = setup(config)
    x, cond = dataset.batch([0, 1])
    assert task.denoiser(x, 0.5, cond).x0.shape == (2, *shape)
    assert settings.sample_every == 500
    assert settings.drop == 0.1
    places = max(shape[1:]) // config["net"]["patch"]
    assert places <= {"unet": 16, "dit": 8}[net]


def test_what_the_size_the_number_and_the_machine_change():
    small, middle, large = (default_config("mine", data((3, 32, 32), n)) for n in (500, 5000, 50_000))
    assert [c["train"]["steps"] for c in (small, middle, large)] == [2000, 4000, 8000]
    assert [c["net"]["channels"][0] for c in (small, middle, large)] == [32, 48, 64]
    assert small["train"]["levels"] == {"levels": "LogNormal", "mean": -0.4, "std": 1.4}
    wide = default_config("mine", data((3, 64, 64)))
    assert wide["train"]["levels"] == {"levels": "Shifted", "base": small["train"]["levels"], "shift": 2.0}
    assert wide["net"]["patch"] == 4


def test_without_labels(monkeypatch):
    for dataset, labels in ((data((1, 8, 8), classes=0), True), (data((1, 8, 8)), False)):
        monkeypatch.setattr("wayfield.train.prepare.load_dataset", lambda spec, made=dataset: made)
        config = default_config("mine", dataset, labels=labels)
        assert config["conditions"] == []
        assert config["train"]["drop"] == 0.0
        assert setup(config)[0].schema.fields == {}


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: default_config("d", data((1, 8, 8)), net="unett"), UnknownNameError, "unet"),
        (lambda: default_config("d", InMemory(torch.zeros(4, 2))), UnsupportedError, "pictures"),
        (
            lambda: default_config(
                "d",
                InMemory(torch.zeros(4, 1, 8, 8), {"box": torch.zeros(4, 2)}, Schema({"box": Field((2,), "float32")})),
            ),
            UnsupportedError,
            "box",
        ),
    ],
)
def test_what_has_no_default_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
