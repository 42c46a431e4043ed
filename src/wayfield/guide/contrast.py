r"""Contrasts: every linear guidance is a difference of two predictions, times a gain.

.. math:: \text{push} = g\, (x_0^{+} - x_0^{-})

======================  ==========================  ==========================  ========================================
term                    plus                        minus                       reference
======================  ==========================  ==========================  ========================================
`CFG(w)`                the condition               no condition, or `away`     Ho & Salimans 2022, eq. 6; g = w - 1
`Auto(w)`               the condition               the same of a weaker        Karras et al. 2024, arXiv 2406.02507,
                                                    network                     eq. 3; g = w - 1
`Away(minus)`           the condition, or `of`      `minus`                     g = 1: the unit for shapers
======================  ==========================  ==========================  ========================================

x0: (b, *D) / w: scale; w = 1 means no guidance and 0 the other side alone. All predictions are affine in one another at
a fixed point, so contrasts of x0, eps, v, velocity or score are the same guidance. The difference is formed first, so
that a gain of zero asks nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from wayfield.core.errors import DTypeError
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, NULL, Query
from wayfield.field.blend import along
from wayfield.guide.roles import State, Step
from wayfield.guide.terms import Direction, Factor, Pushed, TermPlan, check_factor

__all__ = ["CFG", "Auto", "Away", "Contrast"]


class Contrast(Direction):
    """gain * (plus - minus). plus, minus: what is pushed towards, and away from."""

    plus: Query
    minus: Query
    gain: Factor

    @property
    def neutral(self) -> bool:
        """At gain 0."""
        return self.gain == 0

    @property
    def needs(self) -> tuple[Query, ...]:
        """Both sides."""
        return self.plus, self.minus

    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        """See `Direction.push`."""
        return self(ask, step, state, TermPlan())

    def __call__(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        """See `Term`."""
        plus, minus = ask.sides(self.plus, self.minus)
        gap, gain = plus - minus, self.gain
        if gain == 1:
            return gap, state
        return gap * (ask.column(gain) if isinstance(gain, tuple) else gain), state

    def mix(self, plan: TermPlan, factor: float, weights: dict[Query, float]) -> bool:
        """See `Term.mix`."""
        if isinstance(self.gain, tuple):
            return False
        for query, sign in ((self.plus, 1), (self.minus, -1)):
            weights[query] = weights.get(query, 0.0) + sign * factor * self.gain
        return True

    def onto(self, x0: Tensor, ask: Ask, step: Step, state: State, plan: TermPlan) -> tuple[Tensor, State]:
        """See `Term.onto`: one multiply-add."""
        gain = self.gain
        if isinstance(gain, tuple):
            return super().onto(x0, ask, step, state, plan)
        plus, minus = ask.sides(self.plus, self.minus)
        return along(x0, plus, minus, -gain), state


@final
@dataclass(frozen=True)
class CFG(Contrast):
    """Classifier-free guidance, x0 = c + (w - 1)(c - u). w: finite; a tuple gives every sample its own.

    away: name of the condition that is pushed away from, "null" or a negative condition given to `sample`.
    """

    w: Factor
    away: str = "null"

    def __post_init__(self) -> None:
        object.__setattr__(self, "w", check_factor("guidance scale w", self.w))
        _between(self, COND, Query(self.away), _less_one(self.w))

    @staticmethod
    def from_ho_salimans(w: float) -> CFG:
        """From the paper's scale, (1 + w) c - w u."""
        return CFG(1 + w)


@final
@dataclass(frozen=True)
class Auto(Contrast):
    """Autoguidance, x0 = c + (w - 1)(c - c'), c' the same condition asked of a weaker network.

    w: finite; a tuple gives every sample its own / net: its name among the `nets` given to `sample`.
    """

    w: Factor
    net: str = "weak"

    def __post_init__(self) -> None:
        object.__setattr__(self, "w", check_factor("guidance scale w", self.w))
        _between(self, COND, Query("cond", self.net), _less_one(self.w))


@final
@dataclass(frozen=True)
class Away(Contrast):
    """The bare difference of two predictions, to be scaled: `3 * Away(NULL)` is `CFG(4)`.

    avoid, of: a `Query`, or the name of a condition.
    """

    avoid: Query | str = NULL
    of: Query | str = COND

    def __post_init__(self) -> None:
        for name in ("avoid", "of"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, Query(value))
            elif not isinstance(value, Query):
                remedy = "Use NULL, COND, Query('cond', 'weak') or a condition's name."
                raise DTypeError(f"{name} of Away", got=type(value).__name__, expected="a query", remedy=remedy)
        assert isinstance(self.of, Query)
        assert isinstance(self.avoid, Query)
        _between(self, self.of, self.avoid, 1.0)


def _between(contrast: Contrast, plus: Query, minus: Query, gain: Factor) -> None:
    for name, value in (("plus", plus), ("minus", minus), ("gain", gain)):
        object.__setattr__(contrast, name, value)


def _less_one(w: Factor) -> Factor:
    """w - 1, and exactly 0 where only rounding keeps w from 1: it would double the cost for nothing."""
    if isinstance(w, tuple):
        return tuple(v - 1 for v in w)
    return 0.0 if abs(w - 1) < 1e-12 else w - 1
