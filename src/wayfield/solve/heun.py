r"""Heun's method, deterministic and with churn.

In the EDM state x/alpha the probability-flow ODE is d(x/alpha)/d(sigma/alpha) = eps. With k = alpha_s (sigma_s/alpha_s
- sigma_t/alpha_t),

.. math:: \tilde{x}_s = \alpha_s x_0 + \sigma_s \varepsilon_1, \qquad x_s = \tilde{x}_s + \tfrac{k}{2} (\varepsilon_2 -
   \varepsilon_1)

where eps_2 is predicted at x~_s. The correction is skipped at a clean end (sigma_s = 0) and from a start without signal
(alpha_t = 0):
2N - 1 evaluations for N steps. `solve.euler.HeunTime` integrates the velocity in t instead.

`Churn` raises the noise level before each step: sigma_hat = sigma (1 + gamma), gamma = min(S_churn/N, sqrt(2) - 1)
inside [S_min, S_max].

Reference: Karras et al. 2022, algorithms 1 and 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import GridError, RangeError
from wayfield.core.grid import Grid
from wayfield.solve.roles import Denoise, Plan, Solver, State, falling_only

__all__ = ["Churn", "Heun"]


class Row(NamedTuple):
    """Move (x0, eps), correct (half)."""

    x0: Tensor
    eps: Tensor
    half: Tensor


class ChurnRow(NamedTuple):
    """Raise the level (scale, noise), move (x0, eps), correct (half)."""

    scale: Tensor
    noise: Tensor
    x0: Tensor
    eps: Tensor
    half: Tensor


def _half_gap(a_t: Tensor, s_t: Tensor, a_s: Tensor, s_s: Tensor) -> Tensor:
    """k/2 of the module docstring, 0 where the correction is skipped."""
    return torch.where((s_s == 0) | (a_t == 0), torch.zeros_like(a_t), 0.5 * (s_s - a_s * s_t / a_t))


def _move_and_correct(denoise: Denoise, x: Tensor, row: Row | ChurnRow, evals: int) -> Tensor:
    old = denoise(x, 0)
    x = torch.addcmul(row.x0 * old.x0, row.eps, old.eps)
    return x if evals == 1 else torch.addcmul(x, row.half, denoise(x, 1).eps - old.eps)


@final
@dataclass(frozen=True)
class Heun(Solver):
    """Heun's method in the EDM state."""

    @property
    def order(self) -> int:
        """2."""
        return 2

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        a, s = grid.scales.alpha, grid.scales.sigma
        half = _half_gap(a[:-1], s[:-1], a[1:], s[1:])
        times = tuple((t, r) if h else (t,) for t, r, h in zip(grid.t[:-1], grid.t[1:], half.tolist(), strict=True))
        return Plan(times, Row(a[1:], s[1:], half), (0,) * grid.steps)

    def step(
        self, denoise: Denoise, x: Tensor, row: Row, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        return _move_and_correct(denoise, x, row, evals), state


@final
@dataclass(frozen=True)
class Churn(Solver):
    """EDM's stochastic sampler. s_churn >= 0 / [s_min, s_max]: range of sigma/alpha in which noise is added / s_noise:
    its inflation.
    """

    s_churn: float = 40.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003

    def __post_init__(self) -> None:
        if not (self.s_churn >= 0 and 0 <= self.s_min < self.s_max and self.s_noise > 0):
            raise RangeError(
                "churn",
                got=self,
                expected="s_churn >= 0, 0 <= s_min < s_max, s_noise > 0",
                remedy="See Karras et al. 2022, table 5.",
            )

    @property
    def order(self) -> int:
        """2 without churn; the noise makes it 1 in general."""
        return 2 if self.s_churn == 0 else 1

    @property
    def stochastic(self) -> bool:
        """Whether any noise is added."""
        return self.s_churn > 0

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`. Raises GridError if the raised level leaves the path, or the start has no signal (alpha =
        0).
        """
        falling_only(grid, self)
        a, s = grid.scales.alpha, grid.scales.sigma
        if bool((a[:-1] == 0).any()):
            raise GridError(
                "grid",
                got=f"start t = {grid.t[0]:g} with alpha = 0",
                expected="alpha > 0",
                remedy="Start at a lower level, e.g. karras().",
            )
        level = s[:-1] / a[:-1]
        inside = (level >= self.s_min) & (level <= self.s_max)
        gamma = min(self.s_churn / grid.steps, math.sqrt(2) - 1) * inside.double()
        t_hat = torch.where(gamma > 0, grid.path.time(-2 * (level * (1 + gamma)).log()), grid.times[:-1])
        if float(t_hat.max()) > 1:
            raise GridError(
                "churn",
                got=f"a raised level at t = {float(t_hat.max()):g}",
                expected="t <= 1",
                remedy="Lower s_max or start lower.",
            )
        ah, sh = (
            torch.where(gamma > 0, new, old[:-1]) for new, old in zip(grid.path.scales(t_hat)[:2], (a, s), strict=True)
        )
        half = _half_gap(ah, sh, a[1:], s[1:])
        row = ChurnRow(ah / a[:-1], ah * level * (gamma**2 + 2 * gamma).sqrt() * self.s_noise, a[1:], s[1:], half)
        times = tuple((t, r) if h else (t,) for t, r, h in zip(t_hat.tolist(), grid.t[1:], half.tolist(), strict=True))
        return Plan(times, row, (int(self.stochastic),) * grid.steps)

    def step(
        self, denoise: Denoise, x: Tensor, row: ChurnRow, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        if noise:
            x = torch.addcmul(row.scale * x, row.noise, noise[0])
        return _move_and_correct(denoise, x, row, evals), state
