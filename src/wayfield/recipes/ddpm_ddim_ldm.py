"""DDPM against DDIM, classifier-free guidance, noise schedules and latents, on real handwritten digits.

Claim: DDIM beats ancestral sampling at few steps, mild classifier-free guidance adds fidelity, and latents save work at
the price of what their autoencoder loses.

Data: scikit-learn's 1,797 digits. Model: a residual MLP with EDM preconditioning, trained for about 45 seconds on one
core.
Baseline: the ancestral sampler (DDPM) on the same model, grid and noise. Metrics: Frechet distance of pixels to all
real digits, and the share of samples that a support vector machine trained on real digits reads as the class asked for.
Each training seed is sampled with two sampling seeds; criteria are held against the mean over all runs, and each run's
figures are reported.

The second part trains the same network as a noise predictor on discrete schedules, as DDPM did, and reports (no claim)
how DDPM and DDIM compare on each of them, with and without clipping x0 to the pixels' range as DDPM did. The cosine
schedule ends at alpha = 5e-5, where x0 = (x - sigma eps)/alpha multiplies the network's error by 2e4: without clipping
it ruins every sample.

The third part, latents against pixels, is `latent_digits`.

Reference: Shah, Gromis & Pinto 2024, arXiv 2412.14422; Ho et al. 2020; Song et al. 2021; Ho & Salimans 2022; Rombach et
al. 2022.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from wayfield import plots
from wayfield.core import grid as grids
from wayfield.core.grid import Grid
from wayfield.core.schedule import Tabulated
from wayfield.data.digits import digits, svm
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Guidance
from wayfield.measure import Moments, SmallSampleWarning, frechet_distance
from wayfield.progress import track
from wayfield.recipes import latent_digits
from wayfield.recipes.report import Criterion, Report, at_least, at_most
from wayfield.sampling import sample
from wayfield.solve import DDIM, Solver
from wayfield.train.run import train

__all__ = ["config", "run"]

CLAIM = (
    "DDIM beats ancestral sampling at few steps, mild classifier-free guidance adds fidelity, and latents save work at "
    "the price of what their autoencoder loses."
)
SCHEDULES = ("linear", "scaled_linear", "cosine")
SIGMAS = {"sigma_min": 0.02, "sigma_max": 10.0}


@dataclass(frozen=True)
class Setting:
    """One way to sample."""

    name: str
    solver: Solver
    steps: int
    w: float = 1.0


SETTINGS = (
    Setting("ancestral-10", DDIM(eta=1.0), 10),
    Setting("ddim-10", DDIM(), 10),
    Setting("ancestral-20", DDIM(eta=1.0), 20),
    Setting("ddim-20", DDIM(), 20),
    Setting("ancestral-50", DDIM(eta=1.0), 50),
    Setting("ddim-50", DDIM(), 50),
    Setting("ancestral-200", DDIM(eta=1.0), 200),
    Setting("ddim-200", DDIM(), 200),
    Setting("ddim-20 w=1.25", DDIM(), 20, 1.25),
    Setting("ddim-20 w=2", DDIM(), 20, 2.0),
)


def config(seed: int, steps: int = 1500, schedule: str | None = None) -> dict[str, Any]:
    """The training command's config: the EDM model, or a noise predictor on a named discrete schedule."""
    settings: dict[str, Any] = {"steps": steps, "batch": 128, "lr": 1e-3, "decay": 0.3, "drop": 0.1, "seed": seed}
    base = {"data": "digits", "net": {"net": "ResidualMLP", "width": 160, "blocks": 2}, "sigma_data": 0.752}
    if schedule is None:
        levels = {"levels": "LogNormal", "mean": -0.6, "std": 1.2}
        edm = {"path": {"path": "EDM", "sigma_max": 10.0}, "kind": "edm", "time": "log_sigma/4"}
        return {**base, **edm, "train": {**settings, "weight": "edm", "levels": levels}}
    path = {"path": "Tabulated", "schedule": schedule, "T": 1000}
    discrete = {"path": path, "kind": "eps", "time": "log_sigma/4", "scale_input": True}
    return {**base, **discrete, "train": {**settings, "weight": "eps"}}


class Judge:
    """Frechet distance to all real digits, and accuracy of a classifier of another family than the model."""

    def __init__(self) -> None:
        x = digits().x.flatten(1)
        self.moments, self.read = Moments.of(x), svm()
        self.floor = frechet_distance(x[::2], x[1::2])

    def __call__(self, x: Tensor, labels: Tensor, small: bool) -> dict[str, float]:
        """Figures of samples (B, 1, 8, 8)."""
        flat, accuracy = x.flatten(1), float((self.read(x) == labels).float().mean())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallSampleWarning)
            return {"fd": frechet_distance(self.moments, flat, allow_small=small), "accuracy": accuracy}


def run(seeds: int = 3, quick: bool = False, out: FilePath = FilePath("runs/ddpm-ddim-ldm")) -> Report:
    """The whole experiment. seeds: training seeds / quick: a small version that checks the machinery, not the claim."""
    start = time.perf_counter()
    judge, n, steps = Judge(), 200 if quick else 1000, 100 if quick else 1500
    runs: list[dict[str, Any]] = []
    for seed in track(range(seeds), "ddpm-ddim-ldm: training seeds"):
        model = train(config(seed, steps), out / f"edm-{seed}", progress=False).denoiser
        for draw in range(1 if quick else 2):
            runs.append({"training_seed": seed, "sampling_seed": draw} | _evaluate(model, judge, n, draw, quick))
        _schedules(runs[-1], judge, n, steps, seed, out, quick)
        runs[-1]["latents"] = latent_digits.evaluate(seed, quick)
    latents = [r["latents"] for r in runs if "latents" in r]
    pictures = (*_pictures(runs, judge.floor, out), latent_digits.pictures(latents, out))
    return Report(
        method="ddpm-ddim-ldm",
        claim=CLAIM,
        criteria=(*_verdict(runs), *latent_digits.verdict(latents)),
        per_seed=runs,
        seconds=round(time.perf_counter() - start, 1),
        pictures=pictures,
    )


def _draw(
    model: Denoiser, setting: Setting, grid: Grid, n: int, seed: int, clip: bool = False
) -> tuple[Tensor, Tensor, int]:
    labels, guidance = torch.arange(n) % 10, CFG(setting.w)
    cond, wrapped = {"label": labels}, Guidance(guidance, clip=(-1.0, 1.0)) if clip else guidance
    result = sample(model, grid, samples=n, seed=seed, cond=cond, solver=setting.solver, guidance=wrapped)
    return result.x, labels, result.counts.rows // n


def _evaluate(model: Denoiser, judge: Judge, n: int, seed: int, quick: bool) -> dict[str, Any]:
    """Figures of every setting; the first sixteen pictures of each class order are kept for the sheet."""
    figures: dict[str, Any] = {"floor_fd": judge.floor, "settings": {}, "_pictures": {}}
    for setting in SETTINGS:
        x, labels, rows = _draw(model, setting, grids.karras(model.path, setting.steps, **SIGMAS), n, seed)
        figures["settings"][setting.name] = judge(x, labels, quick) | {"rows_per_sample": rows}
        figures["_pictures"][setting.name] = x[:10]
    return figures


def _schedules(
    figures: dict[str, Any], judge: Judge, n: int, steps: int, seed: int, out: FilePath, quick: bool
) -> None:
    """The same network as a noise predictor on discrete schedules; figures join those of the last run of this seed."""
    figures["schedules"] = {}
    for name in SCHEDULES[:1] if quick else SCHEDULES:
        model = train(config(seed, steps, name), out / f"{name}-{seed}", progress=False).denoiser
        assert isinstance(model.path, Tabulated)
        for setting in SETTINGS:
            if setting.w == 1 and setting.steps in (10, 50, 200):
                grid = grids.spaced(model.path, setting.steps, "trailing")
                for clip, suffix in ((False, ""), (True, ", clipped")):
                    x, labels, _ = _draw(model, setting, grid, n, 0, clip)
                    figures["schedules"][f"{name} {setting.name}{suffix}"] = judge(x, labels, quick)


def _mean(runs: list[dict[str, Any]], setting: str, figure: str) -> float:
    return sum(r["settings"][setting][figure] for r in runs) / len(runs)


def _verdict(runs: list[dict[str, Any]]) -> tuple[Criterion, ...]:
    """The card's criteria on the means; bars are never adapted to what was measured."""
    fd = {s.name: _mean(runs, s.name, "fd") for s in SETTINGS}
    gain = _mean(runs, "ddim-20 w=1.25", "accuracy") - _mean(runs, "ddim-20", "accuracy")
    return (
        at_most("FD ddim-10 / FD ancestral-10, at most", fd["ddim-10"] / fd["ancestral-10"], 0.75),
        at_most("FD ddim-20 w=1.25 / FD ddim-20, at most", fd["ddim-20 w=1.25"] / fd["ddim-20"], 1.0),
        at_least("accuracy ddim-20 w=1.25 - ddim-20, at least", gain, 0.01),
        at_least("FD ddim-20 w=2 / FD ddim-20, at least", fd["ddim-20 w=2"] / fd["ddim-20"], 2.0),
        at_most("FD ancestral-200 / FD ddim-20, at most", fd["ancestral-200"] / fd["ddim-20"], 1.0),
    )


def _pictures(runs: list[dict[str, Any]], floor: float, out: FilePath) -> tuple[str, ...]:
    """A sheet of the first run's samples, same noise in every row, and quality against steps."""
    pictures = [r.pop("_pictures") for r in runs]
    kept = pictures[0]
    sheet = torch.cat([kept[s.name] for s in SETTINGS])
    plots.save_sheet(out / "samples.png", sheet, columns=10, rows=[s.name for s in SETTINGS])
    steps = (10, 20, 50, 200)
    curves = {
        name: [(float(n), _mean(runs, f"{key}-{n}", "fd")) for n in steps]
        for name, key in (("ancestral (DDPM)", "ancestral"), ("DDIM", "ddim"))
    }
    plots.save_curves(
        out / "steps.png", curves, x="network evaluations", y="Frechet distance, pixels", log_x=True, floor=floor
    )
    return ("samples.png", "steps.png")
