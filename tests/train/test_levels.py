"""Level distributions: exact quantiles, one meaning on every path, never a singular level."""

from __future__ import annotations

import math

import pytest
import torch

from wayfield.core.errors import DTypeError, RangeError
from wayfield.core.path import EDM, VE, VP, Cosine, Straight, Trig
from wayfield.core.predict import KINDS, Kind, check_regular
from wayfield.core.schedule import tabulated
from wayfield.train.levels import LogitNormal, LogNormal, Shifted, Uniform, borders

PATHS = [
    Straight(),
    Trig(),
    VP(),
    Cosine(),
    VE(),
    EDM(80.0),
    tabulated("cosine", 100),
    tabulated(T=50, zero_terminal_snr=True),
]
LEVELS = [
    Uniform(),
    LogNormal(),
    LogNormal(-0.6, 1.2),
    LogitNormal(0.3, 1.1),
    Shifted(Uniform(), 3.0),
    Shifted(LogNormal(), 0.2),
]
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)
every = pytest.mark.parametrize("levels", LEVELS, ids=repr)
U = torch.tensor([1e-12, 1e-6, 0.05, 0.25, 0.5, 0.75, 0.95, 1 - 1e-6, 1 - 1e-12], dtype=torch.float64)
Z = {0.25: -0.6744897501960817, 0.5: 0.0, 0.975: 1.959963984540054}


@every
@every_path
def test_times_are_increasing_inside_and_never_singular(levels, path):
    t = levels.times(U, path)
    low, high = borders(path, getattr(levels, "t_min", 0.0))
    assert t.dtype == torch.float64
    assert bool((t.diff() >= 0).all())
    assert low - 1e-12 <= float(t[0]) <= float(t[-1]) <= high + 1e-12
    assert 0 <= low < high <= 1
    ratio = (-0.5 * path.log_snr(t)).exp()
    assert bool(((ratio >= 0.99e-4) & (ratio <= 1.01e4)).all())
    for kind in KINDS:
        check_regular(Kind(kind), path, t)
        assert all(bool(c.isfinite().all()) for c in Kind(kind).solve_row(path.scales(t)))


@pytest.mark.parametrize("path", [EDM(80.0), VP(), Straight(), Cosine()], ids=repr)
def test_log_normal_quantiles(path):
    for u, z in Z.items():
        t = LogNormal(-1.2, 1.2).times(torch.tensor([u], dtype=torch.float64), path)
        assert float(-0.5 * path.log_snr(t)) == pytest.approx(-1.2 + 1.2 * z, abs=1e-7)


def test_log_normal_tail_piles_up_at_the_end_of_the_path():
    t = LogNormal(-0.6, 1.2).times(torch.linspace(0.001, 0.999, 999, dtype=torch.float64), EDM(10.0))
    share = float((t == 1).double().mean())  # P(z > (ln 10 + 0.6) / 1.2) = 0.0078
    assert share == pytest.approx(1 - float(torch.special.ndtr(torch.tensor((math.log(10) + 0.6) / 1.2))), abs=1.1e-3)


def test_logit_normal_quantiles_and_its_meaning_on_the_straight_path():
    for u, z in Z.items():
        t = float(LogitNormal(0.3, 1.1).times(torch.tensor([u], dtype=torch.float64), Straight()))
        assert math.log(t / (1 - t)) == pytest.approx(0.3 + 1.1 * z, abs=1e-12)
    assert torch.allclose(
        LogitNormal(0.3, 1.1).times(U[1:-1], Straight()), LogNormal(0.3, 1.1).times(U[1:-1], Straight())
    )


def test_uniform_is_affine_from_its_first_time_to_the_end():
    assert torch.allclose(Uniform(0.2).times(U, VP()), 0.2 + 0.8 * U, atol=1e-12)
    assert float(Uniform(0.0).times(U, tabulated(T=10))[0]) == pytest.approx(0.1)  # the first row of the table


def test_shift_is_the_known_formula_on_the_straight_path():
    t = Uniform().times(U[2:-2], Straight())
    for s in (0.5, 3.0):
        assert torch.allclose(Shifted(Uniform(), s).times(U[2:-2], Straight()), s * t / (1 + (s - 1) * t), atol=1e-12)


@every_path
def test_shift_multiplies_the_noise_level_on_every_path(path):
    u = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64)
    before, after = (
        path.log_snr(levels.times(u, path)) for levels in (LogNormal(-1.0, 0.5), Shifted(LogNormal(-1.0, 0.5), 2.0))
    )
    assert torch.allclose(after, before - 2 * math.log(2.0), atol=1e-8)


@every
def test_repr_rebuilds(levels):
    assert eval(repr(levels)) == levels


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Uniform(1.0), RangeError),
        (lambda: Uniform(-0.1), RangeError),
        (lambda: LogNormal(std=0.0), RangeError),
        (lambda: LogNormal(mean=float("nan")), RangeError),
        (lambda: LogNormal(mean="low"), DTypeError),
        (lambda: LogitNormal(std=-1.0), RangeError),
        (lambda: Shifted(Uniform(), 0.0), RangeError),
        (lambda: Shifted("Uniform", 2.0), DTypeError),
    ],
)
def test_bad_settings_are_refused(make, error):
    with pytest.raises(error):
        make()
