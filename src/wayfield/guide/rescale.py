r"""Rescaled guidance: the guided answer gets back the spread that the conditional one had.

Guidance at high scales widens the distribution of an answer's values, which shows as overexposure. Each sample's guided
answer is scaled to the standard deviation of its conditional answer, and mixed with what it was.

.. math:: y' = \bigl(\varphi\, \mathrm{std}(y_c) / \mathrm{std}(y_g) + 1 - \varphi\bigr)\, y_g

=========  =========================================================================  ==========
symbol     meaning                                                                    shape
=========  =========================================================================  ==========
y_c, y_g   the answers without and with the push, in a space of choice                (B, *D)
std        over everything but the batch                                              (B,)
phi        0 changes nothing, 1 restores the spread in full; the paper's is 0.7
=========  =========================================================================  ==========

Reference: Lin, Liu, Li & Yang 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv 2305.08891,
equations 15 and 16. It rescales the network's own answer, there v: `space="native"`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, unknown_name
from wayfield.core.shapes import expand, flatten
from wayfield.field.ask import Ask
from wayfield.guide.roles import Shaper, State, Step

__all__ = ["Rescale"]

SPACES = ("native", "x0", "eps")


@final
@dataclass(frozen=True)
class Rescale(Shaper):
    """The guided answer, scaled towards the spread of the unguided one: `CFG(7.5).through(Rescale(0.7))`.

    phi: how much of the spread is restored, in [0, 1]; 0 changes nothing / space: in which the answers are compared:
    "native", what the network answers with, "x0", or "eps", which asks for alpha > 0 at every level.
    Raises RangeError, UnknownNameError. Warns at the start of a run of samples of one value, which have no spread.
    """

    phi: float = 0.7
    space: Literal["native", "x0", "eps"] = "native"

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise RangeError("phi", got=self.phi, expected="0 <= phi <= 1", remedy="The paper's is 0.7.")
        if self.space not in SPACES:
            raise unknown_name("space", self.space, SPACES)

    def init(self, x: Tensor, n: int) -> State:
        """Nothing is remembered."""
        if self.phi and x[0].numel() == 1:
            warnings.warn("Rescale of a single value changes nothing: it has no spread", UserWarning, stacklevel=2)
        return ()

    def shape(self, ask: Ask, push: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """See `Shaper.shape`."""
        if self.phi == 0:
            return push, state
        guided = ask.base + push
        answers = (ask.express(x0, self.space) for x0 in (ask.base, guided))
        before, after = (flatten(y).std(1, correction=0) for y in answers)
        ratio = torch.where(after > 0, before / after, 1)
        more = expand(self.phi * (ratio - 1), push)
        # x0 is affine in the answer, so that scaling the answer by 1 + more scales x0 about that of the answer 0; the
        # push itself goes through no conversion
        return push + more * (guided - ask.recover(torch.zeros_like(push), self.space)), state
