"""Everything random in a training, a pure function of (seed, step, position): samples, levels, noise, dropped labels.

A run that was interrupted, or is spread over other processes, must see the same numbers. So nothing is drawn from a
generator that moves: the sample at position k of the global batch of step i reads its own addresses.

    data      g = i * batch + k;  epoch e = g // N;  index = order_e[g mod N],  order_e = argsort of N uniforms
    level     uniforms(seed, k, i, stage 0) -> t            keep      uniforms(seed, k, i, stage 1) >= drop
    noise     SeededNoise(seed, k) at (i, stage 0)          order_e   uniforms(seed, n, e, stage 2), n < N

A process owns a range of positions (its share); a batch has B = len(share) rows. See `core.noise` for the addresses.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from wayfield.core.noise import Address, SeededNoise, uniforms
from wayfield.core.path import Path
from wayfield.data.dataset import Dataset
from wayfield.field.cond import Cond, Schema
from wayfield.train.config import TrainConfig
from wayfield.train.losses import drop_labels

__all__ = ["Batch", "draw", "indices", "share_of"]

_LEVEL, _KEEP, _ORDER = 0, 1, 2


class Batch(NamedTuple):
    """What `denoising_loss` needs: x0, eps (B, *D) float32; cond, each (B, ...); t (B,) float64. All on the host."""

    x0: Tensor
    cond: Cond
    t: Tensor
    eps: Tensor


def share_of(batch: int, rank: int, world: int) -> range:
    """The positions of the global batch that process `rank` of `world` owns; sizes differ by at most one."""
    return range(batch * rank // world, batch * (rank + 1) // world)


def indices(seed: int, size: int, batch: int, step: int, share: range) -> Tensor:
    """Indices (B,) into a dataset of `size` for positions `share` of `step`; an epoch visits each sample once."""
    g = torch.arange(share.start, share.stop) + step * batch
    epochs = g // size
    out = torch.empty_like(g)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        out[here] = _order(seed, size, epoch)[g[here] % size]
    return out


@lru_cache(maxsize=2)
def _order(seed: int, size: int, epoch: int) -> Tensor:
    return uniforms(seed, size, epoch, _ORDER).argsort(stable=True)


def draw(dataset: Dataset, schema: Schema, path: Path, config: TrainConfig, step: int, share: range) -> Batch:
    """The rows of step `step` in 0, 1, ... that belong to `share`. schema: the conditions to keep."""
    x0, cond = dataset.batch(indices(config.seed, len(dataset), config.batch, step, share))
    cond = {name: cond[name] for name in schema.fields}
    t = config.levels.times(uniforms(config.seed, share, step, _LEVEL), path)
    if config.drop:
        cond = drop_labels(cond, schema, uniforms(config.seed, share, step, _KEEP) >= config.drop)
    return Batch(x0, cond, t, SeededNoise(config.seed, share).draw(x0.shape[1:], Address(step)))
