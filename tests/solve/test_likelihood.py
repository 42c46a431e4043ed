import math

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import GridError, RangeError, UnknownNameError
from wayfield.core.exact import gaussian
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG
from wayfield.solve.likelihood import bits_per_dim, log_likelihood


def climb(path, steps=60):
    return G.exponential(path, steps, sigma_min=0.03, sigma_max=18.0).reversed()


def at(t):
    return torch.tensor(t, dtype=torch.float64)


@pytest.mark.parametrize("label", [None, 0, 1])
def test_mixture(path, mixture, randn64, label):
    """The density at the grid's first level in closed form, given the one at its last."""
    den, x, grid = mixture(path, d=2), 0.5 * randn64(6, 2), climb(path, 150)
    labels = None if label is None else torch.full((6,), label)
    got = log_likelihood(
        den,
        x,
        grid,
        cond=None if label is None else {"label": label},
        top=lambda y: den.net.log_prob(y, at(grid.t[-1]), labels),
    )
    torch.testing.assert_close(got, den.net.log_prob(x, at(grid.t[0]), labels), rtol=0, atol=1e-4)


def test_fourth_order(path, randn64):
    net = gaussian(path, torch.zeros(3, dtype=torch.float64), torch.tensor(0.49, dtype=torch.float64))
    den, x = Denoiser(net, path, "x0"), randn64(5, 3)
    errors = []
    for steps in (40, 80):
        grid = climb(path, steps)
        got = log_likelihood(den, x, grid, top=lambda y, t=grid.t[-1]: net.log_prob(y, at(t)))
        errors.append(float((got - net.log_prob(x, at(grid.t[0]))).abs().max()))
    assert 3.5 < math.log2(errors[0] / errors[1]) < 4.5
    assert errors[1] < 2e-5


def test_default_top_is_pure_noise(path, randn64):
    """For unit-variance data on the EDM scale the usual approximation is off by about d/2 log(1 + 1/sigma_T^2)."""
    net = gaussian(path, torch.zeros(3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    den, x, grid = Denoiser(net, path, "x0"), randn64(200, 3), climb(path)
    error = log_likelihood(den, x, grid) - net.log_prob(x, at(grid.t[0]))
    assert abs(float(error.mean())) < 2 * 3 / 18.0**2


def test_hutchinson_is_unbiased(path, mixture, randn64):
    """Mean over 400 probes within 5 standard errors; one probe is the mean of one."""
    den, grid = mixture(path, d=3), climb(path, 12)
    x = 0.5 * randn64(1, 3)
    exact = log_likelihood(den, x, grid)
    many = log_likelihood(den, x.expand(400, 3), grid, trace="hutchinson", seed=1)
    assert abs(float(many.mean() - exact[0])) < 5 * float(many.std()) / math.sqrt(400) + 1e-9
    averaged = log_likelihood(den, x, grid, trace="hutchinson", probes=400, seed=2)
    assert abs(float(averaged - exact)) < 5 * float(many.std()) / math.sqrt(400) + 1e-9


def test_batch_independence(mixture, path, randn64):
    den, x, grid = mixture(path, d=2), 0.5 * randn64(4, 2), climb(path, 6)
    whole = log_likelihood(den, x, grid, trace="hutchinson", guidance=CFG(1.5), cond={"label": 1})
    alone = log_likelihood(den, x[2:3], grid, trace="hutchinson", samples=[2], guidance=CFG(1.5), cond={"label": 1})
    torch.testing.assert_close(alone[0], whole[2], rtol=1e-10, atol=1e-10)


def test_bits_per_dim():
    """A uniform density over the 256 levels of [-1, 1] costs 8 bits."""
    log_p = torch.tensor([-3 * math.log(2.0 * 256 / 255)])
    assert float(bits_per_dim(log_p, 3)) == pytest.approx(8.0, abs=1e-5)


def test_bad_input(mixture, path, randn64):
    den, x = mixture(path, d=2), randn64(2, 2)
    with pytest.raises(GridError):
        log_likelihood(den, x, G.karras(path, 5, sigma_min=0.1, sigma_max=10.0))
    with pytest.raises(RangeError):
        log_likelihood(den, x, climb(path), trace="hutchinson", probes=0)
    with pytest.raises(UnknownNameError):
        log_likelihood(den, x, climb(path), trace="hutchinsen")
