"""Stochastic steps: the card's formula, marginals of the flow, densities against torch's, and what has none."""

import math

import pytest
import torch
from tests.conftest import mixture_denoiser, randn

from wayfield.core import grid as G
from wayfield.core.errors import GridError, RangeError, UnsupportedError
from wayfield.core.exact import gaussian
from wayfield.core.noise import ReplayNoise
from wayfield.core.path import EDM, VP, Straight, Trig
from wayfield.field.denoiser import Denoiser
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, Euler, Heun
from wayfield.tune import FlowSDE, Transitions

F64 = torch.float64


def probed(model, grid, solver, x, noise):
    """One step from points x with the given noise."""
    options = {"samples": len(x), "x": x, "noise": ReplayNoise({(0, 0): noise}), "dtype": F64}
    return sample(model, G.given(grid.path, grid.t[:2]), solver=solver, **options).x


@pytest.mark.parametrize("t", [0.9, 0.5, 0.1])
def test_the_step_is_the_one_of_the_paper(t):
    """On the straight path: x (1 + b^2 d / (2 s)) + v (1 + b^2 (1 - s) / (2 s)) d, noise b sqrt(-d)."""
    model, x, z, d = mixture_denoiser(Straight(), 2), randn(4, 2), randn(4, 2, seed=1), -0.1
    b = 0.7 * math.sqrt(t / (1 - t))
    x0 = model(x, t).x0
    v = (x - x0) / t
    want = x * (1 + b**2 * d / (2 * t)) + v * (1 + b**2 * (1 - t) / (2 * t)) * d + b * math.sqrt(-d) * z
    got = probed(model, G.given(Straight(), (t, t + d)), FlowSDE(), x, z)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_at_pure_noise_the_next_signal_stands_in():
    """sigma = 1 in the denominator is replaced by the second value of the grid."""
    model, x, z = mixture_denoiser(Straight(), 2), randn(4, 2), randn(4, 2, seed=1)
    got = probed(model, G.given(Straight(), (1.0, 0.8)), FlowSDE(), x, z)
    b2 = 0.49 / 0.2
    v = x - model(x, 1.0).x0
    want = x * (1 - b2 * 0.1) - 0.2 * v + math.sqrt(0.2 * b2) * z
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", [Straight(), Trig(), EDM(20.0), VP()], ids=str)
@pytest.mark.parametrize("a", [0.3, 0.7, math.sqrt(2)])
def test_every_marginal_is_that_of_the_flow(path, a):
    """On N(0, S): the exact variance after each step converges to alpha^2 S + sigma^2, at order 1."""
    S, errors = 0.4, []
    model = Denoiser(gaussian(path, torch.zeros(1, dtype=F64), torch.tensor(S, dtype=F64)), path, "x0", shape=(1,))
    for n in (200, 400):
        grid = G.log_snr(path, n, start=-5.0, end=5.0)
        grid = G.given(path, grid.t[:-1])  # to the last noise level, not to the clean end
        rows, scales = Transitions(FlowSDE(a), grid).rows, grid.scales
        want = scales.alpha**2 * S + scales.sigma**2
        variance, worst = float(want[0]), 0.0
        one = torch.ones(grid.steps, 1, dtype=F64)
        growth = Transitions(FlowSDE(a), grid).means(model, one, torch.arange(grid.steps), {})[:, 0]
        for i in range(grid.steps):
            variance = float(growth[i]) ** 2 * variance + float(rows.noise[i]) ** 2
            worst = max(worst, abs(variance / float(want[i + 1]) - 1))
        errors.append(worst)
    assert errors[1] < 0.05
    assert 1.7 < errors[0] / errors[1] < 2.3


def test_less_noise_becomes_euler():
    model, x = mixture_denoiser(Straight(), 2), randn(6, 2)
    options = {"samples": 6, "x": x, "dtype": F64}
    grid = G.uniform(Straight(), 10)
    got = sample(model, grid, solver=FlowSDE(1e-6), **options).x
    torch.testing.assert_close(got, sample(model, grid, solver=Euler(), **options).x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", [FlowSDE(), DDIM(eta=1.0), DDIM(eta=0.4)], ids=str)
def test_transitions_are_the_sampler_s(solver):
    """Noise read off a recorded run is the noise that was put in, so mean and deviation are those of the steps."""
    path, model = VP(), mixture_denoiser(VP(), 2)
    grid = G.karras(path, 6, sigma_min=0.1, sigma_max=10.0)
    draws = {(i, 0): randn(5, 2, seed=i, dtype=torch.float32) for i in range(grid.steps)}
    start, noise = 10 * randn(5, 2, seed=9), ReplayNoise(draws)
    kept = sample(model, grid, x=start, samples=5, noise=noise, solver=solver, record=True, dtype=F64).trajectory
    policy = Transitions(solver, grid)
    assert policy.kept == tuple(range(grid.steps if isinstance(solver, FlowSDE) else grid.steps - 1))
    cond = model.schema.bind(None, 5, "cpu")
    for i in policy.kept:
        steps = torch.full((5,), i)
        mean, z = policy.means(model, kept[i], steps, cond), float(policy.rows.noise[i])
        torch.testing.assert_close((kept[i + 1] - mean) / z, draws[i, 0].double(), rtol=1e-8, atol=1e-8)


def test_densities_and_divergences_are_those_of_normals():
    policy = Transitions(FlowSDE(), G.uniform(Straight(), 4))
    mean, other, y, steps = randn(3, 2), randn(3, 2, seed=1), randn(3, 2, seed=2), torch.tensor([0, 2, 3])
    normal, second = (
        torch.distributions.Independent(torch.distributions.Normal(m, policy.rows.noise[steps][:, None]), 1)
        for m in (mean, other)
    )
    torch.testing.assert_close(
        policy.log_density(mean, y, steps) - policy.log_density(other, y, steps),
        normal.log_prob(y) - second.log_prob(y),
    )
    torch.testing.assert_close(policy.divergence(mean, other, steps), torch.distributions.kl_divergence(normal, second))


@pytest.mark.parametrize("solver", [DDIM(), Euler(), DPM2M(eta=1.0), Heun()], ids=str)
def test_solvers_without_gaussian_steps(solver):
    with pytest.raises(UnsupportedError, match="solver of a policy"):
        Transitions(solver, G.karras(VP(), 4, sigma_min=0.1, sigma_max=10.0))


@pytest.mark.parametrize("a", [0.0, -1.0, float("nan"), float("inf")])
def test_noise_is_positive(a):
    with pytest.raises(RangeError, match="a of FlowSDE"):
        FlowSDE(a)


def test_it_cannot_climb():
    with pytest.raises(GridError, match="rising"):
        FlowSDE().plan(G.given(Straight(), (0.1, 0.5)))
