"""Two small networks to judge with: an MLP for any data and a convolutional one for pictures.

    net(x, c) -> (B, out)      told the level: c () or (B,) from `Noisy`, which modulates every layer by FiLM
    net(x)    -> (B, out)      clean=True: a plain classifier of clean data, as one would get off the shelf

    MLP        h <- relu(film(W h)), `depth` times
    pictures   h <- relu(film(norm(conv h))), two per level; every level but the first halves the map and doubles the
               channels; then the mean over places

Nonlinearities are nn.ReLU modules, so that `smooth_activations` can swap them; there is no batch norm and no dropout,
so that a sample's answer never depends on its batch. Work is done in the dtype of the weights, answers have that of x.

Reference: Perez et al. 2018, arXiv 1709.07871 (FiLM).
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from wayfield.core.errors import ConditionError, RangeError
from wayfield.core.shapes import flatten
from wayfield.field.nets.layers import FourierTime, check_divides, check_input, initialise, modulate, zeroed

__all__ = ["MLPJudge", "PictureJudge"]

_FREQUENCIES, _TOP = 16, 16.0
_GROUPS = 8


class _Layer(nn.Module):
    """A linear or convolutional layer, a norm if there is one, FiLM if it is told the level, ReLU."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, channels: int, emb_width: int, *, norm: bool) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.GroupNorm(_GROUPS, channels) if norm else nn.Identity()
        self.film = zeroed(nn.Linear(emb_width, 2 * channels)) if emb_width else None
        self.relu = nn.ReLU()

    def forward(self, h: Tensor, emb: Tensor | None) -> Tensor:
        """h (B, C) or (B, C, H, W), emb (1 or B, emb_width) -> the same with the layer's channels."""
        h = self.norm(self.layer(h))
        if self.film is not None and emb is not None:
            film = self.film(emb)
            shift, scale = film.reshape(film.shape + (1,) * (h.ndim - 2)).chunk(2, 1)
            h = modulate(h, shift, scale)
        return self.relu(h)


class _Judge(nn.Module):
    """What both have in common: the level's features, the layers and the head."""

    def _begin(self, width: int, *, clean: bool) -> None:
        self.clean, self.emb_width = clean, 0 if clean else width
        self.time = None if clean else FourierTime(width, _FREQUENCIES, _TOP)
        self.layers = nn.ModuleList()

    def _run(self, h: Tensor, c: Tensor | None, rows: int) -> Tensor:
        if (c is None) != self.clean:
            expected = "none, since clean=True" if self.clean else "one, since clean=False"
            remedy = "Call judge(x) for a clean one, Noisy(judge)(x, level) otherwise."
            raise ConditionError(
                "noise level of a judge", got="none" if c is None else "one", expected=expected, remedy=remedy
            )
        emb = None if self.time is None or c is None else self.time(c).relu()
        for layer in self.layers:
            h = layer(h, emb)
        return h


@final
class MLPJudge(_Judge):
    """For data of `dim` numbers. out: numbers per row / depth: hidden layers / clean: not told the noise level.

    Raises RangeError for sizes below 1; when called ShapeError or ConditionError.
    """

    def __init__(
        self, dim: int, out: int, *, width: int = 128, depth: int = 2, clean: bool = False, seed: int = 0
    ) -> None:
        _check_sizes(dim=dim, out=out, width=width, depth=depth)
        super().__init__()
        self.dim = dim
        with torch.device("meta"):  # filled by `initialise` alone
            self._begin(width, clean=clean)
            for k in range(depth):
                layer = nn.Linear(dim if k == 0 else width, width)
                self.layers.append(_Layer(layer, width, self.emb_width, norm=False))
            self.head = nn.Linear(width, out)
        initialise(self, seed)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, *D) with prod D = dim, c () or (B,) unless clean -> (B, out)."""
        flat = flatten(x)
        check_input("MLPJudge", flat, (self.dim,))
        return self.head(self._run(flat.to(self.head.weight.dtype), c, len(x))).to(x.dtype)


@final
class PictureJudge(_Judge):
    """For pictures. out: numbers per row / width: channels of the finest level, a multiple of 8 / levels: sizes of the
    map / clean: not told the noise level.

    Raises RangeError for sizes below 1, ShapeError for the width; when called ShapeError or ConditionError.
    """

    def __init__(
        self, channels: int, out: int, *, width: int = 16, levels: int = 4, clean: bool = False, seed: int = 0
    ) -> None:
        _check_sizes(channels=channels, out=out, width=width, levels=levels)
        check_divides("PictureJudge width", _GROUPS, width, "Change the width.")
        super().__init__()
        self.channels = have = channels
        with torch.device("meta"):
            self._begin(width, clean=clean)
            for level in range(levels):
                wide = width * 2**level
                for stride in (1 if level == 0 else 2, 1):
                    conv = nn.Conv2d(have, wide, 3, stride=stride, padding=1)
                    self.layers.append(_Layer(conv, wide, self.emb_width, norm=True))
                    have = wide
            self.head = nn.Linear(have, out)
        initialise(self, seed)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), c () or (B,) unless clean -> (B, out)."""
        check_input("PictureJudge", x, (self.channels, *x.shape[2:]))
        h = self._run(x.to(self.head.weight.dtype), c, len(x))
        return self.head(h.mean((2, 3))).to(x.dtype)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RangeError(f"{name} of a judge", got=value, expected="an integer >= 1", remedy="Choose another.")
