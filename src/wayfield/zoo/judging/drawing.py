"""Drawing the samples that are judged, and choosing the guidance scale that they are drawn with.

Every denoiser is sampled alike, unless its judge says otherwise: DPM-Solver++(2M), 20 steps with equal spacing
in sigma^(1/7) between the noise levels 80, or the highest of the path, and 0.02 (a hundredth of the range of pixels),
then the clean end.

    draw(model, cond, w, seed)  ->  x (N, *D), sample k of condition k and address k
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from wayfield.core import grid as grids
from wayfield.core.grid import Grid
from wayfield.core.path import Path
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG
from wayfield.sampling import sample
from wayfield.solve import DPM2M, Solver

__all__ = ["SAMPLER", "STEPS", "best_scale", "draw", "grid_of"]

STEPS = 20
SAMPLER = f"DPM-Solver++(2M), {STEPS} steps"
_SOLVER = DPM2M()
_LOW, _HIGH, _BATCH = 0.02, 80.0, 64


def grid_of(path: Path, steps: int = STEPS) -> Grid:
    """The noise levels that samples to be judged visit."""
    top = math.exp(-0.5 * float(path.log_snr(torch.ones((), dtype=torch.float64))))
    return grids.karras(path, steps, sigma_min=_LOW, sigma_max=min(top, _HIGH))


def draw(
    model: Denoiser,
    cond: Mapping[str, Tensor],
    *,
    w: float = 1.0,
    seed: int = 0,
    steps: int = STEPS,
    first: int = 0,
    solver: Solver = _SOLVER,
) -> Tensor:
    """Samples first, first + 1, ..., one per row of the conditions.

    cond: {name: (N, ...)}, N >= 1 / w: guidance scale / seed: of the noise / steps: of the solver, by
    default the one above. Raises as `sample`.
    """
    grid, guidance = grid_of(model.path, steps), CFG(w)
    count, out = len(next(iter(cond.values()))), []
    for rows in torch.arange(count).split(_BATCH):
        chosen = {name: value[rows] for name, value in cond.items()}
        addresses = (first + rows).tolist()
        run = sample(model, grid, samples=addresses, seed=seed, cond=chosen, solver=solver, guidance=guidance)
        out.append(run.x)
    return torch.cat(out)


def best_scale(scales: Sequence[float], score: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """The scale with the highest score, the smallest of them if several have it, and the scores of all."""
    scores = {w: score(w) for w in scales}
    return max(scores, key=lambda w: (scores[w], -w)), scores
