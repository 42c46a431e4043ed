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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from wayfield.core.errors import UnsupportedError
from wayfield.vi.particles import logmeanexp, mean
from wayfield.vi.strategy import Strategy

if TYPE_CHECKING:
    from wayfield.vi.run import Run
    from wayfield.vi.stochastic import StochasticDensity

__all__ = ["Handle", "Program", "Site", "Trace"]

Program = Callable[..., Any]
"""A function of a handle and arguments. What it returns is handed on by `Handle.call` and kept as `Trace.result`."""


@final
@dataclass(eq=False)
class Site:
    """One named place of a run.

    dist: None for a factor or a stochastic density / value: [..., *event] / given: observed, or a factor / known: its
    log density where that is known already, [...] / width: event dims where dist is None.
    """

    name: str
    dist: Distribution | None
    value: Tensor | None
    strategy: Strategy | None = None
    given: bool = False
    known: Tensor | None = None
    width: int = 0

    @property
    def event_dims(self) -> int:
        """How many dims of the value are its event."""
        return self.width if self.dist is None else len(self.dist.event_shape)

    @property
    def log_prob(self) -> Tensor:
        """log p(value), [...]; computed once."""
        if self.known is None:
            assert self.dist is not None
            assert self.value is not None
            self.known = self.dist.log_prob(self.value)
        return self.known


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
        """log density of the values drawn, [..., B].

        Raises UnsupportedError for a program that also observes or weighs: its draws have no density that is known.
        """
        if given := [k for k, s in self.sites.items() if s.given]:
            remedy = "A guide draws only; of a model take log_joint, or log_joint - log_likelihood for its prior."
            got, want = "an observation or a factor", "draws alone where log_prob is asked for"
            raise UnsupportedError(f"site {given[0]!r}", got=got, expected=want, remedy=remedy)
        return _total(s.log_prob for s in self.sites.values())

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
        """The mean over this trace's particles, whose dim stays with size one. Gives Reinforce(LeaveOneOut()) sites
        the mean of the others as their baseline.
        """
        return mean(self, cost)


def _total(terms: Iterator[Tensor]) -> Tensor:
    total = None
    for term in terms:
        total = term if total is None else total + term
    return torch.zeros(()) if total is None else total


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

    def observe(self, name: str, dist: Distribution, value: Tensor | None) -> Tensor:
        """Condition on a value, [..., *event]. None draws it: what the model predicts before it has seen data."""
        ...

    def factor(self, name: str, log_weight: Tensor) -> None:
        """Multiply the joint density by exp(log_weight), [...]: any energy, or a likelihood scaled for minibatches."""
        ...

    def call(self, prefix: str, program: Program, *args: Any) -> Any:
        """Run another program inside of this one; its names become "prefix/name". Returns what it returns."""
        ...
