"""What each solver's step is, in closed form (card, oracles 2, 3, 5)."""

import math

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import GridError, RangeError, SingularError
from wayfield.core.noise import Address, RecordingNoise, SeededNoise
from wayfield.core.path import EDM, Straight, Trig
from wayfield.core.schedule import tabulated
from wayfield.field.denoiser import Denoiser
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, DPM2S, DPM3M, Ancestral, Churn, Euler, Heun, HeunTime, PredictorCorrector, UniPC


def levels(path, *log_snr):
    """A grid through given log-SNRs, the same noise levels on every path."""
    return G.Grid(path, tuple(path.time(torch.tensor(log_snr, dtype=torch.float64)).tolist()))


def constant(path, D):
    """A denoiser that always answers D."""
    return Denoiser(torch.nn.Identity(), path, "x0", call=lambda net, x, t, c: D.expand_as(x))


def one_step(path, solver, x, D, *log_snr, seed=3):
    grid = levels(path, *log_snr)
    noise = RecordingNoise(SeededNoise(seed, len(x)))
    out = sample(constant(path, D), grid, x=x, noise=noise, solver=solver, dtype=torch.float64).x
    return grid, out, noise.draws


def test_ancestral_is_the_gaussian_posterior(path, randn64):
    """Card, section 3: mean (a_tr s_r^2 / s_t^2) x + (a_r V / s_t^2) D, variance s_r^2 V / s_t^2, with V = s_t^2 -
    a_tr^2 s_r^2.
    """
    x, D = randn64(4, 3), randn64(4, 3, seed=1)
    grid, out, draws = one_step(path, Ancestral(), x, D, -1.3, 0.4)
    (at, ar), (st, sr) = grid.scales.alpha, grid.scales.sigma
    a_tr = at / ar
    V = st**2 - a_tr**2 * sr**2
    mean = a_tr * sr**2 / st**2 * x + ar * V / st**2 * D
    want = mean + (sr**2 * V / st**2).sqrt() * draws[0, 0].double()
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)


def test_discrete_ddpm_step(randn64):
    """On a table the same step is Ho et al.'s, with betas."""
    path = tabulated("linear")
    x, D, n = randn64(4, 3), randn64(4, 3, seed=1), 500
    grid = G.Grid(path, (n / 1000, (n - 1) / 1000))
    noise = RecordingNoise(SeededNoise(0, 4))
    out = sample(constant(path, D), grid, x=x, noise=noise, solver=Ancestral(), dtype=torch.float64).x
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = (1 - betas).cumprod(0)
    b, ab, ab_prev = betas[n - 1], abar[n - 1], abar[n - 2]
    mean = b * ab_prev.sqrt() / (1 - ab) * D + (1 - ab_prev) * (1 - b).sqrt() / (1 - ab) * x
    std = (b * (1 - ab_prev) / (1 - ab)).sqrt()
    torch.testing.assert_close(out, mean + std * noise.draws[0, 0].double(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [DDIM(), Heun(), DPM2M(), DPM3M(), DPM2S(), UniPC(2)])
def test_first_order_part_is_the_exponential_form(path, solver, randn64):
    """x_r = (s_r/s_t) x - a_r (e^{-h} - 1) D for a constant prediction; every correction vanishes."""
    x, D = randn64(4, 3), randn64(4, 3, seed=1)
    grid, out, _ = one_step(path, solver, x, D, -1.3, 0.4, 1.1)
    a, s, h = grid.scales.alpha, grid.scales.sigma, grid.lam.diff()
    want = x
    for i in range(2):
        want = s[i + 1] / s[i] * want - a[i + 1] * torch.expm1(-h[i]) * D
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)


def test_ddim_is_euler_in_the_edm_state(path, mixture, randn64):
    den, x = mixture(path, d=2), randn64(5, 2)
    grid = levels(path, -2.0, -0.5, 0.3, 1.9)
    out = sample(den, grid, x=x, samples=5, dtype=torch.float64).x
    a, s = grid.scales.alpha, grid.scales.sigma
    xb, sig = x / a[0], s / a
    for i in range(3):
        D = den(a[i] * xb, grid.t[i]).x0
        xb = xb + (sig[i + 1] - sig[i]) * (xb - D) / sig[i]
    torch.testing.assert_close(out, a[-1] * xb, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("path", [Straight(), EDM(20.0)])
def test_euler_in_time_is_ddim_where_it_should_be(path, mixture, randn64):
    den, x = mixture(path, d=2), 3 * randn64(5, 2)
    grid = levels(path, -2.0, -0.5, 0.3, 1.9)
    pair = [sample(den, grid, x=x, samples=5, solver=s, dtype=torch.float64).x for s in (Euler(), DDIM())]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


def test_euler_differs_from_ddim_elsewhere(mixture, randn64):
    den, x = mixture(Trig(), d=2), randn64(5, 2)
    grid = levels(Trig(), -2.0, -0.5, 0.3, 1.9)
    pair = [sample(den, grid, x=x, samples=5, solver=s, dtype=torch.float64).x for s in (Euler(), DDIM())]
    assert float((pair[0] - pair[1]).abs().max()) > 1e-2


def test_trig_step_is_a_rotation(randn64):
    x, v = randn64(4, 3), randn64(4, 3, seed=1)
    den = Denoiser(torch.nn.Identity(), Trig(), "v", call=lambda net, x, t, c: v)
    grid = G.given(Trig(), (0.8, 0.3))
    out = sample(den, grid, x=x, samples=4, dtype=torch.float64).x
    dphi = math.pi / 2 * 0.5
    torch.testing.assert_close(out, math.cos(dphi) * x - math.sin(dphi) * v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("make", [lambda e: DDIM(eta=e), lambda e: DPM2M(eta=e)])
def test_point_mass_marginals(path, eta, make):
    """Card, oracle 5: for data at a point k, any eta and grid gives N(a_r k, s_r^2). Checked by the variance recursion
    on the plan.
    """
    grid = levels(path, -3.0, -1.0, -0.9, 0.7, 2.0, 4.0)
    row = make(eta).plan(grid).rows
    a, s = grid.scales.alpha, grid.scales.sigma
    k, mean, var = 0.7, float(a[0]) * 0.7, float(s[0]) ** 2
    for i in range(grid.steps):
        # eps = (x - a k)/s is linear in x, so the step maps mean and variance in closed form
        eps_mean, eps_var = (mean - float(a[i]) * k) / float(s[i]), var / float(s[i]) ** 2
        mean = float(row.x0[i]) * k + float(row.eps[i]) * eps_mean
        var = float(row.eps[i]) ** 2 * eps_var + float(row.noise[i]) ** 2
        assert mean == pytest.approx(float(a[i + 1]) * k, abs=1e-12)
        assert var == pytest.approx(float(s[i + 1]) ** 2, rel=1e-11)


def test_first_order_sde_solver_is_ancestral(path):
    grid = levels(path, -3.0, -1.0, 0.7, 2.0)
    sde, ancestral = DPM2M(eta=1.0).plan(grid).rows, Ancestral().plan(grid).rows
    for name in ("x0", "eps", "noise"):
        torch.testing.assert_close(getattr(sde, name), getattr(ancestral, name), rtol=1e-10, atol=1e-12)


def test_2m_is_the_papers_algorithm_on_an_uneven_grid(path, mixture, randn64):
    """x_r = (s_r/s_t) x - a_r expm1(-h) Dbar, Dbar = (1 + 1/(2q)) D - D_prev/(2q), q = h_prev/h (card, section 6.5)."""
    den, x = mixture(path, d=2), randn64(5, 2)
    grid = levels(path, -2.0, -1.7, 0.3, 0.9, 3.0)
    out = sample(den, grid, x=x, samples=5, solver=DPM2M(), dtype=torch.float64).x
    a, s, h = grid.scales.alpha, grid.scales.sigma, grid.lam.diff()
    want, before = x, None
    for i in range(4):
        D = den(want, grid.t[i]).x0
        q = None if before is None else h[i - 1] / h[i]
        mixed = D if q is None else (1 + 1 / (2 * q)) * D - before / (2 * q)
        want, before = s[i + 1] / s[i] * want - a[i + 1] * torch.expm1(-h[i]) * mixed, D
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-11)


def test_churn_without_churn_is_heun(path, mixture, randn64):
    den, x = mixture(path, d=2), randn64(5, 2)
    grid = G.karras(path, 6, sigma_min=0.05, sigma_max=8.0)
    pair = [sample(den, grid, x=x, samples=5, solver=s, dtype=torch.float64).x for s in (Churn(s_churn=0.0), Heun())]
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-12)


def test_churn_is_the_papers_algorithm(mixture, randn64):
    """Algorithm 2 written out in the EDM state."""
    path = EDM(20.0)
    den, x = mixture(path, d=2), 8 * randn64(5, 2)
    solver = Churn(s_churn=2.0, s_min=0.1, s_max=5.0, s_noise=1.01)
    grid = G.karras(path, 6, sigma_min=0.05, sigma_max=8.0)
    noise = SeededNoise(1, 5)
    out = sample(den, grid, x=x, noise=noise, solver=solver, dtype=torch.float64)
    sig = (grid.scales.sigma / grid.scales.alpha).tolist()
    want = x
    for i in range(6):
        gamma = min(2.0 / 6, math.sqrt(2) - 1) if 0.1 <= sig[i] <= 5.0 else 0.0
        hat = sig[i] * (1 + gamma)
        w = noise.draw((2,), Address(i)).double()
        xh = want + math.sqrt(hat**2 - sig[i] ** 2) * 1.01 * w
        d = (xh - den(xh, hat / 20).x0) / hat
        want = xh + (sig[i + 1] - hat) * d
        if sig[i + 1] > 0:
            d2 = (want - den(want, sig[i + 1] / 20).x0) / sig[i + 1]
            want = xh + (sig[i + 1] - hat) * (d + d2) / 2
    torch.testing.assert_close(out.x, want, rtol=1e-10, atol=1e-10)
    assert out.counts.calls == 11


def test_langevin_corrector_keeps_the_marginal():
    """For unit Gaussian data on a VP path the law at every level is N(0, I); the discrete Langevin step inflates its
    variance by tau^2.
    """
    path = Trig()
    grid = G.given(path, (0.9, 0.6, 0.3))
    den = Denoiser(torch.nn.Identity(), path, "x0", call=lambda net, x, t, c: path.scales(t.double())[0] * x)
    n = 40_000
    out = sample(den, grid, x=None, shape=(1,), samples=n, solver=PredictorCorrector(), dtype=torch.float64).x
    s = float(grid.scales.sigma[0]) ** 2
    tau = 2 * 0.16**2
    var = s
    for a_t, s_t, a_s, s_s in zip(
        *(c[:-1].tolist() for c in grid.scales[:2]), *(c[1:].tolist() for c in grid.scales[:2]), strict=True
    ):
        var *= (a_s * a_t + s_s * s_t) ** 2  # DDIM: x0 = a x, eps = s x
        var = var * (1 - tau * s_s**2) ** 2 + 2 * tau * s_s**2
    assert float(out.var()) == pytest.approx(var, abs=5 * var * math.sqrt(2 / n))


def test_evaluations_per_run(mixture):
    """2N - 1 for Heun to a clean end, N for multistep methods, 2N - 1 for 2S."""
    grid = G.karras(EDM(20.0), 10, sigma_min=0.02, sigma_max=10.0)
    den = mixture(EDM(20.0))
    want = {
        DDIM(): 10,
        Euler(): 10,
        Heun(): 19,
        HeunTime(): 19,
        DPM2M(): 10,
        DPM3M(): 10,
        DPM2S(): 19,
        UniPC(): 10,
        Churn(): 19,
        PredictorCorrector(): 19,
    }
    for solver, calls in want.items():
        counts = sample(den, grid, samples=3, solver=solver, dtype=torch.float64).counts
        assert (counts.calls, counts.rows) == (calls, 3 * calls), solver


@pytest.mark.parametrize("solver", [DDIM(), Ancestral(), Heun(), DPM2M(), DPM2M(eta=1.0), DPM3M(), DPM2S(), UniPC(3)])
@pytest.mark.parametrize(
    "path", [Straight(), Trig(), tabulated("cosine", 100, zero_terminal_snr=True)], ids=lambda p: type(p).__name__
)
def test_starts_without_signal_and_clean_ends_are_exact(path, solver):
    """From alpha = 0 to sigma = 0: finite, and for a point mass exactly the point."""
    D = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    out = sample(constant(path, D), G.uniform(path, 7), shape=(2,), samples=3, solver=solver, dtype=torch.float64).x
    torch.testing.assert_close(out, D.expand(3, 2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [Euler(), HeunTime()])
def test_velocity_solvers_are_exact_for_a_point_on_the_straight_line(solver):
    D = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    run = sample(
        constant(Straight(), D), G.uniform(Straight(), 7), shape=(2,), samples=3, solver=solver, dtype=torch.float64
    )
    torch.testing.assert_close(run.x, D.expand(3, 2), rtol=1e-10, atol=1e-10)


def test_impossible_runs_are_named(mixture):
    path = tabulated("linear", 100, zero_terminal_snr=True)
    eps = Denoiser(torch.nn.Identity(), path, "eps", shape=(2,), call=lambda net, x, t, c: x)
    with pytest.raises(SingularError, match="t = 1"):
        sample(eps, G.uniform(path, 5))
    assert bool(sample(eps, G.uniform(path, 5, start=0.99)).x.isfinite().all())
    den = mixture(Straight())
    up = G.given(Straight(), (0.1, 0.5, 0.9))
    for solver in (Ancestral(), DPM2M(eta=0.5), Churn(), PredictorCorrector()):
        with pytest.raises(GridError):
            sample(den, up, solver=solver)
    with pytest.raises(SingularError):
        sample(den, G.given(Straight(), (0.0, 0.5)))
    with pytest.raises(GridError, match="alpha > 0"):
        sample(den, G.uniform(Straight(), 4), solver=Churn())
    with pytest.raises(GridError, match="raised level"):
        sample(mixture(EDM(10.0)), G.karras(EDM(10.0), 4, sigma_max=10.0), solver=Churn(s_max=50.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDIM(eta=1.1),
        lambda: DDIM(eta=-0.1),
        lambda: DDIM(eta=math.nan),
        lambda: DPM2M(eta=-1),
        lambda: UniPC(4),
        lambda: Churn(s_churn=-1),
        lambda: Churn(s_min=2, s_max=1),
        lambda: PredictorCorrector(snr=0),
        lambda: PredictorCorrector(corrections=0),
    ],
)
def test_bad_parameters(make):
    with pytest.raises(RangeError):
        make()
