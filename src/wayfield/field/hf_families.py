r"""Which networks of diffusers are known, what each is told, and how it is called.

====================  ===========================================================================  =====================
family                conditions, by the names diffusers gives them                                "none" is
====================  ===========================================================================  =====================
UNet2D                class_labels, where the network has classes                                  given by the user
UNet2DCondition       encoder_hidden_states; SDXL also text_embeds and time_ids                    given by the user
DiT                   class_labels                                                                 the class after last
PixArt                encoder_hidden_states, encoder_attention_mask; large ones also resolution    given by the user
                      and aspect_ratio
SD3                   encoder_hidden_states, pooled_projections                                    given by the user
Flux                  encoder_hidden_states, pooled_projections; guidance, where it is distilled   given by the user
====================  ===========================================================================  =====================

Text models have no "none" of their own: it is the encoding of some text, usually the empty one. A learned variance is
dropped: of the answer only as many channels as the point has are kept. Flux sees 2x2 patches; its points here are
plain latents (B, C, H, W), packed on the way in and unpacked on the way out.

A family of one's own is one `Family`, made known by `add_family` or given to `from_diffusers`:

    def fields(net, tokens):
        return {"encoder_hidden_states": Field((tokens, net.config.caption_channels), "float32")}

    def call(net, x, time, cond):
        return net(x, time.expand(len(x)), cond["encoder_hidden_states"], return_dict=False)[0]

    add_family(Family("Mine", named("MyTransformer2DModel"), fields, call))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import DTypeError, ShapeError, UnsupportedError
from wayfield.field.cond import Field
from wayfield.field.denoiser import Call

__all__ = ["Family", "add_family", "families", "family_of", "named"]


@final
@dataclass(frozen=True)
class Family:
    """One kind of network. name: for messages / matches: whether a network is of it / fields: of (network, number of
    text tokens), its conditions by name / call: of (network, points (B, *D), time () or (B,), conditions), the answer,
    (B, *D) / null: of the network, values that mean "none", if the network itself knows / distilled: of the network,
    whether its answer is already guided by a number it is told.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    fields: Callable[[Any, int], Mapping[str, Field]]
    call: Call
    null: Callable[[Any], Mapping[str, Any] | None] = lambda net: None
    distilled: Callable[[Any], bool] = lambda net: False


def named(*names: str) -> Callable[[nn.Module], bool]:
    """A test for networks whose class, or one it derives from, has one of these names; nothing need be imported."""
    return lambda net: any(c.__name__ in names for c in type(net).__mro__)


def families() -> tuple[Family, ...]:
    """Those known, the newest first."""
    return tuple(_KNOWN)


def add_family(family: Family) -> None:
    """Make a family known; it is asked before those that already are. Raises DTypeError."""
    if not isinstance(family, Family):
        remedy = "Give Family(name, matches, fields, call)."
        raise DTypeError("family", got=type(family).__name__, expected="a Family", remedy=remedy)
    _KNOWN.insert(0, family)


def family_of(net: nn.Module) -> Family:
    """The family of a network, compiled or not. Raises UnsupportedError for one that is unknown."""
    net = getattr(net, "_orig_mod", net)
    found = next((f for f in _KNOWN if f.matches(net)), None)
    if found is None:
        known = ", ".join(f.name for f in _KNOWN)
        remedy = "diffusers.md shows how to add a family: Family(name, matches, fields, call)."
        raise UnsupportedError("network", got=type(net).__name__, expected=f"one of {known}", remedy=remedy)
    return found


def _float(net: Any) -> str:
    return str(net.dtype).removeprefix("torch.")


def _refuse(net: Any, name: str, wanted: Any) -> None:
    """Raise UnsupportedError if an option of the network is not as wanted."""
    got = net.config.get(name)
    if got not in wanted:
        remedy = "Write a Family for it; see diffusers.md."
        expected = " or ".join(f"{name}={w!r}" for w in wanted)
        raise UnsupportedError(type(net).__name__, got=f"{name}={got!r}", expected=expected, remedy=remedy)


def _unet_fields(net: Any, tokens: int) -> dict[str, Field]:
    _refuse(net, "class_embed_type", (None,))
    classes = net.config.get("num_class_embeds")
    return {} if classes is None else {"class_labels": Field(values=classes)}


def _unet_call(net: nn.Module, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    return net(x, time, class_labels=cond.get("class_labels"), return_dict=False)[0][:, : x.shape[1]]


def _text_unet_fields(net: Any, tokens: int) -> dict[str, Field]:
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim"):
        _refuse(net, name, (None,))
    _refuse(net, "addition_embed_type", (None, "text_time"))
    _refuse(net, "in_channels", (net.config.out_channels,))
    kind, width = _float(net), net.config.cross_attention_dim
    if not isinstance(width, int):  # one for each block
        _refuse(net, "cross_attention_dim", ([width[0]] * len(width), (width[0],) * len(width)))
        width = width[0]
    fields = {"encoder_hidden_states": Field((tokens, width), kind)}
    if net.config.addition_embed_type == "text_time":
        pooled = net.config.projection_class_embeddings_input_dim - 6 * net.config.addition_time_embed_dim
        fields |= {"text_embeds": Field((pooled,), kind), "time_ids": Field((6,), kind)}
    return fields


def _text_unet_call(net: nn.Module, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    text = cond["encoder_hidden_states"]
    added = None
    if "time_ids" in cond:
        added = {"text_embeds": cond["text_embeds"], "time_ids": cond["time_ids"]}
    return net(x, time, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]


def _dit_fields(net: Any, tokens: int) -> dict[str, Field]:
    return {"class_labels": Field(values=net.config.num_embeds_ada_norm + 1)}


def _dit_call(net: nn.Module, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    time = time.expand(len(x))
    return net(x, timestep=time, class_labels=cond["class_labels"], return_dict=False)[0][:, : x.shape[1]]


def _pixart_fields(net: Any, tokens: int) -> dict[str, Field]:
    kind = _float(net)
    fields = {
        "encoder_hidden_states": Field((tokens, net.config.caption_channels), kind),
        "encoder_attention_mask": Field((tokens,), "int64", values=2),
    }
    if net.use_additional_conditions:
        fields |= {"resolution": Field((2,), kind), "aspect_ratio": Field((1,), kind)}
    return fields


def _pixart_call(net: nn.Module, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    return net(
        x,
        encoder_hidden_states=cond["encoder_hidden_states"],
        encoder_attention_mask=cond["encoder_attention_mask"],
        timestep=time.expand(len(x)),
        added_cond_kwargs={name: cond.get(name) for name in ("resolution", "aspect_ratio")},
        return_dict=False,
    )[0][:, : x.shape[1]]


def _sd3_fields(net: Any, tokens: int) -> dict[str, Field]:
    return {
        "encoder_hidden_states": Field((tokens, net.config.joint_attention_dim), _float(net)),
        "pooled_projections": Field((net.config.pooled_projection_dim,), _float(net)),
    }


def _sd3_call(net: nn.Module, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    return net(
        x,
        encoder_hidden_states=cond["encoder_hidden_states"],
        pooled_projections=cond["pooled_projections"],
        timestep=time.expand(len(x)),
        return_dict=False,
    )[0]


def _flux_fields(net: Any, tokens: int) -> dict[str, Field]:
    _refuse(net, "in_channels", (net.config.get("out_channels") or net.config.in_channels,))
    fields = _sd3_fields(net, tokens)
    return fields | {"guidance": Field((), "float32")} if net.config.guidance_embeds else fields


def _flux_call(net: nn.Module, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    B, C, H, W = x.shape
    if H % 2 or W % 2:
        remedy = "Use a picture size of which the latents are even in height and width."
        raise ShapeError("latents", got=tuple(x.shape), expected="even height and width", remedy=remedy)
    text = cond["encoder_hidden_states"]
    h, w = H // 2, W // 2
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    image = torch.stack(
        [torch.zeros_like(rows)[:, None].expand(h, w), rows[:, None].expand(h, w), columns.expand(h, w)]
    )
    y = net(
        x.reshape(B, C, h, 2, w, 2).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, 4 * C),
        timestep=time.expand(B) / 1000,
        guidance=cond.get("guidance"),
        pooled_projections=cond["pooled_projections"],
        encoder_hidden_states=text,
        txt_ids=text.new_zeros(text.shape[1], 3),
        img_ids=image.flatten(1).T.to(text.dtype),
        return_dict=False,
    )[0]
    return y.reshape(B, h, w, C, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(B, C, H, W)


_KNOWN: list[Family] = [
    Family("UNet2D", named("UNet2DModel"), _unet_fields, _unet_call),
    Family("UNet2DCondition", named("UNet2DConditionModel"), _text_unet_fields, _text_unet_call),
    Family(
        "DiT",
        named("DiTTransformer2DModel"),
        _dit_fields,
        _dit_call,
        null=lambda net: {"class_labels": net.config.num_embeds_ada_norm},
    ),
    Family("PixArt", named("PixArtTransformer2DModel"), _pixart_fields, _pixart_call),
    Family("SD3", named("SD3Transformer2DModel"), _sd3_fields, _sd3_call),
    Family(
        "Flux",
        named("FluxTransformer2DModel"),
        _flux_fields,
        _flux_call,
        distilled=lambda net: bool(net.config.guidance_embeds),
    ),
]
