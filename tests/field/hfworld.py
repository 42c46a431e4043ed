"""Small diffusers networks with random weights, their conditions, and the loops their pipelines run."""

import copy

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")

L, B = 5, 2


def unet2d(classes=None):
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4, attention_head_dim=4, num_class_embeds=classes,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def unet(**options):
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
        norm_num_groups=4, attention_head_dim=4, cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    )  # fmt: skip


def sdxl():
    return unet(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=30)


def dit():
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10,
    )  # fmt: skip


def pixart(conditions=False):
    return diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        cross_attention_dim=24, caption_channels=12, use_additional_conditions=conditions,
    )  # fmt: skip


def sd3():
    return diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6,
        pos_embed_max_size=8,
    )  # fmt: skip


def flux(distilled=True):
    return diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, guidance_embeds=distilled, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


NETS = {
    "unet2d": (unet2d, (3, 8, 8)),
    "unet2d-classes": (lambda: unet2d(6), (3, 8, 8)),
    "unet": (unet, (4, 8, 8)),
    "sdxl": (sdxl, (4, 8, 8)),
    "dit": (dit, (4, 8, 8)),
    "pixart": (pixart, (4, 8, 8)),
    "pixart-large": (lambda: pixart(True), (4, 8, 8)),
    "sd3": (sd3, (4, 8, 8)),
    "flux": (flux, (4, 8, 8)),
    "flux-plain": (lambda: flux(False), (4, 8, 8)),
}


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(name, seed=0):
    """A network of the family in evaluation mode, every weight random: some would start at zero."""
    with torch.random.fork_rng():
        net = NETS[name][0]().eval().requires_grad_(False)
    gen = torch.Generator().manual_seed(seed)
    for name, p in net.named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if p.ndim > 1:
            p.copy_(noise / p[0].numel() ** 0.5)
        else:
            p.copy_(0.1 * noise + float(name.endswith("weight")))
    return net


def conditions(fields, seed):
    """Random values of a schema's fields for B rows."""
    out = {}
    for k, (name, field) in enumerate(sorted(fields.items())):
        if name == "encoder_attention_mask":
            out[name] = (torch.arange(L) < torch.tensor([[L], [2]])).long()
        elif field.values is not None:
            out[name] = torch.tensor([1, 4]) + seed % 2
        elif name in ("time_ids", "resolution"):
            out[name] = torch.tensor([8.0, 8, 0, 0, 8, 8])[: field.shape[0]].expand(B, -1)
        else:
            out[name] = normal(100 * seed + k, B, *field.shape)
    return out


def scheduler(name, **config):
    return getattr(diffusers, name)(**config)


SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def their_call(name, net, x, t, cond):
    """One call as the pipeline of the family writes it. t: of the scheduler."""
    family, many = name.split("-")[0], t.expand(len(x))
    if family == "unet2d":
        return net(x, t, cond.get("class_labels")).sample
    if family == "unet":
        return net(x, t, encoder_hidden_states=cond["encoder_hidden_states"], return_dict=False)[0]
    if family == "sdxl":
        added = {k: cond[k] for k in ("text_embeds", "time_ids")}
        return net(x, t, encoder_hidden_states=cond["encoder_hidden_states"], added_cond_kwargs=added).sample
    if family == "dit":
        return net(x, timestep=many, class_labels=cond["class_labels"]).sample.chunk(2, dim=1)[0]
    if family == "pixart":
        added = {k: cond.get(k) for k in ("resolution", "aspect_ratio")}
        text = {k: cond[k] for k in ("encoder_hidden_states", "encoder_attention_mask")}
        return net(x, timestep=many, added_cond_kwargs=added, **text).sample.chunk(2, dim=1)[0]
    if family == "sd3":
        return net(x, timestep=many, return_dict=False, **cond)[0]
    pipe = diffusers.FluxPipeline
    ids = pipe._prepare_latent_image_ids(len(x), 4, 4, x.device, x.dtype)
    packed, text = pipe._pack_latents(x, *x.shape), torch.zeros(L, 3)
    y = net(packed, timestep=many / 1000, img_ids=ids, txt_ids=text, return_dict=False, **cond)[0]
    return pipe._unpack_latents(y, 8, 8, 1)


@torch.no_grad()
def their_loop(name, net, made, steps, noise, cond, away=None, w=1.0, **timesteps):
    """The denoising loop of the family's pipeline: the last sample, from standard normal noise. made: a scheduler."""
    made = copy.deepcopy(made)
    made.set_timesteps(**({"num_inference_steps": steps} if "sigmas" not in timesteps else {}), **timesteps)
    x = noise * getattr(made, "init_noise_sigma", 1.0)
    for t in made.timesteps:
        seen = made.scale_model_input(x, t) if hasattr(made, "scale_model_input") else x
        y = their_call(name, net, seen, t, cond)
        if away is not None:
            u = their_call(name, net, seen, t, away)
            y = u + w * (y - u)
        x = made.step(y, t, x, return_dict=False)[0]
    return x
