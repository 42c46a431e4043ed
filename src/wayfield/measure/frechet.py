r"""Fréchet distance between two sets of features, and its value without the bias of a finite sample.

How far is one cloud of points from another, judged by its mean and covariance alone? The plain answer grows as the
sample shrinks, so the answers for several sizes are also extrapolated to an infinite sample.

.. math::
    FD(m_1, S_1; m_2, S_2) &= |m_1 - m_2|^2 + \mathrm{tr}\bigl(S_1 + S_2 - 2 (S_1 S_2)^{1/2}\bigr) \\
                           &= |m_1 - m_2|^2 + \min_{U^T U = I} \|A_1 - A_2 U\|_F^2, \qquad A_i A_i^T = S_i \\
    FD_N &\approx FD_\infty + c / N

with :math:`m_i` (d,) the means and :math:`S_i` (d, d) the covariances with divisor N - 1. The second line is the one
computed, in float64: :math:`A_i` comes from the symmetric eigendecomposition of :math:`S_i`, the best orthogonal U from
the singular values of :math:`A_2^T A_1`, whose squares are the eigenvalues of
:math:`S_1^{1/2} S_2 S_1^{1/2}`. It is a sum of squares: never negative, exact zero for equal moments up to 1e-15 of the
trace, and without the cancellation of the first line, whose eigenvalues of the non-symmetric :math:`S_1 S_2` lose half
the digits wherever a covariance is singular.

Name a distance after its features ("pixel FD", "FD in DINOv2 ViT-L/14 features"). It is **never called FID**: that name
belongs to one Inception network, one resize and 50 000 samples. Distances in different features cannot be compared.

References:
    Dowson, Landau, The Fréchet distance between multivariate normal distributions, 1982.
    Bhatia, Jain, Lim, On the Bures-Wasserstein distance between positive definite matrices, 2019, theorem 1.
    Heusel et al., GANs trained by a two time-scale update rule, 2017, eq. 6.
    Chong, Forsyth, Effectively unbiased FID and Inception score, 2020 (FD_inf).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wayfield.core.errors import DeviceError, DTypeError, NonFiniteError, RangeError, ShapeError
from wayfield.core.shapes import check_samples

__all__ = [
    "FrechetFit",
    "Moments",
    "SmallSampleWarning",
    "check_features",
    "check_finite",
    "check_pair",
    "frechet_distance",
    "frechet_infinity",
]


class SmallSampleWarning(UserWarning):
    """A Fréchet distance was taken from fewer than 10 d samples: its bias is visible."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a set of features: all that a Fréchet distance needs, and small enough to store.

    mean: shape (d,), float64 / cov: shape (d, d), float64, symmetric positive semi-definite, divisor n - 1 /
    n: number of samples behind them, at least 2.

    Raises DTypeError (not float64), ShapeError, NonFiniteError, and RangeError (n < 2, or cov not symmetric).
    """

    mean: Tensor
    cov: Tensor
    n: int

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("cov", self.cov)):
            if value.dtype != torch.float64:
                raise DTypeError(f"Moments.{name}", got=value.dtype, expected="float64", remedy="Cast with .double().")
            check_finite(f"Moments.{name}", value)
        d = self.mean.shape[0] if self.mean.ndim == 1 else -1
        if d < 1 or self.cov.shape != (d, d):
            got = f"{tuple(self.mean.shape)} and {tuple(self.cov.shape)}"
            raise ShapeError(
                "Moments", got=got, expected="mean (d,) and cov (d, d)", remedy="Use Moments.of(features)."
            )
        if self.n < 2:
            raise RangeError("Moments.n", got=self.n, expected="at least 2", remedy="A covariance needs two samples.")
        if not torch.allclose(self.cov, self.cov.T, rtol=1e-5, atol=1e-6 * float(self.cov.abs().max())):
            raise RangeError(
                "Moments.cov", got="an asymmetric matrix", expected="cov = cov.T", remedy="Check its source."
            )

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Moments of `features`, shape (N, d), any floating type, N >= 2. Raises what `check_features` raises."""
        x = check_features("features", features)
        mean = x.mean(0)
        centred = x - mean
        return cls(mean, centred.T @ centred / (x.shape[0] - 1), x.shape[0])

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets together, exactly (Chan, Golub, LeVeque 1983): for features that come in batches."""
        _check_match(self, other)
        n = self.n + other.n
        delta = other.mean - self.mean
        scatter = (self.n - 1) * self.cov + (other.n - 1) * other.cov + self.n * other.n / n * torch.outer(delta, delta)
        return Moments(self.mean + delta * (other.n / n), scatter / (n - 1), n)


class FrechetFit(NamedTuple):
    """FD_N against 1/N: `value` is the intercept FD_inf, `slope` the bias c in FD_N = FD_inf + c/N.

    sizes, distances: the fitted points, N and FD_N. `value` may fall a little below 0 when the truth is near 0.
    """

    value: float
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def frechet_distance(real: Tensor | Moments, fake: Tensor | Moments, *, allow_small: bool = False) -> float:
    """Squared Fréchet (2-Wasserstein) distance between the Gaussians with the moments of `real` and `fake`.

    real, fake: features, shape (N, d) and (M, d), or stored `Moments`. The result does not depend on the row order.
    allow_small: accept fewer than 2 d samples, where the covariance is singular or nearly so and the distance is mostly
        bias; never compare such values across sample sizes.

    Raises RangeError (fewer than 2 d samples; a covariance with negative eigenvalues), ShapeError, DTypeError,
    DeviceError, NonFiniteError. Warns `SmallSampleWarning` below 10 d samples, with or without `allow_small`.

    Source: Heusel et al. 2017, eq. 6. torchmetrics has the form only behind a network and a uint8 picture path, in the
    float type of the features and with the non-symmetric eigenvalues that lose half the digits; hence this one.
    """
    a, b = _moments(real), _moments(fake)
    _check_match(a, b)
    _check_counts(min(a.n, b.n), a.mean.shape[0], allow_small)
    return _squared_distance(a.mean, _factor(a.cov), b.mean, _factor(b.cov))


def frechet_infinity(
    real: Tensor | Moments,
    fake: Tensor,
    *,
    sizes: int = 15,
    smallest: int | None = None,
    seed: int = 0,
    allow_small: bool = False,
) -> FrechetFit:
    """FD_inf: the Fréchet distance `fake` would have with infinitely many samples, by a line through FD_N over 1/N.

    real: the reference, features (N, d) or `Moments`; held fixed, as in the paper, so a bias of its own finite N stays.
    fake: features, shape (M, d). Random subsets of it are scored at `sizes` sizes spaced evenly from `smallest` to M.
    smallest: least subset size; default max(M // 10, 2 d), the paper's 5000 of 50 000.
    seed: of the subsets. allow_small: as in `frechet_distance`, here for `smallest` and the reference.

    Raises RangeError (sizes < 2; smallest not in 2..M-1, or below 2 d unless allowed) and what `frechet_distance`
    raises. Source: Chong and Forsyth 2020 (their quasi-random latents aside).
    """
    a, x = _moments(real), check_features("fake", fake)
    m, d = x.shape
    _check_match(a, Moments.of(x))
    low = max(m // 10, 2 * d) if smallest is None else smallest
    if sizes < 2 or not 2 <= low < m:
        got = f"sizes={sizes}, smallest={low} of {m} samples"
        raise RangeError("FD_inf", got=got, expected="sizes >= 2, 2 <= smallest < M", remedy="Give more samples.")
    _check_counts(min(a.n, low), d, allow_small, warn=False)
    counts = sorted({round(low + (m - low) * i / (sizes - 1)) for i in range(sizes)})
    generator = torch.Generator().manual_seed(seed)
    root, distances = _factor(a.cov), []
    for count in counts:
        subset = Moments.of(x[torch.randperm(m, generator=generator)[:count].to(x.device)])
        distances.append(_squared_distance(a.mean, root, subset.mean, _factor(subset.cov)))
    z, y = 1 / torch.tensor(counts, dtype=torch.float64), torch.tensor(distances, dtype=torch.float64)
    slope = ((z - z.mean()) * (y - y.mean())).sum() / (z - z.mean()).square().sum()
    return FrechetFit(float(y.mean() - slope * z.mean()), float(slope), tuple(counts), tuple(distances))


def check_features(what: str, features: Tensor, *, least: int = 2) -> Tensor:
    """`features`, shape (N, d), as detached float64.

    Raises DTypeError (no floating tensor), ShapeError (not two axes, or empty), NonFiniteError (NaN or infinity),
    RangeError (N < least). `what` names the argument in the message.
    """
    check_samples(what, features)
    if features.ndim != 2:
        remedy = "Flatten or embed the samples first: x.flatten(1)."
        raise ShapeError(what, got=tuple(features.shape), expected="features (N, d)", remedy=remedy)
    if features.shape[0] < least:
        raise RangeError(what, got=f"{features.shape[0]} samples", expected=f"at least {least}", remedy="Give more.")
    return check_finite(what, features.detach().double())


def check_pair(real: Tensor, fake: Tensor, *, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both sets through `check_features`; raises ShapeError if their d differ, DeviceError if their devices do."""
    x, y = check_features("first set", real, least=least), check_features("second set", fake, least=least)
    _check_same(x.shape[1], y.shape[1], x.device, y.device)
    return x, y


def check_finite(what: str, x: Tensor) -> Tensor:
    """`x` of any shape (B, *D) as it is; raises NonFiniteError if it has a NaN or an infinity."""
    if not bool(x.isfinite().all()):
        count = int((~x.isfinite()).sum())
        remedy = "Find the first bad sample: x.isfinite().flatten(1).all(1)."
        raise NonFiniteError(what, got=f"{count} values NaN or infinite", expected="finite values", remedy=remedy)
    return x


def _check_same(d: int, d_other: int, device: torch.device, device_other: torch.device) -> None:
    if d != d_other:
        remedy = "Use one feature extractor for both sets."
        raise ShapeError("feature dimensions", got=f"{d} and {d_other}", expected="the same d", remedy=remedy)
    if device != device_other:
        remedy = "Move one of them with .to(device)."
        raise DeviceError("features", got=f"{device} and {device_other}", expected="one device", remedy=remedy)


def _check_match(a: Moments, b: Moments) -> None:
    _check_same(a.mean.shape[0], b.mean.shape[0], a.mean.device, b.mean.device)


def _check_counts(n: int, d: int, allow_small: bool, *, warn: bool = True) -> None:
    if n < 2 * d and not allow_small:
        remedy = "Give more samples, use a smaller feature, or pass allow_small=True and report the bias."
        raise RangeError(
            "samples for a Fréchet distance", got=f"{n} in {d} dimensions", expected=f">= {2 * d}", remedy=remedy
        )
    if n < 10 * d and warn:
        text = (
            f"Fréchet distance from {n} samples in {d} dimensions is biased upwards; use {10 * d} or frechet_infinity."
        )
        warnings.warn(text, SmallSampleWarning, stacklevel=3)


def _moments(features: Tensor | Moments) -> Moments:
    return features if isinstance(features, Moments) else Moments.of(features)


def _factor(cov: Tensor) -> Tensor:
    """A with A A^T = cov, shape (d, d)."""
    values, vectors = torch.linalg.eigh(cov)
    top = values[-1].clamp_min(0)
    if bool(values[0] < -1e-5 * top):
        remedy = "A covariance has none; check its source and precision."
        raise RangeError("covariance", got=f"eigenvalue {float(values[0]):.3g}", expected=">= 0", remedy=remedy)
    # Rounding leaves up to d eps top where the truth is 0; its square root (1e-8) would be seen in the distance.
    noise = cov.shape[0] * torch.finfo(cov.dtype).eps * top
    return vectors * torch.where(values > noise, values, 0).sqrt()


def _squared_distance(mean_a: Tensor, a: Tensor, mean_b: Tensor, b: Tensor) -> float:
    u, _, vh = torch.linalg.svd(b.T @ a)
    return float((mean_a - mean_b).square().sum() + (a - b @ (u @ vh)).square().sum())
