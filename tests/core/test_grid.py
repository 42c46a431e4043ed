import math
from itertools import pairwise

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import DTypeError, GridError, RangeError, UnknownNameError
from wayfield.core.path import EDM, VP, Straight, Trig
from wayfield.core.schedule import tabulated


def levels(grid):
    s = grid.scales
    return (s.sigma / s.alpha)[:-1]


def test_karras_levels(path):
    grid = G.karras(path, 12, sigma_min=0.03, sigma_max=15.0)
    i = torch.arange(12, dtype=torch.float64)
    want = (15.0 ** (1 / 7) + i / 11 * (0.03 ** (1 / 7) - 15.0 ** (1 / 7))) ** 7
    torch.testing.assert_close(levels(grid), want, rtol=1e-10, atol=0)
    assert grid.t[-1] == 0
    assert grid.steps == 12


def test_exponential_is_uniform_log_snr(path):
    grid = G.exponential(path, 9, sigma_min=0.03, sigma_max=15.0)
    log_snr = path.log_snr(grid.times[:-1])
    torch.testing.assert_close(log_snr.diff(), (log_snr[-1] - log_snr[0]).expand(8) / 8, rtol=1e-8, atol=1e-8)
    other = G.log_snr(path, 9, start=-2 * math.log(15.0), end=-2 * math.log(0.03))
    torch.testing.assert_close(other.times, grid.times, rtol=1e-12, atol=1e-12)


def test_uniform_and_given():
    assert G.uniform(Straight(), 4).t == (1.0, 0.75, 0.5, 0.25, 0.0)
    assert G.given(Straight(), torch.tensor([0.9, 0.3])).t == pytest.approx((0.9, 0.3))


def test_spacing_tables():
    """Card, section 7 and oracle 9."""
    assert G.spaced_indices(1000, 10, "leading") == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert G.spaced_indices(1000, 10, "leading", 1)[0] == 901
    assert G.spaced_indices(1000, 10, "trailing") == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert G.spaced_indices(1000, 10, "linspace")[:2] == [999, 888]
    assert G.spaced_indices(1000, 10, "linspace")[-1] == 0
    want = [999, 922, 845, 768, 691, 614, 537, 461, 384, 307, 230, 153, 76]
    assert G.spaced_indices(1000, 13, "trailing") == want


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 2, 7, 13, 50, 999, 1000])
def test_spacing_is_strictly_falling_inside_the_table(spacing, steps):
    out = G.spaced_indices(1000, steps, spacing)
    assert len(out) == steps
    assert all(a > b for a, b in pairwise(out))
    assert 0 <= out[-1] <= out[0] <= 999


def test_spaced_times_are_table_rows():
    path = tabulated("linear", 1000)
    grid = G.spaced(path, 10, "trailing")
    assert grid.t[0] == 1.0
    assert grid.t[-1] == 0.0
    a = grid.scales.alpha[:-1]
    want = torch.tensor([path.abar[n] for n in G.spaced_indices(1000, 10, "trailing")], dtype=torch.float64).sqrt()
    torch.testing.assert_close(a, want, rtol=1e-13, atol=0)


def test_below_and_reversed():
    grid = G.uniform(Straight(), 4)
    assert grid.below(0.6).t == (0.6, 0.5, 0.25, 0.0)
    assert grid.below(0.5).t == (0.5, 0.25, 0.0)
    up = grid.reversed()
    assert up.t == (0.25, 0.5, 0.75, 1.0)
    assert up.rising
    assert grid.reversed(0.01).t == (0.01, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    "times", [(0.5,), (0.2, 0.5, 0.3), (0.9, 0.9, 0.1), (1.2, 0.5), (0.5, -0.1), (0.5, math.nan), (math.inf, 0.0)]
)
def test_bad_times(times):
    with pytest.raises(GridError):
        G.given(Straight(), times)


def test_bad_requests():
    with pytest.raises(RangeError):
        G.uniform(Straight(), 0)
    with pytest.raises(RangeError):
        G.karras(EDM(), 5, sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(RangeError):
        G.karras(EDM(), 5, rho=0)
    with pytest.raises(GridError, match="Lower sigma_max"):
        G.karras(EDM(10.0), 5, sigma_max=80.0)
    with pytest.raises(RangeError):
        G.log_snr(VP(), 5, start=3, end=-3)
    with pytest.raises(UnknownNameError, match="trailing"):
        G.spaced_indices(1000, 5, "trailin")
    with pytest.raises(RangeError):
        G.spaced_indices(10, 11, "leading")
    with pytest.raises(RangeError):
        G.spaced_indices(10, 10, "leading", 1)
    with pytest.raises(DTypeError):
        G.spaced(Trig(), 5)  # type: ignore[arg-type]
    with pytest.raises(DTypeError):
        G.given(Straight(), ["a"])  # type: ignore[list-item]
    with pytest.raises(GridError):
        G.uniform(Straight(), 4).below(0.0)
