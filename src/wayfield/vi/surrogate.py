r"""From one run to an estimator: the expression whose value is the objective and whose gradient is unbiased.

With cost c (graph kept: its own derivative in the parameters is part of the gradient), sg = stop gradient,

.. math::
    \tilde c &= c + \textstyle\sum_{i\ \text{Reinforce}} (\log q_i - \mathrm{sg} \log q_i)\, \mathrm{sg}(c - b_i)
        + \sum_{i\ \text{MVD}} \mathrm{sg}(c_i (L_i^+ - L_i^-))\, (a_i - \mathrm{sg}\, a_i) \\
    \text{surrogate} &= \operatorname{mean}_{S, B} \textstyle\sum_{E} \exp(\sum_k \log p_k)\; \tilde c

Every added term has value zero. The score stands outside of the whole cost, never inside its logarithm, and is summed
over the particles the cost has reduced; rows meet only their own cost. A baseline never sees its site's own draw, nor
what is enumerated because of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, ShapeError, UnsupportedError, WayfieldError
from wayfield.vi.leaves import leaves
from wayfield.vi.measure_valued import pairs
from wayfield.vi.run import Drawn, Run
from wayfield.vi.seeding import apart
from wayfield.vi.strategy import MVD, Learned, LeaveOneOut, Reinforce

__all__ = ["check_cost", "enumerated", "expected", "surrogate"]

Again = Callable[[Drawn, Tensor], Tensor]
"""Run the rest again with a site's value replaced: the expected cost, without graph."""


def check_cost(run: Run, cost: Tensor) -> Tensor:
    """The body's cost, every dim of particles reduced. Raises DTypeError, ShapeError."""
    if not isinstance(cost, Tensor):
        remedy = "Return a tensor, such as log_density - trace.log_prob."
        raise DTypeError("cost of an objective", got=type(cost).__name__, expected="a tensor", remedy=remedy)
    particles = {d for t in run.terms for d in t.particles}
    for k, size in enumerate(reversed(cost.shape), 1):
        if k in particles and size != 1:
            remedy = "Reduce particles in the objective: trace.logmeanexp(w) or trace.mean(cost)."
            raise ShapeError(
                "cost of an objective", got=tuple(cost.shape), expected=f"size 1 at dim -{k}", remedy=remedy
            )
        if size != 1 and (k > len(run.sizes) or size != run.sizes[k - 1]):
            want = f"broadcast with {tuple(reversed(run.sizes))}"
            remedy = "Return one value per row; keep reduced dims with keepdim=True."
            raise ShapeError("cost of an objective", got=tuple(cost.shape), expected=want, remedy=remedy)
    return cost


def enumerated(run: Run, since: int = -1) -> Tensor | None:
    """log probability of the enumerated values of sites after `since`, joint over particles; None if there are none."""
    total = None
    for term in run.terms[since + 1 :]:
        if term.count > 1 and term.log_prob is not None:
            log_p = _over(term.log_prob, term.particles)
            total = log_p if total is None else total + log_p
    return total


def expected(run: Run, cost: Tensor, since: int = -1) -> Tensor:
    """The cost averaged over what was enumerated after site `since`, whose dims stay with size one."""
    log_p = enumerated(run, since)
    dims = [-d for t in run.terms[since + 1 :] for d in t.dims]
    if log_p is None or not dims:
        return cost
    p = log_p.exp()
    return (p * possible(p, cost)).sum(dims, keepdim=True)


def possible(p: Tensor, cost: Tensor) -> Tensor:
    """The cost, zero where its probability is: even an infinite one has no part in the mean there.

    Nor in the gradient: p is the exponential of a log-probability, and changes in proportion to itself.
    """
    return cost.masked_fill(p == 0, 0.0)


def surrogate(run: Run, cost: Tensor, again: Again, alone: Tensor | None = None) -> Tensor:
    """c~ before the sum over enumerated values, [E..., S, B].

    alone: baseline of LeaveOneOut sites from other runs, where samples are not a dim of this one.
    """
    scored = [t for t in run.terms if isinstance(t.strategy, (Reinforce, MVD))]
    if not scored:
        return cost
    total, fixed = cost, cost.detach()
    if (log_p := enumerated(run)) is not None:
        fixed = possible(log_p.detach().exp(), fixed)
    for term in scored:
        if isinstance(term.strategy, Reinforce) and term.log_prob is not None:
            if run.watch is not None and isinstance(term.strategy.baseline, Learned):
                _check_learned(term, term.strategy.baseline.prediction, cost)
            total = total + _score(run, term, fixed, alone)
        elif isinstance(term.strategy, MVD):
            total = total + _measure_valued(run, term, term.strategy, fixed, again)
    return total


def _score(run: Run, term: Drawn, cost: Tensor, alone: Tensor | None) -> Tensor:
    assert isinstance(term.strategy, Reinforce)
    assert term.log_prob is not None
    log_q, b = term.log_prob, term.strategy.baseline
    zero = log_q - log_q.detach()
    if b is None:
        return _over(zero * cost, term.particles)
    if isinstance(b, Learned):
        error = b.prediction - cost
        learned = (error.square() - error.detach().square()).neg()
        return _over(zero * -error.detach() + learned, term.particles)
    baseline = _left_out(run, term, cost, alone) if isinstance(b, LeaveOneOut) else b
    return _over(zero * (cost - baseline), term.particles)


def _check_learned(term: Drawn, prediction: Tensor, cost: Tensor) -> None:
    """Refuse a baseline whose regression would move what the objective is about (UnsupportedError)."""
    if leaves(prediction) & (leaves(cost) | leaves(term.log_prob)):
        remedy = "Detach the input of its network: Learned(net(x.detach()))."
        got, want = "a prediction that depends on parameters of model or guide", "parameters of its own"
        raise UnsupportedError(f"Learned() at site {term.name!r}", got=got, expected=want, remedy=remedy)


def _left_out(run: Run, term: Drawn, cost: Tensor, alone: Tensor | None) -> Tensor:
    later = any(t.dims for t in run.terms[term.index + 1 :])
    if term.baseline is not None:
        if later:
            remedy = "Enumerate this site too, or give it a constant baseline."
            got = "sites enumerated after it"
            raise UnsupportedError(f"LeaveOneOut() at site {term.name!r}", got=got, expected="none", remedy=remedy)
        return term.baseline
    if alone is not None:
        return alone
    if run.samples < 2:
        remedy = "Give the objective samples=2 or more, or particles whose weights go through trace.logmeanexp."
        raise WayfieldError(
            f"LeaveOneOut() at site {term.name!r}", got="1 sample", expected="at least 2", remedy=remedy
        )
    dim = -(len(run.batch) + 1)
    mean = expected(run, cost, term.index)  # of every sample by its own enumeration: own one is left out below
    if mean.ndim < -dim or mean.shape[dim] == 1:  # no sample has a part in the cost
        return mean
    return (mean.sum(dim, keepdim=True) - mean) / (run.samples - 1)


def _measure_valued(run: Run, term: Drawn, strategy: MVD, cost: Tensor, again: Again) -> Tensor:
    drawn = expected(run, cost, term.index).detach()
    total = torch.zeros((), dtype=cost.dtype, device=cost.device)
    with apart():
        found = pairs(term.name, term.dist, term.value, strategy.coupled)
    for pair in found:
        places = list(_places(run, term, pair.parameter, strategy.limit))
        for place in places:
            plus, minus = (drawn if v is None else again(term, place.swap(v)) for v in (pair.plus, pair.minus))
            a, c = place.of(pair.parameter), place.of(pair.coefficient)
            total = total + (c * (plus - minus)).detach() * (a - a.detach())
    return total


@final
@dataclass(frozen=True, eq=False)
class _Place:
    """One component of an event and one particle of each dim: what a run of its own is made for."""

    value: Tensor
    component: int
    events: int
    particles: tuple[tuple[int, int], ...]

    def swap(self, other: Tensor) -> Tensor:
        """The drawn value with this component of this particle replaced."""
        mask = torch.zeros(self.value.shape, dtype=torch.bool, device=self.value.device)
        view = mask.flatten(mask.ndim - self.events) if self.events else mask[..., None]
        for dim, k in self.particles:
            view = view.narrow(view.ndim - 1 - dim, k, 1)
        view[..., self.component] = True
        return torch.where(mask, other, self.value)

    def of(self, values: Tensor) -> Tensor:
        """This component and particle of a parameter, [..., 1 where particles were]."""
        lead = values.expand(self.value.shape) if values.shape != self.value.shape else values
        lead = lead.flatten(lead.ndim - self.events)[..., self.component] if self.events else lead
        for dim, k in self.particles:
            lead = lead.narrow(lead.ndim - dim, k, 1)
        return lead


def _places(run: Run, term: Drawn, parameter: Tensor, limit: int) -> list[_Place]:
    events = len(term.dist.event_shape)
    numel = term.dist.event_shape.numel()
    held = [d for d in term.particles if term.value.ndim - events >= d and term.value.shape[-d - events] > 1]
    combos: list[tuple[tuple[int, int], ...]] = [()]
    for d in held:
        combos = [(*c, (d, k)) for c in combos for k in range(run.sizes[d - 1])]
    if len(combos) * numel > limit:
        remedy = "Choose Reinforce(), or raise MVD(limit=...)."
        got = f"{len(combos) * numel} components"
        raise UnsupportedError(f"MVD() at site {term.name!r}", got=got, expected=f"at most {limit}", remedy=remedy)
    return [_Place(term.value, j, events, c) for c in combos for j in range(numel)]


def _over(values: Tensor, particles: tuple[int, ...]) -> Tensor:
    """Summed over dims of particles, which stay with size one."""
    dims = [-d for d in particles if d <= values.ndim and values.shape[-d] > 1]
    return values.sum(dims, keepdim=True) if dims else values
