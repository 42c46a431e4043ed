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

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, DTypeError, RangeError, ShapeError, UnsupportedError, unknown_name
from wayfield.core.grid import Grid
from wayfield.core.noise import INITIAL, Address, SeededNoise
from wayfield.core.path import Straight
from wayfield.field.batching import Batching
from wayfield.field.binding import Counts
from wayfield.field.denoiser import Denoiser
from wayfield.field.hf_path import start_scale
from wayfield.field.patch import Patch
from wayfield.guide.guidance import Guidance, guidance_of
from wayfield.guide.terms import Term
from wayfield.sampling.driver import StepInfo, sample
from wayfield.sampling.pipe_conditions import Wish, check_wish, conditions, many, mapping
from wayfield.sampling.pipes import (
    Pipe,
    Size,
    codec_of,
    grid_of,
    latent_shape,
    pictures,
    pipe_of,
    size_of,
    solver_of,
)
from wayfield.solve.adaptive import Adaptive
from wayfield.solve.roles import Solver

__all__ = ["Steered", "steer"]

_OUTPUTS = ("pil", "np", "pt", "latent")


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
    texts: Mapping[str, str | Sequence[str]] | None = None,
    patches: Mapping[str, Patch] | None = None,
    nasa: float | Sequence[float] | None = None,
    nets: Mapping[str, Denoiser] | None = None,
    batching: Batching | None = None,
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
    texts: further conditions by the names that guidance gives them, one text, or one for each prompt.
    patches: for terms that act inside the network, by the name they ask: {"perturbed": PerturbedAttention(layers)} for
    PAG; they are in the network while it runs / nasa: strength alpha >= 0 of the negative prompt inside the network,
    one, or one for each picture, for models of few steps; "null" is then the empty text.
    nets: further networks by name / batching: ceilings of a network call / output_type: "pil", "np", "pt" or "latent" /
    the rest: see `sample`.
    Raises UnsupportedError, ConditionError, RangeError, ShapeError, UnknownNameError, and what `sample` raises.
    """
    p, rule = pipe_of(pipe), guidance_of(guidance)
    if output_type not in _OUTPUTS:
        raise unknown_name("output type", output_type, _OUTPUTS)
    away = [] if negative_prompt is None else many("negative prompts", negative_prompt)
    others = {name: many(f"texts {name!r}", said) for name, said in mapping("texts", texts).items()}
    wish = Wish(many("prompts", prompt), away, distilled, true_cfg, mapping("patches", patches), nasa, others)
    check_wish(p, rule, wish)
    _check_types(solver, latents)
    solver = solver_of(pipe.scheduler) if solver is None else solver
    _check_clip(pipe.scheduler, rule)
    codec, device = codec_of(p), p.device
    z = None if image is None else codec.encode(_pixels(pipe, image, height, width).to(device).float())
    size = size_of(p, height, width, like=latents if z is None else z)
    rows = _rows(wish.prompts, seeds, latents, z)
    noise, own = SeededNoise(0, rows), grid is None
    grid = grid_of(p, steps, size) if grid is None else grid
    grid = grid if z is None else _later(grid, strength)
    scale = start_scale(pipe.scheduler, grid) if own else float(grid.scales.sigma[0])
    x = _start(p, grid, size, noise, scale, z, latents).to(device)
    model, cond, conds, undos = conditions(p, rule, wish, size)
    try:
        out = sample(
            model, grid, x=x, noise=noise, cond=cond, conds=conds, solver=solver, guidance=rule, nets=nets,
            batching=batching, device=device, compile=compile, callback=callback, progress=progress,
        )  # fmt: skip
    finally:
        for undo in undos:
            undo()
    images, flagged = _packed(p, out.x), None
    if output_type != "latent":
        images, flagged = pictures(p, codec.decode(out.x), output_type)
    pipe.maybe_free_model_hooks()
    return Steered(images, out.counts, out.x, flagged)


def _check_types(solver: Any, latents: Any) -> None:
    if solver is not None and not isinstance(solver, Solver | Adaptive):
        remedy = "Pass e.g. DPM2M()."
        raise DTypeError("solver", got=repr(solver), expected="a solver", remedy=remedy)
    if latents is not None and not isinstance(latents, Tensor):
        remedy = "Pass torch.as_tensor(latents)."
        raise DTypeError("latents", got=type(latents).__name__, expected="a tensor", remedy=remedy)


def _whole(seed: Any) -> int:
    try:
        return operator.index(seed)
    except TypeError as error:
        remedy = "Seeds are numbers: seeds=range(4)."
        raise ConditionError("seeds", got=repr(seed), expected="integers", remedy=remedy) from error


def _check_clip(scheduler: Any, rule: Guidance) -> None:
    """Raise UnsupportedError if the scheduler would clip x0, and nobody does."""
    said = [name for name in ("clip_sample", "thresholding") if scheduler.config.get(name)]
    if said and rule.clip is None:
        remedy = "Pass guidance=Guidance(term, clip=(-1, 1)), or a scheduler without it; latents have no range."
        raise UnsupportedError("scheduler", got=f"{said[0]}=True", expected="no clipping, or a clip", remedy=remedy)


def _rows(prompts: Sequence[Any], seeds: Any, latents: Tensor | None, z: Tensor | None) -> tuple[int, ...]:
    """A seed for each picture, where prompts are one for all or one for each. Raises ConditionError."""
    given = None if seeds is None else [_whole(seed) for seed in many("seeds", seeds)]
    sizes = {"prompts": len(prompts)} | ({} if given is None else {"seeds": len(given)})
    sizes |= {name: len(v) for name, v in (("latents", latents), ("images", z)) if v is not None}
    n = max(sizes.values())
    for what, size in sizes.items():
        if size != n and (size != 1 or what == "latents"):
            remedy = "Give one for each picture, or a single one for all."
            raise ConditionError(what, got=f"{size} for {n} pictures", expected=f"{n}", remedy=remedy)
    given = list(range(n)) if given is None else given
    return tuple(given * n if len(given) == 1 else given)


def _pixels(pipe: Any, image: Any, height: int | None, width: int | None) -> Tensor:
    processor = getattr(pipe, "image_processor", None)
    if processor is None:
        remedy = "Start from latents instead."
        raise UnsupportedError("image", got=type(pipe).__name__, expected="one with image_processor", remedy=remedy)
    try:
        return processor.preprocess(image, height=height, width=width)
    except (TypeError, ValueError) as error:
        remedy = "Open it first, e.g. PIL.Image.open(path)."
        expected = "a PIL image, an array or a tensor, or several"
        raise ConditionError("image", got=type(image).__name__, expected=expected, remedy=remedy) from error


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
