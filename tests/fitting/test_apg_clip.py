"""The clip of APG, from a loop written without the engine."""

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import RangeError, UnknownNameError
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import VP
from wayfield.fitting.apg_clip import calibrate_r

GRID = G.karras(VP(), 7, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1])


def by_hand(den, w, steps):
    """Lengths of c - u along plain guided DDIM runs."""
    x = float(GRID.scales.sigma[0]) * SeededNoise(3, 5).draw((3,), Address(-1, 0, GRID.t[0], GRID.t[0]))
    x, (a, s), lengths = x.double(), GRID.scales[:2], []
    for i in range(steps):
        c, u = den(x, GRID.t[i], {"label": LABELS}).x0, den(x, GRID.t[i]).x0
        lengths += (c - u).norm(dim=1).tolist()
        x0 = u + w * (c - u)
        x = a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]
    return torch.tensor(lengths).double()


@pytest.mark.parametrize("w", [3.0, 0.0])
def test_it_is_the_median_over_the_first_half(mixture, w):
    den = mixture(VP(), d=3)
    got = calibrate_r(den, GRID, w, samples=5, seed=3, cond={"label": LABELS})
    assert got == pytest.approx(float(by_hand(den, w, 3).quantile(0.5)), rel=1e-4)  # the run is in float32
    assert got != pytest.approx(float(by_hand(den, w, 7).quantile(0.5)), rel=1e-2)
    rms = calibrate_r(den, GRID, w, samples=5, seed=3, cond={"label": LABELS}, unit="rms")
    assert rms == pytest.approx(got / 3**0.5, rel=1e-12)


def test_bad_arguments(mixture):
    den = mixture(VP(), d=3)
    with pytest.raises(RangeError, match="not 1"):
        calibrate_r(den, GRID, 1.0, cond={"label": 0})
    with pytest.raises(UnknownNameError, match="rms"):
        calibrate_r(den, GRID, 2.0, cond={"label": 0}, unit="rm")
    with pytest.raises(RangeError):
        calibrate_r(den, GRID, float("nan"), cond={"label": 0})
