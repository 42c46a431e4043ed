"""Class precision by hand, and against scikit-learn's balanced accuracy."""

import pytest
import torch

from wayfield.core.errors import DTypeError, RangeError, ShapeError
from wayfield.measure.agreement import class_precision


def test_by_hand():
    """Class 0: 3 of 4; class 2: 0 of 1; class 1 is never asked for."""
    labels, read = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0, 0, 0, 1, 1])
    assert class_precision(read, labels) == pytest.approx(0.375)
    assert class_precision(read, labels, macro=False) == pytest.approx(0.6)


def test_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    g = torch.Generator().manual_seed(0)
    labels, read = (torch.randint(0, 7, (200,), generator=g) for _ in range(2))
    want = metrics.balanced_accuracy_score(labels.numpy(), read.numpy())
    assert class_precision(read, labels) == pytest.approx(want)


def test_bad_input():
    read = torch.tensor([0, 1])
    with pytest.raises(ShapeError):
        class_precision(read, torch.tensor([0]))
    with pytest.raises(DTypeError):
        class_precision(read, torch.tensor([0.0, 1.0]))
    with pytest.raises(RangeError):
        class_precision(read, torch.tensor([-1, 1]))
    with pytest.raises(ShapeError):
        class_precision(read[:0], read[:0])
