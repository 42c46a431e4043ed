r"""What a solver is: a table of numbers made once per run in float64, and a pure step.

A solver is asked for its `Plan` on a grid (evaluation times, coefficients and noise draws of every step) and then for
one `step` at a time.
All steps of first order are written as the pair's own move to the next level s,

.. math:: x_s = \alpha_s x_0 + \sigma_s \varepsilon \quad (+ \text{corrections from differences of predictions})

which never divides by alpha, is exact at a clean end (sigma_s = 0), and keeps pairs that guidance broke on purpose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import GridError
from wayfield.core.grid import Grid
from wayfield.core.predict import Prediction

__all__ = ["Denoise", "Plan", "Solver", "State", "falling_only", "move", "tied_columns"]

Denoise = Callable[[Tensor, int], Prediction]
"""The guided prediction at points x, at the level of the step's k-th evaluation."""

State = tuple


@final
@dataclass(frozen=True)
class Plan:
    """A run laid out: times[i] are the levels of step i's evaluations; rows is a NamedTuple of (N,) float64 columns;
    draws[i] noises.
    """

    times: tuple[tuple[float, ...], ...]
    rows: tuple[Tensor | None, ...]
    draws: tuple[int, ...]


class Solver(ABC):
    """Immutable description of a method. Order and noise are facts of the class; history lives in the state."""

    @property
    @abstractmethod
    def order(self) -> int:
        """Order of convergence of the deterministic method (1 for stochastic ones)."""

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return False

    @abstractmethod
    def plan(self, grid: Grid) -> Plan:
        """Evaluation times and float64 coefficients of every step. Raises GridError if the grid does not suit."""

    def init(self, x: Tensor) -> State:
        """State before the first step, a tuple of tensors."""
        return ()

    @abstractmethod
    def step(
        self, denoise: Denoise, x: Tensor, row: Any, state: State, noise: tuple[Tensor, ...], evals: int
    ) -> tuple[Tensor, State]:
        """One step. row: this step's coefficients, 0-dim tensors / noise: its draws, (B, *D) each / evals: its number
        of evaluations.
        """


def falling_only(grid: Grid, solver: object) -> None:
    """Raise GridError for solvers that cannot climb from data to noise."""
    if grid.rising:
        raise GridError(
            "grid",
            got="rising times",
            expected="falling times",
            remedy=f"{solver!r} cannot invert; use DDIM() or Heun().",
        )


def tied_columns(grid: Grid, eps: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Of the move alpha_s x0 + eps_s eps, the coefficients of x and x0 at a point x = alpha_t x0 + sigma_t eps.

    They are k = eps_s / sigma_t and alpha_s - k alpha_t; None on rising grids, where k > 1 would amplify rounding.
    """
    if grid.rising:
        return None, None
    keep = eps / grid.scales.sigma[:-1]
    return keep, grid.scales.alpha[1:] - keep * grid.scales.alpha[:-1]


def move(pred: Prediction, x: Tensor, row: Any) -> Tensor:
    """The pair's own move to the next level. row: with members x0, eps, and keep, clean of `tied_columns`."""
    if pred.tied and row.keep is not None:
        return torch.addcmul(row.keep * x, row.clean, pred.x0)
    return torch.addcmul(row.x0 * pred.x0, row.eps, pred.eps)
