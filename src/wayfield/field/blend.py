"""A guided answer that is no more than a weighted sum of answers, evaluated as one.

Most guidance of most runs is that. Nobody else looks at the single answers then, so nothing is kept and little is
done: what stands here is what every step of such a run pays beside its network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from wayfield.core.predict import Prediction
from wayfield.core.shapes import expand
from wayfield.field.binding import Call, Query
from wayfield.field.denoiser import Level

__all__ = ["Blend", "along", "at_point"]


class Blend(NamedTuple):
    """origin + sum of weight * (answer - origin).

    calls: network calls, of whole branches / rows: in them / origin: place of the origin's answer among all / others:
    places and weights of the others.
    """

    calls: tuple[Call, ...]
    rows: int
    origin: int
    others: tuple[tuple[int, float], ...]

    @staticmethod
    def of(calls: tuple[Call, ...], origin: Query, weights: Mapping[Query, float]) -> Blend:
        """From the weights of the answers other than the origin's."""
        places = {query: k for k, query in enumerate(query for call in calls for query in call.queries)}
        rows = sum(call.total for call in calls)
        return Blend(calls, rows, places[origin], tuple((places[q], w) for q, w in weights.items()))

    def __call__(self, x: Tensor, levels: Mapping[str, Level]) -> Prediction:
        """The pair at points x (B, *D). levels: by network."""
        answers: list[Tensor] = []
        for call in self.calls:
            x0 = call.clean(x, levels)
            answers += (x0,) if len(call.sizes) == 1 else x0.split_with_sizes(call.sizes)
        base = out = answers[self.origin]
        for k, weight in self.others:  # to the bit what a term does alone
            out = along(out, base, answers[k], weight)
        return at_point(out, x, levels["main"])


def along(x0: Tensor, base: Tensor, other: Tensor, weight: float) -> Tensor:
    """x0 + weight * (other - base); one operation where x0 is the base itself."""
    if x0 is base:
        return torch.lerp(base, other, weight)
    return torch.add(x0, other - base, alpha=weight)


def at_point(x0: Tensor, x: Tensor, level: Level) -> Prediction:
    """The pair whose x0 is given and whose eps is the one that x then has, computed when first used.

    level: numbers () or (b,).
    """
    if level.alpha.ndim:
        level = level.map(lambda c: expand(c, x))
    return Prediction(x0, lambda: torch.addcmul(level.point_x * x, level.point_x0, x0), True)
