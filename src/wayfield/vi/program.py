r"""Programs: ordinary functions that draw named values, and what a run of one leaves behind.

A program takes a handle first and whatever it needs after it; parameters are ordinary tensors and modules:

.. code-block:: python

    def model(h, x):
        z = h.sample("z", Independent(Normal(torch.zeros(8), 1.0), 1))
        h.observe("x", Independent(Bernoulli(logits=decoder(z)), 1), x)

    def guide(h, x):
        h.sample("z", Independent(Normal(*encoder(x)), 1), Reparam())

Running it draws values and gives a `Trace`; replaying it at given values gives its log-density. A value's shape is
[..., B, \*event]: rows B, then what the distribution calls an event; to the left of the rows the library lays samples,
particles and enumerated values, one dim each, so a program is written for one row and broadcasts. Every dim of a
distribution that is not an event must broadcast with these; `Independent` makes a dim part of the event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from wayfield.core.errors import UnknownNameError, UnsupportedError, WayfieldError
from wayfield.vi.particles import logmeanexp
from wayfield.vi.strategy import Strategy

if TYPE_CHECKING:
    from wayfield.vi.run import Run
    from wayfield.vi.stochastic import StochasticDensity

__all__ = ["Handle", "Program", "Site", "Trace"]

Program = Callable[..., Any]
"""A function of a handle and arguments. What it returns is handed on by `Handle.call` and kept as `Trace.result`."""


@final
@dataclass(frozen=True, eq=False)
class Site:
    """One named place of a run. dist: None for a factor or a stochastic density / value: [..., *event] / log_density:
    known already, or None, and then computed when first asked for / given: observed, or a factor.
    """

    name: str
    dist: Distribution | None
    value: Tensor | None
    strategy: Strategy | None = None
    given: bool = False
    known: Tensor | None = None
    _kept: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def log_prob(self) -> Tensor:
        """log p(value), [...]; computed once."""
        if self.known is not None:
            return self.known
        if not self._kept:
            assert self.dist is not None
            assert self.value is not None
            self._kept.append(self.dist.log_prob(self.value))
        return self._kept[0]


@final
@dataclass(frozen=True, eq=False)
class Trace:
    """What one run of a program left: its sites in order.

    dim: where its particles lie, counted from the right of a log-density's dims (0: none) / particles: how many.
    """

    run: Run
    sites: Mapping[str, Site]
    dim: int = 0
    particles: int = 1
    span: tuple[int, int] = (0, 0)
    result: Any = None

    @property
    def values(self) -> dict[str, Tensor]:
        """Every value drawn, by name; observed ones are not among them."""
        return {k: s.value for k, s in self.sites.items() if not s.given and s.value is not None}

    @property
    def log_prob(self) -> Tensor:
        """log density of the values drawn, [..., B]."""
        return _total(s.log_prob for s in self.sites.values() if not s.given)

    @property
    def log_joint(self) -> Tensor:
        """log density of the values drawn and of what was observed, factors included, [..., B]."""
        return _total(s.log_prob for s in self.sites.values())

    @property
    def log_likelihood(self) -> Tensor:
        """log density of what was observed, factors included, [..., B]."""
        return _total(s.log_prob for s in self.sites.values() if s.given)

    def logmeanexp(self, log_w: Tensor, alpha: float = 0.0) -> Tensor:
        """1/(1 - alpha) log mean w^(1 - alpha) over this trace's particles, whose dim stays with size one.

        alpha: 0 is the log of the mean weight, 1 the mean of the log weight (Renyi's order). Gives the trace's
        Reinforce(LeaveOneOut()) sites their baseline (VIMCO).
        """
        return logmeanexp(self, log_w, alpha)

    def mean(self, cost: Tensor) -> Tensor:
        """The mean over this trace's particles, whose dim stays with size one."""
        return cost.mean(-self.dim, keepdim=True) if self.dim else cost


def _total(terms: Iterator[Tensor]) -> Tensor:
    found = list(terms)
    return reduce(torch.add, found) if found else torch.zeros(())


class Handle(Protocol):
    """What a program is given first."""

    def sample(
        self, name: str, dist: Distribution | StochasticDensity, strategy: Strategy | None = None
    ) -> Tensor | Any:
        """Draw a value, [..., *event]. strategy: how the gradient passes; None is Reparam where possible, else
        Reinforce.

        A stochastic density in place of a distribution draws all it keeps, a dict by name, and counts its estimate of
        the density.
        """
        ...

    def observe(self, name: str, dist: Distribution, value: Tensor) -> Tensor:
        """Condition on a value, [..., *event]."""
        ...

    def factor(self, name: str, log_weight: Tensor) -> None:
        """Multiply the joint density by exp(log_weight), [...]: any energy, or a likelihood scaled for minibatches."""
        ...

    def call(self, prefix: str, program: Program, *args: Any) -> Any:
        """Run another program inside of this one; its names become "prefix/name". Returns what it returns."""
        ...


class _Named:
    """Names of a run: a prefix while in a nested program, and no name twice."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.prefix = ""

    def add(self, site: Site) -> None:
        if site.name in self.sites:
            remedy = "Give every site of a program its own name, in a loop f'z{k}'."
            raise WayfieldError(f"site {site.name!r}", got="the name twice", expected="distinct names", remedy=remedy)
        self.sites[site.name] = site

    def call(self, prefix: str, program: Program, *args: Any) -> Any:
        outer, self.prefix = self.prefix, f"{self.prefix}{prefix}/"
        try:
            return program(self, *args)
        finally:
            self.prefix = outer

    def observe(self, name: str, dist: Distribution, value: Tensor) -> Tensor:
        self.add(Site(self.prefix + name, dist, value, given=True))
        return value

    def factor(self, name: str, log_weight: Tensor) -> None:
        self.add(Site(self.prefix + name, None, None, given=True, known=log_weight))


@final
class Drawing(_Named):
    """The handle that draws."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def sample(self, name: str, dist: Any, strategy: Strategy | None = None) -> Any:
        name = self.prefix + name
        if isinstance(dist, Distribution):
            site = self.run.draw(name, dist, strategy)
            self.add(site)
            return site.value
        values, log_w = dist.random_weighted(self.run)
        for key, value in values.items():
            self.add(Site(f"{name}/{key}", None, value, known=torch.zeros((), dtype=log_w.dtype)))
        self.add(Site(name, None, None, known=log_w))
        return values


@final
class Replaying(_Named):
    """The handle that returns given values."""

    def __init__(self, run: Run, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.run, self.given = run, given

    def sample(self, name: str, dist: Any, strategy: Strategy | None = None) -> Any:
        name = self.prefix + name
        if isinstance(dist, Distribution):
            value = self._value(name)
            self.add(Site(name, dist, value, strategy))
            return value
        values = {key: self._value(f"{name}/{key}") for key in dist.keep}
        log_w = dist.estimate_log_density(self.run, values)
        for key, value in values.items():
            self.add(Site(f"{name}/{key}", None, value, known=torch.zeros((), dtype=log_w.dtype)))
        self.add(Site(name, None, None, known=log_w))
        return values

    def _value(self, name: str) -> Tensor:
        try:
            return self.given[name]
        except KeyError:
            remedy = f"Here are {sorted(self.given)}. Draw it in the guide under this name, or observe it in the model."
            raise UnknownNameError(f"site {name!r}", got="no value", expected="a value for it", remedy=remedy) from None

    def finish(self) -> None:
        """Refuse values the program never asked for (UnsupportedError)."""
        if extra := sorted(self.given.keys() - self.sites.keys()):
            remedy = "Sample it in the model too, or marginalise it: vi.marginal(guide, keep=...)."
            raise UnsupportedError(
                f"site {extra[0]!r}", got=f"values for {extra}", expected=sorted(self.sites), remedy=remedy
            )
