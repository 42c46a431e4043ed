r"""Euler's and Heun's methods on the velocity of the probability-flow ODE, in the time of the path.

.. math:: x_s = x_t + (s - t)\, u_1, \qquad x_s = x_t + (s - t)(u_1 + u_2)/2, \qquad u = \alpha'_t x_0 + \sigma'_t
   \varepsilon

On the straight line and the EDM path Euler is DDIM exactly; on VP paths it is not (there DDIM is Euler in sigma/alpha,
and better).
Velocities are not asked for at a clean end, where VP paths have infinite sigma'; Heun's last step is Euler's there.

Reference: Lipman et al. 2023; Liu et al. 2023.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.grid import Grid
from wayfield.solve.roles import Denoise, Plan, Solver, State

__all__ = ["Euler", "HeunTime"]


class EulerRow(NamedTuple):
    """(s - t) alpha' and (s - t) sigma'."""

    x0: Tensor
    eps: Tensor


class HeunRow(NamedTuple):
    """Euler's coefficients, and half of them at the old and the new time."""

    x0: Tensor
    eps: Tensor
    old_x0: Tensor
    old_eps: Tensor
    new_x0: Tensor
    new_eps: Tensor


@final
@dataclass(frozen=True)
class Euler(Solver):
    """First-order steps along the velocity."""

    @property
    def order(self) -> int:
        """1."""
        return 1

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        dt = grid.times.diff()
        return Plan(
            tuple((t,) for t in grid.t[:-1]),
            EulerRow(dt * grid.scales.dalpha[:-1], dt * grid.scales.dsigma[:-1]),
            (0,) * grid.steps,
        )

    def step(
        self, denoise: Denoise, x: Tensor, row: EulerRow, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        pred = denoise(x, 0)
        return torch.addcmul(torch.addcmul(x, row.x0, pred.x0), row.eps, pred.eps), state


@final
@dataclass(frozen=True)
class HeunTime(Solver):
    """Second-order steps along the velocity."""

    @property
    def order(self) -> int:
        """2."""
        return 2

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        dt, on = grid.times.diff(), grid.scales.sigma[1:] > 0
        da, ds = grid.scales.dalpha, grid.scales.dsigma
        old = [-dt / 2 * torch.where(on, d[:-1], 0.0) for d in (da, ds)]
        new = [dt / 2 * torch.where(on, d[1:], 0.0) for d in (da, ds)]
        times = tuple((t, r) if c else (t,) for t, r, c in zip(grid.t[:-1], grid.t[1:], on.tolist(), strict=True))
        return Plan(times, HeunRow(dt * da[:-1], dt * ds[:-1], *old, *new), (0,) * grid.steps)

    def step(
        self, denoise: Denoise, x: Tensor, row: HeunRow, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        old = denoise(x, 0)
        x = torch.addcmul(torch.addcmul(x, row.x0, old.x0), row.eps, old.eps)
        if evals == 1:
            return x, state
        new = denoise(x, 1)
        x = torch.addcmul(torch.addcmul(x, row.old_x0, old.x0), row.old_eps, old.eps)
        return torch.addcmul(torch.addcmul(x, row.new_x0, new.x0), row.new_eps, new.eps), state
