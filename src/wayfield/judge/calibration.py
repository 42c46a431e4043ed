r"""How sure a judge is against how often it is right, at every noise level.

.. math:: \mathrm{ECE}_t = \sum_b \frac{n_b}{n}\, |\mathrm{acc}_b - \mathrm{conf}_b|, \qquad
   \text{integral ECE} = \operatorname{mean}_t \mathrm{ECE}_t, \qquad
   T = \arg\min_T\; -\!\sum_k \log \mathrm{softmax}(f_k / T)_{y_k}

=======  ================================================================  =========
symbol   meaning                                                           shape
=======  ================================================================  =========
conf     probability that the judge gives its first choice, in [0, 1]      (n,)
correct  whether that choice is right                                      (n,)
b        equal bins ((b - 1)/bins, b/bins] of the confidence
f, y     logits and labels                                                 (n, K), (n,)
=======  ================================================================  =========

A judge of noisy data can be asked about the noisy points ("noisy", called as judge(x, level)) or about a model's
prediction of the clean data there ("clean", called as judge(x0)); the two are calibrated differently, so `on` says
which. References: Guo et al. 2017, arXiv 1706.04599 (ECE, temperature); the mean over levels: Ma et al. 2024 (EluCD),
arXiv 2310.11311.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, ShapeError, UnsupportedError, unknown_name
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import Path
from wayfield.field.denoiser import Denoiser
from wayfield.judge.training import noised

__all__ = [
    "IntegralECE",
    "Reliability",
    "ece",
    "fit_temperature",
    "fit_temperatures",
    "integral_ece",
    "logits_at",
    "reliability",
]

_ROWS = 512
_COLDEST, _HOTTEST = 1e-3, 1e3
On = Literal["noisy", "clean"]


class Reliability(NamedTuple):
    """The reliability curve, each (bins,): rows in the bin, mean confidence and accuracy there (NaN in empty ones)."""

    rows: Tensor
    confidence: Tensor
    accuracy: Tensor


class IntegralECE(NamedTuple):
    """mean: over the levels / times, ece, accuracy: of each level, in the order given."""

    mean: float
    times: tuple[float, ...]
    ece: tuple[float, ...]
    accuracy: tuple[float, ...]


def reliability(conf: Tensor, correct: Tensor, bins: int = 15) -> Reliability:
    """conf: (n,) in [0, 1] / correct: (n,) bool, or 0 and 1. Raises ShapeError, RangeError or NonFiniteError."""
    if conf.ndim != 1 or conf.shape != correct.shape or not len(conf):
        got = f"{tuple(conf.shape)} and {tuple(correct.shape)}"
        raise ShapeError("confidences", got=got, expected="(n,) each, not empty", remedy="Give one of each per row.")
    if bins < 1:
        raise RangeError("bins", got=bins, expected="at least 1", remedy="15 is customary.")
    p = conf.double()
    if not bool(p.isfinite().all()):
        remedy = "Look at the judge's logits."
        raise NonFiniteError("confidences", got="NaN or inf", expected="finite", remedy=remedy)
    if float(p.min()) < 0 or float(p.max()) > 1:
        got = f"{float(p.min()):g}..{float(p.max()):g}"
        raise RangeError("confidences", got=got, expected="0..1", remedy="Apply softmax first.")
    edges = torch.arange(1, bins, dtype=p.dtype, device=p.device) / bins
    where = torch.bucketize(p, edges)
    count, sure, right = (p.new_zeros(bins).index_add_(0, where, v) for v in (torch.ones_like(p), p, correct.to(p)))
    return Reliability(count, sure / count, right / count)


def ece(conf: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]; arguments and errors as `reliability`."""
    rows, sure, right = reliability(conf, correct, bins)
    return float((rows * (right - sure).nan_to_num(0).abs()).sum() / rows.sum())


@torch.no_grad()
def logits_at(
    judge: Callable[..., Tensor],
    x0: Tensor,
    t: float,
    *,
    path: Path,
    on: On = "noisy",
    denoiser: Denoiser | None = None,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Tensor:
    """A judge's answers (n, K) for clean data x0 (n, *D) noised to time t in [0, 1] of the path.

    on: what it is shown, see the module / denoiser, cond: for "clean", who predicts the clean data and what it is told,
    by default nothing; its path must be `path` / seed: of the noise, which sample k keeps in any batch.
    Raises UnknownNameError, RangeError, or UnsupportedError for "clean" without a denoiser of that path.
    """
    if on not in ("noisy", "clean"):
        raise unknown_name("judge input", on, ("noisy", "clean"))
    if not 0 <= t <= 1:
        raise RangeError("t", got=t, expected="[0, 1]", remedy="t = 0 is data and t = 1 is noise.")
    if on == "clean" and (denoiser is None or denoiser.path != path):
        got = "no denoiser" if denoiser is None else f"one of {denoiser.path}"
        remedy = "Pass the denoiser that predicts the clean data."
        raise UnsupportedError("judge of clean predictions", got=got, expected=f"one of {path}", remedy=remedy)
    out, time = [], torch.tensor(t, dtype=torch.float64)
    for rows in torch.arange(len(x0)).split(_ROWS):
        part = x0[rows]
        eps = SeededNoise(seed, rows.tolist()).draw(part.shape[1:], Address(0)).to(part)
        x, scales = noised(part, time, path, eps)
        if denoiser is None or on == "noisy":
            out.append(judge(x, scales))
        else:
            told = None if cond is None else {name: value[rows] for name, value in cond.items()}
            out.append(judge(denoiser(x, t, told).x0))
    return torch.cat(out)


def integral_ece(
    judge: Callable[..., Tensor],
    x0: Tensor,
    labels: Tensor,
    times: Sequence[float],
    *,
    path: Path,
    on: On = "noisy",
    denoiser: Denoiser | None = None,
    cond: Mapping[str, Any] | None = None,
    bins: int = 15,
    seed: int = 0,
) -> IntegralECE:
    """ECE at each of the times and their mean. labels: (n,) / the rest as `logits_at`."""
    if not times:
        raise RangeError("times", got="none", expected="at least one", remedy="Take those of the grid.")
    errors, shares = [], []
    for t in times:
        logits = logits_at(judge, x0, t, path=path, on=on, denoiser=denoiser, cond=cond, seed=seed)
        conf, choice = _checked(logits, labels).double().softmax(1).max(1)
        errors.append(ece(conf.clamp(max=1), choice == labels, bins))
        shares.append(float((choice == labels).double().mean()))
    return IntegralECE(sum(errors) / len(errors), tuple(times), tuple(errors), tuple(shares))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature in [1e-3, 1e3] that divides logits (n, K) to the smallest negative log-likelihood of labels (n,).

    The likelihood is concave in 1/T; its derivative is bisected. At a bound there is no minimum inside: 1e-3 where all
    answers are right, 1e3 where they say nothing. Raises ShapeError, DTypeError, RangeError or NonFiniteError.
    """
    f = _checked(logits, labels).double()
    right = f.gather(1, labels[:, None])[:, 0]
    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    for _ in range(60):
        mid = (low + high) / 2
        rate = float(((f * (f * math.exp(-mid)).softmax(1)).sum(1) - right).mean())
        low, high = (mid, high) if rate > 0 else (low, mid)  # too sure: hotter
    return math.exp((low + high) / 2)


def fit_temperatures(
    judge: Callable[..., Tensor],
    x0: Tensor,
    labels: Tensor,
    times: Sequence[float],
    *,
    path: Path,
    on: On = "noisy",
    denoiser: Denoiser | None = None,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[tuple[float, float], ...]:
    """(log-SNR, temperature) of each of the times, rising in log-SNR; arguments and errors as `integral_ece`."""
    points = []
    for t in times:
        logits = logits_at(judge, x0, t, path=path, on=on, denoiser=denoiser, cond=cond, seed=seed)
        level = float(path.log_snr(torch.tensor(t, dtype=torch.float64)))
        points.append((level, fit_temperature(logits, labels)))
    return tuple(sorted(points))


def _checked(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        got = f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        raise ShapeError("logits and labels", got=got, expected="(n, K >= 2) and (n,)", remedy="One label per row.")
    if labels.is_floating_point():
        raise DTypeError("labels", got=labels.dtype, expected="integers", remedy="Cast with .long().")
    if not bool(logits.isfinite().all()):
        remedy = "Look at the judge."
        raise NonFiniteError("logits", got="NaN or inf", expected="finite", remedy=remedy)
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        got = f"{int(labels.min())}..{int(labels.max())}"
        raise RangeError("labels", got=got, expected=f"0..{logits.shape[1] - 1}", remedy="Number classes from 0.")
    return logits
