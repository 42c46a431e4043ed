"""Interleaved timing of several callables that must agree.

Contestants run in turns inside one process (A B C, C B A, A B C, ...), so that drifting load and clock speed hit all
of them alike. Every round gives one ratio subject / peer; reported are their median and 10 and 90 % quantiles. The
clock is the CPU time of the thread: with torch held to one thread all work happens there, and time lost to other
processes does not count. The garbage collector rests meanwhile.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import WayfieldError

__all__ = ["Contest", "OutputsDifferError", "Row", "close", "compete", "interleaved", "one_thread", "spread"]

Run = Callable[[], Tensor]
Clock = Callable[[], float]


class OutputsDifferError(WayfieldError, AssertionError):
    """Two contestants do not compute the same thing, so their times must not be compared."""


class Row(NamedTuple):
    """One comparison. ratio: median of time(subject) / time(peer) / low, high: 10 and 90 % quantiles of that /
    calls, rows: network cost of one run of the subject.
    """

    case: str
    subject: str
    peer: str
    ratio: float
    low: float
    high: float
    calls: int
    rows: int


def close(subject: Tensor, peer: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two finite outputs agree to `tolerance`, relative to the largest number in them."""
    if subject.shape != peer.shape or not bool((subject.isfinite() & peer.isfinite()).all()):
        return False
    return float((subject - peer).abs().max()) <= tolerance * float(peer.abs().max())


@final
@dataclass(frozen=True)
class Contest:
    """One case: a subject against peers by name. calls, rows: cost of its run / same: whether two outputs agree."""

    case: str
    subject: Run
    peers: Mapping[str, Run]
    calls: int = 0
    rows: int = 0
    same: Callable[[Tensor, Tensor], bool] = close


def compete(contest: Contest, rounds: int, *, warmups: int = 3, clock: Clock = time.thread_time) -> list[Row]:
    """Compare outputs, then times. Raises OutputsDifferError, naming the peer, before anything is timed."""
    with one_thread():
        output = contest.subject()
        for name, peer in contest.peers.items():
            other = peer()
            if not contest.same(output, other):
                raise OutputsDifferError(
                    f"case {contest.case!r}",
                    got=f"another output from {name!r} {tuple(other.shape)}",
                    expected=f"that of wayfield {tuple(output.shape)}",
                    remedy="Give both the same network, start, grid and noise.",
                )
        times = interleaved([contest.subject, *contest.peers.values()], rounds, warmups=warmups, clock=clock)
    return [
        Row(contest.case, "wayfield", name, *spread(times[0], taken), contest.calls, contest.rows)
        for name, taken in zip(contest.peers, times[1:], strict=True)
    ]


def interleaved(
    runs: Sequence[Callable[[], object]], rounds: int, *, warmups: int = 3, clock: Clock = time.thread_time
) -> list[list[float]]:
    """Seconds of each run in each round, warm-ups left out; the order turns round every time."""
    times: list[list[float]] = [[] for _ in runs]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for k in range(warmups + rounds):
            for i in range(len(runs)) if k % 2 else reversed(range(len(runs))):
                start = clock()
                runs[i]()
                times[i].append(clock() - start)
    finally:
        if collecting:
            gc.enable()
    return [taken[warmups:] for taken in times]


def spread(subject: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """Median, 10 % and 90 % quantile of the round-by-round ratios."""
    ratios = [s / p for s, p in zip(subject, peer, strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    tenths = statistics.quantiles(ratios, n=10, method="inclusive")
    return statistics.median(ratios), tenths[0], tenths[-1]


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
