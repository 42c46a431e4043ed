"""A residual network on flat vectors, for points, small pictures and robot actions.

Data without a grid, or with one so small that convolutions do not pay (8x8 digits), needs a network whose every layer
sees the whole sample. Residual blocks of LayerNorm, FiLM and two linear layers train fast and stay stable in depth.

    h_0     = W_in x
    h_{i+1} = h_i + W_2 silu( W_1 [ norm(h_i) (1 + scale_i) + shift_i ] ),   (scale_i, shift_i) = Linear(emb)
    out     = W_out [ norm(h_n) (1 + scale) + shift ]

x: (B, *D), flattened / emb: (1 or B, width), from time and conditions, see conditions.py / h: (B, width). W_2 and W_out
start at zero, so the network starts as zero and each block as the identity.

References: Perez et al. 2018, arXiv 1709.07871 (FiLM); He et al. 2016, arXiv 1603.05027; Dhariwal & Nichol 2021, arXiv
2105.05233 (adaptive norm, sec. 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wayfield.core.shapes import flatten
from wayfield.field.nets.conditions import Conditioning, check_conditions
from wayfield.field.nets.layers import MLPBlock, check_input, check_positive, check_shape, initialise, modulate, zeroed

__all__ = ["ResidualMLP", "ResidualMLPConfig"]


@dataclass(frozen=True)
class ResidualMLPConfig:
    """Fields of a `ResidualMLP`.

    shape: of one sample, any number of axes / width, blocks: size of the residual stream and number of blocks /
    expand: inner width of a block over `width` / num_classes: 0 = no label / vocab: rows of the token table, 0 = no
    tokens / max_tokens: longest sequence / token_blocks: transformer blocks over it / context_channels: C of
    cond["context"], 0 = none / frequencies, max_frequency: number and largest of the time sinusoids, radians per unit.
    """

    shape: tuple[int, ...]
    width: int = 256
    blocks: int = 4
    expand: int = 2
    num_classes: int = 0
    vocab: int = 0
    max_tokens: int = 32
    token_blocks: int = 1
    context_channels: int = 0
    frequencies: int = 32
    max_frequency: float = 16.0

    def __post_init__(self) -> None:
        check_shape(self, axes=None)
        check_positive(self, "width", "blocks", "expand")
        check_conditions(self, self.width)


class ResidualMLP(nn.Module):
    """net(x, time, cond) -> (B, *D): x (B, *D), time () or (B,).

    cond["label"] (B,) int64 in 0..num_classes, where num_classes is the null; sequences as in `conditions.Sequence`,
    of which this network hears the pooled vector only.
    """

    def __init__(self, config: ResidualMLPConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        size, width = math.prod(config.shape), config.width
        with torch.device("meta"):
            self.conditioning = Conditioning(config, width)
            self.stem = nn.Linear(size, width)
            self.blocks = nn.ModuleList(MLPBlock(width, config.expand * width, width) for _ in range(config.blocks))
            self.norm = nn.LayerNorm(width)
            self.film = nn.Linear(width, 2 * width)
            self.out = zeroed(nn.Linear(width, size))
        initialise(self, seed)

    def forward(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """x (B, *D), time () or (B,), cond of batch-first tensors -> (B, *D) in the dtype of x."""
        check_input("ResidualMLP", x, self.config.shape)
        emb = self.conditioning(time, cond, x.shape[0]).emb
        h = self.stem(flatten(x))
        for block in self.blocks:
            h = block(h, emb)
        shift, scale = self.film(emb).chunk(2, -1)
        return self.out(modulate(self.norm(h), shift, scale)).reshape(x.shape).to(x.dtype)
