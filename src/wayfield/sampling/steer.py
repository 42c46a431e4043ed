r"""A diffusers pipeline under this library's sampler and guidance, in one line.

    pictures = steer(pipe, "a cat", guidance=CFG(7), steps=30, seeds=range(4)).images

.. math:: \text{prompt} \to \text{conditions} \to \text{sample}(\ldots) \to \text{latents} \to \text{pictures}

The texts are encoded and the pictures decoded by the pipeline itself; between them `sample` asks its network. By
default the times are its scheduler's and the solver is the one that makes the scheduler's steps, so that from the same
latents the same picture comes. What differs from the pipeline's own call:

* guidance is what `guidance` says; there is none by default, and w means what it means there;
* noise is addressed by seed: seed k gives the same picture alone or in any batch;
* the state is kept in float32, whatever the network computes in;
* a text that is too long is refused, not cut; a picture to start from is encoded to the mean of its latents;
* PixArt pictures are made in the size that is asked for, not in the nearest one of its training.

"null", what guidance pushes away from if not told otherwise, is the empty text, or the negative prompt if one is given,
as everywhere in diffusers. A guidance that names "negative" finds the negative prompt there, and "null" stays empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, RangeError, ShapeError, UnsupportedError, unknown_name
from wayfield.core.grid import Grid
from wayfield.core.noise import INITIAL, Address, SeededNoise
from wayfield.core.path import Straight
from wayfield.field.binding import Counts
from wayfield.field.denoiser import Denoiser
from wayfield.field.hf import from_diffusers
from wayfield.field.hf_path import start_scale
from wayfield.guide.guidance import Guidance, guidance_of
from wayfield.guide.terms import Term
from wayfield.sampling.driver import StepInfo, sample
from wayfield.sampling.pipes import (
    Pipe,
    Size,
    codec_of,
    encode,
    grid_of,
    latent_shape,
    nothing,
    pictures,
    pipe_of,
    size_of,
    solver_of,
)
from wayfield.solve.adaptive import Adaptive
from wayfield.solve.roles import Solver

__all__ = ["Steered", "steer"]

_OUTPUTS = ("pil", "np", "pt", "latent")
_SCALE = 3.5


@final
@dataclass(frozen=True)
class Steered:
    """images: what the pipeline returns for this output type / counts: network calls, rows in them, rows spared /
    latents: of the images, (B, c, h, w) / flagged: what the pipeline's safety checker says of each, if it has one.
    """

    images: Any
    counts: Counts
    latents: Tensor
    flagged: tuple[bool, ...] | None = None


@torch.no_grad()
def steer(
    pipe: Any,
    prompt: str | int | Sequence[str] | Sequence[int],
    *,
    negative_prompt: str | Sequence[str] | None = None,
    guidance: Guidance | Term | None = None,
    solver: Solver | Adaptive | None = None,
    steps: int = 30,
    seeds: int | Sequence[int] | None = None,
    grid: Grid | None = None,
    height: int | None = None,
    width: int | None = None,
    image: Any = None,
    strength: float = 0.8,
    latents: Tensor | None = None,
    distilled: float | None = None,
    true_cfg: bool = False,
    nets: Mapping[str, Denoiser] | None = None,
    output_type: str = "pil",
    compile: bool | str = False,
    callback: Callable[[StepInfo], None] | None = None,
    progress: bool = False,
) -> Steered:
    """Pictures from a diffusers pipeline: Stable Diffusion 1, 2, XL and 3, PixArt, DiT, Flux.

    prompt: one, or one for each picture; for DiT numbers or names of classes / negative_prompt: one, or one for each
    prompt / seeds: one for each picture, 0, 1, ... if not given; a single prompt or seed serves all.
    solver, steps, grid: by default what the pipeline's scheduler does in so many steps; a grid replaces `steps`.
    height, width: in pixels / image, strength: a picture to start from, with the last share `strength` of the steps.
    latents: standard normal start (B, c, h, w), instead of noise from `seeds`; Flux also takes them packed.
    distilled: the scale that a model with distilled guidance is told (3.5 if not given) / true_cfg: allow guidance by
    "null" or "negative" for such a model, at a second branch.
    nets: further networks by name / output_type: "pil", "np", "pt" or "latent" / the rest: see `sample`.
    Raises UnsupportedError, ConditionError, RangeError, ShapeError, UnknownNameError, and what `sample` raises.
    """
    p, rule = pipe_of(pipe), guidance_of(guidance)
    if output_type not in _OUTPUTS:
        raise unknown_name("output type", output_type, _OUTPUTS)
    _check_terms(p, rule, negative_prompt, distilled, true_cfg)
    solver = solver_of(pipe.scheduler) if solver is None else solver
    _check_clip(pipe.scheduler, rule)
    codec, device = codec_of(p), p.device
    z = None if image is None else codec.encode(_pixels(pipe, image, height, width).to(device).float())
    size = size_of(p, height, width, like=latents if z is None else z)
    prompts, rows = _rows(prompt, seeds, latents, z)
    noise, own = SeededNoise(0, rows), grid is None
    grid = grid_of(p, steps, size) if grid is None else grid
    grid = grid if z is None else _later(grid, strength)
    scale = start_scale(pipe.scheduler, grid) if own else float(grid.scales.sigma[0])
    x = _start(p, grid, size, noise, scale, z, latents).to(device)
    model, cond, conds = _conditions(
        p, rule, prompts, negative_prompt, size, _SCALE if distilled is None else distilled
    )
    out = sample(
        model, grid, x=x, noise=noise, cond=cond, conds=conds, solver=solver, guidance=rule, nets=nets, device=device,
        compile=compile, callback=callback, progress=progress,
    )  # fmt: skip
    images, flagged = _packed(p, out.x), None
    if output_type != "latent":
        images, flagged = pictures(p, codec.decode(out.x), output_type)
    pipe.maybe_free_model_hooks()
    return Steered(images, out.counts, out.x, flagged)


def _asked(rule: Guidance) -> set[str]:
    """Names of conditions that guidance may ask, even where its scale happens to ask nothing."""
    return {q.cond for part in rule.parts for q in (*part.needs, *part.told)} | {q.cond for q in rule.told}


def _check_terms(
    p: Pipe, rule: Guidance, negative: str | Sequence[str] | None, distilled: float | None, true_cfg: bool
) -> None:
    """Raise for guidance that the model cannot serve, and for a negative prompt that nobody would ask."""
    against = _asked(rule) & {"null", "negative"}
    if not p.family.distilled(p.net):
        if distilled is not None:
            remedy = "Leave distilled out; this model is guided by guidance=CFG(w)."
            expected = "a model with distilled guidance"
            raise UnsupportedError(
                "distilled", got=f"{distilled} for {p.family.name}", expected=expected, remedy=remedy
            )
    elif against and not true_cfg:
        remedy = "Use distilled=w for the scale it is told; true_cfg=True adds a second branch on top of it."
        got, expected = f"guidance by {sorted(against)}", "none: the model's answer is already guided"
        raise UnsupportedError("model with distilled guidance", got=got, expected=expected, remedy=remedy)
    if negative is not None and not against:
        remedy = "Pass guidance=CFG(w), or leave the negative prompt out."
        raise ConditionError("negative prompt", got="guidance that never asks it", expected="CFG(w)", remedy=remedy)
    if negative is None and "negative" in against:
        remedy = "Pass negative_prompt=..., or use 'null'."
        raise ConditionError("negative prompt", got=None, expected="text for 'negative'", remedy=remedy)


def _check_clip(scheduler: Any, rule: Guidance) -> None:
    """Raise UnsupportedError if the scheduler would clip x0, and nobody does."""
    said = [name for name in ("clip_sample", "thresholding") if scheduler.config.get(name)]
    if said and rule.clip is None:
        remedy = "Pass guidance=Guidance(term, clip=(-1, 1)), or a scheduler without it; latents have no range."
        raise UnsupportedError("scheduler", got=f"{said[0]}=True", expected="no clipping, or a clip", remedy=remedy)


def _many(x: Any) -> list[Any]:
    return [x] if isinstance(x, (str, int)) else list(x)


def _rows(prompt: Any, seeds: Any, latents: Tensor | None, z: Tensor | None) -> tuple[list[Any], tuple[int, ...]]:
    """One prompt for all or one for each picture, and one seed for each. Raises ConditionError."""
    prompts, given = _many(prompt), None if seeds is None else _many(seeds)
    sizes = {"prompts": len(prompts)} | ({} if given is None else {"seeds": len(given)})
    sizes |= {name: len(v) for name, v in (("latents", latents), ("images", z)) if v is not None}
    n = max(sizes.values())
    for what, size in sizes.items():
        if size != n and (size != 1 or what == "latents"):
            remedy = "Give one for each picture, or a single one for all."
            raise ConditionError(what, got=f"{size} for {n} pictures", expected=f"{n}", remedy=remedy)
    given = list(range(n)) if given is None else given
    return prompts, tuple(given * n if len(given) == 1 else given)


def _pixels(pipe: Any, image: Any, height: int | None, width: int | None) -> Tensor:
    processor = getattr(pipe, "image_processor", None)
    if processor is None:
        remedy = "Start from latents instead."
        raise UnsupportedError("image", got=type(pipe).__name__, expected="one with image_processor", remedy=remedy)
    return processor.preprocess(image, height=height, width=width)


def _later(grid: Grid, strength: float) -> Grid:
    """The part of a run that a start of this strength makes, with as many steps as the pipelines make."""
    n = grid.steps
    skipped = int(n - n * strength) if isinstance(grid.path, Straight) else n - int(n * strength)
    if not 0 < strength <= 1 or skipped >= n:
        remedy = "1 starts from noise alone; small strengths need more steps."
        raise RangeError("strength", got=strength, expected=f"({1 / n:g}, 1] for {n} steps", remedy=remedy)
    return Grid(grid.path, grid.t[skipped:])


def _start(
    p: Pipe, grid: Grid, size: Size, noise: SeededNoise, scale: float, z: Tensor | None, latents: Tensor | None
) -> Tensor:
    """Points (B, c, h, w) at the grid's first time. scale: of noise that starts from nothing."""
    shape = latent_shape(p, size)
    if latents is None:
        eps = noise.draw(shape, Address(INITIAL, 0, grid.t[0], grid.t[0]))
        if z is None:
            return scale * eps
        alpha, sigma = (float(c[0]) for c in grid.scales[:2])
        return alpha * z + sigma * eps.to(z.device)
    if z is not None:
        remedy = "Leave one of them out."
        raise UnsupportedError("start", got="image and latents", expected="one of them", remedy=remedy)
    x = latents.float()
    if p.family.name == "Flux" and x.ndim == 3:
        x = p.pipe._unpack_latents(x, *size, p.factor)
    if tuple(x.shape[1:]) != shape:
        remedy = "Pass height and width of the picture too."
        raise ShapeError("latents", got=tuple(x.shape), expected=("B", *shape), remedy=remedy)
    return scale * x


def _packed(p: Pipe, x: Tensor) -> Tensor:
    """Latents as the pipeline returns them."""
    return p.pipe._pack_latents(x, *x.shape) if p.family.name == "Flux" else x


def _conditions(
    p: Pipe, rule: Guidance, prompts: list[Any], negative: Any, size: Size, scale: float
) -> tuple[Denoiser, dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The model with its "null", the main condition, and "negative" where guidance names it."""
    asked, against = _asked(rule), [] if negative is None else _many(negative)
    if against and len(against) not in (1, len(prompts)):
        remedy = "Give one negative prompt, or one for each prompt."
        expected = f"1 or {len(prompts)}"
        raise ConditionError("negative prompts", got=len(against), expected=expected, remedy=remedy)
    named = "negative" in asked
    if against and not named and len(set(against)) > 1:
        remedy = "Say CFG(w, away='negative'): that may differ from row to row."
        expected = "one text for all as 'null'"
        raise UnsupportedError("negative prompts", got=f"{len(against)} texts", expected=expected, remedy=remedy)
    said = encode(p, prompts, size)
    cond = _told(p, said, scale)
    conds = {"negative": _single(_told(p, encode(p, against, size), scale))} if named else {}
    null = None
    if "null" in asked:
        rows = encode(p, against[:1], size) if against and not named else nothing(p, size, said)
        null = {name: v[0] for name, v in _told(p, rows, scale).items()}
    model = from_diffusers(p.net, p.pipe.scheduler, null=null, tokens=_length(cond))
    return model, _single(cond), conds


def _told(p: Pipe, cond: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The conditions with the scale that a model with distilled guidance is told."""
    if not p.family.distilled(p.net):
        return cond
    rows = next(iter(cond.values()))
    return cond | {"guidance": torch.full((len(rows),), scale, device=rows.device)}


def _single(cond: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of one row, the values without the batch axis, which serve every row."""
    return {name: v[0] if len(v) == 1 else v for name, v in cond.items()}


def _length(cond: Mapping[str, Tensor]) -> int:
    text = cond.get("encoder_hidden_states")
    return 1 if text is None else text.shape[1]
