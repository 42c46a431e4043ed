"""A recipe's result in a folder: its report, its pictures, and the guidance that it fitted; whole, or a named error.

    save_result("my-result", report, guidance)
    report, guidance = load_result("my-result")

===================  ===================================================================================================
report.json          of `Report.write`
pictures             the files that the report names, which the recipe has written there already
guidance.json, ...   of `save_guidance`, if guidance was given
result.json          {"format", "sha256": file -> digest}, written last: what belongs to the result
===================  ===================================================================================================
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any, NamedTuple

from wayfield import files
from wayfield.core.errors import CheckpointError, WayfieldError
from wayfield.fitting.shared import GUIDANCE, load_guidance, save_guidance
from wayfield.guide.guidance import Guidance
from wayfield.guide.terms import Term
from wayfield.recipes.report import REPORT, Criterion, Report

__all__ = ["RESULT", "Shared", "load_result", "save_result"]

RESULT = "result.json"
_FORMAT = 1


class Shared(NamedTuple):
    """What was loaded. guidance: None if the result has none."""

    report: Report
    guidance: Guidance | Term | None


def save_result(
    folder: str | os.PathLike[str],
    report: Report,
    guidance: Guidance | Term | None = None,
    functions: Mapping[str, Any] | None = None,
) -> FilePath:
    """Write a result into the folder that holds the report's pictures; returns the path of its list of files.

    functions: as of `save_guidance`. Raises CheckpointError where a picture is missing, and as `save_guidance`.
    """
    out = FilePath(folder)
    for name in report.pictures:
        _bytes(out, name)
    names = [REPORT, *report.pictures]
    if guidance is not None:
        save_guidance(out, guidance, functions)
        names.append(GUIDANCE)
    report.write(out)
    files.write_json(out / RESULT, {"format": _FORMAT, "sha256": {name: _digest(out, name) for name in names}})
    return out / RESULT


def load_result(folder: str | os.PathLike[str], functions: Mapping[str, Any] | None = None) -> Shared:
    """The report, and the guidance equal to what was saved. Numbers that were not finite come back as NaN in criteria
    and as None in figures. functions: those that were named.

    Raises CheckpointError if a file is missing, damaged or changed, and as `load_guidance`.
    """
    out = FilePath(folder)
    listed = files.read_json(out / RESULT)
    if not isinstance(listed, dict) or listed.get("format") != _FORMAT or REPORT not in listed.get("sha256", ()):
        raise _bad(out / RESULT, "no list of a result's files", "Save it again with save_result.")
    for name, known in listed["sha256"].items():
        if _digest(out, name) != known:
            raise _bad(out / name, "contents that do not match their digest", "It was changed after it was written.")
    guidance = load_guidance(out, functions) if GUIDANCE in listed["sha256"] else None
    return Shared(_report(out / REPORT), guidance)


def _report(path: FilePath) -> Report:
    kept = files.read_json(path)
    try:
        passed = kept.pop("passed")
        values = [{**c, "value": float("nan") if c["value"] is None else c["value"]} for c in kept.pop("criteria")]
        report = Report(criteria=tuple(Criterion(**c) for c in values), **kept)
    except WayfieldError:
        raise
    except (AttributeError, KeyError, TypeError) as error:
        raise _bad(path, f"{type(error).__name__}: {error}", "Save it again with save_result.") from error
    if report.passed != passed:
        raise _bad(path, f"passed={passed}, which its criteria deny", "Do not trust it.")
    return report


def _digest(folder: FilePath, name: str) -> str:
    return hashlib.sha256(_bytes(folder, name)).hexdigest()


def _bytes(folder: FilePath, name: str) -> bytes:
    if FilePath(str(name)).name != name:
        raise _bad(folder / RESULT, f"a file at {name!r}", "It must lie in the folder itself.")
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _bad(
            folder / name, f"not readable ({error.strerror})", "Restore it, or save the result again."
        ) from error


def _bad(path: FilePath, got: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"file {os.fspath(path)!r}", got=got, expected="a saved result", remedy=remedy)
