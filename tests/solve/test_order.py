"""Orders of convergence by regression against the exact flow of a mixture, and of a Gaussian (card, oracle 4)."""

import math

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.exact import gaussian
from wayfield.core.path import VP
from wayfield.core.schedule import Tabulated
from wayfield.field.denoiser import Denoiser
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, DPM2S, DPM3M, Adaptive, Euler, Heun, HeunTime, UniPC

SOLVERS = [DDIM(), Euler(), Heun(), HeunTime(), DPM2M(), DPM2S(), DPM3M(), DPM3M(as_published=True)]
SOLVERS += [UniPC(1), UniPC(2), UniPC(3)]
HI, LO = -2.4, 3.4  # log-SNR of the ends


def fine_start(path, steps, order):
    """Equal steps in log-SNR after a start so fine that first-order starting steps do not limit the order measured.

    A multistep method of order p needs p - 1 starting values; each starting step of size h^(p/2) costs h^p.
    """
    h = (LO - HI) / steps
    warm = min(1.0, h ** (order / 2) / h) if order > 2 else 1.0
    knots, v = [HI], HI
    for _ in range(order if order > 2 else 0):
        v += warm * h
        knots.append(v)
    rest = torch.linspace(v, LO, steps + 1, dtype=torch.float64)[1:].tolist()
    return G.Grid(path, tuple(path.time(torch.tensor(knots + rest, dtype=torch.float64)).tolist()))


def order_of(path, den, net, solver, sizes, x):
    errors = []
    for n in sizes:
        grid = fine_start(path, n, solver.order)
        start = x * float(grid.scales.sigma[0])
        out = sample(den, grid, x=start, samples=len(x), solver=solver, dtype=torch.float64).x
        errors.append(float((out - net.flow(start, grid.t[0], grid.t[-1])).abs().max()))
    a = torch.tensor([[math.log(n), 1.0] for n in sizes], dtype=torch.float64)
    return -float(torch.linalg.lstsq(a, torch.tensor(errors, dtype=torch.float64).log()[:, None]).solution[0]), errors


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_order_on_the_exact_mixture_flow(path, solver, mixture):
    den = mixture(path)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    order, errors = order_of(path, den, den.net, solver, (40, 57, 80, 113, 160), x)
    if isinstance(path, Tabulated) and isinstance(solver, HeunTime):
        # the velocity in t of a table has corners at its rows, which sigma-based solvers do not see
        assert max(errors) < 2e-4, errors
    else:
        assert order == pytest.approx(solver.order, abs=0.1 if solver.order == 1 else 0.15), errors


@pytest.mark.parametrize(("solver", "order", "tolerance"), [(DDIM(), 1, 0.1), (Heun(), 2, 0.15), (DPM2M(), 2, 0.15)])
def test_order_on_a_gaussian(path, solver, order, tolerance, randn64):
    net = gaussian(path, randn64(2), torch.tensor(0.36, dtype=torch.float64))
    den = Denoiser(net, path, "x0")
    got, errors = order_of(path, den, net, solver, (40, 80, 160), randn64(5, 2, seed=1))
    assert got == pytest.approx(order, abs=tolerance), errors


def test_adaptive_error_follows_its_tolerance(mixture):
    den = mixture(VP())
    grid = G.log_snr(VP(), 10, start=HI, end=LO)
    grid = G.Grid(VP(), grid.t[:-1])
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None] * float(grid.scales.sigma[0])
    want = den.net.flow(x, grid.t[0], grid.t[-1])
    runs = [
        sample(den, grid, x=x, samples=7, solver=Adaptive(rtol=r, atol=r), dtype=torch.float64)
        for r in (1e-2, 1e-3, 1e-4)
    ]
    errors = [float((r.x - want).abs().max()) for r in runs]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 2e-3
    assert runs[0].counts.rows < runs[1].counts.rows < runs[2].counts.rows


def test_adaptive_rejects_what_is_too_coarse(mixture):
    """A first step far too long must be taken back: the error is then that of the tolerance, not that of the step."""
    den = mixture(VP())
    grid = G.Grid(VP(), G.log_snr(VP(), 10, start=HI, end=LO).t[:-1])
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None] * float(grid.scales.sigma[0])
    want = den.net.flow(x, grid.t[0], grid.t[-1])

    def run(first):
        return sample(den, grid, x=x, samples=7, solver=Adaptive(1e-3, 1e-3, first=first), dtype=torch.float64).x

    fine, coarse = (float((run(first) - want).abs().max()) for first in (0.02, 2.5))
    assert coarse < 3 * fine
