"""Shared by all tests: one thread, so that results do not depend on the machine's load, and exact worlds to test in."""

import pytest
import torch

from wayfield.core.exact import isotropic_mixture
from wayfield.core.path import EDM, VE, VP, Cosine, Path, Straight, Trig
from wayfield.core.schedule import tabulated
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser

torch.set_num_threads(1)

PATHS = {
    "straight": Straight(),
    "trig": Trig(),
    "vp": VP(),
    "cosine": Cosine(),
    "ve": VE(0.02, 20.0),
    "edm": EDM(20.0),
    "tabulated": tabulated("linear"),
}


@pytest.fixture(params=list(PATHS), ids=list(PATHS))
def path(request) -> Path:
    return PATHS[request.param]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def mixture_denoiser(path: Path, d: int = 1, kind: str = "x0", spread: float = 0.09) -> Denoiser:
    """Three components of variance `spread` in two classes, exact; label 2 is the whole mixture."""
    means = torch.tensor([[-1.0], [0.2], [1.1]], dtype=torch.float64).repeat(1, d)
    means[:, 1:] += 0.3 * randn(3, d - 1, seed=5)
    weights = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    net = isotropic_mixture(path, means, spread, weights, torch.tensor([0, 1, 1]))
    schema = Schema({"label": Field(values=3)}, {"label": 2})
    return Denoiser(net, path, kind, shape=(d,), schema=schema)


@pytest.fixture
def randn64():
    return randn


@pytest.fixture
def mixture():
    return mixture_denoiser
