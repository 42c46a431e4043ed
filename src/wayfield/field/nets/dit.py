"""A small diffusion transformer, for pictures.

A transformer treats a picture as a sequence of patches, all at one resolution, and scales to any compute by width and
depth alone. Blocks are modulated by time and class through adaLN-zero, and look up a caption by cross-attention.

    h_0 = W_in patch(x) + place                                                        (B, N, width)
    h  <- h + g_1 * Attention( norm(h) (1 + c_1) + b_1 )
    h  <- h + CrossAttention( norm'(h), context )                 if the network reads sequences
    h  <- h + g_2 * MLP( norm(h) (1 + c_2) + b_2 ),               (b_1, c_1, g_1, b_2, c_2, g_2) = Linear(emb)
    out = unpatch( W_out [ norm(h) (1 + c) + b ] )                (b, c) = Linear(emb)

x: (B, C, H, W) / N = H W / p^2 patches / emb: (1 or B, width) and context: (B, M, width), see conditions.py. The
modulations, the output of cross-attention and W_out start at zero, so each block starts as the identity.

References: Peebles & Xie 2022, arXiv 2212.09748 (adaLN-zero, sec. 3.2); Chen et al. 2023, arXiv 2310.00426
(cross-attention after self-attention, sec. 2.3); Vaswani et al. 2017, arXiv 1706.03762 (sinusoid places, sec. 3.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import unknown_name
from wayfield.field.nets.conditions import Conditioning, Signal, check_conditions
from wayfield.field.nets.layers import (
    Attention,
    check_divides,
    check_input,
    check_positive,
    check_shape,
    initialise,
    modulate,
    table,
    zeroed,
)

__all__ = ["DiT", "DiTConfig", "sincos_places"]


@dataclass(frozen=True)
class DiTConfig:
    """Fields of a `DiT`.

    shape: (C, H, W), H and W multiples of `patch` / patch: side of a patch / width, depth, heads: of the transformer /
    expand: inner width of its MLPs over `width` / places: "sincos" (fixed; width a multiple of 4) or "learned" /
    num_classes: 0 = no label / vocab: rows of the token table, 0 = no tokens / max_tokens: longest sequence /
    token_blocks: transformer blocks over it / context_channels: C of cond["context"], 0 = none / frequencies,
    max_frequency: number and largest of the time sinusoids, radians per unit.
    """

    shape: tuple[int, ...]
    patch: int = 4
    width: int = 128
    depth: int = 6
    heads: int = 4
    expand: int = 4
    places: str = "sincos"
    num_classes: int = 0
    vocab: int = 0
    max_tokens: int = 32
    token_blocks: int = 1
    context_channels: int = 0
    frequencies: int = 32
    max_frequency: float = 16.0

    def __post_init__(self) -> None:
        check_shape(self, axes=3)
        check_positive(self, "patch", "width", "depth", "heads", "expand")
        for size in self.shape[1:]:
            check_divides("DiTConfig.shape over patch", self.patch, size, "Use another patch, or pad the pictures.")
        check_divides("DiTConfig.width over heads", self.heads, self.width, "Change heads or width.")
        if self.places not in ("sincos", "learned"):
            raise unknown_name("DiT places", self.places, ("sincos", "learned"))
        if self.places == "sincos":
            check_divides("DiTConfig.width for places='sincos'", 4, self.width, "Change width, or use 'learned'.")
        check_conditions(self, self.width)


class DiT(nn.Module):
    """net(x, time, cond) -> (B, C, H, W): x (B, C, H, W), time () or (B,).

    cond["label"] (B,) int64 in 0..num_classes, where num_classes is the null; sequences as in `conditions.Sequence`,
    heard as a pooled vector and by cross-attention.
    """

    sincos: Tensor

    def __init__(self, config: DiTConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        c, high, wide = config.shape[0], config.shape[1] // config.patch, config.shape[2] // config.patch
        width, pixels = config.width, c * config.patch**2
        with torch.device("meta"):
            self.conditioning = Conditioning(config, width)
            self.stem = nn.Linear(pixels, width)
            self.learned = table(high * wide, width) if config.places == "learned" else None
            self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
            self.norm = nn.LayerNorm(width, elementwise_affine=False)
            self.film = zeroed(nn.Linear(width, 2 * width))
            self.out = zeroed(nn.Linear(width, pixels))
        if self.learned is None:
            places = sincos_places(high, wide, width).to(torch.get_default_dtype())
            self.register_buffer("sincos", places, persistent=False)
        initialise(self, seed)

    def forward(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """x (B, C, H, W), time () or (B,), cond of batch-first tensors -> (B, C, H, W) in the dtype of x."""
        check_input("DiT", x, self.config.shape)
        signal = self.conditioning(time, cond, x.shape[0])
        patches = F.pixel_unshuffle(x, self.config.patch)
        h = self.stem(patches.flatten(2).transpose(1, 2))
        h = h + (self.sincos if self.learned is None else self.learned.weight)
        for block in self.blocks:
            h = block(h, signal)
        shift, scale = self.film(signal.emb).unsqueeze(1).chunk(2, -1)
        h = self.out(modulate(self.norm(h), shift, scale))
        return F.pixel_shuffle(h.transpose(1, 2).reshape(patches.shape), self.config.patch).to(x.dtype)


def sincos_places(high: int, wide: int, width: int) -> Tensor:
    """Fixed 2-D places, (high * wide, width), float64: half the channels tell the row, half the column.

    Frequencies fall geometrically from 1 to 1/100 radian per patch: the grids here are at most some dozens wide, so the
    1/10000 of language models would leave half the channels constant.
    """
    powers = torch.arange(width // 4, device="cpu", dtype=torch.float64) / (width // 4)
    halves = []
    for count in (high, wide):
        angles = torch.arange(count, device="cpu", dtype=torch.float64)[:, None] * 100.0**-powers
        halves.append(torch.cat([angles.sin(), angles.cos()], 1))
    rows, columns = halves
    return torch.cat([rows.repeat_interleave(wide, 0), columns.repeat(high, 1)], 1)


class _Block(nn.Module):
    """Self-attention, cross-attention where there is a context, and an MLP on h (B, N, width)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, heads, inner = config.width, config.heads, config.expand * config.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.film = zeroed(nn.Linear(width, 6 * width))
        # its output is not zeroed: the gate is, and two zeros in a row would never leave zero
        self.attention = Attention(width, heads, own=True)
        self.inner, self.outer = nn.Linear(width, inner), nn.Linear(inner, width)
        reads = bool(config.vocab or config.context_channels)
        self.cross_norm = nn.LayerNorm(width) if reads else None
        self.cross = Attention(width, heads, own=False, context_width=width, zero=True) if reads else None

    def forward(self, h: Tensor, signal: Signal) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.film(signal.emb).unsqueeze(1).chunk(6, -1)
        h = h + gate1 * self.attention(modulate(self.norm1(h), shift1, scale1))
        if self.cross is not None and self.cross_norm is not None:
            h = h + self.cross(self.cross_norm(h), signal.context, signal.mask)
        y = F.gelu(self.inner(modulate(self.norm2(h), shift2, scale2)), approximate="tanh")
        return h + gate2 * self.outer(y)
