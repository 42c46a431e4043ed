r"""One execution of an objective: which dims its values have, what its sites drew, and what the gradient needs of them.

Dims of a log-density are counted from the right and never move: rows B first, the averaged samples S next, then one dim
for every set of particles and every enumerated site, in the order they appear. Reductions keep their dim with size one.

.. math:: [E_k, \ldots, P_j, \ldots, S, B]

A site under particles that enumerates is one choice per particle: n particles with K values each are K^n joint values
on n dims, since a nonlinear objective (log mean exp) must see them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError, UnsupportedError
from wayfield.vi.program import Drawing, Replaying, Site, Trace
from wayfield.vi.strategy import (
    MVD,
    SMOOTH,
    Enum,
    Reinforce,
    Reparam,
    Strategy,
    check,
    default,
    support_of,
)

__all__ = ["Run", "Term"]


@final
@dataclass(eq=False)
class Term:
    """What one drawn site adds to the estimator.

    log_prob: with its graph, [...] / dims: the dims enumerated here / particles: dims of particles it stood under /
    baseline: from the objective (VIMCO) / state: of the generators after the draw / count: values enumerated.
    """

    index: int
    name: str
    strategy: Strategy
    dist: Distribution
    particles: tuple[int, ...] = ()
    value: Tensor = field(default_factory=Tensor)
    log_prob: Tensor | None = None
    dims: tuple[int, ...] = ()
    baseline: Tensor | None = None
    state: list[Tensor] = field(default_factory=list)
    count: int = 1


@final
class Run:
    """The context an objective's body is given: `simulate`, `replay`, `log_density`.

    samples: averaged draws S / batch: rows B / forced: values of sites, by their order, in place of draws / strategies:
    by site name, over what programs say / watch: the first run's check of smooth use, or None / choices: in the replay
    engine, which value each enumerated site takes; None lays them out along dims / pure: only the value is wanted, and
    with choices enumerated sites are drawn / snapshots: reads the state of the generators.
    """

    def __init__(
        self,
        samples: int = 1,
        batch: tuple[int, ...] = (),
        forced: Mapping[int, Tensor] | None = None,
        strategies: Mapping[str, Strategy] | None = None,
        watch: Any = None,
        choices: list[int] | None = None,
        pure: bool = False,
        snapshots: Callable[[], list[Tensor]] | None = None,
    ) -> None:
        self.batch = batch
        self.extent: list[int] = [
            *reversed(batch),
            *([samples] if samples > 1 else []),
        ]  # sizes of a draw, from the right
        self.samples, self.own = samples, len(self.extent)
        self.forced, self.strategies, self.watch = forced or {}, strategies or {}, watch
        self.choices, self.pure, self.snapshots = choices, pure, snapshots
        self.sizes = list(self.extent)  # of every dim, enumerated ones included
        self.within: tuple[int, ...] = ()  # dims of particles that draws are now made under
        self.terms: list[Term] = []
        self.frozen = 0

    # what an objective's body calls

    def simulate(self, program: Any, *args: Any, n: int | None = None, frozen: bool = False) -> Trace:
        """Draw from a program or a stochastic density.

        n: particles, on a dim of their own that the body must reduce: `Trace.logmeanexp` or `Trace.mean` / frozen:
        values and densities without graph and without any term of the gradient.
        """
        if n is not None and (not isinstance(n, int) or n < 1):
            raise RangeError("particles n", got=n, expected="a whole number of at least 1", remedy="Give n=1 or more.")
        dim, start = (self._new(n, active=True) if n is not None else 0), len(self.terms)
        outer, self.within = self.within, ((*self.within, dim) if dim else self.within)
        handle = Drawing(self)
        self.frozen += frozen
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                if hasattr(program, "random_weighted"):
                    result = handle.sample("", program)
                else:
                    result = program(handle, *args)
                sites = _frozen(handle.sites) if frozen else handle.sites
        finally:
            self.frozen -= frozen
            self.within = outer
            if dim:
                self.extent[dim - 1] = 1
        if self.watch is not None:
            for site in sites.values():
                self._fits(site)
        if hasattr(program, "random_weighted"):
            sites = {k.removeprefix("/"): s for k, s in sites.items()}
        return Trace(self, sites, dim, n or 1, (start, len(self.terms)), result)

    def replay(self, program: Any, values: Trace | Mapping[str, Tensor], *args: Any) -> Trace:
        """The trace of a program at given values.

        Raises UnknownNameError for a site without a value, UnsupportedError for a value without a site.
        """
        given = values.values if isinstance(values, Trace) else dict(values)
        dim = values.dim if isinstance(values, Trace) else 0
        with self._under(dim):
            handle = Replaying(self, given)
            if hasattr(program, "estimate_log_density"):
                handle.given = {f"/{k}": v for k, v in given.items()}
                result = handle.sample("", program)
            else:
                result = program(handle, *args)
            handle.finish()
        for site in handle.sites.values():
            self._fits(site)
        return Trace(self, handle.sites, dim, values.particles if isinstance(values, Trace) else 1, result=result)

    def log_density(self, program: Any, values: Trace | Mapping[str, Tensor], *args: Any) -> Tensor:
        """log density of a program at given values, observations included, [..., B]; estimated for a stochastic one."""
        return self.replay(program, values, *args).log_joint

    # what handles call

    def draw(self, name: str, dist: Distribution, said: Strategy | None) -> Site:
        """Draw one site by its strategy and note what the gradient needs."""
        strategy = self.strategies.get(name, said) or default(dist)
        check(name, dist, strategy)
        term = Term(len(self.terms), name, strategy, dist, particles=self.within)
        if isinstance(strategy, Enum) and not self.frozen and not (self.pure and self.choices is not None):
            term.value = self._enumerated(term, strategy)
        elif (forced := self.forced.get(term.index)) is not None:
            term.value = forced
        else:
            term.value = self._drawn(name, dist, isinstance(strategy, SMOOTH) and not self.frozen)
        self.terms.append(term)
        site = Site(name, dist, term.value, strategy)
        if self.frozen:
            term.strategy = _FROZEN
            return site
        if self.watch is not None:
            self.watch.mark(term.value, name, isinstance(strategy, SMOOTH))
        if isinstance(strategy, MVD) and self.snapshots is not None:
            term.state = self.snapshots()
        elif isinstance(strategy, Enum) or (isinstance(strategy, Reinforce) and not self.pure):
            term.log_prob = site.log_prob
        return site

    # dims

    def _new(self, size: int, active: bool) -> int:
        """A dim of its own, counted from the right. active: draws have it."""
        self.sizes.append(size)
        self.extent.append(size if active else 1)
        return len(self.sizes)

    @contextmanager
    def _under(self, dim: int) -> Iterator[None]:
        """Draws inside have this trace's particles."""
        if not dim:
            yield
            return
        outer, self.within = self.within, (*self.within, dim)
        self.extent[dim - 1] = self.sizes[dim - 1]
        try:
            yield
        finally:
            self.within, self.extent[dim - 1] = outer, 1

    def _drawn(self, name: str, dist: Distribution, smooth: bool) -> Tensor:
        shape, want = dist.batch_shape, self._lead()
        draw = dist.rsample if smooth else dist.sample
        if tuple(shape) == want:
            value = draw()
        elif len(shape) <= len(want) and tuple(shape) == want[len(want) - len(shape) :]:
            value = draw(torch.Size(want[: len(want) - len(shape)]))
        else:
            self._check(name, tuple(shape))
            value = getattr(dist.expand(torch.broadcast_shapes(shape, want)), "rsample" if smooth else "sample")()
        return value if smooth else value.detach()

    def _lead(self) -> tuple[int, ...]:
        """The shape of a draw that depends on nothing: trailing dims of size one on the left are dropped."""
        last = len(self.extent)
        while last > len(self.batch) and self.extent[last - 1] == 1:
            last -= 1
        return tuple(reversed(self.extent[:last]))

    def _enumerated(self, term: Term, strategy: Enum) -> Tensor:
        values = support_of(term.name, term.dist, strategy.limit)
        K, event = len(values), term.dist.event_shape
        term.count = K
        if self.choices is not None:
            return values[self._choice()]
        if not self.within:
            dim = self._new(K, active=False)
            term.dims = (dim,)
            return values.reshape(K, *(1,) * (dim - 1), *event)
        P, n = self.within[0], self.sizes[self.within[0] - 1]
        if len(self.within) > 1 or K**n > strategy.limit:
            nested = len(self.within) > 1
            got = "particles of particles" if nested else f"{K} values for each of {n} particles, {K**n} joint ones"
            remedy = "Fewer particles, Reinforce(LeaveOneOut()) or MVD(); or raise Enum(limit=...)."
            want = f"one set of particles and at most {strategy.limit} values"
            raise UnsupportedError(f"Enum() at site {term.name!r}", got=got, expected=want, remedy=remedy)
        term.dims = tuple(self._new(K, active=False) for _ in range(n))
        low, high = term.dims[0], term.dims[-1]
        whole = (*(K,) * n, *(1,) * (low - 1), *event)
        each = [values.reshape(K, *(1,) * (d - 1), *event).expand(whole) for d in term.dims]
        return torch.cat(each, high - P)

    def _choice(self) -> int:
        """The replay engine's next choice; beyond what is given, the first value."""
        assert self.choices is not None
        place = sum(isinstance(t.strategy, Enum) for t in self.terms)
        if place == len(self.choices):
            self.choices.append(0)
        return self.choices[place]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse dims that are neither rows, samples, particles nor enumerated values (ShapeError)."""
        for k, size in enumerate(reversed(shape)):
            if size != 1 and (k >= len(self.sizes) or size != self.sizes[k]):
                known = tuple(reversed(self.sizes))
                remedy = "Dims of one value: Independent(dist, k). Rows of data: batch_dims=."
                raise ShapeError(f"site {name!r}", got=shape, expected=f"broadcast with {known}", remedy=remedy)

    def _fits(self, site: Site) -> None:
        shape = tuple(site.log_prob.shape)
        self._check(site.name, shape)
        if self.watch is not None:
            log_p = site.log_prob.detach()
            impossible = torch.isnan(log_p) if self._enumerates(shape) else ~torch.isfinite(log_p)
            if bool(impossible.any()):
                got = "NaN" if bool(log_p.isnan().any()) else "infinity"
                remedy = "Check the value against the support, and scales against zero."
                raise NonFiniteError(f"log density of site {site.name!r}", got=got, expected="finite", remedy=remedy)

    def _enumerates(self, shape: tuple[int, ...]) -> bool:
        """An impossible value has density zero, and may be enumerated."""
        dims = {d for t in self.terms for d in t.dims}
        return any(d <= len(shape) and shape[-d] != 1 for d in dims)


_FROZEN = Reparam()


def _frozen(sites: Mapping[str, Site]) -> dict[str, Site]:
    return {k: Site(s.name, s.dist, s.value, s.strategy, s.given, s.log_prob) for k, s in sites.items()}
