r"""How good importance weights are: effective sample size, and the shape of their tail.

.. math::
    \text{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}, \qquad
    P(w > u + x \mid w > u) \approx (1 + k x / \sigma)^{-1/k}

Weights have moments below order 1 / k only. The M largest of S weights, M = min(S / 5, 3 sqrt(S)), are taken for draws
of this generalised Pareto distribution, and k is its posterior mean by Zhang and Stephens, drawn towards 1/2 as if 10
further draws had said so. What it means:

============  ========================================================================================================
k < 0.5       the weights have a variance: the central limit theorem holds
0.5 to 0.7    no variance; averages still converge usefully, and ESS is too kind
0.7 to 1      averages need far more draws than anybody takes; with fewer than 2200 draws already above
              1 - 1 / log10(S), see `pareto_limit`
k >= 1        the weights have no mean: the guide misses mass of the model
============  ========================================================================================================

Shapes: log_w (..., S, ...), the draws on one dim, which the answer does not have.

References: Zhang & Stephens 2009, A new and efficient estimation method for the generalized Pareto distribution;
Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto smoothed importance sampling, arXiv 1507.02646; Kong 1992 (ESS).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError

__all__ = ["effective_sample_size", "pareto_k", "pareto_limit"]

_LEAST = 25  # draws, of which five are a tail
_TINY = 1e-300


def effective_sample_size(log_w: Tensor, dim: int = 0) -> Tensor:
    """How many equally weighted draws the weights are worth, 1 to S: of equal weights S.

    log_w: log weights, up to a constant; -inf is weight zero / dim: of the draws. It sees what was drawn only: a mode
    that the guide never visits does not lower it. Raises NonFiniteError for NaN, infinity, or no weight above zero.
    """
    log_w = _finite(log_w, dim)
    return (2 * torch.logsumexp(log_w, dim) - torch.logsumexp(2 * log_w, dim)).exp()


def pareto_k(log_w: Tensor, dim: int = 0) -> Tensor:
    """Shape k of the tail of the weights, see the module; -inf where the largest are all equal and there is no tail.

    log_w: log weights of at least 25 draws, up to a constant; -inf is weight zero / dim: of the draws. Raises
    RangeError for fewer, NonFiniteError for NaN, infinity, or no weight above zero.
    """
    log_w = _finite(log_w, dim).double().movedim(dim, -1)
    S = log_w.shape[-1]
    if S < _LEAST:
        remedy = "The tail is a fifth of the draws: take 1000."
        raise RangeError("draws of pareto_k", got=S, expected=f"at least {_LEAST}", remedy=remedy)
    M = math.ceil(min(S / 5, 3 * math.sqrt(S)))
    top = torch.topk(log_w, M + 1, sorted=True).values.flip(-1)
    w = (top - top[..., -1:]).exp()  # of the largest, so that nothing overflows; what underflows is not a tie
    excess = (w[..., 1:] - w[..., :1]).clamp(min=_TINY).masked_fill(top[..., 1:] == top[..., :1], 0)
    return _shape(excess)


def pareto_limit(draws: int) -> float:
    """The k above which averages over so many draws are not to be trusted: min(1 - 1 / log10(S), 0.7)."""
    if draws < _LEAST:
        remedy = "Below, k cannot be fitted."
        raise RangeError("draws", got=draws, expected=f"at least {_LEAST}", remedy=remedy)
    return min(1 - 1 / math.log10(draws), 0.7)


def _shape(x: Tensor) -> Tensor:
    """Posterior mean of k, given draws x (..., n) >= 0 in rising order; theta = -k / sigma has the paper's prior."""
    n = x.shape[-1]
    largest = x[..., -1:]
    positive = torch.where(x > 0, x, largest)
    quartile = x[..., max(0, math.floor(n / 4 + 0.5) - 1)][..., None]
    quartile = torch.where(quartile > 0, quartile, positive.amin(-1, keepdim=True))  # weights may be tied
    flat = largest == 0
    largest, quartile = largest.masked_fill(flat, 1), quartile.masked_fill(flat, 1)
    m = 20 + math.floor(math.sqrt(n))
    j = torch.arange(1, m + 1, dtype=x.dtype, device=x.device)
    theta = 1 / largest + (1 - (m / (j - 0.5)).sqrt()) / (3 * quartile)
    k = torch.log1p(-theta[..., None] * x[..., None, :]).mean(-1)
    likelihood = n * ((-theta / k).log() - k - 1)
    theta = (torch.softmax(likelihood, -1) * theta).sum(-1, keepdim=True)
    k = torch.log1p(-theta * x).mean(-1)
    return ((k * n + 5) / (n + 10)).masked_fill(flat[..., 0], -math.inf)


def _finite(log_w: Tensor, dim: int) -> Tensor:
    if not isinstance(log_w, Tensor) or not log_w.is_floating_point() or not log_w.ndim:
        got = log_w.dtype if isinstance(log_w, Tensor) and log_w.ndim else type(log_w).__name__
        remedy = "Give log P - log Q of every draw."
        raise DTypeError("log weights", got=got, expected="a floating-point tensor with a dim of draws", remedy=remedy)
    log_w = log_w.detach()
    if bool((log_w.isnan() | (log_w == math.inf)).any()):
        remedy = "Look for a scale of zero, or a value outside of the support."
        raise NonFiniteError("log weights", got="NaN or infinity", expected="numbers or -inf", remedy=remedy)
    if bool((log_w.amax(dim) == -math.inf).any()):
        remedy = "The guide draws what the model calls impossible: check supports."
        raise NonFiniteError("log weights", got="-inf for every draw", expected="a weight above zero", remedy=remedy)
    return log_w
