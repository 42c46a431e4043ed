"""Named errors. Each says what is wrong, what was got, what was expected, and what to do about it.

Every class also derives from the built-in exception a Python programmer would catch (``ValueError``, ``TypeError``,
``KeyError``...), so callers need not import this module to handle one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConditionError",
    "DTypeError",
    "DeviceError",
    "GridError",
    "MissingExtraError",
    "NonFiniteError",
    "RangeError",
    "ShapeError",
    "SingularError",
    "UnknownNameError",
    "UnsupportedError",
    "WayfieldError",
    "unknown_name",
]


class WayfieldError(Exception):
    """Base of every error wayfield raises on purpose.

    what: the quantity or action that is wrong / got: what came / expected: what would have been right /
    remedy: what the caller can do now.
    """

    def __init__(self, what: str, *, got: object, expected: object, remedy: str) -> None:
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        super().__init__(f"{what}: got {got}; expected {expected}. {remedy}")

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, str(self.got), str(self.expected), self.remedy)


def _rebuild(cls: type[WayfieldError], what: str, got: str, expected: str, remedy: str) -> WayfieldError:
    return cls(what, got=got, expected=expected, remedy=remedy)


class ShapeError(WayfieldError, ValueError):
    """A tensor has the wrong shape."""


class DTypeError(WayfieldError, TypeError):
    """A tensor or number has the wrong type."""


class DeviceError(WayfieldError, ValueError):
    """Two tensors that must meet live on different devices."""


class RangeError(WayfieldError, ValueError):
    """A number lies outside the range in which it means something."""


class GridError(WayfieldError, ValueError):
    """The times of a run are not a strictly monotone sequence inside the path's clock."""


class SingularError(WayfieldError, ArithmeticError):
    """A conversion has no answer: the output kind carries no information about x0 at this level."""


class ConditionError(WayfieldError, ValueError):
    """A condition does not fit the model's schema, or the model lacks one that is needed."""


class UnsupportedError(WayfieldError, ValueError):
    """Two choices that each exist but do not go together."""


class UnknownNameError(WayfieldError, KeyError):
    """A name is not in the table it was looked up in."""


class CheckpointError(WayfieldError, OSError):
    """A file on disk is unreadable, truncated, tampered with, or belongs to another run."""


class MissingExtraError(WayfieldError, ImportError):
    """An optional dependency is not installed."""


class NonFiniteError(WayfieldError, ArithmeticError):
    """A run produced NaN or infinity; the message names the step."""


def unknown_name(table: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not in `table`, with the nearest known name as the remedy."""
    names = sorted(known)
    folded = {n.lower(): n for n in names}
    near = difflib.get_close_matches(str(name).lower(), folded, n=1, cutoff=0.4)
    if near:
        hint = f"Did you mean {folded[near[0]]!r}?"
    else:
        hint = f"Choose one of: {', '.join(names)}." if names else "There are none here."
    return UnknownNameError(
        f"unknown {table}", got=repr(name), expected=f"one of {len(names)} known names", remedy=hint
    )
