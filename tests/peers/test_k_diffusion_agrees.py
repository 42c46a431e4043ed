"""k-diffusion 0.1.1: the same denoiser, levels and noise give the same samples, in float64."""

import pytest
import torch
from peerkit import B, CleanNet, D, edm_model, gap, k_diffusion_sampling, ours, randn, recorded

from wayfield.core.grid import exponential, karras
from wayfield.core.path import EDM
from wayfield.solve import DDIM, DPM2M, DPM2S, DPM3M, Churn, Euler, Heun

N, PATH = 15, EDM(80.0)
GRID = karras(PATH, N)
TOLERANCE = 1e-10  # both sides float64; what is left is rounding of different orderings


def run(solver, name, noise=None, tolerance=TOLERANCE, **options):
    """Our run and theirs from the same points on the same levels."""
    k, net, x = k_diffusion_sampling(), CleanNet(), 80 * randn(B, D, seed=3)
    mine = ours(net, PATH, "edm", "log_sigma/4", GRID, solver, x, noise=noise).x
    theirs = getattr(k, name)(edm_model(net), x, GRID.scales.sigma, disable=True, **options)
    assert gap(mine, theirs) < tolerance


def injected(noise):
    """A noise sampler that hands out the draws of our run, which comes first, in its order."""

    def stream():
        yield from (draw.double() for draw in noise.draws.values())

    draws = stream()
    return lambda *_: next(draws)


@pytest.mark.parametrize("solver", [Euler(), DDIM()], ids=repr)
def test_euler(solver):
    run(solver, "sample_euler")


def test_heun():
    run(Heun(), "sample_heun")


def test_heun_with_churn(monkeypatch):
    solver, noise = Churn(s_churn=10, s_min=0.05, s_max=50, s_noise=1.003), recorded()
    # their function draws from the global generator in every step, used or not; it gets our draws of the steps instead
    monkeypatch.setattr(torch, "randn_like", injected(noise))
    run(solver, "sample_heun", noise, s_churn=10, s_tmin=0.05, s_tmax=50, s_noise=1.003)


def test_euler_ancestral_is_ddim_with_eta_1():
    noise = recorded()
    run(DDIM(eta=1.0), "sample_euler_ancestral", noise, noise_sampler=injected(noise))


def test_dpmpp_2m():
    run(DPM2M(), "sample_dpmpp_2m")


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_dpmpp_2m_sde(eta):
    noise = recorded()
    run(DPM2M(eta=eta), "sample_dpmpp_2m_sde", noise, eta=eta, noise_sampler=injected(noise))


def test_dpmpp_3m():
    # they take half of the second-derivative term, which `as_published` reproduces
    run(DPM3M(as_published=True), "sample_dpmpp_3m_sde", eta=0.0, noise_sampler=lambda *_: None)


def test_dpmpp_2s():
    # with eta = 0 their noise is multiplied by zero, but still asked for
    run(DPM2S(), "sample_dpmpp_2s_ancestral", eta=0.0, noise_sampler=lambda *_: torch.zeros(()))


def test_karras_levels():
    theirs = k_diffusion_sampling().get_sigmas_karras(N, 0.002, 80.0)
    # their table is float32: seventh powers of float32 numbers lose one digit
    torch.testing.assert_close(GRID.scales.sigma, theirs.double(), rtol=2e-6, atol=1e-12)


def test_exponential_levels():
    theirs = k_diffusion_sampling().get_sigmas_exponential(N, 0.002, 80.0)
    torch.testing.assert_close(exponential(PATH, N).scales.sigma, theirs.double(), rtol=2e-6, atol=1e-12)
