"""Gates by noise level and step: where they open, and what is not evaluated where they do not."""

import math

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import RangeError
from wayfield.core.path import VP
from wayfield.guide import CFG
from wayfield.guide.gates import Interval, Schedule, Stage, Steps
from wayfield.guide.roles import Step
from wayfield.sampling import sample
from wayfield.solve import DDIM, Heun

GRID = G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)


def at(log_snr, i=0, n=6, stage=0):
    return Step(i, n, stage, log_snr, i == n - 1)


def run(mixture, term, solver=DDIM()):
    den = mixture(VP(), d=3)
    return sample(den, GRID, samples=3, cond={"label": 1}, guidance=term, solver=solver, dtype=torch.float64)


def test_interval_holds_its_ends():
    gate = Interval(-1.0, 2.0)
    assert [gate.open(at(v), ()) for v in (-1.01, -1.0, 0.0, 2.0, 2.01)] == [False, True, True, True, False]
    assert Interval().open(at(-1e9), ()) is Interval().open(at(math.inf), ()) is True
    assert Interval(low=0.0).open(at(math.inf), ()) is True


def test_interval_from_noise_levels():
    gate = Interval.sigma(0.5, 3.0)
    levels = {0.49: False, 0.51: True, 2.99: True, 3.01: False}
    assert {s: gate.open(at(-2 * math.log(s)), ()) for s in levels} == levels
    assert Interval.sigma(0.0, math.inf) == Interval()


def test_interval_spares_rows(mixture):
    """Half of the levels are inside; outside, the answer is the conditional one, row by row not evaluated."""
    levels = (-2 * (GRID.scales.sigma / GRID.scales.alpha).log())[:-1].tolist()
    middle = (levels[2] + levels[3]) / 2
    low, high = run(mixture, CFG(3).when(Interval(high=middle))), run(mixture, CFG(3).when(Interval(low=middle)))
    assert low.counts == high.counts == (6, 18 + 9, 9)
    want = run(mixture, CFG(3).when(Steps((True,) * 3 + (False,) * 3)))
    assert torch.equal(low.x, want.x)


def test_schedule_is_linear_between_its_points():
    gate = Schedule(((-2.0, 0.0), (0.0, 1.0), (4.0, 3.0)))
    assert gate.open(at(-5.0), ()) is False
    assert gate.open(at(-1.0), ()) == pytest.approx(0.5)
    assert gate.open(at(0.0), ()) == pytest.approx(1.0)
    assert gate.open(at(1.0), ()) == pytest.approx(1.5)
    assert gate.open(at(9.0), ()) == pytest.approx(3.0)
    assert Schedule(((0.0, 2.0),)).open(at(-3.0), ()) == 2.0


def test_a_constant_schedule_is_a_factor(mixture):
    want = run(mixture, CFG(2)).x
    torch.testing.assert_close(run(mixture, CFG(3).when(Schedule(((0.0, 0.5),)))).x, want, rtol=1e-12, atol=1e-12)


def test_steps_and_their_number(mixture):
    gate = Steps((True, False, 0.5, 0.0))
    assert [gate.open(at(0.0, i, 4), ()) for i in range(4)] == [True, False, 0.5, False]
    with pytest.raises(RangeError, match="6 steps"):
        run(mixture, CFG(3).when(gate))


def test_stage_leaves_correctors_unguided(mixture):
    guided = run(mixture, CFG(3).when(Stage(0)), Heun())
    assert guided.counts == (11, 33 + 18, 15)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Interval(2.0, 1.0),
        lambda: Interval(float("nan"), 1.0),
        lambda: Interval.sigma(-1.0, 1.0),
        lambda: Interval.sigma(2.0, 1.0),
        lambda: Schedule(()),
        lambda: Schedule(((1.0, 0.0), (0.0, 1.0))),
        lambda: Schedule(((0.0, float("nan")),)),
        lambda: Steps(()),
        lambda: Steps((float("inf"),)),
        lambda: Stage(-1),
    ],
)
def test_bad_gates(make):
    with pytest.raises(RangeError):
        make()
