"""azula 0.11.1: the same schedules, and the same samples from the same denoiser, times and noise, in float64."""

import pytest
import torch
from peerkit import B, CleanNet, D, gap, ours, peer, randn, recorded
from torch import nn

from wayfield.core.grid import uniform
from wayfield.core.path import VE, VP, Straight, Trig
from wayfield.core.predict import Kind
from wayfield.field.denoiser import Denoiser
from wayfield.solve import DDIM, DPM3M, Heun

START, STOP, N = 0.98, 0.02, 12
TOLERANCE = 1e-10

# azula's alpha_min and sigma_min, which keep its ends finite, are set to 0: our paths have exact ends
PATHS = {
    "VESchedule": (VE(1e-3, 1e3), {}),
    # azula's VP has no linear term: beta_min = 0, which ours approaches as 1e-12
    "VPSchedule": (VP(1e-12, -4 * torch.tensor(1e-3, dtype=torch.float64).log().item()), {"sigma_min": 0.0}),
    # azula's cosine has no offset: it is our trigonometric path, not ours of Nichol & Dhariwal
    "CosineSchedule": (Trig(), {"alpha_min": 0.0, "sigma_min": 0.0}),
    "RectifiedSchedule": (Straight(), {"alpha_min": 0.0, "sigma_min": 0.0}),
}


@pytest.fixture(params=PATHS)
def pair(request):
    """Our path and azula's schedule."""
    path, options = PATHS[request.param]
    return path, getattr(peer("azula.noise"), request.param)(**options)


class OnLogSigma(nn.Module):
    """azula tells its backbones log(sigma / alpha); ours hear the log-SNR, which is -2 times that."""

    def __init__(self):
        super().__init__()
        self.net = CleanNet(rate=-0.1)

    def forward(self, x, time):
        return self.net(x, -2 * time)


def run(pair, solver, name, *, preconditioned=True, noise=None, **options):
    """Our run and theirs from the same points at the same times."""
    path, schedule = pair
    make = peer("azula.denoise").KarrasDenoiser if preconditioned else peer("azula.denoise").SimpleDenoiser
    denoiser, kind = make(OnLogSigma(), schedule), Kind("edm" if preconditioned else "x0", sigma_data=1.0)
    grid = uniform(path, N, start=START, end=STOP)
    x = float((grid.scales.alpha[0] ** 2 + grid.scales.sigma[0] ** 2) ** 0.5) * randn(B, D, seed=3)
    mine = ours(denoiser.backbone.net, path, kind, "log_snr", grid, solver, x, scale_input=True, noise=noise).x
    sampler = getattr(peer("azula.sample"), name)(
        denoiser, start=START, stop=STOP, steps=N, silent=True, dtype=torch.float64, **options
    )
    assert gap(mine, sampler(x)) < TOLERANCE


@pytest.fixture
def same_noise(monkeypatch):
    """Our noise, to be handed to azula, which otherwise draws from the global generator."""
    noise = recorded()

    def stream():
        yield from (draw.double() for draw in noise.draws.values())

    draws = stream()
    monkeypatch.setattr(torch, "randn_like", lambda _: next(draws))
    return noise


def test_schedules(pair):
    path, schedule = pair
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    for mine, theirs in zip(path.scales(t)[:2], schedule(t), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("preconditioned", [True, False])
def test_denoisers(pair, preconditioned):
    """Karras preconditioning and plain input scaling with sigma_data = 1, on every path."""
    path, schedule = pair
    make = peer("azula.denoise").KarrasDenoiser if preconditioned else peer("azula.denoise").SimpleDenoiser
    theirs = make(OnLogSigma(), schedule)
    mine = Denoiser(
        theirs.backbone.net,
        path,
        Kind("edm" if preconditioned else "x0", sigma_data=1.0),
        time="log_snr",
        scale_input=True,
    )
    x, t = randn(B, D, seed=5), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert gap(mine(x, t).x0, theirs(x, t).mean) < TOLERANCE


@pytest.mark.parametrize("preconditioned", [True, False])
def test_euler_is_ddim(pair, preconditioned):
    run(pair, DDIM(), "EulerSampler", preconditioned=preconditioned)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim(pair, eta, same_noise):
    # azula's eta scales the variance of the noise, ours (the paper's) its standard deviation
    run(pair, DDIM(eta=eta), "DDIMSampler", eta=eta**2, noise=same_noise)


def test_ddpm(pair, same_noise):
    run(pair, DDIM(eta=1.0), "DDPMSampler", noise=same_noise)


def test_heun(pair):
    # azula corrects the last step too and so cannot end at sigma = 0; STOP > 0
    run(pair, Heun(), "HeunSampler")


def test_exponential_multistep_is_dpm_3m(pair):
    # azula integrates the interpolating parabola exactly, as DPM3M does unless `as_published`; DPM2M takes a midpoint
    # instead, so it has no counterpart there
    run(pair, DPM3M(), "xEABSampler", order=3)
