r"""Moving averages of a network's weights: what is sampled from is the average, not the last step.

An averaged network samples better than any of its steps, and how long the average should be depends on the data. State
is a plain dict of tensors, so that it travels in checkpoints; the classes hold settings only.

.. math:: \bar\theta \leftarrow \beta_n\, \bar\theta + (1 - \beta_n)\, \theta

==============  =====================================================================  ==============================
`EMA`           beta_n = beta                                                          Polyak; Ho et al. 2020: 0.9999
`HalfLifeEMA`   beta_n = 0.5^(b / H_n), H_n = min(H, rho n)                            Karras et al. 2022, 2024
`PowerEMA`      beta_n = (1 - b / n)^(gamma + 1), one average per relative width s     Karras et al. 2024, section 3
==============  =====================================================================  ==============================

n: samples seen including this step's / b: samples in this step, the batch / H: half-life in samples / rho: ramp-up.
The power average weighs the past by tau^gamma on [0, n], a profile of standard deviation s n with
s^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)); `train.posthoc` rebuilds other widths from its snapshots.

Order: update after the optimiser's step, with the new weights. At the first step n = b, so `PowerEMA` starts as a copy
of the weights after it (as does `HalfLifeEMA`, to one part in a million); `EMA` starts at the initial weights.
References: Karras et al. 2022, arXiv 2206.00364 (rho = 0.05); Karras et al. 2024, arXiv 2312.02696 (power; rho = 0.09).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from wayfield.core.errors import RangeError, UnknownNameError
from wayfield.train.checks import check_number

__all__ = ["EMA", "Average", "HalfLifeEMA", "PowerEMA", "power_gamma", "power_width"]

_WIDEST = 12**-0.5  # gamma = 0: the plain mean of all steps


class Average(ABC):
    """Settings of an average of named tensors. State: "track/name" -> tensor; integers are copied, not averaged."""

    @property
    @abstractmethod
    def tracks(self) -> tuple[str, ...]:
        """The names of the averages kept side by side; the first is the one that is read by default."""

    @abstractmethod
    def beta(self, track: int, seen: int, batch: int) -> float:
        """beta_n of the track-th average, in [0, 1], when a step of `batch` samples brought the total to `seen`."""

    def init(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state before the first step: copies of `tensors`, a network's state_dict."""
        return {f"{track}/{k}": v.detach().clone() for track in self.tracks for k, v in tensors.items()}

    def update(self, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, seen: int, batch: int) -> None:
        """Mix `tensors` into the state, in place. seen: samples so far, >= batch >= 1; raises RangeError otherwise."""
        if not 1 <= batch <= seen:
            remedy = "Count the samples of this step in `seen`."
            raise RangeError("seen and batch", got=(seen, batch), expected="1 <= batch <= seen", remedy=remedy)
        floats = [k for k, v in tensors.items() if v.is_floating_point()]
        new = [tensors[k].detach() for k in floats]
        for i, track in enumerate(self.tracks):
            if floats:
                get_ema_multi_avg_fn(self.beta(i, seen, batch))([state[f"{track}/{k}"] for k in floats], new, None)
            for k in tensors.keys() - set(floats):
                state[f"{track}/{k}"].copy_(tensors[k])

    def read(self, state: Mapping[str, Tensor], track: str | None = None) -> dict[str, Tensor]:
        """The averaged tensors of one track under their own names; views of the state. Raises UnknownNameError."""
        prefix = f"{self.tracks[0] if track is None else track}/"
        out = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if not out:
            expected, remedy = f"one of {self.tracks}", "Read a track that was kept."
            raise UnknownNameError("track of an average", got=repr(track), expected=expected, remedy=remedy)
        return out


@final
@dataclass(frozen=True)
class EMA(Average):
    """The same factor at every step. decay: beta in [0, 1); it remembers about 1 / (1 - beta) steps."""

    decay: float = 0.9999

    def __post_init__(self) -> None:
        check_number("decay of EMA", self.decay, 0, 1 - 1e-12)

    @property
    def tracks(self) -> tuple[str, ...]:
        """One: "mean"."""
        return ("mean",)

    def beta(self, track: int, seen: int, batch: int) -> float:
        """See `Average.beta`."""
        return self.decay


@final
@dataclass(frozen=True)
class HalfLifeEMA(Average):
    """A half-life in samples, so that it does not change with the batch size, shorter at first.

    samples: H > 0 / rampup: rho > 0, or None for none.
    """

    samples: float = 500_000
    rampup: float | None = 0.05

    def __post_init__(self) -> None:
        check_number("samples of HalfLifeEMA", self.samples, 0, open_low=True)
        if self.rampup is not None:
            check_number("rampup of HalfLifeEMA", self.rampup, 0, open_low=True)

    @property
    def tracks(self) -> tuple[str, ...]:
        """One: "mean"."""
        return ("mean",)

    def beta(self, track: int, seen: int, batch: int) -> float:
        """See `Average.beta`."""
        half_life = self.samples if self.rampup is None else min(self.samples, self.rampup * seen)
        return 0.5 ** (batch / half_life)


@final
@dataclass(frozen=True)
class PowerEMA(Average):
    """Averages that lengthen with the training. widths: relative standard deviations in (0, 0.2886]; first is read."""

    widths: tuple[float, ...] = (0.05, 0.1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or len(set(self.tracks)) != len(self.widths):
            expected, remedy = "at least one width, all distinct", "The paper keeps (0.05, 0.10)."
            raise RangeError("widths of PowerEMA", got=self.widths, expected=expected, remedy=remedy)
        for width in self.widths:
            power_gamma(width)

    @property
    def tracks(self) -> tuple[str, ...]:
        """The widths as text, such as ("0.05", "0.1")."""
        return tuple(f"{width:g}" for width in self.widths)

    def beta(self, track: int, seen: int, batch: int) -> float:
        """See `Average.beta`."""
        return (1 - batch / seen) ** (power_gamma(self.widths[track]) + 1)


def power_gamma(width: float) -> float:
    """The exponent gamma >= 0 of the profile of relative standard deviation `width` in (0, 1/sqrt(12)].

    The largest real root of gamma^3 + 7 gamma^2 + (16 - s^-2) gamma + 12 - s^-2. Raises RangeError.
    """
    check_number("relative width of a power average", width, 0, _WIDEST * (1 + 1e-9), open_low=True)
    c = width**-2
    gamma = 7 + c**0.5  # right of every root, where the cubic is convex: Newton falls onto the largest
    for _ in range(100):
        value = ((gamma + 7) * gamma + 16 - c) * gamma + 12 - c
        new = gamma - value / ((3 * gamma + 14) * gamma + 16 - c)
        if not new < gamma:
            break
        gamma = new
    return max(gamma, 0.0)


def power_width(gamma: float) -> float:
    """The relative standard deviation of the profile tau^gamma; the inverse of `power_gamma`. gamma: >= 0."""
    check_number("gamma of a power average", gamma, 0)
    return ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5
