"""The settings of a training, checked when they are made, and the learning rate that follows from them.

    lr(i) = lr * min(1, (i + 1) / warmup, (steps - i) / (decay * steps)),   i = 0 .. steps - 1

A rise, a plateau and a straight fall to zero at the end: the schedule whose length can be chosen without theory.
Reference: Haegele et al. 2024, arXiv 2405.18392 (constant rate with cooldown).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import final

from wayfield.core.errors import DTypeError, unknown_name
from wayfield.train.checks import check_number
from wayfield.train.ema import Average, HalfLifeEMA
from wayfield.train.levels import Levels, Uniform
from wayfield.train.losses import WEIGHTS, Weight

__all__ = ["TrainConfig", "learning_rate"]

_FREE = ("save_every", "snapshot_every")  # fields that a resumed run may change: they do not touch its numbers


@final
@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises DTypeError, RangeError or UnknownNameError at construction.

    steps, batch: optimiser steps, and samples in each over all processes / lr: peak rate of AdamW / warmup: steps /
    decay: the last fraction of the steps, over which the rate falls to 0 / weight_decay: on matrices, not on vectors /
    betas: of AdamW / clip: largest norm of the gradient, None = any / weight: of the loss, see `losses.Weight` /
    levels: distribution of noise levels / drop: probability of replacing a sample's conditions by null /
    ema: average of the weights, None = none / precision: "fp32", or "bf16" autocast / seed: of everything random /
    log_every: steps between reads of the loss / save_every: steps between checkpoints /
    snapshot_every: steps between snapshots of the average for `train.posthoc`, 0 = none.
    """

    steps: int = 1500
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 0
    decay: float = 0.3
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

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "save_every"):
            check_number(name, getattr(self, name), 1, whole=True)
        for name in ("warmup", "snapshot_every"):
            check_number(name, getattr(self, name), 0, whole=True)
        check_number("seed", self.seed, 0, 2**63 - 1, whole=True)
        check_number("lr", self.lr, 0, open_low=True)
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
        if self.precision not in ("fp32", "bf16"):
            raise unknown_name("precision", self.precision, ("fp32", "bf16"))
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
    """The rate of step `step` in 0 .. steps - 1; see the formula above. The last step's is positive."""
    rise = (step + 1) / config.warmup if config.warmup else 1.0
    length = config.decay * config.steps
    fall = (config.steps - step) / length if length else 1.0
    return config.lr * min(1.0, rise, fall)
