"""A world in which fine-tuning is known exactly, small enough for tests: a Gaussian with a linear reward."""

import torch
from torch import Tensor, nn

from wayfield.core.path import Straight
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser

SCHEMA = Schema({"label": Field(values=3)}, {"label": 2})


class Shifted(nn.Module):
    """The exact x0-denoiser of N(m, S I) with a mean that can be trained, one for each label."""

    def __init__(self, means: Tensor, variance: float = 0.25) -> None:
        super().__init__()
        self.means, self.variance = nn.Parameter(means.clone()), variance

    def forward(self, x: Tensor, time: Tensor, cond: dict) -> Tensor:
        """E[x0 | x]."""
        t = time.reshape(-1, 1) if time.ndim else time
        a, m = 1 - t, self.means[cond["label"]]
        return m + a * self.variance / (a**2 * self.variance + t**2) * (x - a * m)


def denoiser(means: Tensor | None = None) -> Denoiser:
    """Two labels and their null in the plane."""
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 0.0]]) if means is None else means
    return Denoiser(Shifted(means), Straight(), "x0", schema=SCHEMA, shape=(2,))
