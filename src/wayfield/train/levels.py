r"""Which noise levels a network is trained on: distributions of the time t, as maps from uniform numbers.

A training spends its effort where its levels fall. A distribution is given by its quantile function, so that the level
of a sample is a pure function of one addressed uniform number u, the same in any batch and any process.

==============  ==============================================  ================================================
`Uniform`       t = t_min + u (1 - t_min)                       Ho et al. 2020; Lipman et al. 2023
`LogNormal`     ln(sigma/alpha) = mean + std z                  Karras et al. 2022: -1.2, 1.2; 2024: -0.4, 1.0
`LogitNormal`   logit(t) = mean + std z                         Esser et al. 2024, arXiv 2403.03206
`Shifted`       sigma/alpha of a base times `shift`             the same; Hoogeboom et al. 2023
==============  ==============================================  ================================================

z = Phi^{-1}(u). On the straight path `Shifted` is t -> s t / (1 + (s - 1) t); as a factor of the noise level it means
the same on every path. u: (B,) float64 in (0, 1); t: (B,) float64.

No level is singular: t stays in [t_min, 1] sigma/alpha in [1e-4, 1e4], and on the path of a table t >= 1/T. `Uniform`
spreads over what remains; the others are clamped: a quantile inside is exact, a tail piles up at the border.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError
from wayfield.core.path import Path
from wayfield.core.schedule import Tabulated
from wayfield.train.checks import check_number

__all__ = ["Levels", "LogNormal", "LogitNormal", "Shifted", "Uniform", "borders"]

_WIDEST = 2 * math.log(1e4)  # the log-SNR beyond which float32 points are all data or all noise


class Levels(ABC):
    """A distribution of training times on any path. Immutable; `repr` rebuilds it."""

    @abstractmethod
    def times(self, u: Tensor, path: Path) -> Tensor:
        """Times (B,) in the borders of `path`, float64, for uniform numbers u (B,) in (0, 1); increasing in u."""


def borders(path: Path, t_min: float = 0.0) -> tuple[float, float]:
    """The first and last time of `path` that is fit to train on, inside [t_min, 1]."""
    low, high = path.time(torch.tensor([_WIDEST, -_WIDEST], dtype=torch.float64)).tolist()
    first = 1 / path.T if isinstance(path, Tabulated) else 0.0
    return max(low, first, t_min), min(high, 1.0)


@final
@dataclass(frozen=True)
class Uniform(Levels):
    """Uniform in t. t_min: the cleanest time, in [0, 1); 1e-5 is what continuous VP networks are trained from."""

    t_min: float = 1e-5

    def __post_init__(self) -> None:
        _check_t_min(self.t_min)

    def times(self, u: Tensor, path: Path) -> Tensor:
        """See `Levels.times`."""
        low, high = borders(path, self.t_min)
        return low + u.double() * (high - low)


@final
@dataclass(frozen=True)
class LogNormal(Levels):
    """Normal in ln(sigma/alpha). mean, std: of that logarithm, std > 0."""

    mean: float = -1.2
    std: float = 1.2
    t_min: float = 0.0

    def __post_init__(self) -> None:
        _check_normal(self.mean, self.std, self.t_min)

    def times(self, u: Tensor, path: Path) -> Tensor:
        """See `Levels.times`."""
        log_sigma = self.mean + self.std * torch.special.ndtri(u.double())
        return path.time((-2 * log_sigma).clamp(-_WIDEST, _WIDEST)).clamp(*borders(path, self.t_min))


@final
@dataclass(frozen=True)
class LogitNormal(Levels):
    """Normal in logit(t). mean, std: of the logit, std > 0; on the straight path that is ln(sigma/alpha)."""

    mean: float = 0.0
    std: float = 1.0
    t_min: float = 0.0

    def __post_init__(self) -> None:
        _check_normal(self.mean, self.std, self.t_min)

    def times(self, u: Tensor, path: Path) -> Tensor:
        """See `Levels.times`."""
        t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double()))
        return t.clamp(*borders(path, self.t_min))


@final
@dataclass(frozen=True)
class Shifted(Levels):
    """A distribution with every sigma/alpha multiplied by `shift` > 0; above 1 is noisier, as large pictures need."""

    base: Levels
    shift: float

    def __post_init__(self) -> None:
        if not isinstance(self.base, Levels):
            got, remedy = type(self.base).__name__, "Shift Uniform(), LogNormal(), ..."
            raise DTypeError("base of Shifted", got=got, expected="Levels", remedy=remedy)
        check_number("shift of Shifted", self.shift, 0, open_low=True)

    def times(self, u: Tensor, path: Path) -> Tensor:
        """See `Levels.times`."""
        log_snr = path.log_snr(self.base.times(u, path)) - 2 * math.log(self.shift)
        return path.time(log_snr.clamp(-_WIDEST, _WIDEST)).clamp(*borders(path))


def _check_t_min(t_min: float) -> None:
    check_number("t_min", t_min, 0, 0.999)


def _check_normal(mean: float, std: float, t_min: float) -> None:
    check_number("mean", mean, -math.inf)
    check_number("std", std, 0, open_low=True)
    _check_t_min(t_min)
