r"""One trainer for every judge: data, noise at random levels, a loss of the answers.

    for i = 0 .. steps - 1:
        x0, target = draw(generator, batch)
        t    ~ levels,   eps ~ N(0, I),   x = alpha(t) x0 + sigma(t) eps        (clean=True: x = x0, judge(x0))
        loss = loss(judge(x, level), target)
        AdamW at rate lr (1 - i / steps)

Everything random comes from one generator, so equal seeds give equal weights to the bit (same machine and threads). The
big loop of `wayfield train` reads stored sets and can be resumed; judges are trained in a minute on what a function
draws, often pictures rendered on the spot, and need neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, ShapeError
from wayfield.core.path import Path, Scales
from wayfield.core.shapes import check_samples, expand, tree_map
from wayfield.progress import track
from wayfield.train.levels import Levels

__all__ = ["noised", "train_judge"]

_CHECK_EVERY = 100
_OPEN = 1e-12  # quantiles of 0 and 1 are infinite


def train_judge(
    judge: nn.Module,
    draw: Callable[[torch.Generator, int], tuple[Tensor, Any]],
    loss: Callable[[Tensor, Any], Tensor],
    *,
    path: Path,
    steps: int,
    batch: int = 256,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    levels: Levels | tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    parameters: Iterable[nn.Parameter] | None = None,
    clean: bool = False,
    progress: bool = False,
) -> list[float]:
    """Train a judge in place, leave it in evaluation mode, and return the loss of every step.

    judge: called as judge(x, level) with scales (batch,), or as judge(x0) if clean / draw: (generator, n) -> clean data
    (n, *D) and targets, tensors or nests of them / loss: (answers, targets) -> () / levels: a distribution of training
    times, or bounds in [0, 1] of the path's clock for uniform ones / parameters: to train, all by default.
    Raises RangeError, DTypeError or ShapeError for settings, data and losses that do not fit, NonFiniteError naming the
    step if the loss is not finite.
    """
    _check(steps, batch, lr, weight_decay, levels)
    chosen = [p for p in (judge.parameters() if parameters is None else parameters) if p.requires_grad]
    if not chosen:
        remedy = "Call requires_grad_(True) on what should learn."
        raise DTypeError("judge to train", got="no trainable parameter", expected="some", remedy=remedy)
    device, generator = chosen[0].device, torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(chosen, lr=lr, weight_decay=weight_decay)
    losses: list[Tensor] = []
    judge.train()
    try:
        for step in track(range(steps), "training a judge", on=progress):
            x0, target = draw(generator, batch)
            seen = _seen(x0, None if clean else path, levels, generator)
            answer = judge(*tree_map(lambda c: c.to(device), seen))
            value = _scalar(loss(answer, tree_map(lambda y: y.to(device), target)))
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.step()
            losses.append(value.detach())
            if step + 1 == steps or (step + 1) % _CHECK_EVERY == 0:
                _check_finite(losses[-_CHECK_EVERY:], step + 1)
    finally:
        judge.eval()
    return torch.stack(losses).tolist()


def noised(x0: Tensor, t: Tensor, path: Path, eps: Tensor) -> tuple[Tensor, Scales]:
    """Noisy points (n, *D) of clean data at times t (n,) or (), and the scales there in the dtype of the data."""
    scales = Scales(*(c.to(x0) for c in path.scales(t.double())))
    return expand(scales.alpha, x0) * x0 + expand(scales.sigma, x0) * eps, scales


def _seen(
    x0: Tensor, path: Path | None, levels: Levels | tuple[float, float], generator: torch.Generator
) -> tuple[Tensor] | tuple[Tensor, Scales]:
    """What the judge is called with; clean data themselves without a path."""
    check_samples("data of a judge", x0)
    if path is None:
        return (x0,)
    u = torch.rand(len(x0), generator=generator, dtype=torch.float64)
    if isinstance(levels, Levels):
        t = levels.times(u.clamp(min=_OPEN, max=1 - _OPEN), path)
    else:
        t = levels[0] + (levels[1] - levels[0]) * u
    return noised(x0, t, path, torch.randn(x0.shape, generator=generator).to(x0))


def _scalar(value: Tensor) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ShapeError("loss of a judge", got=got, expected="()", remedy="Return the mean over the rows.")
    return value


def _check_finite(losses: list[Tensor], done: int) -> None:
    """losses: of the steps before `done`; read together, so that a device need not wait at every step."""
    finite = torch.stack(losses).isfinite()
    if not bool(finite.all()):
        step = done - len(losses) + int((~finite).nonzero()[0])
        remedy = "Lower lr, or look at what draw and loss return there."
        raise NonFiniteError(f"loss of a judge at step {step}", got="NaN or inf", expected="finite", remedy=remedy)


def _check(steps: int, batch: int, lr: float, weight_decay: float, levels: Levels | tuple[float, float]) -> None:
    for name, value in (("steps", steps), ("batch", batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RangeError(f"{name} of a training", got=value, expected="an integer >= 1", remedy="Choose another.")
    for name, value, fits in (("lr", lr, lr > 0), ("weight_decay", weight_decay, weight_decay >= 0)):
        if not (fits and math.isfinite(value)):
            raise RangeError(f"{name} of a training", got=value, expected="positive", remedy="1e-3 and 0 are usual.")
    if not isinstance(levels, Levels) and not 0 <= levels[0] < levels[1] <= 1:
        remedy = "Give (first, last) on the path's clock, or a distribution of train.levels."
        raise RangeError("levels of a training", got=levels, expected="0 <= first < last <= 1", remedy=remedy)
