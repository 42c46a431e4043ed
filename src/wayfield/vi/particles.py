r"""Reducing particles: the log of a mean of weights, and the baseline each particle gets from the others.

.. math::
    L = \tfrac{1}{1 - \alpha} \log \tfrac1n \textstyle\sum_i w_i^{1 - \alpha}, \qquad
    L_{-i}: w_i \leftarrow \exp(\operatorname{mean}_{j \ne i} \log w_j)

L_{-i} does not see particle i, and is near L: as a baseline (VIMCO) it keeps the score function's signal from drowning
as n grows. Shapes: log_w [..., n, ..., B], particles at a dim counted from the right, which stays with size one.

Reference: Mnih & Rezende 2016, Variational inference for Monte Carlo objectives, arXiv 1602.06725, equation 12.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wayfield.core.errors import ShapeError, WayfieldError
from wayfield.core.estimate import leave_one_out
from wayfield.vi.strategy import LeaveOneOut, Reinforce

if TYPE_CHECKING:
    from wayfield.vi.program import Trace
    from wayfield.vi.run import Drawn

__all__ = ["logmeanexp", "mean"]


def logmeanexp(trace: Trace, log_w: Tensor, alpha: float = 0.0) -> Tensor:
    """See `Trace.logmeanexp`. Raises ShapeError for weights that do not have the trace's particles."""
    if not trace.dim:
        return log_w
    if trace.particles == 1 and log_w.ndim < trace.dim:  # draws leave out dims of size one on the left
        log_w = log_w.reshape((1,) * (trace.dim - log_w.ndim) + log_w.shape)
    if log_w.ndim < trace.dim or log_w.shape[-trace.dim] != trace.particles:
        remedy = "Give the weights of this trace's particles, before any reduction."
        want = f"{trace.particles} at dim -{trace.dim}"
        raise ShapeError("log weights", got=tuple(log_w.shape), expected=want, remedy=remedy)
    if alpha == 1:
        return mean(trace, log_w)
    v = (1 - alpha) * log_w
    if alone := _left_out(trace):
        baseline = _without(v.detach(), trace.dim) / (1 - alpha)
        for term in alone:
            term.baseline = baseline
    return (torch.logsumexp(v, -trace.dim, keepdim=True) - math.log(trace.particles)) / (1 - alpha)


def mean(trace: Trace, cost: Tensor) -> Tensor:
    """See `Trace.mean`."""
    if not trace.dim or cost.ndim < trace.dim or cost.shape[-trace.dim] == 1:
        return cost
    if alone := _left_out(trace):
        baseline = _others(cost.detach(), -trace.dim)
        for term in alone:
            term.baseline = baseline
    return cost.mean(-trace.dim, keepdim=True)


def _left_out(trace: Trace) -> list[Drawn]:
    """Sites under the trace's particles that ask for the others as a baseline."""
    terms = trace.run.terms[slice(*trace.span)]
    return [
        t
        for t in terms
        if isinstance(t.strategy, Reinforce)
        and isinstance(t.strategy.baseline, LeaveOneOut)
        and trace.dim in t.particles
    ]


def _others(values: Tensor, dim: int) -> Tensor:
    """For each entry the mean of the others along a dim."""
    n = values.shape[dim]
    if n < 2:
        remedy = "Take n of at least 2, or another baseline."
        raise WayfieldError("LeaveOneOut()", got="1 particle", expected="at least 2", remedy=remedy)
    return leave_one_out(values.movedim(dim, 0)).movedim(0, dim)


def _without(log_w: Tensor, dim: int) -> Tensor:
    """For each particle the log mean weight with its own replaced by the geometric mean of the others."""
    w = log_w.movedim(-dim, -1)
    n, others = w.shape[-1], _others(w, -1)
    own = torch.eye(n, dtype=torch.bool, device=w.device)
    replaced = torch.where(own, others[..., None], w[..., None, :])
    return (torch.logsumexp(replaced, -1) - math.log(n)).movedim(-1, -dim)
