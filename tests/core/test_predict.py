import math

import pytest
import torch

from wayfield.core.errors import RangeError, SingularError, UnknownNameError
from wayfield.core.path import Scales, Straight, Trig
from wayfield.core.predict import KINDS, Kind, Prediction, check_regular, convert, score, solve, velocity
from wayfield.core.schedule import tabulated

T = torch.tensor([0.011, 0.2, 0.5, 0.83, 0.98], dtype=torch.float64)


def pair(path, randn):
    x0, eps = randn(5, 3, 2), randn(5, 3, 2, seed=1)
    scales = path.scales(T)
    return Prediction(x0, eps), path.noised(x0, T, eps), scales


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(path, kind, randn64):
    """Card, oracle 1: every kind -> (x0, eps) -> kind."""
    truth, x, scales = pair(path, randn64)
    k = Kind(kind, 0.752)
    y = convert(k, truth, scales)
    back = solve(k, y, x, scales)
    ratio = float((scales.sigma / scales.alpha).max())
    torch.testing.assert_close(back.x0, truth.x0, rtol=1e-12, atol=1e-12 * max(1, ratio))
    torch.testing.assert_close(back.eps, truth.eps, rtol=1e-12, atol=1e-12 / float(scales.sigma.min()))
    torch.testing.assert_close(convert(k, back, scales), y, rtol=1e-11, atol=1e-11)


def test_definitions_by_hand(path, randn64):
    truth, x, scales = pair(path, randn64)
    a, s, da, ds = (c[:, None, None] for c in scales)
    torch.testing.assert_close(convert("v", truth, scales), a * truth.eps - s * truth.x0, rtol=1e-14, atol=0)
    torch.testing.assert_close(velocity(truth, scales), da * truth.x0 + ds * truth.eps, rtol=1e-14, atol=0)
    torch.testing.assert_close(score(truth, scales), -truth.eps / s, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(score(truth, scales), (a * truth.x0 - x) / s**2, rtol=1e-9, atol=1e-9)


def test_velocity_is_the_time_derivative_of_the_path(path, randn64):
    x0, eps = randn64(5, 3), randn64(5, 3, seed=1)
    t, h = (torch.arange(5, dtype=torch.float64) * 190 + 100.5) / 1000, 1e-6
    finite = (path.noised(x0, t + h, eps) - path.noised(x0, t - h, eps)) / (2 * h)
    torch.testing.assert_close(velocity(Prediction(x0, eps), path.scales(t)), finite, rtol=1e-6, atol=1e-6)


def test_v_is_proportional_to_velocity_on_trig(randn64):
    truth, _, scales = pair(Trig(), randn64)
    torch.testing.assert_close(
        velocity(truth, scales), math.pi / 2 * convert("v", truth, scales), rtol=1e-12, atol=1e-12
    )


def test_edm_row_is_the_papers_preconditioning(path, randn64):
    """D = c_skip xb + c_out F(c_in xb) with xb = x/alpha, sigma/alpha, as the paper writes it."""
    _, x, scales = pair(path, randn64)
    sd, F = 0.5, randn64(5, 3, 2, seed=9)
    a, s = (c[:, None, None] for c in scales[:2])
    sig = s / a
    D = sd**2 / (sig**2 + sd**2) * (x / a) + sig * sd / (sig**2 + sd**2).sqrt() * F
    torch.testing.assert_close(solve(Kind("edm", sd), F, x, scales).x0, D, rtol=1e-12, atol=1e-12)


def test_error_factors(path, randn64):
    """eps, u and v errors are -(a/s), -(d/s), -((a^2 + s^2)/s) times the x0 error."""
    truth, x, scales = pair(path, randn64)
    other = solve("x0", truth.x0 + randn64(5, 3, 2, seed=3), x, scales)
    D = other.x0 - truth.x0
    a, s, da, ds = (c[:, None, None] for c in scales)
    factors = {"eps": a / s, "velocity": (a * ds - da * s) / s, "v": (a**2 + s**2) / s}
    for kind, factor in factors.items():
        torch.testing.assert_close(
            convert(kind, other, scales) - convert(kind, truth, scales), -factor * D, rtol=1e-8, atol=1e-8
        )


def test_eps_is_lazy():
    asked = []
    p = Prediction(torch.zeros(1, 1), lambda: asked.append(1) or torch.ones(1, 1))
    assert asked == []
    assert p.eps.item() == 1
    assert p.eps.item() == 1
    assert asked == [1]


def test_impossible_conversions():
    path = tabulated("linear", 10, zero_terminal_snr=True)
    end = torch.tensor([0.5, 1.0], dtype=torch.float64)
    for kind in ("eps", "score"):
        with pytest.raises(SingularError, match="alpha = 0"):
            check_regular(Kind(kind), path, end)
    for kind in ("v", "x0", "edm"):
        check_regular(Kind(kind), path, end)
    with pytest.raises(SingularError, match="sigma = 0"):
        check_regular(Kind("x0"), Straight(), torch.zeros(1, dtype=torch.float64))


def test_solve_numbers_are_finite_exactly_where_regular():
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    noise, data = Scales(zero, one, -one, one), Scales(one, zero, -one, one)
    finite = {k: [all(bool(c.isfinite()) for c in Kind(k).solve_row(sc)) for sc in (noise, data)] for k in KINDS}
    assert finite == {
        "x0": [True, False],
        "eps": [False, True],
        "v": [True, True],
        "velocity": [True, True],
        "score": [False, True],
        "edm": [True, True],
    }


def test_bad_kinds():
    with pytest.raises(UnknownNameError, match="Did you mean 'velocity'"):
        Kind("velocty")
    with pytest.raises(RangeError):
        Kind("edm", 0.0)
