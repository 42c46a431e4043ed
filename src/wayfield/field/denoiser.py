r"""A network becomes a denoiser: network + path + output kind + input scaling + condition schema.

.. math:: y = F(c_{in} x, \; c_{time}, \; cond), \qquad x_0 = c_0 x + c_1 y, \qquad \varepsilon = c_2 x + c_3 y

The four solve numbers and the two input numbers depend on the level alone. They are computed in float64 (one 2x2 solve,
`core.predict`) into a `Level`, so that a denoising costs one network call and two multiply-adds, whatever the path,
kind and preconditioning.

=======  ==================================================  ==========
symbol   meaning                                             shape
=======  ==================================================  ==========
x, y     noisy points, network answers                       (B, *D)
level    numbers of one noise level                          () or (B,)
cond     named batch-first tensors                           (B, ...)
=======  ==================================================  ==========

References: Karras et al. 2022, table 1 and eq. 7 (preconditioning).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import DeviceError, DTypeError, RangeError, ShapeError, unknown_name
from wayfield.core.path import Path
from wayfield.core.predict import Kind, Prediction
from wayfield.core.schedule import Tabulated
from wayfield.core.shapes import expand
from wayfield.field.cond import Cond, Schema

__all__ = ["TIME_INPUTS", "Call", "Denoiser", "Landing", "Level", "Reading"]

Call = Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


class Level(NamedTuple):
    """Everything a denoising needs to know of a noise level, each () or (B,): scales, input numbers, solve numbers, and
    those of eps = point_x x + point_x0 x0, the noise of a point whose clean data are given.

    c_in is None where it would be 1: a network that sees x as it is should not pay for it.
    """

    alpha: Tensor
    sigma: Tensor
    c_in: Tensor | None
    c_time: Tensor
    x0_x: Tensor
    x0_y: Tensor
    eps_x: Tensor
    eps_y: Tensor
    point_x: Tensor
    point_x0: Tensor

    def map(self, f: Callable[[Tensor], Tensor]) -> Level:
        """The level with `f` applied to each of its numbers."""
        return Level(*(c if c is None else f(c) for c in self))  # pyright: ignore[reportArgumentType]

    def express(self, x0: Tensor, x: Tensor, space: str) -> Tensor:
        """x0 at points x (B, *D) as noise ("eps") or as a network's answer ("native"); the level is laid out over x."""
        if space == "eps":
            return torch.addcmul(self.point_x * x, self.point_x0, x0)
        return (x0 - self.x0_x * x) / self.x0_y

    def recover(self, y: Tensor, x: Tensor, space: str) -> Tensor:
        """The x0 behind `express(x0, x, space)`."""
        if space == "eps":
            return (y - self.point_x * x) / self.point_x0
        return torch.addcmul(self.x0_x * x, self.x0_y, y)


class Landing(NamedTuple):
    """The scales of the level that a step goes to, each (); a clean end has sigma = 0."""

    alpha: Tensor
    sigma: Tensor


def _quarter_log_sigma(path: Path, t: Tensor) -> Tensor:
    return (-0.125 * path.log_snr(t)).clamp(-10, 10)


def _index(path: Path, t: Tensor) -> Tensor:
    if not isinstance(path, Tabulated):
        raise DTypeError(
            "time input 'index'", got=repr(path), expected="a Tabulated path", remedy="Use 't' or 'log_sigma/4'."
        )
    return t * path.T - 1


TIME_INPUTS: Mapping[str, Callable[[Path, Tensor], Tensor]] = {
    "t": lambda path, t: t,
    "1000t": lambda path, t: 1000 * t,
    "log_sigma/4": _quarter_log_sigma,
    "log_snr": lambda path, t: path.log_snr(t).clamp(-40, 40),
    "index": _index,
}


@final
@dataclass(frozen=True)
class Reading:
    """How a network's numbers are read, apart from its weights: its path, output kind, time input and input scaling."""

    path: Path
    kind: Kind
    time: str = "t"
    scale_input: bool = False

    def level(
        self,
        t: Tensor,
        *,
        path: Path | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Level:
        """The numbers of the levels at times `t` () or (B,), computed in float64, then cast and moved.

        path: the path the points live on, if not the denoiser's own. Its point x then equals r times a point of the
        denoiser's path of the same log-SNR, with r = sqrt((alpha^2 + sigma^2) / (alpha'^2 + sigma'^2)), and only the
        numbers that multiply x change.
        """
        t = t.double()
        scales = outer = self.path.scales(t)
        c_in = None
        if path is not None and path != self.path:
            outer = path.scales(t)
            t = self.path.time(path.log_snr(t))
            scales = self.path.scales(t)
            t = torch.where((t < -1e-9) | (t > 1 + 1e-9), torch.full_like(t, torch.nan), t.clamp(0, 1))
        c0, c1, c2, c3 = self.kind.solve_row(scales)
        if self.scale_input or self.kind.name == "edm":
            c_in = (scales.sigma**2 + (scales.alpha * self.kind.sigma_data) ** 2).rsqrt()
        if outer is not scales:
            r = ((scales.alpha**2 + scales.sigma**2) / (outer.alpha**2 + outer.sigma**2)).sqrt()
            c_in, c0, c2 = (r if c_in is None else c_in * r), c0 * r, c2 * r
        a, s, c_time = outer.alpha, outer.sigma, TIME_INPUTS[self.time](self.path, t)
        return Level(a, s, c_in, c_time, c0, c1, c2, c3, 1 / s, -a / s).map(lambda c: c.to(device=device, dtype=dtype))


@final
@dataclass(frozen=True, eq=False)
class Denoiser:
    """x0- and eps-estimates of noisy points from one network.

    net: called as ``call(net, x_in, time, cond)``, by default ``net(x_in, time, cond)`` with cond a mapping of tensors.
    path: the path it was trained on / kind: what its answer means, a `Kind` or one of its names.
    time: what it is told of the level, a name from `TIME_INPUTS` / scale_input: divide x by sqrt(sigma^2 + alpha^2
    sigma_data^2) (always on for "edm") / schema: its conditions and which of them mean "none" / shape: its data shape
    *D, checked where known / call: how the network is called, if not by default / dtype: of the points the network is
    given, if not that of the run; its answer is cast back, and times are never rounded.
    """

    net: nn.Module
    path: Path
    kind: Kind | str
    time: str = "t"
    scale_input: bool = False
    schema: Schema = field(default_factory=Schema)
    shape: tuple[int, ...] | None = None
    call: Call | None = None
    dtype: torch.dtype | None = None
    _direct: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.kind, str):
            object.__setattr__(self, "kind", Kind(self.kind))
        object.__setattr__(self, "_direct", self.output.name == "x0")  # asked at every step
        if self.time not in TIME_INPUTS:
            raise unknown_name("time input", self.time, TIME_INPUTS)
        if not isinstance(self.path, Path):
            raise DTypeError(
                "path", got=type(self.path).__name__, expected="a Path", remedy="Use Straight(), VP(), EDM(), ..."
            )

    @property
    def output(self) -> Kind:
        """The output kind, as a `Kind`."""
        assert isinstance(self.kind, Kind)
        return self.kind

    @cached_property
    def reading(self) -> Reading:
        """Everything but the weights, hashable."""
        return Reading(self.path, self.output, self.time, self.scale_input)

    def level(
        self,
        t: Tensor,
        *,
        path: Path | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
    ) -> Level:
        """The numbers of the levels at times `t`; see `Reading.level`."""
        return self.reading.level(t, path=path, dtype=dtype, device=device)

    def answer(self, x: Tensor, level: Level, cond: Mapping[str, Tensor]) -> Tensor:
        """The network's answer y, (B, *D), in the type of x."""
        x_in = x if level.c_in is None else expand(level.c_in, x) * x
        if self.dtype is not None:
            x_in = x_in.to(self.dtype)
        y = self.net(x_in, level.c_time, cond) if self.call is None else self.call(self.net, x_in, level.c_time, cond)
        if y.shape != x.shape:
            raise ShapeError(
                "network output",
                got=tuple(y.shape),
                expected=tuple(x.shape),
                remedy="Check the network, or drop its learned-variance half with `call=`.",
            )
        return y if y.dtype == x.dtype else y.to(x.dtype)

    def denoise(self, x: Tensor, level: Level, cond: Mapping[str, Tensor]) -> Prediction:
        """The pair (x0, eps) at points x (B, *D) of the given level; differentiable."""
        y = self.answer(x, level, cond)
        level = level if level.alpha.ndim == 0 else level.map(lambda c: expand(c, x))
        x0 = y if self._direct else torch.addcmul(level.x0_x * x, level.x0_y, y)
        return Prediction(x0, lambda: torch.addcmul(level.eps_x * x, level.eps_y, y), tied=True)

    def clean(self, x: Tensor, level: Level, cond: Mapping[str, Tensor]) -> Tensor:
        """Only the x0 of `denoise`."""
        y = self.answer(x, level, cond)
        if self._direct:
            return y
        level = level if level.alpha.ndim == 0 else level.map(lambda c: expand(c, x))
        return torch.addcmul(level.x0_x * x, level.x0_y, y)

    def __call__(self, x: Tensor, t: float | Tensor, cond: Cond | Mapping[str, Any] | None = None) -> Prediction:
        """For single calls: the pair at points x (B, *D) and times t () or (B,), with a checked condition."""
        t = torch.as_tensor(t, dtype=torch.float64)
        if bool((t < 0).any()) or bool((t > 1).any()):
            raise RangeError(
                "t", got=f"{t.min():g}..{t.max():g}", expected="[0, 1]", remedy="t = 0 is data and t = 1 is noise."
            )
        self.check_points(x)
        bound = self.schema.bind(cond, len(x), x.device)
        return self.denoise(x, self.level(t, dtype=x.dtype, device=x.device), bound)

    def check_points(self, x: Tensor) -> None:
        """Raise an error if x does not suit: ShapeError for its data shape if that is known, DeviceError or DTypeError
        if the network's weights live elsewhere or have another type.
        """
        weight = next((p for p in self.net.parameters() if p.is_floating_point()), None)
        if weight is not None and weight.device != x.device:
            remedy = f"Pass device={str(weight.device)!r}, or move the model with .to({str(x.device)!r})."
            raise DeviceError("points", got=x.device, expected=f"{weight.device}, like the network", remedy=remedy)
        if weight is not None and weight.dtype != (self.dtype or x.dtype):
            remedy = f"Pass dtype={weight.dtype}, or make the Denoiser with dtype={weight.dtype}."
            raise DTypeError("points", got=x.dtype, expected=f"{weight.dtype}, like the network", remedy=remedy)
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise ShapeError(
                "points", got=tuple(x.shape), expected=("B", *self.shape), remedy="This model was made for that shape."
            )

    def to(self, device: torch.device | str) -> Denoiser:
        """Move the network in place and return self."""
        self.net.to(device)
        return self
