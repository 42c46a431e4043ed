r"""Captioned shapes, the finite world: 240 pictures with a caption each, in which every question has an exact answer.

A method that steers by text can be judged only where the right answer is known. With finitely many templates m_k, all
equally likely, and x = alpha x0 + sigma eps, the posterior of the scene is a softmax, and every conditional denoiser is
that softmax restricted to the scenes Q that a caption allows (`data.captions`), at every noise level:

.. math:: p(k | x, Q) = \mathrm{softmax}_{k \in Q}\, \frac{-|x - \alpha m_k|^2}{2 \sigma^2}, \quad
   E[x_0 | x, Q] = \sum_k p(k | x, Q)\, m_k, \quad \nabla \log p_t(x | Q) = \frac{\alpha E[x_0 | x, Q] - x}{\sigma^2}

A picture is drawn from the signed distance d of its shape in pixels: each pixel is covered by clamp(1/2 - d, 0, 1),
rounded to 1/256 so that every machine draws the same numbers.

=======  ============================================  ======================
symbol   meaning                                       shape
=======  ============================================  ======================
m_k      templates, in [-1, 1], black is -1            (240, 3, 32, 32)
x, t     noisy pictures and their times                (B, 3, 32, 32), () or (B,)
mask     the scenes allowed, one set or one per row    (240,) or (B, 240) bool
=======  ============================================  ======================

References: Karras et al. 2022, appendix B.3 (the denoiser of a finite set). The shapes and captions are ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from wayfield.core.errors import ConditionError, DTypeError, RangeError, ShapeError, SingularError
from wayfield.core.path import Path
from wayfield.core.shapes import check_samples, expand, flatten
from wayfield.data.captions import ATTRIBUTES, SCENES, Description, Scene, parse
from wayfield.data.dataset import InMemory
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser

__all__ = ["SHAPE", "ShapesWorld", "agreement", "draw", "read", "shapes", "templates", "world_denoiser"]

SHAPE = (3, 32, 32)
"""Shape of one picture."""

_COUNT = len(SCENES)
_SIDE = SHAPE[-1]
_RADIUS = {"small": 4.0, "large": 7.0}
_OFFSET = {"centre": (0, 0), "left": (-8, 0), "right": (8, 0), "top": (0, -8), "bottom": (0, 8)}
COLOUR_VALUES = {
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "magenta": (1, 0, 1),
    "cyan": (0, 1, 1),
}


def _circle(x: Tensor, y: Tensor, r: float) -> Tensor:
    return (x.square() + y.square()).sqrt() - r


def _square(x: Tensor, y: Tensor, r: float) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.875 * r


def _triangle(x: Tensor, y: Tensor, r: float) -> Tensor:
    y = y - 0.25 * r  # centres its height
    side = math.sqrt(0.75) * x.abs() - 0.5 * y
    return torch.maximum(side, y) - 0.625 * r


def _ring(x: Tensor, y: Tensor, r: float) -> Tensor:
    return (_circle(x, y, 0.75 * r)).abs() - 0.25 * r


_DISTANCE: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
}


def _paint(scene: Scene) -> Tensor:
    """One picture, (3, 32, 32) float64."""
    dx, dy = _OFFSET[scene.position]
    axis = torch.arange(_SIDE, dtype=torch.float64) + (0.5 - _SIDE / 2)
    x, y = axis[None, :] - dx, axis[:, None] - dy
    d = _DISTANCE[scene.shape](x, y, _RADIUS[scene.size]).expand(_SIDE, _SIDE)
    cover = ((0.5 - d).clamp(0, 1) * 256).round() / 256
    colour = torch.tensor(COLOUR_VALUES[scene.colour], dtype=torch.float64)
    return 2 * colour[:, None, None] * cover - 1


@functools.cache
def templates() -> Tensor:
    """The pictures of all `SCENES`, (240, 3, 32, 32) float64. Made once and shared: copy it before writing into it."""
    return torch.stack([_paint(scene) for scene in SCENES])


def draw(scenes: Sequence[Scene]) -> Tensor:
    """The pictures of scenes, (N, 3, 32, 32) float32 in [-1, 1]; no random numbers. Raises ShapeError for none."""
    if not scenes:
        raise ShapeError("scenes", got="none", expected="at least one", remedy="Take some of `captions.SCENES`.")
    return templates()[[SCENES.index(scene) for scene in scenes]].float()


@final
class ShapesWorld(nn.Module):
    """Posterior, score and denoisers of the finite world on a path, all exact and differentiable in x.

    As a network it answers x0 at times t, and ``cond["mask"]`` (B, 240) says which scenes each row may be; a row that
    allows none gives NaN. Work is done in the dtype of the templates, float64 unless moved; answers have that of x.
    A query is a `Description`, a caption, or a mask (240,) or (B, 240); None means every scene.
    """

    rise: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        # m_k + 1: the black ground, equal in all, would only cost digits
        self.register_buffer("rise", flatten(templates()) + 1, persistent=False)

    def forward(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """E[x0 | x, mask], (B, 3, 32, 32) as x; at sigma = 0 the nearest template allowed."""
        q = self._logits(x, time, cond.get("mask")).softmax(1)
        return (q @ self.rise - 1).reshape(x.shape).to(x.dtype)

    def denoise(self, x: Tensor, t: float | Tensor, query: Description | str | Tensor | None = None) -> Tensor:
        """E[x0 | x, query], (B, 3, 32, 32). Raises ShapeError, DTypeError, RangeError, ConditionError or
        UnknownNameError.
        """
        time, mask = self._checked(x, t, query)
        return self(x, time, {} if mask is None else {"mask": mask})

    def posterior(self, x: Tensor, t: float | Tensor, query: Description | str | Tensor | None = None) -> Tensor:
        """p(k | x, query), (B, 240): the exact classifier at noise level t. Raises as `denoise`."""
        return self._logits(x, *self._checked(x, t, query)).softmax(1).to(x.dtype)

    def log_evidence(self, x: Tensor, t: float | Tensor, query: Description | str | Tensor) -> Tensor:
        """log p(query | x), (B,): the exact reward of a caption; its gradient is the exact guidance. Raises as
        `denoise`.
        """
        time, mask = self._checked(x, t, query)
        assert mask is not None
        logits = self._logits(x, time, None)
        return (logits.masked_fill(~mask, -math.inf).logsumexp(1) - logits.logsumexp(1)).to(x.dtype)

    def log_prob(self, x: Tensor, t: float | Tensor, query: Description | str | Tensor | None = None) -> Tensor:
        """log p_t(x | query), (B,), normalised. Raises as `denoise`, and SingularError at sigma = 0."""
        time, mask = self._checked(x, t, query)
        closeness, top, a, s = self._closeness(x, time, mask)
        rest = flatten(x).to(s) - a * (self.rise[top[:, 0]] - 1)  # from the likeliest template
        others = ((closeness - closeness.gather(1, top)) / _noisy(s) ** 2).logsumexp(1)
        count = torch.tensor(float(_COUNT)) if mask is None else mask.sum(-1)
        log_z = rest.shape[1] * (s[:, 0].log() + 0.5 * math.log(2 * math.pi)) + count.to(s).log()
        return (others - 0.5 * (rest / s).square().sum(1) - log_z).to(x.dtype)

    def score(self, x: Tensor, t: float | Tensor, query: Description | str | Tensor | None = None) -> Tensor:
        """The gradient of log p_t(x | query) in x, (B, 3, 32, 32). Raises as `log_prob`."""
        time, _ = self._checked(x, t, None)
        a, s = (expand(c.reshape(-1), x) for c in self._scales(time))
        return ((a * self.denoise(x.to(s), t, query) - x) / _noisy(s) ** 2).to(x.dtype)

    def _logits(self, x: Tensor, time: Tensor, mask: Tensor | None) -> Tensor:
        """log p(k | x, mask) up to a constant per row, the largest being 0: (B, 240)."""
        closeness, top, _, s = self._closeness(x, time, mask)
        return (closeness - closeness.gather(1, top)) / (s**2).clamp(min=torch.finfo(s.dtype).tiny)

    def _closeness(self, x: Tensor, time: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-|x - alpha m_k|^2 / 2 up to a constant per row (B, 240), the nearest k (B, 1), alpha and sigma (.., 1)."""
        a, s = self._scales(time)
        closeness = a * ((flatten(x).to(s) + a) @ self.rise.T) - 0.5 * a**2 * self.rise.square().sum(1)
        if mask is not None:
            closeness = closeness.masked_fill(~mask, -math.inf)
        return closeness, closeness.argmax(1, keepdim=True), a, s

    def _scales(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, (B, 1) or (1, 1), where and as the templates are."""
        a, s = self.path.scales(time.double())[:2]
        return a.reshape(-1, 1).to(self.rise), s.reshape(-1, 1).to(self.rise)

    def _checked(
        self, x: Tensor, t: float | Tensor, query: Description | str | Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The times () or (B,) and the mask (240,) or (B, 240), None for every scene."""
        _check_pictures(x)
        time = torch.as_tensor(t, dtype=torch.float64)
        if time.shape not in ((), x.shape[:1]):
            raise ShapeError("t", got=tuple(time.shape), expected=f"() or ({len(x)},)", remedy="One time, or one each.")
        if not bool(((time >= 0) & (time <= 1)).all()):
            raise RangeError("t", got=time.tolist(), expected="[0, 1]", remedy="t = 0 is data and t = 1 is noise.")
        if query is None:
            return time, None
        mask = _query(query).mask if isinstance(query, (str, Description)) else query
        if mask.dtype != torch.bool:
            raise DTypeError("mask", got=mask.dtype, expected=torch.bool, remedy="Cast it with .bool().")
        if mask.shape not in ((_COUNT,), (len(x), _COUNT)):
            expected = f"({_COUNT},) or {(len(x), _COUNT)}"
            raise ShapeError("mask", got=tuple(mask.shape), expected=expected, remedy="One set, or one per row.")
        if not bool(mask.any(-1).all()):
            raise ConditionError("mask", got="no scene", expected="at least one per row", remedy="Allow some scene.")
        return time, mask.to(self.rise.device)


def world_denoiser(path: Path) -> Denoiser:
    """The exact denoiser of the world; its condition is ``{"mask": query.mask}``, the null condition every scene."""
    schema = Schema({"mask": Field((_COUNT,), "bool")}, null={"mask": [True] * _COUNT})
    return Denoiser(ShapesWorld(path), path, "x0", schema=schema, shape=SHAPE)


def read(x: Tensor) -> list[Scene]:
    """The scene of each picture (N, 3, 32, 32): its nearest template. Raises ShapeError or DTypeError."""
    _check_pictures(x)
    m = flatten(templates()) + 1
    closeness = (flatten(x).to("cpu", torch.float64) + 1) @ m.T - 0.5 * m.square().sum(1)
    return [SCENES[k] for k in closeness.argmax(1).tolist()]


def agreement(pictures: Tensor, queries: Sequence[Description | Scene | str]) -> dict[str, float]:
    """How often pictures (N, 3, 32, 32), as `read`, are what was asked for, one query each, in 0..1.

    "all": the scene satisfies the query / "shape", "colour", "size", "position": that attribute has a value which some
    scene of the query has, over the pictures whose query restricts it; left out if none does. Raises ShapeError.
    """
    if len(pictures) != len(queries):
        raise ShapeError("queries", got=len(queries), expected=len(pictures), remedy="Give one per picture.")
    hits: dict[str, list[bool]] = {name: [] for name in (*ATTRIBUTES, "all")}
    for scene, asked in zip(read(pictures), map(_query, queries), strict=True):
        hits["all"].append(scene in asked)
        for name, values in ATTRIBUTES.items():
            fit = {getattr(s, name) for s in asked.scenes}
            if len(fit) < len(values):
                hits[name].append(getattr(scene, name) in fit)
    return {name: sum(h) / len(h) for name, h in hits.items() if h}


def shapes() -> InMemory:
    """The 240 pictures with their numbers, cond {"scene": (240,) in 0..239}; the null scene is 240."""
    schema = Schema({"scene": Field(values=_COUNT + 1)}, null={"scene": _COUNT})
    return InMemory(draw(SCENES), {"scene": torch.arange(_COUNT)}, schema)


def _check_pictures(x: Tensor) -> None:
    check_samples("pictures", x)
    if tuple(x.shape[1:]) != SHAPE:
        raise ShapeError("pictures", got=tuple(x.shape), expected=("B", *SHAPE), remedy="This world has one size.")


def _noisy(s: Tensor) -> Tensor:
    if bool((s <= 0).any()):
        raise SingularError(
            "score", got="sigma = 0", expected="sigma > 0", remedy="Templates have no density: raise t."
        )
    return s


@functools.lru_cache(1024)
def _query(asked: Description | Scene | str) -> Description:
    if isinstance(asked, Scene):
        return Description(tuple(scene == asked for scene in SCENES))
    return parse(asked) if isinstance(asked, str) else asked
