r"""Adaptive guidance (AG): guide a sample until its two predictions agree, then stop paying for the second one.

Guidance doubles the cost of every step, yet its two predictions grow alike while the noise falls. From the step on at
which their cosine exceeds a threshold, a sample follows the condition alone.

.. math:: \gamma_i = \frac{\langle c_i, u_i \rangle}{\lVert c_i \rVert \lVert u_i \rVert}, \qquad
   \text{closed from step } i + 1 \text{ on, if } \gamma_i > \bar\gamma

c_i, u_i: the predictions that guidance compares at step i, (B, *D) / gamma_i: (B,), over all axes but the batch. The
step that crosses the threshold is still guided: its u is paid for. With k guided steps of N, a run costs N + k rows per
sample instead of 2 N.

The space of the cosine decides what a threshold means. Noise predictions at high noise are both nearly x / sigma,
whatever the condition: their cosine starts near 1, dips and may come back, or fall to the end. That of x0 rises with
the steps, so x0 is the default. After the last guided step the push is zero; see `Hold` for other choices.

    CFG(4).when(AG(0.991))                                              until x0 agrees
    CFG(4, "negative").when(AG(pairs=((COND, Query("negative")),)))     away from a negative prompt
    Auto(2).when(AG(pairs=((COND, Query("cond", "weak")),)))            away from a weaker network

Reference: Castillo, Kohler, Perez et al. 2023, arXiv 2312.12487 (there the cosine is that of noise predictions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, RangeError, unknown_name
from wayfield.core.shapes import dot, norm
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, NULL, Query
from wayfield.guide.roles import Decision, Gate, State, Step

__all__ = ["AG", "SPACES", "cosine"]

SPACES = ("x0", "native", "eps")


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between samples, (B, *D), (B, *D) -> (B,), in [-1, 1]; -1 where one of them is zero.

    Computed in float32 or better: near 1 half precision cannot tell thresholds apart.
    """
    kind = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(kind), b.to(kind)
    size = norm(a) * norm(b)
    return torch.where(size > 0, dot(a, b) / torch.where(size > 0, size, 1), -1).clamp(-1, 1)


@final
@dataclass(frozen=True)
class AG(Gate):
    """Open for each sample until gamma > gamma_bar, after at least `min_steps` guided steps; then closed for good.

    gamma_bar: threshold >= -1; from 1 on it never closes, and is kept as 1 / space: of the predictions compared, "x0",
    "eps" or "native", what the network answers with / min_steps: >= 1; steps that an interval around it leaves out do
    not count / pairs: queries to compare, more than one if guidance has several conditions; every cosine must exceed.
    Remembers which samples are open (B,), the last cosine (B,), least over the pairs and -1 before the first, and how
    many steps were guided (B,). Raises RangeError, UnknownNameError or DTypeError.
    """

    gamma_bar: float = 0.991
    space: str = "x0"
    min_steps: int = 1
    pairs: tuple[tuple[Query, Query], ...] = ((COND, NULL),)
    masked: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    latching: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.gamma_bar >= -1:
            remedy = "0.991 is the paper's; calibrate() finds the threshold of a saving."
            raise RangeError("gamma_bar", got=self.gamma_bar, expected=">= -1", remedy=remedy)
        if self.space not in SPACES:
            raise unknown_name("space", self.space, SPACES)
        if self.min_steps < 1:
            remedy = "A cosine is only known after one guided step."
            raise RangeError("min_steps", got=self.min_steps, expected=">= 1", remedy=remedy)
        # a cosine never exceeds 1; infinity has no place in JSON
        object.__setattr__(self, "gamma_bar", min(float(self.gamma_bar), 1.0))
        object.__setattr__(self, "pairs", tuple(_pair(pair) for pair in self.pairs))
        if not self.pairs:
            raise RangeError("pairs", got="none", expected="at least one", remedy="Compare (COND, NULL).")

    def init(self, x: Tensor, n: int) -> State:
        """All open, nothing compared, no step guided."""
        gamma = x.new_full((len(x),), -1.0, dtype=torch.promote_types(x.dtype, torch.float32))
        return torch.ones_like(gamma, dtype=torch.bool), gamma, torch.zeros_like(gamma, dtype=torch.int32)

    @property
    def needs(self) -> tuple[Query, ...]:
        """Everything that is compared."""
        return tuple(dict.fromkeys(query for pair in self.pairs for query in pair))

    def open(self, step: Step, state: State) -> Decision:
        """The samples that have not latched."""
        return state[0]

    def update(self, ask: Ask, step: Step, state: State) -> State:
        """Close where the predictions agree; only open samples get here, so what is closed stays so."""
        gamma, steps = torch.stack([self._compared(ask, *pair) for pair in self.pairs]).amin(0), state[2] + 1
        return ~((gamma > self.gamma_bar) & (steps >= self.min_steps)), gamma, steps

    def _compared(self, ask: Ask, one: Query, other: Query) -> Tensor:
        a, b = ask(one, other)
        return cosine(ask.express(a.x0, self.space), ask.express(b.x0, self.space))


def _pair(pair: tuple[Query, Query]) -> tuple[Query, Query]:
    if len(pair) != 2 or not all(isinstance(query, Query) for query in pair):
        remedy = "Write e.g. (COND, NULL) or (COND, Query('negative'))."
        raise DTypeError("pair of AG", got=pair, expected="two queries", remedy=remedy)
    return pair[0], pair[1]
