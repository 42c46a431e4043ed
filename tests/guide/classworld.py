"""A world of four classes, one Gaussian each, known exactly; what guidance by classes is tested in."""

from __future__ import annotations

import torch
from torch import Tensor

from wayfield.core import grid as G
from wayfield.core.exact import Mixture, isotropic_mixture
from wayfield.core.path import VP
from wayfield.field.binding import Query
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.sampling import Result, sample
from wayfield.solve import DDIM, DPM2M

K = 4
LABELS = torch.tensor([0, 1, 2, 3, 1])
GRID = G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)
SHORT = G.given(VP(), (0.5, 0.3))
WEAK = Query("cond", "weak")
MEANS = torch.tensor([[-1.0, 0.2, 0.0], [0.3, 1.0, -0.4], [0.9, -0.6, 0.5], [-0.2, -0.9, -0.8]], dtype=torch.float64)
PRIORS = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
X = 2 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def world(path=VP(), order=range(K), spread=0.2):
    """One Gaussian for each class, exact; label 4 is the whole mixture. order: of the classes."""
    order = list(order)
    net = isotropic_mixture(path, MEANS[order], spread, PRIORS[order])
    return Denoiser(net, path, "x0", shape=(3,), schema=Schema({"label": Field(values=K + 1)}, {"label": K}))


DEN, POOR = world(), world(spread=0.6)


def exact(den=DEN):
    """The classifier of noisy points, up to a constant."""
    assert isinstance(den.net, Mixture)
    return lambda x, level: den.net.posterior(x, level.c_time).log() + 3.0


def linear(x0: Tensor) -> Tensor:
    """Some classifier of clean data."""
    directions = torch.tensor([[1, 0, 0.5], [-0.5, 1, 0], [0.3, -1, 1], [0, 0.2, -1.5]], dtype=torch.float64)
    return 2 * x0 @ directions.to(x0).T


def run(guidance, labels=LABELS, samples=5, den=DEN, **options) -> Result:
    """A run of six steps."""
    options = {"dtype": torch.float64, "solver": DPM2M(), "nets": {"weak": POOR}, **options}
    return sample(den, GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options)


def one_step(guidance) -> Tensor:
    """The guided x0 at X and time 0.5, from a single step."""
    given = {"cond": {"label": LABELS}, "nets": {"weak": POOR}, "guidance": guidance}
    got = sample(DEN, SHORT, x=X, samples=5, solver=DDIM(), dtype=torch.float64, **given).x
    (a, an), (s, sn) = SHORT.scales[:2]
    return (got - sn / s * X) / (an - sn * a / s)


def by_class(den=DEN, x=X, t=0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions for every class (K, B, 3), those of the samples' own, and that without a class."""
    each = torch.stack([den(x, t, {"label": k}).x0 for k in range(K)])
    return each, each[LABELS, torch.arange(5)], den(x, t).x0


def close(got, want, tolerance=1e-12):
    """Equal up to rounding."""
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
