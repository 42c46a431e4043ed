"""The settings of a training, checked when they are made, and the learning rate that follows from them.

    lr(i) = lr * min(1, (j + 1) / warmup, (n - j) / (decay * n)),   step i = 0 .. steps - 1 is step j of n of its cycle

A rise, a plateau and a straight fall to zero at the end: the schedule whose length can be chosen without theory. With
`cycles` above 1 it is repeated, each time over steps / cycles steps: a longer training passes through shorter, finished
ones. Reference: Haegele et al. 2024, arXiv 2405.18392 (constant rate with cooldown).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import final

from wayfield.core.errors import DTypeError, unknown_name
from wayfield.train.checks import check_number
from wayfield.train.ema import Average, HalfLifeEMA
from wayfield.train.levels import Levels, Uniform
from wayfield.train.losses import WEIGHTS, Weight

__all__ = ["TrainConfig", "learning_rate", "rate"]

_FREE = (
    "save_every",
    "snapshot_every",
    "sample_every",
)  # fields that a resumed run may change: they do not touch its numbers


@final
@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises DTypeError, RangeError or UnknownNameError at construction.

    steps, batch: optimiser steps, and samples in each over all processes / lr: peak rate of AdamW / warmup: steps /
    decay: the last fraction of a cycle, over which the rate falls to 0 / cycles: how often rise, plateau and fall are
    gone through / optimizer: "adamw", or "muon" for matrices and AdamW for the rest, see `train.muon` / muon_lr: peak
    rate of Muon / weight_decay: on matrices, not on vectors / betas: of AdamW / clip: largest norm of the gradient,
    None = any / weight: of the loss, see `losses.Weight` / levels: distribution of noise levels / drop: probability of
    replacing a sample's conditions by null / ema: average of the weights, None = none / precision: "fp32", or "bf16"
    autocast and matrix products of Muon / seed: of everything random / log_every: steps between reads of the loss /
    save_every: steps between checkpoints / snapshot_every: steps between snapshots of the average for `train.posthoc`,
    0 = none / sample_every: steps between sheets of samples, for a `train.watch` that draws them, and one at the end;
    0 = none.
    """

    steps: int = 1500
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 0
    decay: float = 0.3
    cycles: int = 1
    optimizer: str = "adamw"
    muon_lr: float = 0.02
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float | None = 1.0
    weight: str | Weight = "v"
    levels: Levels = field(default_factory=Uniform)
    drop: float = 0.1
    ema: Average | None = field(default_factory=HalfLifeEMA)
    precision: str = "fp32"
    seed: int = 0
    log_every: int = 50
    save_every: int = 500
    snapshot_every: int = 0
    sample_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "save_every"):
            check_number(name, getattr(self, name), 1, whole=True)
        for name in ("warmup", "snapshot_every", "sample_every"):
            check_number(name, getattr(self, name), 0, whole=True)
        check_number("cycles", self.cycles, 1, self.steps, whole=True)
        check_number("seed", self.seed, 0, 2**63 - 1, whole=True)
        for name in ("lr", "muon_lr"):
            check_number(name, getattr(self, name), 0, open_low=True)
        for name in ("decay", "drop"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("weight_decay", self.weight_decay, 0)
        if self.clip is not None:
            check_number("clip", self.clip, 0, open_low=True)
        self._check_betas()
        self._check_parts()

    def _check_betas(self) -> None:
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise DTypeError("betas", got=repr(self.betas), expected="two numbers", remedy="Write (0.9, 0.99).")
        object.__setattr__(self, "betas", tuple(self.betas))
        for beta in self.betas:
            check_number("betas", beta, 0, 1 - 1e-12)

    def _check_parts(self) -> None:
        for name, known in (("precision", ("fp32", "bf16")), ("optimizer", ("adamw", "muon"))):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        if isinstance(self.weight, str) and self.weight not in WEIGHTS:
            raise unknown_name("weight", self.weight, WEIGHTS)
        wanted = {"weight": (str, Weight), "levels": Levels, "ema": (Average, type(None))}
        for name, kind in wanted.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
                raise DTypeError(name, got=repr(value), expected=" or ".join(names), remedy="See TrainConfig.")

    def identity(self) -> dict[str, str]:
        """What a resumed run must agree on: every field that touches its numbers, as text."""
        return {f.name: repr(getattr(self, f.name)) for f in fields(self) if f.name not in _FREE}


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of step `step` in 0 .. steps - 1; see the formula above. No step's is zero."""
    return config.lr * rate(config, step)


def rate(config: TrainConfig, step: int) -> float:
    """The same as a part of the peak, in (0, 1]."""
    cycle = step * config.cycles // config.steps
    start, end = (-(-c * config.steps // config.cycles) for c in (cycle, cycle + 1))
    rise = (step - start + 1) / config.warmup if config.warmup else 1.0
    length = config.decay * (end - start)
    fall = (end - step) / length if length else 1.0
    return min(1.0, rise, fall)
