r"""Negative-away steer attention (NASA): a negative prompt inside the network, for models of one or few steps.

Pushing the output away from a negative prompt blends two pictures if there is only one step to do it in. NASA subtracts
what the negative prompt contributes where text enters the picture, layer by layer, in one row and one call.

.. math::
   Z = \text{softmax}(Q K_+^T / \sqrt{c})\, V_+ - \alpha\, \text{softmax}(Q K_-^T / \sqrt{c})\, V_-
     = (1 - \alpha) \bigl[ Z_+ + \tfrac{\alpha}{1 - \alpha} (Z_+ - Z_-) \bigr]

In use:

    model, undo = install(model, "nasa", NegativeAttention(of=("tokens",)))
    cond = negative(text, {"tokens": unwanted}, alpha=0.3)         text and "nasa", "nasa_tokens"
    sample(model, grid, cond=cond)                                 steered, as many rows as before
    sample(model, grid, cond=negative(text, {"tokens": unwanted}, 0.0), conds={"steered": cond}, guidance=2 * NASA())

=======  ====================================================  ==================
symbol   meaning                                               shape
=======  ====================================================  ==================
Q        queries of the picture's places                       (B, heads, N, c)
K, V     keys and values of the texts, by the same matrices    (B, heads, M, c)
alpha    strength; 0 is the plain network, to the bit          (B,)
=======  ====================================================  ==================

The difference is taken before the way out of the layer, whose bias thus counts once. It shrinks as well as it
extrapolates: with equal prompts (1 - alpha) Z_+ is left, so alpha near 1 takes similar prompts away altogether. A
negative prompt is masked like a positive one; where the model was trained to see padding, padding acts.

*Where text and places share a softmax.* The paper has no formula. Here the layer is run with the one text and with the
other, each beside the places, and the difference is taken for the places alone. In a UNet of this library that costs
the keys of the negative text. In MM-DiT networks (SD3, Flux), where text is carried along, so is the negative text,
each block running once more for it: its stream sees the steered picture, its own pooled vector is not used, and the
price is that of a second row.

Published alpha, in version 3 of the paper (and in version 1): one-step PixArt-alpha .5 (.8, for DMD .45, for YOSO .2),
SD 2.1 .2 (.3), SD 1.5 .1 (.04, for InstaFlow .19). There is no default.

Reference: Nguyen et al. 2024, SNOOPI, arXiv 2412.02687 (eq. 7-9 of version 3).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import RangeError, ShapeError, UnsupportedError, unknown_name
from wayfield.core.shapes import expand
from wayfield.field.attention import (
    Core,
    Heads,
    Layer,
    TakeOver,
    attention_layers,
    blocks,
    full_mask,
    text_last,
    unreachable,
)
from wayfield.field.binding import COND, Query
from wayfield.field.cond import Field, Schema
from wayfield.field.patch import Patch, Told, check_layers
from wayfield.guide.contrast import Contrast
from wayfield.guide.terms import Factor, check_factor

__all__ = ["NASA", "NegativeAttention", "nasa_attention", "negative"]

_STRONG = 1.5


def nasa_attention(
    q: Tensor,
    k_pos: Tensor,
    v_pos: Tensor,
    k_neg: Tensor,
    v_neg: Tensor,
    alpha: float | Tensor,
    mask_pos: Tensor | None = None,
    mask_neg: Tensor | None = None,
    *,
    attend: Core | None = None,
) -> Tensor:
    """Z of the head of this file, (B, heads, N, c); rows of alpha = 0 are Z_+ to the bit.

    q: (B, heads, N, c) / k, v: (B, heads, M, c), of either text / alpha: a number or (B,) / masks: what
    `scaled_dot_product_attention` takes; padding of the negative text is to be masked as that of the positive / attend:
    another rule of attention.
    """
    rule = F.scaled_dot_product_attention if attend is None else attend
    return _less(rule(q, k_pos, v_pos, mask_pos), rule(q, k_neg, v_neg, mask_neg), alpha)


@final
@dataclass(frozen=True)
class NASA(Contrast):
    """From the plain answer to the one with a negative text inside, x0 + s (x0' - x0).

    s: finite; 1 is the steered answer itself, which a run that needs no plain one gets cheaper by its main condition /
    towards: name of the condition that has the negative text, among the `conds` given to `sample`. Raises RangeError.
    """

    s: Factor = 1.0
    towards: str = "steered"

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", check_factor("scale s of NASA", self.s))
        for name, value in (("plus", Query(self.towards)), ("minus", COND), ("gain", self.s)):
            object.__setattr__(self, name, value)


def negative(
    cond: Mapping[str, Any],
    unwanted: Mapping[str, Any],
    alpha: float | Sequence[float] | Tensor,
    *,
    name: str = "nasa",
    allow_negative: bool = False,
) -> dict[str, Any]:
    """A condition with a negative text beside it, for a network that has a `NegativeAttention` of that name.

    cond: of the untouched network / unwanted: the fields of the negative text, those named by `of` / alpha: >= 0, one
    for all or one for each sample; below 0, towards the text, only with `allow_negative`. Warns above 1.5.
    Raises RangeError.
    """
    values = torch.as_tensor(alpha, dtype=torch.float64)
    low, high = (float(v) for v in values.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)) or (low < 0 and not allow_negative):
        remedy = "Published values are .04 to .8; allow_negative=True adds the text instead."
        raise RangeError("alpha of NASA", got=f"{low:g}..{high:g}", expected="finite, >= 0", remedy=remedy)
    if high > _STRONG:
        said = f"alpha = {high:g} of NASA takes away more than the positive prompt gives"
        warnings.warn(said, UserWarning, stacklevel=2)
    return {**cond, name: values.float(), **{f"{name}_{field}": value for field, value in unwanted.items()}}


@final
@dataclass(frozen=True)
class NegativeAttention(Patch):
    """NASA in the layers where text enters; its gate is alpha, (B,), and it is told a negative text for each row.

    of: names of the conditions that are the text, the text itself first and its mask, if it has one, ending in "mask":
    "tokens", "context", "encoder_hidden_states", ... / layers: dotted names of cross-attention layers, or of what holds
    them; () means all, and is needed where text is carried along. Raises DTypeError, and when installed
    UnknownNameError for conditions that the model has not, UnsupportedError for a text that the network encodes in a
    way not known here.
    """

    of: tuple[str, ...]
    layers: tuple[str, ...] = ()
    what: ClassVar[str] = "layer that looks at a text"

    def __post_init__(self) -> None:
        for name in ("of", "layers"):
            object.__setattr__(self, name, check_layers(getattr(self, name)))
        if not self.of:
            remedy = "Name the condition that is the text, e.g. ('tokens',)."
            raise UnsupportedError("text of NASA", got="()", expected="a condition", remedy=remedy)

    def candidates(self, net: nn.Module) -> Mapping[str, Layer | nn.Module]:
        """See `Patch.candidates`: cross-attention, or the blocks that carry a text along."""
        carriers = {name: block for name, block in blocks(net).items() if text_last(block) is not None}
        if carriers and self.layers:
            remedy = "Leave `layers` out: the negative text must pass every block."
            raise UnsupportedError("layers of NASA", got=self.layers, expected="()", remedy=remedy)
        if getattr(net, "encoder_hid_proj", None) is not None:
            remedy = "Encode texts outside of the network."
            raise UnsupportedError("NASA", got="a network with encoder_hid_proj", expected="none", remedy=remedy)
        return carriers or {n: layer for n, layer in attention_layers(net).items() if layer.kind in ("cross", "keys")}

    def fields(self, schema: Schema) -> Mapping[str, tuple[Field, Any]]:
        """See `Patch.fields`."""
        out: dict[str, tuple[Field, Any]] = {"": (Field(dtype="float32"), 0.0)}
        for name in self.of:
            if name not in schema.fields:
                raise unknown_name("condition", name, schema.fields or ("(this model takes none)",))
            field = schema.fields[name]
            none = torch.zeros(field.shape, dtype=getattr(torch, field.dtype))
            out[name] = field, none if schema.null is None else schema.null[name]
        return out

    def begin(self, net: nn.Module, rows: Told) -> Told:
        """See `Patch.begin`: the negative text as the network's layers read it."""
        alpha, texts = rows[""], {name: rows[name] for name in self.of}
        reader: Any = getattr(getattr(net, "conditioning", None), "sequence", None)
        if reader is not None:
            context, mask = reader(texts, len(alpha))
            return {"": alpha, "text": context, "mask": mask}
        context = texts[self.of[0]].to(next(net.parameters()).dtype)
        encode: Any = getattr(net, "context_embedder", None) or getattr(net, "caption_projection", None)
        told = {"": alpha, "text": context if encode is None else encode(context)}
        masks = [text.bool() for name, text in texts.items() if name.endswith("mask")]
        return {**told, "mask": masks[0]} if masks else told

    def attend(self, heads: Heads, rows: Told) -> Tensor:
        """See `Patch.attend`."""
        k, v = heads.layer.text_heads(rows["text"])
        mask = rows.get("mask")
        if heads.layer.kind == "keys":  # the places stay where they are, beside the other text
            own = heads.places.stop
            k, v = torch.cat([heads.k[:, :, :own], k], 2), torch.cat([heads.v[:, :, :own], v], 2)
            mask = None if mask is None else torch.cat([mask.new_ones(len(mask), own), mask], 1)
        laid = None if mask is None else full_mask(mask, heads.q, k)
        return _less(heads.plain(), heads.attend(heads.q, k, v, laid), rows[""])

    def block(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rows: Told,
    ) -> Any:
        """See `Patch.block`: once with the negative text, then with the positive one less what that gave."""
        other, text = rows["text"], kwargs["encoder_hidden_states"]
        count = (args[0] if args else kwargs["hidden_states"]).shape[1]
        if len(other) != len(text):
            remedy = "Give a negative text for each row."
            raise ShapeError("negative text", got=len(other), expected=len(text), remedy=remedy)
        seen: list[Tensor] = []
        last = bool(text_last(module))
        first = _joint(other.shape[1] + count, count, last, lambda z: (seen.append(z), z)[1])
        with first:
            rows["text"], _ = forward(*args, **{**kwargs, "encoder_hidden_states": other})
        if not seen:
            raise unreachable(type(module).__name__)
        with _joint(text.shape[1] + count, count, last, lambda z: _less(z, seen[0], rows[""])):
            return forward(*args, **kwargs)


def _joint(total: int, count: int, last: bool, act: Callable[[Tensor], Tensor]) -> TakeOver:
    """Acts on what the `count` places of a joint attention over `total` tokens attend to; last: text follows them."""

    def rule(usual: Core) -> Core:
        def core(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            out = usual(q, k, v, mask)
            if q.shape[2] != total:
                return out
            if last:
                return torch.cat([act(out[:, :, :count]), out[:, :, count:]], 2)
            return torch.cat([out[:, :, : total - count], act(out[:, :, total - count :])], 2)

        return core

    return TakeOver(rule)


def _less(plus: Tensor, minus: Tensor, alpha: float | Tensor) -> Tensor:
    """plus - alpha minus, and plus to the bit where alpha is 0, whatever minus holds."""
    a = expand(torch.as_tensor(alpha, dtype=plus.dtype, device=plus.device), plus)
    return torch.where(a == 0, plus, plus - a * minus)
