r"""Distributions whose density is known only by estimates, which is enough for unbiased bounds and gradients.

A guide that draws helpers u before x, or picks x among candidates, has a density that is a sum nobody can do. Two
estimates take its place, and where each stands decides whether a bound stays a lower one: the first in a denominator
(-log of a guide's density), the second in a numerator (+log of a model's).

.. math::
    \text{random\_weighted:}\quad & x \sim q,\quad \mathbb{E}[1 / \hat w \mid x] = 1 / q(x) \\
    \text{estimate\_log\_density:}\quad & \mathbb{E}[\hat w] = q(x) \\
    \text{marginal:}\quad & \hat w = \tfrac1m \textstyle\sum_i q(u_i, x) / r(u_i \mid x), \quad u_i \sim r \\
    \text{normalize:}\quad & \hat w = P(z_J, y) / \hat Z, \quad \hat Z = \tfrac1n \textstyle\sum_i w_i,
        \quad w_i = P(z_i, y) / Q(z_i), \quad J \sim w / \textstyle\sum w

While drawing, u_1 is the one that x was drawn with; while weighing a given z, z is one of the n candidates. Without
these every bound would be broken. Programs inside of a density may draw from densities themselves.

Shapes: values [..., S, B, \*event], weights [..., S, B]; helpers and candidates lie on dims of their own, reduced here.

References: Becker et al. 2024, arXiv 2406.15742; Lew et al. 2023, Probabilistic programming with stochastic
probabilities; Naesseth et al. 2018 and Le et al. 2018 (importance-resampled families).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.distributions import Categorical

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, UnsupportedError, unknown_name
from wayfield.vi.program import Program, Site, Trace
from wayfield.vi.strategy import MVD, Enum, Reinforce, Strategy
from wayfield.vi.support import everything, widened

if TYPE_CHECKING:
    from wayfield.vi.run import Run

__all__ = ["Marginal", "Normalized", "StochasticDensity", "marginal", "normalize"]


class StochasticDensity(ABC):
    """A distribution of named values with an estimated density; programs sample it as they sample a distribution.

    alone: the name of its only value, where a site should hold that value itself and not a dict.
    """

    alone: str | None = None

    @abstractmethod
    def random_weighted(self, run: Run, *args: Any) -> tuple[dict[str, Site], Tensor]:
        """Draw by `run.simulate`; the sites kept, and log w with E[1 / w | x] = 1 / q(x), [..., B]."""

    @abstractmethod
    def estimate_log_density(self, run: Run, values: Mapping[str, Tensor], *args: Any) -> Tensor:
        """log w with E[w] = q(values), [..., B]."""


@final
@dataclass(frozen=True, eq=False)
class Marginal(StochasticDensity):
    """See `marginal`, which makes one."""

    program: Program | StochasticDensity
    keep: tuple[str, ...]
    proposal: Program | StochasticDensity | None = None
    m: int | None = 1
    alone: str | None = None

    def __post_init__(self) -> None:
        _whole("helpers m", self.m)
        if not self.keep or not all(isinstance(k, str) for k in self.keep):
            remedy = "Name the sites that stay, marginal(guide, keep=['z'])."
            raise RangeError("keep", got=self.keep, expected="one name or more", remedy=remedy)
        if isinstance(self.program, StochasticDensity) and self.proposal is None:
            remedy = "Give proposal=, a program that draws what is left out."
            got = f"{type(self.program).__name__} without a proposal"
            raise UnsupportedError("marginal", got=got, expected="a program, or a proposal", remedy=remedy)
        if self.m is None and self.proposal is not None:
            remedy = "Leave the proposal out, or say how many helpers it draws."
            raise UnsupportedError("marginal", got="a proposal and m=None", expected="one of them", remedy=remedy)

    def random_weighted(self, run: Run, *args: Any) -> tuple[dict[str, Site], Tensor]:
        """See `StochasticDensity.random_weighted`."""
        q = run.simulate(self.program, *args)
        for name in self.keep:
            if name not in q.values:
                raise unknown_name("name to keep", name, q.values)
        kept = {k: q.sites[k] for k in self.keep}
        x = {k: v for k, v in q.values.items() if k in kept}
        if self.m is None:
            return kept, self._summed(run, x, args)
        if self.proposal is None:
            own = self._conditional(q)
        else:
            u = {k: v for k, v in q.values.items() if k not in kept}
            own = q.log_prob - run.log_density(self.proposal, u, x, *args)
        others = [self._others(run, x, self.m - 1, args)] if self.m > 1 else []
        return kept, _logsum([own, *others]) - math.log(self.m)

    def estimate_log_density(self, run: Run, values: Mapping[str, Tensor], *args: Any) -> Tensor:
        """See `StochasticDensity.estimate_log_density`."""
        if values.keys() != set(self.keep):
            remedy = "Give a value for every name kept, and for no other."
            raise UnsupportedError("marginal", got=f"values of {sorted(values)}", expected=self.keep, remedy=remedy)
        if self.m is None:
            return self._summed(run, values, args)
        return self._others(run, values, self.m, args) - math.log(self.m)

    def _others(self, run: Run, x: Mapping[str, Tensor], count: int, args: tuple[Any, ...]) -> Tensor:
        """log of the sum of `count` weights with helpers drawn by the proposal."""
        if self.proposal is None:
            u = run.simulate(self.program, *args, n=count, given=x)
            return _over(u, self._conditional(u))
        u = run.simulate(self.proposal, x, *args, n=count)
        return _over(u, run.replay(self.program, _joined(u, x), *args).log_prob - u.log_prob)

    def _summed(self, run: Run, x: Mapping[str, Tensor], args: tuple[Any, ...]) -> Tensor:
        """log of the exact sum over the finite support of what is left out."""
        assert not isinstance(self.program, StochasticDensity)
        u = everything(run, self.program, *args, given=x)
        return _over(u, run.replay(self.program, _joined(u, x), *args).log_prob)

    def _conditional(self, q: Trace) -> Tensor:
        """log density of what is kept given the sites before it: the weight where the program draws its own helpers."""
        terms = []
        for name, site in q.sites.items():
            parts = [k for k in q.sites if site.value is None and k.startswith(f"{name}/")]
            kept = {k in self.keep for k in (parts or [name])}
            if len(kept) > 1:
                remedy = "Keep all of it or nothing, or give a proposal."
                raise UnsupportedError(f"site {name!r}", got="part of it kept", expected=parts, remedy=remedy)
            if kept == {True}:
                terms.append(site.log_prob)
            elif site.given:
                remedy = "Condition by vi.normalize(program, proposal, n)."
                raise UnsupportedError(f"site {name!r}", got="an observation", expected="draws alone", remedy=remedy)
        return reduce(torch.add, terms)


def marginal(
    program: Program | StochasticDensity,
    keep: str | Sequence[str],
    proposal: Program | StochasticDensity | None = None,
    m: int | None = 1,
) -> Marginal:
    """The distribution of some of a program's sites, the others left out.

    keep: names that stay; a string alone makes a single value, which a site of another program holds as a tensor /
    proposal: draws what is left out, given a dict of what stays before the arguments: proposal(h, kept, *args). None is
    the program itself, conditioned on what stays / m: helpers averaged over, tighter as m grows; None sums over the
    finite support of what is left out, exactly.

    Raises RangeError, UnsupportedError for wrong options; in a run UnknownNameError for a name that is never drawn,
    UnsupportedError for a program that observes.
    """
    alone = keep if isinstance(keep, str) else None
    return Marginal(program, (keep,) if isinstance(keep, str) else tuple(keep), proposal, m, alone)


@final
@dataclass(frozen=True, eq=False)
class Normalized(StochasticDensity):
    """See `normalize`, which makes one."""

    target: Program | StochasticDensity
    proposal: Program | StochasticDensity
    n: int | None
    select: Strategy = Enum()
    alone: str | None = None

    def __post_init__(self) -> None:
        _whole("candidates n", self.n)
        if self.n is None and isinstance(self.proposal, StochasticDensity):
            got = type(self.proposal).__name__
            remedy = "Give a number of candidates."
            raise UnsupportedError("normalize(n=None)", got=got, expected="a program", remedy=remedy)
        if not isinstance(self.select, (Enum, Reinforce, MVD)):
            remedy = "Choose Enum(), Reinforce() or MVD()."
            raise DTypeError(
                "select of normalize", got=repr(self.select), expected="a strategy of choices", remedy=remedy
            )

    def random_weighted(self, run: Run, *args: Any) -> tuple[dict[str, Site], Tensor]:
        """See `StochasticDensity.random_weighted`."""
        z, log_p, log_w = self._candidates(run, self.n, args)
        total = torch.logsumexp(log_w, -z.dim, keepdim=True)
        if run.watch is not None and bool(torch.isneginf(total.detach()).any()):
            remedy = "Draw candidates where the target has mass, or more of them."
            raise NonFiniteError("weights of normalize", got="all zero", expected="one above zero", remedy=remedy)
        logits = log_w[..., None].transpose(-1, -1 - z.dim)
        chosen = run.draw("select", Categorical(logits=logits), self.select).value
        assert chosen is not None
        found = {}
        for name in z.values:
            s = z.sites[name]
            assert s.value is not None
            value = _taken(s.value, chosen, z.dim, s.event_dims)
            found[name] = Site(name, None, value, width=s.event_dims)
        log_mean = total - (math.log(self.n) if self.n is not None else 0.0)
        return found, _taken(log_p, chosen, z.dim, 0) - log_mean

    def estimate_log_density(self, run: Run, values: Mapping[str, Tensor], *args: Any) -> Tensor:
        """See `StochasticDensity.estimate_log_density`."""
        log_p = run.log_density(self.target, values, *args)
        if self.n is None:
            z, _, log_w = self._candidates(run, None, args)
            return log_p - _over(z, log_w)
        weights = [log_p - run.replay(self.proposal, values, *args).log_prob]
        if self.n > 1:
            z, _, log_w = self._candidates(run, self.n - 1, args)
            weights.append(_over(z, log_w))
        return log_p - (_logsum(weights) - math.log(self.n))

    def _candidates(self, run: Run, n: int | None, args: tuple[Any, ...]) -> tuple[Trace, Tensor, Tensor]:
        """Candidates, their log target density and their log weight, both with the candidates' dim."""
        if n is None:
            assert not isinstance(self.proposal, StochasticDensity)
            z = everything(run, self.proposal, *args)
            log_w = log_p = widened(z, run.log_density(self.target, z, *args))
        else:
            z = run.simulate(self.proposal, *args, n=n)
            log_p = widened(z, run.log_density(self.target, z, *args))
            log_w = widened(z, log_p - z.log_prob)
        return z, log_p, log_w


def normalize(
    target: Program | StochasticDensity,
    proposal: Program | StochasticDensity,
    n: int | None,
    select: Strategy | None = None,
    alone: str | None = None,
) -> Normalized:
    """The posterior of a model by sampling importance resampling: n candidates of a proposal, one chosen by weight.

    target: a program that observes, unnormalised / proposal: draws the target's other sites; takes the same arguments /
    n: candidates, nearer to the posterior as n grows; None takes the proposal's whole finite support, which is exact /
    select: how the gradient passes the choice: Enum() (default) averages over it, Reinforce() or MVD() serve where that
    is too much, under particles / alone: name of the only value, where a site should hold it as a tensor.

    The choice is a site named "select". The ELBO of this guide is the IWELBO of target and proposal, draw by draw.
    Raises RangeError, DTypeError, UnsupportedError; in a run NonFiniteError where every candidate has weight zero.
    """
    return Normalized(target, proposal, n, Enum() if select is None else select, alone)


def _whole(what: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        remedy = "Give 1 or more, or None for the exact sum over a finite support."
        raise RangeError(what, got=value, expected="a whole number of at least 1", remedy=remedy)


def _joined(u: Trace, x: Mapping[str, Tensor]) -> Trace:
    """Particles with values that all of them share."""
    return replace(u, sites={**u.sites, **{k: Site(k, None, v) for k, v in x.items()}})


def _over(z: Trace, log_w: Tensor) -> Tensor:
    """log of the sum of weights over particles, whose dim stays with size one."""
    return torch.logsumexp(widened(z, log_w), -z.dim, keepdim=True)


def _logsum(terms: list[Tensor]) -> Tensor:
    return reduce(torch.logaddexp, terms)


def _taken(x: Tensor, index: Tensor, dim: int, events: int) -> Tensor:
    """The chosen particle's part of x, [..., n, ..., *event] -> [..., 1, ..., *event]. index: [..., 1, ...]."""
    lead = max(x.ndim - events, index.ndim, dim)
    x = x.reshape(*(1,) * (lead - x.ndim + events), *x.shape)
    at = index.long().reshape(*(1,) * (lead - index.ndim), *index.shape, *(1,) * events)
    return torch.take_along_dim(x, at, -dim - events) if x.shape[-dim - events] > 1 else x
