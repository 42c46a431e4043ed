r"""What an objective returns, a value to report and a surrogate to differentiate; baselines that lower its variance.

For many objectives (score distillation, policy gradients, REINFORCE) the number worth plotting is not the expression
whose gradient is wanted. Keeping both apart by name stops anyone from differentiating the wrong one.

.. math::
    \text{as\_gradient:}\quad & s = \textstyle\sum \mathrm{stop}(g)\, x, \quad \nabla_x s = g \\
    \text{leave\_one\_out:}\quad & b_k = \tfrac{1}{K-1} \textstyle\sum_{i \ne k} f_i \\
    \text{control\_variate:}\quad & f_k - \beta_k u_k, \quad u = c - \mathbb{E} c, \quad
        \beta_k = \widehat{\mathrm{Cov}}_{i \ne k}(f_i, u_i) \,/\, \widehat{\mathrm{Var}}_{i \ne k}(u_i) \\
    \text{RunningMean:}\quad & m \leftarrow \rho\, m + (1 - \rho)\, \bar f, \quad w \leftarrow \rho\, w + (1 - \rho),
        \quad \text{baseline } m / w

Var f - 2 beta Cov(f, u) + beta^2 Var u is least at beta = Cov / Var. Why only the other draws: beta_k then ignores draw
k, so E[beta_k u_k] = E[beta_k] E[u_k] = 0; a beta that saw its own draw is biased at order 1/K. Both sums divide by
K - 1, not the covariance by K - 2: this shrinkage costs no bias and lowers the variance when draws are few.

Shapes: K independent draws on axis 0, f, c (K, \*B); x, g (B, \*D); value, surrogate any, usually ().
References: Williams 1992; Kool et al. 2019 (leave-one-out baseline); Owen 2013, section 8.9 (control variates);
Kingma & Ba 2015 (bias correction); Poole et al. 2023 (SDS as a given gradient).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, RangeError, ShapeError, WayfieldError
from wayfield.core.shapes import check_like

__all__ = ["Estimate", "RunningMean", "as_gradient", "control_variate", "leave_one_out"]


@final
@dataclass(frozen=True, eq=False)
class Estimate:
    """An objective's answer. `value` and `aux` are detached on arrival: differentiating them is an error, not a bias.

    value: what is reported / surrogate: what is differentiated / aux: named parts to log, neither added up nor scaled.
    """

    value: Tensor
    surrogate: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.value.detach())
        object.__setattr__(self, "aux", {k: v.detach() for k, v in self.aux.items()})

    def __add__(self, other: Estimate) -> Estimate:
        if not isinstance(other, Estimate):
            return NotImplemented
        check_like("value of the second estimate", other.value, self.value)
        check_like("surrogate of the second estimate", other.surrogate, self.surrogate)
        if twice := sorted(self.aux.keys() & other.aux.keys()):
            remedy = 'Rename one side: estimate.named("kl") turns "x" into "kl.x".'
            raise WayfieldError("aux of a sum", got=f"{twice} on both sides", expected="distinct names", remedy=remedy)
        return Estimate(self.value + other.value, self.surrogate + other.surrogate, {**self.aux, **other.aux})

    def __mul__(self, weight: float | Tensor) -> Estimate:
        if not isinstance(weight, (int, float, Tensor)):
            return NotImplemented
        if isinstance(weight, Tensor) and weight.ndim:
            raise ShapeError("weight", got=tuple(weight.shape), expected="()", remedy="Weigh samples in the objective.")
        return Estimate(weight * self.value, weight * self.surrogate, self.aux)

    __rmul__ = __mul__

    def __neg__(self) -> Estimate:
        return self * -1

    def named(self, prefix: str) -> Estimate:
        """The same estimate with every aux name "x" turned into "prefix.x"."""
        return Estimate(self.value, self.surrogate, {f"{prefix}.{k}": v for k, v in self.aux.items()})

    def detach(self) -> Estimate:
        """The same numbers with no graph behind any of them, to keep or to log."""
        return Estimate(self.value, self.surrogate.detach(), self.aux)


def as_gradient(x: Tensor, g: Tensor) -> Tensor:
    """sum(stop(g) * x), (): its gradient in x is exactly `g`, its value means nothing. x, g: same shape (B, *D)."""
    return (check_like("gradient g", g, x).detach() * x).sum()


def leave_one_out(values: Tensor) -> Tensor:
    """For each draw the mean of the others, (K, *B) -> (K, *B), K >= 2. As a baseline, detach it."""
    K = _draws("values", values, 2)
    own = torch.eye(K, dtype=torch.bool, device=values.device).reshape(K, K, *(1,) * (values.ndim - 1))
    # masked sum, not (total - own): no cancellation when one draw dwarfs the rest, an infinite one spoils only others
    return values.expand(K, *values.shape).masked_fill(own, 0).sum(1) / (K - 1)


def control_variate(f: Tensor, c: Tensor, mean_c: Tensor | float) -> Tensor:
    """f - beta (c - mean_c) with the same mean as `f` and, when c is correlated with f, a smaller variance, (K, *B).

    f: independent draws, (K, *B), K >= 4 / c: a companion of each, (K, *B) / mean_c: its mean, a number, () or (*B).
    beta is estimated from the other draws and not differentiated. Estimating it costs variance: Gaussian draws of
    correlation 0.9 gain from K = 4 on, of 0.5 from K = 7. With fewer than four draws and a c that has a density at its
    mean, beta has infinite variance: E[1 / sum of m squares] is finite only for m = K - 1 >= 3.
    """
    _draws("f", f, 4)
    if isinstance(mean_c, Tensor) and mean_c.shape not in ((), f.shape[1:]):
        want = (), tuple(f.shape[1:])
        raise ShapeError("mean_c", got=tuple(mean_c.shape), expected=f"one of {want}", remedy="Give one per column.")
    u = check_like("control variate c", c, f) - mean_c
    with torch.no_grad():
        covariance = leave_one_out(f * u) - leave_one_out(f) * leave_one_out(u)
        variance = leave_one_out(u.square())
        # where the other draws of c say nothing (variance 0, covariance 0), beta = 0 leaves f alone
        beta = covariance / variance.masked_fill(variance == 0, 1)
    return f - beta * u


@final
@dataclass(frozen=True, eq=False)
class RunningMean:
    """A baseline from past batches: exponential moving average, corrected for its start; `update` gives the next state.

    decay: rho in [0, 1) / total, weight: m and w above, (). Read `value` before `update`: present draws would bias it.
    """

    decay: float = 0.99
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    weight: Tensor = field(default_factory=lambda: torch.zeros(()))

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise RangeError("decay", got=self.decay, expected="in [0, 1)", remedy="Use 1 - 1 / (batches to remember).")

    @property
    def value(self) -> Tensor:
        """The corrected mean, (); zero before the first update."""
        return self.total / self.weight.masked_fill(self.weight == 0, 1)

    def update(self, values: Tensor) -> RunningMean:
        """The state after one more batch, of any shape."""
        fresh = 1 - self.decay
        mean = values.detach().mean(dtype=torch.promote_types(values.dtype, self.total.dtype))
        return RunningMean(self.decay, self.decay * self.total + fresh * mean, self.decay * self.weight + fresh)


def _draws(what: str, x: Tensor, least: int) -> int:
    if not x.is_floating_point():
        raise DTypeError(what, got=x.dtype, expected="a floating-point tensor", remedy="Cast it first.")
    if x.ndim < 1 or x.shape[0] < least:
        raise ShapeError(what, got=tuple(x.shape), expected=f"(K, *B), K >= {least}", remedy="Take more draws.")
    return x.shape[0]
