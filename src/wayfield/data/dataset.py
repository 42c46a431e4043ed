"""Numbered samples with conditions, and the table of the sets that can be asked for by name or by path.

Training must be able to ask for sample k at any time, in any process, without a loader that remembers where it is. So
a dataset is a length and a pure function of indices; order and epochs belong to `train.batches`.

    batch(indices) -> x0 (B, *D) float32, cond {name: (B, *field.shape)}

Pictures lie in [-1, 1]; points, series and latents keep their units. `shape` is *D, `schema` names the conditions.
"""

from __future__ import annotations

import importlib
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, unknown_name
from wayfield.core.shapes import check_samples
from wayfield.field.cond import Cond, Schema

__all__ = ["DATASETS", "Dataset", "InMemory", "load_dataset", "rows_of"]

DATASETS: Mapping[str, str] = {
    "digits": "wayfield.data.digits:digits",
    "digits-train": "wayfield.data.digits:train",
    "digits-test": "wayfield.data.digits:test",
    "shapes-240": "wayfield.data.shapes:shapes",
    "scenes": "wayfield.data.scenes:training",
    "scenes-test": "wayfield.data.scenes:testing",
    "scenes-held-out": "wayfield.data.scenes:held_out",
    "scenes-one": "wayfield.data.scenes:single",
    "scenes-lessons": "wayfield.data.scenes.reader:first_lessons",
    "scenes-second-lessons": "wayfield.data.scenes.reader:second_lessons",
    "fashion-mnist": "wayfield.data.fashion:fashion_mnist",
    "fashion-mnist-train": "wayfield.data.fashion:train",
    "fashion-mnist-test": "wayfield.data.fashion:test",
    "mnist-train": "wayfield.data.mnist:train",
    "mnist-test": "wayfield.data.mnist:test",
    "emoji": "wayfield.data.emoji:emoji",
    "emoji-train": "wayfield.data.emoji:train",
    "emoji-test": "wayfield.data.emoji:test",
    "photographs": "wayfield.data.photographs:photographs",
    "faces": "wayfield.data.photographs:faces",
}
"""Name -> "module:function" of a function without arguments that returns the dataset; imported when asked for."""

_KINDS = {"folder": "wayfield.data.folder:ImageFolder", "cifar": "wayfield.data.cifar:cifar"}
_DEFAULTS: dict[str, dict[str, Any]] = {"folder": {"size": 32}}


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
        rows = rows_of(indices, len(self))
        return self.x[rows], {name: c[rows] for name, c in self.cond.items()}


def rows_of(indices: Sequence[int] | Tensor, size: int) -> Tensor:
    """Checked indices as int64 (B,). Raises DTypeError if they are not integers, RangeError outside 0 .. size - 1."""
    rows = torch.as_tensor(indices)
    if rows.dtype != torch.int64:
        raise DTypeError("indices", got=rows.dtype, expected="integers", remedy="Give a list or an int64 tensor.")
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < size:
        got = f"{int(rows.min())}..{int(rows.max())}"
        raise RangeError("indices", got=got, expected=f"0..{size - 1}", remedy="Indices do not wrap.")
    return rows


def load_dataset(spec: str | os.PathLike[str] | Mapping[str, Any]) -> Dataset:
    """The dataset that a name, a path or a mapping asks for.

    spec: a name of `DATASETS` / or the path of a folder with one sub-folder of pictures per class, size 32 / or
    {"folder": PATH, "size": 32, ...} with the arguments of `data.folder.ImageFolder` / or {"cifar": PATH, ...} with
    those of `data.cifar.cifar`.

    Raises UnknownNameError for an unknown name or key, MissingExtraError if a package is missing, and what the dataset
    raises.
    """
    if isinstance(spec, Mapping):
        return _described(spec)
    if not isinstance(spec, str | os.PathLike):
        raise DTypeError("data", got=repr(spec), expected="a name, a path or a mapping", remedy="See load_dataset.")
    name = os.fspath(spec)
    if name in DATASETS:
        return _target(DATASETS[name])()
    if os.path.isdir(name) or os.path.basename(name) != name:
        return _described({"folder": name})
    raise unknown_name("dataset", name, DATASETS)


def _described(spec: Mapping[str, Any]) -> Dataset:
    kinds = [key for key in spec if key in _KINDS]
    if not kinds:
        raise unknown_name("kind of data", str(next(iter(spec), "nothing")), _KINDS)
    make = _target(_KINDS[kinds[0]])
    first, *known = inspect.signature(make).parameters
    for key in spec:
        if key not in (kinds[0], *known):
            raise unknown_name(f"{kinds[0]} setting", key, known)
    settings = _DEFAULTS.get(kinds[0], {}) | {key: value for key, value in spec.items() if key != kinds[0]}
    return make(**{first: spec[kinds[0]]}, **settings)


def _target(place: str) -> Callable[..., Dataset]:
    module, function = place.split(":")
    return getattr(importlib.import_module(module), function)
