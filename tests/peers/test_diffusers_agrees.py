"""diffusers 0.42.1: its schedulers and our solvers give the same samples from the same network, grid and noise.

Its tables are float32. Our path is made from the very table, so that this is no difference; schedulers that leave the
state's type alone are run in float64 with the table cast, the others (which cast the state to float32) as they are.
"""

import pytest
import torch
from peerkit import B, CleanNet, D, EpsNet, gap, ours, peer, randn, recorded

from wayfield.core.grid import given, karras, spaced
from wayfield.core.path import Straight
from wayfield.core.schedule import Tabulated
from wayfield.solve import DDIM, DPM2M, DPM3M, Euler, Heun, UniPC

N = 20  # below 15 steps DPMSolverMultistep lowers the order of its last two steps, ours only that of the last
TIGHT, LOOSE = 1e-10, 1e-5  # float64 throughout / state or levels rounded to float32 in every step


def scheduler(name, **config):
    """A scheduler that does not clip, and the path of its table."""
    made = getattr(peer("diffusers"), f"{name}Scheduler")(**config)
    made.set_timesteps(N)
    return made, Tabulated(tuple(made.alphas_cumprod.double().tolist()))


def theirs(made, net, x, first=0, **step):
    """Their loop from step `first` on, with the network called at their times."""
    for i, t in enumerate(made.timesteps[first:]):
        scaled = made.scale_model_input(x, t)
        extra = {k: v(i) for k, v in step.items()}
        x = made.step(net(scaled, t), t, x, **extra).prev_sample
    return x


def start():
    return randn(B, D, seed=3)


# DDIM: float64 all the way


def ddim(spacing, **config):
    made, path = scheduler("DDIM", clip_sample=False, timestep_spacing=spacing, **config)
    made.alphas_cumprod = made.alphas_cumprod.double()
    made.final_alpha_cumprod = made.final_alpha_cumprod.double()
    return made, path


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(spacing):
    # with "linspace" their step goes to t - T/N, which is not the next time of their own grid; ours looks it up
    made, path = ddim(spacing)
    net, x = EpsNet(path), start()
    mine = ours(net, path, "eps", "index", spaced(path, N, spacing), DDIM(), x).x
    assert gap(mine, theirs(made, net, x)) < TIGHT


def test_ddim_with_eta_1():
    made, path = ddim("trailing")
    net, x, noise = EpsNet(path), start(), recorded()
    mine = ours(net, path, "eps", "index", spaced(path, N), DDIM(eta=1.0), x, noise=noise).x
    other = theirs(made, net, x, eta=lambda _: 1.0, variance_noise=lambda i: noise.draws[i, 0].double())
    assert gap(mine, other) < TIGHT


def test_ddim_from_zero_terminal_snr_with_v_prediction():
    made, path = ddim("trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    net, x = CleanNet(rate=1e-3), start()
    mine = ours(net, path, "v", "index", spaced(path, N), DDIM(), x).x
    assert path.abar[-1] == 0
    assert gap(mine, theirs(made, net, x)) < TIGHT


# schedulers whose state is x / alpha; our start is alpha times theirs


def levels(grid):
    """sigma / alpha, float64: what their `sigmas` would be without rounding."""
    return grid.scales.sigma / grid.scales.alpha


def on_levels(name, karras_levels):
    """A scheduler, its path, and our grid of the same levels: Karras et al.'s, or rows of the table."""
    made, path = scheduler(name, use_karras_sigmas=karras_levels, timestep_spacing="trailing")
    rows = spaced(path, N)
    if not karras_levels:
        return made, path, rows
    # their ends are the levels of the first and last visited row, not of the table
    high, *_, low, _ = levels(rows).tolist()
    return made, path, karras(path, N, sigma_min=low, sigma_max=high)


@pytest.mark.parametrize("name", ["EulerDiscrete", "HeunDiscrete"])
def test_karras_levels(name):
    made, _, grid = on_levels(name, True)
    every = torch.arange(0, len(made.sigmas), 2 if name == "HeunDiscrete" else 1)  # Heun lists inner levels twice
    torch.testing.assert_close(levels(grid)[: len(every)], made.sigmas[every].double(), rtol=1e-6, atol=0)  # float32


@pytest.mark.parametrize("karras_levels", [True, False])
def test_euler(karras_levels):
    made, path, grid = on_levels("EulerDiscrete", karras_levels)
    net, x = EpsNet(path), start()
    mine = ours(net, path, "eps", "index", grid, DDIM(), x).x
    assert gap(mine, theirs(made, net, x / grid.scales.alpha[0])) < LOOSE  # they cast the state to float32


@pytest.mark.parametrize("karras_levels", [True, False])
def test_heun(karras_levels):
    made, path, grid = on_levels("HeunDiscrete", karras_levels)
    level = levels(grid)
    made.sigmas = torch.cat([level[:1], level[1:-1].repeat_interleave(2), level[-1:]])
    net, x = EpsNet(path), start()
    mine = ours(net, path, "eps", "index", grid, Heun(), x).x
    # between the table's rows the network hears their float32 times
    assert gap(mine, theirs(made, net, x / grid.scales.alpha[0])) < (LOOSE if karras_levels else TIGHT)


# multistep solvers on table rows, state as ours


def multistep(name, **config):
    made, path = scheduler(name, timestep_spacing="trailing", **config)
    return made, path, EpsNet(path), start(), spaced(path, N)


def test_dpm_2m():
    made, path, net, x, grid = multistep("DPMSolverMultistep")
    mine = ours(net, path, "eps", "index", grid, DPM2M(), x).x
    assert gap(mine, theirs(made, net, x)) < LOOSE  # they cast the state to float32


def test_dpm_2m_sde():
    made, path, net, x, grid = multistep("DPMSolverMultistep", algorithm_type="sde-dpmsolver++")
    noise = recorded()
    mine = ours(net, path, "eps", "index", grid, DPM2M(eta=1.0), x, noise=noise).x
    assert gap(mine, theirs(made, net, x, variance_noise=lambda i: noise.draws[i, 0])) < LOOSE


def test_dpm_3m_but_for_its_second_step():
    # their second step uses the 2M coefficient, ours the exact one; so they start at our third step with our history.
    # they take half of the second-derivative term, which `as_published` reproduces
    made, path, net, x, grid = multistep("DPMSolverMultistep", solver_order=3)
    run = ours(net, path, "eps", "index", grid, DPM3M(as_published=True), x, record=True)
    clean = [net.clean(run.trajectory[i], made.timesteps[i]) for i in range(2)]
    made.model_outputs, made.lower_order_nums = [None, *clean], 2
    made.set_begin_index(2)
    assert gap(run.x, theirs(made, net, run.trajectory[2], first=2)) < LOOSE


@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc(p):
    # both start at order 1 and rise by one a step, and both fall back to order 1 towards sigma = 0
    made, path, net, x, grid = multistep("UniPCMultistep", solver_order=p, solver_type="bh2")
    made.sigmas = levels(grid)
    mine = ours(net, path, "eps", "index", grid, UniPC(p), x).x
    assert gap(mine, theirs(made, net, x)) < TIGHT


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("solver", [Euler(), DDIM()], ids=repr)
def test_flow_match_euler(shift, solver):
    made = peer("diffusers").FlowMatchEulerDiscreteScheduler(shift=shift)
    made.set_timesteps(N)
    # their velocity points the same way as ours: from data to noise
    net, x, path = CleanNet(rate=1e-3), start(), Straight()
    made.scale_model_input = lambda x, t: x
    mine = ours(net, path, "velocity", "1000t", given(path, made.sigmas.double()), solver, x).x
    assert gap(mine, theirs(made, net, x)) < LOOSE  # they cast the state to float32
