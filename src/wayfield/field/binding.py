"""The networks and conditions of one run, and the network calls that answer a set of questions.

A query names a condition and a network; `Binding` checks each condition once and lays out calls: what one network is
asked at one point is concatenated into as few calls as the batching policy allows. Layouts are kept for the run, since
most steps ask the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import ShapeError, unknown_name
from wayfield.core.predict import Prediction
from wayfield.field.batching import Batching
from wayfield.field.cond import Cond, concat
from wayfield.field.denoiser import Denoiser, Level
from wayfield.field.rows import Rows

__all__ = ["COND", "NULL", "Binding", "Call", "Counts", "Query", "Want", "renamed"]

_KEPT = 64


class Query(NamedTuple):
    """One question at a noisy point. cond: name of a condition / net: name of a network / grad: whether the answer
    carries gradients back to the point.
    """

    cond: str
    net: str = "main"
    grad: bool = False


COND = Query("cond")
NULL = Query("null")

Want = tuple[Query, Rows | None]
"""A query and the rows it is wanted for; None means all."""


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
    """One network call: several branches of one network, concatenated.

    wants: the branches / queries: theirs / cond: of all rows / sizes: rows of each branch / total: their sum / rows:
    which rows of the batch are in the call, (total,); None if every branch is whole.
    """

    net: str
    denoiser: Denoiser
    wants: tuple[Want, ...]
    queries: tuple[Query, ...]
    cond: Cond
    sizes: list[int]
    total: int
    rows: Tensor | None

    def spread(self, x: Tensor) -> Tensor:
        """Rows of the batch as the call wants them."""
        if self.rows is not None:
            return x.index_select(0, self.rows)
        return x if len(self.sizes) == 1 else torch.cat([x] * len(self.sizes))

    def denoise(self, x: Tensor, levels: Mapping[str, Level]) -> Prediction:
        """The answers of all branches at points x (B, *D). levels: by network."""
        level = levels[self.net]
        if level.alpha.ndim:
            level = level.map(self.spread)
        return self.denoiser.denoise(self.spread(x), level, self.cond)

    def clean(self, x: Tensor, levels: Mapping[str, Level]) -> Tensor:
        """Only the x0 of `denoise`."""
        level = levels[self.net]
        if level.alpha.ndim:
            level = level.map(self.spread)
        return self.denoiser.clean(self.spread(x), level, self.cond)


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
    _layouts: dict[tuple[Want, ...], tuple[Call, ...]] = field(default_factory=dict, init=False, repr=False)
    _columns: dict[tuple[float, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

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

    def layout(self, wants: tuple[Want, ...], x: Tensor) -> tuple[Call, ...]:
        """The network calls that answer these wants at points like x (B, *D); made once and kept."""
        known = self._layouts.get(wants)
        if known is None:
            groups: dict[tuple[str, bool], list[Want]] = {}
            for want in dict.fromkeys(wants):
                self.cond(want[0])
                groups.setdefault((want[0].net, want[0].grad), []).append(want)
            if len(self._layouts) >= _KEPT:  # rows may shrink in ever new patterns
                self._layouts.clear()
            known = self._layouts[wants] = tuple(
                self._call(net, part, x)
                for (net, _), group in groups.items()
                for part in self.batching.split(group, [self._size(w) for w in group], x.numel() // len(x))
            )
        return known

    def column(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        """One number for each sample of the batch, (B,), in the type of x. Raises ShapeError for another number."""
        if values not in self._columns:  # some rows of a run know those of all
            if len(values) != self.batch:
                remedy = "Give one number for each sample of the run, or a single one for all."
                raise ShapeError("numbers per sample", got=len(values), expected=self.batch, remedy=remedy)
            self._columns[values] = torch.tensor(values, dtype=x.dtype, device=x.device)
        return self._columns[values]

    def take(self, rows: Tensor) -> Binding:
        """The same binding for some rows of the batch, given by index (b,)."""
        out = Binding(self.nets, self.given, len(rows), self.device, self.batching)
        for key, cond in self._bound.items():
            out._bound[key] = {name: c[rows] for name, c in cond.items()}
        for values, column in self._columns.items():
            out._columns[values] = column[rows]
        return out

    def _size(self, want: Want) -> int:
        return self.batch if want[1] is None else len(want[1].index)

    def _call(self, net: str, wants: tuple[Want, ...] | list[Want], x: Tensor) -> Call:
        conds: list[Cond] = []
        for query, rows in wants:
            cond = self.cond(query)
            conds.append(cond if rows is None else {k: c.index_select(0, rows.tensor) for k, c in cond.items()})
        index = None
        if any(rows is not None for _, rows in wants):
            everything = torch.arange(self.batch, device=x.device)
            index = torch.cat([everything if rows is None else rows.tensor for _, rows in wants])
        sizes = [self._size(w) for w in wants]
        queries = tuple([query for query, _ in wants])
        return Call(net, self.nets[net], tuple(wants), queries, concat(conds), sizes, sum(sizes), index)


def renamed(nets: Mapping[str, str], further: Mapping[str, str] | None) -> Mapping[str, str]:
    """Names of networks under `further` renaming inside `nets`."""
    return nets if further is None else {**nets, **{k: nets.get(v, v) for k, v in further.items()}}
