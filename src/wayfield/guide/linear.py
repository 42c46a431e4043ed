r"""LinearAG: unconditional answers as linear combinations of earlier answers.

Guidance costs a second evaluation at every step, and neighbouring steps are much alike. At chosen steps the
unconditional answer is not evaluated but predicted, with scalars fitted once for a model, grid and guidance
(`wayfield.fitting.linear_ag`):

.. math:: \hat{u}_i = b_i + \sum_{j \le i} \beta_{ij}\, c_j + \sum_{j < i} \gamma_{ij}\, \bar{u}_j, \qquad
   \bar{u}_j = u_j \text{ where it was evaluated, else } \hat{u}_j

==============  ==================================================================  ==============
symbol          meaning                                                             shape
==============  ==================================================================  ==============
c, u            answers to `of` (COND) and to `query` (NULL), in `space`            (B, *D)
b0, bc, bu      the scalars, one for each pair of steps (i, j)                      ragged
true            the steps with an evaluated u                                       (N,)
history         c and u of the steps before the last predicted one, L of them       (B, L, *D)
==============  ==================================================================  ==============

Index j counts steps, so a step has one evaluation. Until the last predicted step the guidance must ask `query` at every
step; later it may be closed. Holding the last difference c - u is such a combination too, and so is leaving guidance
out: `LinearAG.hold`, the baseline that a fit has to beat, and `LinearAG.skip`.

Reference: Castillo et al. 2023, Adaptive Guidance, arXiv 2312.12487 (LinearAG).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from wayfield.core.errors import CheckpointError, RangeError, ShapeError, UnsupportedError, unknown_name
from wayfield.core.predict import Prediction
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, NULL, Query
from wayfield.guide.roles import Source, State, Step

__all__ = ["SPACES", "LinearAG", "alternating", "remember"]

SPACES = ("x0", "eps")
Ragged = tuple[tuple[float, ...], ...]


@final
@dataclass(frozen=True)
class LinearAG(Source):
    """A table of scalars that answers `query` at the steps where `true` says False.

    true: for each of N steps whether the network answers; the first is True, some are False / bc, bu: at a predicted
    step i, i + 1 and i scalars, else none / b0: N intercepts, or none for zero / space: "x0" or "eps" / query, of: what
    is predicted, and what it is predicted from / fingerprint: facts of the run it was fitted to, see `run_facts`; empty
    where it fits any.
    Raises ShapeError, RangeError and UnknownNameError for a table that does not fit together.
    """

    true: tuple[bool, ...]
    bc: Ragged
    bu: Ragged
    b0: tuple[float, ...] = ()
    space: str = "x0"
    query: Query = NULL  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    of: Query = COND
    fingerprint: tuple[tuple[str, str], ...] = ()

    remembers: ClassVar[bool] = True
    fitted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise unknown_name("space", self.space, SPACES)
        object.__setattr__(self, "true", _checked(self.true))
        for name, k in (("bc", 1), ("bu", 0)):
            got, want = [len(row) for row in getattr(self, name)], [0 if t else i + k for i, t in enumerate(self.true)]
            if got != want:
                remedy = "Scalars stand at predicted steps only; fit_linear_ag makes such a table."
                raise ShapeError(f"rows of {name}", got=got, expected=want, remedy=remedy)
        if len(self.b0) not in (0, len(self.true)):
            want = f"none or {len(self.true)}"
            raise ShapeError("intercepts b0", got=len(self.b0), expected=want, remedy="Give one number for each step.")
        if not all(math.isfinite(b) for row in (*self.bc, *self.bu, self.b0) for b in row):
            raise RangeError("scalars of LinearAG", got="NaN or infinity", expected="finite", remedy="Raise the ridge.")

    @staticmethod
    def hold(true: Sequence[bool]) -> LinearAG:
        """At steps without an evaluated u, the difference c - u in x0 stays what it was a step before."""
        true = _checked(true)
        bc = tuple(() if t else (*(0.0,) * (i - 1), -1.0, 1.0) for i, t in enumerate(true))
        return LinearAG(true, bc, tuple(() if t else (*(0.0,) * (i - 1), 1.0) for i, t in enumerate(true)))

    @staticmethod
    def skip(true: Sequence[bool]) -> LinearAG:
        """At steps without an evaluated u there is no guidance, u = c."""
        true = _checked(true)
        bc = tuple(() if t else (*(0.0,) * i, 1.0) for i, t in enumerate(true))
        return LinearAG(true, bc, tuple(() if t else (0.0,) * i for i, t in enumerate(true)))

    @property
    def length(self) -> int:
        """Steps that are remembered, L: those before the last predicted one."""
        return max(i for i, t in enumerate(self.true) if not t)

    def init(self, x: Tensor, n: int) -> State:
        """Empty histories of c and u. Raises ShapeError for a run of another length."""
        if n != len(self.true):
            remedy = "A table belongs to its grid: use that grid, or fit again on this one."
            raise ShapeError("run with LinearAG", got=f"{n} steps", expected=f"{len(self.true)}", remedy=remedy)
        empty = x.new_zeros(len(x), self.length, *x.shape[1:])
        return empty, empty

    def open(self, step: Step, state: State) -> bool:
        """At predicted steps. Raises UnsupportedError in a step's further evaluations."""
        if step.stage:
            remedy = "Use DDIM(), DPM2M() or another solver with one evaluation a step."
            raise UnsupportedError("LinearAG", got=f"evaluation {step.stage} of a step", expected="one", remedy=remedy)
        return not self.true[step.i]

    def row(self, step: Step) -> Sequence[float]:
        """This step's scalars and where its answers are to be kept, padded: b, beta_ii, beta, gamma, one-hot."""
        i, n = step.i, self.length
        if i > n:
            return ()
        hot = [float(j == i) for j in range(n)]
        if self.true[i]:
            return (*(0.0,) * (2 + 2 * n), *hot)
        pad = (0.0,) * (n - i)
        return (self.b0[i] if self.b0 else 0.0, self.bc[i][-1], *self.bc[i][:-1], *pad, *self.bu[i], *pad, *hot)

    def answer(self, ask: Ask, step: Step, state: State, row: Tensor) -> Prediction:
        """The predicted u."""
        n, c = self.length, ask.express(ask(self.of)[0].x0, self.space)
        u = row[0] + row[1] * c + _mix(row[2 : 2 + n], state[0]) + _mix(row[2 + n : 2 + 2 * n], state[1])
        return ask.point(ask.recover(u, self.space))

    def observe(self, ask: Ask, step: Step, state: State, row: Tensor, answered: bool | Tensor) -> State:
        """The histories with this step's c and u."""
        return remember(self, ask, state, row[2 + 2 * self.length :])

    def check(self, facts: Mapping[str, str]) -> None:
        """Refuse a run that the table was not fitted to. facts: of `run_facts`. Raises CheckpointError."""
        mine = dict(self.fingerprint)
        other = [k for k in sorted({*mine, *facts}) if mine.get(k) != facts.get(k)]
        if mine and other:
            raise CheckpointError(
                "run with LinearAG",
                got={k: facts.get(k, "nothing") for k in other},
                expected={k: mine.get(k, "nothing") for k in other},
                remedy="Run as it was fitted, or call fit_linear_ag for this run.",
            )


def alternating(n: int) -> tuple[bool, ...]:
    """The published pattern for n steps: in the first half every other step is predicted, from the second one on."""
    return tuple(i % 2 == 0 or i >= n // 2 for i in range(n))


def remember(source: Any, ask: Ask, state: State, hot: Tensor) -> State:
    """Histories (B, L, *D) of c and u with those of this point at the place that `hot` (L,) marks.

    source: names `query`, `of` and `space` / hot: empty once nothing more is kept. Fitting and sampling keep history by
    this one rule. Raises UnsupportedError if nobody asked `query` for the whole batch.
    """
    if not len(hot):
        return state
    u = ask.peek(source.query)
    if u is None:
        remedy = "Keep guidance open up to the last predicted step; for gates with a mask, use rows='fixed'."
        got = f"a step at which {source.query} was not asked"
        raise UnsupportedError("history of LinearAG", got=got, expected="an answer at every step", remedy=remedy)
    now = [ask.express(p.x0, source.space) for p in (ask(source.of)[0], u)]
    return tuple([torch.where(_over(hot, old) > 0, new[:, None], old) for old, new in zip(state, now, strict=True)])


def _checked(true: Sequence[bool]) -> tuple[bool, ...]:
    """The steps with a true answer, as a tuple. Raises RangeError unless the first is one and some are not."""
    steps = tuple(bool(t) for t in true)
    if not steps or not steps[0] or all(steps):
        remedy = "The first step needs a true answer, some later step none; alternating(n) is the usual choice."
        raise RangeError("steps with a true answer", got=tuple(true), expected="(True, ..., False, ...)", remedy=remedy)
    return steps


def _mix(weights: Tensor, history: Tensor) -> Tensor:
    """Weights (L,) and a history (B, L, *D) -> (B, *D); no matrix product, which might round to fewer digits."""
    return (_over(weights, history) * history).sum(1)


def _over(weights: Tensor, history: Tensor) -> Tensor:
    return weights.reshape(1, -1, *(1,) * (history.ndim - 2))
