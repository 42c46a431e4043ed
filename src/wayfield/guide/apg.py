r"""Adaptive projected guidance: high guidance scales without burnt colours, at no extra evaluation.

A large part of what classifier-free guidance adds at high scales is parallel to the prediction itself: a gain on its
contrast. APG takes that part out, clips what is left of one step, and lets earlier steps push back.

.. math:: m &= \delta + \beta\, m_{\text{before}}, \qquad d = m \min(1, r / \|m\|), \\
   d' &= d - (1 - \eta)\, k\, c, \qquad k = \langle d, c \rangle / \langle c, c \rangle, \\
   \hat{x}_0 &= c + (w - 1)\, d'

=========  ===================================================================================  =======
symbol     meaning                                                                              shape
=========  ===================================================================================  =======
c          x0 with the condition, what is pushed from (`ask.base`)                              (B, *D)
delta      c minus x0 without it, a *unit* contrast: the gain w - 1 belongs outside             (B, *D)
m          momentum, a sum; zero before the first step, kept by the first evaluation of a step  (B, *D)
eta        share of the parallel part that stays; 0 is the paper's, 1 takes nothing out
r          longest step, in the units of x0; grows like the square root of the data's size
beta       in (-1, 1), the paper's negative: steady pushes shrink to 1/(1 - beta)
=========  ===================================================================================  =======

Products and norms are over everything but the batch, or over `axes`. All of it is in x0, whatever the network answers
with: in eps another direction is "parallel". With eta = 0 a guided prediction keeps its part along c, so
<x0 - c, c> = 0. Data should be centred at 0, as pixels in [-1, 1] and standardised latents are.

Presets, w / r / beta: sdxl 15 / 15 / -0.5 and edm2 4 / 2.5 / -0.75 (their r, and sdxl's beta, confirmed by ports of the
paper; the rest from memory); dit-xl-2 4 / 5 / -0.5 and sd2.1 10 / 7.5 / -0.75 (from memory); audio, no w / 2.5 / -0.75
over time alone, as several ports of an audio model have it. r depends on resolution, channels and the scale of latents:
for another model take it from `fitting.calibrate_r`.

Reference: Sadat, Hilliges & Weber 2024, Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion
Models, arXiv 2410.02416, algorithm 1. Its w is ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, ShapeError, unknown_name
from wayfield.core.shapes import check_like
from wayfield.field.ask import Ask
from wayfield.guide.contrast import Away
from wayfield.guide.roles import Shaper, State, Step
from wayfield.guide.terms import Factor, Term, check_factor

__all__ = ["APG", "PRESETS", "Preset", "apg", "apg_preset", "clip_norm", "project"]

Axes = tuple[int, ...] | None
VARIANTS = ("paper", "uncond_base", "plus_one")
UNITS = ("l2", "rms")
_HALF = (torch.float16, torch.bfloat16)
_TINY = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64)}


def project(d: Tensor, on: Tensor, axes: Axes = None) -> tuple[Tensor, Tensor]:
    """The parts of d (B, *D) parallel and orthogonal to `on` (B, *D), sample by sample.

    axes: dimensions that products are summed over, None for all but the batch. Where `on` is zero nothing is parallel.
    Half precision is computed in float32.
    Raises ShapeError, DeviceError or DTypeError if d and `on` differ, RangeError or ShapeError for other axes.
    """
    check_like("what is projected on", on, d)
    dtype = _wide(d.dtype)
    y, unit, dims = d.to(dtype), on.to(dtype), _dims(axes, d.ndim)
    unit = unit / torch.linalg.vector_norm(unit, 2, dims, True).clamp_min(_TINY[dtype])
    parallel = (y * unit).sum(dims, True) * unit
    return parallel.to(d.dtype), (y - parallel).to(d.dtype)


def clip_norm(d: Tensor, r: float | None, axes: Axes = None) -> Tensor:
    """d (B, *D), shortened to the Euclidean norm r where it is longer. r: >= 0; None or 0 for no limit / axes: as of
    `project`. Raises RangeError, or ShapeError for axes that d does not have.
    """
    _check_clip(r)
    if not r:
        return d
    y = d.to(_wide(d.dtype))
    return (y / (torch.linalg.vector_norm(y, 2, _dims(axes, d.ndim), True) / r).clamp_min(1)).to(d.dtype)


@final
@dataclass(frozen=True)
class APG(Shaper):
    """A push without its part along the prediction, clipped, with momentum. See the module; `apg` puts it to use.

    eta: share of the parallel part that stays, in [-1, 2]; 1 takes nothing out / r: longest step, >= 0; None or 0 for
    no limit / beta: momentum in (-1, 1) / unit: of r, "l2", or "rms", r per square root of the number of values / axes:
    dimensions of (B, *D) that norms and products are over, as (-1,), None for all but the batch.
    r means a *unit* contrast: `3 * Away(NULL).through(APG(r=1))`, never `CFG(4).through(APG(r=1))`, which clips what is
    already scaled. Momentum stands still where a gate to the right of it is closed.
    Raises RangeError, UnknownNameError, and ShapeError at the start of a run whose data lacks the axes. Warns of
    eta > 1, and of samples of one value, which have no orthogonal part.
    """

    eta: float = 0.0
    r: float | None = None
    beta: float = 0.0
    unit: Literal["l2", "rms"] = "l2"
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not -1 <= self.eta <= 2:
            remedy = "0 takes the parallel part out, 1 leaves it."
            raise RangeError("eta of APG", got=self.eta, expected="-1 <= eta <= 2", remedy=remedy)
        if self.eta > 1:
            said = f"APG(eta={self.eta:g}) strengthens the parallel part that APG is there to remove"
            warnings.warn(said, UserWarning, stacklevel=3)
        if not -1 < self.beta < 1:
            remedy = "The paper's lie between -0.75 and -0.25; at 1 or beyond momentum grows without bound."
            raise RangeError("beta of APG", got=self.beta, expected="-1 < beta < 1", remedy=remedy)
        _check_clip(self.r)
        if self.unit not in UNITS:
            raise unknown_name("unit of r", self.unit, UNITS)
        if self.axes is not None:
            object.__setattr__(self, "axes", tuple(self.axes))
            _check_axes(self.axes)
        object.__setattr__(self, "remembers", self.beta != 0)
        object.__setattr__(self, "absolute", bool(self.r))
        _ = self._inverse  # made here: compiled steps only read it

    @cached_property
    def _inverse(self) -> Mapping[torch.dtype, Tensor]:
        """1 / r, (), by type: a tensor of the same type multiplies faster than a number."""
        return {dtype: torch.tensor(1 / self.r if self.r else 0.0, dtype=dtype) for dtype in _TINY}

    def init(self, x: Tensor, n: int) -> State:
        """No momentum yet, in float32 at least: it sums over all steps."""
        dims = _dims(self.axes, x.ndim)
        if self.eta != 1 and _count(x, dims) == 1:
            said = (
                "APG of a single value: all of it is parallel to the prediction, so that eta = 0 removes all guidance"
            )
            warnings.warn(said, UserWarning, stacklevel=2)
        return (torch.zeros_like(x, dtype=_wide(x.dtype)),) if self.remembers else ()

    def shape(self, ask: Ask, push: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """See `Shaper.shape`."""
        # a number is faster than a tuple of one
        dims = 1 if self.axes is None and push.ndim == 2 else _dims(self.axes, push.ndim)
        half = push.dtype in _HALF
        c, d, r = (ask.base.float(), push.float(), self.r) if half else (ask.base, push, self.r)
        if self.remembers:
            d = torch.add(d, state[0], alpha=self.beta)
            state = (d,)
        if r:
            inverse = self._inverse[d.dtype] if self.unit == "l2" else 1 / (r * _count(d, dims) ** 0.5)
            d = d / (torch.linalg.vector_norm(d, 2, dims, True) * inverse).clamp_min_(1)
        if self.eta != 1:
            c = c / torch.linalg.vector_norm(c, 2, dims, True).clamp_min(_TINY[c.dtype])
            d = torch.addcmul(d, (d * c).sum(dims, True), c, value=self.eta - 1)
        return (d.to(push.dtype) if half else d), state


def apg(
    w: Factor = 4.0,
    *,
    eta: float = 0.0,
    r: float | None = None,
    beta: float = 0.0,
    unit: Literal["l2", "rms"] = "l2",
    axes: tuple[int, ...] | None = None,
    variant: Literal["paper", "uncond_base", "plus_one"] = "paper",
    away: str = "null",
) -> Term:
    """Classifier-free guidance, every step shaped by `APG`.

    w: scale; 1 means no guidance; a tuple gives every sample its own / eta, r, beta, unit, axes: as of `APG` / away:
    name of the condition that is pushed away from.
    variant: "paper", c + (w - 1) d' / "uncond_base", u + w d', and c at w = 1, as one library has it by default: the
    paper's less delta - d' / "plus_one", c + w d', as one user interface has it: one unit stronger and never CFG, plain
    at w = 0.
    Raises as `APG`, RangeError for w, UnknownNameError for a variant.
    """
    if variant not in VARIANTS:
        raise unknown_name("variant of APG", variant, VARIANTS)
    w, unguided = check_factor("guidance scale w", w), Away(away)
    shaped = unguided.through(APG(eta, r, beta, unit, axes))
    if variant == "paper":
        return _each(w, lambda v: v - 1) * shaped
    if variant == "plus_one":
        return w * shaped
    return _each(w, lambda v: v * (v != 1)) * shaped + _each(w, lambda v: float(v == 1) - 1) * unguided


class Preset(NamedTuple):
    """Published settings of a model. w: None where none is known."""

    w: float | None
    r: float
    beta: float
    axes: tuple[int, ...] | None = None


PRESETS: Mapping[str, Preset] = {
    "sdxl": Preset(15.0, 15.0, -0.5),
    "edm2": Preset(4.0, 2.5, -0.75),
    "dit-xl-2": Preset(4.0, 5.0, -0.5),
    "sd2.1": Preset(10.0, 7.5, -0.75),
    "audio": Preset(None, 2.5, -0.75, (-1,)),
}
"""Settings by model, eta = 0 in all; how well each is known stands in the module's docstring."""


def apg_preset(name: str, w: float | None = None) -> Term:
    """`apg` with a model's published settings. name: in `PRESETS` / w: instead of the preset's.

    Raises UnknownNameError, and RangeError without w where the preset has none.
    """
    if name not in PRESETS:
        raise unknown_name("preset of APG", name, PRESETS)
    own, r, beta, axes = PRESETS[name]
    scale = own if w is None else w
    if scale is None:
        raise RangeError(f"w of preset {name!r}", got=None, expected="a number", remedy="Pass w, such as 7.")
    return apg(scale, r=r, beta=beta, axes=axes)


def _each(w: Factor, f: Callable[[float], float]) -> Factor:
    return tuple(f(v) for v in w) if isinstance(w, tuple) else f(w)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in _HALF else dtype


def _dims(axes: Axes, ndim: int) -> tuple[int, ...]:
    """The dimensions that are summed over, checked, counted from the front."""
    if axes is None:
        return tuple(range(1, ndim))
    _check_axes(axes)
    dims = tuple(a % ndim if -ndim <= a < ndim else 0 for a in axes)
    if 0 in dims or len(set(dims)) < len(dims):
        expected = f"different dimensions of {ndim}, not the first"
        raise ShapeError(
            "axes", got=axes, expected=expected, remedy="Count without the batch, e.g. (-1,) for the last."
        )
    return dims


def _count(x: Tensor, dims: int | tuple[int, ...]) -> int:
    n = 1
    for dim in (dims,) if isinstance(dims, int) else dims:
        n *= x.shape[dim]
    return n


def _check_clip(r: float | None) -> None:
    if r is not None and not 0 <= r < float("inf"):
        remedy = "Published values lie between 2.5 and 15; None clips nothing."
        raise RangeError("r, the longest step", got=r, expected="0 <= r < infinity, or None", remedy=remedy)


def _check_axes(axes: tuple[int, ...]) -> None:
    if not axes or any(isinstance(a, bool) or not isinstance(a, int) or a == 0 for a in axes):
        remedy = "Use (-1,) for the last dimension alone, None for all."
        raise RangeError("axes", got=axes, expected="dimensions other than the batch's, 0", remedy=remedy)
