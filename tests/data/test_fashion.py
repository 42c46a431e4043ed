"""Fashion-MNIST: every picture and label is where the format says; skipped where the package is absent."""

from __future__ import annotations

import gzip
import struct

import pytest
import torch
from real_sets import need

from wayfield.core.errors import CheckpointError, UnknownNameError
from wayfield.data.fashion import FASHION_CLASSES, fashion_mnist
from wayfield.data.sources import find


@pytest.fixture(scope="module")
def parts():
    need("fashion-mnist")
    return {split: fashion_mnist(split) for split in ("all", "train", "test")}


def test_facts(parts):
    counts = {split: data.cond["label"].bincount().tolist() for split, data in parts.items()}
    assert counts == {"all": [7000] * 10, "train": [6000] * 10, "test": [1000] * 10}
    assert all(data.shape == (1, 28, 28) for data in parts.values())
    assert parts["train"].pixels.float().mean() == pytest.approx(72.94, abs=5e-3)  # 0.2860 of 255, as published
    assert parts["train"].schema.null == {"label": 10}
    assert parts["train"].classes == FASHION_CLASSES


def test_all_is_train_then_test(parts):
    whole = parts["all"]
    for rows, part in ((slice(0, 60000), parts["train"]), (slice(60000, None), parts["test"])):
        assert torch.equal(whole.pixels[rows], part.pixels)
        assert torch.equal(whole.cond["label"][rows], part.cond["label"])


def test_the_last_test_picture_is_the_last_784_bytes(parts):
    folder = find("fashion-mnist")
    raw = gzip.decompress((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert struct.unpack(">4I", raw[:16]) == (2051, 10000, 28, 28)
    assert parts["test"].pixels[-1].flatten().tolist() == list(raw[-784:])
    labels = gzip.decompress((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    assert parts["test"].cond["label"].tolist() == list(labels[8:])


def test_unknown_split():
    with pytest.raises(UnknownNameError, match="train"):
        fashion_mnist("training")


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        fashion_mnist("test", tmp_path)
