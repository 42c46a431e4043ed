"""Seeds for torch.distributions, which draw from torch's default generators and from nothing else.

Inside, the default generators run from the seed; outside they are as they were before. Nothing here leaves a trace in
the caller's randomness, and nothing drawn by the caller changes a seeded run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from wayfield.core.errors import RangeError

__all__ = ["apart", "fresh", "rewind", "seeded", "states"]


def _generators() -> list[torch.Generator]:
    cuda = torch.cuda.default_generators if torch.cuda.is_available() and torch.cuda.is_initialized() else ()
    return [torch.default_generator, *cuda]


@contextmanager
def _kept() -> Iterator[list[torch.Generator]]:
    """The default generators, which stand afterwards where they stood before."""
    generators = _generators()
    before = [g.get_state() for g in generators]
    try:
        yield generators
    finally:
        for g, state in zip(generators, before, strict=True):
            g.set_state(state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's default generators start from `seed` (a whole number of at least 0) inside, and are restored after."""
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        remedy = "Give seed=0, and another in every step of a loop."
        raise RangeError("seed", got=repr(seed), expected="a whole number of at least 0", remedy=remedy)
    with _kept() as generators:
        for g in generators:
            g.manual_seed(seed)
        yield


def fresh() -> int:
    """A seed drawn from the default generator: for a stream of its own, that nothing else runs into."""
    return int(torch.empty((), dtype=torch.int64).random_())


@contextmanager
def apart() -> Iterator[None]:
    """A stream of its own inside, which no run that was rewound can reach; a compiled run is never rewound."""
    if torch.compiler.is_compiling():
        yield
        return
    with seeded(fresh()):
        yield


def states() -> list[Tensor]:
    """Where the default generators stand."""
    return [g.get_state() for g in _generators()]


@contextmanager
def rewind(to: list[Tensor] | None) -> Iterator[None]:
    """Go on from `to` inside, and from where they stood after. None changes nothing."""
    if to is None:
        yield
        return
    with _kept() as generators:
        for g, state in zip(generators, to, strict=True):
            g.set_state(state)
        yield
