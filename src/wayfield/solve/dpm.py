r"""The DPM-Solver++ family: exponential integrators in half log-SNR, with differences of x0-predictions.

With h = lam_s - lam_t and D the x0-prediction, each method is the first-order move plus corrections:

.. math:: x_s = \alpha_s D_t + \sigma_s e^{-\eta h} \varepsilon + \sigma_s \sqrt{1 - e^{-2\eta h}}\, w +
   \text{correction}

=========  ==========================================================================================================
2M         alpha_s (1 - e^{-(1+eta) h}) / (2 q) (D_t - D_prev), q = h_prev / h
3M         alpha_s (phi2 h D' - phi3 h^2 D''), phi2 = expm1(-h)/h + 1, phi3 = phi2/h - 1/2, from three predictions
2S         alpha_s (1 - e^{-h}) (D_mid - D_t), D_mid predicted at lam_t + h/2
=========  ==========================================================================================================

Multistep corrections vanish on the first step, after a step from alpha = 0, and on a step to a clean end. 3M's second
step uses phi2, as k-diffusion does; diffusers uses the 2M coefficient there.

References: Lu et al. 2022 (DPM-Solver++), algorithms 1 and 2, eq. for SDE-DPM-Solver++(2M).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.core.grid import Grid
from wayfield.solve.roles import Denoise, Plan, Solver, State, falling_only, move, tied_columns

__all__ = ["DPM2M", "DPM2S", "DPM3M"]


class Row2M(NamedTuple):
    """The move (x0, eps; keep, clean if the pair is tied), noise, and the correction by D - D1."""

    x0: Tensor
    eps: Tensor
    noise: Tensor
    first: Tensor
    keep: Tensor | None
    clean: Tensor | None


class Row3M(NamedTuple):
    """The move, and the corrections by D - D1 and D1 - D2."""

    x0: Tensor
    eps: Tensor
    first: Tensor
    second: Tensor
    keep: Tensor | None
    clean: Tensor | None


class SinglestepRow(NamedTuple):
    """Coefficients of the move to the midpoint, to the end, and of the correction."""

    mid_x0: Tensor
    mid_eps: Tensor
    x0: Tensor
    eps: Tensor
    half: Tensor


def _zero_where(bad: Tensor, c: Tensor) -> Tensor:
    return torch.where(bad, torch.zeros_like(c), c)


@final
@dataclass(frozen=True)
class DPM2M(Solver):
    """DPM-Solver++(2M), one evaluation a step. eta: 0 is the ODE solver, > 0 the SDE solver (1 is standard)."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < float("inf"):
            raise RangeError("eta", got=self.eta, expected=">= 0", remedy="0 is the ODE, 1 the usual SDE.")

    @property
    def order(self) -> int:
        """2 for the ODE, 1 for the SDE."""
        return 2 if self.eta == 0 else 1

    @property
    def stochastic(self) -> bool:
        """Whether eta > 0."""
        return self.eta > 0

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        if self.stochastic:
            falling_only(grid, self)
        a, s, h = grid.scales.alpha[1:], grid.scales.sigma[1:], grid.lam.diff()
        decay = (-self.eta * h).exp() if self.stochastic else torch.ones_like(h)
        noise = s * (-torch.expm1(-2 * self.eta * h)).sqrt() if self.stochastic else torch.zeros_like(h)
        h_prev = torch.cat([h.new_full((1,), float("inf")), h[:-1]])
        first = -a * torch.expm1(-(1 + self.eta) * h) / (2 * h_prev / h)
        first = _zero_where(h.isinf() | h_prev.isinf(), first)
        row = Row2M(a, s * decay, noise, first, *tied_columns(grid, s * decay))
        return Plan(tuple((t,) for t in grid.t[:-1]), row, (int(self.stochastic),) * grid.steps)

    def init(self, x: Tensor) -> State:
        """The previous prediction."""
        return (torch.zeros_like(x),)

    def step(
        self, denoise: Denoise, x: Tensor, row: Row2M, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        (D1,) = state
        pred = denoise(x, 0)
        x = torch.addcmul(move(pred, x, row), row.first, pred.x0 - D1)
        return (torch.addcmul(x, row.noise, noise[0]) if noise else x), (pred.x0,)


@final
@dataclass(frozen=True)
class DPM3M(Solver):
    """DPM-Solver++(3M), one evaluation a step.

    as_published: take half of the second-derivative term, as the public implementations do (they use h^2 D''/2 where
    Taylor's expansion has h^2 D''); it reproduces their pictures, but the method is then of order 2.
    """

    as_published: bool = False

    @property
    def order(self) -> int:
        """3; 2 as published."""
        return 2 if self.as_published else 3

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        a, s, h = grid.scales.alpha[1:], grid.scales.sigma[1:], grid.lam.diff()
        inf = h.new_full((1,), float("inf"))
        h1, h2 = torch.cat([inf, h[:-1]]), torch.cat([inf, inf, h[:-2]])[: grid.steps]
        phi2 = torch.expm1(-h) / h + 1
        phi3 = phi2 / h - 0.5
        r0, r1 = h1 / h, h2 / h
        # with u = (D - D1)/r0 and v = (D1 - D2)/r1: h D' = u + (u - v) r0/(r0 + r1) and h^2 D'' = 2 (u - v)/(r0 + r1)
        share = 1.0 if self.as_published else 2.0
        mixed = _zero_where(h2.isinf(), (phi2 * r0 - share * phi3) / (r0 + r1))
        none = h.isinf() | h1.isinf()
        first = _zero_where(none, a * (phi2 + mixed) / r0)
        second = _zero_where(none | h2.isinf(), -a * mixed / r1)
        row = Row3M(a, s, first, second, *tied_columns(grid, s))
        return Plan(tuple((t,) for t in grid.t[:-1]), row, (0,) * grid.steps)

    def init(self, x: Tensor) -> State:
        """The two previous predictions."""
        return torch.zeros_like(x), torch.zeros_like(x)

    def step(
        self, denoise: Denoise, x: Tensor, row: Row3M, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        D1, D2 = state
        pred = denoise(x, 0)
        x = torch.addcmul(torch.addcmul(move(pred, x, row), row.first, pred.x0 - D1), row.second, D1 - D2)
        return x, (pred.x0, D1)


@final
@dataclass(frozen=True)
class DPM2S(Solver):
    """DPM-Solver++(2S), two evaluations a step (one at the ends, where h is infinite)."""

    @property
    def order(self) -> int:
        """2."""
        return 2

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        a, s, h = grid.scales.alpha[1:], grid.scales.sigma[1:], grid.lam.diff()
        whole = h.isinf()
        lam_mid = torch.where(whole, torch.zeros_like(h), grid.lam[:-1] + h / 2)
        t_mid = grid.path.time(2 * lam_mid)
        am, sm, _, _ = grid.path.scales(t_mid)
        row = SinglestepRow(am, sm, a, s, _zero_where(whole, -a * torch.expm1(-h)))
        times = tuple(
            (t,) if w else (t, m) for t, m, w in zip(grid.t[:-1], t_mid.tolist(), whole.tolist(), strict=True)
        )
        return Plan(times, row, (0,) * grid.steps)

    def step(
        self, denoise: Denoise, x: Tensor, row: SinglestepRow, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        pred = denoise(x, 0)
        out = torch.addcmul(row.x0 * pred.x0, row.eps, pred.eps)
        if evals == 1:
            return out, state
        mid = denoise(torch.addcmul(row.mid_x0 * pred.x0, row.mid_eps, pred.eps), 1)
        return torch.addcmul(out, row.half, mid.x0 - pred.x0), state
