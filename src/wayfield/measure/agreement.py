"""Does a judge read in the samples what was asked for? Not to be confused with precision on the data's manifold.

Papers on guidance call both of these precision. This one asks a classifier, which must not be the one that guided; the
other one, in `manifold`, asks whether samples lie among real data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.measure.classify import accuracy

__all__ = ["class_precision"]


def class_precision(predicted: Tensor, labels: Tensor, *, macro: bool = True) -> float:
    """Share of samples that are read as the class asked for, in [0, 1].

    predicted, labels: integers (N,), N >= 1 / macro: the mean over the classes asked for of each one's share, so that
    every class counts alike; else the share of all samples. Raises ShapeError, DTypeError, DeviceError or RangeError.
    """
    share = accuracy(predicted, labels)
    if not macro:
        return share
    if int(labels.min()) < 0:
        raise RangeError("labels", got=int(labels.min()), expected=">= 0", remedy="Number the classes from 0.")
    asked = torch.bincount(labels).double()
    right = torch.bincount(labels, weights=(predicted == labels).double())
    return float((right / asked)[asked > 0].mean())
