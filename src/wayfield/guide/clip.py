r"""Clipping: keep the clean prediction inside the range that the data have, after any guidance.

.. math:: \hat{x}_0 \leftarrow \mathrm{clip}(\hat{x}_0, \mathrm{low}, \mathrm{high}), \qquad
   \hat\varepsilon \leftarrow (x - \alpha \hat{x}_0) / \sigma

The noise member is made again from the clipped x0, so that the pair stays consistent. For pixels only: latents have no
range. Noise predictors need it on schedules that end almost without signal, where x0 = (x - sigma eps)/alpha multiplies
their error by 1/alpha.

Reference: Ho et al. 2020, whose samplers clip at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.core.predict import Prediction
from wayfield.field.ask import Ask, Query
from wayfield.guide.roles import Guidance, Plain, State

__all__ = ["Clip"]


@final
@dataclass(frozen=True)
class Clip(Guidance):
    """Clip the x0 of another guidance to [low, high]; costs no evaluation. Raises RangeError unless low < high."""

    inner: Guidance = Plain()
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise RangeError("clip range", got=(self.low, self.high), expected="low < high", remedy="Swap them.")

    @property
    def branches(self) -> int:
        """Those of the inner guidance."""
        return self.inner.branches

    def init(self, x: Tensor) -> State:
        """That of the inner guidance."""
        return self.inner.init(x)

    def needs(self) -> tuple[Query, ...]:
        """Those of the inner guidance."""
        return self.inner.needs()

    def __call__(self, ask: Ask, state: State) -> tuple[Prediction, State]:
        """See `Guidance`."""
        pred, state = self.inner(ask, state)
        return ask.point(pred.x0.clamp(self.low, self.high)), state
