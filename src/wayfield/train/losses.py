r"""One denoising loss for every kind of network output, path and weighting.

Papers differ in what the network answers and in how levels are weighed; both are one formula. With D the x0-estimate
behind the answer y, and d = alpha B - sigma A the determinant of its kind (`core.predict`),
D - x0 = -(sigma / d) (y - y*), so

.. math:: \ell = w\, \overline{(D - x_0)^2} = \underbrace{w\, (\sigma / d)^2}_{\text{factor}}\, \overline{(y - y^*)^2},
   \qquad y^* = A x_0 + B \varepsilon, \qquad y = \text{net}(\alpha x_0 + \sigma \varepsilon)

The right-hand form is computed: the network's own error is of order one at every level, while D - x0 loses its digits
at low noise and is singular at high noise. The factor is float64; it is exactly 1 where a kind meets its own weight.

===========  ==================================  ============================================================
weight       w, on the squared x0 error          with SNR = alpha^2 / sigma^2
===========  ==================================  ============================================================
x0           1
eps          SNR                                 Ho et al. 2020, L_simple
v            SNR + 1                             Salimans & Ho 2022
velocity     ((alpha s' - alpha' s) / s)^2       flow matching, Lipman et al. 2023 (s = sigma)
edm          SNR + 1 / sigma_data^2              Karras et al. 2022, 1 / c_out^2
min_snr      min(SNR, gamma)                     Hang et al. 2023, gamma = 5
p2           SNR / (k + SNR)^gamma               Choi et al. 2022, k = gamma = 1
===========  ==================================  ============================================================

The overline is the mean over data axes. Shapes: x0, eps, y (B, *D); t, factor, loss (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, ShapeError, unknown_name
from wayfield.core.path import Scales
from wayfield.core.predict import Kind, check_regular
from wayfield.core.shapes import check_like, expand, flatten
from wayfield.field.cond import Cond, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.train.checks import check_number

__all__ = ["WEIGHTS", "Weight", "Weighting", "denoising_loss", "drop_labels", "error_factor"]

WEIGHTS = ("x0", "eps", "v", "velocity", "edm", "min_snr", "p2")


@final
@dataclass(frozen=True)
class Weight:
    """A weight on the squared x0 error. gamma: of "min_snr" (5) and "p2" (1) / k: of "p2" / sigma_data: of "edm"."""

    name: str
    gamma: float | None = None
    k: float = 1.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in WEIGHTS:
            raise unknown_name("weight", self.name, WEIGHTS)
        if self.gamma is not None:
            check_number("gamma of a weight", self.gamma, 0, open_low=True)
        check_number("k of a weight", self.k, 0, open_low=True)
        check_number("sigma_data of a weight", self.sigma_data, 0, open_low=True)

    def times_variance(self, scales: Scales) -> Tensor:
        """w sigma^2, with the shape of the scales: finite at both ends, which w alone is not."""
        a, s, da, ds = scales
        match self.name:
            case "x0":
                return s**2
            case "eps":
                return a**2
            case "v":
                return a**2 + s**2
            case "velocity":
                return (a * ds - da * s) ** 2
            case "edm":
                return a**2 + (s / self.sigma_data) ** 2
            case "min_snr":
                return torch.minimum(a**2, (5.0 if self.gamma is None else self.gamma) * s**2)
            case _:
                gamma = 1.0 if self.gamma is None else self.gamma
                return a**2 * (s**2 / (self.k * s**2 + a**2)) ** gamma

    def __call__(self, scales: Scales) -> Tensor:
        """w, with the shape of the scales; infinite at sigma = 0 for most names."""
        return self.times_variance(scales) / scales.sigma**2


Weighting = str | Weight | Callable[[Tensor], Tensor]
"""A name from `WEIGHTS`, a `Weight`, or a function of log-SNR (B,) that returns w (B,)."""


def error_factor(kind: Kind, weight: Weighting, scales: Scales) -> Tensor:
    """w (sigma / d)^2, the weight on the squared error of the network's own answer, with the shape of the scales.

    The name "edm" takes sigma_data from `kind`. Raises UnknownNameError.
    """
    A, B = kind.row(scales)
    d = scales.alpha * B - scales.sigma * A
    if isinstance(weight, str):
        weight = Weight(weight, sigma_data=kind.sigma_data)
    if isinstance(weight, Weight):
        return weight.times_variance(scales) / d**2
    log_snr = 2 * (scales.alpha.log() - scales.sigma.log())
    return weight(log_snr) * (scales.sigma / d) ** 2


def denoising_loss(
    denoiser: Denoiser, x0: Tensor, cond: Cond, t: Tensor, eps: Tensor, *, weight: Weighting = "v"
) -> Tensor:
    """The loss of each sample, (B,), differentiable in the network's parameters.

    x0: clean data (B, *D) / cond: bound conditions, each (B, ...) / t: times (B,), best float64 on the host /
    eps: standard normal noise like x0 / weight: see `Weighting`.
    Raises ShapeError, DTypeError or DeviceError for tensors that do not fit, SingularError where the kind is.
    """
    check_like("noise eps", eps, x0)
    denoiser.check_points(x0)
    if t.shape != (len(x0),):
        raise ShapeError("training times", got=tuple(t.shape), expected=(len(x0),), remedy="Give one time per sample.")
    t, kind = t.double(), denoiser.output
    if t.device.type == "cpu":  # elsewhere the check would wait for the device
        check_regular(kind, denoiser.path, t)
    scales = denoiser.path.scales(t)
    numbers = (*kind.row(scales), error_factor(kind, weight, scales))
    A, B, factor = (c.to(device=x0.device, dtype=x0.dtype) for c in numbers)
    level = denoiser.level(t, dtype=x0.dtype, device=x0.device)
    x = torch.addcmul(expand(level.alpha, x0) * x0, expand(level.sigma, x0), eps)
    target = torch.addcmul(expand(A, x0) * x0, expand(B, x0), eps)
    error = denoiser.answer(x, level, cond).to(x0.dtype) - target
    return factor * flatten(error).square().mean(1)


def drop_labels(cond: Cond, schema: Schema, keep: Tensor) -> Cond:
    """Conditions with the null value in every row where `keep` (B,) is False, so that one network learns both branches.

    Raises ConditionError if the schema has no null condition, ShapeError if `keep` is not one flag per row.
    """
    if not schema.fields:
        return cond
    null: Mapping[str, Any] = schema.bind_null(len(keep), keep.device)
    out: dict[str, Tensor] = {}
    for name, value in cond.items():
        if len(value) != len(keep) or keep.ndim != 1:
            got, remedy = f"{tuple(keep.shape)} for {len(value)} rows", "Give one flag per row."
            raise ShapeError("keep mask", got=got, expected=(len(value),), remedy=remedy)
        if name not in null:
            raise ConditionError(f"condition {name!r}", got=name, expected=sorted(null), remedy="Bind it first.")
        out[name] = torch.where(expand(keep, value), value, null[name].to(value.device))
    return out
