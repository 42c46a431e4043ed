"""A small reader of pictures with several objects: where each is and what it is, on a grid of half the resolution.

A model that is asked for several objects must be judged object by object, and a classifier of whole pictures would need
a class for every combination. A fully convolutional network answers at each place of the picture instead: is the
centre of an object here, and if so, of which one.

    h(x)        = stem, `fine` blocks of `width` channels, stride 2, `deep` blocks of 2 `width` channels
    features(x) = mean over cells of silu(norm(h))                                                     (B, 2 width)
    net(x)      = W silu(norm(h)) + b                    (B, 1 + forms + colours + sizes + 2, H/2, W/2)

The maps along the second axis, as `split` names them:

=======  ======================================================================  ==================
heat     logit that an object's centre lies in the cell                          (B, h, w)
form     logits of what it is, colour and size likewise                          (B, forms, h, w)
offset   centre minus middle of the cell, (x, y) in cells, in -1/2..1/2          (B, 2, h, w)
=======  ======================================================================  ==================

Cell (i, j) covers the pixels [2 j, 2 j + 2) x [2 i, 2 i + 2). The features also serve as a space for distances between
sets of pictures. References: Zhou et al. 2019, arXiv 1904.07850 (objects as points); He et al. 2016, arXiv 1603.05027.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import ShapeError
from wayfield.field.nets.layers import (
    ConvBlock,
    check_divides,
    check_input,
    check_positive,
    check_shape,
    initialise,
)

__all__ = ["STRIDE", "Detector", "DetectorConfig", "Maps", "split"]

STRIDE = 2
"""Pixels along the side of a cell."""


@dataclass(frozen=True)
class DetectorConfig:
    """Fields of a `Detector`.

    shape: (C, H, W) of one picture, H and W even / forms, colours, sizes: number of values of each attribute /
    width: channels at full resolution, twice as many on the grid / fine: residual blocks at full resolution, may be 0 /
    deep: residual blocks on the grid / groups: of GroupNorm, dividing `width`.
    """

    shape: tuple[int, ...]
    forms: int = 42
    colours: int = 6
    sizes: int = 2
    width: int = 32
    fine: int = 1
    deep: int = 2
    groups: int = 8

    def __post_init__(self) -> None:
        check_shape(self, axes=3)
        check_positive(self, "forms", "colours", "sizes", "width", "deep", "groups")
        check_positive(self, "fine", least=0)
        check_divides("DetectorConfig.width over groups", self.groups, self.width, "Change groups or width.")
        for side in self.shape[1:]:
            check_divides("side of a picture for a Detector", STRIDE, side, "Crop or pad the pictures.")


class Maps(NamedTuple):
    """The output of a `Detector` by name: heat (B, h, w), form, colour and size (B, n, h, w), offset (B, 2, h, w)."""

    heat: Tensor
    form: Tensor
    colour: Tensor
    size: Tensor
    offset: Tensor


def split(out: Tensor, config: DetectorConfig) -> Maps:
    """The maps in an output (B, channels, h, w) of the network of `config`; views. Raises ShapeError if it is none."""
    counts = (1, config.forms, config.colours, config.sizes, 2)
    expected = (sum(counts), *(side // STRIDE for side in config.shape[1:]))
    if out.ndim != 4 or tuple(out.shape[1:]) != expected:
        remedy = "Give the output of the network with this config."
        raise ShapeError("output of a Detector", got=tuple(out.shape), expected=("B", *expected), remedy=remedy)
    heat, form, colour, size, offset = out.split(counts, 1)
    return Maps(heat[:, 0], form, colour, size, offset)


class Detector(nn.Module):
    """detector(x) -> maps (B, 1 + forms + colours + sizes + 2, H/2, W/2), named by `split`: x (B, C, H, W)."""

    def __init__(self, config: DetectorConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width, groups = config.width, config.groups
        with torch.device("meta"):
            self.stem = nn.Conv2d(config.shape[0], width, 3, padding=1)
            self.fine = nn.ModuleList(ConvBlock(width, width, 0, groups) for _ in range(config.fine))
            self.down = nn.Conv2d(width, 2 * width, 3, stride=STRIDE, padding=1)
            self.deep = nn.ModuleList(ConvBlock(2 * width, 2 * width, 0, groups) for _ in range(config.deep))
            self.norm = nn.GroupNorm(groups, 2 * width)
            self.out = nn.Conv2d(2 * width, 1 + config.forms + config.colours + config.sizes + 2, 1)
        initialise(self, seed)

    def features(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> features (B, 2 width), the mean over cells of what the maps are read from."""
        return self._cells(x).mean((2, 3)).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> maps (B, 1 + forms + colours + sizes + 2, H/2, W/2)."""
        return self.out(self._cells(x)).to(x.dtype)

    def _cells(self, x: Tensor) -> Tensor:
        check_input("Detector", x, self.config.shape)
        h = self.stem(x)
        for block in self.fine:
            h = block(h, None)
        h = self.down(h)
        for block in self.deep:
            h = block(h, None)
        return F.silu(self.norm(h))
