"""Guidance in a folder: what is described as JSON, long rows of fitted numbers as one safetensors file beside it.

    save_guidance("my-guidance", Guidance(CFG(4), sources=(fit.source,)))
    guidance = load_guidance("my-guidance")

It loads equal to what was saved: numbers are kept in float64, to the bit. Functions and networks inside (an energy, a
classifier, a judge) are not in the folder: they are kept by the names given in `functions`, and given again to load.
Reading runs no code of the folder's choosing.

========================  ==============================================================================================
guidance.json             {"format", "guidance", "numbers", "sha256"}; numbers: name of the other file, or null
numbers-<digest>          present where there are rows of 32 numbers or more, which stand in the JSON as
.safetensors              {"numbers": [start, stop]}
========================  ==============================================================================================

The JSON is written last, in one atomic step, and names its numbers by their digest: whoever reads finds the old
guidance or the new one, whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from wayfield import files
from wayfield.core.errors import CheckpointError, RangeError
from wayfield.guide.codec import from_json, to_json
from wayfield.guide.guidance import Guidance
from wayfield.guide.terms import Term

__all__ = ["GUIDANCE", "load_guidance", "save_guidance"]

GUIDANCE = "guidance.json"
_FORMAT = 1
_LONG = 32
_KIND = "numbers of a guidance"


def save_guidance(
    folder: str | os.PathLike[str], guidance: Guidance | Term, functions: Mapping[str, Any] | None = None
) -> FilePath:
    """Write guidance, with all its fitted numbers, into a folder and return the path of its JSON.

    functions: name -> function or network, for the parts that hold one. What was there before is replaced.
    Raises ConditionError for a function without a name, UnknownNameError for a part that is not of this library,
    RangeError for numbers that are not finite, MissingExtraError without safetensors where rows are long, and
    CheckpointError if the disk is full.
    """
    try:
        text = to_json(guidance, functions)
    except ValueError as error:
        if "JSON compliant" not in str(error):
            raise
        remedy = "None means no bound."
        raise RangeError("guidance to save", got="NaN or infinity", expected="finite numbers", remedy=remedy) from error
    numbers: list[float] = []
    tree, out, name = _lifted(json.loads(text), numbers), FilePath(folder), None
    if numbers:
        tensors, record = {"numbers": torch.tensor(numbers, dtype=torch.float64)}, {"kind": _KIND}
        name = f"numbers-{files.digest(tensors, '')[:16]}.safetensors"
        files.write(out / name, tensors, record)
    files.write_json(
        out / GUIDANCE, {"format": _FORMAT, "guidance": tree, "numbers": name, "sha256": _digest(tree, name)}
    )
    for old in out.glob("numbers-*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)
    return out / GUIDANCE


def load_guidance(folder: str | os.PathLike[str], functions: Mapping[str, Any] | None = None) -> Guidance | Term:
    """The guidance that `save_guidance` wrote into a folder, equal to it. functions: those that were named.

    Raises CheckpointError if a file is missing, damaged, changed or no guidance, UnknownNameError for unknown parts or
    functions, and what a part raises for wrong fields.
    """
    path = FilePath(folder) / GUIDANCE
    record = files.read_json(path)
    if not isinstance(record, dict) or set(record) != {"format", "guidance", "numbers", "sha256"}:
        raise _bad(path, "JSON without the fields of a guidance", "Save it again with save_guidance.")
    if record["format"] != _FORMAT:
        raise _bad(path, f"format {record['format']}", f"This version reads format {_FORMAT}.")
    tree, name = record["guidance"], record["numbers"]
    if _digest(tree, name) != record["sha256"]:
        raise _bad(path, "contents that do not match their digest", "It was changed after it was written.")
    numbers = None if name is None else _numbers(path.parent, name)
    return from_json(json.dumps(_lowered(path, tree, numbers)), functions)


def _numbers(folder: FilePath, name: str) -> Tensor:
    if FilePath(str(name)).name != name:
        raise _bad(folder / GUIDANCE, f"numbers at {name!r}", "They must lie in the same folder.")
    tensors, record = files.read(folder / name)
    named = f"numbers-{files.digest(tensors, '')[:16]}.safetensors"
    if record.get("kind") != _KIND or set(tensors) != {"numbers"} or name != named:
        raise _bad(folder / name, "another file's contents", "Restore the folder from a copy, or save it again.")
    return tensors["numbers"]


def _lifted(tree: Any, numbers: list[float]) -> Any:
    """The tree with long rows of numbers moved out."""
    if isinstance(tree, dict):
        return {k: _lifted(v, numbers) for k, v in tree.items()}
    if not isinstance(tree, list):
        return tree
    if len(tree) >= _LONG and all(type(v) is float for v in tree):
        numbers += tree
        return {"numbers": [len(numbers) - len(tree), len(numbers)]}
    return [_lifted(v, numbers) for v in tree]


def _lowered(path: FilePath, tree: Any, numbers: Tensor | None) -> Any:
    """The tree with long rows of numbers put back. Raises CheckpointError where there are none."""
    if isinstance(tree, list):
        return [_lowered(path, v, numbers) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {"numbers"}:
        start, stop = tree["numbers"]
        if numbers is None or not 0 <= start <= stop <= len(numbers):
            raise _bad(path, f"numbers {start}..{stop}, which are not there", "Restore the folder, or save it again.")
        return numbers[start:stop].tolist()
    return {k: _lowered(path, v, numbers) for k, v in tree.items()}


def _digest(tree: Any, name: str | None) -> str:
    return hashlib.sha256(json.dumps([tree, name], sort_keys=True).encode()).hexdigest()


def _bad(path: FilePath, got: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"file {os.fspath(path)!r}", got=got, expected="a saved guidance", remedy=remedy)
