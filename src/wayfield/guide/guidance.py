r"""`Guidance`: a term, what it pushes from, who answers, and how masks are read; the pair that a solver follows.

.. math:: \hat{x}_0 = \text{base} + \text{push}(\text{term}), \qquad \hat\varepsilon = (x - \alpha \hat{x}_0) / \sigma

or, where `noise` names a query, that query's own epsilon: a pair that no point has, which solvers keep as it is
(CFG++).

One evaluation: plan on the host (gates, sources, queries with rows); one round of network calls; sources answer; the
tree is called; the pair is completed; sources observe. The state of the first evaluation of a step is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, RangeError, UnsupportedError, unknown_name
from wayfield.core.predict import Prediction
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Binding, Call, Query
from wayfield.field.blend import Blend, at_point
from wayfield.field.denoiser import Landing, Level
from wayfield.field.rows import Rows
from wayfield.guide.contrast import Contrast
from wayfield.guide.planner import MODES, Mode, Planner
from wayfield.guide.roles import Gate, Part, Source, State, Step
from wayfield.guide.terms import Term, TermPlan, check_part

__all__ = ["ANYWHERE", "PLAIN", "At", "Guidance", "Steering", "guidance_of"]


_ALONE = "_alone"
ANYWHERE = Step(0, 1, 0, math.nan, True)
"""The place of an evaluation outside of a grid."""


class At(NamedTuple):
    """The noise level of an evaluation. levels: its numbers by network / landing: the level that the step goes to."""

    levels: Mapping[str, Level]
    landing: Landing | None = None


class Steering(NamedTuple):
    """What was decided for one evaluation: the tree's plan (None: no push), the sources', the sum of answers where
    guidance is no more than that, and the network calls, round by round.
    """

    root: TermPlan | None
    sources: tuple[_Answering, ...]
    blend: Blend | None
    calls: tuple[tuple[Call, ...], ...]


class _Answering(NamedTuple):
    """What a source does at one point. decision: as it said / rows, mask: where it answers / row: its numbers."""

    decision: bool | Tensor
    rows: Rows | None
    mask: Tensor | None
    row: Tensor


@final
@dataclass(frozen=True)
class Guidance:
    """How a run is steered; a bare term or None serves wherever the rest is as by default.

    term: what pushes, None for nothing / base: the query whose x0 is pushed / noise: the query whose eps completes the
    pair, None for the point's own / sources: who answers instead of the network, at most one for a query / clip: range
    of the guided x0, (low, high), None for none; for pixels, latents have none / rows: "exact", "late" or "fixed", see
    planner.py.
    Raises DTypeError, RangeError, UnknownNameError, and UnsupportedError for sources that contradict each other.
    """

    term: Term | None = None
    base: Query = COND
    noise: Query | None = None
    sources: tuple[Source, ...] = ()
    clip: tuple[float, float] | None = None
    rows: Mode = "exact"

    def __post_init__(self) -> None:
        if self.term is not None:
            check_part("term", self.term, Term)
        if self.rows not in MODES:
            raise unknown_name("row mode", self.rows, MODES)
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise RangeError("clip range", got=self.clip, expected="low < high", remedy="Swap them.")
        asked = [check_part("source", s, Source).query for s in self.sources]
        if len(set(asked)) < len(asked):
            raise UnsupportedError(
                "sources", got=asked, expected="one source for a query", remedy="Leave all but one of them out."
            )
        idle = [q for q in asked if q not in self._wanted]
        if idle:
            raise UnsupportedError(
                "sources",
                got=f"an answer to {idle} that nobody asks for",
                expected=self._wanted,
                remedy="Leave it out.",
            )

    @cached_property
    def queries(self) -> tuple[Query, ...]:
        """Everything that may be asked in a run, each once."""
        needs = (q for s in self.sources for q in s.needs)
        return tuple(dict.fromkeys((*self._wanted, *needs)))

    @cached_property
    def told(self) -> tuple[Query, ...]:
        """Those, and the queries whose conditions some part reads without asking them."""
        return *self.queries, *(q for part in self.parts for q in part.told)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every part of it, sources last."""
        return (*(() if self.term is None else self.term.parts()), *self.sources)

    @cached_property
    def branches(self) -> int:
        """Rows per sample and evaluation if every gate is open and no source answers; what is saved against it is
        reported as `skipped`.
        """
        return len({q._replace(grad=False) for q in self.queries}) + len(self.extra)

    @cached_property
    def extra(self) -> tuple[str, ...]:
        """Networks that are asked with conditions made on the way, once for each such row of a sample."""
        return tuple(net for p in self.parts if not getattr(p, "neutral", False) for net in p.extra)

    @cached_property
    def timeless(self) -> bool:
        """Whether every evaluation is the same rule: nothing is gated, remembered or answered by sources."""
        return not self.decides and not any(p.remembers for p in self.parts)

    @cached_property
    def decides(self) -> bool:
        """Whether plans may differ from step to step: something is gated or answered by sources."""
        return any(isinstance(p, Gate | Source) for p in self.parts)

    @cached_property
    def foreseen(self) -> bool:
        """Whether a plan follows from what gates say of its step alone, see `said`."""
        return not self.sources and not any(g.masked or g.remembers for g in self._gates)

    def said(self, step: Step) -> tuple[Any, ...]:
        """What all gates say of a step, where everything is foreseen."""
        return tuple([gate.open(step, ()) for gate in self._gates])

    @cached_property
    def masked(self) -> bool:
        """Whether some gate or source decides sample by sample."""
        return any(isinstance(p, Gate | Source) and p.masked for p in self.parts)

    def init(self, x: Tensor, n: int) -> State:
        """State before the first of n steps, for points x (B, *D)."""
        return () if self.term is None else self.term.init(x, n), *(s.init(x, n) for s in self.sources)

    def held(self, old: State, new: State) -> State:
        """What later evaluations of a step read."""
        term = new[0] if self.term is None else self.term.held(old[0], new[0])
        pairs = zip(self.sources, old[1:], new[1:], strict=True)
        return term, *(b if s.reads == "current" else a for s, a, b in pairs)

    def plan(self, p: Planner, step: Step, state: State, binding: Binding, x: Tensor) -> Steering:
        """Decide for one evaluation, on the host, from the state before the step. x: points (B, *D) like the real."""
        p.start(step.stage)
        p.want((self.base,), None, {})
        root = None if self.term is None else self.term.plan(p, step, state[0], None, {})
        if self.noise is not None:
            p.want((self.noise,), None, {})
        pairs = enumerate(zip(self.sources, state[1:], strict=True))
        sources = tuple([p.place(-1 - k, lambda s=s, old=old: _answering(p, s, step, old)) for k, (s, old) in pairs])
        calls = tuple([binding.layout(wants, x) for wants in p.rounds()])
        return Steering(root, sources, self._blend(root, calls), calls)

    def anywhere(self, binding: Binding, x: Tensor, what: str) -> Steering:
        """The one plan of a timeless guidance, for points like x. Raises UnsupportedError for others; what: who
        asks.
        """
        if not self.timeless:
            got = next((p for p in self.parts if isinstance(p, Gate | Source) or p.remembers), self)
            remedy = "Use a solver with a fixed grid, or guidance without gates, sources and memory."
            raise UnsupportedError(
                what, got=got, expected="guidance that is the same rule at every step", remedy=remedy
            )
        return self.plan(Planner("fixed", self.base, x), ANYWHERE, self.init(x, 1), binding, x)

    def remembered(self, state: State) -> list[tuple[Part, State]]:
        """Every part with its own part of a run's state (`Result.state`, `StepInfo.state`)."""
        own = [] if self.term is None else list(self.term.remembered(state[0]))
        return [*own, *zip(self.sources, state[1:], strict=True)]

    def __call__(
        self, binding: Binding, x: Tensor, at: At, step: Step, state: State, plan: Steering
    ) -> tuple[Prediction, State, int, int]:
        """The guided pair at points x (B, *D), the next state, and what they cost: network calls, and rows in them."""
        blend = plan.blend
        if blend is not None:
            return blend(x, at.levels), state, len(blend.calls), blend.rows
        root, answering, _, calls = plan
        ask = Ask(binding, x, at.levels, self.base, at.landing)
        answers, term = ask.answers, state[0]
        for each in calls:
            answers.run(each)
        for source, old, a in zip(self.sources, state[1:], answering, strict=True) if answering else ():
            if a.decision is not False and (a.rows is None or a.rows.index or a.mask is not None):
                ask.supply(source.query, source.answer(ask, step, old, a.row), a.rows, a.mask)
        if root is None:
            pred = ask(self.base)[0]
        else:
            assert self.term is not None
            x0, term = self.term.onto(ask.base, ask, step, term, root)
            pred = at_point(x0, x, at.levels["main"])
        if self.clip is not None:
            pred = at_point(pred.x0.clamp(*self.clip), x, at.levels["main"])
        if self.noise is not None:
            pred = Prediction(pred.x0, ask(self.noise)[0].eps)
        if not answering:
            return pred, (term,), answers.calls, answers.rows
        pairs = zip(self.sources, state[1:], answering, strict=True)
        new = (term, *[s.observe(ask, step, old, a.row, a.decision) for s, old, a in pairs])
        return pred, new, answers.calls, answers.rows

    def _blend(self, root: TermPlan | None, calls: tuple[tuple[Call, ...], ...]) -> Blend | None:
        """The sum of answers that the guided x0 is, if it is one and nothing else is to be done."""
        weights: dict[Query, float] = {}
        if self.sources or self.noise is not None or self.clip is not None:
            return None
        if root is not None and not (self.term is not None and self.term.mix(root, 1.0, weights)):
            return None
        weights.pop(self.base, None)
        return Blend.of(calls[0], self.base, weights)

    @cached_property
    def _gates(self) -> list[Gate]:
        return [p for p in self.parts if isinstance(p, Gate)]

    @cached_property
    def _wanted(self) -> tuple[Query, ...]:
        return tuple(dict.fromkeys(self._asked()))

    def _asked(self) -> Iterator[Query]:
        yield self.base
        if self.term is not None:
            yield from self.term.queries(self.base, {})
        if self.noise is not None:
            yield self.noise


PLAIN = Guidance()
"""No guidance: the conditional prediction as it is (unconditional for a model without conditions)."""


def guidance_of(given: Guidance | Term | None) -> Guidance:
    """A run's guidance from what a user gave. Raises DTypeError.

    A contrast that cancels what it is added to, as CFG(0) does, leaves its other side as the base, so that nothing is
    evaluated in vain.
    """
    if given is None:
        return PLAIN
    if isinstance(given, Guidance):
        return given
    if isinstance(given, Contrast) and given.gain == -1 and given.plus == COND:
        return Guidance(base=given.minus)
    if not isinstance(given, Term):
        remedy = "Pass e.g. CFG(3), a sum of terms, or Guidance(...)."
        raise DTypeError("guidance", got=type(given).__name__, expected="a term or a Guidance", remedy=remedy)
    known = given.__dict__.get(_ALONE)
    if known is None:  # kept with the term: what follows from it alone need not be found again by every run
        known = Guidance(given)
        object.__setattr__(given, _ALONE, known)
    return known


def _answering(p: Planner, source: Source, step: Step, state: State) -> _Answering:
    row = p.number(torch.tensor(source.row(step), dtype=torch.float64))
    decision, rows, mask = source.open(step, state), None, None
    if decision is False or not p.wanted(source.query):
        return _Answering(False, None, None, row)
    if isinstance(decision, Tensor):
        rows, mask = p.read(decision, None, latching=source.latching, settled=True)
    if p.mode != "fixed" or decision is True:
        p.drop(source.query, rows)
    p.want(source.needs, rows, {})
    return _Answering(decision, rows, mask, row)
