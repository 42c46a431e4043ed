r"""Experts: one clean network becomes a judge at every noise level, by one small adapter for each range of levels.

A network of clean data fails on noisy points, and a single one taught all levels is mediocre at each of them. So the
noise axis is cut into N ranges, and range n has an expert of its own:

.. math:: f_n(x, \text{level}) = F_{\theta + \Delta_n}\Bigl(\frac{x}{\sqrt{\alpha^2 + \sigma^2}}\Bigr), \qquad
   \text{range } n: \; L_n \le \tau < L_{n + 1} \;\text{ for }\; \tau = -\log \frac{\alpha^2}{\sigma^2}

theta: of the clean network, frozen and shared / Delta_n: of adapter n, see `lora` / L_n: the edges, rising with the
noise, L_0 = -inf, L_N = inf. In the time of a path a range is half-open, [t_n, t_{n+1}): a level at an edge belongs to
the noisier side. Adapters start at 0, so untrained experts are the clean network as it is, shown noisy points.

One level for all rows, known to the device alone, takes the adapter out of a stack by its number: nothing is read by
the host, and a call costs one call of the network. With a level per row every expert answers for every row and each
row keeps its own's, at N times the cost; grouping rows would have to wait for the device. Where experts change over,
the answer jumps: fixed grids step across, adaptive solvers need a loose tolerance.

x: (b, *D) / level: scales () or (b,) / answers: whatever the network returns, (b, ...).

Reference: Go et al. 2022, arXiv 2212.05973 (PPAP), whose experts are N copies chosen by the first sample's time.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wayfield.core.errors import DTypeError, RangeError
from wayfield.core.path import Path
from wayfield.core.schedule import Tabulated
from wayfield.core.shapes import expand
from wayfield.judge.lora import Adapter, LoRA, adapted
from wayfield.judge.noisy import Scaled

__all__ = ["Expert", "Experts", "NoiseRanges"]

_ROUNDING = 1e-5  # how far float32 scales may be off a level, in log-SNR


@final
@dataclass(frozen=True)
class NoiseRanges:
    """Ranges of noise levels, numbered from clean to noisy. edges: log-SNR between neighbours, falling; () is one
    range.

    A level within 1e-5 of an edge counts as at it, so that rounding does not decide. Raises RangeError for edges that
    are not finite or do not fall.
    """

    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(float(e) for e in self.edges))
        falling = all(a > b for a, b in pairwise(self.edges))
        if not falling or not all(math.isfinite(e) for e in self.edges):
            remedy = "Give log-SNR from clean to noisy, or use from_times."
            raise RangeError("edges of noise ranges", got=self.edges, expected="finite and falling", remedy=remedy)

    @staticmethod
    def from_times(times: Sequence[float], path: Path) -> NoiseRanges:
        """Ranges between rising times in (0, 1) of a path's clock."""
        t = torch.tensor(list(times), dtype=torch.float64)
        if bool(((t <= 0) | (t >= 1)).any()):
            remedy = "Leave the ends out: the first range reaches to the data and the last to pure noise."
            raise RangeError("edges of noise ranges", got=list(times), expected="times in (0, 1)", remedy=remedy)
        return NoiseRanges(tuple(path.log_snr(t).tolist()))

    @staticmethod
    def from_count(count: int, path: Path) -> NoiseRanges:
        """`count` ranges of equal length in the path's time. Of the T times of a discrete schedule, number
        floor(n T / count) is the first of range n; the edge lies halfway between it and its neighbour.

        Raises RangeError for count < 1 or > T.
        """
        most = path.T if isinstance(path, Tabulated) else math.inf
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most:
            raise RangeError("noise ranges", got=count, expected=f"an integer in 1..{most}", remedy="The paper has 5.")
        if isinstance(path, Tabulated):  # its time number i stands at t = (i + 1) / T
            cuts = [(n * path.T // count + 0.5) / path.T for n in range(1, count)]
            return NoiseRanges(tuple(path.log_snr(torch.tensor(cuts, dtype=torch.float64)).tolist()))
        return NoiseRanges.from_times([n / count for n in range(1, count)], path)

    @property
    def count(self) -> int:
        """Number of ranges N."""
        return len(self.edges) + 1

    def index(self, level: Scaled) -> Tensor:
        """The range of each level, int64 () or (b,), without a read by the host."""
        alpha, sigma = (c.reshape(-1) if c.ndim else c for c in (level.alpha, level.sigma))
        log_snr = 2 * (alpha.log() - sigma.log())
        edges = torch.tensor(self.edges, dtype=log_snr.dtype, device=log_snr.device)
        return (log_snr[..., None] <= edges + _ROUNDING).sum(-1)

    def times(self, n: int, path: Path) -> tuple[float, float]:
        """The first and last time of range n on a path's clock, inside [0, 1]. Raises RangeError for another n, or if
        the path has no such level.
        """
        if not 0 <= n < self.count:
            raise RangeError("number of a noise range", got=n, expected=f"0..{self.count - 1}", remedy="Count from 0.")
        edges = path.time(torch.tensor(self.edges, dtype=torch.float64)).clamp(0, 1).tolist()
        first, last = (0.0, *edges)[n], (*edges, 1.0)[n]
        if not first < last:
            remedy = "Cut the ranges by the path that the experts are trained on."
            raise RangeError(f"noise range {n}", got=f"no level on {path}", expected="some", remedy=remedy)
        return first, last


@final
class Experts(nn.Module):
    """A clean network with one adapter for each noise range: experts(x, level) -> what the network returns.

    base: the clean network, called as base(x); copied, frozen, and kept in evaluation mode, so that a batch norm's
    running statistics are those of clean data and no sample sees another / ranges: of noise levels / adapter: what of
    the network is adapted / seed: of the adapters.
    Raises DTypeError for a base that is no module, and as `Adapter`.
    """

    def __init__(self, base: nn.Module, ranges: NoiseRanges, adapter: LoRA = LoRA(), *, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(base, nn.Module):
            remedy = "Wrap a function into a module that holds its weights."
            raise DTypeError("network of experts", got=type(base).__name__, expected="an nn.Module", remedy=remedy)
        self.base = copy.deepcopy(base).requires_grad_(False)
        self.ranges, self.settings = ranges, adapter
        self.adapters = nn.ModuleList(Adapter(base, adapter, seed=seed + n) for n in range(ranges.count))
        self.eval()

    def train(self, mode: bool = True) -> Experts:
        """As every module, but the shared network stays in evaluation mode."""
        super().train(mode)
        self.base.eval()
        return self

    @property
    def share(self) -> float:
        """Parameters of one expert, as a share of the clean network's."""
        return self.adapter(0).size / sum(p.numel() for p in self.base.parameters())

    def adapter(self, n: int) -> Adapter:
        """The own parameters of expert n; its state_dict is all that need be kept of it."""
        adapter = self.adapters[n]
        assert isinstance(adapter, Adapter)
        return adapter

    def forward(self, x: Tensor, level: Scaled) -> Tensor:
        """x (b, *D) at a level whose scales are () or (b,) -> the answers of the experts in charge, (b, ...)."""
        index = self.ranges.index(level)
        if index.ndim == 0:
            return self._call(x, level, adapted(self.base, self._own(index), self.settings.scale))
        each = torch.stack([self.answer(n, x, level) for n in range(self.ranges.count)])
        return each[index, torch.arange(len(x), device=x.device)]

    def answer(self, n: int, x: Tensor, level: Scaled) -> Tensor:
        """What expert n says, in charge or not."""
        return self._call(x, level, self.adapter(n).weights(self.base))

    def merged(self, n: int) -> nn.Module:
        """Expert n as a network of its own, called as the clean one; no longer tied to this."""
        net = copy.deepcopy(self.base)
        net.load_state_dict({k: v.detach() for k, v in self.adapter(n).weights(self.base).items()}, strict=False)
        return net

    def _own(self, index: Tensor) -> dict[str, Tensor]:
        """The parameters of the adapter whose number only the device knows."""
        each = [dict(self.adapter(n).own.items()) for n in range(self.ranges.count)]
        return {key: torch.stack([own[key] for own in each]).index_select(0, index.reshape(1))[0] for key in each[0]}

    def _call(self, x: Tensor, level: Scaled, weights: dict[str, Tensor]) -> Tensor:
        alpha, sigma = (c.reshape(-1) if c.ndim else c for c in (level.alpha, level.sigma))
        return functional_call(self.base, weights, (x / expand(torch.hypot(alpha, sigma), x),))


@final
class Expert(nn.Module):
    """One of the experts alone, for any level: what is trained on its range."""

    def __init__(self, experts: Experts, n: int) -> None:
        super().__init__()
        self.experts, self.n = experts, n

    def forward(self, x: Tensor, level: Scaled) -> Tensor:
        """x (b, *D) -> (b, ...)."""
        return self.experts.answer(self.n, x, level)
