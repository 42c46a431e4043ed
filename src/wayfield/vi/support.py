r"""Every joint value of a program whose sites have finite supports, laid out as particles: for exact sums.

Shapes: K joint values on one new dim, each site [K, 1..., \*event].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from wayfield.core.errors import UnsupportedError
from wayfield.vi.handles import Named
from wayfield.vi.program import Program, Site, Trace
from wayfield.vi.strategy import support_of

if TYPE_CHECKING:
    from wayfield.vi.run import Run

__all__ = ["everything", "widened"]

LIMIT = 4096
_REMEDY = "Take a number of particles instead of the exact sum."


def everything(run: Run, program: Program, *args: Any, given: Mapping[str, Tensor] | None = None) -> Trace:
    """All joint values of a program's sites as particles without weights or graph, [K, 1..., *event].

    given: values of sites that are not laid out. Raises UnsupportedError for an infinite support, a stochastic density,
    or more than 4096 joint values.
    """
    lister = _Lister(run, given or {})
    with torch.no_grad():
        program(lister, *args)
    sizes = [len(v) for v, _ in lister.found.values()]
    total = math.prod(sizes)
    dim = run.new_dim(total)
    sites, index = {}, torch.arange(total)
    for name, (values, events) in lister.found.items():
        place, index = index % len(values), index // len(values)
        laid = values[place.to(values.device)]
        value = laid.reshape(total, *(1,) * (dim - 1), *laid.shape[laid.ndim - events :])
        sites[name] = Site(name, None, value, width=events)
    return Trace(run, sites, dim, total, (len(run.terms), len(run.terms)))


def widened(z: Trace, log_w: Tensor) -> Tensor:
    """With the dim of particles, which draws leave out at size one, and weights where they do not vary."""
    log_w = log_w.reshape((1,) * (z.dim - log_w.ndim) + log_w.shape)
    return log_w.expand(*log_w.shape[: -z.dim], z.particles, *log_w.shape[log_w.ndim - z.dim + 1 :])


@final
class _Lister(Named):
    """A handle that lays out every site along a dim of its own and keeps its support."""

    def __init__(self, run: Run, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.run, self.given = run, given
        self.found: dict[str, tuple[Tensor, int]] = {}
        self.total = 1

    def sample(self, name: str, dist: Any, strategy: Any = None) -> Any:
        """See `Handle.sample`."""
        name = self.prefix + name
        if name in self.given:
            return self.given[name]
        if not isinstance(dist, Distribution):
            got = f"an exact sum over {type(dist).__name__}"
            raise UnsupportedError(f"site {name!r}", got=got, expected="a finite support", remedy=_REMEDY)
        try:
            values = support_of(name, dist, LIMIT)
        except UnsupportedError as error:
            raise UnsupportedError(error.what, got=error.got, expected=error.expected, remedy=_REMEDY) from None
        self.total *= len(values)
        if self.total > LIMIT:
            got = f"{self.total} joint values"
            raise UnsupportedError(f"site {name!r}", got=got, expected=f"at most {LIMIT}", remedy=_REMEDY)
        dim, events = len(self.run.sizes) + len(self.found) + 1, len(dist.event_shape)
        self.found[name] = (values, events)
        laid = values.reshape(len(values), *(1,) * (dim - 1), *values.shape[1:])
        if self.run.watch is not None:
            self.run.watch.mark(laid, name, False, events)
        return laid

    def observe(self, name: str, dist: Distribution, value: Tensor | None) -> Tensor:
        """See `Handle.observe`."""
        if value is None:
            remedy = "Give the observation."
            raise UnsupportedError(f"site {name!r}", got="no value", expected="one to condition on", remedy=remedy)
        return value
