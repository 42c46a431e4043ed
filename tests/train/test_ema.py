"""Averages of weights: each equals the sum over past weights that its paper writes."""

from __future__ import annotations

import pytest
import torch

from wayfield.core.errors import DTypeError, RangeError, UnknownNameError
from wayfield.core.noise import Address, SeededNoise
from wayfield.train.ema import EMA, HalfLifeEMA, PowerEMA, power_gamma, power_width

PAST = SeededNoise(3, 40).draw((5,), Address(0)).double()  # forty steps of a network with five weights


def run(average, batch: int = 1, start=None):
    """The state after all of PAST, begun at `start`."""
    state = average.init({"w": torch.full((5,), 9.0).double() if start is None else start})
    for i, w in enumerate(PAST):
        average.update(state, {"w": w}, seen=(i + 1) * batch, batch=batch)
    return state


@pytest.mark.parametrize("batch", [1, 128])
def test_power_average_of_gamma_zero_is_the_running_mean(batch):
    average = PowerEMA((power_width(0.0),))
    assert torch.allclose(average.read(run(average, batch))["w"], PAST.mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_power_average_weighs_the_past_by_its_profile(width):
    n, g = len(PAST), power_gamma(width)
    edges = (torch.arange(n + 1, dtype=torch.float64) / n) ** (g + 1)  # integral of the profile up to each step
    average = PowerEMA((width,))
    assert torch.allclose(average.read(run(average))["w"], edges.diff() @ PAST, rtol=0, atol=1e-12)


def test_classical_average_is_the_geometric_sum():
    beta, n = 0.9, len(PAST)
    powers = beta ** torch.arange(n - 1, -1, -1, dtype=torch.float64)
    average = EMA(beta)
    assert torch.allclose(average.read(run(average))["w"], beta**n * 9.0 + (1 - beta) * powers @ PAST, atol=1e-12)


def test_half_life_halves_and_ramps_up():
    average = HalfLifeEMA(100.0, rampup=None)
    assert average.beta(0, seen=10_000, batch=100) == pytest.approx(0.5)
    assert average.beta(0, seen=10_000, batch=50) ** 2 == pytest.approx(0.5)
    ramped = HalfLifeEMA(100.0, rampup=0.05)
    assert ramped.beta(0, seen=200, batch=10) == pytest.approx(0.5)  # H = 0.05 * 200 = 10
    assert ramped.beta(0, seen=10**6, batch=100) == pytest.approx(0.5)
    assert ramped.beta(0, seen=8, batch=8) < 1e-5  # the first step is a copy


@pytest.mark.parametrize("width", [1e-3, 0.05, 0.1, 0.2, 0.28, 12**-0.5])
def test_gamma_is_the_largest_root_and_inverts_the_width(width):
    gamma, c = power_gamma(width), width**-2
    assert power_width(gamma) == pytest.approx(width, rel=1e-12)
    roots = torch.linalg.eigvals(
        torch.tensor([[-7.0, c - 16, c - 12], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    )  # companion matrix of the cubic
    assert gamma == pytest.approx(float(roots.real.max()), rel=1e-9, abs=1e-9)


def test_the_papers_two_exponents():
    assert power_gamma(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_gamma(0.10) == pytest.approx(6.94, abs=0.005)


def test_tracks_side_by_side_equal_each_alone_and_integers_are_copied():
    both = PowerEMA((0.1, 0.05))
    state = run(both)
    assert state.keys() == {"0.1/w", "0.05/w"}
    for width, track in zip(both.widths, both.tracks, strict=True):
        assert torch.equal(both.read(state, track)["w"], PowerEMA((width,)).read(run(PowerEMA((width,))))["w"])
    assert torch.equal(both.read(state)["w"], both.read(state, "0.1")["w"])
    average = EMA(0.5)
    state = average.init({"w": torch.zeros(2), "count": torch.tensor(0)})
    average.update(state, {"w": torch.ones(2), "count": torch.tensor(7)}, seen=1, batch=1)
    assert state["mean/count"] == 7
    assert state["mean/w"].tolist() == [0.5, 0.5]


def test_state_is_a_copy():
    w = torch.zeros(2)
    state = EMA(0.5).init({"w": w})
    w += 1
    assert state["mean/w"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: EMA(1.0), RangeError),
        (lambda: EMA(-0.1), RangeError),
        (lambda: EMA("0.9"), DTypeError),
        (lambda: HalfLifeEMA(0.0), RangeError),
        (lambda: HalfLifeEMA(10.0, rampup=0.0), RangeError),
        (lambda: PowerEMA(()), RangeError),
        (lambda: PowerEMA((0.05, 0.05)), RangeError),
        (lambda: PowerEMA((0.3,)), RangeError),
        (lambda: power_gamma(0.0), RangeError),
        (lambda: power_width(-0.5), RangeError),
        (lambda: EMA(0.5).update({}, {}, seen=3, batch=4), RangeError),
        (lambda: EMA(0.5).read(EMA(0.5).init({"w": PAST}), "0.05"), UnknownNameError),
    ],
)
def test_bad_settings_are_refused(make, error):
    with pytest.raises(error):
        make()
