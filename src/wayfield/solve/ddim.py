r"""DDIM(eta) and ancestral sampling.

.. math:: x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - z^2}\,\varepsilon + z w, \qquad z = \eta\, \sigma_s \sqrt{1 -
   e^{-2h}}, \quad h = \lambda_s - \lambda_t

with lam = log(alpha/sigma). eta = 0 is deterministic (and Euler's method in sigma/alpha); eta = 1 is exactly DDPM's
ancestral step with the small posterior variance, on any path; k-diffusion's "ancestral" samplers are the same in
another state.

References: Song et al. 2021 (DDIM), eq. 12 and 16; Ho et al. 2020, eq. 6-7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.core.grid import Grid
from wayfield.solve.roles import Denoise, Plan, Solver, State, falling_only, move, tied_columns

__all__ = ["DDIM", "Ancestral"]


class Row(NamedTuple):
    """Coefficients of one step."""

    x0: Tensor
    eps: Tensor
    noise: Tensor
    keep: Tensor | None
    clean: Tensor | None


@final
@dataclass(frozen=True)
class DDIM(Solver):
    """eta: share of ancestral noise, 0 (deterministic) to 1 (ancestral)."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise RangeError("eta", got=self.eta, expected="0..1", remedy="0 is DDIM, 1 is ancestral.")

    @property
    def order(self) -> int:
        """1."""
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether eta > 0."""
        return self.eta > 0

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        if self.stochastic:
            falling_only(grid, self)
        a, s = grid.scales.alpha[1:], grid.scales.sigma[1:]
        if self.stochastic:
            z = self.eta * s * (-torch.expm1(-2 * grid.lam.diff())).sqrt()
        else:
            z = torch.zeros_like(s)
        eps = (s**2 - z**2).sqrt()
        row = Row(a, eps, z, *tied_columns(grid, eps))
        return Plan(tuple((t,) for t in grid.t[:-1]), row, (int(self.stochastic),) * grid.steps)

    def step(
        self, denoise: Denoise, x: Tensor, row: Row, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        x = move(denoise(x, 0), x, row)
        return (torch.addcmul(x, row.noise, noise[0]) if noise else x), state


def Ancestral() -> DDIM:
    """DDPM's ancestral sampler: DDIM with eta = 1."""
    return DDIM(eta=1.0)
