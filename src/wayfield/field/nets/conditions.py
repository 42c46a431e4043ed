"""From network time and named conditions to the two things every network here listens to.

A network must hear when it is (the noise level) and what is asked of it (a class, a caption, features of either),
including "nothing asked", which classifier-free guidance needs. This file turns `(time, cond)` into one vector per row
and, for sequences, a list of vectors that attention can look up.

    emb     = silu( time(s) + label[y] + Linear(pool) )                                (1 or B, width)
    context = norm( blocks( [register ; token[w_1] + place_1 ; ... ; token[w_L] + place_L] ) )     (B, 1 + L, width)
    pool    = mean of the visible rows of context                                      (B, width)

s: network time, () or (B,) / y: class, (B,), `num_classes` = the learned null / w: token ids, (B, L), 0 = padding.
The register is one learned vector that is always visible: a row that is all padding attends to it alone, so the null
caption is learned too and no softmax is ever empty. Padding is invisible everywhere.

References: Ho & Salimans 2022, arXiv 2207.12598 (null class, sec. 3); Nichol et al. 2021, arXiv 2112.10741 (caption
tokens as a vector and as attention keys); Darcet et al. 2023, arXiv 2309.16588 (registers).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import ConditionError, RangeError
from wayfield.field.nets.layers import (
    Attention,
    FourierTime,
    check_divides,
    check_frequencies,
    check_positive,
    check_time,
    table,
    zeroed,
)

__all__ = ["Conditioning", "Sequence", "Signal", "check_conditions"]

_TOKEN_HEADS = 4


class Signal(NamedTuple):
    """What a block hears: emb (1 or B, width); context (B, M, width) and mask (B, M), True = visible, or None."""

    emb: Tensor
    context: Tensor | None = None
    mask: Tensor | None = None


def check_conditions(config: Any, width: int) -> None:
    """Refuse condition fields of a config that do not fit together; `width` is that of the embedding."""
    check_positive(config, "num_classes", "vocab", "context_channels", "token_blocks", least=0)
    check_positive(config, "max_tokens")
    check_frequencies(config)
    name = type(config).__name__
    if config.vocab and config.context_channels:
        got = f"vocab={config.vocab}, context_channels={config.context_channels}"
        remedy = "Embed tokens inside the network, or pass features of them, not both."
        raise RangeError(f"{name} sequence condition", got=got, expected="at most one positive", remedy=remedy)
    if config.vocab or config.context_channels:
        remedy = "Choose another width."
        check_divides(f"{name} width of the sequence encoder", _TOKEN_HEADS, width, remedy)


class Conditioning(nn.Module):
    """(time, cond) -> Signal, for a config with the fields num_classes, vocab, max_tokens, token_blocks,
    context_channels, frequencies and max_frequency.
    """

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.who = type(config).__name__.removesuffix("Config")
        self.time = FourierTime(width, config.frequencies, config.max_frequency)
        self.label = table(config.num_classes + 1, width) if config.num_classes else None
        has_sequence = config.vocab or config.context_channels
        self.sequence = Sequence(config, width) if has_sequence else None
        self.pool = nn.Linear(width, width) if has_sequence else None

    def forward(self, time: Tensor, cond: Mapping[str, Tensor], rows: int) -> Signal:
        """time () or (B,), cond of batch-first tensors, rows = B -> Signal."""
        check_time(self.who, time, rows)
        emb, context, mask = self.time(time), None, None
        if self.label is not None:
            emb = emb + self.label(_take(self.who, cond, "label", (rows,)))
        if self.sequence is not None and self.pool is not None:
            context, mask = self.sequence(cond, rows)
            seen = mask.unsqueeze(-1).to(context.dtype)
            emb = emb + self.pool((context * seen).sum(1) / seen.sum(1))
        return Signal(F.silu(emb), context, mask)


class Sequence(nn.Module):
    """A caption, or features of one, to attention keys: cond -> context (B, 1 + L, width), mask (B, 1 + L).

    Reads cond["tokens"] (B, L) int64 when `vocab` > 0, L <= max_tokens. Otherwise reads cond["context"] (B, L, C), and
    cond["context_mask"] (B, L), True = visible, if it is there; a row that sees nothing is the null condition.
    """

    def __init__(self, config: Any, width: int) -> None:
        super().__init__()
        self.who = type(config).__name__.removesuffix("Config")
        self.channels, self.longest = config.context_channels, config.max_tokens
        self.register = table(1, width)
        self.tokens = table(config.vocab, width) if config.vocab else None
        self.places = table(config.max_tokens, width) if config.vocab else None
        self.features = nn.Linear(config.context_channels, width) if config.context_channels else None
        self.blocks = nn.ModuleList(_TokenBlock(width) for _ in range(config.token_blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, cond: Mapping[str, Tensor], rows: int) -> tuple[Tensor, Tensor]:
        """cond with B = rows -> context (B, 1 + L, width), mask (B, 1 + L)."""
        h, mask = self._embed(cond, rows)
        h = torch.cat([self.register.weight.to(h.dtype).expand(rows, 1, -1), h], 1)
        mask = torch.cat([mask.new_ones(rows, 1), mask], 1)
        for block in self.blocks:
            h = block(h, mask)
        return self.norm(h), mask

    def _embed(self, cond: Mapping[str, Tensor], rows: int) -> tuple[Tensor, Tensor]:
        if self.tokens is not None and self.places is not None:
            ids = _take(self.who, cond, "tokens", (rows, None))
            if ids.shape[1] > self.longest:
                remedy = "Cut the tokens, or build the network with a larger max_tokens."
                expected = f"at most {self.longest} tokens"
                raise ConditionError(f"{self.who} tokens", got=ids.shape[1], expected=expected, remedy=remedy)
            return self.tokens(ids) + self.places.weight[: ids.shape[1]], ids != 0
        assert self.features is not None  # one of the two is built, see check_conditions
        context = _take(self.who, cond, "context", (rows, None, self.channels), integer=False)
        if "context_mask" in cond:
            mask = _take(self.who, cond, "context_mask", (rows, context.shape[1])).bool()
        else:
            mask = context.new_ones(context.shape[:2], dtype=torch.bool)
        # what is masked may hold anything, NaN included, and 0 * NaN would reach the pooled mean
        context = context.masked_fill(~mask.unsqueeze(-1), 0.0).to(self.features.weight.dtype)
        return self.features(context), mask


class _TokenBlock(nn.Module):
    """Pre-norm transformer block over the visible rows of h (B, M, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # the tokens come in as a context, because only a context has a mask
        self.attention = Attention(width, _TOKEN_HEADS, own=False, context_width=width, zero=True)
        self.inner, self.outer = nn.Linear(width, 2 * width), zeroed(nn.Linear(2 * width, width))

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """h (B, M, width), mask (B, M) -> (B, M, width)."""
        y = self.norm1(h)
        h = h + self.attention(y, y, mask)
        return h + self.outer(F.silu(self.inner(self.norm2(h))))


def _take(
    who: str, cond: Mapping[str, Tensor], key: str, shape: tuple[int | None, ...], *, integer: bool = True
) -> Tensor:
    if key not in cond:
        remedy = "Pass it in cond; nothing asked for has its own value, see the network's docstring."
        raise ConditionError(f"{who} condition {key!r}", got=f"keys {sorted(cond)}", expected="it there", remedy=remedy)
    value = cond[key]
    fits = len(shape) == value.ndim and all(want in (None, have) for want, have in zip(shape, value.shape, strict=True))
    if not fits or value.is_floating_point() is integer:
        expected = f"{'integers' if integer else 'floats'} ({', '.join('L' if n is None else str(n) for n in shape)})"
        got = f"{value.dtype} {tuple(value.shape)}"
        raise ConditionError(f"{who} condition {key!r}", got=got, expected=expected, remedy="Reshape or cast it.")
    return value
