"""Distances of samples to real pictures, and the same of real pictures to each other: the floor they are compared with.

A Fréchet distance of N samples is never 0, even for a perfect model: its moments come from finite numbers. So each is
reported beside that of N other real pictures to the same reference. A model far above this floor is worse than real;
one below it is nearer to the reference than fresh pictures are, which may mean that it repeats its training pictures.
That is what the second measure is for:

    nearest ratio = mean_k min_j |x_k - y_j| / mean_i min_j |r_i - y_j|,     y: training pictures, r: held-out pictures

It is 1 for fresh pictures of the same kind, and falls towards 0 as a model learns pictures by heart.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from wayfield.data.dataset import Dataset
from wayfield.measure import Moments, SmallSampleWarning, frechet_distance

__all__ = ["evenly", "features_of", "frechet", "nearest", "nearest_ratio"]

_BATCH = 256


def features_of(features: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Features (N, d) of pictures (N, *D), taken by the batch and without gradients."""
    with torch.no_grad():
        return torch.cat([features(part) for part in pictures.split(_BATCH)])


def frechet(real: Tensor | Moments, fake: Tensor) -> float:
    """Fréchet distance of features, also of few samples: every one here stands beside a floor with the same bias."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSampleWarning)
        return frechet_distance(real, fake, allow_small=True)


def nearest(x: Tensor, to: Tensor) -> float:
    """Mean distance of the rows of x (N, *D) to the nearest row of `to` (M, *D)."""
    ways = to.flatten(1)
    return float(torch.cat([torch.cdist(part, ways).min(1).values for part in x.flatten(1).split(_BATCH)]).mean())


def nearest_ratio(x: Tensor, held_out: Tensor, train: Tensor) -> float:
    """The ratio above."""
    return nearest(x, train) / nearest(held_out, train)


def evenly(dataset: Dataset, n: int) -> tuple[Tensor, dict[str, Tensor]]:
    """n samples spread evenly over a dataset, all of it if it has fewer, and their conditions."""
    count = min(n, len(dataset))
    x, cond = dataset.batch(torch.arange(count) * len(dataset) // count)
    return x, dict(cond)
