r"""Hold: where a gate is closed, the difference of two predictions is kept from earlier steps instead of evaluated.

Guidance that skips evaluations need not skip the push: the difference of its two predictions changes slowly.

.. math:: \hat{u}_i = c_i - \hat{d}_i, \qquad \hat{d}_i = d_j \;\text{(order 0)}, \qquad
   \hat{d}_i = d_j + \frac{i - j}{j - k} (d_j - d_k) \;\text{(order 1)}

c_i, u_i: predictions of step i, the condition's and the one that is answered, (B, *D), both as x0 or both as eps / d =
c - u / j > k: the last two steps at which the network answered; with one only, order 1 is order 0.

What follows a latch of `AG` is one of three:

====================================================  ============================================
guidance                                              after the last guided step
====================================================  ============================================
``CFG(4).when(AG(.991))``                             the condition alone
``Guidance(CFG(4), sources=(Hold(AG(.991)),))``       the last difference, held
``Guidance(CFG(4), sources=(Hold(AG(.991), 1),))``    the last two differences, extrapolated
====================================================  ============================================

Any other gate serves too: `Hold(Steps((True, False, True, ...)))` evaluates every other step. The space matters over
long gaps. Differences of x0 vanish with the noise, so one held through the last half of a run is far too large there:
in the recipe `adaptive-guidance` it ruins samples. One of eps is worth sigma/alpha of it in x0 and vanishes too, so
eps is the default. At every other step of the first half either space does.

Reference: none; the two orders are options beside Castillo et al. 2023, arXiv 2312.12487, and the first is what a
fitted predictor (LinearAG) has to beat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, RangeError, UnsupportedError, unknown_name
from wayfield.core.predict import Prediction
from wayfield.core.shapes import expand, tree_map, tree_zip
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, NULL, Query
from wayfield.guide.roles import Gate, Source, State, Step

__all__ = ["Hold"]

SPACES = ("x0", "eps")


@final
@dataclass(frozen=True)
class Hold(Source):
    """Answers `query` where the gate is closed; the network answers where it is open, and the gate learns there.

    gate: of decisions, open at the first step / order: 0 holds, 1 extrapolates / query, of: what is kept is the answer
    to `of` minus that to `query` / space: of the difference, "x0" or "eps". Raises DTypeError, RangeError or
    UnknownNameError, and at the first step UnsupportedError for a gate that is closed there or gives factors. Rows that
    the network never answered, since other gates left out the first steps, have no difference: the run then ends with
    NonFiniteError.
    """

    gate: Gate
    order: int = 0
    query: Query = NULL  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    of: Query = COND
    space: str = "eps"
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.gate, Gate):
            got = type(self.gate).__name__
            raise DTypeError("gate of Hold", got=got, expected="a Gate", remedy="Use AG(), Steps(), ...")
        if self.order not in (0, 1):
            remedy = "0 holds the last difference, 1 extrapolates the last two."
            raise RangeError("order of Hold", got=self.order, expected="0 or 1", remedy=remedy)
        for name, query in (("query", self.query), ("of", self.of)):
            if not isinstance(query, Query):
                got = type(query).__name__
                raise DTypeError(f"{name} of Hold", got=got, expected="a query", remedy="Use NULL, COND or Query(...).")
        if self.space not in SPACES:
            raise unknown_name("space", self.space, SPACES)
        if self.query == self.of:
            raise RangeError("of of Hold", got=self.of, expected="another query", remedy="Their difference is zero.")
        object.__setattr__(self, "masked", self.gate.masked)
        object.__setattr__(self, "latching", self.gate.latching)

    @property
    def needs(self) -> tuple[Query, ...]:
        """What the difference is taken from."""
        return (self.of,)

    def init(self, x: Tensor, n: int) -> State:
        """No difference yet: NaN. Order 1 also keeps the slope per step and the step of the last answer, (B,)."""
        own, gap = self.gate.init(x, n), torch.full_like(x, math.nan)
        return (own, gap, torch.zeros_like(x), x.new_full((len(x),), -1.0)) if self.order else (own, gap)

    def open(self, step: Step, state: State) -> bool | Tensor:
        """Where the gate is closed."""
        decision = self.gate.open(step, state[0])
        if isinstance(decision, Tensor) and decision.dtype == torch.bool:
            return ~decision
        if not isinstance(decision, bool):
            remedy = "A difference is held or not; scale the term instead."
            raise UnsupportedError(
                "gate of Hold", got=f"the factor {decision}", expected="open or closed", remedy=remedy
            )
        if step.i == 0 and not decision:
            remedy = "Open it at the first step, in every evaluation: nothing is known to hold before."
            raise UnsupportedError("gate of Hold", got="closed at the first step", expected="open", remedy=remedy)
        return not decision

    def row(self, step: Step) -> Sequence[float]:
        """The number of the step, which only order 1 needs."""
        return (float(step.i),) if self.order else ()

    def answer(self, ask: Ask, step: Step, state: State, row: Tensor) -> Prediction:
        """See the module."""
        gap = state[1]
        if self.order:
            gap = gap + state[2] * expand(row[0] - state[3], gap)
        if self.space == "eps":
            gap = gap / ask.level.point_x0
        return ask.point(ask(self.of)[0].x0 - gap)

    def observe(self, ask: Ask, step: Step, state: State, row: Tensor, answered: bool | Tensor) -> State:
        """Learn at the rows that the network answered, if it was asked."""
        seen = None if answered is True else ask.known(self.query)
        if seen is None:
            return state
        # gates inside the term may have asked for part of the batch
        if seen.rows is None:
            return self._learned(seen, step, state, row, answered)
        index = seen.rows.tensor
        some = tree_map(lambda s: s.index_select(0, index), state)
        mask = answered.index_select(0, index) if isinstance(answered, Tensor) else answered
        new = self._learned(seen, step, some, row, mask)
        return tree_zip(lambda s, v: s.index_copy(0, index, v), state, new)

    def _learned(self, ask: Ask, step: Step, old: State, row: Tensor, answered: bool | Tensor) -> State:
        own, last = old[:2]
        of, held = ask(self.of, self.query)
        gap = of.x0 - held.x0
        if self.space == "eps":
            gap = gap * ask.level.point_x0  # what x0 is worth in eps at a given point
        if self.gate.remembers and self.gate.learns(step):
            own = self.gate.update(ask, step, own)
        new: State = (own, gap)
        if self.order:
            steps = expand(row[0] - old[3], gap)
            slope = torch.where(expand(old[3] < 0, gap), 0, (gap - last) / steps)
            new = (own, gap, slope, torch.zeros_like(old[3]) + row[0])
        if isinstance(answered, Tensor):
            new = tree_zip(lambda s, v: torch.where(expand(answered, s), s, v), old, new)
        return new
