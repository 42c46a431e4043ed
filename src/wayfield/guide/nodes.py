"""The nodes of an expression: `Sum`, `Scale`, `Through` a shaper, `When` a gate is open, `Versus` another network.

They are what +, *, `through`, `when` and `versus` build; see terms.py for what each of them pushes.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wayfield.core.shapes import expand, tree_map, tree_zip
from wayfield.field.ask import Ask
from wayfield.field.binding import Query, renamed
from wayfield.field.rows import Rows
from wayfield.guide.planner import Planner
from wayfield.guide.roles import Gate, Shaper, State, Step
from wayfield.guide.terms import Factor, Nets, Pushed, Term, TermPlan, check_factor, check_part

__all__ = ["Scale", "Sum", "Through", "Versus", "When"]


@final
@dataclass(frozen=True)
class Sum(Term):
    """push(a) + push(b) + ..."""

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        for term in self.terms:
            check_part("term", term, Term)
        flat = (t.terms if isinstance(t, Sum) else (t,) for t in self.terms)
        object.__setattr__(self, "terms", tuple(itertools.chain.from_iterable(flat)))
        object.__setattr__(self, "inside", self.terms)

    def plan(self, p: Planner, step: Step, state: State, rows: Rows | None, nets: Nets) -> TermPlan | None:
        """See `Term.plan`."""
        made = tuple(
            p.place(k, lambda term=term, s=s: term.plan(p, step, s, rows, nets))
            for k, (term, s) in enumerate(zip(self.terms, state[1:], strict=True))
        )
        return None if all(plan is None for plan in made) else TermPlan(inside=made)

    def __call__(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        """See `Term`."""
        total, states = None, []
        for term, old, made in zip(self.terms, state[1:], plan.inside, strict=True):
            push, new = (None, old) if made is None else term(ask, step, old, made)
            states.append(new)
            if push is not None:
                total = push if total is None else total + push
        return total, ((), *states)

    def mix(self, plan: TermPlan, factor: float, weights: dict[Query, float]) -> bool:
        """See `Term.mix`."""
        pairs = zip(self.terms, plan.inside, strict=True)
        return all(made is None or term.mix(made, factor, weights) for term, made in pairs)

    def onto(self, x0: Tensor, ask: Ask, step: Step, state: State, plan: TermPlan) -> tuple[Tensor, State]:
        """See `Term.onto`."""
        states: list[State] = [()]
        for term, old, made in zip(self.terms, state[1:], plan.inside, strict=True):
            if made is not None:
                x0, old = term.onto(x0, ask, step, old, made)
            states.append(old)
        return x0, tuple(states)


@final
@dataclass(frozen=True)
class Scale(Term):
    """factor * push; for a factor per sample, a tuple of B numbers."""

    factor: Factor
    term: Term

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", check_factor("factor of a term", self.factor))
        object.__setattr__(self, "inside", (check_part("term", self.term, Term),))

    @property
    def neutral(self) -> bool:
        """At factor 0 too."""
        return self.factor == 0 or self.term.neutral

    def plan(self, p: Planner, step: Step, state: State, rows: Rows | None, nets: Nets) -> TermPlan | None:
        """See `Term.plan`."""
        return None if self.factor == 0 else self.term.plan(p, step, state[1], rows, nets)

    def __call__(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        """See `Term`."""
        push, new = self.term(ask, step, state[1], plan)
        if push is not None:
            push = push * (ask.column(self.factor) if isinstance(self.factor, tuple) else self.factor)
        return push, ((), new)

    def mix(self, plan: TermPlan, factor: float, weights: dict[Query, float]) -> bool:
        """See `Term.mix`."""
        return not isinstance(self.factor, tuple) and self.term.mix(plan, factor * self.factor, weights)

    def onto(self, x0: Tensor, ask: Ask, step: Step, state: State, plan: TermPlan) -> tuple[Tensor, State]:
        """See `Term.onto`: one multiply-add."""
        if isinstance(self.factor, tuple):
            return super().onto(x0, ask, step, state, plan)
        push, new = self.term(ask, step, state[1], plan)
        return x0 if push is None else torch.add(x0, push, alpha=self.factor), ((), new)


@final
@dataclass(frozen=True)
class Through(Term):
    """shaper(push)."""

    term: Term
    shaper: Shaper

    def __post_init__(self) -> None:
        object.__setattr__(self, "inside", (check_part("term", self.term, Term),))
        object.__setattr__(self, "own", check_part("shaper", self.shaper, Shaper))
        if self.shaper.absolute and _scaled(self.term):
            said = f"{self.shaper} acts on a push that is already scaled; write 3 * Away(...).through(...)"
            warnings.warn(said, UserWarning, stacklevel=3)

    def plan(self, p: Planner, step: Step, state: State, rows: Rows | None, nets: Nets) -> TermPlan | None:
        """See `Term.plan`."""
        made = self.term.plan(p, step, state[1], rows, nets)
        if made is None:
            return None
        p.want(self.shaper.needs, rows, nets)
        return TermPlan(inside=(made,))

    def __call__(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        """See `Term`."""
        own, inner = state
        push, inner = self.term(ask, step, inner, plan.inside[0])
        push, own = self.shaper.shape(ask, torch.zeros_like(ask.x) if push is None else push, step, own)
        return push, (own, inner)


@final
@dataclass(frozen=True)
class When(Term):
    """push where and as far as a gate is open; on closed rows zero, and all state inside stands still."""

    term: Term
    gate: Gate

    def __post_init__(self) -> None:
        object.__setattr__(self, "inside", (check_part("term", self.term, Term),))
        object.__setattr__(self, "own", check_part("gate", self.gate, Gate))

    def plan(self, p: Planner, step: Step, state: State, rows: Rows | None, nets: Nets) -> TermPlan | None:
        """See `Term.plan`. A gate outside of what is closed neither asks nor learns."""
        if self.term.neutral:
            return None
        weight = mask = None
        decision = self.gate.open(step, state[0])
        if isinstance(decision, Tensor) and decision.dtype == torch.bool:
            rows, mask = p.read(decision, rows, latching=self.gate.latching)
            if rows is not None and not rows.index:
                return TermPlan()  # not None: what happens to a sample outside of here must not depend on the others
        elif decision is False:
            return None
        elif decision is not True:
            weight = p.number(decision)
        made = p.place(0, lambda: self.term.plan(p, step, state[1], rows, nets))
        if made is None:
            return None
        learn = self.gate.learns(step)
        if learn:
            p.want(self.gate.needs, rows, nets)
        return TermPlan(rows, mask, weight, learn, (made,))

    def __call__(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        """See `Term`."""
        if not plan.inside:
            return None, state
        if plan.rows is None or plan.rows == ask.rows:
            return self._open(ask, step, state, plan)
        index = plan.rows.within(ask.rows)
        some = tree_map(lambda s: s.index_select(0, index), state)
        push, some = self._open(ask.view(plan.rows), step, some, plan)
        if push is not None:
            push = push.new_zeros(ask.x.shape).index_copy(0, index, push)
        return push, tree_zip(lambda s, new: s.index_copy(0, index, new), state, some)

    def mix(self, plan: TermPlan, factor: float, weights: dict[Query, float]) -> bool:
        """See `Term.mix`: where the gate is simply open."""
        if not plan.simple:
            return False
        return self.term.mix(plan.inside[0], factor, weights)

    def onto(self, x0: Tensor, ask: Ask, step: Step, state: State, plan: TermPlan) -> tuple[Tensor, State]:
        """See `Term.onto`: a gate that is simply open adds nothing of its own."""
        if not plan.simple:
            return super().onto(x0, ask, step, state, plan)
        x0, inner = self.term.onto(x0, ask, step, state[1], plan.inside[0])
        return x0, (state[0], inner)

    def _open(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        own, inner = state
        push, inner = self.term(ask, step, inner, plan.inside[0])
        if plan.learn:
            own = self.gate.update(ask, step, own)
        new = (own, inner)
        if plan.mask is not None:
            mask = plan.mask if ask.rows is None else plan.mask.index_select(0, ask.rows.tensor)
            push = None if push is None else torch.where(expand(mask, push), push, 0)
            new = tree_zip(lambda a, b: torch.where(expand(mask, a), b, a), state, new)
        if plan.weight is not None and push is not None:
            push = push * expand(plan.weight, push)
        return push, new


@final
@dataclass(frozen=True)
class Versus(Term):
    """P + (w - 1)(base + P - base' - P'): the guided main network against the guided network `net`, as in CFG."""

    term: Term
    net: str
    w: float

    def __post_init__(self) -> None:
        check_factor("w of a comparison", self.w)
        # twice: each network's guidance remembers its own
        object.__setattr__(self, "inside", (check_part("term", self.term, Term),) * 2)

    @property
    def neutral(self) -> bool:
        """Only at w = 1."""
        return self.w == 1 and self.term.neutral

    def plan(self, p: Planner, step: Step, state: State, rows: Rows | None, nets: Nets) -> TermPlan | None:
        """See `Term.plan`."""
        mine = p.place(0, lambda: self.term.plan(p, step, state[1], rows, nets))
        if self.w == 1:
            return None if mine is None else TermPlan(inside=(mine, None))
        others = renamed(nets, {"main": self.net})
        p.want((p.origin,), rows, others)
        theirs = p.place(1, lambda: self.term.plan(p, step, state[2], rows, others))
        return TermPlan(inside=(mine, theirs))

    def __call__(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        """See `Term`."""
        first, second = plan.inside
        mine, a = (None, state[1]) if first is None else self.term(ask, step, state[1], first)
        if self.w == 1:
            return mine, ((), a, state[2])
        view = ask.view(nets={"main": self.net})
        theirs, b = (None, state[2]) if second is None else self.term(view, step, state[2], second)
        gap = ask.base - view.base
        gap = gap if mine is None else gap + mine
        gap = gap if theirs is None else gap - theirs
        push = (self.w - 1) * gap
        return push if mine is None else push + mine, ((), a, b)

    def queries(self, origin: Query, nets: Nets) -> Iterator[Query]:
        """Those of both networks."""
        yield from self.term.queries(origin, nets)
        if self.w != 1:
            others = renamed(nets, {"main": self.net})
            yield origin._replace(net=others.get(origin.net, origin.net))
            yield from self.term.queries(origin, others)


def _scaled(term: Term) -> bool:
    """Whether a push is a multiple of a bare difference."""
    if isinstance(term, Through | When):
        return _scaled(term.term)
    return term.factor != 1 if isinstance(term, Scale) else getattr(term, "gain", 1.0) != 1
