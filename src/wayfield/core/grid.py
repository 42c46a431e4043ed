r"""Grids: the times a run visits, chosen independently of the solver that walks them.

A grid of N steps has N + 1 times. Sampling grids fall and usually end at the clean end t = 0; inversion and likelihood
climb. All values are float64 on the host; the driver makes one device copy per run. Noise levels of EDM papers are
sigma/alpha here.

The previous time is always looked up in the grid, never computed as t - T/N.

References: Karras et al. 2022, eq. 5 (Karras grid); Lin et al. 2023 (trailing spacing); Lu et al. 2022 (uniform
log-SNR).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, GridError, RangeError, unknown_name
from wayfield.core.path import Path, Scales
from wayfield.core.schedule import Tabulated

__all__ = ["Grid", "exponential", "given", "karras", "log_snr", "spaced", "spaced_indices", "uniform"]


@final
@dataclass(frozen=True)
class Grid:
    """N + 1 strictly monotone times in [0, 1] on a path.

    Raises GridError if the times are fewer than two, not finite, outside [0, 1] or not strictly monotone.
    """

    path: Path
    t: tuple[float, ...]

    def __post_init__(self) -> None:
        t = self.t
        if len(t) < 2:
            raise GridError(
                "grid", got=f"{len(t)} times", expected="at least 2", remedy="A run needs a start and an end."
            )
        bad = next((v for v in t if not (0 <= v <= 1)), None)
        if bad is not None:
            raise GridError(
                "grid", got=f"time {bad}", expected="times in [0, 1]", remedy="t = 0 is data and t = 1 is noise."
            )
        falls = t[0] > t[-1]
        k = next((i for i, (p, q) in enumerate(pairwise(t)) if (p <= q if falls else p >= q)), None)
        if k is not None:
            raise GridError(
                "grid",
                got=f"{t[k]:g} then {t[k + 1]:g} at position {k}",
                expected="strictly falling (sampling) or strictly rising (inversion) times",
                remedy="Sort the times and remove repeated ones.",
            )

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return len(self.t) - 1

    @property
    def rising(self) -> bool:
        """True for inversion grids, which go from data to noise."""
        return self.t[0] < self.t[-1]

    @cached_property
    def times(self) -> Tensor:
        """The times, (N + 1,), float64."""
        return torch.tensor(self.t, dtype=torch.float64)

    @cached_property
    def scales(self) -> Scales:
        """Scales at the times, each (N + 1,), float64."""
        return self.path.scales(self.times)

    @cached_property
    def lam(self) -> Tensor:
        """Half log-SNR, log(alpha/sigma), (N + 1,), float64; infinite at a noiseless or signal-free end."""
        return 0.5 * self.path.log_snr(self.times)

    def below(self, t: float) -> Grid:
        """The part of a falling grid that starts at time `t`: for starting in the middle of a run."""
        if self.rising or not self.t[-1] < t <= self.t[0]:
            raise GridError(
                "start", got=t, expected=f"a time in ({self.t[-1]:g}, {self.t[0]:g}]", remedy="Choose another start."
            )
        return Grid(self.path, (t, *(v for v in self.t if v < t)))

    def reversed(self, start: float | None = None) -> Grid:
        """The same times backwards. A clean end, where eps has no meaning, is replaced by `start` or dropped."""
        inner = tuple(v for v in reversed(self.t) if v > (start or 0.0))
        return Grid(self.path, inner if start is None else (start, *inner))


def given(path: Path, times: Sequence[float] | Tensor) -> Grid:
    """A grid through the user's own times."""
    values = times.tolist() if isinstance(times, Tensor) else list(times)
    if not all(isinstance(v, (int, float)) for v in values):
        raise DTypeError("times", got=values, expected="a flat sequence of numbers", remedy="Give one number per time.")
    return Grid(path, tuple(float(v) for v in values))


def uniform(path: Path, steps: int, *, start: float = 1.0, end: float = 0.0) -> Grid:
    """N equal steps in t from `start` to `end`."""
    _steps(steps)
    return Grid(path, tuple(torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()))


def karras(path: Path, steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Grid:
    """N noise levels sigma/alpha with equal steps in sigma^(1/rho), then the clean end (Karras et al. 2022, eq. 5)."""
    _range(sigma_min, sigma_max)
    if not rho > 0:
        raise RangeError("rho", got=rho, expected="> 0", remedy="The paper uses 7.")
    ramp = _ramp(steps)
    lo, hi = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _levels(path, rho * (hi + ramp * (lo - hi)).log())


def exponential(path: Path, steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Grid:
    """N noise levels sigma/alpha in geometric progression, then the clean end. The same as uniform log-SNR, named in
    sigma.
    """
    _range(sigma_min, sigma_max)
    return log_snr(path, steps, start=-2 * math.log(sigma_max), end=-2 * math.log(sigma_min))


def log_snr(path: Path, steps: int, *, start: float, end: float) -> Grid:
    """N levels with equal steps in log-SNR from `start` (noisy) to `end` (clean), both finite, then the clean end."""
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise RangeError(
            "log-SNR", got=(start, end), expected="finite, start < end", remedy="Noise has the lower log-SNR."
        )
    return _levels(path, -0.5 * (start + _ramp(steps) * (end - start)))


def spaced_indices(T: int, steps: int, spacing: str, offset: int = 0) -> list[int]:
    """Falling table indices in 0..T-1 that a run of `steps` visits on a discrete schedule of length T.

    "leading" never visits T - 1; "trailing" visits T - 1 but not 0; "linspace" visits both. `offset` shifts "leading".
    """
    if spacing not in ("leading", "trailing", "linspace"):
        raise unknown_name("spacing", spacing, ("leading", "trailing", "linspace"))
    if not 1 <= steps <= T:
        raise RangeError(
            "steps", got=steps, expected=f"1..{T}", remedy="A discrete schedule cannot have more steps than rows."
        )
    if spacing == "leading":
        out = [k * (T // steps) + offset for k in reversed(range(steps))]
    elif spacing == "trailing":
        out = [round(T - k * T / steps) - 1 for k in range(steps)]
    else:
        out = [round(k * (T - 1) / max(steps - 1, 1)) for k in reversed(range(steps))]
    if out[0] >= T:
        raise RangeError(
            "offset", got=offset, expected=f"< {T - out[0] + offset}", remedy="The first index would leave the table."
        )
    return out


def spaced(path: Tabulated, steps: int, spacing: str = "trailing", *, offset: int = 0) -> Grid:
    """The grid of a discrete schedule: table rows chosen by `spaced_indices`, then the clean end."""
    if not isinstance(path, Tabulated):
        raise DTypeError(
            "path", got=repr(path), expected="a Tabulated path", remedy="Use uniform() or karras() on continuous paths."
        )
    return Grid(path, (*((k + 1) / path.T for k in spaced_indices(path.T, steps, spacing, offset)), 0.0))


def _steps(steps: int) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise RangeError("steps", got=steps, expected="an integer >= 1", remedy="Ask for at least one step.")


def _range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise RangeError(
            "sigma range", got=(sigma_min, sigma_max), expected="0 < sigma_min < sigma_max", remedy="Swap or fix them."
        )


def _ramp(steps: int) -> Tensor:
    _steps(steps)
    return torch.linspace(0, 1, steps, dtype=torch.float64)


def _levels(path: Path, log_sigma: Tensor) -> Grid:
    t = path.time(-2 * log_sigma)
    t = torch.where((t > 1) & (t < 1 + 1e-9), torch.ones_like(t), t)  # sigma_max of the path itself, up to rounding
    if float(t[0]) > 1:
        top = math.exp(-0.5 * float(path.log_snr(torch.ones((), dtype=torch.float64))))
        raise GridError(
            "noise level",
            got=f"{math.exp(float(log_sigma[0])):g}",
            expected=f"<= {top:g}, the end of {path!r}",
            remedy="Lower sigma_max or use a path that reaches it.",
        )
    times = t.tolist()
    return Grid(path, (*(times if times[-1] == 0 else [*times, 0.0]),))
