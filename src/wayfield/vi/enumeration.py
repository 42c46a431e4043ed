r"""Enumerated sites: a value for every element of a finite support, on dims of its own, or one by one.

A site with K values under n particles is one choice per particle. A nonlinear objective must see these together, so
that they are K^n joint values on n dims: never one dim of size K shared by all particles.

Shapes: support (K, \*event); a value laid out [K, 1..., \*event], under particles [K, ..., K, ..., n, ..., \*event].
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributions import Distribution

from wayfield.core.errors import UnsupportedError
from wayfield.vi.strategy import support_of

if TYPE_CHECKING:
    from wayfield.vi.run import Run

__all__ = ["chosen", "laid_out"]


def laid_out(run: Run, name: str, dist: Distribution, limit: int) -> tuple[Tensor, tuple[int, ...], int]:
    """All values along new dims of the run; these dims, and how many values each has.

    Raises UnsupportedError for more than `limit` joint values.
    """
    values, event = support_of(name, dist, limit), dist.event_shape
    K = len(values)
    if not run.within:
        dim = run.new_dim(K)
        return values.reshape(K, *(1,) * (dim - 1), *event), (dim,), K
    held = [run.sizes[d - 1] for d in run.within]
    _within(name, K, math.prod(held), limit)
    dims = tuple(run.new_dim(K) for _ in range(math.prod(held)))
    lead = [1] * (dims[0] - 1)
    for d, n in zip(run.within, held, strict=True):
        lead[-d] = n
    value = values.new_empty((*(K,) * len(dims), *lead, *event))
    for dim, place in zip(dims, itertools.product(*(range(n) for n in held)), strict=True):
        own = value
        for d, k in zip(run.within, place, strict=True):
            own = own.narrow(value.ndim - len(event) - d, k, 1)
        own.copy_(values.reshape(K, *(1,) * (dim - 1), *event))
    return value, dims, K


def chosen(run: Run, name: str, dist: Distribution, limit: int) -> tuple[Tensor, int]:
    """The joint value that the run's next choice names, and how many there are."""
    values, lead = support_of(name, dist, limit), run.lead()
    K, n = len(values), math.prod(lead)
    _within(name, K, n, limit)
    index = run.choice()
    digits = torch.tensor([index // K**j % K for j in range(n)], device=values.device)
    return values[digits].reshape((*lead, *dist.event_shape)), K**n


def _within(name: str, K: int, n: int, limit: int) -> None:
    if K**n > limit:
        got = f"{K} values for each of {n} particles, {K**n} joint ones"
        remedy = "Fewer particles, Reinforce(LeaveOneOut()) or MVD(); or raise Enum(limit=...)."
        raise UnsupportedError(f"Enum() at site {name!r}", got=got, expected=f"at most {limit}", remedy=remedy)
