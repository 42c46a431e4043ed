"""What every network here is made of: seeded initialisation, cheap checks, time features, attention, residual blocks.

Networks for tests, recipes and small checkpoints must start from the same weights on every run and every device, and
building one must not disturb the random numbers of the program around it. So weights are never drawn from the global
generator: layers are laid out without storage, and `initialise` draws every parameter from one seed.

    Linear, Conv2d   weight ~ N(0, 1 / fan_in), bias = 0;  both 0 where the layer is marked by `zeroed`
    Embedding        N(0, 1/4), of the size that the other summands of a stream have
    norms            weight = 1, bias = 0
    time features    [cos(w_k s), sin(w_k s)],  w_k geometric from 0.1 to `top` radians per unit of s,  (B,) -> (B, 2 K)
    FiLM             h <- norm(h) (1 + scale) + shift,  (scale, shift) = Linear(emb)
    attention        softmax(q k^T / sqrt(c)) v,  q (B, heads, N, c),  k and v (B, heads, M, c)

References: Vaswani et al. 2017, arXiv 1706.03762 (attention, eq. 1; sinusoids, sec. 3.5); Perez et al. 2018, arXiv
1709.07871 (FiLM); He et al. 2016, arXiv 1603.05027 (residual blocks); Wu & He 2018, arXiv 1803.08494 (GroupNorm).
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import DTypeError, RangeError, ShapeError

__all__ = [
    "Attention",
    "ConvBlock",
    "FourierTime",
    "GridAttention",
    "MLPBlock",
    "attend",
    "check_divides",
    "check_frequencies",
    "check_input",
    "check_positive",
    "check_shape",
    "check_time",
    "initialise",
    "modulate",
    "table",
    "zeroed",
]

M = TypeVar("M", bound=nn.Module)

_ZERO = "starts_at_zero"
_LOWEST_FREQUENCY = 0.1  # one radian over ten units of time: monotone over the whole range of log-SNR / 4


# ------------------------------------------------------------------------------------------------- initialisation
def zeroed(module: M) -> M:
    """Mark a Linear or Conv2d to start at zero, so that the branch it closes starts as the identity."""
    setattr(module, _ZERO, True)
    return module


def table(rows: int, width: int) -> nn.Embedding:
    """A learned table, (rows, width), whose storage is filled by `initialise` alone.

    `nn.Embedding(rows, width)` would do the same, but its default fill imports a second of code on the meta device.
    """
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def initialise(module: nn.Module, seed: int) -> None:
    """Draw every parameter of `module` from a private generator; the global one is neither read nor moved.

    module: a network, also one laid out on the meta device: its parameters then get storage on the CPU.
    seed: any 64-bit integer. Equal seeds give bit-equal weights in every dtype up to its rounding.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    for part in module.modules():
        for name, old in list(part.named_parameters(recurse=False)):
            value = _draw(part, name, old.shape, generator).to(old.dtype)
            if old.is_meta:
                part.register_parameter(name, nn.Parameter(value, requires_grad=old.requires_grad))
            else:
                with torch.no_grad():
                    old.copy_(value)


def _draw(part: nn.Module, name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    if isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
        return torch.full(shape, float(name == "weight"), device="cpu", dtype=torch.float32)
    if not isinstance(part, (nn.Linear, nn.Conv2d, nn.Embedding)):
        raise DTypeError(
            "layer to initialise",
            got=f"{type(part).__name__}.{name}",
            expected="Linear, Conv2d, Embedding, LayerNorm or GroupNorm",
            remedy="Build the network from these layers, or give the new one a rule in layers._draw.",
        )
    if name == "bias" or getattr(part, _ZERO, False):
        return torch.zeros(shape, device="cpu", dtype=torch.float32)
    std = 0.5 if isinstance(part, nn.Embedding) else 1.0 / math.sqrt(shape[1:].numel())
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) * std


# --------------------------------------------------------------------------------------------------------- checks
def check_positive(config: Any, *names: str, least: int = 1) -> None:
    """Refuse fields of a frozen config that are not integers >= `least`; a tuple is checked entry by entry."""
    for name in names:
        value = getattr(config, name)
        what = f"{type(config).__name__}.{name}"
        for entry in value if isinstance(value, tuple) else (value,):
            if not isinstance(entry, int) or isinstance(entry, bool):
                raise DTypeError(what, got=repr(value), expected="integers", remedy="Write whole numbers, in a tuple.")
            if entry < least:
                raise RangeError(what, got=value, expected=f"at least {least}", remedy="Choose a larger number.")


def check_shape(config: Any, axes: int | None) -> None:
    """Refuse a `shape` field that is not a tuple of positive sizes, one per data axis (`axes`, or any number >= 1)."""
    shape, what = config.shape, f"{type(config).__name__}.shape"
    expected = "(C, H, W)" if axes == 3 else "one positive size per data axis, without the batch"
    if not isinstance(shape, tuple):
        raise DTypeError(what, got=repr(shape), expected=f"a tuple, {expected}", remedy="Write shape=(1, 8, 8).")
    if not shape or (axes is not None and len(shape) != axes):
        raise ShapeError(what, got=shape, expected=expected, remedy="Give the shape of one sample.")
    check_positive(config, "shape")


def check_divides(what: str, part: int, whole: int, remedy: str) -> None:
    """Refuse a `whole` that is not a multiple of `part`."""
    if whole % part:
        raise ShapeError(what, got=whole, expected=f"a multiple of {part}", remedy=remedy)


def check_frequencies(config: Any) -> None:
    """Refuse `frequencies` and `max_frequency` fields that give no sinusoids."""
    check_positive(config, "frequencies")
    top, what = config.max_frequency, f"{type(config).__name__}.max_frequency"
    if not isinstance(top, (int, float)) or isinstance(top, bool):
        raise DTypeError(what, got=repr(top), expected="a number", remedy="16.0 suits log-SNR / 4.")
    if not _LOWEST_FREQUENCY < top < math.inf:
        raise RangeError(what, got=top, expected=f"above {_LOWEST_FREQUENCY}, finite", remedy="16.0 suits log-SNR / 4.")


def check_time(who: str, time: Tensor, rows: int) -> None:
    """Refuse a network time that is not a tensor of shape () or (B,)."""
    if not isinstance(time, Tensor):
        raise DTypeError(f"{who} time", got=type(time).__name__, expected="a tensor", remedy="Use torch.as_tensor.")
    if time.ndim != 0 and time.shape != (rows,):
        got = tuple(time.shape)
        raise ShapeError(f"{who} time", got=got, expected=f"() or ({rows},)", remedy="Give one time, or one per row.")


def check_input(who: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse an `x` that is not (B, *shape). Reads sizes only, never values."""
    if tuple(x.shape[1:]) != shape:
        expected = f"(B, {', '.join(map(str, shape))})"
        remedy = "Reshape x, or build the network for this shape."
        raise ShapeError(f"{who} input", got=tuple(x.shape), expected=expected, remedy=remedy)


# ---------------------------------------------------------------------------------------------------------- layers
class FourierTime(nn.Module):
    """Network time to features: () or (B,) -> (1 or B, width), by sinusoids and two linear layers.

    A scalar time stays one row, which broadcasts over the batch: the work is done once.
    """

    frequencies: Tensor

    def __init__(self, width: int, count: int, top: float) -> None:
        super().__init__()
        # explicit device: a buffer is not a parameter, so laying the network out on "meta" must not lose its values
        powers = torch.linspace(0.0, 1.0, count, device="cpu", dtype=torch.float64)
        values = _LOWEST_FREQUENCY * (top / _LOWEST_FREQUENCY) ** powers
        self.register_buffer("frequencies", values.to(torch.get_default_dtype()), persistent=False)
        self.first = nn.Linear(2 * count, width)
        self.second = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """time () or (B,) -> (1 or B, width)."""
        wide = torch.promote_types(
            self.frequencies.dtype, torch.float32
        )  # 16-bit angles would blur neighbouring levels
        angles = time.reshape(-1, 1).to(wide) * self.frequencies.to(wide)
        features = torch.cat([angles.cos(), angles.sin()], 1).to(self.first.weight.dtype)
        return self.second(F.silu(self.first(features)))


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """FiLM (Perez et al. 2018): h (1 + scale) + shift, all three broadcastable."""
    return h * (1.0 + scale) + shift


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(c)) v: q (B, heads, N, c), k and v (B, heads, M, c), mask (B, M), True = may be seen.

    Written out on the CPU, where the fused kernel's backward pass is up to twice as slow at some 70 keys; fused
    elsewhere. Every row of `mask` must hold a True.
    """
    seen = None if mask is None else mask[:, None, None, :]
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if seen is not None:  # added, not filled: the backward pass of a sum over (B, heads, N, M) costs nothing
        scores = scores + torch.zeros_like(seen, dtype=scores.dtype).masked_fill(~seen, -math.inf)
    return scores.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head attention of tokens h (B, N, width) over themselves, over a context (B, M, C), or over both at once.

    Projections have no bias: a bias of the keys alone would cancel in the softmax.
    """

    def __init__(self, width: int, heads: int, *, own: bool, context_width: int = 0, zero: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.own = nn.Linear(width, 2 * width, bias=False) if own else None
        self.context = nn.Linear(context_width, 2 * width, bias=False) if context_width else None
        out = nn.Linear(width, width)
        self.out = zeroed(out) if zero else out

    def forward(self, h: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """h (B, N, width), context (B, M, C), mask (B, M) over the context, True = may be seen -> (B, N, width)."""
        pairs = []
        if self.own is not None:
            pairs.append(self.own(h))
        if self.context is not None and context is not None:
            pairs.append(self.context(context))
            if mask is not None and self.own is not None:
                mask = torch.cat([mask.new_ones(h.shape[0], h.shape[1]), mask], 1)
        k, v = (torch.cat(pairs, 1) if len(pairs) > 1 else pairs[0]).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(h), k, v))
        return self.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))


class GridAttention(nn.Module):
    """Residual attention between the places of a map h (B, C, H, W), whose keys include the context, if any."""

    def __init__(self, channels: int, heads: int, groups: int, context_width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.attention = Attention(channels, heads, own=True, context_width=context_width, zero=True)

    def forward(self, h: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """h (B, C, H, W), context (B, M, D), mask (B, M) -> (B, C, H, W)."""
        places = self.norm(h).flatten(2).transpose(1, 2)
        return h + self.attention(places, context, mask).transpose(1, 2).reshape(h.shape)


class ConvBlock(nn.Module):
    """Residual block of two 3x3 convolutions with GroupNorm and SiLU: (B, C_in, H, W) -> (B, C_out, H, W).

    With `emb_width` > 0, FiLM from emb (1 or B, emb_width) follows the second norm. The last convolution starts at 0.
    """

    def __init__(self, c_in: int, c_out: int, emb_width: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(emb_width, 2 * c_out) if emb_width else None
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out), zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, h: Tensor, emb: Tensor | None) -> Tensor:
        """h (B, C_in, H, W), emb (1 or B, emb_width) -> (B, C_out, H, W)."""
        y = self.norm2(self.conv1(F.silu(self.norm1(h))))
        if self.film is not None and emb is not None:
            shift, scale = self.film(emb)[:, :, None, None].chunk(2, 1)
            y = modulate(y, shift, scale)
        return self.skip(h) + self.conv2(F.silu(y))


class MLPBlock(nn.Module):
    """Residual block LayerNorm, FiLM, Linear, SiLU, Linear on rows (B, width); the last Linear starts at zero."""

    def __init__(self, width: int, hidden: int, emb_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(emb_width, 2 * width) if emb_width else None
        self.inner, self.outer = nn.Linear(width, hidden), zeroed(nn.Linear(hidden, width))

    def forward(self, h: Tensor, emb: Tensor | None) -> Tensor:
        """h (B, width), emb (1 or B, emb_width) -> (B, width)."""
        y = self.norm(h)
        if self.film is not None and emb is not None:
            shift, scale = self.film(emb).chunk(2, -1)
            y = modulate(y, shift, scale)
        return h + self.outer(F.silu(self.inner(y)))
