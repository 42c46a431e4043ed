r"""Saturation, contrast and overshoot of pictures: what strong guidance spoils first.

A high guidance scale burns colours and inflates contrast while class scores still rise. Three numbers per picture show
it; each is to be compared with its value on real pictures (nearer is better, not lower).

.. math::
    S &= \mathrm{mean}_{hw}\, \frac{\max(R, G, B) - \min(R, G, B)}{\max(R, G, B)} \quad (0 \text{ where } \max = 0) \\
    C &= \sqrt{\mathrm{mean}_{hw} (L - \bar L)^2}, \qquad L = 0.299 R + 0.587 G + 0.114 B

with R, G, B in [0, 1], made from pictures x (B, 3, H, W) in [-1, 1] by (x + 1) / 2, gamma left as it is. S lies in
[0, 1], C in [0, 1/2].

References:
    Smith, Color gamut transform pairs, 1978 (HSV). Peli, Contrast in complex images, 1990 (RMS contrast).
    Sadat, Hilliges, Weber, Eliminating oversaturation and artifacts of high guidance scales, 2024 (their use here).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, ShapeError
from wayfield.core.shapes import check_samples
from wayfield.measure.frechet import check_finite

__all__ = ["contrast", "overshoot", "saturation"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the weights of every common "convert to grey"
_SLACK = 1e-3  # rounding of float16 and of resizing


def saturation(pictures: Tensor) -> Tensor:
    """Mean HSV saturation of each picture: (B, 3, H, W) or (B, 1, H, W) in [-1, 1] -> (B,), float64, in [0, 1].

    Grey pictures, one channel or three equal ones, have 0; so does black. The rule S = (max - min) / max is that of
    `colorsys.rgb_to_hsv`. Dark noise counts fully: (0.01, 0, 0) has S = 1.
    Raises RangeError (a value outside [-1, 1]), ShapeError, DTypeError, NonFiniteError.
    """
    rgb = _unit_range(pictures)
    top, bottom = rgb.amax(1), rgb.amin(1)
    # Where top is 0 so is bottom: any divisor gives the defined 0.
    return ((top - bottom) / torch.where(top > 0, top, 1)).mean((1, 2))


def contrast(pictures: Tensor) -> Tensor:
    """RMS contrast of each picture, the standard deviation of its luminance: (B, 3 or 1, H, W) -> (B,), float64.

    pictures: in [-1, 1]; one channel is its own luminance. A constant picture has 0, half black and half white 1/2.
    The divisor is H W (no correction). Raises RangeError (a value outside [-1, 1]), ShapeError, DTypeError,
    NonFiniteError.
    """
    rgb = _unit_range(pictures)
    weights = rgb.new_tensor(_LUMA if rgb.shape[1] == 3 else (1.0,))
    return torch.einsum("bchw,c->bhw", rgb, weights).flatten(1).std(1, correction=0)


def overshoot(x: Tensor, *, margin: float = 0.05) -> Tensor:
    """Share of the values of each sample outside [-1 - margin, 1 + margin]: (B, *D) -> (B,), float64, in [0, 1].

    Take it before clamping: it is the part of the damage that a saved file hides.
    Raises RangeError (margin < 0), ShapeError, DTypeError, NonFiniteError.
    """
    check_samples("samples", x)
    if not margin >= 0:
        raise RangeError("margin", got=margin, expected=">= 0", remedy="0.05 forgives the ringing of a good sampler.")
    check_finite("samples", x)
    return (x.detach().abs() > 1 + margin).flatten(1).double().mean(1)


def _unit_range(pictures: Tensor) -> Tensor:
    check_samples("pictures", pictures)
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
        expected = "(B, 3, H, W) or (B, 1, H, W)"
        raise ShapeError("pictures", got=tuple(pictures.shape), expected=expected, remedy="Put channels second.")
    check_finite("pictures", pictures)
    x = pictures.detach().double()
    low, high = float(x.min()), float(x.max())
    if low < -1 - _SLACK or high > 1 + _SLACK:
        remedy = "Score what would be saved: x.clamp(-1, 1); rescale 0..255 by x / 127.5 - 1."
        raise RangeError("pictures", got=f"[{low:.4g}, {high:.4g}]", expected="[-1, 1]", remedy=remedy)
    return ((x + 1) / 2).clamp(0, 1)
