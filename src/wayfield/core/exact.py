r"""Denoisers in closed form: the truth against which the library is checked.

For data x0 ~ sum_j p_j N(m_j, C_j) and x = alpha x0 + sigma eps,

.. math:: E[x_0 | x] = \sum_j q_j\, [m_j + \alpha C_j S_j^{-1} (x - \alpha m_j)], \quad S_j = \alpha^2 C_j + \sigma^2 I,
   \quad q_j \propto p_j N(x; \alpha m_j, S_j)

and for a finite data set the same with C_j = 0. All are networks that answer x0, called as ``net(x, t, cond)`` with the
time t itself; ``cond["label"]`` (B,) restricts the sum to the components of that label, and the label C (the number of
classes) means all of them.

===========  ================================  ===========
symbol       meaning                           shape
===========  ================================  ===========
weights      p_j                               (K,)
means        m_j                               (K, *D)
covs         C_j, d = prod D                   (K, d, d)
labels       class of component j, 0..C-1      (K,)
===========  ================================  ===========

References: Karras et al. 2022, appendix B.3 (empirical denoiser); the Gaussian conditionals are textbook.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from wayfield.core.errors import RangeError, ShapeError
from wayfield.core.path import Path
from wayfield.core.shapes import expand, flatten

__all__ = ["Empirical", "Mixture", "gaussian", "isotropic_mixture"]


@final
class Mixture(nn.Module):
    """The exact x0-denoiser of a Gaussian mixture; with one component, of a Gaussian. Raises ShapeError or RangeError
    on bad input.
    """

    weights: Tensor
    means: Tensor
    labels: Tensor
    values: Tensor
    vectors: Tensor

    def __init__(self, path: Path, weights: Tensor, means: Tensor, covs: Tensor, labels: Tensor | None = None) -> None:
        super().__init__()
        K, d = means.shape[0], means[0].numel()
        if covs.shape != (K, d, d) or weights.shape != (K,):
            got = f"weights {tuple(weights.shape)}, means {tuple(means.shape)}, covs {tuple(covs.shape)}"
            raise ShapeError(
                "mixture", got=got, expected=f"({K},), ({K}, *D), ({K}, {d}, {d})", remedy="One row per component."
            )
        values, vectors = torch.linalg.eigh(covs)
        if bool((values < -1e-9).any()) or bool((weights <= 0).any()):
            raise RangeError(
                "mixture",
                got="a negative eigenvalue or weight",
                expected="positive weights, covariances >= 0",
                remedy="Check both.",
            )
        self.path, self.shape = path, tuple(means.shape[1:])
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means.reshape(K, d))
        self.register_buffer("labels", torch.arange(K) if labels is None else labels)
        self.register_buffer("values", values.clamp(min=0))
        self.register_buffer("vectors", vectors)

    @property
    def classes(self) -> int:
        """Number of classes C; the label C means the whole mixture."""
        return int(self.labels.max()) + 1

    @property
    def covs(self) -> Tensor:
        """C_j, (K, d, d)."""
        return (self.vectors * self.values[:, None]) @ self.vectors.mT

    def forward(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """E[x0 | x], shape (B, *D) as x, at times () or (B,)."""
        a, _, r, S = self._whitened(x, time)
        log_q = self._log_joint(r, S, cond.get("label"))
        gain = a[..., None] * self.values / S
        each = self.means + ((gain * r).unsqueeze(-2) @ self.vectors.mT).squeeze(-2)
        return (log_q.softmax(1)[..., None] * each).sum(1).reshape(x.shape)

    def log_prob(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """log p_t(x | label), (B,), normalised."""
        _, _, r, S = self._whitened(x, time)
        log_p = self._log_joint(r, S, label).logsumexp(1)
        if label is None:
            return log_p
        return log_p - self._allowed(label).mul(self.weights).sum(1).log()

    def posterior(self, x: Tensor, time: Tensor) -> Tensor:
        """p(label | x) at noise level t, (B, C): the exact noise-aware classifier."""
        _, _, r, S = self._whitened(x, time)
        q = self._log_joint(r, S, None).softmax(1)
        return torch.zeros(len(x), self.classes, dtype=q.dtype, device=q.device).index_add_(1, self.labels, q)

    def given(self, H: Tensor, y: Tensor, noise: Tensor) -> Mixture:
        """The exact posterior after a linear measurement y = H x0 + N(0, noise); H (m, d), y (m,), noise (m, m)."""
        C = self.covs
        S = H @ C @ H.T + noise
        gain = C @ H.T @ torch.linalg.inv(S)
        r = y - self.means @ H.T
        means = self.means + (gain @ r[..., None])[..., 0]
        log_w = self.weights.log() - 0.5 * (torch.linalg.slogdet(S).logabsdet + (r * torch.linalg.solve(S, r)).sum(1))
        covs = C - gain @ H @ C
        covs = 0.5 * (covs + covs.mT)
        weights = log_w.softmax(0).clamp(min=torch.finfo(log_w.dtype).tiny)
        return Mixture(self.path, weights, means.reshape(-1, *self.shape), covs, self.labels)

    def flow(self, x: Tensor, t: float, r: float) -> Tensor:
        """The probability-flow map from time t to time r, exactly: for one component, or in one dimension by matching
        quantiles.
        """
        at, st = (c.to(x) for c in self.path.scales(torch.tensor(t, dtype=torch.float64))[:2])
        ar, sr = (c.to(x) for c in self.path.scales(torch.tensor(r, dtype=torch.float64))[:2])
        if len(self.weights) == 1:
            ratio = ((ar**2 * self.values[0] + sr**2) / (at**2 * self.values[0] + st**2)).sqrt()
            U = self.vectors[0]
            return (ar * self.means + ((flatten(x) - at * self.means) @ U * ratio) @ U.T).reshape(x.shape)
        if self.means.shape[1] != 1:
            raise ShapeError(
                "exact flow of a mixture",
                got=f"{self.means.shape[1]} dimensions",
                expected="1",
                remedy="Use a fine solver.",
            )
        target = self._cdf(x.reshape(-1), at, st)
        reach = 12 * (ar * self.values.max().sqrt() + sr) + 1
        lo = torch.full_like(target, float((ar * self.means).min() - reach))
        hi = torch.full_like(target, float((ar * self.means).max() + reach))
        for _ in range(80):
            mid = (lo + hi) / 2
            below = self._cdf(mid, ar, sr) < target
            lo, hi = torch.where(below, mid, lo), torch.where(below, hi, mid)
        return ((lo + hi) / 2).reshape(x.shape)

    def _cdf(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        std = (a**2 * self.values[:, 0] + s**2).sqrt()
        return (self.weights * torch.special.ndtr((x[:, None] - a * self.means[:, 0]) / std)).sum(1)

    def _whitened(self, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma (.., 1), residuals in each component's eigenbasis (B, K, d), their variances (.., K, d)."""
        a, s = (c.reshape(-1, 1) for c in self.path.scales(time.to(self.means.dtype))[:2])
        z = flatten(x).to(self.means.dtype)
        r = z[:, None] - a[:, None] * self.means
        r = (r.unsqueeze(-2) @ self.vectors).squeeze(-2)
        return a, s, r, a[:, None] ** 2 * self.values + s[:, None] ** 2

    def _log_joint(self, r: Tensor, S: Tensor, label: Tensor | None) -> Tensor:
        log_p = -0.5 * (r**2 / S + S.log() + math.log(2 * math.pi)).sum(2) + self.weights.log()
        return log_p if label is None else log_p.masked_fill(~self._allowed(label), -math.inf)

    def _allowed(self, label: Tensor) -> Tensor:
        return (self.labels == label[:, None]) | (label[:, None] > self.labels.max())


@final
class Empirical(nn.Module):
    """The exact x0-denoiser of a finite data set (N, *D): the softmax average of its members, at O(B N d) a call."""

    data: Tensor
    labels: Tensor

    def __init__(self, path: Path, data: Tensor, labels: Tensor | None = None) -> None:
        super().__init__()
        if labels is not None and labels.shape != data.shape[:1]:
            raise ShapeError(
                "labels", got=tuple(labels.shape), expected=tuple(data.shape[:1]), remedy="One label per member."
            )
        self.path = path
        self.register_buffer("data", data)
        self.register_buffer("labels", torch.zeros(len(data), dtype=torch.long) if labels is None else labels)

    def forward(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """E[x0 | x], shape (B, *D) as x, at times () or (B,); at sigma = 0 the nearest member."""
        a, s, _, _ = self.path.scales(time.to(self.data.dtype))
        m, z = flatten(self.data), flatten(x)
        a, s = expand(a, z), expand(s, z)
        # -|z - a m|^2 / 2 up to the part that all members share; the best member is taken off before dividing by the
        # variance, so that without noise it weighs 1 and all others 0
        score = a * (z @ m.T) - 0.5 * a**2 * m.square().sum(1)
        label = cond.get("label")
        if label is not None:
            allowed = (self.labels == label[:, None]) | (label[:, None] > self.labels.max())
            score = score.masked_fill(~allowed, -math.inf)
        behind = score - score.amax(1, keepdim=True)
        weights = (behind / (s**2).clamp(min=torch.finfo(z.dtype).tiny)).softmax(1)
        return (weights @ m).reshape(x.shape)


def gaussian(path: Path, mean: Tensor, cov: Tensor) -> Mixture:
    """The exact denoiser of N(mean, cov): mean (*D), cov (d, d) or a scalar variance ()."""
    d = mean.numel()
    cov = cov * torch.eye(d, dtype=mean.dtype, device=mean.device) if cov.ndim == 0 else cov
    return Mixture(path, torch.ones(1, dtype=mean.dtype, device=mean.device), mean[None], cov[None])


def isotropic_mixture(
    path: Path, means: Tensor, variance: float, weights: Tensor | None = None, labels: Tensor | None = None
) -> Mixture:
    """The exact denoiser of sum_j p_j N(m_j, variance I): means (K, *D), weights (K,) or equal."""
    K, d = len(means), means[0].numel()
    covs = variance * torch.eye(d, dtype=means.dtype, device=means.device).expand(K, d, d)
    weights = torch.ones(K, dtype=means.dtype, device=means.device) if weights is None else weights
    return Mixture(path, weights, means, covs, labels)
