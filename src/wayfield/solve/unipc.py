r"""UniPC: a multistep predictor whose next evaluation also corrects the step before, at no extra cost.

With D-differences scaled by r_k = (lam_{i-k} - lam_i)/h, hh = -h and B(h) = expm1(hh) ("bh2"), the weights solve R rho
= b,

.. math:: R_{jk} = r_k^{j-1}, \qquad b_j = j!\, \varphi_{j+1}(hh) / B(h), \qquad \varphi_1 = (e^{hh} - 1)/hh, \;
   \varphi_{j+1} = (\varphi_j - 1/j!)/hh

.. math:: x_s = \bar{x}_s - \alpha_s B(h) \sum_k \rho_k (D_{i-k} - D_i)/r_k

where x-bar is the first-order step. The corrector repeats the sum with one more difference, to the prediction at the
new point. All weights are solved on the host in float64, once per run.

Reference: Zhao et al. 2023 (UniPC), algorithm 1 and eq. 7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.core.grid import Grid
from wayfield.solve.roles import Denoise, Plan, Solver, State

__all__ = ["UniPC"]


class Row(NamedTuple):
    """Corrector weights on D - D1, D2 - D1, D3 - D1 of the step just made; move x0, eps; carry; predictor weights on D1
    - D, D2 - D.
    """

    cor_new: Tensor
    cor_2: Tensor
    cor_3: Tensor
    x0: Tensor
    eps: Tensor
    carry: Tensor
    pre_1: Tensor
    pre_2: Tensor


@final
@dataclass(frozen=True)
class UniPC(Solver):
    """p: order of the predictor, 1 to 3; with the corrector the method has order p + 1, so p = 2 converges with order
    3.
    """

    p: int = 2

    def __post_init__(self) -> None:
        if self.p not in (1, 2, 3):
            raise RangeError("p", got=self.p, expected="1, 2 or 3", remedy="2 is the usual choice under guidance.")

    @property
    def order(self) -> int:
        """p + 1."""
        return self.p + 1

    def plan(self, grid: Grid) -> Plan:
        """See `Solver.plan`."""
        a, s, lam = grid.scales.alpha, grid.scales.sigma, grid.lam.tolist()
        N = grid.steps
        rows = torch.zeros(N, len(Row._fields), dtype=torch.float64)
        for i in range(N):
            rows[i, 3], rows[i, 4], rows[i, 5] = a[i + 1], s[i + 1], s[i + 1] / s[i]
            order = self._order(i, lam)
            if math.isfinite(lam[i + 1] - lam[i]):
                predictor, corrector = _weights(lam[: i + 2], order)
                scale = float(-a[i + 1])
                rows[i, 6 : 6 + len(predictor)] = scale * torch.tensor(predictor, dtype=torch.float64)
                if i + 1 < N:
                    rows[i + 1, 0] = scale * corrector[-1]
                    rows[i + 1, 1 : 1 + len(corrector) - 1] = scale * torch.tensor(corrector[:-1], dtype=torch.float64)
        return Plan(tuple((t,) for t in grid.t[:-1]), Row(*rows.unbind(1)), (0,) * N)

    def _order(self, i: int, lam: list[float]) -> int:
        """Order that step i can have: limited by its history (levels of finite log-SNR), and lowered towards a clean
        end.
        """
        history = sum(math.isfinite(v) for v in lam[: i + 1])
        left = self.p if math.isfinite(lam[-1]) else len(lam) - 1 - i
        return max(1, min(self.p, history, left))

    def init(self, x: Tensor) -> State:
        """The uncorrected first-order step to the present point, and three previous predictions."""
        z = torch.zeros_like(x)
        return x.clone(), z, z.clone(), z.clone()

    def step(
        self, denoise: Denoise, x: Tensor, row: Row, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """See `Solver.step`."""
        bare, D1, D2, D3 = state
        pred = denoise(x, 0)
        D = pred.x0
        fixed = torch.addcmul(bare, row.cor_new, D - D1)
        fixed = torch.addcmul(torch.addcmul(fixed, row.cor_2, D2 - D1), row.cor_3, D3 - D1)
        bare = torch.addcmul(row.x0 * D, row.eps, pred.eps)
        bare = torch.addcmul(bare, row.carry, fixed - x)
        x = torch.addcmul(torch.addcmul(bare, row.pre_1, D1 - D), row.pre_2, D2 - D)
        return x, (bare, D, D1, D2)


def _weights(lam: list[float], order: int) -> tuple[list[float], list[float]]:
    """B(h) rho_k / r_k of predictor (order - 1 values) and corrector (order values, the new point last) for the step
    lam[-2] -> lam[-1].
    """
    h = lam[-1] - lam[-2]
    r = [(lam[-2 - k] - lam[-2]) / h for k in range(1, order)] + [1.0]
    hh, B = -h, math.expm1(-h)
    phi, b = B / hh - 1, []
    for j in range(1, order + 1):
        b.append(phi * math.factorial(j) / B)
        phi = phi / hh - 1 / math.factorial(j + 1)
    R = torch.tensor([[v**j for v in r] for j in range(order)], dtype=torch.float64)
    rhs = torch.tensor(b, dtype=torch.float64)
    if order == 1:
        corrector = [0.5]
    else:
        corrector = torch.linalg.solve(R, rhs).tolist()
    if order == 1:
        predictor = []
    elif order == 2:
        predictor = [0.5]
    else:
        predictor = torch.linalg.solve(R[:-1, :-1], rhs[:-1]).tolist()
    return [B * w / v for w, v in zip(predictor, r, strict=False)], [
        B * w / v for w, v in zip(corrector, r, strict=True)
    ]
