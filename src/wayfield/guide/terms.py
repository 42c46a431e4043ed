r"""Terms: guidance as an expression. Directions are its leaves; nodes add, scale, shape, gate and compare them.

.. math:: \hat{x}_0 = \text{base} + \text{push}(\text{term}), \qquad
   \begin{aligned}
   \text{push}(a + b) &= \text{push}(a) + \text{push}(b), & \text{push}(g\, a) &= g\, \text{push}(a), \\
   \text{push}(a.\text{through}(s)) &= s(\text{push}(a)), & \text{push}(a.\text{when}(g)) &= g \odot \text{push}(a), \\
   \text{push}(a.\text{versus}(\text{net}, w)) &= P + (w - 1)(\text{base} + P - \text{base}' - P')
   \end{aligned}

push: (b, *D), in units of x0 / primes: the same term asked of another network. Expressions are read from left to right:
each call wraps everything to its left, so `.when` freezes everything to its left.

Before a point is evaluated the tree is *planned* on the host: gates open or close, closed subtrees vanish, and what is
left declares its queries with the rows they are wanted for. Then it is *called*.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from wayfield.core.errors import DTypeError, RangeError
from wayfield.field.ask import Ask
from wayfield.field.binding import Query
from wayfield.field.rows import Rows
from wayfield.guide.planner import Planner
from wayfield.guide.roles import Gate, Part, Shaper, State, Step

if TYPE_CHECKING:
    from wayfield.guide.nodes import Scale, Sum, Through, Versus, When

__all__ = ["Direction", "Factor", "Nets", "TermPlan", "Pushed", "Term", "check_factor", "check_part"]

Factor = float | tuple[float, ...]
"""One number, or one for each sample of the batch."""

Nets = Mapping[str, str]
Pushed = tuple[Tensor | None, State]


class TermPlan(NamedTuple):
    """What was decided for a term at one point. rows: of the batch, None for all / mask: (B,), rows whose values count
    / weight: multiplier () / learn: whether the gate updates / inside: plans of what is inside, None where closed.
    """

    rows: Rows | None = None
    mask: Tensor | None = None
    weight: Tensor | None = None
    learn: bool = False
    inside: tuple[Any, ...] = ()

    @property
    def simple(self) -> bool:
        """Whether a gate is open for everybody, without a factor and without learning."""
        return bool(self.inside) and self.rows is None and self.mask is None and self.weight is None and not self.learn


_LEAF = TermPlan()


class Term(ABC):
    """Something that pushes x0. Combine with +, -, a number times, `through`, `when` and `versus`.

    own: the part that a node adds / inside: its terms. State: (the part's, the terms').
    """

    own: Part | None = None
    inside: tuple[Term, ...] = ()

    @property
    def neutral(self) -> bool:
        """Whether the push is zero by the parameters alone, so that nothing need be asked."""
        return all(term.neutral for term in self.inside)

    @abstractmethod
    def plan(self, p: Planner, step: Step, state: State, rows: Rows | None, nets: Nets) -> TermPlan | None:
        """Decide for one point, on the host; None if nothing is pushed. p: collects what is wanted / state: of the
        whole batch / rows: that still count / nets: networks renamed.
        """

    @abstractmethod
    def __call__(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        """The push (b, *D) at the rows of `ask`, None for zero, and the next state."""

    def onto(self, x0: Tensor, ask: Ask, step: Step, state: State, plan: TermPlan) -> tuple[Tensor, State]:
        """x0 (b, *D) plus the push, and the next state; terms that can do both at once say how."""
        push, new = self(ask, step, state, plan)
        return x0 if push is None else x0 + push, new

    def mix(self, plan: TermPlan, factor: float, weights: dict[Query, float]) -> bool:
        """Whether the push is a weighted sum of answers, and then its weights, times `factor`, added to `weights`."""
        return False

    def init(self, x: Tensor, n: int) -> State:
        """State before the first of n steps, for points x (B, *D)."""
        return (() if self.own is None else self.own.init(x, n), *(term.init(x, n) for term in self.inside))

    def parts(self) -> Iterator[Part]:
        """Every part of the expression."""
        for term in self.inside:
            yield from term.parts()
        if self.own is not None:
            yield self.own

    def remembered(self, state: State) -> Iterator[tuple[Part, State]]:
        """Every part with what it remembers."""
        for term, inner in zip(self.inside, state[1:], strict=True):
            yield from term.remembered(inner)
        if self.own is not None:
            yield self.own, state[0]

    def queries(self, origin: Query, nets: Nets) -> Iterator[Query]:
        """Everything that may be asked, with the real names of networks. origin: the query that is pushed from."""
        if not self.neutral:
            for term in self.inside:
                yield from term.queries(origin, nets)
            for query in () if self.own is None else self.own.needs:
                yield query._replace(net=nets.get(query.net, query.net))

    def held(self, old: State, new: State) -> State:
        """What later evaluations of a step read, part by part: see `Part.reads`."""
        own = new[0] if self.own is not None and self.own.reads == "current" else old[0]
        return own, *(term.held(a, b) for term, a, b in zip(self.inside, old[1:], new[1:], strict=True))

    def through(self, shaper: Shaper) -> Through:
        """This term's push, shaped."""
        return _nodes().Through(self, shaper)

    def when(self, gate: Gate) -> When:
        """This term where and as far as the gate is open."""
        return _nodes().When(self, gate)

    def versus(self, net: str, w: float) -> Versus:
        """This guidance of the main network against the same guidance of another one; w = 1 means no comparison."""
        return _nodes().Versus(self, net, w)

    def __add__(self, other: Term) -> Sum:
        return _nodes().Sum((self, other)) if isinstance(other, Term) else NotImplemented

    def __sub__(self, other: Term) -> Sum:
        return self + -other if isinstance(other, Term) else NotImplemented

    def __neg__(self) -> Scale:
        return _nodes().Scale(-1.0, self)

    def __mul__(self, factor: Factor) -> Scale:
        return _nodes().Scale(factor, self)

    __rmul__ = __mul__


class Direction(Part, Term):
    """A leaf. Authors write `push`, `needs`, and what it remembers or when it is neutral if it does."""

    @abstractmethod
    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        """The push (b, *D) in units of x0, None for zero, and the next state."""

    @property
    def neutral(self) -> bool:
        """Whether the push is zero by the parameters alone."""
        return False

    def init(self, x: Tensor, n: int) -> State:
        """See `Part.init`."""
        return ()

    def plan(self, p: Planner, step: Step, state: State, rows: Rows | None, nets: Nets) -> TermPlan | None:
        """See `Term.plan`."""
        if self.neutral:
            return None
        p.want(self.needs, rows, nets)
        return _LEAF

    def __call__(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        """See `Term`."""
        return self.push(ask, step, state)

    def parts(self) -> Iterator[Part]:
        """Itself."""
        yield self

    def remembered(self, state: State) -> Iterator[tuple[Part, State]]:
        """Itself."""
        yield self, state

    def queries(self, origin: Query, nets: Nets) -> Iterator[Query]:
        """Its needs, unless it is neutral."""
        for query in () if self.neutral else self.needs:
            yield query._replace(net=nets.get(query.net, query.net))

    def held(self, old: State, new: State) -> State:
        """See `Part.reads`."""
        return new if self.reads == "current" else old


def check_factor(what: str, factor: Any) -> Factor:
    """A finite number, or a tuple of them from any sequence. Raises RangeError."""
    many = isinstance(factor, (tuple, list))
    values = tuple(factor) if many else (factor,)
    for v in values:
        if isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v):
            remedy = "Give one number, or a tuple with one for each sample."
            raise RangeError(what, got=factor, expected="finite numbers", remedy=remedy)
    return values if many else factor


def check_part(what: str, part: Any, kind: type) -> Any:
    """The part, if it is of that kind. Raises DTypeError."""
    if not isinstance(part, kind):
        remedy = {"term": "Guidance itself is not a term; combine what is in it.", "gate": "Use Interval(), AG(), ..."}
        raise DTypeError(
            what,
            got=type(part).__name__,
            expected=f"a {kind.__name__}",
            remedy=remedy.get(what, "Use APG(), Rescale(), ..."),
        )
    return part


def _nodes() -> Any:
    from wayfield.guide import nodes  # nodes are terms: the two files need each other

    return nodes
