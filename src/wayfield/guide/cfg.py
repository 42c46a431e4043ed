r"""Classifier-free guidance: push the conditional prediction away from the unconditional one.

.. math:: \hat{x}_0 = c + (w - 1)(c - u)

c, u: x0-predictions with and without the condition, (B, *D) / w: scale; 1 means no guidance, 0 the unconditional model.
All predictions are affine in one another at a fixed point, so guiding x0, eps, v, velocity or score gives the same
result.

Reference: Ho & Salimans 2022, eq. 6; their scale is w' = w - 1, see `CFG.from_ho_salimans`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch

from wayfield.core.errors import RangeError
from wayfield.core.predict import Prediction
from wayfield.field.ask import COND, NULL, Ask, Query
from wayfield.guide.roles import Guidance, State

__all__ = ["CFG"]


@final
@dataclass(frozen=True)
class CFG(Guidance):
    """x0 = c + (w - 1)(c - u). w: finite; at w = 1 and w = 0 the branch that does not count is not evaluated.

    away: name of the condition that is pushed away from, "null" or a negative condition given to `sample`.
    """

    w: float
    away: str = "null"

    def __post_init__(self) -> None:
        if not (isinstance(self.w, (int, float)) and math.isfinite(self.w)):
            raise RangeError(
                "guidance scale w", got=self.w, expected="a finite number", remedy="w = 1 means no guidance."
            )

    @staticmethod
    def from_ho_salimans(w: float) -> CFG:
        """From the paper's scale, (1 + w) c - w u."""
        return CFG(1 + w)

    @property
    def branches(self) -> int:
        """2."""
        return 2

    @cached_property
    def _needs(self) -> tuple[Query, ...]:
        other = NULL if self.away == "null" else Query(self.away)
        return (COND,) if self.w == 1 else (other,) if self.w == 0 else (COND, other)

    def needs(self) -> tuple[Query, ...]:
        """One query at w = 1 and w = 0, else two."""
        return self._needs

    def __call__(self, ask: Ask, state: State) -> tuple[Prediction, State]:
        """See `Guidance`."""
        answers = ask(*self._needs)
        if len(answers) == 1:
            return answers[0], state
        c, u = answers
        return ask.point(torch.lerp(u.x0, c.x0, self.w)), state
