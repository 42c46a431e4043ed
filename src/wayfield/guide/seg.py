r"""Smoothed energy guidance (SEG): away from what the network says when its self-attention is blurred.

Self-attention is a descent on an energy; blurring the attention weights over the places that ask makes its curvature
smaller. Unlike replacing the map by the identity (PAG), how far one goes is a number, sigma, while the scale can stay.

.. math:: \hat{x}_0 = x_0 + s\,(x_0 - x_0'), \qquad Q' = G_\sigma * Q, \qquad Q' K^T = G_\sigma * (Q K^T)

In use:

    model, undo = install(model, "seg", SmoothedAttention(("middle",), sigma=10.0))
    sample(model, grid, cond={}, conds={"smoothed": {"seg": True}}, guidance=SEG(3.0))

x0, x0': (B, *D), plain and smoothed / Q, K: (B, heads, N, c), N = h w places of a map like the picture / G: a Gaussian
over the map, in places, cut at 3 sigma and reflected at the edges as often as it takes; of sigma = inf it is the mean
of the whole map. Blurring is linear, so blurring queries is blurring the weights before the softmax. The two answers
are rows of one call. Queries of a text in the same layer are left as they are.

Defaults: s = 3, and in the authors' example sigma = 100 in the middle block of SDXL, which is all but the mean.
Deviations of diffusers' guider, for comparisons: at its own default, sigma beyond its threshold, it takes a box of the
map's size instead of the mean, and the mean below it; it blurs before the norm of the heads, and maps must be square.

Reference: Hong 2024, arXiv 2408.00760.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import RangeError
from wayfield.field.attention import Heads, Layer, attention_layers
from wayfield.field.binding import COND, Query
from wayfield.field.patch import Patch, Told, check_layers, gated
from wayfield.guide.contrast import Contrast
from wayfield.guide.terms import Factor, check_factor

__all__ = ["SEG", "SmoothedAttention", "blur"]

_FLAT = 1e4


@final
@dataclass(frozen=True)
class SEG(Contrast):
    """Away from the answer with smoothed attention, x0 + s (x0 - x0').

    s: finite, 0 means none; a tuple gives every sample its own / away: name of the condition whose gate is on, among
    the `conds` given to `sample`. Raises RangeError.
    """

    s: Factor = 3.0
    away: str = "smoothed"

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", check_factor("scale s of SEG", self.s))
        for name, value in (("plus", COND), ("minus", Query(self.away)), ("gain", self.s)):
            object.__setattr__(self, name, value)


@final
@dataclass(frozen=True)
class SmoothedAttention(Patch):
    """Self-attention with blurred queries in some layers, at rows whose gate is on.

    layers: dotted names of attention layers, or of modules that hold them; () means all / sigma: > 0, in places of the
    layer's map; from 10^4 on, and inf, the mean of the map. Raises RangeError or DTypeError.
    """

    layers: tuple[str, ...] = ()
    sigma: float = math.inf
    what: ClassVar[str] = "self-attention layer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers(self.layers))
        if isinstance(self.sigma, bool) or not isinstance(self.sigma, (int, float)) or not self.sigma > 0:
            remedy = "Give a width in places of the map; math.inf takes its mean."
            raise RangeError("sigma of SmoothedAttention", got=self.sigma, expected="a number > 0", remedy=remedy)

    def candidates(self, net: nn.Module) -> Mapping[str, Layer | nn.Module]:
        """See `Patch.candidates`: all but layers that look at a text alone."""
        return {name: layer for name, layer in attention_layers(net).items() if layer.kind != "cross"}

    def attend(self, heads: Heads, rows: Told) -> Tensor:
        """See `Patch.attend`. Raises ShapeError for tokens that are not the places of a map."""
        here, (high, wide) = heads.places, heads.grid()
        places = heads.q[:, :, here].unflatten(2, (high, wide))
        q = torch.cat([heads.q[:, :, : here.start], blur(places, self.sigma), heads.q[:, :, here.stop :]], 2)
        return gated(rows[""], heads.attend(q, heads.k, heads.v, heads.mask), heads.plain())


def blur(h: Tensor, sigma: float) -> Tensor:
    """h (..., high, wide, c) blurred over the map, as a list of places (..., high * wide, c)."""
    if sigma >= _FLAT:
        return h.mean((-3, -2), keepdim=True).expand_as(h).flatten(-3, -2)
    rows, columns = (_kernel(n, sigma, h) for n in h.shape[-3:-1])
    return torch.einsum("ij,kl,...jlc->...ikc", rows, columns, h).flatten(-3, -2)


def _kernel(n: int, sigma: float, like: Tensor) -> Tensor:
    """The weights (n, n) with which n places in a row are blurred; each row sums to 1."""
    reach = math.ceil(6 * sigma) // 2
    wide = torch.promote_types(like.dtype, torch.float32)
    offsets = torch.arange(-reach, reach + 1, device=like.device)
    weights = torch.exp(-0.5 * (offsets.to(wide) / sigma) ** 2)
    turn = max(2 * n - 2, 1)  # reflected again and again, the map repeats after so many places
    at = (torch.arange(n, device=like.device)[:, None] + offsets) % turn
    at = torch.minimum(at, turn - at).clamp(max=n - 1)
    laid = (weights / weights.sum()).expand(n, -1)
    return torch.zeros(n, n, dtype=wide, device=like.device).scatter_add(1, at, laid).to(like.dtype)
