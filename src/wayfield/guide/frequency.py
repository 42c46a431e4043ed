r"""Frequency-decoupled guidance (FDG): another scale for the details than for the colours and the composition.

High scales sharpen details, and burn colours and take variety away; the two live at different spatial frequencies. A
Laplacian pyramid takes the push apart, each band gets its own scale, and the pyramid is put together again.

.. math:: L_k = G_k - U G_{k+1}, \quad G_{k+1} = D G_k, \quad G_0 = \delta; \qquad
   d_k = g_k L_k + U d_{k+1}, \quad d_K = g_K G_K, \qquad \hat{x}_0 = c + d_0, \quad g_k = w_k - 1

=========  =============================================================================  ==================
symbol     meaning                                                                        shape
=========  =============================================================================  ==================
delta      the push that is taken apart                                                   (B, *D)
G_k, L_k   smoothed and halved k times; the band of it                                    sides of D / 2^k
D, U       binomial blur of five values, then half the size by linear interpolation;
           back to the finer size by it, then the same blur; edges are mirrored
w_k        scale of a band, the finest first; all equal is CFG
=========  =============================================================================  ==================

All of this is linear in the push, and pushes of x0, noise and velocity are proportional: in every space it is the same
rule, and none need be chosen. With equal gains the pyramid gives back what it was given, whatever the sizes.

Defaults are diffusers': two bands, 10 for the fine one and 5 for the coarse one, the paper's for SDXL. Bands with steps
of their own are a sum: `Away().through(Bands((9, 0))).when(a) + Away().through(Bands((0, 4))).when(b)`.

Deviations of diffusers' guider: it also weighs the part of each band that is parallel to the answer's, and can rescale
by bands, which is not here; it pads pictures of which no side is a power of two, and then answers in the padded size;
where one scale of several is 1 it raises an error.

Reference: Sadat, Vontobel, Salehi & Weber 2025, Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low
CFG Scales, arXiv 2506.19713, algorithm 2 without its projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from wayfield.core.errors import RangeError, ShapeError
from wayfield.field.ask import Ask
from wayfield.guide.contrast import Away
from wayfield.guide.roles import Shaper, State, Step
from wayfield.guide.terms import Term, check_factor

__all__ = ["Bands", "fdg"]

_HALF = (torch.float16, torch.bfloat16)
_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@final
@dataclass(frozen=True)
class Bands(Shaper):
    """A push whose bands of frequency have gains of their own: `Away(NULL).through(Bands((9, 4)))`. See the module.

    gains: the finest band first, the coarse rest last; finite / axes: dimensions of (B, *D) that frequencies are along;
    the last two are those of pictures (B, channels, height, width).
    Raises RangeError, and ShapeError at the start of a run whose data lacks the axes or is too small to be halved so
    often: before each halving a side has at least 3 values.
    """

    gains: tuple[float, ...] = (9.0, 4.0)
    axes: tuple[int, ...] = (-2, -1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "gains", tuple(self.gains))
        object.__setattr__(self, "axes", tuple(self.axes))
        check_factor("gains of bands", self.gains)
        if not self.gains:
            raise RangeError("gains of bands", got=(), expected="at least one", remedy="(9, 4): fine, coarse.")
        if not self.axes or 0 in self.axes or any(isinstance(a, bool) or not isinstance(a, int) for a in self.axes):
            remedy = "Use (-2, -1) for pictures, (-1,) for sound."
            raise RangeError(
                "axes of bands", got=self.axes, expected="dimensions other than the batch's", remedy=remedy
            )

    def init(self, x: Tensor, n: int) -> State:
        """Nothing is remembered."""
        places = [a % x.ndim if -x.ndim <= a < x.ndim else 0 for a in self.axes]
        if 0 in places or len(set(places)) < len(places):
            expected = f"different ones of 1..{x.ndim - 1}, for data of shape {tuple(x.shape[1:])}"
            raise ShapeError("axes of bands", got=self.axes, expected=expected, remedy="Use (-1,) for the last alone.")
        halvings = len(self.gains) - 1
        if halvings and min(x.shape[a] for a in places) >> (halvings - 1) < 3:
            expected = f"sides of at least {3 << (halvings - 1)} for {len(self.gains)} bands"
            raise ShapeError("data of bands", got=tuple(x.shape[1:]), expected=expected, remedy="Use fewer bands.")
        return ()

    def shape(self, ask: Ask, push: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """See `Shaper.shape`."""
        finer = [push.float() if push.dtype in _HALF else push]
        for _ in self.gains[1:]:
            finer.append(self._down(finer[-1]))
        out = self.gains[-1] * finer[-1]
        for k in range(len(self.gains) - 2, -1, -1):  # g L + U d, with both U at once
            gain = self.gains[k]
            out = gain * finer[k] + self._up(out - gain * finer[k + 1], finer[k])
        return out.to(push.dtype), state

    def _down(self, y: Tensor) -> Tensor:
        """Blurred, then half as long along every axis."""
        for axis in self.axes:
            y = _resized(_blurred(y, axis), axis, y.shape[axis] // 2)
        return y

    def _up(self, y: Tensor, like: Tensor) -> Tensor:
        """As long as `like`, then blurred."""
        for axis in self.axes:
            y = _blurred(_resized(y, axis, like.shape[axis]), axis)
        return y


def fdg(w: tuple[float, ...] = (10.0, 5.0), *, axes: tuple[int, ...] = (-2, -1), away: str = "null") -> Term:
    """Classifier-free guidance with a scale for each band of frequency.

    w: scales, the finest band first; 1 means no guidance there / axes: as of `Bands` / away: name of the condition that
    is pushed away from. For scales of single samples put `Bands` behind what is scaled.
    Raises RangeError, and ShapeError as `Bands` does.
    """
    gains = tuple(v - 1 for v in w)
    return float(any(gains)) * Away(away).through(Bands(gains, axes))


def _blurred(y: Tensor, axis: int) -> Tensor:
    """Binomial weights along an axis of at least 3 values, mirrored at the edges without repeating them."""
    rows = y.movedim(axis, -1)
    n, flat = rows.shape[-1], F.pad(rows.reshape(-1, 1, rows.shape[-1]), (2, 2), mode="reflect")
    out = sum((weight * flat[..., k : k + n] for k, weight in enumerate(_BLUR)), torch.zeros_like(flat[..., :n]))
    return out.reshape(rows.shape).movedim(-1, axis)


def _resized(y: Tensor, axis: int, n: int) -> Tensor:
    """n values along an axis, by linear interpolation between the middles of values."""
    rows = y.movedim(axis, -1)
    out = F.interpolate(rows.reshape(-1, 1, rows.shape[-1]), size=n, mode="linear", align_corners=False)
    return out.reshape(*rows.shape[:-1], n).movedim(-1, axis)
