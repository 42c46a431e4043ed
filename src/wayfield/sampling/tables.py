"""The numbers of a run, laid out once: levels of every network and coefficients of the solver, per step.

They depend on frozen descriptions alone (grid, solver, how a network is read), not on weights or data. So they are kept
for the next run on the same grid; they are never written to, and are ordinary tensors even if the run that made them
was in inference mode.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wayfield.core.errors import SingularError
from wayfield.core.grid import Grid
from wayfield.field.denoiser import Denoiser, Landing, Level, Reading
from wayfield.guide.guidance import At
from wayfield.guide.roles import Step
from wayfield.solve.roles import Plan, Solver

__all__ = ["Tables", "tables"]

_KEPT = 32


class Tables(NamedTuple):
    """The numbers of a run, one entry per step. plan: of the solver / rows: its coefficients, a NamedTuple of 0-dim
    tensors / at: for every evaluation the level's numbers of every network / steps: for every evaluation what guidance
    may decide by, host numbers.
    """

    plan: Plan
    rows: list[Any]
    at: list[tuple[At, ...]]
    steps: list[tuple[Step, ...]]


def tables(fields: Mapping[str, Denoiser], solver: Solver, grid: Grid, x: Tensor) -> Tables:
    """Everything that a run from points x (B, *D) looks up, on their device and in their type.

    Raises SingularError if a network's answer says nothing about x0 at some level, a level is beyond its path, or a
    coefficient is not finite.
    """
    readings = tuple([(name, d.reading) for name, d in fields.items()])
    return _tables(readings, solver, grid, x.dtype, x.device)


@functools.lru_cache(maxsize=_KEPT)
@torch.inference_mode(False)
def _tables(
    readings: tuple[tuple[str, Reading], ...], solver: Solver, grid: Grid, dtype: torch.dtype, device: torch.device
) -> Tables:
    plan = solver.plan(grid)
    i = _first_not_finite(plan.rows)
    if i is not None:
        raise SingularError(
            "solver coefficients",
            got=f"step {i}, t = {grid.t[i]:g} to {grid.t[i + 1]:g} on {grid.path!r}",
            expected="finite numbers",
            remedy="Choose another end of the grid, or a solver that works in sigma/alpha.",
        )
    by_net = [_levels(name, reading, grid, plan.times, dtype, device) for name, reading in readings]
    names, landings = [name for name, _ in readings], _rows(Landing(*(c[1:] for c in grid.scales[:2])), dtype, device)
    levels = iter([dict(zip(names, each, strict=True)) for each in zip(*by_net, strict=True)])
    at = [
        tuple([At(next(levels), landing) for _ in times]) for times, landing in zip(plan.times, landings, strict=True)
    ]
    return Tables(plan, _rows(plan.rows, dtype, device), at, _steps(grid, plan))


def _steps(grid: Grid, plan: Plan) -> list[tuple[Step, ...]]:
    flat = torch.tensor([t for each in plan.times for t in each], dtype=torch.float64)
    log_snr, n = iter(grid.path.log_snr(flat).tolist()), len(plan.times)
    after = (2 * grid.lam[1:]).tolist()
    return [
        tuple([Step(i, n, k, next(log_snr), i == n - 1, after[i]) for k in range(len(each))])
        for i, each in enumerate(plan.times)
    ]


def _levels(
    name: str,
    reading: Reading,
    grid: Grid,
    times: tuple[tuple[float, ...], ...],
    dtype: torch.dtype,
    device: torch.device,
) -> list[Level]:
    flat = torch.tensor([t for each in times for t in each], dtype=torch.float64)
    levels = reading.level(flat, path=grid.path)
    bad = _first_not_finite(levels)
    if bad is not None:
        raise SingularError(
            f"{reading.kind.name!r} prediction of network {name!r}",
            got=f"t = {float(flat[bad]):g} on {grid.path!r}",
            expected="a level with signal and noise",
            remedy="Start or end the grid elsewhere, e.g. karras(), or use a model that predicts v, edm or x0.",
        )
    return _rows(levels, dtype, device)


def _first_not_finite(columns: tuple[Tensor | None, ...]) -> int | None:
    table = torch.stack([c for c in columns if c is not None])
    bad = (~table.isfinite().all(0)).nonzero()
    return int(bad[0]) if len(bad) else None


def _rows(columns: Any, dtype: torch.dtype, device: torch.device) -> list[Any]:
    """A NamedTuple of columns (N,), or None, as N NamedTuples of 0-dim tensors."""
    table = torch.stack([c for c in columns if c is not None]).to(device=device, dtype=dtype)
    parts = iter(table)
    cells = [repeat(None) if c is None else next(parts).unbind() for c in columns]
    return [type(columns)(*row) for row in zip(*cells, strict=False)]
