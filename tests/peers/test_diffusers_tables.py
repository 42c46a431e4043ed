"""diffusers 0.42.1: the same discrete schedules and the same choice of their rows."""

import pytest
import torch
from peerkit import peer

from wayfield.core.grid import spaced_indices
from wayfield.core.schedule import abar_of, zero_terminal

STEPS = [1, 2, 3, 7, 10, 15, 20, 50, 100, 250, 999, 1000]


def timesteps(spacing, steps):
    made = peer("diffusers").DDIMScheduler(timestep_spacing=spacing)
    made.set_timesteps(steps)
    return made.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", STEPS)
def test_rows(spacing, steps):
    # as in DDIM and Euler; their multistep schedulers mean N + 1 rows without the last by "linspace" and "leading".
    # for N such as 48, where a row lies exactly between two, their float error decides and ours rounds to even
    assert spaced_indices(1000, steps, spacing) == timesteps(spacing, steps)


def test_leading_rows_with_offset():
    made = peer("diffusers").DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    made.set_timesteps(50)
    assert spaced_indices(1000, 50, "leading", 1) == made.timesteps.tolist()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("linear", {}),
        ("scaled_linear", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        ("cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_tables(name, config):
    theirs = peer("diffusers").DDIMScheduler(**config).alphas_cumprod
    # theirs are products of up to a thousand float32 numbers
    torch.testing.assert_close(abar_of(name), theirs.double(), rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_zero_terminal_snr(name):
    rescale = peer("diffusers.schedulers.scheduling_ddim").rescale_zero_terminal_snr
    abar = abar_of(name)
    ratio = abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    theirs = (1 - rescale(1 - ratio)).cumprod(0)
    # theirs goes through betas and back, in float64 here
    torch.testing.assert_close(zero_terminal(abar), theirs, rtol=1e-9, atol=1e-14)
