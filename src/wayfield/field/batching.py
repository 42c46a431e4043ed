"""How many branches share a network call.

One call of 2B rows beats two calls of B rows while the call is small; on a CPU it loses once the working set leaves the
cache. So the choice is a policy with two numbers, and `measure` finds them for a given network and machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError

__all__ = ["Batching", "measure"]

Q = TypeVar("Q")


@final
@dataclass(frozen=True)
class Batching:
    """merge_below: branches are concatenated while the call has at most so many input numbers; None means always, 0
    never.

    max_rows: rows in one call never exceed this (memory ceiling); None means no ceiling. A branch is never cut.
    """

    merge_below: int | None = None
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if (self.merge_below is not None and self.merge_below < 0) or (self.max_rows is not None and self.max_rows < 1):
            raise RangeError(
                "batching", got=self, expected="merge_below >= 0, max_rows >= 1", remedy="None lifts a limit."
            )

    @staticmethod
    def default(device: torch.device) -> Batching:
        """Always merge on an accelerator; on a CPU up to 65,536 input numbers, about where merging stopped to pay in
        measurements.
        """
        return Batching(merge_below=65_536 if device.type == "cpu" else None)

    def split(self, group: Sequence[Q], sizes: Sequence[int], numel: int) -> list[list[Q]]:
        """Cut a group of branches into calls, in order. sizes: rows of each branch / numel: input numbers of a row."""
        limit = float("inf") if self.merge_below is None else self.merge_below // max(numel, 1)
        limit = limit if self.max_rows is None else min(limit, self.max_rows)
        parts: list[list[Q]] = []
        room = 0.0
        for branch, size in zip(group, sizes, strict=True):
            if not parts or size > room:
                parts.append([])
                room = limit
            parts[-1].append(branch)
            room -= size
        return parts


def measure(
    call: Callable[[Tensor], Tensor], x: Tensor, *, sizes: Sequence[int] = (1, 2, 4, 8, 16, 32), repeats: int = 7
) -> Batching:
    """The policy that suits `call` (rows in, rows out) here: time one call of 2B rows against two of B for several B.

    x: one row (1, *D) on the device to be used. Returns a `Batching` whose `merge_below` is the largest 2B input that
    won.
    """
    best = 0
    with torch.no_grad():
        for B in sizes:
            one, two = x.expand(B, *x.shape[1:]).contiguous(), x.expand(2 * B, *x.shape[1:]).contiguous()
            ratios = []
            for k in range(repeats + 2):
                merged = _seconds(lambda two=two: call(two), x.device)
                split = _seconds(lambda one=one: (call(one), call(one)), x.device)
                if k >= 2:
                    ratios.append(merged / split)
            if statistics.median(ratios) > 1:
                break
            best = two.numel()
    return Batching(merge_below=best)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
