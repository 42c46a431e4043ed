"""One small fixed network in the forms the peers want, and one way to run and compare.

All runs are float64 unless a test says otherwise. The clean-data network is bounded, so that no solver can hide or blow
up a difference.
"""

import torch
from torch import nn

from wayfield.bench.peers import k_diffusion_sampling, peer
from wayfield.core.noise import RecordingNoise, SeededNoise
from wayfield.field.denoiser import Denoiser
from wayfield.sampling import sample

__all__ = [
    "B",
    "D",
    "CleanNet",
    "EpsNet",
    "edm_model",
    "gap",
    "k_diffusion_sampling",
    "ours",
    "peer",
    "randn",
    "recorded",
]

B, D = 3, 4


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class CleanNet(nn.Module):
    """(x, time) -> something bounded of the shape of x; `rate` brings the time to order 1."""

    def __init__(self, rate=1.0, hidden=16):
        super().__init__()
        self.w1, self.wt, self.w2 = (
            nn.Parameter(randn(*s, seed=k) / s[0] ** 0.5, requires_grad=False)
            for k, s in enumerate([(D, hidden), (1, hidden), (hidden, D)])
        )
        self.rate = rate

    def forward(self, x, time, cond=None):
        time = torch.as_tensor(time, dtype=x.dtype).reshape(-1, 1) * self.rate
        return torch.tanh(x @ self.w1 + time * self.wt) @ self.w2


class EpsNet(nn.Module):
    """(x, table index, perhaps fractional) -> the noise that goes with the clean network's answer on a table's path."""

    def __init__(self, path):
        super().__init__()
        self.path, self.clean = path, CleanNet(rate=1e-3)

    def forward(self, x, time, cond=None):
        index = torch.as_tensor(time, dtype=torch.float64)
        a, s = self.path.scales((index + 1) / self.path.T)[:2]
        return (x - a * self.clean(x, index)) / s


def edm_model(net, sigma_data=0.5):
    """k-diffusion's model(x, sigma) -> clean data: Karras et al. 2022, table 1 and eq. 7, written without ours."""

    def model(x, sigma):
        sigma = sigma[:, None]
        q = sigma**2 + sigma_data**2
        y = net(x / q**0.5, sigma.log() / 4)
        return sigma_data**2 / q * x + sigma * sigma_data / q**0.5 * y

    return model


def ours(net, path, kind, time, grid, solver, x, *, scale_input=False, noise=None, **more):
    """The result of a run from the points x."""
    denoiser = Denoiser(net, path, kind, time=time, scale_input=scale_input, shape=tuple(x.shape[1:]))
    return sample(denoiser, grid, x=x, samples=len(x), solver=solver, noise=noise, dtype=torch.float64, **more)


def recorded(seed=7):
    """Noise whose draws are kept in `.draws`, in the order of the run, to be handed to a peer."""
    return RecordingNoise(SeededNoise(seed, B))


def gap(x, y):
    """Largest absolute difference, which must come with points of order 1."""
    assert 0.05 < float(y.abs().max()) < 100
    return float((x.double() - y.double()).abs().max())
