"""What is known at one noisy point, by question and rows, and the network calls that make it so.

All views of a point (see ask.py) share one `Answers`; calls and rows are counted here and nowhere else. Gradient
queries are evaluated apart, under autograd, and also serve whoever wants the same without.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from wayfield.core.predict import Prediction, with_graph
from wayfield.field.binding import Binding, Call, Query, Want
from wayfield.field.denoiser import Landing, Level
from wayfield.field.rows import Rows

__all__ = ["Answers"]


@final
class Answers:
    """Answers at points x (B, *D). x0: for the whole batch / full: pairs of those that somebody asked for, see `get` /
    some: for known rows of the batch / calls, rows: the cost so far / levels: by network / landing: the level that the
    step goes to, if known.
    """

    __slots__ = ("_leaf", "_made", "binding", "calls", "full", "landing", "levels", "rows", "some", "x", "x0")

    def __init__(self, binding: Binding, x: Tensor, levels: Mapping[str, Level], landing: Landing | None) -> None:
        self.binding, self.x, self.levels, self.landing = binding, x, levels, landing
        self.calls = self.rows = 0
        self.x0: dict[Query, Tensor] = {}
        self.full: dict[Query, Prediction] = {}
        self._made: list[tuple[Call, Prediction]] = []
        self.some: dict[Query, tuple[Rows, Prediction]] = {}
        self._leaf: Tensor | None = None

    def fetch(self, wants: tuple[Want, ...]) -> None:
        """Evaluate what is not yet known of queries (networks by their real names) for rows of the whole batch."""
        if self.x0 or self.some:
            wants = self.missing(wants)
        if wants:
            self.run(self.binding.layout(wants, self.x))

    def run(self, calls: tuple[Call, ...]) -> None:
        """Make network calls of things not known yet."""
        for call in calls:
            self.calls += 1
            self.rows += call.total
            if call.queries[0].grad:
                self._pulled(call)
                continue
            pair = call.denoise(self.x, self.levels)
            if len(call.sizes) == 1:
                self.keep(*call.wants[0], pair)
            elif call.rows is None:
                self.x0.update(zip(call.queries, pair.x0.split_with_sizes(call.sizes), strict=True))
                self._made.append((call, pair))
            else:
                for k, (query, rows) in enumerate(call.wants):
                    self.keep(query, rows, _part(call, pair, k))

    def get(self, query: Query, rows: Rows | None) -> Prediction:
        """A known answer, for some rows of the batch or for all."""
        known, pred = (None, self._pair(query)) if query in self.x0 else self.some[query]
        if rows is None or known == rows:
            return pred
        index = rows.within(known)
        return pred.take(index) if not query.grad else with_graph(lambda: pred.take(index))

    def missing(self, wants: tuple[Want, ...]) -> tuple[Want, ...]:
        """What of these wants is not known yet."""
        out = []
        for query, rows in wants:
            if query in self.x0:
                continue
            if query not in self.some:
                out.append((query, rows))
                continue
            known = set(self.some[query][0].index)
            wanted = range(self.binding.batch) if rows is None else rows.index
            rest = [k for k in wanted if k not in known]
            if rest:
                out.append((query, Rows.of(rest, self.x.device)))
        return tuple(out)

    def keep(self, query: Query, rows: Rows | None, pred: Prediction) -> None:
        """Remember an answer, joined in rising order with what was known for other rows."""
        if rows is None:
            self.x0[query], self.full[query] = pred.x0, pred
            return
        if query in self.some:
            known, before = self.some[query]
            both = known.index + rows.index
            order = torch.tensor(sorted(range(len(both)), key=both.__getitem__), device=self.x.device)
            rows = Rows.of(both, self.x.device)
            joined = functools.partial(lambda new: before.join(new).take(order), pred)
            pred = with_graph(joined) if query.grad else joined()
        self.some[query] = (rows, pred)
        if len(rows.index) == self.binding.batch:
            self.keep(query, None, self.some.pop(query)[1])

    def leaf(self) -> Tensor:
        """The points (B, *D) as what gradients are taken in."""
        if self._leaf is None:
            self._leaf = self.x if self.x.requires_grad else self.x.detach().requires_grad_()
        return self._leaf

    def _pair(self, query: Query) -> Prediction:
        """The answer for the whole batch with its eps, which few ask for."""
        if query not in self.full:
            call, pair = next(made for made in self._made if query in made[0].queries)
            k = call.queries.index(query)
            self.full[query] = Prediction(self.x0[query], lambda: pair.eps.split_with_sizes(call.sizes)[k], pair.tied)
        return self.full[query]

    def _pulled(self, call: Call) -> None:
        pair = with_graph(lambda: call.denoise(self.leaf(), self.levels))
        for k, (query, rows) in enumerate(call.wants):
            pred = with_graph(lambda k=k: _part(call, pair, k))
            self.keep(query, rows, pred)
            twin = query._replace(grad=False)
            if twin not in self.x0 and twin not in self.some:  # it serves who wants the same without
                self.keep(twin, rows, pred.map(_settled))


def _part(call: Call, pair: Prediction, k: int) -> Prediction:
    """The k-th branch of a call's answers."""
    return pair.map(lambda y: y.split_with_sizes(call.sizes)[k])


def _settled(x: Tensor) -> Tensor:
    """Without the graph of a gradient query, unless the run as a whole is differentiated."""
    return x if torch.is_grad_enabled() else x.detach()
