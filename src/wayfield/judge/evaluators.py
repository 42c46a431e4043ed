r"""Evaluators: judges of noisy points that say how good a point is for its condition, one number, higher is better.

They choose among candidates (`guide.dynamic`), so what counts is order. An evaluator is a judge of noisy points, whose
answer a head turns into a score, see heads.py. What is learned extrapolates badly: data of `Realism` should hold
samples of the very model at all the scales among which is to be chosen, and outside of the levels of training a point
is read as if at their border. `weigh` weighs the loss by alpha^2 / (alpha^2 + sigma^2), for details that high noise
hides.

How far an evaluator can be trusted is measured on held-out data, level by level: `area` is the probability that what is
better scores higher. Its `quality`, 2 area - 1, counts as a weight in `Greedy`; below 0.55 it is 0, and a choice is not
left to chance.

Reference: Papalampidi et al. 2025, arXiv 2509.16131. Quality, its bar and `weigh` are this library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import Path
from wayfield.core.shapes import expand
from wayfield.field.cond import Cond
from wayfield.field.denoiser import Landing
from wayfield.judge.heads import Head
from wayfield.judge.noisy import Scaled
from wayfield.judge.training import noised, train_judge
from wayfield.train.levels import Levels

__all__ = ["Evaluator", "Seen", "area", "measure", "train_evaluator"]

CHANCE = 0.55
"""The area below which an evaluator counts nothing."""


@final
class Evaluator(nn.Module):
    """A judge with a head, called as evaluator(x, level, cond) -> (m,). judge: judge(x, level) -> (m, K), such as
    `Noisy(MLPJudge(...))`; it is left as it is, train it with `train_evaluator`.

    Raises ShapeError for answers that are not (m, K).
    """

    span: Tensor
    borders: Tensor
    table: Tensor

    def __init__(self, judge: nn.Module, head: Head) -> None:
        super().__init__()
        self.judge, self.head = judge, head
        self.register_buffer("span", torch.tensor([-math.inf, math.inf], dtype=torch.float64))
        self.register_buffer("borders", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("table", torch.ones(1, dtype=torch.float64))
        self.eval()

    def forward(self, x: Tensor, level: Scaled, cond: Cond) -> Tensor:
        """Scores (m,) of points x (m, *D) at a level whose scales are () or (m,)."""
        return self.head(self.answer(x, level), cond)

    def answer(self, x: Tensor, level: Scaled) -> Tensor:
        """The judge's answers (m, K), at the nearest level of its training."""
        noisiest, cleanest = (0.5 * self.span).exp().to(x)  # least and largest alpha/sigma
        alpha = torch.maximum(level.alpha, noisiest * level.sigma)
        sigma = torch.maximum(level.sigma, level.alpha / cleanest)
        answer = self.judge(x, Landing(alpha, sigma))
        if answer.ndim != 2 or len(answer) != len(x):
            got, remedy = tuple(answer.shape), "Let the judge return (m, K), with K = 1 for a single number."
            raise ShapeError("answers of an evaluator", got=got, expected=f"({len(x)}, K)", remedy=remedy)
        return answer

    def quality(self, level: Scaled) -> Tensor:
        """How far it can be trusted at a level, in [0, 1] with the shape of the scales; 1 if never measured."""
        log_snr = 2 * (level.alpha.double() / level.sigma).log()
        return self.table.take(torch.bucketize(log_snr, self.borders))  # an index () in brackets would be read

    def trust(self, areas: Sequence[tuple[float, float]]) -> None:
        """Set `quality` from (log-SNR, area) of some levels, rising; each holds as far as half way to the next.

        Raises RangeError for levels that do not rise.
        """
        levels, values = torch.tensor(areas, dtype=torch.float64).reshape(-1, 2).T
        if not len(levels) or bool((levels.diff() <= 0).any()):
            remedy = "Sort them by log-SNR."
            raise RangeError("levels of an evaluator", got=levels.tolist(), expected="rising", remedy=remedy)
        self.borders = ((levels[1:] + levels[:-1]) / 2).to(self.span.device)
        self.table = torch.where(values < CHANCE, 0, 2 * values - 1).to(self.span.device)


def train_evaluator(
    evaluator: Evaluator,
    draw: Callable[[torch.Generator, int], tuple[Tensor, Any]],
    *,
    path: Path,
    steps: int,
    batch: int = 128,
    lr: float = 1e-3,
    levels: Levels | tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    weigh: bool = False,
    progress: bool = False,
) -> list[float]:
    """Train an evaluator in place on noisy points and return the losses; arguments and errors as `train_judge`.

    draw: (generator, n) -> clean data (n, *D), in pairs (n, 2, *D) for `Preference`, and the head's targets / weigh:
    less where there is more noise, see the module.
    """
    head = evaluator.head

    def first(generator: torch.Generator, n: int) -> tuple[Tensor, Any]:
        both, _ = draw(generator, n)  # the difference is noise-free: both get the same noise
        return both[:, 0], both[:, 1] - both[:, 0]

    def loss(seen: Any, target: Any) -> Tensor:
        x, level = seen
        answer = evaluator.answer(x, level)
        if head.pairs:
            answer = torch.stack([answer, evaluator.answer(x + expand(level.alpha, x) * target, level)], 1)
        each = head.loss(answer, target)
        return (each * level.alpha**2 / (level.alpha**2 + level.sigma**2) if weigh else each).mean()

    evaluator.span = torch.full_like(evaluator.span, math.inf) * torch.tensor([-1.0, 1.0]).to(evaluator.span)
    losses = train_judge(
        _Points(evaluator),
        first if head.pairs else draw,
        loss,
        path=path,
        steps=steps,
        batch=batch,
        lr=lr,
        levels=levels,
        seed=seed,
        progress=progress,
    )
    u = torch.tensor([0.01, 0.99], dtype=torch.float64)
    times = levels.times(u, path) if isinstance(levels, Levels) else levels[0] + (levels[1] - levels[0]) * u
    evaluator.span = path.log_snr(times).flip(0).to(evaluator.span)
    return losses


@final
class _Points(nn.Module):
    """Hands the trainer's noisy points on to the loss, which may want a judge's answer at others too."""

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator

    def forward(self, x: Tensor, level: Scaled) -> tuple[Tensor, Scaled]:
        """What it was given."""
        return x, level


class Seen(NamedTuple):
    """Clean data (n, *D) and the conditions they are judged for."""

    x: Tensor
    cond: Cond


@torch.no_grad()
def measure(
    evaluator: Evaluator, better: Seen, worse: Seen, *, path: Path, times: Sequence[float], seed: int = 0
) -> tuple[tuple[float, float], ...]:
    """(log-SNR, area) at each of the times, rising, on held-out data; then `Evaluator.trust` keeps them.

    better, worse: what should score higher, and lower; the same data with right and wrong conditions will do / times:
    in (0, 1) of the path / seed: of the noise, the same for both. Raises NonFiniteError.
    """
    out = []
    for t in torch.tensor(times, dtype=torch.float64):
        scores = []
        for x, cond in (better, worse):
            eps = SeededNoise(seed, range(len(x))).draw(x.shape[1:], Address(0)).to(x)
            noisy, level = noised(x, t, path, eps)
            scores.append(evaluator(noisy, level, cond))
        if not all(bool(score.isfinite().all()) for score in scores):
            got, remedy = f"NaN or infinity at t = {float(t):g}", "Look at the judge, and at its classes."
            raise NonFiniteError("scores of an evaluator", got=got, expected="finite", remedy=remedy)
        out.append((float(path.log_snr(t)), area(*scores)))
    areas = tuple(sorted(out))
    evaluator.trust(areas)
    return areas


def area(better: Tensor, worse: Tensor) -> float:
    """Probability that one of `better` (n,) exceeds one of `worse` (m,), ties half: the area under the ROC curve."""
    low = worse.sort().values
    below = torch.searchsorted(low, better) + torch.searchsorted(low, better, right=True)
    return float(below.double().mean()) / (2 * len(low))
