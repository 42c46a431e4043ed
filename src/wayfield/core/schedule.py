r"""Discrete noise schedules as paths: a table of cumulative products becomes a `Path` that can be asked at any time.

A schedule of T steps has beta_n in (0, 1], n = 1..T, and abar_n = prod_{i<=n} (1 - beta_i), so that alpha = sqrt(abar)
and sigma = sqrt(1 - abar) at t = n / T; n = 0 is the clean end. Array index n - 1 is what discrete-time networks are
given.

Between the table's rows the log-SNR is linear in t. In the first cell it starts from +inf, and with a zero-terminal-SNR
table it ends at -inf; there the angle atan2(sigma, alpha) is linear instead, which is finite at both ends.

References: Ho et al. 2020 (linear); Nichol & Dhariwal 2021 (cosine); Rombach et al. 2022 (scaled linear); Jabri et al.
2022 and Chen
2023 (sigmoid in abar); Lin et al. 2023 (zero terminal SNR).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, unknown_name
from wayfield.core.path import Path, Scales

__all__ = ["Tabulated", "abar_of", "from_betas", "tabulated", "zero_terminal"]


@dataclass(frozen=True)
class Tabulated(Path):
    """The path through a table of abar_1 > ... > abar_T >= 0 (T >= 2). Only the last entry may be 0 (zero terminal
    SNR).

    Raises RangeError if the table is not strictly decreasing inside (0, 1).
    """

    abar: tuple[float, ...]

    def __post_init__(self) -> None:
        a = self.abar
        ok = len(a) >= 2 and a[0] < 1 and a[-1] >= 0 and all(p > q for p, q in pairwise(a))
        if not ok:
            raise RangeError(
                "abar table",
                got=f"{len(a)} values from {a[0] if a else None} to {a[-1] if a else None}",
                expected="at least 2 values, strictly decreasing, inside (0, 1), the last may be 0",
                remedy="Check that the betas lie in (0, 1] and that only the last one is 1.",
            )

    def __hash__(self) -> int:  # kept: a thousand numbers, and runs look their tables up by it
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.abar)

    def __repr__(self) -> str:
        return (
            f"Tabulated(abar={self.abar!r})"
            if self.T <= 8
            else f"Tabulated(<{self.T} values, {self.abar[0]:.6g}..{self.abar[-1]:.3g}>)"
        )

    @property
    def T(self) -> int:
        """Number of discrete steps."""
        return len(self.abar)

    @cached_property
    def _nodes(self) -> Tensor:
        """Log-SNR at n = 0..T, float64, infinite at the clean end and perhaps at the other."""
        abar = torch.tensor((1.0, *self.abar), dtype=torch.float64)
        return abar.log() - torch.log1p(-abar)

    def log_snr(self, t: Tensor) -> Tensor:
        """Interpolated as the module says."""
        return self._interpolate(t)[0].to(t.dtype)

    def _interpolate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Log-SNR and its derivative in t, both float64 with the shape of t."""
        nodes, T = self._nodes.to(t.device), self.T
        u = t.double() * T
        k = u.floor().clamp(0, T - 1).long()
        lo, hi = nodes[k], nodes[k + 1]
        f = u - k
        slope = hi - lo
        inner, dinner = lo + f * slope, slope * T
        p0, p1 = (-0.5 * lo).exp().atan(), (-0.5 * hi).exp().atan()
        phi = p0 + f * (p1 - p0)
        phi = torch.where(hi.isinf() & (f >= 1), torch.full_like(phi, math.pi / 2), phi)
        cut, dcut = 2 * ((math.pi / 2 - phi).sin().log() - phi.sin().log()), -4 * (p1 - p0) * T / (2 * phi).sin()
        end = lo.isinf() | hi.isinf()
        return torch.where(end, cut, inner), torch.where(end, dcut, dinner)

    def scales(self, t: Tensor) -> Scales:
        """See `Path.scales`; derivatives are those of the interpolation (one-sided at the table's rows)."""
        log_snr, slope = self._interpolate(t)
        a, s = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        out = a, s, 0.5 * a * s**2 * slope, -0.5 * s * a**2 * slope
        return Scales(*(c.to(t.dtype) for c in out))

    def time(self, log_snr: Tensor) -> Tensor:
        """Inverse of the interpolation by search in the table."""
        nodes, T = self._nodes.to(log_snr.device), self.T
        target = log_snr.double()
        k = (torch.searchsorted(-nodes, -target.contiguous(), right=True) - 1).clamp(0, T - 1)
        lo, hi = nodes[k], nodes[k + 1]
        p0, p1, p = (-0.5 * lo).exp().atan(), (-0.5 * hi).exp().atan(), (-0.5 * target).exp().atan()
        f = torch.where(lo.isinf() | hi.isinf(), (p - p0) / (p1 - p0), (target - lo) / (hi - lo))
        return ((k + f) / T).to(log_snr.dtype)


def zero_terminal(abar: Tensor) -> Tensor:
    """Rescale a table (T,) so that its last entry is exactly 0 and its first is kept (Lin et al. 2023, algorithm 1)."""
    q = abar.sqrt()
    out = ((q - q[-1]) * q[0] / (q[0] - q[-1])).square()
    out[0], out[-1] = abar[0], 0.0
    return out


def abar_of(name: str, T: int = 1000) -> Tensor:
    """The cumulative products (T,), float64, of a named schedule.

    name: "linear" | "scaled_linear" | "cosine" | "sigmoid_beta" | "sigmoid_abar" / T: number of steps, >= 2.
    """
    if T < 2:
        raise RangeError("T", got=T, expected="an integer >= 2", remedy="A schedule needs at least two steps.")
    if name not in _SCHEDULES:
        raise unknown_name("schedule", name, _SCHEDULES)
    return _SCHEDULES[name](T)


def tabulated(name: str = "linear", T: int = 1000, *, zero_terminal_snr: bool = False) -> Tabulated:
    """The path of a named discrete schedule, optionally rescaled to zero terminal SNR; see `abar_of`."""
    abar = abar_of(name, T)
    return Tabulated(tuple((zero_terminal(abar) if zero_terminal_snr else abar).tolist()))


def from_betas(betas: Tensor) -> Tabulated:
    """The path of a table of betas (T,), each in (0, 1]."""
    betas = betas.double()
    if betas.ndim != 1 or not bool(((betas > 0) & (betas <= 1)).all()):
        raise RangeError(
            "betas",
            got=f"shape {tuple(betas.shape)}, {betas.min():.3g}..{betas.max():.3g}",
            expected="(T,) inside (0, 1]",
            remedy="Check the schedule.",
        )
    return Tabulated(tuple((1 - betas).cumprod(0).tolist()))


def _ramp(lo: float, hi: float, T: int) -> Tensor:
    return torch.linspace(lo, hi, T, dtype=torch.float64)


def _linear(T: int) -> Tensor:
    return (1 - _ramp(1e-4 * 1000 / T, min(0.02 * 1000 / T, 0.999), T)).cumprod(0)


def _scaled_linear(T: int) -> Tensor:
    return (1 - _ramp(0.00085**0.5, 0.012**0.5, T) ** 2).cumprod(0)


def _cosine(T: int) -> Tensor:
    f = ((_ramp(0, 1, T + 1) + 0.008) / 1.008 * (math.pi / 2)).cos() ** 2
    return (f[1:] / f[:-1]).clamp(min=0.001).cumprod(0)


def _sigmoid_beta(T: int) -> Tensor:
    return (1 - (torch.sigmoid(_ramp(-6, 6, T)) * (0.02 - 1e-4) + 1e-4)).cumprod(0)


def _sigmoid_abar(T: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    t = _ramp(0, 1, T + 1)[1:]
    lo, hi = 1 / (1 + math.exp(-start / tau)), 1 / (1 + math.exp(-end / tau))
    return ((hi - torch.sigmoid((t * (end - start) + start) / tau)) / (hi - lo)).clamp(1e-9, 1 - 1e-9)


_SCHEDULES = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "cosine": _cosine,
    "sigmoid_beta": _sigmoid_beta,
    "sigmoid_abar": _sigmoid_abar,
}
