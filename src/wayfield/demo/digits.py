"""Digits: one small network, many ways to draw from it, what each costs and what it gives.

The class-conditional digits model that ships inside the package is sampled with several solvers, step counts and
guidance scales, all from the same noise. Each setting is judged by three figures:

    Fréchet distance of the pixels, and of the features of an independent classifier, to one half of the real digits
    accuracy: the share of samples that this classifier reads as the class that was asked for

The other half of the real digits, in the same number, is judged in the same way: a perfect sampler would score like it.
(The network has seen most of these digits, so it can score better.) The classifier's accuracy on real digits is that on
the test split.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield import registry, zoo
from wayfield.core.grid import Grid
from wayfield.data.digits import digits
from wayfield.doors.console import console
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG
from wayfield.measure import Moments, SmallSampleWarning, accuracy, frechet_distance
from wayfield.sampling import Result, sample

__all__ = ["SETTINGS", "DigitsRun", "Drawn", "Line", "Setting", "Walk", "draw_digits"]

CLASSES = 10
SIGMA_MIN = 0.02  # the last noise level before the clean end: a tenth of the distance between two grey levels


@final
@dataclass(frozen=True)
class Setting:
    """One way to sample. solver: name in `registry.SOLVERS` / title: the solver's name for people / w: guidance
    scale.
    """

    solver: str
    title: str
    steps: int
    w: float = 1.0

    @property
    def detail(self) -> str:
        """What distinguishes it from others of the same solver."""
        return f"{self.steps} steps" + (f", w = {self.w:g}" if self.w != 1 else "")


_LADDERS = {
    ("ancestral", "Ancestral"): (10, 20, 100),
    ("ddim", "DDIM"): (5, 10, 20, 50),
    ("heun", "Heun"): (5, 10),
    ("dpm2m", "DPM++ 2M"): (5, 10, 20),
    ("unipc", "UniPC"): (5, 10, 20),
}
SETTINGS = (
    *(Setting(*names, n) for names, ladder in _LADDERS.items() for n in ladder),
    *(Setting("ddim", "DDIM", 20, w) for w in (1.25, 2.0, 4.0)),
)
"""Sampler by sampler, the guided ones last."""

PATHS = (Setting("ancestral", "Ancestral", 20), Setting("ddim", "DDIM", 20), Setting("dpm2m", "DPM++ 2M", 10))


@final
@dataclass(frozen=True)
class Line:
    """One row of the table. pixels, features: Fréchet distances / accuracy: 0..1 / evaluations: of the network per
    sample, None for real data / calls, rows: of the network / seconds: of sampling alone.
    """

    title: str
    steps: int | None
    w: float | None
    pixels: float
    features: float
    accuracy: float
    evaluations: int | None = None
    calls: int | None = None
    rows: int | None = None
    seconds: float | None = None


class Drawn(NamedTuple):
    """What the pictures of the report need of a run: the setting, its line, and the first sample of each class."""

    setting: Setting
    line: Line
    first: Tensor


class Walk(NamedTuple):
    """The way of one sample of each class from noise to data. x: points scaled to the variance of data,
    (steps + 1, 10, 1, 8, 8).
    """

    setting: Setting
    x: Tensor


@final
@dataclass(frozen=True, eq=False)
class DigitsRun:
    """drawn: one per setting / real: the floor / digits: real ones, two of each class / cloud: all real pictures and
    their classes / samples: per setting.
    """

    drawn: tuple[Drawn, ...]
    real: Line
    walks: tuple[Walk, ...]
    digits: Tensor
    cloud: tuple[Tensor, Tensor]
    samples: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lines = [asdict(d.line) for d in self.drawn]
        return {"samples": self.samples, "real": asdict(self.real), "settings": lines}


@final
class Judge:
    """Figures of samples whose classes are 0, 1, ..., 9, 0, 1, ... / n: how many samples each setting draws."""

    def __init__(self, n: int, classifier: str) -> None:
        data = digits()
        label = data.cond["label"]
        rank = (one := torch.nn.functional.one_hot(label, CLASSES)).cumsum(0).sub(1)[one.bool()]
        self.n, self.net, self.data = n, zoo.load_classifier(classifier), data
        half = data.x[rank % 2 == 0]
        self.pixels, self.features = Moments.of(half.flatten(1)), Moments.of(self.net.features(half))
        # n of the other half, evenly spread (writers come one after another), in the order of classes that samples have
        others = [((label == k) & (rank % 2 == 1)).nonzero()[:, 0] for k in range(CLASSES)]
        even = [rows[torch.arange(n // CLASSES) * len(rows) // (n // CLASSES)] for rows in others]
        self.other = data.x[torch.stack(even, 1).flatten()]

    def distances(self, x: Tensor) -> tuple[float, float]:
        """Fréchet distances of samples (n, 1, 8, 8) in pixels and in the classifier's features."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallSampleWarning)  # the floor has the same bias, and is shown
            return (
                frechet_distance(self.pixels, x.flatten(1), allow_small=True),
                frechet_distance(self.features, self.net.features(x), allow_small=True),
            )

    def line(self, setting: Setting, result: Result, seconds: float) -> Line:
        """The row of a setting."""
        hits = accuracy(self.net(result.x), torch.arange(self.n) % CLASSES)
        counts = result.counts
        where = (setting.title, setting.steps, setting.w)
        cost = (counts.rows // self.n, counts.calls, counts.rows, round(seconds, 4))
        return Line(*where, *self.distances(result.x), hits, *cost)

    def real(self) -> Line:
        """The row of real data."""
        test = digits("test")
        hits = accuracy(self.net(test.x), test.cond["label"])
        return Line("Real digits", None, None, *self.distances(self.other), hits)


def draw_digits(names: tuple[str, str], quick: bool, seed: int) -> DigitsRun:
    """Draw and judge every setting, and tell stderr how it goes.

    names: of the denoiser and of the classifier / quick: a quarter of the samples and no run of more than 20 steps.
    """
    n, say, model = 200 if quick else 800, console(), zoo.load(names[0])
    judge = Judge(n, names[1])
    settings = [s for s in SETTINGS if s.steps <= 20 or not quick]
    drawn: list[Drawn] = []
    draw(model, settings[0], 2 * CLASSES, seed)  # the first run of all pays for what torch sets up once
    for k, setting in enumerate(settings):
        begin = time.perf_counter()
        result = draw(model, setting, n, seed)
        line = judge.line(setting, result, time.perf_counter() - begin)
        drawn.append(Drawn(setting, line, result.x[:CLASSES]))
        name = f"{setting.title}, {setting.detail}"
        say.print(f"[dim]{k + 1:>3}/{len(settings)}[/]  {name:<24} {line.seconds:6.2f} s")
    walks = tuple(_path(model, setting, seed) for setting in PATHS)
    cloud = (judge.data.x, judge.data.cond["label"])
    return DigitsRun(tuple(drawn), judge.real(), walks, judge.other[:CLASSES], cloud, n)


def grid_of(model: Denoiser, setting: Setting) -> Grid:
    """The noise levels that a setting visits."""
    return registry.grid("karras", model.path, setting.steps, sigma_min=SIGMA_MIN)


def draw(model: Denoiser, setting: Setting, n: int, seed: int, *, record: bool = False) -> Result:
    """Samples 0 .. n - 1 of a setting; sample k is of class k mod 10. record: keep the paths."""
    return sample(
        model,
        grid_of(model, setting),
        samples=n,
        seed=seed,
        cond={"label": torch.arange(n) % CLASSES},
        solver=registry.solver(setting.solver, model.path),
        guidance=CFG(setting.w),
        record=record,
    )


def _path(model: Denoiser, setting: Setting, seed: int) -> Walk:
    """The recorded run of the first sample of each class."""
    x = draw(model, setting, CLASSES, seed, record=True).trajectory
    assert x is not None
    alpha, sigma, _, _ = (c.float() for c in grid_of(model, setting).scales)
    spread = model.output.sigma_data
    scale = spread / ((alpha * spread) ** 2 + sigma**2).sqrt()
    return Walk(setting, x * scale.reshape(-1, *(1,) * (x.ndim - 1)))
