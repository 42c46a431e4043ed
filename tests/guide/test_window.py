"""The gate by steps: which are open, and that shares are diffusers'."""

import math

import pytest

from wayfield.core.errors import RangeError, UnknownNameError
from wayfield.guide.roles import Step
from wayfield.guide.window import Window


def opened(window, n):
    return [i for i in range(n) if window.open(Step(i, n, 0, 0.0, i == n - 1), ())]


def test_steps():
    assert opened(Window(), 4) == [0, 1, 2, 3]
    assert opened(Window(1), 4) == [1, 2, 3]
    assert opened(Window(1, 3), 4) == [1, 2]
    assert opened(Window(2, 2), 4) == []
    assert opened(Window(0, 9), 4) == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 7, 28, 50])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.1, 0.9), (0.04, 0.5), (0.3, 0.3)])
def test_shares_are_those_of_diffusers(n, bounds):
    guiders = pytest.importorskip("diffusers.guiders")
    guider = guiders.ClassifierFreeGuidance(3.0, start=bounds[0], stop=bounds[1])
    want = []
    for i in range(n):
        guider.set_state(step=i, num_inference_steps=n, timestep=None)
        want += [i] if guider._is_cfg_enabled() else []
    assert opened(Window(*bounds, "share"), n) == want


def test_without_a_stop_shares_end_with_the_run():
    assert opened(Window(0.5, unit="share"), 6) == [3, 4, 5]


@pytest.mark.parametrize("fields", [(-1,), (0.5,), (3, 2), (0, 1.5, "share"), (math.nan, 1, "share"), (math.inf,)])
def test_bad_bounds(fields):
    with pytest.raises(RangeError, match="window"):
        Window(*fields)


def test_bad_unit():
    with pytest.raises(UnknownNameError, match="share"):
        Window(0, 1, "shares")


def test_it_rebuilds():
    assert eval(repr(Window(0.1, 0.5, "share"))) == Window(0.1, 0.5, "share")
