r"""Questions before a long fit: how noisy is the gradient, is it unbiased, and does the guide cover the model?

Over independent draws g of the estimator of one parameter's gradient,

.. math::
    \text{SNR} = \frac{\lVert \mathbb{E} g \rVert}{\sqrt{\operatorname{tr} \operatorname{Var} g}}, \qquad
    z = \frac{\bar g - \bar r}{\sqrt{s_g^2 / N + s_r^2 / N}}

The norm of a mean of N draws is too large by tr Var / N in the square, which is taken off. r are draws of a reference:
the same program with `Enum()` at every site, or the exact gradient. If both have the same mean, every z is a standard
normal number for large N; the largest of K exceeds a limit with probability below K erfc(limit / sqrt 2), whatever
the dependence between them.

Shapes: mean, variance and z those of the parameter.

References: Rainforth et al. 2018, Tighter variational bounds are not necessarily better, arXiv 1802.04537 (SNR); Yao et
al. 2018, Yes, but did it work?, arXiv 1802.02538 (guides by Pareto k).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError, UnsupportedError, unknown_name
from wayfield.train.checks import check_number
from wayfield.vi.feed import step_seed
from wayfield.vi.objective import Objective
from wayfield.vi.parameters import Named, Parameters, named
from wayfield.vi.program import Program
from wayfield.vi.reports import BiasTest, GradientReport, GradientRow, GuideReport
from wayfield.vi.run import Run
from wayfield.vi.seeding import seeded
from wayfield.vi.weights import effective_sample_size, pareto_k, pareto_limit

__all__ = ["bias_test", "gradient_report", "guide_report"]


def gradient_report(
    objective: Objective, parameters: Parameters, *args: Any, draws: int = 200, seed: int = 0
) -> GradientReport:
    """Mean, variance and signal-to-noise ratio of the gradient of every parameter.

    args: of the objective / draws: independent calls, at least 2 / seed: draw k has a seed of its own. A parameter the
    objective does not use is shown as such. Raises RangeError; UnsupportedError where none is used; NonFiniteError.
    """
    trained = named(parameters)
    found = _moments(objective, trained, args, draws, seed, 0)
    if not any(found.reached.values()):
        remedy = "Give what the programs use, without detach()."
        got, want = f"no gradient for {trained}", "some"
        raise UnsupportedError(f"parameters of {objective.name}", got=got, expected=want, remedy=remedy)
    rows = [GradientRow(k, found.mean[k], found.variance[k], draws, found.reached[k]) for k in trained.tensors]
    return GradientReport(tuple(rows), float(found.values.mean()), float(found.values.std()), draws)


def bias_test(
    objective: Objective,
    reference: Objective | Mapping[str, Tensor] | Sequence[Tensor],
    parameters: Parameters,
    *args: Any,
    draws: int = 1000,
    seed: int = 0,
    false_alarm: float = 1e-4,
) -> BiasTest:
    """Compare an estimator's mean gradient with a reference's, entry by entry.

    reference: an objective with the same expectation, such as the same one with Enum() at discrete sites; or the exact
    gradients, in the parameters' order or by name / draws: of each, independent; z is normal for many, 1000 or more /
    false_alarm: probability at most that an unbiased one fails, in (0, 1). Raises RangeError, ShapeError,
    UnknownNameError for gradients that do not fit the parameters.
    """
    if not 0 < false_alarm < 1:
        remedy = "1e-4 is a good start."
        raise RangeError("false_alarm", got=false_alarm, expected="between 0 and 1", remedy=remedy)
    trained = named(parameters)
    found = _moments(objective, trained, args, draws, seed, 0)
    variance, value_z = found.variance, None
    if isinstance(reference, Objective):
        other = _moments(reference, trained, args, draws, seed, 1)
        mean = other.mean
        variance = {k: v + other.variance[k] for k, v in variance.items()}
        spread = (found.values.var() + other.values.var()) / draws
        value_z = float(_z(found.values.mean(), other.values.mean(), spread, torch.float32))
    else:
        mean = _exact(reference, trained)
    z = {k: _z(found.mean[k], mean[k], v / draws, trained.tensors[k].dtype) for k, v in variance.items()}
    entries = sum(v.numel() for v in z.values())
    tail = torch.tensor(false_alarm / (2 * max(entries, 1)), dtype=torch.float64)
    return BiasTest(z, -float(torch.special.ndtri(tail)), false_alarm, draws, value_z)


@torch.no_grad()
def guide_report(
    model: Program, guide: Program, *args: Any, draws: int = 1000, seed: int = 0, batch_dims: int = 0
) -> GuideReport:
    """Effective sample size, Pareto k and bounds from draws of the guide, for every row.

    args: of both programs / draws: at least 25 / batch_dims: leading dims of the first argument that are rows. Sites
    are drawn whatever their strategy. Raises RangeError; NonFiniteError for weights that are NaN or all zero.
    """
    pareto_limit(draws)
    batch = Objective(lambda run: torch.zeros(()), batch_dims=batch_dims, name="guide_report").batch(args)
    with seeded(seed):
        run = Run(draws, batch, choices=[], pure=True)
        q = run.simulate(guide, *args)
        log_w = run.log_density(model, q, *args) - q.log_prob
    log_w = _flat(log_w, draws, batch)
    return GuideReport(
        log_w.mean(0),
        log_w.std(0) / math.sqrt(draws),
        torch.logsumexp(log_w, 0) - math.log(draws),
        effective_sample_size(log_w),
        pareto_k(log_w),
        draws,
    )


@final
@dataclass(frozen=True, eq=False)
class _Moments:
    """Of independent gradients, by parameter: mean and variance of one; values of the objective (draws,)."""

    values: Tensor
    mean: dict[str, Tensor]
    variance: dict[str, Tensor]
    reached: dict[str, bool]


def _moments(
    objective: Objective, trained: Named, args: tuple[Any, ...], draws: int, seed: int, stage: int
) -> _Moments:
    """Draw gradients one at a time, keeping sums alone; those of a parameter that is not reached are zero."""
    check_number("draws", draws, 2, whole=True)
    check_number("seed", seed, 0, whole=True)
    tensors = trained.tensors
    mean = {k: torch.zeros(p.shape, dtype=torch.float64) for k, p in tensors.items()}  # not every device has float64
    squares = {k: torch.zeros_like(v) for k, v in mean.items()}
    values, reached = [], dict.fromkeys(tensors, False)
    with trained.still():
        for k in range(draws):
            estimate = objective(*args, seed=step_seed(seed, k, stage))
            values.append(estimate.value.cpu().double())
            if not estimate.surrogate.requires_grad:
                continue
            found = torch.autograd.grad(estimate.surrogate, list(tensors.values()), allow_unused=True)
            for (name, m), g in zip(mean.items(), found, strict=True):
                reached[name] |= g is not None
                g = torch.zeros_like(m) if g is None else g.cpu().double()
                apart = g - m
                m += apart / (k + 1)
                squares[name] += apart * (g - m)
    if spoilt := [k for k, v in squares.items() if not bool(v.isfinite().all())]:
        remedy = "fit names the site where it happens; keep scales from zero."
        what = f"gradient of parameter {spoilt[0]!r}"
        raise NonFiniteError(what, got="NaN or infinity", expected="finite numbers", remedy=remedy)
    return _Moments(torch.stack(values), mean, {k: v / (draws - 1) for k, v in squares.items()}, reached)


def _exact(given: Mapping[str, Tensor] | Sequence[Tensor], trained: Named) -> dict[str, Tensor]:
    """Exact gradients by the parameters' names."""
    names = list(trained.tensors)
    by_name = given if isinstance(given, Mapping) else dict(zip(names, given, strict=False))
    count = len(given)
    if missing := [k for k in names if k not in by_name] or [k for k in by_name if k not in names]:
        raise unknown_name("parameter in the reference", missing[0], names)
    if count != len(names):
        remedy = f"Give one for each of {names}."
        raise ShapeError("exact gradients", got=f"{count} tensors", expected=len(names), remedy=remedy)
    for k, p in trained.tensors.items():
        if by_name[k].shape != p.shape:
            got, remedy = tuple(by_name[k].shape), "A gradient has its parameter's shape."
            raise ShapeError(f"exact gradient of {k!r}", got=got, expected=tuple(p.shape), remedy=remedy)
    return {k: by_name[k].detach().cpu().double() for k in trained.tensors}


def _z(a: Tensor, b: Tensor, variance: Tensor, dtype: torch.dtype) -> Tensor:
    """(a - b) in standard errors; rounding counts as one where two exact estimators are compared."""
    largest = torch.maximum(a.abs(), b.abs()).max() if a.numel() else a.sum()
    rounding = 64 * torch.finfo(dtype).eps * largest
    difference, error = a - b, (variance + rounding.square()).sqrt()
    return torch.where(difference == 0, torch.zeros_like(difference), difference / error)


def _flat(log_w: Tensor, draws: int, batch: tuple[int, ...]) -> Tensor:
    """Log weights (draws, *batch), float64, without the dims of a guide's own particles, which it has reduced."""
    extra = log_w.shape[: max(0, log_w.ndim - 1 - len(batch))]
    if any(size != 1 for size in extra):
        remedy = "Give a guide that draws every choice: Reinforce() in place of Enum()."
        got = f"log weights {tuple(log_w.shape)}"
        raise UnsupportedError("guide_report", got=got, expected=(draws, *batch), remedy=remedy)
    return log_w.reshape(log_w.shape[len(extra) :]).expand(draws, *batch).cpu().double()
