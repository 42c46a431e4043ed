import math

import pytest
import torch

from wayfield.core.errors import RangeError, UnknownNameError
from wayfield.core.path import EDM, VE, VP, Cosine, Straight, Trig
from wayfield.core.schedule import Tabulated, abar_of, from_betas, tabulated, zero_terminal

T = torch.linspace(0.003, 0.997, 200, dtype=torch.float64)


def test_ends(path):
    a, s, _, _ = path.scales(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert a[0] == pytest.approx(1, abs=1e-12)
    assert s[0] == pytest.approx(0 if not isinstance(path, VE) else path.sigma_min, abs=1e-12)
    assert s[1] / max(float(a[1]), 1e-300) > 10


def test_derivatives_agree_with_autograd(path):
    if isinstance(path, Tabulated):
        t = (
            torch.arange(1, 999, 7, dtype=torch.float64) + 0.5
        ) / 1000  # inside cells: the interpolation has corners at its rows
    else:
        t = T.clone()
    t.requires_grad_()
    a, s, da, ds = path.scales(t)
    if isinstance(path, Tabulated):
        h = 1e-7
        up, down = path.scales(t.detach() + h), path.scales(t.detach() - h)
        ga, gs = (up.alpha - down.alpha) / (2 * h), (up.sigma - down.sigma) / (2 * h)
        torch.testing.assert_close(da.detach(), ga, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ds.detach(), gs, rtol=1e-5, atol=1e-7)
        return
    if a.requires_grad:
        (ga,) = torch.autograd.grad(a.sum(), t, retain_graph=True)
        torch.testing.assert_close(da, ga, rtol=1e-10, atol=1e-12)
    else:
        assert bool((da == 0).all())
    (gs,) = torch.autograd.grad(s.sum(), t)
    torch.testing.assert_close(ds, gs, rtol=1e-10, atol=1e-12)


def test_log_snr_and_its_inverse(path):
    a, s, da, ds = path.scales(T)
    torch.testing.assert_close(path.log_snr(T), 2 * (a.log() - s.log()), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(path.time(path.log_snr(T)), T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(path.det(T), a * ds - da * s, rtol=0, atol=0)
    assert bool((path.det(T) > 0).all())
    assert bool((path.log_snr(T).diff() < 0).all())


def test_at_sigma(path):
    t = path.at_sigma(0.7)
    a, s, _, _ = path.scales(torch.tensor(t, dtype=torch.float64))
    assert float(s / a) == pytest.approx(0.7, rel=1e-12)


def test_accuracy_near_the_clean_end():
    # sigma(t) ~ sqrt(beta_min t) for VP and ~ t for the cosine path; the naive sqrt(1 - alpha^2) loses half the digits
    t = torch.tensor([1e-12, 1e-9], dtype=torch.float64)
    torch.testing.assert_close(VP().scales(t).sigma, (0.1 * t).sqrt(), rtol=1e-6, atol=0)
    rate, theta0 = math.pi / 2 / 1.008, math.pi / 2 / 1.008 * 0.008
    torch.testing.assert_close(Cosine().scales(t).sigma, (2 * rate * t * math.tan(theta0)).sqrt(), rtol=1e-6, atol=0)


def test_vp_matches_the_card():
    t = torch.tensor(0.4, dtype=torch.float64)
    sig = math.sqrt(math.exp(19.9 * 0.16 / 2 + 0.1 * 0.4) - 1)
    a, s, da, ds = VP().scales(t)
    assert float(s / a) == pytest.approx(sig, rel=1e-12)
    beta = 0.1 + 0.4 * 19.9
    assert float(da) == pytest.approx(float(-a * beta / 2), rel=1e-12)
    assert float(ds) == pytest.approx(float(a**2 * beta / (2 * s)), rel=1e-12)


def test_vp_transition_variance_is_not_negative(path):
    a, s, _, _ = path.scales(T)
    V = s[1:] ** 2 - (a[1:] / a[:-1]) ** 2 * s[:-1] ** 2
    assert bool((V > 0).all())


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine", "sigmoid_beta", "sigmoid_abar"])
@pytest.mark.parametrize("zero", [False, True])
def test_named_schedules(name, zero):
    path = tabulated(name, 1000, zero_terminal_snr=zero)
    abar = abar_of(name, 1000)
    n = torch.arange(1, 1001, dtype=torch.float64) / 1000
    a, s, _, _ = path.scales(n)
    if zero:
        assert path.abar[0] == float(abar[0])
        assert path.abar[-1] == 0.0
        assert float(a[-1]) == 0.0
    else:
        torch.testing.assert_close(a**2, abar, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), rtol=0, atol=1e-14)
    t = torch.linspace(0.0003, 0.9997, 3001, dtype=torch.float64)
    torch.testing.assert_close(path.time(path.log_snr(t)), t, rtol=1e-9, atol=1e-9)
    assert bool((path.log_snr(t).diff() < 0).all())


def test_linear_schedule_values():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    torch.testing.assert_close(abar_of("linear"), (1 - betas).cumprod(0), rtol=1e-14, atol=0)
    assert from_betas(betas) == tabulated("linear")


def test_zero_terminal_keeps_the_first_and_zeroes_the_last():
    abar = abar_of("scaled_linear")
    out = zero_terminal(abar)
    assert out[0] == abar[0]
    assert out[-1] == 0
    q = abar.sqrt()
    torch.testing.assert_close(out.sqrt()[1:-1], ((q - q[-1]) * q[0] / (q[0] - q[-1]))[1:-1], rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VP(1.0, 0.5),
        lambda: VE(-1.0, 2.0),
        lambda: VE(3.0, 2.0),
        lambda: EDM(0.0),
        lambda: EDM(math.nan),
        lambda: Cosine(-0.1),
        lambda: Tabulated((0.5,)),
        lambda: Tabulated((0.5, 0.6)),
        lambda: Tabulated((1.0, 0.6)),
        lambda: Tabulated((0.9, 0.0, -0.1)),
        lambda: tabulated("linear", 1),
        lambda: from_betas(torch.tensor([0.1, 1.5])),
        lambda: Straight().at_sigma(-1),
    ],
)
def test_bad_input(make):
    with pytest.raises(RangeError):
        make()


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        tabulated("cosin")


def test_repr_rebuilds():
    for path in (Straight(), Trig(), VP(0.2, 10.0), VE(0.1, 3.0), EDM(7.0), Cosine(0.01), Tabulated((0.9, 0.5, 0.1))):
        assert eval(repr(path)) == path
