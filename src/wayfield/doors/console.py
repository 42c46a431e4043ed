"""How the command line speaks: results to stdout, everything for people to stderr, one clean message per error.

    0  done; for `run`, the claim held        2  wrong usage: what was typed, or what is in a config
    3  ran, but the claim did not hold        1  anything else: missing or damaged files, NaN, a bug

With WAYFIELD_DEBUG=1 in the environment errors keep their traceback.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from wayfield.core.errors import CheckpointError, DeviceError, MissingExtraError, NonFiniteError, WayfieldError
from wayfield.registry import require

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "DONE",
    "FAILED",
    "REFUTED",
    "USAGE",
    "UsageError",
    "asked",
    "complain",
    "console",
    "emit",
    "interactive",
    "table",
]

DONE, FAILED, USAGE, REFUTED = 0, 1, 2, 3

_NOT_USAGE = (CheckpointError, DeviceError, MissingExtraError, NonFiniteError)


class UsageError(Exception):
    """Carries an error that is the caller's: exit code 2."""

    def __init__(self, error: WayfieldError) -> None:
        self.error = error
        super().__init__(str(error))


@contextmanager
def asked() -> Iterator[None]:
    """While what the user asked for is read and checked: a named error that arises here is wrong usage."""
    try:
        yield
    except _NOT_USAGE:
        raise
    except WayfieldError as error:
        raise UsageError(error) from error


def console() -> Console:
    """Where people read: stderr, found anew at each call, so that redirections hold."""
    return require("rich.console").Console(stderr=True, highlight=False)


def interactive() -> bool:
    """Whether somebody watches: progress bars are for terminals, not for log files."""
    return sys.stderr.isatty()


def emit(value: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False), flush=True)


def emit_paths(paths: Iterable[FilePath]) -> None:
    """Paths of results on stdout, one a line."""
    for path in paths:
        print(path, flush=True)


def complain(error: BaseException) -> None:
    """One message on stderr: what is wrong and, for named errors, what came, what was expected, what to do."""
    if os.environ.get("WAYFIELD_DEBUG") == "1":
        traceback.print_exception(error)
        return
    if isinstance(error, WayfieldError):
        lines = [f"error: {error.what}"]
        lines += [
            f"  {k:<9} {v}" for k, v in (("got", error.got), ("expected", error.expected), ("remedy", error.remedy))
        ]
    else:
        text = " ".join(str(error).split()) or "no message"
        lines = [f"error: {type(error).__name__}: {text}", "  Set WAYFIELD_DEBUG=1 for the traceback."]
    print("\n".join(lines), file=sys.stderr, flush=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, note: str = "") -> None:
    """A table on stderr. columns: headings; the first `left` are aligned left / rows: cells, rich markup allowed."""
    grid = require("rich.table").Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=note or None,
        caption_justify="left",
        box=require("rich.box").SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for k, name in enumerate(columns):
        grid.add_column(name, justify="left" if k < left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    console().print(grid)
