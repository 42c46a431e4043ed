r"""Gaussian paths from data to noise: what `alpha` and `sigma` are at time t, how fast they move, and when a noise
level is met.

.. math:: x_t = \alpha(t)\, x_0 + \sigma(t)\, \varepsilon, \qquad \varepsilon \sim N(0, I), \qquad t = 0 \text{ data},
   \; t = 1 \text{ noise}

Every path runs on the clock t in [0, 1]; alpha does not increase and sigma/alpha strictly increases.

===========  ==============================================  =======================================================
symbol       meaning                                         shape
===========  ==============================================  =======================================================
t            time                                            (), (B,) or any; float64 keeps full accuracy
alpha, sigma the two scales                                  as t
dalpha, ...  their derivatives in t                          as t
log_snr      log(alpha^2 / sigma^2)  (2 lam in some papers)  as t
det          alpha sigma' - alpha' sigma > 0                 as t
===========  ==============================================  =======================================================

References: Song et al. 2021 (VP, VE); Nichol & Dhariwal 2021 (cosine); Karras et al. 2022 (EDM); Lipman et al. 2023 and
Liu et al.
2023 (straight line). `Tabulated`, the path of a discrete schedule, lives in `core.schedule`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from wayfield.core.errors import RangeError

__all__ = ["EDM", "VE", "VP", "Cosine", "Path", "Scales", "Straight", "Trig"]


class Scales(NamedTuple):
    """The path at one time: two scales and their derivatives in t, each with the shape of t."""

    alpha: Tensor
    sigma: Tensor
    dalpha: Tensor
    dsigma: Tensor


class Path(ABC):
    """alpha(t) and sigma(t) on the clock t in [0, 1], 0 = data and 1 = noise. Immutable; `repr` rebuilds it."""

    @abstractmethod
    def scales(self, t: Tensor) -> Scales:
        """alpha, sigma, dalpha/dt, dsigma/dt at times `t`, any shape, values in [0, 1]."""

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2) at `t`; +inf at a noiseless end, -inf at an end without signal."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`; levels outside the path's range land outside [0, 1] or at its ends."""

    def det(self, t: Tensor) -> Tensor:
        """alpha sigma' - alpha' sigma, positive wherever the signal-to-noise ratio falls."""
        a, s, da, ds = self.scales(t)
        return a * ds - da * s

    def noised(self, x0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps for data and noise of shape (B, *D); t () or (B,)."""
        t = torch.as_tensor(t, dtype=torch.float64, device=x0.device)
        a, s, _, _ = (c.to(x0.dtype).reshape(c.shape + (1,) * (x0.ndim - 1) if c.ndim else ()) for c in self.scales(t))
        return a * x0 + s * eps

    def at_sigma(self, sigma: float) -> float:
        """The time at which sigma/alpha, the noise level of EDM papers, equals `sigma` > 0."""
        _positive("sigma", sigma)
        return float(self.time(torch.tensor(-2 * math.log(sigma), dtype=torch.float64)))


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise RangeError(name, got=value, expected="a finite number > 0", remedy="Noise levels and rates are positive.")


def _ordered(low_name: str, low: float, high_name: str, high: float) -> None:
    _positive(low_name, low)
    _positive(high_name, high)
    if low >= high:
        raise RangeError(f"{low_name} and {high_name}", got=(low, high), expected="low < high", remedy="Swap them.")


@dataclass(frozen=True)
class VP(Path):
    """Variance preserving with linear beta(t) (Song et al. 2021): alpha = exp(-t^2 (b1 - b0)/4 - t b0/2), sigma^2 = 1 -
    alpha^2.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _ordered("beta_min", self.beta_min, "beta_max", self.beta_max)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def scales(self, t: Tensor) -> Scales:
        """See `Path.scales`; sigma' is infinite at t = 0."""
        log_alpha = self._log_alpha(t)
        a, s = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        half_beta = 0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))
        return Scales(a, s, -a * half_beta, a**2 * half_beta / s)

    def log_snr(self, t: Tensor) -> Tensor:
        """-log(exp(-2 log alpha) - 1), accurate at both ends."""
        return -torch.expm1(-2 * self._log_alpha(t)).log()

    def time(self, log_snr: Tensor) -> Tensor:
        """Root of the quadratic -2 log alpha(t) = softplus(-log_snr)."""
        u, d = F.softplus(-log_snr), self.beta_max - self.beta_min
        return 2 * u / ((self.beta_min**2 + 2 * d * u).sqrt() + self.beta_min)


@dataclass(frozen=True)
class Cosine(Path):
    """Cosine path of Nichol & Dhariwal 2021: alpha = cos(theta(t)) / cos(theta(0)), theta = (t + o)/(1 + o) pi/2,
    sigma^2 = 1 - alpha^2.
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        _positive("offset", self.offset)

    def scales(self, t: Tensor) -> Scales:
        """See `Path.scales`; sigma comes from sin(theta - theta0) sin(theta + theta0), without cancellation."""
        rate = math.pi / 2 / (1 + self.offset)
        theta0 = rate * self.offset
        theta = rate * (t + self.offset)
        a = (math.pi / 2 - theta).sin() / math.cos(theta0)
        s = ((rate * t).sin() * (theta + theta0).sin()).clamp(min=0).sqrt() / math.cos(theta0)
        da = -rate * theta.sin() / math.cos(theta0)
        return Scales(a, s, da, -a * da / s)

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2)."""
        a, s, _, _ = self.scales(t)
        return 2 * (a.clamp(min=0).log() - s.log())

    def time(self, log_snr: Tensor) -> Tensor:
        """From tan(theta)^2 = (sin(theta0)^2 + exp(-log_snr)) / cos(theta0)^2, without cancellation."""
        rate = math.pi / 2 / (1 + self.offset)
        theta0 = rate * self.offset
        tan2 = math.tan(theta0) ** 2 + (-log_snr).exp() / math.cos(theta0) ** 2
        return tan2.sqrt().atan() / rate - self.offset


@dataclass(frozen=True)
class Trig(Path):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the cosine path without offset; phi = pi t / 2 is the angle."""

    def scales(self, t: Tensor) -> Scales:
        """See `Path.scales`; finite everywhere. cos is taken as the sine of the complement, exactly 0 at t = 1."""
        half = math.pi / 2
        a, s = (half * (1 - t)).sin(), (half * t).sin()
        return Scales(a, s, -half * s, half * a)

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log cot(pi t / 2)."""
        a, s, _, _ = self.scales(t)
        return 2 * (a.log() - s.log())

    def time(self, log_snr: Tensor) -> Tensor:
        """(2 / pi) atan(exp(-log_snr / 2))."""
        return (-0.5 * log_snr).exp().atan() * (2 / math.pi)


@dataclass(frozen=True)
class VE(Path):
    """Variance exploding (Song et al. 2021): alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t. sigma(0) =
    sigma_min > 0.
    """

    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def __post_init__(self) -> None:
        _ordered("sigma_min", self.sigma_min, "sigma_max", self.sigma_max)

    def scales(self, t: Tensor) -> Scales:
        """See `Path.scales`."""
        rate = math.log(self.sigma_max / self.sigma_min)
        s = self.sigma_min * (rate * t).exp()
        return Scales(torch.ones_like(s), s, torch.zeros_like(s), rate * s)

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log sigma, linear in t."""
        return -2 * (math.log(self.sigma_min) + t * math.log(self.sigma_max / self.sigma_min))

    def time(self, log_snr: Tensor) -> Tensor:
        """Linear in log_snr."""
        return (-0.5 * log_snr - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(Path):
    """alpha = 1, sigma = sigma_max t (Karras et al. 2022). The paper's clock is sigma itself; ours is sigma /
    sigma_max, an affine change.
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _positive("sigma_max", self.sigma_max)

    def scales(self, t: Tensor) -> Scales:
        """See `Path.scales`."""
        s = self.sigma_max * t
        return Scales(torch.ones_like(s), s, torch.zeros_like(s), torch.full_like(s, self.sigma_max))

    def log_snr(self, t: Tensor) -> Tensor:
        """-2 log sigma."""
        return -2 * (self.sigma_max * t).log()

    def time(self, log_snr: Tensor) -> Tensor:
        """exp(-log_snr / 2) / sigma_max."""
        return (-0.5 * log_snr).exp() / self.sigma_max


@dataclass(frozen=True)
class Straight(Path):
    """Straight line (flow matching, rectified flow): alpha = 1 - t, sigma = t, velocity eps - x0. Papers with the clock
    1 - t have minus this velocity.
    """

    def scales(self, t: Tensor) -> Scales:
        """See `Path.scales`; det = 1."""
        return Scales(1 - t, t.clone(), -torch.ones_like(t), torch.ones_like(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """2 log((1 - t) / t)."""
        return 2 * (torch.log1p(-t) - t.log())

    def time(self, log_snr: Tensor) -> Tensor:
        """sigmoid(-log_snr / 2)."""
        return torch.sigmoid(-0.5 * log_snr)
