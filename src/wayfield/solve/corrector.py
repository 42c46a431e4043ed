r"""Predictor-corrector: a DDIM step down, then Langevin steps at the level reached.

.. math:: x \leftarrow x - \tau \sigma \varepsilon(x) + \sqrt{2\tau}\, \sigma w, \qquad \tau = 2 r^2

The paper sets the step from measured norms, tau sigma^2 = 2 (r |w| / |score|)^2 averaged over the batch; here their
expected ratio sigma is used, so that no sample depends on its neighbours.

Reference: Song et al. 2021 (score SDE), algorithms 4 and 5; r = 0.16 is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.core.grid import Grid
from wayfield.solve.roles import Denoise, Plan, Solver, State, falling_only

__all__ = ["PredictorCorrector"]


class Row(NamedTuple):
    """Move (x0, eps), Langevin drift and noise."""

    x0: Tensor
    eps: Tensor
    drift: Tensor
    noise: Tensor


@final
@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """snr: the paper's r > 0 / corrections: Langevin steps after each move, >= 1. The clean end is not corrected."""

    snr: float = 0.16
    corrections: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.snr < 0.7:
            raise RangeError("snr", got=self.snr, expected="0 < r < 0.7", remedy="The paper uses 0.16.")
        if self.corrections < 1:
            raise RangeError(
                "corrections", got=self.corrections, expected=">= 1", remedy="Without corrections use DDIM()."
            )

    @property
    def order(self) -> int:
        """1."""
        return 1

    @property
    def stochastic(self) -> bool:
        """True."""
        return True

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        falling_only(grid, self)
        a, s = grid.scales.alpha[1:], grid.scales.sigma[1:]
        tau = 2 * self.snr**2
        extra = [self.corrections if v > 0 else 0 for v in s.tolist()]
        times = tuple((t, *(r,) * k) for t, r, k in zip(grid.t[:-1], grid.t[1:], extra, strict=True))
        return Plan(times, Row(a, s, -tau * s, (2 * tau) ** 0.5 * s), tuple(extra))

    def step(
        self, denoise: Denoise, x: Tensor, row: Row, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        pred = denoise(x, 0)
        x = torch.addcmul(row.x0 * pred.x0, row.eps, pred.eps)
        for k in range(1, evals):
            x = torch.addcmul(torch.addcmul(x, row.drift, denoise(x, k).eps), row.noise, noise[k - 1])
        return x, state
