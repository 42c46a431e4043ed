r"""When would adaptive guidance stop? Cosines of fully guided runs, and the threshold that gives a wanted saving.

A threshold of `AG` means another saving for every network, grid and scale. Until a sample stops, its run is the fully
guided one; so one set of recorded cosines tells the cost of every threshold, and no further run is needed.

.. math:: k = 1 + \min\{i \ge m - 1 : \gamma_i > \bar\gamma\} \;\text{or}\; N, \qquad
   \text{saving} = \frac{b - 1}{b} \cdot \frac{N - k}{N}

gamma: cosines (n, N) of n samples in N steps / m: min_steps / k: guided steps, (n,) / b: rows per sample of a guided
step, 2 for classifier-free guidance; other steps cost one.

    gammas = record_gammas(model, grid, CFG(4), samples=64, cond=cond)
    CFG(4).when(AG(calibrate(gammas, 0.25)))

Reference: Castillo et al. 2023, arXiv 2312.12487 (25 % saved at equal quality).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError, UnsupportedError
from wayfield.core.grid import Grid
from wayfield.field.denoiser import Denoiser
from wayfield.guide.adaptive import AG
from wayfield.guide.guidance import Guidance
from wayfield.guide.roles import Gate
from wayfield.guide.terms import Term
from wayfield.sampling.driver import StepInfo, sample
from wayfield.solve.ddim import DDIM
from wayfield.solve.roles import Solver

__all__ = ["calibrate", "guided_steps", "record_gammas", "saving"]


def record_gammas(
    denoiser: Denoiser,
    grid: Grid,
    term: Term,
    gate: AG = AG(),
    *,
    samples: int | Sequence[int] = 64,
    seed: int = 0,
    cond: Mapping[str, Any] | None = None,
    solver: Solver = DDIM(),
    shape: Sequence[int] | None = None,
    nets: Mapping[str, Denoiser] | None = None,
    conds: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The cosines (n, N) that a gate would see at every step of a run that it never closes, on the CPU.

    term: what is to be gated, e.g. CFG(4) / gate: its space and pairs count; its threshold does not / the others: see
    `sample`, which raises for wrong ones. Raises UnsupportedError for a term that is not guided at every step.
    """
    gated = [part for part in term.parts() if isinstance(part, Gate)]
    if gated or term.neutral:
        remedy = "Leave its gates out here, and give it a scale."
        expected = "guidance at every step"
        raise UnsupportedError("term of record_gammas", got=gated or term, expected=expected, remedy=remedy)
    never = replace(gate, gamma_bar=1.0)
    guidance = Guidance(term.when(never), rows="fixed")  # no mask is ever read
    seen: list[Tensor] = []

    def note(info: StepInfo) -> None:
        seen.extend(state[1] for part, state in guidance.remembered(info.state) if part is never)

    sample(
        denoiser,
        grid,
        samples=samples,
        seed=seed,
        cond=cond,
        solver=solver,
        guidance=guidance,
        shape=shape,
        nets=nets,
        conds=conds,
        dtype=dtype,
        device=device,
        callback=note,
    )
    return torch.stack(seen, 1).cpu()


def guided_steps(gammas: Tensor, gamma_bar: float, min_steps: int = 1) -> Tensor:
    """How many steps `AG(gamma_bar, min_steps=...)` would guide each sample, (n,), from cosines (n, N).

    Raises ShapeError, NonFiniteError, or RangeError for min_steps < 1.
    """
    n = _checked(gammas, min_steps).shape[1]
    crossed = gammas > gamma_bar
    crossed[:, : min_steps - 1] = False
    return torch.where(crossed.any(1), crossed.int().argmax(1) + 1, n)


def saving(gammas: Tensor, gamma_bar: float, min_steps: int = 1, branches: int = 2) -> float:
    """The share of network rows that a threshold spares, mean over samples; one evaluation a step.

    gammas: (n, N) / branches: rows per sample of a guided step, >= 2. Raises as `guided_steps`.
    """
    if branches < 2:
        raise RangeError("branches", got=branches, expected=">= 2", remedy="A guided step asks at least two questions.")
    k, n = guided_steps(gammas, gamma_bar, min_steps), gammas.shape[1]
    return float((n - k).double().mean()) / n * (branches - 1) / branches


def calibrate(gammas: Tensor, target_saving: float, min_steps: int = 1, branches: int = 2) -> float:
    """The threshold whose saving is nearest to the target: bisection over the recorded cosines.

    Between two neighbouring cosines all thresholds are alike; the middle is taken, so that rounding in another run
    decides nothing. gammas: (n, N) / target_saving: from 0 to what closing after `min_steps` spares.
    Raises as `saving`, and RangeError for a target out of reach.
    """
    most = saving(gammas, -1.0, min_steps, branches)
    if not 0 <= target_saving <= most:
        remedy = "Lower min_steps, or ask for less."
        raise RangeError("target saving", got=target_saving, expected=f"0 to {most:.4g}", remedy=remedy)
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    values = torch.cat([ends, gammas.flatten().double()]).unique()
    bars = [*((values[1:] + values[:-1]) / 2).tolist(), 1.0]
    low, high = 0, len(bars) - 1  # the saving falls with the threshold
    while high - low > 1:
        middle = (low + high) // 2
        if saving(gammas, bars[middle], min_steps, branches) >= target_saving:
            low = middle
        else:
            high = middle
    return min(bars[low], bars[high], key=lambda bar: abs(saving(gammas, bar, min_steps, branches) - target_saving))


def _checked(gammas: Tensor, min_steps: int) -> Tensor:
    if gammas.ndim != 2 or gammas.numel() == 0:
        remedy = "Pass what record_gammas returns."
        raise ShapeError("gammas", got=tuple(gammas.shape), expected="(n, N), not empty", remedy=remedy)
    if not bool(gammas.isfinite().all()):
        raise NonFiniteError("gammas", got="NaN or infinity", expected="cosines", remedy="Check the network.")
    if min_steps < 1:
        remedy = "A cosine is only known after one guided step."
        raise RangeError("min_steps", got=min_steps, expected=">= 1", remedy=remedy)
    return gammas
