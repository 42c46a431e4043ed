r"""Precision, recall, density and coverage: fidelity and diversity as two numbers instead of one.

A Fréchet distance cannot tell "few but good" from "many but bad". Balls around each sample, reaching to its k-th
neighbour, draw the support of either set; one counts who falls inside whose balls.

.. math::
    r_k(a_i; A) &= \text{distance from } a_i \text{ to its k-th nearest other point of } A \\
    \text{precision} &= \mathrm{mean}_j\, [\exists i: |x_i - y_j| \le r_k(x_i; X)] \qquad
    \text{recall} = \mathrm{mean}_i\, [\exists j: |x_i - y_j| \le r_k(y_j; Y)] \\
    \text{density} &= \mathrm{mean}_j\, \frac{1}{k} \sum_i [|x_i - y_j| < r_k(x_i; X)] \qquad
    \text{coverage} = \mathrm{mean}_i\, [\min_j |x_i - y_j| < r_k(x_i; X)]

with X: real features (N, d), Y: fake features (M, d). Precision and recall take the closed ball (<=) as their paper's
eq. 1 does, density and coverage the open one (<) as their authors' code does; both matter only where distances tie, as
for duplicates. Precision, recall and coverage lie in [0, 1]; density may exceed 1. For equal distributions the expected
coverage is 1 - prod_{i<=k} (N - i) / (N + M - i), not 1.

References:
    Kynkäänniemi et al., Improved precision and recall metric for assessing generative models, 2019, eqs. 1 and 2.
    Naeem et al., Reliable fidelity and diversity metrics for generative models, 2020, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.measure.frechet import check_features, check_pair

__all__ = ["PRDC", "neighbour_radii", "prdc"]

_BLOCK = 2**22  # distances held at once: 32 MB in float64


class PRDC(NamedTuple):
    """Precision, recall, density, coverage; see the module's formulas."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Tensor, fake: Tensor, *, k: int = 3, k_density: int = 5) -> PRDC:
    """Improved precision and recall (closed balls, `k`) and density and coverage (open balls, `k_density`).

    real, fake: features, shape (N, d) and (M, d). k, k_density: neighbours, the point itself excluded; each at least 1
        and below min(N, M). Compare values only at equal N, M and k. The result does not depend on the row order.

    Raises RangeError (k too large or below 1), ShapeError, DTypeError, DeviceError, NonFiniteError.
    Memory is bounded: distances are made in blocks of rows, O((N + M)^2 d) work in float64, from differences rather
    than inner products, so that the distance of equal points is exactly 0 and ties fall as defined.
    """
    x, y = check_pair(real, fake)
    few = min(x.shape[0], y.shape[0])
    _check_k("k", k, few)
    _check_k("k_density", k_density, few)
    radius_x, open_x = _radii(x, (k, k_density)).unbind(1)
    radius_y = _radii(y, (k,)).squeeze(1)
    inside, inside_open = 0, 0
    recalled = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
    nearest = torch.full_like(radius_x, torch.inf)
    for rows, distances in _blocks(y, x):
        inside += int((distances <= radius_x).any(1).sum())
        inside_open += int((distances < open_x).sum())
        recalled |= (distances <= radius_y[rows, None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    m = y.shape[0]
    return PRDC(
        precision=inside / m,
        recall=float(recalled.double().mean()),
        density=inside_open / (k_density * m),
        coverage=float((nearest < open_x).double().mean()),
    )


def neighbour_radii(features: Tensor, *, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row: (N, d) -> (N,), float64; duplicates count as neighbours.

    Raises RangeError (k not in 1..N-1) and what `check_features` raises. scikit-learn's `NearestNeighbors` gives the
    same (compared in the tests), on the CPU only.
    """
    x = check_features("features", features)
    _check_k("k", k, x.shape[0])
    return _radii(x, (k,)).squeeze(1)


def _check_k(name: str, k: int, n: int) -> None:
    if not 1 <= k < n:
        remedy = "Lower it or give more samples."
        raise RangeError(name, got=f"{k} with {n} samples", expected=f"1..{n - 1}", remedy=remedy)


def _radii(x: Tensor, ks: tuple[int, ...]) -> Tensor:
    """(N, len(ks)); the point itself, at distance exactly 0, is the first of the k + 1 smallest."""
    top = max(ks) + 1
    parts = [d.topk(top, dim=1, largest=False, sorted=True).values[:, list(ks)] for _, d in _blocks(x, x)]
    return torch.cat(parts)


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of `a` against all of `b`, block by block: (slice of a, distances (rows, len(b)))."""
    size = max(1, _BLOCK // b.shape[0])
    for start in range(0, a.shape[0], size):
        rows = slice(start, start + size)
        yield rows, torch.cdist(a[rows], b, compute_mode="donot_use_mm_for_euclid_dist")
