r"""Both sides of a contrast in the space where a rule for them is stated.

Products and norms of predictions are not those of other predictions: x0, noise and velocity are affine in one another
at a point, not proportional. Rules that compare the two sides of a contrast therefore say where.

.. math:: y = k\,(x_0 - z), \qquad \delta_y = k\, \delta

=========  =============================================================================  ==========
symbol     meaning                                                                        shape
=========  =============================================================================  ==========
y_c, y_u   the two sides: `ask.base`, and that less the push, which must be a unit        (b, *D)
           contrast
z          the x0 behind the answer 0                                                     (b, *D)
delta      the contrast in x0                                                             (b, *D)
=========  =============================================================================  ==========

Half precision is computed in float32.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from wayfield.core.errors import unknown_name
from wayfield.core.shapes import dot, expand, norm
from wayfield.field.ask import Ask
from wayfield.guide.contrast import Away
from wayfield.guide.roles import Shaper
from wayfield.guide.terms import Factor, Term, check_factor

__all__ = ["SPACES", "Sides", "Space", "check_space", "ratio", "shaped", "sides", "silence"]

Space = Literal["native", "x0", "eps"]
"""Where a rule is stated: what the network answers with, clean data, or noise."""

SPACES = ("native", "x0", "eps")
_HALF = (torch.float16, torch.bfloat16)
_TINY = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64)}


class Sides(NamedTuple):
    """Products of one contrast, (b,), and its parts in x0.

    cc, uu, cu: products of the sides in the space / gap: <delta_y, y_c + y_u>, cc - uu without its cancellation /
    length, other: norms of delta_y and y_u / delta: the contrast in x0, (b, *D) / rest: u - z in x0, (b, *D).
    """

    cc: Tensor
    uu: Tensor
    cu: Tensor
    gap: Tensor
    length: Tensor
    other: Tensor
    delta: Tensor
    rest: Tensor

    def moved(self, on_delta: Tensor, on_rest: Tensor) -> Tensor:
        """on_delta * delta + on_rest * (u - z), factors (b,)."""
        return expand(on_delta, self.delta) * self.delta + expand(on_rest, self.rest) * self.rest


def sides(ask: Ask, push: Tensor, space: str) -> Sides:
    """The two sides of a unit contrast `push` (b, *D) away from `ask.base`."""
    base = ask.base
    c, u = (ask.express(x0, space) for x0 in (base, base - push))
    rest = base - push - silence(ask, push, space)
    if push.dtype in _HALF:
        c, u, push, rest = c.float(), u.float(), push.float(), rest.float()
    delta = c - u
    return Sides(dot(c, c), dot(u, u), dot(c, u), dot(delta, c + u), norm(delta), norm(u), push, rest)


def silence(ask: Ask, like: Tensor, space: str) -> Tensor:
    """z, the x0 behind the answer 0, (b, *D)."""
    return ask.recover(torch.zeros_like(like), space)


def ratio(over: Tensor, under: Tensor) -> Tensor:
    """over / under for under >= 0; 0 where both are 0."""
    return over / under.clamp_min(_TINY[under.dtype])


def shaped(shaper: Shaper, w: Factor, away: str) -> Term:
    """Classifier-free guidance of scale w through a shaper: w - 1 times the shaped unit contrast. Raises RangeError."""
    w = check_factor("guidance scale w", w)
    return (tuple(v - 1 for v in w) if isinstance(w, tuple) else w - 1) * Away(away).through(shaper)


def check_space(space: str) -> str:
    """Raises UnknownNameError."""
    if space not in SPACES:
        raise unknown_name("space", space, SPACES)
    return space
