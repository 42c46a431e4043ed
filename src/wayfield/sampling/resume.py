"""The state of a run on disk: saved atomically, and refused if it belongs to another run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from torch import Tensor

from wayfield import files
from wayfield.core.errors import CheckpointError, RangeError
from wayfield.core.grid import Grid
from wayfield.core.noise import Noise
from wayfield.core.shapes import leaves
from wayfield.field.binding import Binding, Counts
from wayfield.guide.guidance import Guidance
from wayfield.sampling.tables import Tables
from wayfield.solve.roles import Solver

__all__ = ["Checkpoint", "RunSpec", "RunState", "fingerprint", "restore", "save"]


@final
@dataclass(frozen=True)
class Checkpoint:
    """Keep a run's state in `path` every so many steps; the same call then goes on where the file ends."""

    path: str
    every: int = 10

    def __post_init__(self) -> None:
        if self.every < 1:
            raise RangeError("every", got=self.every, expected=">= 1", remedy="Save after at least one step.")


class RunSpec(NamedTuple):
    """Everything of a run that stays the same."""

    binding: Binding
    solver: Solver
    guidance: Guidance
    grid: Grid
    tables: Tables
    noise: Noise
    checkpoint: Checkpoint | None = None
    fingerprint: str = ""


class RunState(NamedTuple):
    """Everything a run carries from step to step."""

    i: int
    x: Tensor
    solver: Any
    guidance: Any
    counts: Counts
    trajectory: list[Tensor]


def fingerprint(run: RunSpec, x: Tensor, record: bool) -> str:
    """What a saved state belongs to: start, noise, levels, solver, guidance and conditions; all but the weights."""
    given = {
        k: {n: v.tolist() if isinstance(v, Tensor) else v for n, v in (c or {}).items()}
        for k, c in run.binding.given.items()
    }
    seed = getattr(run.noise, "seed", None)
    parts = (
        run.grid.t,
        run.solver,
        run.guidance,
        given,
        type(run.noise).__name__,
        seed,
        list(run.noise.samples),
        record,
    )
    tensors = {"x": x, "alpha": run.grid.scales.alpha, "sigma": run.grid.scales.sigma}
    return files.digest(tensors, repr((*parts, sorted(run.binding.nets))))


def save(run: RunSpec, s: RunState) -> None:
    """Write the state after step s.i."""
    assert run.checkpoint is not None
    tensors = dict(leaves({"x": s.x, "solver": s.solver, "guidance": s.guidance, "trajectory": s.trajectory}))
    record = {"kind": "sampling", "fingerprint": run.fingerprint, "step": s.i, "counts": list(s.counts)}
    files.write(run.checkpoint.path, tensors, record)


def restore(run: RunSpec, s: RunState) -> RunState:
    """The saved state if there is one; raises CheckpointError if it belongs to another run."""
    checkpoint = run.checkpoint
    if checkpoint is None or not os.path.exists(checkpoint.path):
        return s
    tensors, record = files.read(checkpoint.path)
    if record.get("fingerprint") != run.fingerprint:
        raise CheckpointError(
            f"file {checkpoint.path!r}",
            got="the state of another run",
            expected="the same grid, solver, guidance, seed and conditions",
            remedy="Delete it, or choose another path.",
        )
    tensors = {k: v.to(s.x.device) for k, v in tensors.items()}

    def fill(name: str, like: Any) -> Any:
        return tensors[name] if isinstance(like, Tensor) else tuple(fill(f"{name}.{k}", v) for k, v in enumerate(like))

    n = sum(k.startswith("trajectory.") for k in tensors)
    return RunState(
        record["step"],
        tensors["x"],
        fill("solver", s.solver),
        fill("guidance", s.guidance),
        Counts(*record["counts"]),
        [tensors[f"trajectory.{k}"] for k in range(n)],
    )
