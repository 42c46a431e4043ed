"""Runs that differ in guidance alone, for comparing guidances: the same noise and conditions, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from wayfield.core.errors import RangeError, UnsupportedError
from wayfield.core.grid import Grid
from wayfield.field.cond import Cond
from wayfield.field.denoiser import Denoiser
from wayfield.guide.guidance import Guidance
from wayfield.guide.terms import Term
from wayfield.sampling.driver import Result, sample
from wayfield.solve.ddim import DDIM
from wayfield.solve.roles import Solver

__all__ = ["Draws", "check_solver"]


@final
@dataclass(frozen=True, eq=False)
class Draws:
    """What a set of runs has in common; the arguments are those of `sample`.

    samples: their number; cond and conds hold a row for each, or one for all. Raises RangeError, and what `sample`
    raises for conditions.
    """

    model: Denoiser
    grid: Grid
    samples: int
    seed: int = 0
    cond: Mapping[str, Any] | None = None
    conds: Mapping[str, Mapping[str, Any]] | None = None
    nets: Mapping[str, Denoiser] | None = None
    shape: Sequence[int] | None = None
    solver: Solver = DDIM()
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RangeError("samples", got=self.samples, expected=">= 1", remedy="Give a count.")
        bind = self.model.schema.bind  # now each sample has a row, and a part of the samples can be cut out
        conds = {name: bind(c, self.samples, "cpu") for name, c in (self.conds or {}).items()}
        object.__setattr__(self, "conds", conds)
        if self.cond is not None:
            object.__setattr__(self, "cond", bind(self.cond, self.samples, "cpu"))

    @property
    def networks(self) -> dict[str, Denoiser]:
        """All networks by name."""
        return {"main": self.model, **(self.nets or {})}

    def parts(self, size: int) -> Iterator[range]:
        """All samples, `size` at a time."""
        if size < 1:
            raise RangeError("samples at a time", got=size, expected=">= 1", remedy="64 is a good start.")
        for first in range(0, self.samples, size):
            yield range(first, min(first + size, self.samples))

    def __call__(self, part: range, guidance: Guidance | Term, *, grad: bool = False) -> Result:
        """Some of the samples under a guidance."""
        return sample(
            self.model,
            self.grid,
            samples=part,
            seed=self.seed,
            cond=None if self.cond is None else _cut(self.cond, part),
            conds={name: _cut(c, part) for name, c in (self.conds or {}).items()},
            nets=self.nets,
            shape=self.shape,
            solver=self.solver,
            guidance=guidance,
            dtype=self.dtype,
            device=self.device,
            grad=grad,
        )


def check_solver(what: str, solver: Solver, grid: Grid) -> None:
    """Refuse solvers with several evaluations a step, where what is fitted has one number for a step.

    what: is fitted. Raises UnsupportedError.
    """
    if not isinstance(solver, Solver) or any(len(times) > 1 for times in solver.plan(grid).times):
        remedy = "Use DDIM(), DPM2M() or another solver with one evaluation a step."
        raise UnsupportedError(what, got=repr(solver), expected="one evaluation a step", remedy=remedy)


def _cut(cond: Cond, part: range) -> Cond:
    return {name: c[part.start : part.stop] for name, c in cond.items()}
