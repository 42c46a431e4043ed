r"""Noise addressed by (seed, sample, step, stage), so that sample k is the same alone, in any batch and in any number
of processes.

There is no generator to carry: a draw is a pure function of its address. Samples share one generator per block of
max(1, 4096 // numel) neighbours, which keeps addressing cheap for small data; the numbers of a sample still depend on
its index alone.
Draws are made in float32 on the host and then moved, so every device and dtype sees the same noise.

=================  =================================================================================================
`SeededNoise`      independent draws, one address each
`BrownianNoise`    increments of one Brownian path per sample on a clock in [0, 1], z = (W(b) - W(a)) / sqrt(b - a):
                   a finer grid refines the same path, so samples hardly depend on the number of steps
`ReplayNoise`      draws recorded earlier, or supplied by the user
=================  =================================================================================================

Reference for the bridge tree: Li et al. 2020 (virtual Brownian tree).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, ShapeError, UnknownNameError
from wayfield.core.path import Path

__all__ = ["INITIAL", "Address", "BrownianNoise", "Noise", "RecordingNoise", "ReplayNoise", "SeededNoise", "uniforms"]

Samples = range | tuple[int, ...]
INITIAL = -1  # the step number under which the starting noise is drawn
_MASK = (1 << 64) - 1
_BLOCK = 4096


class Address(NamedTuple):
    """Where in a run a draw is used: step number (-1 before the first), stage within it, and its interval from time t
    to s.
    """

    step: int
    stage: int = 0
    t: float = 1.0
    s: float = 1.0


class Noise(ABC):
    """Standard normal draws for a fixed list of samples; `samples` holds their addresses, one per batch row."""

    samples: Samples

    @abstractmethod
    def draw(self, shape: Sequence[int], at: Address) -> Tensor:
        """Standard normal numbers, float32 on the host, shape (B, *shape) with B = len(samples)."""


@final
@dataclass(frozen=True)
class SeededNoise(Noise):
    """Independent noise. seed: any integer / samples: non-negative addresses; a picture keeps its noise wherever it is
    drawn.
    """

    seed: int
    samples: Samples

    def __init__(self, seed: int, samples: Sequence[int] | int) -> None:
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "samples", _addresses(samples))

    def draw(self, shape: Sequence[int], at: Address) -> Tensor:
        """See `Noise.draw`; only `at.step` and `at.stage` matter."""
        return _normal(self.samples, tuple(shape), self.seed, at.step, at.stage)


@final
@dataclass(frozen=True)
class BrownianNoise(Noise):
    """Noise of one Brownian path per sample and stage. The clock is t, or the log-SNR of `clock` (clipped to +-20) if a
    path is given.

    depth: the path is resolved to 2^-depth of the clock and linear below. A step costs about depth - log2(steps) + 2
    draws.
    """

    seed: int
    samples: Samples
    clock: Path | None = None
    depth: int = 16
    _tree: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __init__(self, seed: int, samples: Sequence[int] | int, clock: Path | None = None, depth: int = 16) -> None:
        if not 1 <= depth <= 40:
            raise RangeError("depth", got=depth, expected="1..40", remedy="16 resolves steps of 1e-4.")
        values = {"seed": seed, "samples": _addresses(samples), "clock": clock, "depth": depth, "_tree": {}}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def draw(self, shape: Sequence[int], at: Address) -> Tensor:
        """The path's increment over [at.s, at.t], scaled to unit variance; the starting noise is drawn as `SeededNoise`
        does.
        """
        shape = tuple(shape)
        if at.step == INITIAL:
            return _normal(self.samples, shape, self.seed, INITIAL, at.stage)
        a, b = sorted((self._u(at.t), self._u(at.s)))
        if a == b:
            raise RangeError(
                "interval", got=(at.t, at.s), expected="a positive length on the clock", remedy="Use the clock t."
            )
        sign = 1.0 if self._u(at.t) < self._u(at.s) else -1.0
        return (self._w(b, shape, at.stage) - self._w(a, shape, at.stage)).mul_(sign / math.sqrt(b - a)).float()

    def _u(self, t: float) -> float:
        if self.clock is None:
            return t
        level = float(self.clock.log_snr(torch.tensor(t, dtype=torch.float64)))
        return (20 - min(max(level, -20.0), 20.0)) / 40

    def _w(self, u: float, shape: tuple[int, ...], stage: int) -> Tensor:
        """W(u) by descending from [0, 1]; the nodes of the last descent are kept, so that neighbours share them."""
        key = (shape, stage)
        if key not in self._tree:
            zero = torch.zeros((len(self.samples), *shape), dtype=torch.float64)
            self._tree[key] = [(0.0, 1.0, zero, self._node(shape, stage, 0, 0))]
        stack = self._tree[key]
        while not stack[-1][0] <= u <= stack[-1][1]:
            stack.pop()
        while len(stack) <= self.depth:
            lo, hi, wlo, whi = stack[-1]
            mid, level = (lo + hi) / 2, len(stack)
            wmid = (wlo + whi) / 2 + self._node(shape, stage, level, int(lo * (1 << level))) * (math.sqrt(hi - lo) / 2)
            stack.append((mid, hi, wmid, whi) if u >= mid else (lo, mid, wlo, wmid))
        lo, hi, wlo, whi = stack[-1]
        return torch.lerp(wlo, whi, (u - lo) / (hi - lo))

    def _node(self, shape: tuple[int, ...], stage: int, level: int, index: int) -> Tensor:
        return _normal(self.samples, shape, self.seed ^ 0x42524F574E, (level << 42) + index, stage).double()


@final
@dataclass(frozen=True, eq=False)
class ReplayNoise(Noise):
    """Draws given in advance: (step, stage) -> tensor (B, *D); step -1 is the starting noise. As written by
    `RecordingNoise`.
    """

    draws: Mapping[tuple[int, int], Tensor]
    samples: Samples = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", range(len(next(iter(self.draws.values())))))

    def draw(self, shape: Sequence[int], at: Address) -> Tensor:
        """The recorded draw; raises UnknownNameError if there is none and ShapeError if it does not fit."""
        key = (at.step, at.stage)
        if key not in self.draws:
            raise UnknownNameError(
                "recorded noise",
                got=f"step {at.step}, stage {at.stage}",
                expected=f"one of {len(self.draws)} recorded draws",
                remedy="Replay with the solver and grid of the recording.",
            )
        out = self.draws[key]
        if tuple(out.shape[1:]) != tuple(shape):
            raise ShapeError(
                "recorded noise",
                got=tuple(out.shape[1:]),
                expected=tuple(shape),
                remedy="Replay data of the same shape.",
            )
        return out


@final
@dataclass(frozen=True, eq=False)
class RecordingNoise(Noise):
    """Passes on the draws of another noise and keeps them in `draws`, ready for `ReplayNoise`."""

    noise: Noise
    draws: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    samples: Samples = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", self.noise.samples)

    def draw(self, shape: Sequence[int], at: Address) -> Tensor:
        """See `Noise.draw`."""
        out = self.draws[at.step, at.stage] = self.noise.draw(shape, at)
        return out


def uniforms(seed: int, samples: Sequence[int] | int, step: int, stage: int = 0) -> Tensor:
    """One uniform number in (0, 1) per sample, float64 (B,), addressed like noise; used for training levels and label
    dropping.
    """
    return torch.special.ndtr(_normal(_addresses(samples), (), seed ^ 0x554E49, step, stage).double())


def _addresses(samples: Sequence[int] | int) -> Samples:
    out = range(samples) if isinstance(samples, int) else samples
    if not (isinstance(out, range) and out.step == 1):
        out = tuple(int(k) for k in out)
        if out == tuple(range(out[0], out[0] + len(out)) if out else ()):
            out = range(out[0], out[0] + len(out)) if out else out
    if not out or min(out) < 0:
        raise RangeError(
            "samples", got=samples, expected="at least one address, all >= 0", remedy="Give a count or range(8, 16)."
        )
    return out


def _mix(*words: int) -> int:
    """One well-spread 64-bit word from several integers (the finaliser of SplitMix64, folded)."""
    h = 0x9E3779B97F4A7C15
    for w in words:
        h = (h ^ (w & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        h = (h ^ (h >> 27)) * 0x94D049BB133111EB & _MASK
        h ^= h >> 31
    return h


def _runs(samples: Samples, block: int) -> Iterator[tuple[int, int, int, int]]:
    """(block number, offset in it, position in the batch, length) of neighbours that share a block."""
    k = 0
    while k < len(samples):
        b, r = divmod(samples[k], block)
        run = min(block - r, len(samples) - k) if isinstance(samples, range) else 1
        yield b, r, k, run
        k += run


def _normal(samples: Samples, shape: tuple[int, ...], seed: int, step: int, stage: int) -> Tensor:
    numel = max(1, math.prod(shape))
    block = max(1, _BLOCK // numel)
    out = torch.empty((len(samples), numel))
    buffer = torch.empty(block * numel)
    gen = torch.Generator()
    drawn, turned = -1, buffer
    for b, r, k, run in _runs(samples, block):
        if b != drawn:
            # the generator keeps only 32 bits of its seed; the upper word turns the buffer, so that two addresses
            # would have to agree in 44 bits or more before they shared their numbers
            word = _mix(seed, b, step, stage)
            gen.manual_seed(word & 0xFFFFFFFF)
            turned = buffer.normal_(generator=gen).roll((word >> 32) % len(buffer)).reshape(block, numel)
            drawn = b
        out[k : k + run] = turned[r : r + run]
    return out.reshape(len(samples), *shape)
