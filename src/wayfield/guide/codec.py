"""Guidance as JSON: every part is a frozen description, so its name and fields are all there is to keep.

A part becomes ``{"part": "CFG", "w": 4.0, "away": "null"}``; parts inside parts nest, tuples become lists and a `Query`
``{"query": ["cond", "weak", false]}``. Functions and networks (an energy, a classifier) are not data: they are kept by
a name that the reader is given again, so that reading a file runs no code of the file's choosing.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping
from typing import Any

from wayfield.core.errors import CheckpointError, ConditionError, WayfieldError, unknown_name
from wayfield.field.binding import Query
from wayfield.guide.guidance import Guidance
from wayfield.guide.terms import Term

__all__ = ["PARTS", "from_json", "to_json"]

_FORMAT = 1

PARTS: Mapping[str, str] = {
    "CFG": "wayfield.guide.contrast",
    "Auto": "wayfield.guide.contrast",
    "Away": "wayfield.guide.contrast",
    "Sum": "wayfield.guide.nodes",
    "Scale": "wayfield.guide.nodes",
    "Through": "wayfield.guide.nodes",
    "When": "wayfield.guide.nodes",
    "Versus": "wayfield.guide.nodes",
    "Guidance": "wayfield.guide.guidance",
    "APG": "wayfield.guide.apg",
    "Rescale": "wayfield.guide.rescale",
    "Energy": "wayfield.guide.energy",
    "ClassifierGuidance": "wayfield.guide.classifier",
    "AG": "wayfield.guide.adaptive",
    "Interval": "wayfield.guide.gates",
    "Schedule": "wayfield.guide.gates",
    "Steps": "wayfield.guide.gates",
    "Stage": "wayfield.guide.gates",
    "Hold": "wayfield.guide.hold",
    "LinearAG": "wayfield.guide.linear",
    "Instead": "wayfield.guide.policy",
    "EluCD": "wayfield.guide.elucd",
    "Nudge": "wayfield.guide.elucd",
    "GFCG": "wayfield.guide.gfcg",
    "JudgeGuidance": "wayfield.guide.ppap",
    "Greedy": "wayfield.guide.dynamic",
    "RLG": "wayfield.guide.rlg",
    "OptimalScale": "wayfield.guide.zero_star",
    "Still": "wayfield.guide.zero_star",
    "Tangential": "wayfield.guide.tangential",
    "MagnitudeAware": "wayfield.guide.magnitude",
    "Bands": "wayfield.guide.frequency",
    "Window": "wayfield.guide.window",
    "NASA": "wayfield.guide.nasa",
    "PAG": "wayfield.guide.pag",
    "SEG": "wayfield.guide.seg",
    "SLG": "wayfield.guide.slg",
}
"""Every part that a file may name, and its module."""


def to_json(guidance: Guidance | Term, functions: Mapping[str, Any] | None = None) -> str:
    """Guidance as JSON text. functions: name -> function or network, for the parts that hold one.

    Raises ConditionError for a function without a name, UnknownNameError for a part that is not of this library.
    """
    record = {"format": _FORMAT, "guidance": _packed(guidance, dict(functions or {}))}
    return json.dumps(record, allow_nan=False)


def from_json(text: str, functions: Mapping[str, Any] | None = None) -> Guidance | Term:
    """The guidance behind `to_json`, equal to what was kept. functions: those that were named.

    Raises CheckpointError for a text that is no guidance, UnknownNameError for unknown parts or functions, and what a
    part raises for wrong fields.
    """
    try:
        record = json.loads(text)
        kept, version = record["guidance"], record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(f"{type(error).__name__}: {error}") from error
    if version != _FORMAT:
        raise _unreadable(f"format {version}")
    made = _unpacked(kept, dict(functions or {}))
    if not isinstance(made, Guidance | Term):
        raise _unreadable(type(made).__name__)
    return made


def _packed(value: Any, functions: dict[str, Any]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Query):
        return {"query": list(value)}
    if isinstance(value, (tuple, list)):
        return [_packed(v, functions) for v in value]
    name = type(value).__name__
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if PARTS.get(name) != type(value).__module__:
            raise unknown_name("part", name, PARTS)
        fields = {f.name: _packed(getattr(value, f.name), functions) for f in dataclasses.fields(value)}
        return {"part": name, **fields}
    for known, function in functions.items():
        if function is value:
            return {"function": known}
    remedy = "Pass functions={'name': it} here, and again when it is read."
    raise ConditionError("guidance as JSON", got=value, expected="a named function", remedy=remedy)


def _unpacked(kept: Any, functions: dict[str, Any]) -> Any:
    if isinstance(kept, list):
        return tuple(_unpacked(v, functions) for v in kept)
    if not isinstance(kept, dict):
        return kept
    if set(kept) == {"query"}:
        return Query(*kept["query"])
    if set(kept) == {"function"}:
        if kept["function"] not in functions:
            raise unknown_name("function", kept["function"], functions)
        return functions[kept["function"]]
    part = str(kept.get("part"))
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    made = getattr(importlib.import_module(PARTS[part]), part)
    fields = {k: _unpacked(v, functions) for k, v in kept.items() if k != "part"}
    try:
        return made(**fields)
    except WayfieldError:
        raise
    except TypeError as error:
        raise _unreadable(str(error)) from error


def _unreadable(got: str) -> CheckpointError:
    remedy = "Write it anew with to_json; this version cannot read it."
    return CheckpointError("guidance", got=got, expected=f"JSON of format {_FORMAT}", remedy=remedy)
