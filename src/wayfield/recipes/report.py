"""What a recipe returns: the claim, the criteria that were fixed before the run, what was measured, and the verdict.

    Report("my-method", "halves the distance at equal cost", [at_most("ratio of distances", 0.47, 0.5)], per_seed, 12.3)

The verdict is not written by hand: a claim holds if every criterion passed. A claim that does not hold at this scale is
reported as not reproduced; the command line then leaves with exit code 3.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from typing import Any, final

from wayfield import files
from wayfield.core.errors import RangeError

__all__ = ["REPORT", "Criterion", "Report", "at_least", "at_most"]

REPORT = "report.json"


@final
@dataclass(frozen=True)
class Criterion:
    """One bar that the claim has to clear. name: what is measured, with its unit / value: what came out / bar: what was
    asked, a number or in words / passed: whether it cleared the bar.
    """

    name: str
    value: float
    bar: float | str
    passed: bool


def at_most(name: str, value: float, bar: float) -> Criterion:
    """Passed if value <= bar; NaN never passes."""
    return Criterion(name, value, bar, value <= bar)


def at_least(name: str, value: float, bar: float) -> Criterion:
    """Passed if value >= bar; NaN never passes."""
    return Criterion(name, value, bar, value >= bar)


@final
@dataclass(frozen=True)
class Report:
    """The outcome of a recipe.

    method: its name in the registry / claim: one sentence / criteria: at least one / per_seed: one mapping of figures
    for each seed / seconds: of the whole recipe / pictures: file names in the folder of the report / passed: all
    criteria passed. Raises RangeError without criteria.
    """

    method: str
    claim: str
    criteria: Sequence[Criterion]
    per_seed: Sequence[Mapping[str, Any]]
    seconds: float
    pictures: Sequence[str] = ()
    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        if not self.criteria:
            remedy = "State what would refute the claim."
            raise RangeError("criteria of a report", got="none", expected="at least one", remedy=remedy)
        object.__setattr__(self, "passed", all(c.passed for c in self.criteria))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values under exactly the keys that scripts may count on; numbers that are not finite become
        null.
        """
        out = {
            "method": self.method,
            "claim": self.claim,
            "passed": self.passed,
            "criteria": [asdict(c) for c in self.criteria],
            "per_seed": [dict(figures) for figures in self.per_seed],
            "seconds": self.seconds,
            "pictures": list(self.pictures),
        }
        return _finite(out)

    def write(self, out: str | os.PathLike[str]) -> FilePath:
        """Write report.json into the folder `out` and return its path."""
        path = FilePath(out) / REPORT
        files.write_json(path, self.to_json())
        return path


def _finite(value: Any) -> Any:
    """The same value with null for NaN and infinity, which JSON does not have, and bool and float for their kin."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
