"""The parts that guidance is made of: what pushes, what is done to a push, whether and where, and who answers.

=============  ==================================================================  ==================================
role           question it answers                                                 examples
=============  ==================================================================  ==================================
`Direction`    where to push x0                                                    CFG, autoguidance, an energy
`Shaper`       what is done to a push once it is known                             APG, rescaling
`Gate`         whether, on which rows, how strongly; decided before evaluation     intervals, schedules, AG
`Source`       who answers a query instead of the network                          LinearAG, a held difference
=============  ==================================================================  ==================================

Before or after tells Gate from Shaper: a gate decides from host facts and from what it remembers, so that rows can be
spared; a shaper sees the push and spares nothing. Directions are leaves of a tree of terms, see terms.py; sources
belong to the whole `Guidance`, since who answers must be the same for everybody at one point.

Parts are frozen descriptions. What they remember is a `State`, nested tuples of tensors with the batch first, passed in
and returned; so it can be saved, frozen for some rows and cut to some rows without any part knowing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from wayfield.core.predict import Prediction
from wayfield.field.ask import Ask
from wayfield.field.binding import Query

__all__ = ["Decision", "Gate", "Part", "Shaper", "Source", "State", "Step"]

State = tuple

Decision = bool | float | Tensor
"""True or False, for all rows / a multiplier / bool (B,), the rows that are open."""


class Step(NamedTuple):
    """Where a run is; host numbers, for decisions only.

    i: step of n / stage: evaluation within the step / log_snr: log(alpha^2 / sigma^2) at it / last: whether i = n - 1 /
    next: log-SNR of the level that the step goes to, infinite at a clean end.
    """

    i: int
    n: int
    stage: int
    log_snr: float
    last: bool
    next: float = math.nan


class Part(ABC):  # noqa: B024 - the roles below have the abstract methods
    """What all roles share. remembers: whether it has state / reads: which state later evaluations of a step see, that
    of before the step ("previous") or what the first evaluation made of it ("current"); only the first one's is kept
    for the next step.
    """

    remembers: ClassVar[bool] = False
    reads: ClassVar[Literal["previous", "current"]] = "previous"

    def init(self, x: Tensor, n: int) -> State:
        """State before the first of n steps, for points x (B, *D). The empty tuple: nothing is remembered."""
        return ()

    @property
    def needs(self) -> tuple[Query, ...]:
        """Queries that will be asked, so that they can share a call. Forgetting one costs speed, never values."""
        return ()

    @property
    def told(self) -> tuple[Query, ...]:
        """Queries whose conditions are read, though nobody may ask them."""
        return ()

    @property
    def extra(self) -> tuple[str, ...]:
        """Networks asked with conditions that are made on the way (`Ask.told`), once for every such row of a sample."""
        return ()


class Shaper(Part):
    """A rule for a push once it is known. absolute: whether it holds lengths, which mean a push not yet scaled."""

    absolute: ClassVar[bool] = False

    @abstractmethod
    def shape(self, ask: Ask, push: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """The push (b, *D) to take instead, and the next state. `ask.base` is the x0 that is pushed."""


class Gate(Part):
    """Whether a term acts. A closed row is neither evaluated nor remembered: all state inside the term stands still.

    masked: whether `open` may answer row by row / latching: whether a row once closed stays closed.
    """

    masked: ClassVar[bool] = False
    latching: ClassVar[bool] = False

    @abstractmethod
    def open(self, step: Step, state: State) -> Decision:
        """The decision, before anything is evaluated, from the state before the step; outside any compiled code. A mask
        holds for all evaluations of a step.
        """

    def learns(self, step: Step) -> bool:
        """Whether `update` is due at this step."""
        return self.remembers

    def update(self, ask: Ask, step: Step, state: State) -> State:
        """The next state, from the answers at the open rows."""
        return state


class Source(Part):
    """Somebody other than the network who answers a query.

    masked: whether `open` may answer row by row / latching: whether a row once answered stays answered by it / fitted:
    whether it belongs to certain runs, which `check` then tells.
    """

    fitted: ClassVar[bool] = False
    masked: ClassVar[bool] = False
    latching: ClassVar[bool] = False

    @property
    @abstractmethod
    def query(self) -> Query:
        """What it answers. A run has at most one source for a query."""

    def check(self, facts: Mapping[str, str]) -> None:
        """Refuse a run that it was not fitted to, before the first step. facts: of `run_facts`."""

    @abstractmethod
    def open(self, step: Step, state: State) -> bool | Tensor:
        """Whether it answers: True, False or the rows (B,) that it answers."""

    def row(self, step: Step) -> Sequence[float]:
        """Numbers of this step that `answer` and `observe` compute with; they reach both as a tensor."""
        return ()

    @abstractmethod
    def answer(self, ask: Ask, step: Step, state: State, row: Tensor) -> Prediction:
        """The answer for the whole batch, after the network's answers of this point."""

    def observe(self, ask: Ask, step: Step, state: State, row: Tensor, answered: bool | Tensor) -> State:
        """The next state, after guidance. answered: what `open` had said."""
        return state
