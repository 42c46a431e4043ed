r"""Tangential damping (TCFG): the unconditional answer keeps only what lies along the main direction of both answers.

What an unconditional answer has beside that direction leads along the surface of the data, to samples of other
conditions, and guidance away from it leads astray. The main direction is the first right singular vector of the two
answers.

.. math:: y_u' = \langle y_u, v \rangle\, v, \qquad v = \cos\theta\, y_c + \sin\theta\, y_u \;\text{to length 1}, \qquad
   \tan 2\theta = \frac{2 \langle y_c, y_u \rangle}{\|y_c\|^2 - \|y_u\|^2}, \qquad
   \hat{y} = y_u' + w\,(y_c - y_u')

=========  =============================================================================  ==========
symbol     meaning                                                                        shape
=========  =============================================================================  ==========
y_c, y_u   the answers with and without the condition, in a space of choice               (B, *D)
v          of the rows (y_c, y_u): maximises <y_c, v>^2 + <y_u, v>^2                      (B, *D)
theta      2 theta in the quadrant where its cosine has the sign of the denominator       (B,)
w          scale, 1 means no guidance
=========  =============================================================================  ==========

The singular vectors of two rows are those of a 2 x 2 matrix of products, in closed form, so nothing is decomposed and
no sign is arbitrary: y_u' = sin theta (cos theta y_c + sin theta y_u). Of a push that is small beside the answers the
part along them stays, and half of the rest. Where the answers are orthogonal the longer one decides: y_u' is 0 or y_u;
where they are equally long too, y_u stays.

The paper projects scores, which are noise times a number: `space="eps"`. diffusers projects what the network answers
with, the same for networks of noise and another rule for velocities: `space="native"`, the default. For a network that
sees x/alpha an implementation for a graphical interface takes x less the denoised picture, which is noise again.

Reference: Kwon, Kim, Jeong, Hsiao & Uh 2025, TCFG: Tangential Damping Classifier-free Guidance, arXiv 2503.18137.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from wayfield.field.ask import Ask
from wayfield.guide.roles import Shaper, State, Step
from wayfield.guide.spaces import Space, check_space, ratio, shaped, sides
from wayfield.guide.terms import Factor, Term

__all__ = ["Tangential", "tcfg"]


@final
@dataclass(frozen=True)
class Tangential(Shaper):
    """A unit contrast y_c - y_u made y_c - y_u': `3 * Away(NULL).through(Tangential())`. See the module.

    space: in which the answers are compared: "native", what the network answers with, "x0", or "eps", which asks for
    alpha > 0 at every level. Raises UnknownNameError. Warns of a push that is already scaled.
    """

    space: Space = "native"
    absolute: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_space(self.space)

    def shape(self, ask: Ask, push: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """See `Shaper.shape`."""
        both = sides(ask, push, self.space)
        total = both.cc + both.uu
        near, across = ratio(both.gap, total), ratio(2 * both.cu, total)
        square = near * near + across * across
        long = square > 0
        radius = torch.where(long, square, 1).sqrt()
        cos, sin = torch.where(long, near / radius, -1), across / radius
        return both.moved(1 - sin / 2, (1 + cos - sin) / 2).to(push.dtype), state


def tcfg(w: Factor = 7.5, *, space: Space = "native", away: str = "null") -> Term:
    """Classifier-free guidance with tangential damping.

    w: scale; 1 means no guidance; a tuple gives every sample its own / space: as of `Tangential` / away: name of the
    condition that is pushed away from. Raises RangeError, UnknownNameError.
    """
    return shaped(Tangential(space), w, away)
