"""The 1,797 handwritten digits that ship inside scikit-learn: 8 x 8 pictures of ten classes, the first image set.

They need no download, train in a minute on one CPU core, and are real. Pixels 0 .. 16 become x = p / 8 - 1 in [-1, 1].

    digits("all" | "train" | "test") -> x0 (N, 1, 8, 8), {"label": (N,) in 0..9}, the null label is 10

The split uses no random numbers: counting each class in the order of the file, every fifth picture is for testing.
So both parts have the classes in equal shares (1,442 and 355 pictures), and the split is the same on every machine.

Reference: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI machine learning repository.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wayfield.core.errors import MissingExtraError, unknown_name
from wayfield.data.dataset import InMemory
from wayfield.field.cond import Field, Schema

__all__ = ["SCHEMA", "digits", "svm", "test", "train"]

SCHEMA = Schema({"label": Field(values=11)}, null={"label": 10})
_FOLD = 5


def digits(split: str = "all") -> InMemory:
    """The digits as a dataset. split: "all" (1,797), "train" (1,442) or "test" (355).

    Raises UnknownNameError for another split, MissingExtraError without scikit-learn.
    """
    if split not in ("all", "train", "test"):
        raise unknown_name("split", split, ("all", "train", "test"))
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        remedy = 'Run: pip install "wayfield[data]".'
        raise MissingExtraError(
            "digits", got="no scikit-learn", expected="scikit-learn >= 1.5", remedy=remedy
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    label = torch.as_tensor(labels, dtype=torch.int64)
    one_hot = torch.nn.functional.one_hot(label, 10)
    rank = (one_hot.cumsum(0) * one_hot).sum(1) - 1  # how many of its class came before
    for_test = rank % _FOLD == _FOLD - 1
    keep = {"all": torch.ones_like(for_test), "train": ~for_test, "test": for_test}[split]
    return InMemory(x[keep], {"label": label[keep]}, SCHEMA)


def train() -> InMemory:
    """Four fifths of each class, 1,442 pictures."""
    return digits("train")


def test() -> InMemory:
    """One fifth of each class, 355 pictures."""
    return digits("test")


def svm() -> Callable[[Tensor], Tensor]:
    """A support vector machine trained on all real digits: pictures (N, 1, 8, 8) to classes (N,). A judge unlike any
    network.

    The kernel width is that of gamma = 0.001 on pixels 0..16, 97 % accurate in cross-validation. Raises
    MissingExtraError.
    """
    real = digits()
    from sklearn.svm import SVC

    machine = SVC(gamma=0.001 * 8**2)  # pyright: ignore[reportArgumentType]
    machine.fit(real.x.flatten(1).numpy(), real.cond["label"].numpy())
    return lambda x: torch.as_tensor(machine.predict(x.detach().cpu().flatten(1).numpy()))
