"""What guidance needs from the host before a point is evaluated: queries with their rows, and masks read or put off.

A gate that closes samples one by one keeps a mask on the device. Three ways to act on it give equal values:

=========  =========================================================================  ==============================
mode       rows that are evaluated                                                    host reads
=========  =========================================================================  ==============================
exact      those that are open                                                        one a step and gate, until all
                                                                                      rows have latched
late       those that were open a step ago, a superset; the mask then decides         none that waits: the copy of a
                                                                                      step ago has arrived
fixed      all; the mask decides                                                      none; what compiling asks for
=========  =========================================================================  ==============================

"late" holds for gates that never open again (`latching`); the masks of others are read as in "exact".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, final

import torch
from torch import Tensor

from wayfield.field.binding import Query, Want
from wayfield.field.rows import Rows

__all__ = ["MODES", "Mode", "Planner"]

Mode = Literal["exact", "late", "fixed"]
MODES = ("exact", "late", "fixed")
P = TypeVar("P")


@final
class Planner:
    """The host's side of one run. origin: the query that is pushed from / like: points (B, *D)."""

    def __init__(self, mode: Mode, origin: Query, like: Tensor) -> None:
        self.mode, self.origin = mode, origin
        self._batch, self._device, self._dtype = len(like), like.device, like.dtype
        self._wants: dict[Query, set[int] | None] = {}
        self._same: dict[Query, Query] = {}
        self._path: tuple[Any, ...] = ()
        self._settled: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._copies: dict[tuple[Any, ...], tuple[Tensor, Any]] = {}
        self._last: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._rows: dict[tuple[int, ...], Rows] = {}

    def start(self, stage: int) -> None:
        """Forget what was wanted: another point is planned. Masks are read once a step, in its first evaluation."""
        self._wants = {}
        if stage == 0:
            self._last.clear()

    def place(self, k: int, plan: Callable[[], P]) -> P:
        """Plan the k-th term of a node, or source of a run: a gate is known by its place in the tree."""
        self._path = (*self._path, k)
        made = plan()
        self._path = self._path[:-1]
        return made

    def want(self, queries: Iterable[Query], rows: Rows | None, nets: Mapping[str, str]) -> None:
        """Note that these queries will be asked for these rows, networks renamed by `nets`."""
        for query in queries:
            real = query._replace(net=nets[query.net]) if query.net in nets else query
            real = self._same.setdefault(real, real)  # compiled steps know a query by identity
            if rows is None:
                self._wants[real] = None
            else:
                known = self._wants.setdefault(real, set())
                if known is not None:
                    known.update(rows.index)

    def drop(self, query: Query, answered: Rows | None) -> None:
        """Take back a query, for the rows that a source answers (None: all)."""
        wanted = self._wants.pop(query)
        if answered is not None:
            everything = set(range(self._batch)) if wanted is None else wanted
            self._wants[query] = everything - set(answered.index)

    def wanted(self, query: Query) -> bool:
        """Whether anybody wants it."""
        return query in self._wants

    def rounds(self) -> tuple[tuple[Want, ...], ...]:
        """What the networks are to be asked, gathered so far: gradient queries first, for they serve their plain
        twins.
        """
        wants = self._wants
        if not any(q.grad for q in wants):
            return (tuple([(q, self._rows_of(r)) for q, r in wants.items() if r is None or r]),)
        pulled = {q: r for q, r in wants.items() if q.grad}
        plain = {q: self._beyond(r, q._replace(grad=True)) for q, r in wants.items() if not q.grad}
        return tuple(
            tuple([(q, self._rows_of(r)) for q, r in part.items() if r is None or r]) for part in (pulled, plain)
        )

    def _beyond(self, rows: set[int] | None, twin: Query) -> set[int] | None:
        """Rows that the gradient twin does not serve."""
        if twin not in self._wants:
            return rows
        served = self._wants[twin]
        return set() if served is None else (set(range(self._batch)) if rows is None else rows) - served

    def _rows_of(self, rows: set[int] | None) -> Rows | None:
        return None if rows is None or len(rows) == self._batch else self._known(tuple(sorted(rows)))

    def number(self, value: float | Tensor) -> Tensor:
        """A number that varies by step, as a tensor on the device."""
        return torch.as_tensor(value, dtype=self._dtype, device=self._device)

    def read(
        self, mask: Tensor, rows: Rows | None, *, latching: bool, settled: bool = False
    ) -> tuple[Rows | None, Tensor | None]:
        """The rows that a mask (B,) leaves of `rows`, and the mask itself where values still depend on it.

        latching: whether an entry that has become `settled` stays so.
        """
        path = self._path
        if self.mode == "fixed":
            return rows, mask
        late, index = self.mode == "late" and latching, self._settled.get(path)
        index = self._last.get(path) if index is None else index
        if index is None:
            index = self._last[path] = self._older(path, mask, settled) if late else tuple(_open(mask))
            if latching and len(index) == (self._batch if settled else 0):
                self._settled[path] = index
        left = index if rows is None else tuple(sorted(set(index) & set(rows.index)))
        mask_left = mask if late and path not in self._settled else None
        if len(left) == (self._batch if rows is None else len(rows.index)):
            return rows, mask_left
        return self._known(left), mask_left

    def _older(self, path: tuple[Any, ...], mask: Tensor, settled: bool) -> tuple[int, ...]:
        """The rows of this gate's mask of a step ago, and the start of the copy of today's."""
        before = self._copies.get(path)
        copy = mask.to("cpu", non_blocking=True)
        event = None
        if mask.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        self._copies[path] = (copy, event)
        if before is None:
            return tuple(range(self._batch)) if not settled else ()
        if before[1] is not None:
            before[1].synchronize()
        return tuple(_open(before[0]))

    def _known(self, index: tuple[int, ...]) -> Rows:
        if len(self._rows) > 256:
            self._rows.clear()
        if index not in self._rows:
            self._rows[index] = Rows.of(index, self._device)
        return self._rows[index]


def _open(mask: Tensor) -> list[int]:
    return [k for k, on in enumerate(mask.tolist()) if on]
