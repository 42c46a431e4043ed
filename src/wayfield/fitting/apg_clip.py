r"""The clip r of APG for a model at hand: about as long as the steps that guidance takes while a picture is laid out.

Published values of r hold for their models only: r is a length in the model's own data space. Plain classifier-free
guidance is run for a few samples, and r is the median of the lengths of c - u over the first half of the steps; larger
values clip less.

    calibrate_r(model, grid, w=4, cond={...}) -> r, for `apg(w, r=r)`

The rule is ours; the paper chose r by hand. Setting: Sadat, Hilliges & Weber 2024, arXiv 2410.02416, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, unknown_name
from wayfield.core.grid import Grid
from wayfield.field.ask import Ask
from wayfield.field.denoiser import Denoiser
from wayfield.guide import Away, Guidance
from wayfield.guide.roles import Shaper, State, Step
from wayfield.sampling import sample
from wayfield.sampling.driver import StepInfo
from wayfield.solve import DDIM, Solver

__all__ = ["calibrate_r"]


def calibrate_r(
    model: Denoiser,
    grid: Grid,
    w: float = 4.0,
    *,
    samples: int | Sequence[int] = 16,
    seed: int = 0,
    cond: Mapping[str, Any] | None = None,
    conds: Mapping[str, Mapping[str, Any]] | None = None,
    away: str = "null",
    solver: Solver = DDIM(),
    unit: Literal["l2", "rms"] = "l2",
    device: torch.device | str = "cpu",
) -> float:
    """The median length of c - u in the first half of the steps of plain guided runs.

    w: scale of those runs, not 1 / samples, seed, cond, conds, solver, device: as of `sample` / away: name of the
    condition that is pushed away from / unit: as of `APG`, "rms" divides by the square root of the number of values.
    Raises RangeError for w = 1, which asks for no u, UnknownNameError for a unit, and as `sample`.
    """
    if w == 1:
        remedy = "Give the scale that APG will be used with."
        raise RangeError("w of the runs that r is taken from", got=w, expected="not 1", remedy=remedy)
    if unit not in ("l2", "rms"):
        raise unknown_name("unit of r", unit, ("l2", "rms"))
    guidance = Guidance((w - 1) * Away(away).through(_Lengths()))
    lengths: list[Tensor] = []

    def note(info: StepInfo) -> None:
        if info.i <= max(1, info.n // 2):
            lengths.extend(state[0] for part, state in guidance.remembered(info.state) if isinstance(part, _Lengths))

    run = sample(
        model,
        grid,
        samples=samples,
        seed=seed,
        cond=cond,
        conds=conds,
        solver=solver,
        guidance=guidance,
        device=device,
        callback=note,
    )
    length = float(torch.cat(lengths).double().quantile(0.5))
    return length if unit == "l2" else length / run.x[0].numel() ** 0.5


@final
@dataclass(frozen=True)
class _Lengths(Shaper):
    """Changes nothing; remembers how long the push was, (B,)."""

    remembers = True

    def init(self, x: Tensor, n: int) -> State:
        """None seen yet."""
        return (x.new_zeros(len(x), dtype=torch.float32),)

    def shape(self, ask: Ask, push: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """See `Shaper.shape`."""
        return push, (torch.linalg.vector_norm(push.flatten(1), dim=1, dtype=torch.float32),)
