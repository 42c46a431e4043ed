r"""An adaptive solver whose step sizes belong to each sample, so that no sample depends on its neighbours.

DPM-Solver++(2S) in half log-SNR with DDIM embedded: the correction alpha_s (1 - e^{-h}) (D_mid - D) is the error
estimate,

.. math:: e = \mathrm{rms}\,\frac{|\text{correction}|}{\text{atol} + \text{rtol}\,\max(|x_t|, |x_s|)}, \qquad h
   \leftarrow h\, \mathrm{clip}(0.9\, e^{-1/2}, 0.2, 5)

and a step is kept where e <= 1. Samples that have arrived leave the batch: the counted rows are those really evaluated.
The loop reads one mask per step on the host, which a fixed grid never does.

References: Lu et al. 2022 (DPM-Solver), adaptive step size; Karras et al. 2022 for why the last step is first order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import GridError, NonFiniteError, RangeError
from wayfield.core.grid import Grid
from wayfield.core.predict import Prediction
from wayfield.core.shapes import expand

__all__ = ["Adaptive"]

Evaluate = Callable[[Tensor, Tensor, Tensor], Prediction]
"""(points (b, *D), times (b,), row indices (b,)) -> guided prediction."""


@final
@dataclass(frozen=True)
class Adaptive:
    """rtol, atol: error allowed per step, relative and absolute / first: first step in half log-SNR / max_steps:
    attempts before giving up.
    """

    rtol: float = 0.05
    atol: float = 0.0078
    first: float = 0.05
    max_steps: int = 1000

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol > 0 and self.first > 0 and self.max_steps >= 1):
            raise RangeError(
                "adaptive solver",
                got=self,
                expected="rtol >= 0, atol > 0, first > 0, max_steps >= 1",
                remedy="See the defaults.",
            )

    def run(self, evaluate: Evaluate, x: Tensor, grid: Grid) -> tuple[Tensor, int]:
        """From the grid's first time to its last, choosing the steps between; returns the samples and the number of
        attempts.

        The grid serves for its ends: its second time if the first has no signal, its last but one if the last is
        noiseless.
        Raises GridError for rising grids and NonFiniteError when `max_steps` attempts did not suffice.
        """
        if grid.rising or grid.steps < 2:
            raise GridError(
                "grid",
                got=f"{grid.steps} steps",
                expected="at least 2 falling steps",
                remedy="Give the ends and one time between.",
            )
        everyone = torch.arange(len(x), device=x.device)
        a, s = (c.to(x) for c in grid.scales[:2])
        k, last = int(not torch.isfinite(grid.lam[0])), grid.steps - int(not torch.isfinite(grid.lam[-1]))
        if k:
            x = self._move(evaluate, x, grid.times[0], everyone, a[1], s[1])
        lam = grid.lam[k].to(x.device).repeat(len(x))
        end = grid.lam[last].to(x.device)
        h = torch.full_like(lam, self.first)
        attempt = 0
        while len(rows := (lam < end).nonzero()[:, 0]):
            if attempt == self.max_steps:
                raise NonFiniteError(
                    "adaptive solver",
                    got=f"{len(rows)} samples unfinished after {attempt} attempts",
                    expected="arrival at the clean end",
                    remedy="Loosen rtol, or check the network's outputs for NaN.",
                )
            attempt += 1
            y, step, error = self._attempt(
                evaluate, grid, x[rows], lam[rows], torch.minimum(h[rows], end - lam[rows]), rows
            )
            kept = error <= 1
            x = x.index_copy(0, rows, torch.where(expand(kept, y), y, x[rows]))
            arrived = torch.where(kept, lam[rows] + step, lam[rows])
            lam = lam.index_copy(0, rows, torch.where(kept & (step >= end - lam[rows]), end, arrived))
            h = h.index_copy(0, rows, step * (0.9 * error.clamp(min=1e-8) ** -0.5).clamp(0.2, 5.0))
        if last < grid.steps:
            x = self._move(evaluate, x, grid.times[last], everyone, a[-1], s[-1])
        return x, attempt

    def _move(self, evaluate: Evaluate, x: Tensor, t: Tensor, rows: Tensor, a: Tensor, s: Tensor) -> Tensor:
        pred = evaluate(x, t.to(x.device).repeat(len(x)), rows)
        return a * pred.x0 + s * pred.eps

    def _attempt(
        self, evaluate: Evaluate, grid: Grid, x: Tensor, lam: Tensor, h: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The second-order point, the step tried and its error, per sample."""
        path = grid.path
        mid, new = path.time(2 * lam + h), path.time(2 * (lam + h))
        am, sm, an, sn = (expand(c.to(x.dtype), x) for t in (mid, new) for c in path.scales(t)[:2])
        pred = evaluate(x, path.time(2 * lam), rows)
        D2 = evaluate(am * pred.x0 + sm * pred.eps, mid, rows).x0
        correction = an * expand(-torch.expm1(-h).to(x.dtype), x) * (D2 - pred.x0)
        y = an * pred.x0 + sn * pred.eps + correction
        allowed = self.atol + self.rtol * torch.maximum(x.abs(), y.abs())
        error = (correction / allowed).square().flatten(1).mean(1).sqrt()
        return y, h, error.double()
