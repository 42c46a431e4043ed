"""MNIST: the counts of the package, the bytes of the original, a disjoint split in equal shares."""

from __future__ import annotations

import json

import pytest
import torch
from real_sets import need

from wayfield.core.errors import CheckpointError, UnknownNameError
from wayfield.data.mnist import mnist
from wayfield.data.sources import find

COUNTS = [1001, 1127, 991, 1032, 980, 863, 1014, 1070, 944, 978]


@pytest.fixture(scope="module")
def parts():
    need("mnist")
    return {split: mnist(split) for split in ("all", "train", "test")}


def test_facts(parts):
    data = parts["all"]
    assert data.cond["label"].bincount().tolist() == COUNTS
    assert (len(data), data.shape) == (10000, (1, 28, 28))
    assert data.schema.null == {"label": 10}
    assert data.pixels.unique().tolist() == list(range(256))


def test_no_byte_is_lost_by_the_rounding_of_the_package(parts):
    values = json.loads((find("mnist") / "src" / "digits" / "7.json").read_text())["data"]
    pixels = parts["all"].pixels[parts["all"].cond["label"] == 7].flatten()
    assert len(values) == len(pixels)
    exact = torch.tensor(values, dtype=torch.float64) * 255
    assert float((pixels.double() - exact).abs().max()) <= 0.1275 + 1e-9  # 255 times half a unit of the third decimal


def test_split_is_disjoint_complete_and_stratified(parts):
    rows = {k: {bytes(p.flatten().tolist()) for p in d.pixels} for k, d in parts.items()}
    assert (len(parts["train"]), len(parts["test"])) == (8004, 1996)
    assert not rows["train"] & rows["test"]  # the 10,000 pictures are all different
    assert rows["train"] | rows["test"] == rows["all"]
    assert parts["test"].cond["label"].bincount().tolist() == [count // 5 for count in COUNTS]


def test_unknown_split_and_folder(tmp_path):
    need("mnist")
    with pytest.raises(UnknownNameError, match="train"):
        mnist("training")
    with pytest.raises(CheckpointError, match=r"digits/\*\.json"):
        mnist("train", tmp_path)
