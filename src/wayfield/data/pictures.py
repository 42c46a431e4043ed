"""Pictures kept as bytes: 60,000 of 28 x 28 cost 47 MB instead of 188, and a file larger than memory can be one set.

    p in 0..255 (N, C, H, W) uint8  ->  x = p / 127.5 - 1 in [-1, 1], float32, for the rows of a batch only

The tensor may be a memory map (`torch.from_file`): then only the pages of the rows that are asked for are read. Labels
are classes 0 .. K - 1 with K as the null label. A split counts each class in order and takes every fifth picture for
testing, as `data.digits` does: no random numbers, equal shares, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, DTypeError, ShapeError, unknown_name
from wayfield.data.dataset import Dataset, rows_of
from wayfield.field.cond import Cond, Field, Schema

__all__ = ["Pictures", "check_split", "label_schema", "rows_of_split"]

_FOLD = 5


def label_schema(classes: int) -> Schema:
    """One condition "label" with values 0 .. classes - 1, and `classes` as its null."""
    return Schema({"label": Field(values=classes + 1)}, null={"label": classes})


@final
@dataclass(frozen=True, eq=False)
class Pictures(Dataset):
    """A dataset of pictures held as bytes.

    pixels: (N, C, H, W) uint8 on the host, in memory or mapped / cond: {name: (N, *field.shape)} / schema: what the
    conditions are / classes: names of the labels 0, 1, ..., or none. Raises DTypeError, ShapeError, ConditionError for
    conditions off the schema or a wrong number of names.
    """

    pixels: Tensor
    cond: Cond = field(default_factory=dict)
    schema: Schema = field(default_factory=Schema)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        p = self.pixels
        if p.dtype != torch.uint8:
            raise DTypeError("pixels", got=p.dtype, expected=torch.uint8, remedy="Floats go into InMemory.")
        if p.ndim != 4 or 0 in p.shape:
            remedy = "Grey pictures have one channel: p[:, None]."
            raise ShapeError("pixels", got=tuple(p.shape), expected="(N, C, H, W), none of them 0", remedy=remedy)
        if self.classes and self.schema != label_schema(len(self.classes)):
            got = f"{len(self.classes)} names for {self.schema.fields}"
            raise ConditionError("classes", got=got, expected="one per label", remedy="Use label_schema(len(classes)).")
        object.__setattr__(self, "pixels", p.cpu())
        object.__setattr__(self, "cond", dict(self.schema.bind(self.cond, len(p), "cpu")))

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """See `Dataset.batch`. Raises DTypeError for indices that are not integers, RangeError outside 0 .. len - 1."""
        rows = rows_of(indices, len(self))
        return self.pixels[rows].float() / 127.5 - 1, {name: c[rows] for name, c in self.cond.items()}


def check_split(split: str) -> None:
    """Refuse what is not "all", "train" or "test". Raises UnknownNameError."""
    if split not in ("all", "train", "test"):
        raise unknown_name("split", split, ("all", "train", "test"))


def rows_of_split(label: Tensor, split: str) -> Tensor:
    """The indices of a split, ascending, int64. label: classes (N,) int64 / split: "all", "train" or "test".

    Raises UnknownNameError for another split.
    """
    check_split(split)
    one_hot = torch.nn.functional.one_hot(label)
    rank = (one_hot.cumsum(0) * one_hot).sum(1) - 1  # how many of its class came before
    for_test = rank % _FOLD == _FOLD - 1
    keep = {"all": torch.ones_like(for_test), "train": ~for_test, "test": for_test}[split]
    return keep.nonzero().flatten()
