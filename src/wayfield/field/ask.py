r"""Every network evaluation goes through an `Ask`: one noisy point, questions by name, answers kept.

A query names a condition and a network. What several askers want at the same point is evaluated once; what is missing
is grouped by network and concatenated into as few calls as the batching policy allows. Calls and rows are counted here
and nowhere else.

=========  ===============================================  ==========
symbol     meaning                                          shape
=========  ===============================================  ==========
x          the noisy points                                 (B, *D)
levels     network name -> numbers of the level             () or (B,)
=========  ===============================================  ==========
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import unknown_name
from wayfield.core.predict import Prediction
from wayfield.core.shapes import expand
from wayfield.field.batching import Batching
from wayfield.field.cond import Cond, concat
from wayfield.field.denoiser import Denoiser, Level

__all__ = ["COND", "NULL", "Ask", "Binding", "Counts", "Query"]


class Query(NamedTuple):
    """One question at a noisy point. cond: name of a condition / net: name of a network."""

    cond: str
    net: str = "main"


COND = Query("cond")
NULL = Query("null")


class Counts(NamedTuple):
    """Cost of a run: network calls, rows in them (samples x branches), and rows that guidance could have asked for but
    did not.
    """

    calls: int = 0
    rows: int = 0
    skipped: int = 0

    def plus(self, other: Counts) -> Counts:
        """Sum, member by member."""
        return Counts(self.calls + other.calls, self.rows + other.rows, self.skipped + other.skipped)


class Call(NamedTuple):
    """One network call: several branches of one network, concatenated; sizes: rows of each."""

    net: str
    denoiser: Denoiser
    queries: tuple[Query, ...]
    cond: Cond
    sizes: list[int]


@final
@dataclass(frozen=True)
class Binding:
    """The networks and conditions of one run, for a batch of fixed size.

    nets: name -> Denoiser, "main" among them / given: name -> raw condition; "null" is always there / batch: B /
    batching: call policy.
    """

    nets: Mapping[str, Denoiser]
    given: Mapping[str, Mapping[str, Any] | None]
    batch: int
    device: torch.device
    batching: Batching
    _bound: dict[tuple[str, str], Cond] = field(default_factory=dict, init=False, repr=False)
    _layouts: dict[tuple[Query, ...], tuple[Call, ...]] = field(default_factory=dict, init=False, repr=False)

    def cond(self, query: Query) -> Cond:
        """The checked condition of a query, bound once. Raises UnknownNameError or ConditionError."""
        key = (query.cond, query.net)
        if key not in self._bound:
            if query.net not in self.nets:
                raise unknown_name("network", query.net, self.nets)
            schema = self.nets[query.net].schema
            if query.cond == "null":
                self._bound[key] = schema.bind_null(self.batch, self.device)
            elif query.cond in self.given:
                self._bound[key] = schema.bind(self.given[query.cond], self.batch, self.device)
            else:
                raise unknown_name("condition", query.cond, [*self.given, "null"])
        return self._bound[key]

    def layout(self, queries: tuple[Query, ...], x: Tensor) -> tuple[Call, ...]:
        """The network calls that answer these queries, with their conditions concatenated; made once per run."""
        known = self._layouts.get(queries)
        if known is None:
            groups: dict[str, list[Query]] = {}
            for q in dict.fromkeys(queries):
                self.cond(q)
                groups.setdefault(q.net, []).append(q)
            parts = [(net, tuple(p)) for net, group in groups.items() for p in self.batching.split(group, x)]
            known = self._layouts[queries] = tuple(
                Call(net, self.nets[net], part, concat([self.cond(q) for q in part]), [len(x)] * len(part))
                for net, part in parts
            )
        return known

    def take(self, rows: Tensor) -> Binding:
        """The same binding for some rows of the batch, given by index (b,)."""
        out = Binding(self.nets, self.given, len(rows), self.device, self.batching)
        for key, cond in self._bound.items():
            out._bound[key] = {name: c[rows] for name, c in cond.items()}
        return out


@final
class Ask:
    """Questions about the points x (B, *D) at one noise level. Callable with queries; returns one `Prediction` each."""

    __slots__ = ("_known", "binding", "calls", "levels", "rows", "x")

    def __init__(self, binding: Binding, x: Tensor, levels: Mapping[str, Level]) -> None:
        self.binding, self.x, self.levels = binding, x, levels
        self.calls = self.rows = 0
        self._known: dict[Query, Prediction] = {}

    def __call__(self, *queries: Query) -> tuple[Prediction, ...]:
        """Answers in the order asked; only what is not yet known costs a network call."""
        known = self._known
        missing = tuple(q for q in queries if q not in known) if known else queries
        if missing:
            for call in self.binding.layout(missing, self.x):
                self._evaluate(call)
        return tuple([known[q] for q in queries])

    def point(self, x0: Tensor) -> Prediction:
        """The pair whose x0 is given and whose eps is the one this point then has; eps is computed when first used."""
        x, level = self.x, self.levels["main"]
        if level.alpha.ndim:
            level = level.map(lambda c: expand(c, x))
        return Prediction(x0, lambda: torch.addcmul(level.point_x * x, level.point_x0, x0), tied=True)

    def _evaluate(self, call: Call) -> None:
        net, denoiser, queries, cond, sizes = call
        k, x, level = len(queries), self.x, self.levels[net]
        self.calls += 1
        if k == 1:
            self.rows += sizes[0]
            self._known[queries[0]] = denoiser.denoise(x, level, cond)
            return
        if level.alpha.ndim:
            level = level.map(lambda c: c.repeat(k))
        pair = denoiser.denoise(torch.cat([x] * k), level, cond)
        self.rows += k * sizes[0]
        for i, x0 in enumerate(pair.x0.split_with_sizes(sizes)):
            self._known[queries[i]] = Prediction(x0, lambda i=i: pair.eps.chunk(k)[i], True)
