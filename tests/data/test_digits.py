"""The digits are what the page says: counts, range, standard deviation, a disjoint split in equal shares."""

from __future__ import annotations

import sys

import pytest
import torch

from wayfield.core.errors import MissingExtraError, UnknownNameError
from wayfield.data.digits import digits


@pytest.fixture(scope="module")
def parts():
    return {split: digits(split) for split in ("all", "train", "test")}


def test_facts(parts):
    data = parts["all"]
    assert (len(data), data.shape) == (1797, (1, 8, 8))
    assert (float(data.x.min()), float(data.x.max())) == (-1.0, 1.0)
    assert float(data.x.std()) == pytest.approx(0.752, abs=5e-4)
    assert data.cond["label"].bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.schema.null == {"label": 10}
    assert data.schema.bind_null(2, "cpu")["label"].tolist() == [10, 10]


def test_pictures_and_labels_belong_together(parts):
    from sklearn.datasets import load_digits

    source, data = load_digits(), parts["all"]
    assert torch.equal((data.x[:, 0] + 1) * 8, torch.tensor(source.images, dtype=torch.float32))
    assert data.cond["label"].tolist() == source.target.tolist()


def test_split_is_disjoint_complete_and_stratified(parts):
    rows = {
        k: [(int(y), *x.flatten().tolist()) for x, y in zip(d.x, d.cond["label"], strict=True)]
        for k, d in parts.items()
    }
    assert (len(rows["train"]), len(rows["test"])) == (1442, 355)
    assert sorted(rows["train"] + rows["test"]) == sorted(rows["all"])
    assert not set(rows["train"]) & set(rows["test"])  # the 1,797 pictures are all different
    counts = {k: d.cond["label"].bincount() for k, d in parts.items()}
    assert torch.equal(counts["test"], counts["all"] // 5)


def test_unknown_split():
    with pytest.raises(UnknownNameError, match="train"):
        digits("training")


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "wayfield\[data\]"'):
        digits()
