"""Bytes become numbers in [-1, 1] exactly, only for the rows asked for; splits are disjoint, complete and in shares."""

from __future__ import annotations

import pytest
import torch

from wayfield.core.errors import ConditionError, DTypeError, RangeError, ShapeError, UnknownNameError
from wayfield.data.pictures import Pictures, label_schema, rows_of_split


def bytes_0_to_255() -> Pictures:
    pixels = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    return Pictures(pixels, {"label": torch.tensor([0, 1, 1, 0])}, label_schema(2), ("no", "yes"))


def test_every_byte_has_its_number_and_comes_back():
    data = bytes_0_to_255()
    x0, cond = data.batch([0, 1, 2, 3])
    assert x0.dtype == torch.float32
    expected = torch.arange(256, dtype=torch.float64).view(4, 1, 8, 8) / 127.5 - 1
    assert torch.allclose(x0.double(), expected, rtol=0, atol=1.2e-7)  # two float32 roundings below 2
    assert (float(x0.min()), float(x0.max())) == (-1.0, 1.0)
    assert torch.equal(((x0 + 1) * 127.5).round().to(torch.uint8), data.pixels)
    assert cond["label"].tolist() == [0, 1, 1, 0]


def test_batch_is_the_rows_asked_for_in_their_order():
    data = bytes_0_to_255()
    whole, _ = data.batch(range(4))
    for rows in ([2, 0, 2], torch.tensor([2, 0, 2])):
        x0, cond = data.batch(rows)
        assert torch.equal(x0, whole[[2, 0, 2]])
        assert cond["label"].tolist() == [1, 0, 1]
    assert (len(data), data.shape) == (4, (1, 8, 8))


def test_the_pixels_are_not_copied():
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    assert Pictures(pixels).pixels.data_ptr() == pixels.data_ptr()


@pytest.mark.parametrize(
    ("pixels", "error"),
    [
        (torch.zeros(2, 1, 4, 4), DTypeError),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), ShapeError),
        (torch.zeros(0, 1, 4, 4, dtype=torch.uint8), ShapeError),
        (torch.zeros(2, 1, 4, 0, dtype=torch.uint8), ShapeError),
    ],
)
def test_bad_pixels_are_refused(pixels, error):
    with pytest.raises(error):
        Pictures(pixels)


@pytest.mark.parametrize(("label", "classes"), [([0], ()), ([0, 3], ()), ([0, 1], ("only one",))])
def test_bad_labels_and_names_are_refused(label, classes):
    with pytest.raises(ConditionError):
        Pictures(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), {"label": torch.tensor(label)}, label_schema(2), classes)


@pytest.mark.parametrize(("rows", "error"), [([4], RangeError), ([-1], RangeError), ([0.5], DTypeError)])
def test_bad_indices_are_refused(rows, error):
    with pytest.raises(error):
        bytes_0_to_255().batch(rows)


def test_split_takes_every_fifth_of_each_class():
    label = torch.tensor([0] * 10 + [1] * 4 + [2] * 5 + [0] * 5)
    assert rows_of_split(label, "test").tolist() == [4, 9, 18, 23]
    assert rows_of_split(label, "all").tolist() == list(range(24))
    assert rows_of_split(label, "train").tolist() == [k for k in range(24) if k not in (4, 9, 18, 23)]
    with pytest.raises(UnknownNameError, match="train"):
        rows_of_split(label, "training")
