"""The state of a fit on disk, one file replaced atomically: what the next step depends on, and what it belongs to.

    NAME of every parameter and buffer under "now/", under "best/" too if an early stop keeps the best
    optimizer/...   every tensor of the optimiser's state and settings, whatever its kind
    values (k,)     the bound at each of the k steps done
    record: {"format", "version", "step", "best", "optimizer", "identity"}

Randomness needs no state: see `vi.feed`. identity: texts by name on which a resumed run must agree.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from wayfield import files
from wayfield.core.errors import CheckpointError, UnsupportedError
from wayfield.core.shapes import leaves
from wayfield.vi.objective import Objective
from wayfield.vi.parameters import Named

__all__ = ["CHECKPOINT", "FitState", "identity_of", "load", "save", "sweep"]

CHECKPOINT = "fit.safetensors"
_FORMAT, _VERSION = "wayfield.vi.fit", 1


@final
@dataclass(eq=False)
class FitState:
    """What a fit changes. values: the bound at every step done / best: a copy of the parameters after step best_at."""

    named: Named
    optimizer: Optimizer
    values: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_at: int = 0


def identity_of(
    objective: Objective, named: Named, optimizer: Optimizer, args: tuple[Any, ...], settings: Mapping[str, Any]
) -> dict[str, str]:
    """What a checkpoint belongs to: objective, parameters, optimiser as made, data by its first arguments, settings."""
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.state_dict()["param_groups"]]
    plain = [x if isinstance(x, (bool, int, float, str)) else type(x).__name__ for x in args]
    made = f"{objective.name}, samples={objective.samples}, batch_dims={objective.batch_dims}"
    return {
        "objective": f"{made}, strategies={dict(objective.strategies)!r}",
        "parameters": str(named),
        "optimizer": f"{type(optimizer).__name__} {groups}",
        "data": f"{plain} {files.digest(dict(leaves(args)), '')[:16]}",
    } | {k: repr(v) for k, v in settings.items()}


def save(folder: FilePath, state: FitState, identity: Mapping[str, str]) -> None:
    """Replace the checkpoint in `folder` by this state."""
    tensors = {f"now/{k}": v for k, v in state.named.copy().items()} | {f"best/{k}": v for k, v in state.best.items()}
    tensors["values"] = torch.tensor(state.values, dtype=torch.float64)
    kept = _packed(state.optimizer.state_dict(), "optimizer", tensors)
    record = {"format": _FORMAT, "version": _VERSION, "step": len(state.values), "best": state.best_at}
    files.write(folder / CHECKPOINT, tensors, record | {"optimizer": kept, "identity": dict(identity)})


def load(folder: FilePath, state: FitState, identity: Mapping[str, str]) -> None:
    """Fill `state` in place from the checkpoint in `folder`; untouched if there is none.

    Raises CheckpointError if the file is damaged, not a checkpoint, or of another run: the differences are named.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return
    tensors, record = files.read(path)
    if (record.get("format"), record.get("version")) != (_FORMAT, _VERSION):
        got = f"{record.get('format')!r} version {record.get('version')!r}"
        want, remedy = f"{_FORMAT!r} version {_VERSION}", "Give an empty folder."
        raise CheckpointError(f"file {os.fspath(path)!r}", got=got, expected=want, remedy=remedy)
    kept = record["identity"]
    if differ := sorted(k for k in kept.keys() | identity.keys() if kept.get(k) != identity.get(k)):
        got, want = ("; ".join(f"{k}: {x.get(k)}" for k in differ) for x in (kept, identity))
        remedy = "Give another folder, the run's own settings, or resume=False to overwrite it."
        raise CheckpointError(f"checkpoint {os.fspath(path)!r} of another run", got=got, expected=want, remedy=remedy)
    state.named.fill(_under(tensors, "now/"))
    state.optimizer.load_state_dict(_unpacked(record["optimizer"], tensors))
    state.values[:] = tensors["values"].tolist()
    state.best, state.best_at = _under(tensors, "best/"), record["best"]


def sweep(folder: FilePath) -> None:
    """Remove what a killed process left of half-written checkpoints."""
    for path in folder.glob(f".{CHECKPOINT}.*.tmp"):
        path.unlink(missing_ok=True)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _packed(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A nest as JSON, its tensors put into `tensors`: optimisers keep tensors, numbers and lists of both."""
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return {"tensor": name}
    if isinstance(tree, Mapping):
        return {"dict": [[k, _packed(v, f"{name}/{k}", tensors)] for k, v in tree.items()]}
    if isinstance(tree, Sequence):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [_packed(v, f"{name}/{k}", tensors) for k, v in enumerate(tree)]}
    got, remedy = type(tree).__name__, "Fit without folder=, or with another optimiser."
    raise UnsupportedError(f"state {name!r} of the optimiser", got=got, expected="tensors and numbers", remedy=remedy)


def _unpacked(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value].clone()  # of its own: optimisers write into it
    if kind == "dict":
        return {k: _unpacked(v, tensors) for k, v in value}
    return (tuple if kind == "tuple" else list)(_unpacked(v, tensors) for v in value)
