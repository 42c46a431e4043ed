r"""One execution of an objective: which dims its values have, what its sites drew, and what the gradient needs of them.

Dims of a log-density are counted from the right and never move: rows B first, the averaged samples S next, then one dim
for every set of particles and every enumerated site, in the order they appear. Reductions keep their dim with size one.

.. math:: [E_k, \ldots, P_j, \ldots, S, B]

"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError, WayfieldError
from wayfield.vi.enumeration import chosen, laid_out
from wayfield.vi.handles import Drawing, Replaying
from wayfield.vi.program import Site, Trace
from wayfield.vi.strategy import (
    MVD,
    SMOOTH,
    Enum,
    Strategy,
    check,
    default,
)

__all__ = ["Run", "Drawn"]


@final
@dataclass(frozen=True)
class Frozen:
    """In the place of a strategy: drawn, and no part of the gradient."""


@final
@dataclass(eq=False)
class Drawn:
    """What one drawn site adds to the estimator.

    particles: dims of particles it stood under / dims: the dims enumerated here / count: values enumerated / log_prob:
    with its graph, [...] / baseline: from the objective (VIMCO) / state: of the generators after the draw.
    """

    index: int
    name: str
    strategy: Strategy | Frozen
    dist: Distribution
    value: Tensor
    particles: tuple[int, ...] = ()
    dims: tuple[int, ...] = ()
    count: int = 1
    log_prob: Tensor | None = None
    baseline: Tensor | None = None
    state: list[Tensor] | None = None


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
        self.extent = [*reversed(batch), *([samples] if samples > 1 else [])]  # sizes of a draw, from the right
        self.samples = samples
        self.forced, self.strategies, self.watch = forced or {}, strategies or {}, watch
        self.choices, self.pure, self.snapshots = choices, pure, snapshots
        self.sizes = list(self.extent)  # of every dim, enumerated ones included
        self.within: tuple[int, ...] = ()  # dims of particles that draws are now made under
        self.terms: list[Drawn] = []
        self.frozen = self.chosen = 0

    # what an objective's body calls

    def simulate(
        self,
        program: Any,
        *args: Any,
        n: int | None = None,
        frozen: bool = False,
        given: Mapping[str, Tensor] | None = None,
    ) -> Trace:
        """Draw from a program or a stochastic density.

        n: particles, on a dim of their own that the body must reduce: `Trace.logmeanexp` or `Trace.mean` / frozen:
        values and densities without graph and without any term of the gradient / given: values of sites that are not
        drawn but conditioned on, like observed ones.
        """
        if n is not None and (not isinstance(n, int) or n < 1):
            raise RangeError("particles n", got=n, expected="a whole number of at least 1", remedy="Give n=1 or more.")
        dim, start = (self.new_dim(n) if n is not None else 0), len(self.terms)
        sites, result = self._filled(Drawing(self, given), program, args, dim, frozen)
        if self.watch is not None:
            for site in sites.values():
                self._fits(site)
        return Trace(self, sites, dim, n or 1, (start, len(self.terms)), result)

    def replay(self, program: Any, values: Trace | Mapping[str, Tensor], *args: Any, frozen: bool = False) -> Trace:
        """The trace of a program at given values. frozen: as in `simulate`, for what a stochastic density draws inside.

        Raises UnknownNameError for a site without a value, UnsupportedError for a value without a site.
        """
        given = values.values if isinstance(values, Trace) else dict(values)
        dim = values.dim if isinstance(values, Trace) else 0
        sites, result = self._filled(Replaying(self, given), program, args, dim, frozen)
        if self.watch is not None:
            drawn = values.sites if isinstance(values, Trace) else {}
            for name, site in sites.items():
                self._fits(site, drawn.get(name))
        return Trace(self, sites, dim, values.particles if isinstance(values, Trace) else 1, result=result)

    def log_density(self, program: Any, values: Trace | Mapping[str, Tensor], *args: Any) -> Tensor:
        """log density of a program at given values, observations included, [..., B]; estimated for a stochastic one."""
        return self.replay(program, values, *args).log_joint

    def _filled(
        self, handle: Drawing | Replaying, program: Any, args: tuple[Any, ...], dim: int, frozen: bool
    ) -> tuple[dict[str, Site], Any]:
        """The sites of a program run under a handle, and what it returned. dim: of particles that its draws have."""
        outer, grad = self.within, torch.is_grad_enabled()
        if dim:
            self.within, self.extent[dim - 1] = (*outer, dim), self.sizes[dim - 1]
        if frozen:
            self.frozen += 1
            torch.set_grad_enabled(False)
        try:
            density = hasattr(program, "random_weighted")
            result = handle.density("", program, *args) if density else program(handle, *args)
            handle.finish()
            return (_frozen(handle.sites) if frozen else handle.sites), result
        finally:
            if frozen:
                self.frozen -= 1
                torch.set_grad_enabled(grad)
            if dim:
                self.within, self.extent[dim - 1] = outer, 1

    # what handles call

    def draw(self, name: str, dist: Distribution, said: Strategy | None) -> Site:
        """Draw one site by its strategy and note what the gradient needs."""
        strategy = self.strategies.get(name, said) or default(dist)
        if self.watch is not None:
            check(name, dist, strategy)
        smooth, index = isinstance(strategy, SMOOTH), len(self.terms)
        dims, count = (), 1
        if isinstance(strategy, Enum) and not self.frozen and self.choices is None:
            value, dims, count = laid_out(self, name, dist, strategy.limit)
        elif isinstance(strategy, Enum) and not self.frozen and not self.pure:
            value, count = chosen(self, name, dist, strategy.limit)
        elif index in self.forced:
            value = self.forced[index]
        else:
            value = self._drawn(name, dist, smooth and not self.frozen)
        site = Site(name, dist, value, strategy)
        if self.frozen:
            self.terms.append(Drawn(index, name, _FROZEN, dist, value, self.within))
            return site
        term = Drawn(index, name, strategy, dist, value, self.within, dims, count)
        self.terms.append(term)
        if self.watch is not None:
            self.watch.mark(value, name, smooth, len(dist.event_shape))
        if smooth:
            return site
        if isinstance(strategy, MVD):
            term.state = self.snapshots() if self.snapshots is not None else None
        elif not self.pure or isinstance(strategy, Enum):
            term.log_prob = site.log_prob
        return site

    # dims

    def new_dim(self, size: int) -> int:
        """A dim of its own, counted from the right; draws do not have it."""
        self.sizes.append(size)
        self.extent.append(1)
        return len(self.sizes)

    def _drawn(self, name: str, dist: Distribution, smooth: bool) -> Tensor:
        shape, want = tuple(dist.batch_shape), self.lead()
        more = len(want) - len(shape)
        if more >= 0 and shape == want[more:]:
            value = (dist.rsample if smooth else dist.sample)(torch.Size(want[:more]))
        else:
            self._check(name, shape)
            if more >= 0 or shape[-more:] != want:  # else it has them all, and enumerated ones on the left
                dist = dist.expand(torch.broadcast_shapes(shape, want))
            value = dist.rsample() if smooth else dist.sample()
        return value if smooth else value.detach()

    def lead(self) -> tuple[int, ...]:
        """The shape of a draw that depends on nothing: trailing dims of size one on the left are dropped."""
        last = len(self.extent)
        while last > len(self.batch) and self.extent[last - 1] == 1:
            last -= 1
        return tuple(reversed(self.extent[:last]))

    def choice(self) -> int:
        """The replay engine's next choice; beyond what is given, the first value."""
        assert self.choices is not None
        if self.chosen == len(self.choices):
            self.choices.append(0)
        self.chosen += 1
        return self.choices[self.chosen - 1]

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse dims that are neither rows, samples, particles nor enumerated values (ShapeError)."""
        for k, size in enumerate(reversed(shape)):
            if size != 1 and (k >= len(self.sizes) or size != self.sizes[k]):
                known = tuple(reversed(self.sizes))
                remedy = "Dims of one value: Independent(dist, k). Rows of data: batch_dims=."
                raise ShapeError(f"site {name!r}", got=shape, expected=f"broadcast with {known}", remedy=remedy)

    def _fits(self, site: Site, drawn: Site | None = None) -> None:
        """Refuse a value of another shape than the site's, or without a density. drawn: where the value comes from."""
        if site.dist is not None and drawn is not None and drawn.dist is not None:
            event, other = tuple(site.dist.event_shape), tuple(drawn.dist.event_shape)
            if event != other:
                remedy = "Give the site the same event in model and guide: Independent(dist, k)."
                raise ShapeError(f"event of site {site.name!r}", got=other, expected=event, remedy=remedy)
        try:
            log_p = site.log_prob.detach()
        except WayfieldError:
            raise
        except (ValueError, RuntimeError) as error:  # torch's own checks, which do not know the site
            kind = type(site.dist).__name__
            remedy = "Check its shape, and that it lies in the support."
            got = str(error).splitlines()[0]
            what, want = f"value of site {site.name!r}", f"a value of {kind}"
            raise RangeError(what, got=got, expected=want, remedy=remedy) from None
        self._check(site.name, shape := tuple(log_p.shape))
        impossible = torch.isnan(log_p) if self._enumerates(shape) else ~torch.isfinite(log_p)
        if bool(impossible.any()):
            got = "NaN" if bool(log_p.isnan().any()) else "infinity"
            remedy = "Check the value against the support, and scales against zero."
            raise NonFiniteError(f"log density of site {site.name!r}", got=got, expected="finite", remedy=remedy)

    def _enumerates(self, shape: tuple[int, ...]) -> bool:
        """An impossible value has density zero, and may be enumerated."""
        if self.choices is not None:
            return any(t.count > 1 for t in self.terms)
        dims = {d for t in self.terms for d in t.dims}
        return any(d <= len(shape) and shape[-d] != 1 for d in dims)


_FROZEN = Frozen()


def _frozen(sites: Mapping[str, Site]) -> dict[str, Site]:
    return {k: replace(s, known=s.log_prob) for k, s in sites.items()}
