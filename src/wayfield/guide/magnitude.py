r"""Magnitude-aware guidance (MAMBO-G): less of it where it is large beside what it is added to.

At the first steps a contrast can be as long as the answer itself, and a high scale throws the sample off its way;
later it is short. Each sample's scale falls with the ratio of the two lengths, so that high scales can be kept for
where they help.

.. math:: \hat{y} = y_u + w(r)\,(y_c - y_u), \qquad w(r) = 1 + (w - 1)\, e^{-a r}, \qquad r = \|y_c - y_u\| / \|y_u\|

=========  =============================================================================  ==========
symbol     meaning                                                                        shape
=========  =============================================================================  ==========
y_c, y_u   the answers with and without the condition, in a space of choice               (B, *D)
r          norms over everything but the batch; 0 where both are 0                        (B,)
a          how fast guidance falls: 0 changes nothing, diffusers' default is 8
w          scale at r = 0; 1 means no guidance; diffusers' default is 10
=========  =============================================================================  ==========

The push is e^{-a r} times the plain one, in whatever space; r alone depends on the space: as velocities, noise or clean
data the same two answers have other ratios. diffusers compares what the network answers with, `space="native"`, which
is the velocity of flow models.

Deviations: diffusers' guider gives no number where y_u is 0, and takes the answers of sequences, (B, N, C), alone: of
pictures its norm raises an error (with PyTorch 2).
Reference: Zhu et al. 2025, MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance, arXiv 2508.03442; the formula and
the defaults are as diffusers has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.core.shapes import expand
from wayfield.field.ask import Ask
from wayfield.guide.roles import Shaper, State, Step
from wayfield.guide.spaces import Space, check_space, ratio, shaped, sides
from wayfield.guide.terms import Factor, Term

__all__ = ["MagnitudeAware", "mambo"]


@final
@dataclass(frozen=True)
class MagnitudeAware(Shaper):
    """A unit contrast times e^{-a r}: `9 * Away(NULL).through(MagnitudeAware(8))`. See the module.

    a: how fast guidance falls with its relative length, >= 0 / space: in which lengths are compared: "native", what the
    network answers with, "x0", or "eps", which asks for alpha > 0 at every level.
    Raises RangeError, UnknownNameError. Warns of a push that is already scaled.
    """

    a: float = 8.0
    space: Space = "native"
    absolute: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_space(self.space)
        if not 0 <= self.a < math.inf:
            raise RangeError("a of MagnitudeAware", got=self.a, expected="0 <= a < infinity", remedy="Try 8.")

    def shape(self, ask: Ask, push: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """See `Shaper.shape`."""
        if self.a == 0:
            return push, state
        both = sides(ask, push, self.space)
        less = (-self.a * ratio(both.length, both.other)).exp()
        return (expand(less, push) * both.delta).to(push.dtype), state


def mambo(w: Factor = 10.0, a: float = 8.0, *, space: Space = "native", away: str = "null") -> Term:
    """Classifier-free guidance, x0 = c + (w - 1) e^{-a r} (c - u).

    w: scale at r = 0; 1 means no guidance; a tuple gives every sample its own / a, space: as of `MagnitudeAware` /
    away: name of the condition that is pushed away from. Raises RangeError, UnknownNameError.
    """
    return shaped(MagnitudeAware(a, space), w, away)
