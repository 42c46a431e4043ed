"""A progress bar with rate and time left, on stderr, if rich is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from wayfield.core.errors import MissingExtraError

__all__ = ["track"]

T = TypeVar("T")


def track(items: Sequence[T], label: str, *, on: bool = True) -> Iterator[T]:
    """Iterate with a progress bar, or silently if `on` is false. Raises MissingExtraError if rich is not installed."""
    return _shown(items, label) if on else iter(items)


def _shown(items: Sequence[T], label: str) -> Iterator[T]:
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError as error:
        raise MissingExtraError(
            "progress bar",
            got="rich is not installed",
            expected="rich >= 13.7",
            remedy='Run: pip install "wayfield[cli]", or pass progress=False.',
        ) from error
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, description=label)
