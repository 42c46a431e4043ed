r"""Stochastic steps whose transitions are Gaussians with a known density: what policy gradients need of a sampler.

The deterministic flow has no density to differentiate. A stochastic differential equation has, and with a matching
drift it keeps every marginal p_t of the flow:

.. math:: dx = \bigl(u + \tfrac{b^2}{2 \sigma}\, \varepsilon\bigr)\, dt + b\, d\bar{w}, \qquad
   u = \alpha' x_0 + \sigma' \varepsilon, \qquad b^2 = a^2 \sigma\, \frac{\alpha \sigma' - \alpha' \sigma}{\alpha}

and by Euler and Maruyama, with d = s - t < 0,

.. math:: x_s \sim N\bigl((\alpha + d \alpha')\, x_0 + (\sigma + d \sigma' + \tfrac{d b^2}{2 \sigma})\, \varepsilon,
   \; -d\, b^2 I\bigr)

On the straight path b = a sqrt(t / (1 - t)); Flow-GRPO takes a = 0.7. a = sqrt(2) is the reverse diffusion itself,
which forgets its start; a = 0 is `Euler()`. At alpha = 0, where b is infinite, alpha of the next time stands in, as in
Flow-GRPO. `DDIM(eta)` with eta > 0 is of the same form and serves as well; its last step, to a clean end, is without
noise and has no density.

x, x0, eps: (B, *D) / alpha, sigma, det: of the path at t, () / b: diffusion / a: level of noise.

References: Liu et al. 2025 (Flow-GRPO), arXiv 2505.05470, sec. 4.2; Song et al. 2021, eq. 13.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, UnsupportedError
from wayfield.core.grid import Grid
from wayfield.core.shapes import expand, flatten
from wayfield.field.cond import Cond
from wayfield.field.denoiser import Denoiser
from wayfield.solve.roles import Denoise, Plan, Solver, State, falling_only

__all__ = ["FlowSDE", "Transitions"]


_KNOWN = {"x0", "eps", "noise", "keep", "clean"}  # the last two are the first ones, of tied pairs


class _Row(NamedTuple):
    """Mean x0 x0 + eps eps, standard deviation noise."""

    x0: Tensor
    eps: Tensor
    noise: Tensor


@final
@dataclass(frozen=True)
class FlowSDE(Solver):
    """The stochastic twin of `Euler`. a: level of noise, > 0; 0.7 is Flow-GRPO's, sqrt(2) the reverse diffusion.

    Raises RangeError.
    """

    a: float = 0.7

    def __post_init__(self) -> None:
        if not (self.a > 0 and math.isfinite(self.a)):
            raise RangeError("a of FlowSDE", got=self.a, expected="> 0 and finite", remedy="For none use Euler().")

    @property
    def order(self) -> int:
        """1."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        falling_only(grid, self)
        alpha, sigma, dalpha, dsigma = (c[:-1] for c in grid.scales)
        d = grid.times.diff()
        finite = torch.where(alpha > 0, alpha, grid.scales.alpha[1:])
        square = self.a**2 * sigma * (alpha * dsigma - dalpha * sigma) / finite
        row = _Row(alpha + d * dalpha, sigma + d * dsigma + d * square / (2 * sigma), (-d * square).sqrt())
        return Plan(tuple((t,) for t in grid.t[:-1]), row, (1,) * grid.steps)

    def step(
        self, denoise: Denoise, x: Tensor, row: _Row, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        pred = denoise(x, 0)
        return torch.addcmul(torch.addcmul(row.x0 * pred.x0, row.eps, pred.eps), row.noise, noise[0]), state


@final
@dataclass(frozen=True)
class Transitions:
    """The Gaussian transitions x_i -> x_{i+1} of a solver's runs on a grid, as densities that a network shapes.

    Raises UnsupportedError for solvers of another form, or without any noise.
    """

    solver: Solver
    grid: Grid

    def __post_init__(self) -> None:
        plan = self.solver.plan(self.grid)
        gaussian = set(_Row._fields) <= set(getattr(plan.rows, "_fields", ())) <= _KNOWN
        if not gaussian or any(len(times) != 1 for times in plan.times) or not self.kept:
            remedy = "Use FlowSDE(), DDIM(eta=1.0) or another solver with one evaluation and one noise a step."
            got, expected = repr(self.solver), "Gaussian steps"
            raise UnsupportedError("solver of a policy", got=got, expected=expected, remedy=remedy)

    @cached_property
    def rows(self) -> _Row:
        """Coefficients of mean and noise, (N,) each, float64."""
        rows: Any = self.solver.plan(self.grid).rows
        return _Row(*(getattr(rows, name) for name in _Row._fields))

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """The steps with noise, which have a density."""
        return tuple(i for i, z in enumerate(self.rows.noise.tolist()) if z > 0)

    def means(self, model: Denoiser, x: Tensor, steps: Tensor, cond: Cond) -> Tensor:
        """Means (b, *D) of the transitions from points x (b, *D) at steps (b,); cond: bound, one row for each."""
        level = model.level(self.grid.times[steps], path=self.grid.path, dtype=x.dtype, device=x.device)
        pred = model.denoise(x, level, cond)
        a, b = (expand(c[steps].to(x), x) for c in self.rows[:2])
        return a * pred.x0 + b * pred.eps

    def log_density(self, mean: Tensor, y: Tensor, steps: Tensor) -> Tensor:
        """log N(y; mean, noise^2 I) of the transitions to y (b, *D), (b,), without the constant of the step."""
        return -0.5 * (flatten(y - mean) / self._noise(steps, y)).square().sum(1)

    def divergence(self, mean: Tensor, other: Tensor, steps: Tensor) -> Tensor:
        """KL divergence of transitions from those with other means, (b,): |mean - other|^2 / (2 noise^2)."""
        return -self.log_density(mean, other, steps)

    def _noise(self, steps: Tensor, like: Tensor) -> Tensor:
        return self.rows.noise[steps].to(like)[:, None]
