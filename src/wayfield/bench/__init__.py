"""Side by side with peers and with loops written by hand.

Contestants get the same network, start and grid, and their outputs are compared before they are timed. A suite is a
function ``(quick: bool) -> list[Row]``. Rows carry ratios, subject / peer, so below 1 means that wayfield is faster;
absolute times are not reported, because load moves them far more than it moves ratios taken inside one process.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from wayfield.bench.timing import OutputsDifferError, Row
from wayfield.core.errors import unknown_name

__all__ = ["SUITES", "OutputsDifferError", "Row", "run"]

SUITES: Mapping[str, str] = {
    "diffusers": "wayfield.bench.pipelines:run",
    "guidance": "wayfield.bench.guidance:run",
    "steps": "wayfield.bench.steps:run",
    "vi": "wayfield.bench.vi:run",
}
"""Name -> "module:function", imported when asked for."""


def run(suite: str, *, quick: bool = False) -> list[Row]:
    """The rows of a suite; `quick` takes few repetitions. A peer not installed gives a line on stderr, not a row.

    Raises UnknownNameError for an unknown suite and OutputsDifferError if a peer does not compute what wayfield does.
    """
    if suite not in SUITES:
        raise unknown_name("suite", suite, SUITES)
    module, _, function = SUITES[suite].partition(":")
    return getattr(importlib.import_module(module), function)(quick)
