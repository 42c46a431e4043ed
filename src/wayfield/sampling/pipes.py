r"""A diffusers pipeline, read: its network and family, its latents, its text encoders, and the solver it runs.

Nothing of a pipeline is changed or copied: texts go through its own `encode_prompt`, pictures through its own
autoencoder and image processor, all through `__call__` or what calls their hooks, so that parts that are offloaded keep
working.

=========  ==================================================  ==================
symbol     meaning                                             shape
=========  ==================================================  ==================
texts      prompts, or classes for DiT                         P of them
cond       conditions of the texts, by name                    (P, ...)
z          latents, standardised as the network has them       (B, c, h, w)
=========  ==================================================  ==================
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wayfield.core.errors import ConditionError, RangeError, UnsupportedError
from wayfield.core.grid import Grid
from wayfield.field.hf_families import Family, family_of
from wayfield.field.hf_path import flow_shift, scheduler_grid
from wayfield.field.latent import LatentCodec
from wayfield.solve.ddim import DDIM
from wayfield.solve.dpm import DPM2M
from wayfield.solve.euler import Euler
from wayfield.solve.heun import Heun
from wayfield.solve.roles import Solver
from wayfield.solve.unipc import UniPC

__all__ = ["Pipe", "Size", "codec_of", "encode", "grid_of", "nothing", "pictures", "pipe_of", "size_of", "solver_of"]

_SERVED = (
    *(f"{name}{way}Pipeline" for name in ("StableDiffusion", "StableDiffusionXL") for way in ("", "Img2Img")),
    *(f"{name}{way}Pipeline" for name in ("StableDiffusion3", "Flux") for way in ("", "Img2Img")),
    *("PixArtAlphaPipeline", "PixArtSigmaPipeline", "DiTPipeline"),
)
_PARTS = (
    *("vae", "unet", "transformer", "scheduler", "safety_checker", "feature_extractor", "image_encoder"),
    *(f"{part}{k}" for part in ("text_encoder", "tokenizer") for k in ("", "_2", "_3")),
)


class Pipe(NamedTuple):
    """pipe: the pipeline / net: its network / family: of the network / factor: pixels of one latent / device: where it
    computes, even if its parts are kept elsewhere.
    """

    pipe: Any
    net: Any
    family: Family
    factor: int
    device: torch.device

    @property
    def config(self) -> Any:
        """Options of the network, compiled or not."""
        return getattr(self.net, "_orig_mod", self.net).config


class Size(NamedTuple):
    """A picture in pixels."""

    height: int
    width: int


def pipe_of(pipe: Any) -> Pipe:
    """A pipeline whose every part is known. Raises UnsupportedError for others."""
    parts = getattr(pipe, "components", {})
    net = parts.get("transformer", parts.get("unet"))
    wrong = [name for name, part in parts.items() if part is not None and name not in _PARTS]
    if not any(c.__name__ in _SERVED for c in type(pipe).__mro__) or net is None:
        wrong = [type(pipe).__name__]
    elif pipe.config.get("requires_aesthetics_score"):
        wrong.append("requires_aesthetics_score")
    if wrong:
        remedy = "Use from_diffusers(net, scheduler) with sample(), and encode conditions yourself; see diffusers.md."
        expected = f"one of {', '.join(_SERVED)}, without further parts"
        raise UnsupportedError("pipeline", got=", ".join(wrong), expected=expected, remedy=remedy)
    assert isinstance(net, nn.Module)
    factor = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
    return Pipe(pipe, net, family_of(net), factor, pipe._execution_device)


def size_of(p: Pipe, height: int | None, width: int | None, like: Tensor | None = None) -> Size:
    """The picture's size, by default that of latents (B, c, h, w) if given, or else the pipeline's.

    Raises RangeError for one that latents cannot have.
    """
    if like is not None and like.ndim == 4:
        height, width = height or like.shape[2] * p.factor, width or like.shape[3] * p.factor
    side = getattr(p.pipe, "default_sample_size", None) or p.config.sample_size
    sides = side if isinstance(side, (list, tuple)) else (side, side)
    size = Size(height or sides[0] * p.factor, width or sides[1] * p.factor)
    unit = p.factor * (2 if p.family.name == "Flux" else p.config.get("patch_size") or 1)
    if not all(isinstance(pixels, int) and pixels >= unit and pixels % unit == 0 for pixels in size):
        remedy = "Round height and width."
        raise RangeError("picture size", got=tuple(size), expected=f"multiples of {unit}", remedy=remedy)
    return size


def latent_shape(p: Pipe, size: Size) -> tuple[int, int, int]:
    """Of one picture's latents, (c, h, w)."""
    channels = p.config.in_channels // (4 if p.family.name == "Flux" else 1)
    return channels, size.height // p.factor, size.width // p.factor


def grid_of(p: Pipe, steps: int, size: Size) -> Grid:
    """The times the pipeline would visit for a picture of that size."""
    _, h, w = latent_shape(p, size)
    flux, patch = p.family.name == "Flux", p.config.get("patch_size") or 1
    tokens = (h // 2) * (w // 2) if flux else (h // patch) * (w // patch)
    mu, sigmas = flow_shift(p.pipe.scheduler, tokens), None
    if flux and type(p.pipe.scheduler).__name__.startswith("FlowMatch") and isinstance(steps, int) and steps > 0:
        sigmas = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()
    return scheduler_grid(p.pipe.scheduler, steps, mu=mu, sigmas=sigmas)


def solver_of(scheduler: Any) -> Solver:
    """Our solver that makes the same steps as a scheduler. Raises UnsupportedError where there is none."""
    name, config = type(scheduler).__name__, scheduler.config
    order, eta = config.get("solver_order"), float(config.get("algorithm_type") == "sde-dpmsolver++")
    clean, predicted = {"final_sigmas_type": ("zero",)}, {"solver_type": ("bh2",), "predict_x0": (True,)}
    multistep = {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "euler_at_final": (False,)}
    second = clean | multistep | {"solver_order": (1, 2), "solver_type": ("midpoint",)}
    dpm = DDIM(eta=eta) if order == 1 else DPM2M(eta=eta)
    same: dict[str, tuple[Solver, Mapping[str, tuple[Any, ...]]]] = {
        "DDIMScheduler": (DDIM(), {}),
        "DDPMScheduler": (DDIM(eta=1.0), {"variance_type": ("fixed_small", "fixed_small_log")}),
        "EulerDiscreteScheduler": (DDIM(), clean),
        "EulerAncestralDiscreteScheduler": (DDIM(eta=1.0), {}),
        "HeunDiscreteScheduler": (Heun(), {}),
        "EDMEulerScheduler": (DDIM(), clean),
        "EDMDPMSolverMultistepScheduler": (dpm, second),
        "DPMSolverMultistepScheduler": (dpm, second),
        "UniPCMultistepScheduler": (
            UniPC(order if order in (1, 2, 3) else 2),
            clean | predicted | {"solver_order": (1, 2, 3), "disable_corrector": ([],), "lower_order_final": (True,)},
        ),
        "FlowMatchEulerDiscreteScheduler": (Euler(), {"stochastic_sampling": (False,)}),
    }
    solver, wanted = same.get(name, (None, {}))
    other = {k: config.get(k) for k, v in wanted.items() if config.get(k, v[0]) not in v}
    if solver is None or other:
        got = f"{name}({', '.join(f'{k}={v!r}' for k, v in other.items())})"
        remedy = "Pass solver=, e.g. solver=DPM2M()."
        raise UnsupportedError("solver of a scheduler", got=got, expected=f"one of {', '.join(same)}", remedy=remedy)
    return solver


def codec_of(p: Pipe) -> LatentCodec:
    """Pictures in -1..1 to the network's latents and back, by the pipeline's autoencoder."""
    vae, config = p.pipe.vae, p.pipe.vae.config
    scale, channels = config.scaling_factor, config.latent_channels
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0] * channels, [1.0] * channels
    widened = hasattr(p.pipe, "upcast_vae") and vae.dtype == torch.float16 and config.get("force_upcast")

    def run(method: Any, x: Tensor) -> Any:
        if not widened:
            return method(x.to(vae.dtype), return_dict=False)[0]
        vae.to(torch.float32)  # its own weights overflow in half precision, as its configuration says
        try:
            return method(x.float(), return_dict=False)[0]
        finally:
            vae.to(torch.float16)

    return LatentCodec(
        lambda x: run(vae.encode, x).mode().to(x.dtype),
        lambda z: run(vae.decode, z),
        torch.tensor(mean, dtype=torch.float64),
        torch.tensor(std, dtype=torch.float64) / scale,
        sigma_data=1.0,
    )


def pictures(p: Pipe, x: Tensor, output_type: str) -> tuple[Any, tuple[bool, ...] | None]:
    """Decoded pictures (B, 3, H, W) as the pipeline gives them, and what its safety checker says, if it has one."""
    flagged = None
    if getattr(p.pipe, "safety_checker", None) is not None:
        x, said = p.pipe.run_safety_checker(x, x.device, x.dtype)
        flagged = tuple(bool(v) for v in said)
    if getattr(p.pipe, "watermark", None) is not None:
        x = p.pipe.watermark.apply_watermark(x)
    processor = getattr(p.pipe, "image_processor", None)
    if processor is not None:
        shown = None if flagged is None else [not bad for bad in flagged]
        return processor.postprocess(x, output_type=output_type, do_denormalize=shown), flagged
    x = (x / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return x, flagged
    array = x.permute(0, 2, 3, 1).float().cpu().numpy()
    return (p.pipe.numpy_to_pil(array) if output_type == "pil" else array), flagged


def encode(p: Pipe, texts: Sequence[Any], size: Size) -> dict[str, Tensor]:
    """The conditions of texts, (P, ...) each, by the pipeline's own encoders; "guidance" is left to the caller.

    Raises ConditionError for a text longer than the encoder takes, and for a class that is not known.
    """
    name, pipe, device = p.family.name, p.pipe, p.device
    if name == "DiT":
        return {"class_labels": torch.tensor([_class(pipe, text) for text in texts], device=device)}
    texts = [_checked(pipe, name, text) for text in texts]
    if name == "Flux":
        text, pooled, _ = pipe.encode_prompt(texts, texts, device=device)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}
    if name == "SD3":
        text, _, pooled, _ = pipe.encode_prompt(texts, texts, texts, device=device, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}
    if name == "PixArt":
        options = {"do_classifier_free_guidance": False, "clean_caption": _cleans(pipe), "device": device}
        text, mask, _, _ = pipe.encode_prompt(texts, **options)
        out = {"encoder_hidden_states": text, "encoder_attention_mask": mask.long()}
        return out | _shape_conditions(size, len(texts), device) if p.net.use_additional_conditions else out
    given = {"prompt": texts, "device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    answer = pipe.encode_prompt(**given)
    if p.config.addition_embed_type is None:
        return {"encoder_hidden_states": answer[0]}
    ids = torch.tensor([[*size, 0, 0, *size]], device=device, dtype=torch.float32).expand(len(texts), -1)
    return {"encoder_hidden_states": answer[0], "text_embeds": answer[2], "time_ids": ids}


def nothing(p: Pipe, size: Size, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the pipeline takes for no text, (1, ...) each: mostly the empty one. like: conditions of some texts, whose
    shapes it has where it is zero; nothing is encoded then.
    """
    if p.family.name == "DiT":
        return {"class_labels": torch.tensor([p.config.num_embeds_ada_norm], device=p.device)}
    if not p.pipe.config.get("force_zeros_for_empty_prompt"):
        return encode(p, [""], size)
    zeros = ("encoder_hidden_states", "text_embeds")
    return {name: torch.zeros_like(v[:1]) if name in zeros else v[:1] for name, v in like.items()}


def _shape_conditions(size: Size, rows: int, device: torch.device) -> dict[str, Tensor]:
    sides = torch.tensor([size], device=device, dtype=torch.float32).expand(rows, -1)
    return {"resolution": sides, "aspect_ratio": sides[:, :1] / sides[:, 1:]}


def _cleans(pipe: Any) -> bool:
    """Whether the pipeline's own call would clean a text: it asks for it, and can where two packages are there."""
    asked = inspect.signature(type(pipe).__call__).parameters.get("clean_caption")
    return asked is not None and bool(asked.default) and all(find_spec(name) for name in ("bs4", "ftfy"))


def _class(pipe: Any, text: Any) -> int:
    """A class by its number, or by its name where the pipeline knows names."""
    if isinstance(text, int):
        return text
    names = getattr(pipe, "labels", None) or {}
    if text not in names:
        remedy = "Give numbers of classes, or names from pipe.labels."
        raise ConditionError("class", got=repr(text), expected=f"one of {len(names)} names", remedy=remedy)
    return int(names[text])


def _checked(pipe: Any, family: str, text: Any) -> str:
    """A text that fits the encoder which hears it whole. Raises ConditionError."""
    if not isinstance(text, str):
        raise ConditionError("prompt", got=type(text).__name__, expected="text", remedy="Give strings.")
    long = {"SD3": "tokenizer_3", "Flux": "tokenizer_2", "PixArt": "tokenizer"}.get(family)
    if long is not None and None in (getattr(pipe, long), getattr(pipe, long.replace("tokenizer", "text_encoder"))):
        long = None
    asked = inspect.signature(pipe.encode_prompt).parameters.get("max_sequence_length")
    for name in ("tokenizer", "tokenizer_2") if long is None else (long,):
        tokenizer = getattr(pipe, name, None)
        if tokenizer is None:
            continue
        limit = tokenizer.model_max_length if long is None or asked is None else asked.default
        count = len(tokenizer(text).input_ids)
        if count > limit:
            remedy = "Shorten it; what is beyond would not be heard."
            raise ConditionError("prompt", got=f"{count} tokens", expected=f"at most {limit}", remedy=remedy)
    return text
