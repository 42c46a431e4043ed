"""What step k of a fit is given: the objective's arguments and a seed, both functions of (seed, k) alone.

A run that is killed and resumed, or made again, then sees the same numbers. Arguments may be

====================================  ==============================================================================
a tuple, or one tensor                the same in every step
a function (step, seed) -> tuple      such as `minibatches(x, y, batch=100)`
anything to iterate over              a list of batches or a DataLoader, begun again at its end; it is iterated over
                                      inside of seeds of its own, so that a DataLoader shuffles the same way again
====================================  ==============================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from wayfield.core.errors import DTypeError, RangeError, ShapeError
from wayfield.train.batches import indices
from wayfield.vi.seeding import seeded

__all__ = ["Data", "Feed", "Minibatches", "minibatches", "step_seed"]

Data = tuple[Any, ...] | Tensor | Callable[[int, int], Any] | Iterable[Any]
"""See the module's text."""

_DRAWS, _ITEMS = 0, 1


def step_seed(seed: int, step: int, stage: int = _DRAWS) -> int:
    """The seed of one step of a run, 63 bits. stage: tells apart what a step needs several seeds for."""
    word = hashlib.blake2b(f"{seed}/{step}/{stage}".encode(), digest_size=8).digest()
    return int.from_bytes(word, "little") >> 1


@final
@dataclass(frozen=True, eq=False)
class Minibatches:
    """Rows of tensors, so many a step: an epoch visits every row once, in an order of its own; see `minibatches`."""

    tensors: tuple[Tensor, ...]
    batch: int

    def __post_init__(self) -> None:
        rows = {len(x) if x.ndim else 0 for x in self.tensors}
        if len(rows) != 1:
            got, remedy = [tuple(x.shape) for x in self.tensors], "Give tensors whose first dim is the row."
            raise ShapeError("tensors of minibatches", got=got, expected="as many rows in each", remedy=remedy)
        if not isinstance(self.batch, int) or not 1 <= self.batch <= max(rows):
            remedy = "Give a batch no larger than the data."
            raise RangeError("batch", got=self.batch, expected=f"1 to {max(rows)}", remedy=remedy)

    def __call__(self, step: int, seed: int) -> tuple[Tensor, ...]:
        """The rows of a step, (batch, ...) of every tensor."""
        chosen = indices(seed, len(self.tensors[0]), self.batch, step, range(self.batch))
        return tuple(x[chosen.to(x.device)] for x in self.tensors)


def minibatches(*tensors: Tensor, batch: int) -> Minibatches:
    """`batch` random rows of (N, ...) tensors a step, each row once an epoch, addressed by (seed, step).

    A bound that is a mean over rows (batch_dims=1) is unbiased as it is; one that sums over data needs a likelihood
    scaled by N / batch: `h.factor("x", N / batch * log_p.sum())`. Raises ShapeError, RangeError.
    """
    return Minibatches(tensors, batch)


@final
class Feed:
    """Arguments by step: `feed(k)`. Steps of an iterable are asked for in order; the last one may be asked for again.

    Raises DTypeError for what is none of the kinds above; RangeError when an iterable ends and cannot begin again.
    """

    def __init__(self, data: Data, seed: int) -> None:
        if isinstance(data, (str, bytes, Mapping)) or not (
            isinstance(data, Tensor) or callable(data) or isinstance(data, Iterable)
        ):
            got, remedy = type(data).__name__, "Give (x,) for arguments that stay, or minibatches(x, batch=100)."
            raise DTypeError("data", got=got, expected="a tuple, a function or batches", remedy=remedy)
        self._data, self._seed = data, seed
        self._steps = None if isinstance(data, (tuple, Tensor)) or callable(data) else _iterated(data, seed)
        self._last: tuple[int, tuple[Any, ...]] = (-1, ())

    def __call__(self, step: int) -> tuple[Any, ...]:
        """The arguments of a step."""
        if self._steps is None:
            return _arguments(self._data(step, self._seed) if callable(self._data) else self._data)
        while self._last[0] < step:
            self._last = (self._last[0] + 1, next(self._steps))
        return self._last[1]


def _arguments(item: Any) -> tuple[Any, ...]:
    return tuple(item) if isinstance(item, (tuple, list)) else (item,)


def _iterated(data: Iterable[Any], seed: int) -> Iterator[tuple[Any, ...]]:
    items, step, since = None, 0, 0
    while True:
        with seeded(step_seed(seed, step, _ITEMS)):
            items = iter(data) if items is None else items
            item = next(items, _END)
        if item is not _END:
            yield _arguments(item)
            step += 1
        elif step == since:
            remedy = "Give something that can be iterated over again, such as a list, or fewer steps."
            raise RangeError("data", got=f"{step} items and no more", expected="one for every step", remedy=remedy)
        else:
            items, since = None, step


_END = object()
