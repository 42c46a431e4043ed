"""A convolutional U-Net with attention, for pictures.

A denoiser of pictures must see far (what is drawn) and near (its edges) at once. A U-Net works on several sizes of the
same map and hands the fine ones past the coarse ones; where attention is switched on, every place may also look at
every other place and at the words of a caption.

    down   per level: `blocks` residual blocks (+ attention), then a stride-2 convolution      (C_i, H/2^i, W/2^i)
    middle block, attention, block at the last level
    up     per level: `blocks` + 1 residual blocks on [h ; skip], then nearest upsampling and a convolution
    patch  pixel-unshuffle by p before and pixel-shuffle after: (C, H, W) <-> (C p^2, H/p, W/p)

FiLM from emb (time, class, pooled caption; see conditions.py) sits in every residual block. The keys of attention are
the places of the map followed by the rows of the context. The last convolution starts at zero, and so does each block.

References: Ronneberger et al. 2015, arXiv 1505.04597; Ho et al. 2020, arXiv 2006.11239 (app. B); Dhariwal & Nichol
2021, arXiv 2105.05233 (sec. 3); Nichol et al. 2021, arXiv 2112.10741 (caption tokens as keys); Hoogeboom et al.
2023, arXiv 2301.11093 (patching).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import RangeError
from wayfield.field.nets.conditions import Conditioning, Signal, check_conditions
from wayfield.field.nets.layers import (
    ConvBlock,
    GridAttention,
    check_divides,
    check_input,
    check_positive,
    check_shape,
    initialise,
    zeroed,
)

__all__ = ["UNet", "UNetConfig"]


@dataclass(frozen=True)
class UNetConfig:
    """Fields of a `UNet`.

    shape: (C, H, W), H and W multiples of patch 2^(levels - 1) / channels: per level, fine to coarse / blocks: residual
    blocks per level on the way down / attention: levels with attention, 0 = finest / heads: of each attention / patch:
    pixel-unshuffle factor / groups: of GroupNorm, dividing every entry of `channels` / width: of emb and context /
    num_classes: 0 = no label / vocab: rows of the token table, 0 = no tokens / max_tokens: longest sequence /
    token_blocks: transformer blocks over it / context_channels: C of cond["context"], 0 = none / frequencies,
    max_frequency: number and largest of the time sinusoids, radians per unit.
    """

    shape: tuple[int, ...]
    channels: tuple[int, ...] = (64, 128)
    blocks: int = 2
    attention: tuple[int, ...] = ()
    heads: int = 4
    patch: int = 1
    groups: int = 8
    width: int = 256
    num_classes: int = 0
    vocab: int = 0
    max_tokens: int = 32
    token_blocks: int = 1
    context_channels: int = 0
    frequencies: int = 32
    max_frequency: float = 16.0

    def __post_init__(self) -> None:
        check_shape(self, axes=3)
        check_positive(self, "channels", "blocks", "heads", "patch", "groups", "width")
        check_positive(self, "attention", least=0)
        levels = len(self.channels)
        if not levels:
            raise RangeError("UNetConfig.channels", got="()", expected="at least one level", remedy="Try (64, 128).")
        if any(level >= levels for level in self.attention):
            expected, remedy = f"levels in 0..{levels - 1}", "Count levels from 0, the finest."
            raise RangeError("UNetConfig.attention", got=self.attention, expected=expected, remedy=remedy)
        for size in self.shape[1:]:
            remedy = "Use fewer levels, another patch, or pad the pictures."
            check_divides("UNetConfig.shape over patch and levels", self.patch * 2 ** (levels - 1), size, remedy)
        for level, channels in enumerate(self.channels):
            check_divides("UNetConfig.channels over groups", self.groups, channels, "Change groups or channels.")
            if level in self.attention:
                check_divides("UNetConfig.channels over heads", self.heads, channels, "Change heads or channels.")
        check_conditions(self, self.width)


class UNet(nn.Module):
    """net(x, time, cond) -> (B, C, H, W): x (B, C, H, W), time () or (B,).

    cond["label"] (B,) int64 in 0..num_classes, where num_classes is the null; sequences as in `conditions.Sequence`,
    heard as a pooled vector and, at the levels with attention, key by key.
    """

    def __init__(self, config: UNetConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        first, last, pixels = config.channels[0], config.channels[-1], config.shape[0] * config.patch**2
        with torch.device("meta"):
            self.conditioning = Conditioning(config, config.width)
            self.stem = nn.Conv2d(pixels, first, 3, padding=1)
            self.down, skips = _way_down(config)
            attention = len(config.channels) - 1 in config.attention
            self.middle = nn.ModuleList([_Unit(config, last, last, attention), _Unit(config, last, last, False)])
            self.up = _way_up(config, skips)
            self.norm = nn.GroupNorm(config.groups, first)
            self.out = zeroed(nn.Conv2d(first, pixels, 3, padding=1))
        initialise(self, seed)

    def forward(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """x (B, C, H, W), time () or (B,), cond of batch-first tensors -> (B, C, H, W) in the dtype of x."""
        check_input("UNet", x, self.config.shape)
        signal = self.conditioning(time, cond, x.shape[0])
        h = self.stem(F.pixel_unshuffle(x, self.config.patch))
        skips = [h]
        for step in self.down:
            h = step(h, signal)
            skips.append(h)
        for step in self.middle:
            h = step(h, signal)
        for step in self.up:
            h = step(torch.cat([h, skips.pop()], 1) if isinstance(step, _Unit) else h, signal)
        h = self.out(F.silu(self.norm(h)))
        return F.pixel_shuffle(h, self.config.patch).to(x.dtype)


def _way_down(config: UNetConfig) -> tuple[nn.ModuleList, list[int]]:
    """The steps from fine to coarse, and the channels each of them hands across, the stem's first."""
    steps, skips = nn.ModuleList(), [config.channels[0]]
    for level, channels in enumerate(config.channels):
        if level:
            steps.append(_Down(skips[-1]))
            skips.append(skips[-1])
        for _ in range(config.blocks):
            steps.append(_Unit(config, skips[-1], channels, level in config.attention))
            skips.append(channels)
    return steps, skips


def _way_up(config: UNetConfig, skips: list[int]) -> nn.ModuleList:
    """The steps from coarse to fine; each unit takes the last entry of `skips` off."""
    steps, skips, have = nn.ModuleList(), list(skips), config.channels[-1]
    for level, channels in reversed(list(enumerate(config.channels))):
        for _ in range(config.blocks + 1):
            steps.append(_Unit(config, have + skips.pop(), channels, level in config.attention))
            have = channels
        if level:
            steps.append(_Up(channels))
    return steps


class _Unit(nn.Module):
    """Residual block, then attention where asked: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, config: UNetConfig, c_in: int, c_out: int, attention: bool) -> None:
        super().__init__()
        self.block = ConvBlock(c_in, c_out, config.width, config.groups)
        context_width = config.width if config.vocab or config.context_channels else 0
        self.attention = GridAttention(c_out, config.heads, config.groups, context_width) if attention else None

    def forward(self, h: Tensor, signal: Signal) -> Tensor:
        h = self.block(h, signal.emb)
        return h if self.attention is None else self.attention(h, signal.context, signal.mask)


class _Down(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, h: Tensor, _: Signal) -> Tensor:
        return self.conv(h)


class _Up(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, _: Signal) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
