r"""CFG-Zero*: the unconditional answer brought to the size that fits the conditional one, and a start that stays put.

Where a flow model is inaccurate, its unconditional velocity is wrong in size as well as in direction, and guidance
magnifies both. A factor, chosen by least squares for every sample at every step, takes the error of size out. At the
first steps, where the answers are worst, no answer at all can be better than a guided one.

.. math:: \hat{y} = s^* y_u + w\,(y_c - s^* y_u), \qquad s^* = \frac{\langle y_c, y_u \rangle}{\langle y_u, y_u \rangle}
   = \arg\min_s \|y_c - s\, y_u\|, \qquad \hat{y} = 0 \text{ at the first steps}

=========  =============================================================================  ==========
symbol     meaning                                                                        shape
=========  =============================================================================  ==========
y_c, y_u   the answers with and without the condition, in a space of choice               (B, *D)
s*         products over everything but the batch; 0 where y_u is 0                       (B,)
w          scale, 1 means no guidance
=========  =============================================================================  ==========

The push is (w - 1) (y_c - s* y_u), and y_c - s* y_u is orthogonal to y_u. In x0 it is delta + (1 - s*)(u - z), with z
the x0 behind the answer 0, so that it depends on the space. The paper's is the velocity of a flow model, which is what
such a network answers with: `space="native"`, as diffusers has it for every network. In noise or in x0 the factor has
no derivation.

Answer 0 is a velocity of 0: on a straight path such a step leaves the point where it is. As noise it says that the
point is clean, and moves it far; so leave `still` at 0 for networks that do not predict velocities. Solvers that
remember earlier answers would remember that one: use one-step solvers, as DDIM.

Defaults: one still step, as in diffusers; the paper's is 4 % of the steps, `still=0.04, unit="share"`. Deviation
of diffusers' guider: it adds 1e-8 to <y_u, y_u>.

Reference: Fan, Zheng, Yeh & Liu 2025, arXiv 2503.18886, sections 4.1 and 4.2. Its w is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from wayfield.field.ask import Ask
from wayfield.guide.roles import Shaper, State, Step
from wayfield.guide.spaces import Space, check_space, ratio, shaped, sides, silence
from wayfield.guide.terms import Direction, Factor, Pushed, Term
from wayfield.guide.window import Unit, Window

__all__ = ["OptimalScale", "Still", "zero_star"]


@final
@dataclass(frozen=True)
class OptimalScale(Shaper):
    """A unit contrast y_c - y_u made y_c - s* y_u: `3 * Away(NULL).through(OptimalScale())`. See the module.

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
        less = ratio(both.uu - both.cu, both.uu)
        return both.moved(torch.ones_like(less), less).to(push.dtype), state


@final
@dataclass(frozen=True)
class Still(Direction):
    """To the x0 behind the answer 0, whatever the network says; with a gate: `Still().when(Window(0, 1))`.

    space: whose 0 it is: "native", "x0" or "eps". Raises UnknownNameError.
    Other terms that are open at the same time add to it.
    """

    space: Space = "native"

    def __post_init__(self) -> None:
        check_space(self.space)

    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        """See `Direction.push`."""
        return silence(ask, ask.base, self.space) - ask.base, state


def zero_star(
    w: Factor = 7.5, still: float = 1, *, unit: Unit = "steps", space: Space = "native", away: str = "null"
) -> Term:
    """CFG-Zero*: `OptimalScale` of a classifier-free contrast, after some first steps that stand still.

    w: scale; 1 means no guidance; a tuple gives every sample its own / still: first steps with the answer 0; 0 for
    none, as networks need that do not predict velocities / unit: of `still`, "steps", or "share" of the run, rounded
    down / space: as of `OptimalScale` / away: name of the condition that is pushed away from.
    Raises RangeError, UnknownNameError.
    """
    term = shaped(OptimalScale(space), w, away)
    if still == 0:
        return term
    return term.when(Window(still, unit=unit)) + Still(space).when(Window(0, still, unit))
