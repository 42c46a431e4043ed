r"""Judges of noisy points: the input scaling and the noise level that any network needs to read x at every level.

A judge answers judge(x, level) -> (b, K) or (b,) at any noise level, row by row. Points of different paths and levels
have different sizes, so its network sees them brought to one size, together with one bounded number of the level:

.. math:: \text{judge}(x, \text{level}) = F\Bigl(\frac{x}{\sqrt{\alpha^2 + \sigma^2}},\; c\Bigr), \qquad
   c = \tfrac14 \log\frac{\sigma}{\alpha}, \quad |c| \le 2.5

x: (b, *D) / alpha, sigma: () or (b,) / c: () or (b,). Both depend on the log-SNR alone, so a judge trained on one path
reads the points of every other. Reference for the level's number: Karras et al. 2022, arXiv 2206.00364, table 1.
"""

from __future__ import annotations

from typing import Protocol, final

import torch
from torch import Tensor, nn

from wayfield.core.shapes import expand

__all__ = ["Blind", "Noisy", "Scaled"]

_WIDEST = 2.5  # log-SNR of 20: beyond it float32 points are all data or all noise


class Scaled(Protocol):
    """Anything that knows the two scales of its points, each () or (b,): a `Level`, a `Landing`, a path's `Scales`."""

    @property
    def alpha(self) -> Tensor:
        """The scale of the data."""
        ...

    @property
    def sigma(self) -> Tensor:
        """The scale of the noise."""
        ...


@final
class Noisy(nn.Module):
    """A judge of noisy points. net: called as net(x_in, c), see the module; returns (b, K) or (b,), row by row."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, x: Tensor, level: Scaled) -> Tensor:
        """x (b, *D) at a level whose scales are () or (b,) -> what the network answers, (b, K) or (b,)."""
        alpha, sigma = (c.reshape(-1) if c.ndim else c for c in (level.alpha, level.sigma))
        size = torch.hypot(alpha, sigma)
        c = (0.25 * (sigma.log() - alpha.log())).clamp(-_WIDEST, _WIDEST)
        return self.net(x / expand(size, x), c)


@final
class Blind(nn.Module):
    """A classifier of clean data that is shown noisy points as if they were clean. net: called as net(x)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(net.training)

    def forward(self, x: Tensor, level: Scaled) -> Tensor:
        """x (b, *D) -> what the network answers."""
        return self.net(x)
