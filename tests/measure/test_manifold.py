import math

import pytest
import torch

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError
from wayfield.measure import PRDC, manifold, neighbour_radii, prdc


def gaussian(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def lattice(n, d, seed):
    """Small integers: many equal distances and duplicates, where < and <= part."""
    return torch.randint(0, 3, (n, d), generator=torch.Generator().manual_seed(seed)).double()


def brute(real, fake, k, k_density):
    """The formulas, one pair at a time."""
    x, y = real.tolist(), fake.tolist()

    def radius(points, i, k):
        return sorted(math.dist(points[i], p) for j, p in enumerate(points) if j != i)[k - 1]

    rx, ry = [radius(x, i, k) for i in range(len(x))], [radius(y, j, k) for j in range(len(y))]
    ro = [radius(x, i, k_density) for i in range(len(x))]
    precision = sum(any(math.dist(a, b) <= r for a, r in zip(x, rx, strict=True)) for b in y) / len(y)
    recall = sum(any(math.dist(a, b) <= r for b, r in zip(y, ry, strict=True)) for a in x) / len(x)
    density = sum(math.dist(a, b) < r for a, r in zip(x, ro, strict=True) for b in y) / (k_density * len(y))
    coverage = sum(min(math.dist(a, b) for b in y) < r for a, r in zip(x, ro, strict=True)) / len(x)
    return PRDC(precision, recall, density, coverage)


@pytest.mark.parametrize(("k", "k_density"), [(1, 1), (3, 5), (4, 2)])
@pytest.mark.parametrize("make", [gaussian, lattice])
def test_brute_force(make, k, k_density):
    for seed in range(4):
        real, fake = make(25, 3, 2 * seed), make(18, 3, 2 * seed + 1) + 0.0
        assert prdc(real, fake, k=k, k_density=k_density) == pytest.approx(brute(real, fake, k, k_density), abs=1e-12)


@pytest.mark.parametrize("make", [gaussian, lattice])
def test_identical_sets(make):
    x = make(60, 4, 1)
    result = prdc(x, x)
    assert result.precision == 1
    assert result.recall == 1


def test_identical_sets_have_coverage_one_and_density_near_one():
    """Each ball holds itself and its k - 1 nearer neighbours: density is exactly 1 where no distances tie."""
    x = gaussian(60, 4, 2)
    assert prdc(x, x).coverage == 1
    assert prdc(x, x).density == pytest.approx(1, abs=1e-12)


def test_far_sets():
    assert prdc(gaussian(40, 3, 3), gaussian(40, 3, 4, 100.0)) == PRDC(0, 0, 0, 0)


def test_closed_ball_for_precision_open_for_coverage():
    """Reals 0, 1, 2, 3 on a line, k = 1: every radius is 1, the fakes at 4 and 5 touch the last ball from outside."""
    real, fake = torch.arange(4.0)[:, None], torch.tensor([[4.0], [5.0]])
    result = prdc(real, fake, k=1, k_density=1)
    assert result == PRDC(precision=0.5, recall=0.25, density=0.0, coverage=0.0)


def test_mode_drop_is_recall_and_junk_is_precision():
    real = torch.cat([gaussian(200, 2, 5), gaussian(200, 2, 6, 20.0)])
    dropped, junk = gaussian(200, 2, 7), torch.cat([real[:300] + 0.01, gaussian(100, 2, 8, -50.0)])
    low_recall, low_precision = prdc(real, dropped), prdc(real, junk)
    assert low_recall.recall <= 0.5 < 0.9 < low_recall.precision
    assert low_precision.precision == pytest.approx(0.75)
    assert low_precision.recall > 0.6


def test_expected_coverage_of_equal_distributions():
    """1 - prod (N - i) / (N + M - i), over 40 seeds within 3 standard errors (false alarm 0.3%)."""
    n, m, k = 60, 40, 5
    expected = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    values = torch.tensor([prdc(gaussian(n, 2, 2 * s), gaussian(m, 2, 2 * s + 1)).coverage for s in range(40)])
    assert abs(float(values.mean()) - expected) < 3 * float(values.std()) / math.sqrt(40)


def test_radii_agree_with_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    x = gaussian(80, 5, 9)
    expected = NearestNeighbors(n_neighbors=4).fit(x.numpy()).kneighbors(return_distance=True)[0][:, 3]
    torch.testing.assert_close(neighbour_radii(x, k=4), torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


def test_duplicates_have_radius_exactly_zero():
    x = gaussian(10, 64, 10).repeat(3, 1) * 1e3
    assert torch.equal(neighbour_radii(x, k=2), torch.zeros(30, dtype=torch.float64))
    assert float(neighbour_radii(x, k=3).min()) > 0


@pytest.mark.parametrize("make", [gaussian, lattice])
def test_blocks_and_row_order_change_nothing(make, monkeypatch):
    real, fake = make(70, 4, 11), make(50, 4, 12)
    value = prdc(real, fake)
    assert prdc(real.flip(0), fake.roll(11, 0)) == value
    monkeypatch.setattr(manifold, "_BLOCK", 200)
    assert prdc(real, fake) == value
    monkeypatch.setattr(manifold, "_BLOCK", 1)
    assert prdc(real, fake) == value


def test_swapping_the_sets_swaps_precision_and_recall():
    real, fake = gaussian(70, 4, 13), gaussian(50, 4, 14, 0.5)
    a, b = prdc(real, fake), prdc(fake, real)
    assert (a.precision, a.recall) == (b.recall, b.precision)


def test_bad_input():
    x = gaussian(10, 3, 15)
    for options in ({"k": 10}, {"k": 0}, {"k_density": 10}, {"k_density": 0}):
        with pytest.raises(RangeError, match="10 samples"):
            prdc(x, x, **options)
    with pytest.raises(RangeError, match="k_density"):
        prdc(x, x[:4])
    with pytest.raises(ShapeError):
        prdc(x, x[:, :2])
    with pytest.raises(ShapeError):
        prdc(x[None], x)
    with pytest.raises(NonFiniteError):
        prdc(x, x * math.nan)
    with pytest.raises(RangeError):
        neighbour_radii(x, k=10)
