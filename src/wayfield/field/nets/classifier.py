"""A small classifier of clean or noisy samples, and a space of features to measure distances in.

Classifier guidance needs log p(y | x_t) at every noise level, and figures of merit need features of clean samples that
tell classes apart. One network serves both: convolutions for (C, H, W), an MLP for any other shape.

    features(x) = mean over places of silu(norm(h))     (conv)   or   silu(norm(h))     (MLP)          (B, F)
    classifier(x) = W features(x) + b                                                                  (B, classes)

With noise_aware=True both also take the network time s, () or (B,), which modulates every block by FiLM. F is
`width` 2^(levels - 1) for pictures and `width` otherwise.

References: Dhariwal & Nichol 2021, arXiv 2105.05233 (sec. 4: classifiers trained on noisy images); He et al. 2016,
arXiv 1603.05027.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import ConditionError
from wayfield.core.shapes import flatten
from wayfield.field.nets.layers import (
    ConvBlock,
    FourierTime,
    MLPBlock,
    check_divides,
    check_frequencies,
    check_input,
    check_positive,
    check_shape,
    check_time,
    initialise,
)

__all__ = ["Classifier", "ClassifierConfig"]


@dataclass(frozen=True)
class ClassifierConfig:
    """Fields of a `Classifier`.

    shape: of one sample; (C, H, W) is read by convolutions, anything else by an MLP / classes: number of logits /
    width: channels of the finest level, or of the MLP / levels: sizes of the map, each half the last with twice the
    channels / blocks: residual blocks per level (the MLP: levels * blocks) / groups: of GroupNorm, dividing `width` /
    noise_aware: takes the network time / frequencies, max_frequency: of its sinusoids, radians per unit.
    """

    shape: tuple[int, ...]
    classes: int
    width: int = 64
    levels: int = 2
    blocks: int = 1
    groups: int = 8
    noise_aware: bool = False
    frequencies: int = 32
    max_frequency: float = 16.0

    def __post_init__(self) -> None:
        check_shape(self, axes=None)
        check_positive(self, "classes", "width", "levels", "blocks", "groups")
        check_frequencies(self)
        if len(self.shape) == 3:
            check_divides("ClassifierConfig.width over groups", self.groups, self.width, "Change groups or width.")


class Classifier(nn.Module):
    """classifier(x) -> logits (B, classes), or classifier(x, time) when built with noise_aware=True: x (B, *D)."""

    def __init__(self, config: ClassifierConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        width = config.width
        with torch.device("meta"):
            emb_width = 2 * width if config.noise_aware else 0
            fourier = FourierTime(emb_width, config.frequencies, config.max_frequency) if config.noise_aware else None
            self.time = fourier
            self.blocks = nn.ModuleList()
            if len(config.shape) == 3:
                self.stem, last = nn.Conv2d(config.shape[0], width, 3, padding=1), width * 2 ** (config.levels - 1)
                self._lay_maps(emb_width)
                self.norm = nn.GroupNorm(config.groups, last)
            else:
                self.stem, last = nn.Linear(math.prod(config.shape), width), width
                self.blocks.extend(MLPBlock(width, 2 * width, emb_width) for _ in range(config.levels * config.blocks))
                self.norm = nn.LayerNorm(last)
            self.out = nn.Linear(last, config.classes)
        initialise(self, seed)

    def _lay_maps(self, emb_width: int) -> None:
        config, have = self.config, self.config.width
        for level in range(config.levels):
            channels = config.width * 2**level
            if level:
                self.blocks.append(nn.Conv2d(have, channels, 3, stride=2, padding=1))
            self.blocks.extend(ConvBlock(channels, channels, emb_width, config.groups) for _ in range(config.blocks))
            have = channels

    def features(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, *D), time () or (B,) if noise-aware -> penultimate features (B, F)."""
        check_input("Classifier", x, self.config.shape)
        emb = self._emb(time, x.shape[0])
        h = self.stem(x if len(self.config.shape) == 3 else flatten(x))
        for block in self.blocks:
            h = block(h) if isinstance(block, nn.Conv2d) else block(h, emb)
        h = F.silu(self.norm(h))
        return h.mean((2, 3)) if h.ndim == 4 else h

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, *D), time () or (B,) if noise-aware -> logits (B, classes)."""
        return self.out(self.features(x, time)).to(x.dtype)

    def _emb(self, time: Tensor | None, rows: int) -> Tensor | None:
        if self.time is not None and time is not None:
            check_time("Classifier", time, rows)
            return F.silu(self.time(time))
        if self.time is None and time is None:
            return None
        got = "none" if time is None else "one"
        expected = "one, since noise_aware=True" if time is None else "none, since noise_aware=False"
        raise ConditionError("Classifier time", got=got, expected=expected, remedy="Pass what it was built for.")
