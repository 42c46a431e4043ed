r"""Gates that the noise level or the step decides: on an interval, by a schedule, at chosen steps or evaluations.

=====================  ======================================================  ======================================
gate                   open                                                    reference
=====================  ======================================================  ======================================
`Interval(low, high)`  where low <= log-SNR <= high                            Kynkaanniemi et al. 2024,
                                                                               arXiv 2404.07724 (their bounds in sigma)
`Schedule(points)`     everywhere, with a factor linear in log-SNR between     Wang et al. 2024, arXiv 2404.13040
                       given points
`Steps(values)`        step by step: True, False or a factor
`Stage(k)`             in the k-th evaluation of a step only
=====================  ======================================================  ======================================

log-SNR is log(alpha^2 / sigma^2), low at high noise. All are known to the host: what is closed is not evaluated.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

from wayfield.core.errors import RangeError
from wayfield.guide.roles import Decision, Gate, State, Step

__all__ = ["Interval", "Schedule", "Stage", "Steps"]


@final
@dataclass(frozen=True)
class Interval(Gate):
    """Open where low <= log-SNR <= high; None: no bound. Raises RangeError unless low < high."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        low, high = _bounds(self)
        if not low < high:
            raise RangeError("interval of log-SNR", got=(low, high), expected="low < high", remedy="Swap them.")

    @staticmethod
    def sigma(low: float, high: float) -> Interval:
        """From noise levels sigma/alpha, 0 <= low < high; infinity is allowed above."""
        if not 0 <= low < high:
            raise RangeError(
                "interval of noise levels", got=(low, high), expected="0 <= low < high", remedy="Swap them."
            )
        clean = None if low == 0 else -2 * math.log(low)
        return Interval(None if math.isinf(high) else -2 * math.log(high), clean)

    def open(self, step: Step, state: State) -> Decision:
        """By the level of the evaluation."""
        low, high = _bounds(self)
        return low <= step.log_snr <= high


@final
@dataclass(frozen=True)
class Schedule(Gate):
    """A factor that varies with the noise level. points: (log-SNR, factor), log-SNR rising; constant beyond the ends.

    At a factor of zero the term is closed. Raises RangeError for points that do not rise or are not finite.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "points", tuple((float(a), float(b)) for a, b in self.points))
        levels = [level for level, _ in self.points]
        rising = all(a < b for a, b in pairwise(levels))
        if not (self.points and rising and all(math.isfinite(v) for point in self.points for v in point)):
            remedy = "Give at least one (log-SNR, factor), sorted by log-SNR."
            raise RangeError("points of a schedule", got=self.points, expected="rising, finite", remedy=remedy)

    def open(self, step: Step, state: State) -> Decision:
        """The factor at the level of the evaluation."""
        k = bisect.bisect_right(self.points, step.log_snr, key=lambda point: point[0])
        (a, u), (b, v) = self.points[max(k - 1, 0)], self.points[min(k, len(self.points) - 1)]
        factor = u if a == b or k == 0 else u + (v - u) * (step.log_snr - a) / (b - a)
        return factor if factor else False


@final
@dataclass(frozen=True)
class Steps(Gate):
    """Step by step: True, False, or a factor for each step of the run. Raises RangeError where the numbers differ."""

    values: tuple[bool | float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values or not all(math.isfinite(v) for v in self.values):
            raise RangeError("values of Steps", got=self.values, expected="finite numbers", remedy="One for each step.")

    def open(self, step: Step, state: State) -> Decision:
        """The value of this step."""
        if step.n != len(self.values):
            remedy = "Give one value for each step of the grid."
            raise RangeError("values of Steps", got=len(self.values), expected=f"{step.n} steps", remedy=remedy)
        value = self.values[step.i]
        return value if value else False


@final
@dataclass(frozen=True)
class Stage(Gate):
    """Open in the k-th evaluation of a step only: `Stage(0)` leaves the correctors of two-stage solvers unguided."""

    k: int = 0

    def __post_init__(self) -> None:
        if self.k < 0:
            raise RangeError("k of Stage", got=self.k, expected=">= 0", remedy="0 is the first evaluation.")

    def open(self, step: Step, state: State) -> Decision:
        """By the evaluation."""
        return step.stage == self.k


def _bounds(gate: Interval) -> tuple[float, float]:
    return -math.inf if gate.low is None else gate.low, math.inf if gate.high is None else gate.high
