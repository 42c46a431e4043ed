"""What a judge returns: numbers that say what they mean, tables of them, and pictures to look at.

The standard error of a share k / n is that of (k + 1) / (n + 2), so that it is not 0 where all or none of a few are
right:

    error = sqrt(q (1 - q) / n),   q = (k + 1) / (n + 2)

Other figures have no error of their own; the same training from another seed says how much they vary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError

__all__ = ["Figure", "Judged", "Sheet", "Table", "rate", "share"]


@final
@dataclass(frozen=True)
class Figure:
    """A number and what it is. count, error: of the samples behind a share and its standard error, where it is one.

    Raises NonFiniteError for a number that is none.
    """

    value: float
    meaning: str
    count: int | None = None
    error: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            remedy = "Look at the samples: the model may have failed."
            raise NonFiniteError(f"figure {self.meaning!r}", got=self.value, expected="a number", remedy=remedy)

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded; what is not there is left out."""
        out: dict[str, Any] = {"value": rounded(self.value)}
        out |= {} if self.error is None else {"error": rounded(self.error)}
        out |= {} if self.count is None else {"count": self.count}
        return out | {"meaning": self.meaning}


@final
@dataclass(frozen=True)
class Table:
    """Numbers in rows and columns. rows: name -> one number per column, None where there is none. Raises ShapeError."""

    title: str
    meaning: str
    columns: tuple[str, ...]
    rows: Mapping[str, Sequence[float | None]]

    def __post_init__(self) -> None:
        for name, row in self.rows.items():
            if len(row) != len(self.columns):
                got, expected = f"{len(row)} numbers in {name!r}", f"{len(self.columns)}, one per column"
                raise ShapeError(f"table {self.title!r}", got=got, expected=expected, remedy="Fill gaps with None.")

    def to_json(self) -> dict[str, Any]:
        """Plain values, rounded."""
        rows = {name: [None if v is None else rounded(v) for v in row] for name, row in self.rows.items()}
        return {"title": self.title, "meaning": self.meaning, "columns": list(self.columns), "rows": rows}


@final
@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures to show: (N, C, H, W) in rows of `columns`. rows: what was asked for in each / scale: of a pixel."""

    pictures: Tensor
    columns: int
    rows: tuple[str, ...] = ()
    scale: int = 2

    def __post_init__(self) -> None:
        if len(self.pictures) % self.columns or (self.rows and len(self.rows) * self.columns != len(self.pictures)):
            got = f"{len(self.pictures)} pictures, {self.columns} columns, {len(self.rows)} names"
            raise ShapeError("sheet", got=got, expected="full rows, a name for each", remedy="Leave some out.")


@final
@dataclass(frozen=True)
class Judged:
    """All that was found. figures: by name / settings: what was chosen and used / sheet: if there is one."""

    figures: Mapping[str, Figure]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    sheet: Sheet | None = None


def share(flags: Iterable[bool], meaning: str) -> Figure:
    """The share of flags that are true, with count and standard error. Raises RangeError for none at all."""
    values = [bool(flag) for flag in flags]
    if not values:
        raise RangeError(f"share {meaning!r}", got="no samples", expected="at least 1", remedy="Draw some.")
    return rate(sum(values) / len(values), len(values), meaning)


def rounded(value: float) -> float:
    """Four significant digits: distances of good models are small."""
    return float(f"{value:.4g}")


def rate(value: float, count: int, meaning: str) -> Figure:
    """A share that somebody else counted, with its standard error. count: of the samples behind it, at least 1."""
    q = (value * count + 1) / (count + 2)
    return Figure(value, meaning, count, math.sqrt(q * (1 - q) / count))
