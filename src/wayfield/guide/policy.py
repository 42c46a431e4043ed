r"""Policies: a guidance scale for every step, whose cost is what its steps really ask.

.. math:: x_0 = u_i + s_i\, (c_i - u_i)

==========  ==========================================  ==========================
s_i         what is evaluated                           rows per sample
==========  ==========================================  ==========================
0           u alone                                     1
1           c alone                                     1
other       both: guidance with w = s_i                 2
==========  ==========================================  ==========================

c, u: answers to the condition and to none, x0 (B, *D) / s: (N,). The options of the paper's search are 0, 1, w/2, w and
2 w, see `wayfield.fitting.policy_search`.

Reference: Castillo et al. 2023, Adaptive Guidance, arXiv 2312.12487 (the space of policies).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from wayfield.core.errors import RangeError, ShapeError
from wayfield.core.predict import Prediction
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query
from wayfield.guide.contrast import Away
from wayfield.guide.gates import Steps
from wayfield.guide.guidance import Guidance
from wayfield.guide.roles import Source, State, Step

__all__ = ["Instead", "policy", "policy_cost"]


@final
@dataclass(frozen=True)
class Instead(Source):
    """At chosen steps `query` is answered by what `by` is answered. steps: for each step of the run, whether it is.

    Raises RangeError unless the two queries differ, and ShapeError for a run with another number of steps.
    """

    steps: tuple[bool, ...]
    by: Query = Query("null")
    query: Query = COND  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(bool(s) for s in self.steps))
        if self.by == self.query:
            raise RangeError("query that answers instead", got=self.by, expected="another", remedy="Leave it out.")

    @property
    def needs(self) -> tuple[Query, ...]:
        """What answers."""
        return (self.by,)

    def init(self, x: Tensor, n: int) -> State:
        """Nothing to remember."""
        if n != len(self.steps):
            remedy = "Give one value for each step of the grid."
            raise ShapeError("steps", got=len(self.steps), expected=f"{n} steps", remedy=remedy)
        return ()

    def open(self, step: Step, state: State) -> bool:
        """At the chosen steps."""
        return self.steps[step.i]

    def answer(self, ask: Ask, step: Step, state: State, row: Tensor) -> Prediction:
        """The other answer."""
        return ask(self.by)[0]


def policy(scales: Sequence[float], away: str = "null") -> Guidance:
    """The guidance with the scale of each step of a run.

    scales: s_i, one for each step; 0 asks only u and 1 only c / away: name of the condition that u stands for.
    Raises RangeError for no scales or scales that are not finite.
    """
    exact = _exact(scales)
    gains = tuple(False if s in (0.0, 1.0) else s - 1 for s in exact)
    alone = tuple(s == 0 for s in exact)
    return Guidance(
        Away(away).when(Steps(gains)) if any(gains) else None,
        sources=(Instead(alone, Query(away)),) if any(alone) else (),
    )


def policy_cost(scales: Sequence[float]) -> int:
    """Network rows per sample of a policy, one evaluation a step. Raises RangeError as `policy`."""
    return sum(1 if s in (0.0, 1.0) else 2 for s in _exact(scales))


def _exact(scales: Sequence[float]) -> tuple[float, ...]:
    """Scales with 0 and 1 free of rounding: 1.0000000000000002 must not cost a second evaluation."""
    values = tuple(scales)
    if not values or any(isinstance(s, bool) or not math.isfinite(s) for s in values):
        raise RangeError("scales", got=values, expected="finite numbers", remedy="Give one for each step.")
    return tuple(next((whole for whole in (0.0, 1.0) if abs(s - whole) < 1e-9), float(s)) for s in values)
