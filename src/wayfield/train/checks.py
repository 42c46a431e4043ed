"""The checks that settings of a training share: numbers in a range, refused at construction by name."""

from __future__ import annotations

import math
from typing import Any

from wayfield.core.errors import DTypeError, RangeError

__all__ = ["check_number"]


def check_number(
    what: str, value: Any, low: float, high: float = math.inf, *, whole: bool = False, open_low: bool = False
) -> None:
    """Refuse a `value` that is not a finite number in [low, high], or (low, high] if `open_low`; `whole`: an integer.

    Raises DTypeError for what is no number (a bool is none) and RangeError outside the range.
    """
    kind = "an integer" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise DTypeError(what, got=repr(value), expected=kind, remedy=f"Write {kind}.")
    inside = math.isfinite(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        border = f"{'>' if open_low else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")
        raise RangeError(what, got=value, expected=f"{kind} {border}", remedy="Choose one inside.")
