"""Stopping: counts by hand, bisection against a search over every threshold, predicted cost against spent."""

import math

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import NonFiniteError, RangeError, ShapeError, UnsupportedError
from wayfield.core.path import VP
from wayfield.field.binding import COND, Query
from wayfield.fitting.stops import calibrate, guided_steps, record_gammas, saving
from wayfield.guide import CFG, Auto, Guidance
from wayfield.guide.adaptive import AG
from wayfield.guide.gates import Interval
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M

N, W = 20, 3.0
GRID = G.karras(VP(), N, sigma_min=0.02, sigma_max=20.0)
TABLE = torch.tensor([[0.1, 0.5, 0.9, 0.95], [0.6, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])


@pytest.mark.parametrize(
    ("bar", "min_steps", "steps"),
    [
        (0.45, 1, [2, 1, 4]),
        (0.45, 2, [2, 4, 4]),
        (0.5, 1, [3, 1, 4]),
        (-1.0, 1, [1, 1, 1]),
        (-1.0, 3, [3, 3, 3]),
        (1.0, 1, [4, 4, 4]),
    ],
)
def test_guided_steps_by_hand(bar, min_steps, steps):
    assert guided_steps(TABLE, bar, min_steps).tolist() == steps
    assert saving(TABLE, bar, min_steps) == pytest.approx((12 - sum(steps)) / 24)


def test_a_step_of_three_rows_saves_two_of_them():
    """Three queries a step, half of the steps guided: 3 N rows become 2 N."""
    table = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    assert saving(table, 0.5, branches=3) == pytest.approx(1 / 3)


@pytest.mark.parametrize("min_steps", [1, 4])
@pytest.mark.parametrize("target", [0.0, 0.1, 0.25, 0.33])
def test_calibration_is_the_best_of_all_thresholds(target, min_steps):
    """Random cosines, not even rising: the bisection finds what a search over every threshold finds."""
    gammas = torch.rand(30, N, generator=torch.Generator().manual_seed(2)).cumsum(1) / N
    bar = calibrate(gammas, target, min_steps)
    every = [saving(gammas, b, min_steps) for b in [-1.0, *gammas.flatten().tolist()]]
    best = min(abs(s - target) for s in every)
    assert abs(saving(gammas, bar, min_steps) - target) == pytest.approx(best, abs=1e-12)


def test_a_threshold_is_not_changed_by_rounding():
    gammas = torch.rand(30, N, generator=torch.Generator().manual_seed(3))
    bar = calibrate(gammas, 0.3)
    assert torch.equal(guided_steps(gammas * (1 + 1e-7), bar), guided_steps(gammas, bar))


@pytest.mark.parametrize("solver", [DDIM(), DPM2M()], ids=str)
@pytest.mark.parametrize("space", ["x0", "eps"])
def test_the_predicted_cost_is_spent(mixture, solver, space):
    """20 steps calibrated to 25 %: 30 rows per sample, as nearly as samples that stop together allow."""
    den, n = mixture(VP(), d=8), 60
    options = {
        "samples": n,
        "seed": 4,
        "cond": {"label": torch.arange(n) % 2},
        "solver": solver,
        "dtype": torch.float64,
    }
    gate = AG(space=space)
    gammas = record_gammas(den, GRID, CFG(W), gate, **options)
    assert gammas.shape == (n, N)
    bar = calibrate(gammas, 0.25)
    guidance = Guidance(CFG(W).when(AG(bar, space)))
    counts = sample(den, GRID, guidance=guidance, **options).counts
    k = guided_steps(gammas, bar)
    assert counts.rows == n * N + int(k.sum())
    assert counts.rows + counts.skipped == 2 * n * N
    assert counts.skipped / (2 * n * N) == pytest.approx(saving(gammas, bar))
    if space == "x0":  # rising cosines, every sample its own
        assert counts.rows / n == pytest.approx(30, abs=0.1)


def test_min_steps_count_in_the_prediction_too(mixture):
    den = mixture(VP(), d=8)
    options = {"samples": 20, "cond": {"label": torch.arange(20) % 2}, "dtype": torch.float64}
    gammas = record_gammas(den, GRID, CFG(W), AG(min_steps=9), **options)
    assert saving(gammas, 0.5) > saving(gammas, 0.5, 9)
    guidance = CFG(W).when(AG(0.5, min_steps=9))
    counts = sample(den, GRID, guidance=guidance, **options).counts
    assert counts.rows == 20 * N + int(guided_steps(gammas, 0.5, 9).sum())


def test_cosines_are_those_of_one_point(mixture):
    """The first column by hand: the starting points are the same for every guidance."""
    den = mixture(VP(), d=8)
    options = {"samples": 5, "seed": 4, "cond": {"label": torch.tensor([0, 1, 1, 0, 1])}, "dtype": torch.float64}
    start = sample(den, GRID, record=True, **options).trajectory[0]
    c, u = den(start, GRID.t[0], options["cond"]).x0, den(start, GRID.t[0]).x0
    want = (c * u).sum(1) / (c.square().sum(1) * u.square().sum(1)).sqrt()
    torch.testing.assert_close(record_gammas(den, GRID, CFG(W), **options)[:, 0], want, rtol=1e-10, atol=1e-10)


def test_other_networks_and_conditions(mixture):
    den = mixture(VP(), d=8)
    options = {"samples": 4, "cond": {"label": torch.tensor([0, 1, 1, 0])}, "dtype": torch.float64}
    weak = AG(pairs=((COND, Query("cond", "weak")),))
    same = record_gammas(den, GRID, Auto(2.0), weak, nets={"weak": den}, **options)
    torch.testing.assert_close(same, torch.ones(4, N, dtype=torch.float64))
    negative = AG(pairs=((COND, Query("negative")),))
    away = {"negative": {"label": torch.tensor([1, 0, 0, 1])}}
    other = record_gammas(den, GRID, CFG(2.0, "negative"), negative, conds=away, **options)
    assert other[:, 0].max() < 0.9


@pytest.mark.parametrize("term", [CFG(1.0), CFG(W).when(Interval(high=0.0))], ids=["neutral", "gated"])
def test_terms_that_do_not_guide_every_step_are_refused(mixture, term):
    with pytest.raises(UnsupportedError):
        record_gammas(mixture(VP(), d=3), GRID, term)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: calibrate(TABLE, 0.5), RangeError),
        (lambda: calibrate(TABLE, -0.1), RangeError),
        (lambda: calibrate(TABLE, math.nan), RangeError),
        (lambda: calibrate(TABLE, 0.3, 4), RangeError),
        (lambda: saving(TABLE, 0.5, branches=1), RangeError),
        (lambda: saving(TABLE, 0.5, 0), RangeError),
        (lambda: guided_steps(TABLE[0], 0.5), ShapeError),
        (lambda: guided_steps(TABLE * math.nan, 0.5), NonFiniteError),
    ],
)
def test_wrong_input_is_refused(call, error):
    with pytest.raises(error):
        call()
