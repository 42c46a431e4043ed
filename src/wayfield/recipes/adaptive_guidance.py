"""Adaptive guidance: stop, hold or predict the second evaluation of guidance, on real digits and captioned shapes.

Claim: a quarter of the evaluations of guidance can be left out without loss of quality, since the two predictions grow
alike; and where single evaluations are predicted from earlier ones, more.

Digits: scikit-learn's 1,797. Model: the class-conditional residual MLP with EDM preconditioning of `ddpm-ddim-ldm`; 20
Euler steps in sigma, w = 3. Baseline: CFG at every step, the same noise. Metrics: mean squared difference to the
baseline's samples; Frechet distance of pixels to all real digits; the share that a support vector machine trained on
real digits reads as the class asked for; network rows per sample. Three training seeds, two sampling seeds each;
criteria are held against the means, those on curves against the worst run.

Shapes: the zoo's "scenes", asked for single shapes of scenes that no model has seen; 20 deterministic steps of
DPM-Solver++(2M), w = 3, two sampling seeds with scenes of their own. Metrics: the share of prompts that come out right
as the zoo's reader sees it, saturation and contrast, difference to the baseline, rows.

Thresholds and LinearAG's scalars come from other noise than is reported on (and other scenes). Compared are

    AG                 CFG until the cosine of the x0-predictions exceeds a threshold calibrated to save 25 %
    AG, held in eps    the same, the last difference of noise predictions held afterwards; in x0: of x0-predictions
    first, last half   CFG in that half of the steps only
    LinearAG           first half; every other unconditional answer there predicted by fitted scalars
    hold, skip         the same, but the difference held, or no guidance at these steps
    CFG, 15 steps      guidance at every step, at the cost of AG: the rival that it does not name

Not claimed, and reported: at equal cost, fewer guided steps come closer to the baseline than AG does.

Reference: Castillo et al. 2023, arXiv 2312.12487.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wayfield import plots, zoo
from wayfield.core import grid as grids
from wayfield.core.grid import Grid
from wayfield.data.scenes import Prompt, tokenize
from wayfield.field.denoiser import Denoiser
from wayfield.fitting.linear_ag import LinearFit, fit_linear_ag
from wayfield.fitting.stops import calibrate, record_gammas
from wayfield.guide import CFG, Guidance
from wayfield.guide.adaptive import AG
from wayfield.guide.gates import Steps
from wayfield.guide.hold import Hold
from wayfield.guide.linear import LinearAG, alternating
from wayfield.progress import track
from wayfield.recipes.ddpm_ddim_ldm import SIGMAS, Judge, config
from wayfield.recipes.report import Criterion, Report, at_least, at_most
from wayfield.recipes.shapes_world import SHAPES, asked, judged, save_sheets
from wayfield.sampling import Result, sample
from wayfield.solve import DDIM, DPM2M, Solver
from wayfield.train.run import train
from wayfield.zoo.judging.drawing import grid_of

__all__ = ["run"]

CLAIM = (
    "A quarter of the evaluations of guidance can be left out without loss of quality, since its two predictions grow "
    "alike; where single evaluations are predicted from earlier ones, more."
)
STEPS, FEWER, W, SAVED = 20, 15, 3.0, 0.25
CFG_20, CFG_15, STOP = "CFG", f"CFG, {FEWER} steps", "AG"
HELD = {"eps": "AG, held in eps", "x0": "AG, held in x0"}
FIRST, LAST, LINEAR, HOLD, SKIP = "first half", "last half", "LinearAG", "hold", "skip"
BOTH = (CFG_20, STOP, *HELD.values(), LINEAR, HOLD, CFG_15)
"""What both worlds compare."""

_EARLY = tuple(i < STEPS // 2 for i in range(STEPS))
_TRUE = alternating(STEPS)
_FITTING = 100  # seed of the noise that thresholds and scalars are fitted on


class _World(NamedTuple):
    """A model and how it is sampled. grid: by number of steps."""

    model: Denoiser
    grid: Callable[[int], Grid]
    solver: Solver

    def draw(self, guidance: Guidance, steps: int, seed: int, cond: Mapping[str, Tensor]) -> Result:
        """One sample for each row of the condition."""
        n = len(next(iter(cond.values())))
        grid = self.grid(steps)
        return sample(self.model, grid, samples=n, seed=seed, cond=cond, solver=self.solver, guidance=guidance)

    def gammas(self, space: str, seed: int, cond: Mapping[str, Tensor]) -> Tensor:
        """Cosines of fully guided runs, (n, N)."""
        n, grid = len(next(iter(cond.values()))), self.grid(STEPS)
        gate = AG(space=space)
        return record_gammas(self.model, grid, CFG(W), gate, samples=n, seed=seed, cond=cond, solver=self.solver)

    def fit(self, cond: Mapping[str, Tensor]) -> tuple[float, LinearFit]:
        """The threshold that saves a quarter, and LinearAG's scalars."""
        n = len(next(iter(cond.values())))
        bar = calibrate(self.gammas("x0", _FITTING, cond), SAVED)
        guidance, grid = CFG(W).when(Steps(_EARLY)), self.grid(STEPS)
        fit = fit_linear_ag(
            self.model, grid, guidance=guidance, samples=n, seed=_FITTING, cond=cond, solver=self.solver
        )
        return bar, fit


def run(seeds: int = 3, quick: bool = False, out: FilePath = FilePath("runs/adaptive-guidance")) -> Report:
    """The whole experiment. seeds: training seeds of the digits / quick: a small version that checks the machinery."""
    start = time.perf_counter()
    judge, draws = Judge(), range(1 if quick else 2)
    runs: list[dict[str, Any]] = []
    for seed in track(range(seeds), "adaptive-guidance: training seeds"):
        model = train(config(seed, 100 if quick else 1500), out / f"edm-{seed}", progress=False).denoiser
        figures = _digits(model, judge, draws, 100 if quick else 400, quick)
        runs += [{"world": "digits", "training_seed": seed} | each for each in figures]
    runs += [{"world": "shapes"} | each for each in _shapes(draws, 4 if quick else 60, 8 if quick else 48)]
    return Report(
        method="adaptive-guidance",
        claim=CLAIM,
        criteria=_verdict(runs),
        per_seed=runs,
        seconds=round(time.perf_counter() - start, 1),
        pictures=_pictures(runs, out),
    )


def _ways(bar: float, source: LinearAG) -> dict[str, tuple[Guidance, int]]:
    """Name -> guidance and number of steps."""
    full, early = CFG(W), CFG(W).when(Steps(_EARLY))
    late, sparse = (full.when(Steps(t)) for t in (tuple(not e for e in _EARLY), _both(_EARLY, _TRUE)))
    terms = {CFG_20: full, STOP: full.when(AG(bar)), FIRST: early, LAST: late, SKIP: sparse}
    ways = {name: Guidance(term) for name, term in terms.items()}
    ways |= {name: Guidance(full, sources=(Hold(AG(bar), space=space),)) for space, name in HELD.items()}
    ways[LINEAR], ways[HOLD] = (Guidance(early, sources=(s,)) for s in (source, Hold(Steps(_TRUE), space="x0")))
    return {name: (way, STEPS) for name, way in ways.items()} | {CFG_15: (Guidance(full), FEWER)}


def _both(a: Sequence[bool], b: Sequence[bool]) -> tuple[bool, ...]:
    return tuple(x and y for x, y in zip(a, b, strict=True))


def _digits(model: Denoiser, judge: Judge, draws: Sequence[int], n: int, quick: bool) -> list[dict[str, Any]]:
    """Figures of every sampling seed of one model."""
    world = _World(model, lambda steps: grids.karras(model.path, steps, **SIGMAS), DDIM())
    labels = torch.arange(n) % 10
    cond = {"label": labels}
    bar, fit = world.fit(cond)
    runs = []
    for seed in draws:
        curves = {space: world.gammas(space, seed, cond).mean(0).tolist() for space in ("x0", "eps")}
        facts = {"sampling_seed": seed, "gamma_bar": bar, "mean_gamma": curves, "floor_fd": judge.floor}
        facts |= {"linear_errors": dict(fit.errors), "linear_largest": fit.largest}
        drawn = {name: world.draw(*way, seed, cond) for name, way in _ways(bar, fit.source).items()}
        runs.append(facts | _compared(drawn, lambda x: judge(x, labels, quick), 10))
    return runs


def _shapes(draws: Sequence[int], n: int, fitting: int) -> list[dict[str, Any]]:
    """Figures of every sampling seed, and of the real pictures of the same scenes."""
    model, reader = zoo.load("scenes"), zoo.load_detector("scenes-reader")
    world = _World(model, lambda steps: grid_of(model.path, steps), DPM2M())
    bar, fit = world.fit({"tokens": tokenize(asked(range(10_000, 10_000 + fitting)))})
    runs = []
    for seed in track(draws, "adaptive-guidance: shapes"):
        rows = range(seed * n, (seed + 1) * n)
        prompts = asked(rows)

        def figures(x: Tensor, prompts: Sequence[Prompt] = prompts) -> dict[str, float]:
            return judged(reader, prompts, x)

        ways = _ways(bar, fit.source)
        drawn = {name: world.draw(*ways[name], seed, {"tokens": tokenize(prompts)}) for name in BOTH}
        facts = {"sampling_seed": seed, "gamma_bar": bar, "linear_errors": dict(fit.errors)}
        facts |= {"linear_largest": fit.largest, "real": figures(SHAPES.batch(rows)[0])}
        runs.append(facts | _compared(drawn, figures, 8))
    return runs


def _compared(drawn: Mapping[str, Result], figures: Callable[[Tensor], dict[str, float]], shown: int) -> dict[str, Any]:
    """Figures of every setting, its distance to the baseline's samples and its cost; some pictures of it."""
    baseline, out = drawn[CFG_20].x, {}
    for name, result in drawn.items():
        mse = float((result.x - baseline).double().square().mean())
        out[name] = figures(result.x) | {"mse_to_cfg": mse, "rows_per_sample": result.counts.rows / len(result.x)}
    return {"settings": out, "_pictures": {name: result.x[:shown] for name, result in drawn.items()}}


def _verdict(runs: Sequence[Mapping[str, Any]]) -> tuple[Criterion, ...]:
    """Bars were fixed before the first run and are never adapted."""
    digits, shapes = ([r for r in runs if r["world"] == world] for world in ("digits", "shapes"))
    least = {s: [min(b - a for a, b in itertools.pairwise(c)) for c in _curves(digits, s)] for s in ("x0", "eps")}
    mse = {name: _mean(digits, name, "mse_to_cfg") for name in digits[0]["settings"]}
    fd = {name: _mean(digits, name, "fd") for name in (CFG_20, STOP)}
    right, shown = (_mean(rs, STOP, "accuracy") - _mean(rs, CFG_20, "accuracy") for rs in (digits, shapes))
    saved = 1 - _mean(digits, STOP, "rows_per_sample") / (2 * STEPS)
    error = max(e for r in digits for i, e in r["linear_errors"].items() if i <= STEPS // 2)
    return (
        at_least("digits: smallest increment of mean gamma of x0, worst run, at least", min(least["x0"]), -0.005),
        at_most("digits: smallest increment of mean gamma of eps, any run, at most", max(least["eps"]), -0.005),
        at_most("digits: MSE to CFG, first half / last half, at most", mse[FIRST] / mse[LAST], 0.6),
        at_least("digits: share of rows that AG saves, at least", saved, 0.24),
        at_least("digits: accuracy AG - CFG, at least", right, -0.005),
        at_most("digits: FD AG / FD CFG, at most", fd[STOP] / fd[CFG_20], 1.0),
        at_most("digits: held-out error of LinearAG in the first half, worst step and run, at most", error, 0.02),
        at_most("digits: MSE to CFG, LinearAG / first half, at most", mse[LINEAR] / mse[FIRST], 1.15),
        at_most("digits: MSE to CFG, LinearAG / skip, at most", mse[LINEAR] / mse[SKIP], 0.5),
        at_least("shapes: prompts right, AG - CFG, at least", shown, -0.05),
    )


def _mean(runs: Sequence[Mapping[str, Any]], setting: str, figure: str) -> float:
    return sum(r["settings"][setting][figure] for r in runs) / len(runs)


def _curves(runs: Sequence[Mapping[str, Any]], space: str) -> list[list[float]]:
    return [r["mean_gamma"][space] for r in runs]


def _pictures(runs: Sequence[dict[str, Any]], out: FilePath) -> tuple[str, ...]:
    """A sheet of the first run of each world, the same noise in every row of samples, and the cosines of the first."""
    names = save_sheets(runs, out)
    curves = {
        f"of {space}": [(float(i + 1), v) for i, v in enumerate(runs[0]["mean_gamma"][space])]
        for space in ("x0", "eps")
    }
    plots.save_curves(out / "gamma.png", curves, x="step", y="mean cosine of the two predictions, digits")
    return (*names, "gamma.png")
