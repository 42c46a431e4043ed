r"""The noisy cone: a posterior shaped like a ring, two guides, and five bounds, each one line over the same programs.

.. math::
    x, y \sim N(0, 10), \quad z \sim N(r, 0.1 + r / 100), \; r = x^2 + y^2, \quad \text{observed } z = 5

The mean-field guide sits on one side of the ring. The other draws an angle u first, and x and y round it; their density
is an integral over u, which hvi, iwhvi and diwhvi estimate. log P(z) = -5.3232 by quadrature.

Shapes: independent runs are rows: parameters (R, 4) or (R, 2), z (R,); each row is trained by its own gradient, since
the gradient of a sum over rows is that of each.

Reference: Becker et al. 2024, arXiv 2406.15742, table 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.distributions import Normal, Uniform

from wayfield import vi
from wayfield.progress import track
from wayfield.vi import Objective
from wayfield.vi.program import Handle

__all__ = ["BOUNDS", "EVIDENCE", "Bound", "density", "expressive", "mean_field", "model", "trained"]

EVIDENCE = -5.323232
WIDTH = torch.tensor(10.0)


def model(h: Handle, z: Tensor, theta: Tensor) -> None:
    """A point, and how far out it is, seen with noise. z: (R,)."""
    x, y = (h.sample(name, Normal(torch.zeros(()), WIDTH)) for name in "xy")
    r = x.square() + y.square()
    h.observe("z", Normal(r, 0.1 + r / 100), z)


def mean_field(h: Handle, z: Tensor, theta: Tensor) -> None:
    """x and y apart. theta: means and log stds, (R, 4)."""
    for k, name in enumerate("xy"):
        h.sample(name, Normal(theta[..., k], theta[..., 2 + k].exp()))


def expressive(h: Handle, z: Tensor, theta: Tensor) -> None:
    """An angle, and a point near the ring there. theta: log stds, (R, 2)."""
    angle = 2 * math.pi * h.sample("u", Uniform(torch.zeros(()), torch.ones(())))
    for k, (name, side) in enumerate(zip("xy", (torch.cos, torch.sin), strict=True)):
        h.sample(name, Normal(5**0.5 * side(angle), theta[..., k].exp()))


RING = vi.marginal(expressive, keep=("x", "y"))


@final
@dataclass(frozen=True)
class Bound:
    """One line of the table. make: the objective with so many samples / start: of theta / samples: of a step / paper:
    the value in the paper's artifact.
    """

    make: Callable[[int], Objective]
    start: tuple[float, ...]
    samples: int
    paper: float


BOUNDS: Mapping[str, Bound] = {
    "ELBO": Bound(lambda s: vi.elbo(model, mean_field, s, batch_dims=1), (0, 0, 1, 1), 64, -8.08),
    "IWELBO(5)": Bound(lambda s: vi.iwelbo(model, mean_field, 5, s, batch_dims=1), (3, 0, 1, 1), 1, -7.79),
    "HVI": Bound(lambda s: vi.hvi(model, RING, s, batch_dims=1), (0, 0), 64, -9.75),
    "IWHVI(5)": Bound(lambda s: vi.iwhvi(model, RING, 5, s, batch_dims=1), (0, 0), 64, -8.18),
    "DIWHVI(5,5)": Bound(lambda s: vi.diwhvi(model, RING, 5, 5, s, batch_dims=1), (0, 0), 64, -7.33),
}


def trained(name: str, runs: int, steps: int, draws: int, seed: int = 0, lr: float = 1e-3) -> dict[str, Any]:
    """Plain gradient ascent of `runs` independent runs, along rows; the bound of each by `draws` fresh draws.

    Returns {"bound": one per run, "theta": (runs, parameters)}.
    """
    bound, z = BOUNDS[name], torch.full((runs,), 5.0)
    theta = torch.tensor(bound.start, dtype=torch.float32).repeat(runs, 1).requires_grad_()
    objective = bound.make(bound.samples)
    for step in track(range(steps), f"cone: {name}"):
        total = objective(z, theta, seed=seed << 32 | step).surrogate * runs
        (slope,) = torch.autograd.grad(total, theta)
        with torch.no_grad():
            theta += lr * slope
    with torch.no_grad():
        rows, final = torch.full((draws,), 5.0), theta.detach()
        parts = [float(bound.make(1)(rows, t, seed=(seed + 1) << 32 | steps + k).value) for k, t in enumerate(final)]
    return {"bound": parts, "theta": final}


def density(x: Tensor, y: Tensor) -> Tensor:
    """The posterior's density up to a factor, at points of any shape."""
    r = x.square() + y.square()
    scale = 0.1 + r / 100
    return (-0.5 * ((5 - r) / scale).square() - scale.log() - 0.5 * r / WIDTH.square()).exp()
