"""Guiders of diffusers on the answers of a small network of pictures, beside one step of ours from the same point."""

import torch

from wayfield.core import grid as G
from wayfield.core.path import VP, Straight
from wayfield.core.predict import solve
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.sampling import sample
from wayfield.solve import DDIM

LABELS = torch.tensor([0, 1, 1])
T = 0.6
PATHS = {"eps": VP(), "v": VP(), "x0": VP(), "velocity": Straight()}
SIZE = (2, 8, 8)


def noise(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Net(torch.nn.Module):
    """Answers that depend on everything, none of them proportional."""

    def forward(self, x, t, cond):
        label = cond["label"].to(x.dtype)[:, None, None, None]
        wave = torch.linspace(0, 3, x.shape[-1], dtype=x.dtype, device=x.device)
        return torch.tanh(0.7 * x + 0.4 * label) + 0.3 * torch.sin((1 + label) * wave) + 0.2 * x.roll(1, -1)


def model(kind, size=SIZE):
    return Denoiser(Net(), PATHS[kind], kind, shape=size, schema=Schema({"label": Field(values=3)}, {"label": 2}))


def world(kind, size=SIZE):
    """The model, a point, and its answers with and without the condition."""
    den, x = model(kind, size), noise(0, 3, *size)
    level = den.level(torch.tensor(T, dtype=torch.float64))
    return den, x, *(den.answer(x, level, {"label": labels}) for labels in (LABELS, torch.full((3,), 2)))


def ours(den, x, guidance):
    """One step to the clean end lands on the guided x0."""
    cond = {"label": LABELS}
    return sample(den, G.given(den.path, (T, 0.0)), x=x, samples=3, cond=cond, guidance=guidance, dtype=torch.float64).x


def x0_of(kind, y, x):
    """The x0 behind an answer."""
    return solve(kind, y, x, PATHS[kind].scales(torch.tensor(T, dtype=torch.float64))).x0


def theirs(guider, c, u, step=5, n=10):
    """A guider's answer at a step of n."""
    guider.set_state(step=step, num_inference_steps=n, timestep=torch.tensor(0))
    return guider.forward(c, u).pred


def grid(kind, steps):
    """Levels of `run`."""
    return G.given(PATHS[kind], (*(1 - 0.98 * k / steps for k in range(steps)), 0.0))


def run(guidance, samples=3, labels=LABELS, kind="velocity", steps=6, **options):
    """A run from noise."""
    options = {"solver": DDIM(), "dtype": torch.float64, **options}
    return sample(
        model(kind), grid(kind, steps), samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options
    )
