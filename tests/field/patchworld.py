"""Small networks with random weights to be steered from inside, each as a Denoiser with a condition for B rows."""

from typing import NamedTuple

import pytest
import torch

from wayfield.core.path import Straight
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets.dit import DiT, DiTConfig
from wayfield.field.nets.unet import UNet, UNetConfig

B, L = 4, 3


class World(NamedTuple):
    """layer: holds one self-attention / block: holds a block / text: the condition that is a text."""

    model: Denoiser
    cond: dict
    layer: str
    block: str
    text: str


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(net, seed=0):
    """Random weights, so that no branch starts at zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (0.4 if p.ndim < 2 else p[0].numel() ** -0.5))
            if p.ndim < 2 and name.endswith("weight"):
                p.add_(1)
    return net.eval()


def tokens(seed):
    return torch.randint(1, 9, (B, L), generator=torch.Generator().manual_seed(seed))


def _ours(net, layer, block):
    schema = Schema({"tokens": Field((L,), values=9)}, {"tokens": [0] * L})
    model = Denoiser(filled(net), Straight(), "velocity", shape=net.config.shape, schema=schema)
    return World(model, {"tokens": tokens(1)}, layer, block, "tokens")


def dit():
    config = DiTConfig((1, 8, 8), patch=2, width=16, depth=3, heads=2, vocab=9, max_tokens=L, frequencies=4)
    return _ours(DiT(config), "blocks.1.attention", "blocks.1")


def unet():
    config = UNetConfig(
        (1, 8, 8), channels=(8, 16), blocks=1, attention=(1,), heads=2, groups=4, width=16, vocab=9, max_tokens=L,
        frequencies=4,
    )  # fmt: skip
    return _ours(UNet(config), "middle", "middle.0.attention")


def _theirs(net, call, fields, layer, block):
    schema = Schema({name: Field(shape, "float32") for name, shape in fields.items()})
    model = Denoiser(filled(net), Straight(), "velocity", "1000t", shape=(4, 8, 8), schema=schema, call=call)
    cond = {name: normal(k, B, *shape) for k, (name, shape) in enumerate(fields.items())}
    return World(model, cond, layer, block, "encoder_hidden_states")


def sd_unet():
    diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")
    net = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4, attention_head_dim=4, cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip

    def call(net, x, time, cond):
        return net(x, time, **cond, return_dict=False)[0]

    layer = "mid_block.attentions.0.transformer_blocks.0.attn1"
    return _theirs(net, call, {"encoder_hidden_states": (L, 12)}, layer, layer.removesuffix(".attn1"))


def sd3():
    diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip

    def call(net, x, time, cond):
        return net(x, timestep=time.expand(len(x)), **cond, return_dict=False)[0]

    fields = {"encoder_hidden_states": (L, 12), "pooled_projections": (6,)}
    return _theirs(net, call, fields, "transformer_blocks.1.attn", "transformer_blocks.1")


def flux():
    diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")
    net = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, guidance_embeds=False, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip

    def call(net, x, time, cond):
        h = torch.nn.functional.pixel_unshuffle(x, 2)
        at = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
        told = {"txt_ids": torch.zeros(L, 3), "img_ids": at, "timestep": time.expand(len(x)) / 1000}
        y = net(h.flatten(2).transpose(1, 2), **told, **cond, return_dict=False)[0]
        return torch.nn.functional.pixel_shuffle(y.transpose(1, 2).reshape(h.shape), 2)

    fields = {"encoder_hidden_states": (L, 12), "pooled_projections": (6,)}
    return _theirs(net, call, fields, "transformer_blocks.1.attn", "transformer_blocks.1")


WORLDS = {"dit": dit, "unet": unet, "sd-unet": sd_unet, "sd3": sd3, "flux": flux}


@torch.no_grad()
def ask(model, cond, x, rows=slice(None), t=0.6):
    """What the network answers at some rows."""
    cond = {name: value[rows] if getattr(value, "ndim", 0) else value for name, value in cond.items()}
    bound = model.schema.bind(cond, len(x[rows]), "cpu")
    return model.answer(x[rows], model.level(torch.tensor(t), dtype=x.dtype), bound)


def points(world, seed=9):
    return normal(seed, B, *world.model.shape)
