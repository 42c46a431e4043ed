"""A gate by the number of the step, for methods that begin, end or change with it: open at start <= i < stop.

Bounds are counts of steps, or shares of the run as diffusers' guiders have them: a share s of n steps is s n, rounded
down. Where a method can be said in noise levels, `Interval` is the better gate: it means the same on every grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

from wayfield.core.errors import RangeError, unknown_name
from wayfield.guide.roles import Decision, Gate, State, Step

__all__ = ["Unit", "Window"]

Unit = Literal["steps", "share"]
UNITS = ("steps", "share")


@final
@dataclass(frozen=True)
class Window(Gate):
    """Open at the steps start <= i < stop of a run, in all their evaluations: `Window(0.1, 0.9, "share")`.

    start, stop: whole numbers, or shares in [0, 1]; None, to the end / unit: "steps" or "share".
    Raises RangeError unless 0 <= start <= stop, UnknownNameError.
    """

    start: float = 0
    stop: float | None = None
    unit: Unit = "steps"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise unknown_name("unit of a window", self.unit, UNITS)
        share = self.unit == "share"
        for name, value in (("start", self.start), ("stop", self.stop)):
            if value is not None and not (0 <= value <= (1 if share else math.inf) and (share or value % 1 == 0)):
                expected = "a share in [0, 1]" if share else "a whole number >= 0"
                remedy = "Shares of the run need unit='share'."
                raise RangeError(f"{name} of a window", got=value, expected=expected, remedy=remedy)
        if self.stop is not None and self.stop < self.start:
            got = (self.start, self.stop)
            raise RangeError("window of steps", got=got, expected="start <= stop", remedy="Swap them.")

    def open(self, step: Step, state: State) -> Decision:
        """By the step."""
        n = step.n if self.unit == "share" else 1
        return int(self.start * n) <= step.i and (self.stop is None or step.i < int(self.stop * n))
