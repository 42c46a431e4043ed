"""Numbered samples with conditions, and the table of the sets that can be asked for by name.

Training must be able to ask for sample k at any time, in any process, without a loader that remembers where it is. So
a dataset is a length and a pure function of indices; order and epochs belong to `train.batches`.

    batch(indices) -> x0 (B, *D) float32, cond {name: (B, *field.shape)}

Pictures lie in [-1, 1]; points, series and latents keep their units. `shape` is *D, `schema` names the conditions.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, unknown_name
from wayfield.core.shapes import check_samples
from wayfield.field.cond import Cond, Schema

__all__ = ["DATASETS", "Dataset", "InMemory", "load_dataset"]

DATASETS: Mapping[str, str] = {
    "digits": "wayfield.data.digits:digits",
    "digits-train": "wayfield.data.digits:train",
    "digits-test": "wayfield.data.digits:test",
    "shapes-240": "wayfield.data.shapes:shapes",
}
"""Name -> "module:function" of a function without arguments that returns the dataset; imported when asked for."""


class Dataset(ABC):
    """Samples 0 .. len - 1 of one shape, with conditions; a pure function of indices, the same in any process."""

    schema: Schema

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """*D, the shape of one sample."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples."""

    @abstractmethod
    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """Samples (B, *D), float32 on the host, and their conditions, one row per index in 0 .. len - 1."""


@final
@dataclass(frozen=True, eq=False)
class InMemory(Dataset):
    """A dataset held in tensors.

    x: samples, (N, *D), any floating type, finite / cond: {name: (N, *field.shape)} / schema: what the conditions are.
    Raises ShapeError or DTypeError for x, NonFiniteError for NaN in it, ConditionError for conditions off the schema.
    """

    x: Tensor
    cond: Cond = field(default_factory=dict)
    schema: Schema = field(default_factory=Schema)

    def __post_init__(self) -> None:
        x = check_samples("samples of a dataset", self.x).to("cpu", torch.float32)
        if not bool(x.isfinite().all()):
            bad = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
            remedy = "Remove or repair it: one such number ruins a training."
            raise NonFiniteError(
                "samples of a dataset", got=f"NaN or inf in sample {bad}", expected="finite", remedy=remedy
            )
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "cond", dict(self.schema.bind(self.cond, len(x), "cpu")))

    @property
    def shape(self) -> tuple[int, ...]:
        """*D, the shape of one sample."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """See `Dataset.batch`. Raises DTypeError for indices that are not integers, RangeError outside 0 .. len - 1."""
        rows = torch.as_tensor(indices)
        if rows.dtype != torch.int64:
            raise DTypeError("indices", got=rows.dtype, expected="integers", remedy="Give a list or an int64 tensor.")
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            got = f"{int(rows.min())}..{int(rows.max())}"
            raise RangeError("indices", got=got, expected=f"0..{len(self) - 1}", remedy="Indices do not wrap.")
        return self.x[rows], {name: c[rows] for name, c in self.cond.items()}


def load_dataset(name: str) -> Dataset:
    """The dataset of that name in `DATASETS`. Raises UnknownNameError, MissingExtraError if its package is missing."""
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    module, function = DATASETS[name].split(":")
    return getattr(importlib.import_module(module), function)()
