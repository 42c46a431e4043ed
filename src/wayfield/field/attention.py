r"""Attention layers of a network, found by name, and run with another rule in place of their softmax.

.. math:: Z = \text{core}(Q, K, V, \text{mask}), \qquad \text{as a rule} \quad Z = \text{softmax}(Q K^T / \sqrt{c})\, V

Everything around the core (projections, norms of heads, rotations, the way out) stays the layer's own. Layers of this
library are run part by part; in diffusers' layers the one call of `scaled_dot_product_attention` is taken over while
the layer runs, so any of their processors will do that makes this call.

========  ==========================================================  ==================
kind      keys                                                        examples
========  ==========================================================  ==================
"self"    the places of the picture                                   DiT, UNet
"cross"   a text                                                      DiT, UNet
"keys"    both, in one softmax; the text has no queries               `UNet` of this library
"joint"   both, in one softmax; the text is carried along as well     SD3, Flux
========  ==========================================================  ==================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from wayfield.core.errors import ConditionError, ShapeError, UnsupportedError
from wayfield.field.nets.layers import Attention, attend

__all__ = [
    "Core",
    "Heads",
    "Layer",
    "Rule",
    "TakeOver",
    "attention_layers",
    "blocks",
    "full_mask",
    "text_last",
    "unreachable",
]

Core = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(q, k, v, mask) -> (B, heads, N, c)."""

Rule = Callable[[Core], Core]
"""From what a layer does otherwise to what it is to do."""

_TEXT_LAST = {"JointAttnProcessor2_0": True, "FluxAttnProcessor": False}


@final
class Layer(NamedTuple):
    """One attention layer. kind: see above / text_last: where a joint layer puts its text."""

    name: str
    module: nn.Module
    kind: str
    text_last: bool = True

    def run(self, rule: Rule, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The layer's answer under a rule. forward: the layer's own. Raises UnsupportedError if its
        attention cannot be reached.
        """
        if isinstance(self.module, Attention):
            return _own(self.module, rule, *args, **kwargs)
        taken = TakeOver(rule)
        with taken:
            out = forward(*args, **kwargs)
        if not taken.hits:
            raise unreachable(self.name)
        return out

    @property
    def replaced(self) -> bool:
        """Whether somebody has put another `forward` in place of one that is run part by part."""
        return isinstance(self.module, Attention) and "forward" in vars(self.module)

    def places(self, q: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> slice:
        """Which of the queries q (B, heads, N, c) are places of the picture."""
        if self.kind != "joint":
            return slice(0, q.shape[2])
        here = (args[0] if args else kwargs["hidden_states"]).shape[1]
        return slice(0, here) if self.text_last else slice(q.shape[2] - here, q.shape[2])

    def text_heads(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, M, c) of a text (B, M, C), by the layer's own projections. Raises ConditionError
        for a text of another width.
        """
        own = isinstance(self.module, Attention)
        layer: Any = self.module  # diffusers' layers are told by what they have
        wide = layer.context.in_features if own else layer.to_k.in_features
        if context.shape[-1] != wide:
            remedy = "Encode it as the positive text."
            raise ConditionError(f"text for {self.name!r}", got=context.shape[-1], expected=wide, remedy=remedy)
        if own:
            k, v = (p.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for p in layer.context(context).chunk(2, -1))
            return k, v
        if layer.norm_cross:
            context = layer.norm_encoder_hidden_states(context)
        k, v = (p(context).unflatten(-1, (layer.heads, -1)).transpose(1, 2) for p in (layer.to_k, layer.to_v))
        return (k if layer.norm_k is None else layer.norm_k(k)), v


@final
class Heads(NamedTuple):
    """What a rule is given. q (B, heads, N, c), k and v (B, heads, M, c) / mask: None, (B, M), or what
    `scaled_dot_product_attention` takes / places: those queries that are places of the picture; where the layer is not
    "cross" their keys stand at the same numbers / size: (H, W) of the network's points, None if not pictures / attend:
    the rule that would be used otherwise.
    """

    layer: Layer
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    places: slice
    size: tuple[int, int] | None
    attend: Core

    def plain(self) -> Tensor:
        """What is attended to otherwise, (B, heads, N, c)."""
        return self.attend(self.q, self.k, self.v, self.mask)

    def grid(self) -> tuple[int, int]:
        """Height and width of the map whose places the queries are. Raises ShapeError if they make none."""
        count = self.places.stop - self.places.start
        if self.size is not None:
            high = round((count * self.size[0] / self.size[1]) ** 0.5)
            if high and count % high == 0 and high * self.size[1] == count // high * self.size[0]:
                return high, count // high
        remedy = "Choose layers whose tokens are the patches of a picture."
        raise ShapeError(f"tokens of {self.layer.name!r}", got=count, expected=f"a map like {self.size}", remedy=remedy)


class TakeOver(TorchFunctionMode):
    """While it is entered, a rule answers `scaled_dot_product_attention`. hits: how often so far."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule, self.hits = rule, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.unflatten:  # written in Python around its base class's, which a compiler cannot follow
            func = torch.unflatten
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.hits += 1
        return _answered(self.rule, func, *args, **kwargs)


def attention_layers(net: nn.Module) -> dict[str, Layer]:
    """The attention layers of a network that look at its points, by dotted name; text encoders inside it are left
    alone, and so are joint layers whose order of tokens is not known.
    """
    found: dict[str, Layer] = {}
    for name, module in net.named_modules():
        if not _attends(name, module):
            continue
        if isinstance(module, Attention):
            kind = "cross" if module.own is None else "self" if module.context is None else "keys"
            found[name] = Layer(name, module, kind)
        elif getattr(module, "add_k_proj", None) is not None:
            if (known := type(module.processor).__name__) in _TEXT_LAST:
                found[name] = Layer(name, module, "joint", _TEXT_LAST[known])
        elif not getattr(module, "pre_only", False):  # such a layer holds text, and does not say how much
            kind = "cross" if getattr(module, "is_cross_attention", False) else "self"
            found[name] = Layer(name, module, kind)
    return found


def blocks(net: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network that hold an attention layer of its points, by dotted name; where a bare list holds it,
    the layer itself.
    """
    found: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        if _attends(name, module):
            above = name.rpartition(".")[0]
            holder = net.get_submodule(above)
            if isinstance(holder, nn.ModuleList):
                found[name] = module
            elif above:
                found[above] = holder
    return found


def text_last(block: nn.Module) -> bool | None:
    """Whether the tokens of a text that a block carries along follow the picture's in its attention; None if it carries
    none.
    """
    attn = getattr(block, "attn", None)
    if getattr(attn, "add_k_proj", None) is None and not getattr(attn, "pre_only", False):
        return None
    return _TEXT_LAST.get(type(getattr(attn, "processor", None)).__name__)


def unreachable(name: str) -> UnsupportedError:
    """The error for a layer whose attention is not the call that can be taken over."""
    return UnsupportedError(
        f"attention of {name!r}",
        got="a layer that never calls torch's scaled_dot_product_attention",
        expected="one that does",
        remedy="Give it diffusers' default processor and the native attention backend.",
    )


def full_mask(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """The mask laid out over queries and keys, (B or 1, heads or 1, N, M), bool or added to the scores."""
    if mask is None:
        return torch.ones(1, 1, q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    laid = mask[:, None, None, :] if mask.ndim == 2 else mask
    return laid.expand(*laid.shape[:-2], q.shape[2], k.shape[2])


def _attends(name: str, module: nn.Module) -> bool:
    if isinstance(module, Attention):
        return "conditioning" not in name.split(".")
    return all(hasattr(module, part) for part in ("to_q", "to_k", "to_v", "processor"))


def _own(layer: Attention, rule: Rule, h: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """`Attention.forward` with another rule."""
    pairs = [] if layer.own is None else [layer.own(h)]
    if layer.context is not None and context is not None:
        pairs.append(layer.context(context))
        if mask is not None and layer.own is not None:
            mask = torch.cat([mask.new_ones(h.shape[0], h.shape[1]), mask], 1)
    k, v = (torch.cat(pairs, 1) if len(pairs) > 1 else pairs[0]).chunk(2, -1)
    q, k, v = (part.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for part in (layer.query(h), k, v))
    return layer.out(rule(_usual)(q, k, v, mask).transpose(1, 2).flatten(2))


def _usual(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None or mask.ndim == 2:
        return attend(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _answered(
    rule: Rule, func: Any, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **rest: Any
) -> Tensor:
    def usual(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return func(q, k, v, attn_mask=mask, **rest)

    return rule(usual)(query, key, value, attn_mask)
