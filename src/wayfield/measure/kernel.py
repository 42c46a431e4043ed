r"""Kernel distance (KID): an unbiased two-sample distance for small samples.

The Fréchet distance is biased for few samples and sees two moments only. The squared maximum mean discrepancy with a
cubic kernel has an unbiased estimate for every sample size and sees three.

.. math::
    k(x, y) &= (x \cdot y / d + 1)^3 \\
    MMD^2 &= \frac{1}{m (m - 1)} \sum_{i \ne j} \bigl[k(x_i, x_j) + k(y_i, y_j)\bigr]
             - \frac{2}{m^2} \sum_{i, j} k(x_i, y_j)

with :math:`x_i, y_j` (d,) the features of m real and m fake samples. KID is the mean over random subsets. As with the
Fréchet distance, name it after its features: "KID" alone means Inception features.

Reference:
    Binkowski, Sutherland, Arbel, Gretton, Demystifying MMD GANs, 2018, section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.measure.frechet import check_pair

__all__ = ["KID", "cubic_kernel", "kid", "mmd2"]


class KID(NamedTuple):
    """Mean and standard deviation (divisor: number of subsets) of the subset values.

    Subsets of one sample overlap, so std / sqrt(subsets) is **not** the standard error of the mean; the mean may be
    negative when the sets are alike.
    """

    mean: float
    std: float


def kid(real: Tensor, fake: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KID:
    """Kernel distance: mean of `subsets` unbiased MMD^2 values of `subset_size` rows each, drawn without replacement.

    real, fake: features, shape (N, d) and (M, d); with N, M >= subset_size. seed: of the subsets.

    Raises RangeError (subsets < 1; subset_size < 2 or above N or M), ShapeError, DTypeError, DeviceError,
    NonFiniteError. Source: Binkowski et al. 2018; subsets as in dgm-eval. torchmetrics has the same estimate
    (`poly_mmd`, compared in the tests) but draws its subsets from the global generator.
    """
    x, y = check_pair(real, fake)
    few = min(x.shape[0], y.shape[0])
    if subsets < 1 or not 2 <= subset_size <= few:
        got, expected = f"{subsets} subsets of {subset_size} from {few} samples", f">= 1 subsets of 2..{few}"
        raise RangeError("KID subsets", got=got, expected=expected, remedy="Lower subset_size or give more samples.")
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(subsets, dtype=torch.float64)
    for i in range(subsets):
        rows, cols = (torch.randperm(z.shape[0], generator=generator)[:subset_size].to(z.device) for z in (x, y))
        values[i] = mmd2(x[rows], y[cols])
    return KID(float(values.mean()), float(values.std(correction=0)))


def mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased MMD^2 with the cubic kernel: x (n, d), y (m, d), n, m >= 2 -> scalar. Differentiable, unchecked.

    Source: Gretton et al., A kernel two-sample test, 2012, lemma 6.
    """
    n, m = x.shape[0], y.shape[0]
    k_xx, k_yy = cubic_kernel(x, x), cubic_kernel(y, y)
    within = (k_xx.sum() - k_xx.trace()) / (n * (n - 1)) + (k_yy.sum() - k_yy.trace()) / (m * (m - 1))
    return within - 2 * cubic_kernel(x, y).mean()


def cubic_kernel(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x.y / d + 1)^3: (n, d), (m, d) -> (n, m); scikit-learn's `polynomial_kernel` defaults, in torch."""
    return (x @ y.T / x.shape[1] + 1) ** 3
