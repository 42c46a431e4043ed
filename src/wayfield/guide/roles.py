"""What a guidance is: questions to an `Ask`, and the pair (x0, eps) that the solver then uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from wayfield.core.predict import Prediction
from wayfield.field.ask import COND, Ask, Query

__all__ = ["Guidance", "Plain", "State"]

State = tuple


class Guidance(ABC):
    """A pure rule from answers to a prediction. State, if any, is a tuple of batch-first tensors, passed in and
    returned.
    """

    def init(self, x: Tensor) -> State:
        """State before the first step, for points x (B, *D)."""
        return ()

    @property
    @abstractmethod
    def branches(self) -> int:
        """Rows per sample if nothing is skipped; what is saved against it is reported as `skipped`."""

    @abstractmethod
    def needs(self) -> tuple[Query, ...]:
        """Queries that will certainly be asked, so that they can share a call. Forgetting one costs speed, never
        values.
        """

    @abstractmethod
    def __call__(self, ask: Ask, state: State) -> tuple[Prediction, State]:
        """The guided pair at this point, and the next state."""


@final
@dataclass(frozen=True)
class Plain(Guidance):
    """No guidance: the conditional prediction as it is (unconditional for a model without conditions)."""

    @property
    def branches(self) -> int:
        """1."""
        return 1

    def needs(self) -> tuple[Query, ...]:
        """The condition."""
        return (COND,)

    def __call__(self, ask: Ask, state: State) -> tuple[Prediction, State]:
        """See `Guidance`."""
        return ask(COND)[0], state
