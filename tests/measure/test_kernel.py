import math

import pytest
import torch

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError
from wayfield.measure import KID, kid, mmd2
from wayfield.measure.kernel import cubic_kernel


def gaussian(n, d, seed, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def brute_mmd2(x, y):
    d, n, m = x.shape[1], len(x), len(y)

    def k(a, b):
        return (float(a @ b) / d + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


@pytest.mark.parametrize(("n", "m"), [(7, 7), (6, 9), (2, 2)])
def test_mmd2_brute_force(n, m):
    x, y = gaussian(n, 3, 0), gaussian(m, 3, 1, 0.5)
    assert float(mmd2(x, y)) == pytest.approx(brute_mmd2(x, y), rel=1e-12)


def test_kernel_agrees_with_scikit_learn():
    from sklearn.metrics.pairwise import polynomial_kernel

    x, y = gaussian(6, 5, 2), gaussian(8, 5, 3)
    torch.testing.assert_close(cubic_kernel(x, y), torch.as_tensor(polynomial_kernel(x, y)), rtol=1e-12, atol=1e-12)


def test_mmd2_agrees_with_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    x, y = gaussian(50, 16, 4), gaussian(50, 16, 5, 0.2)
    assert float(mmd2(x, y)) == pytest.approx(float(poly_mmd(x, y)), rel=1e-10)
    whole = kid(x, y, subsets=1, subset_size=50)
    assert whole.mean == pytest.approx(float(poly_mmd(x, y)), rel=1e-10)
    assert whole.std == 0


def test_two_halves_have_mean_zero():
    """Random halves of one sample: unbiased, so 60 splits average to 0 within 3 standard errors (false alarm 0.3%)."""
    pool, values = gaussian(400, 8, 6), []
    for seed in range(60):
        rows = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
        values.append(kid(pool[rows[:200]], pool[rows[200:]], subsets=1, subset_size=200).mean)
    values = torch.tensor(values)
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(60)
    assert float(values.min()) < 0 < float(values.max())


def test_unbiased_for_every_subset_size():
    """One dimension, k = (xy + 1)^3, x ~ N(0,1), y ~ N(1,1): MMD^2 = 3 (0-1)^2 + 3 (1-2)^2 + (0-4)^2 = 22."""
    for size in (5, 50):
        values = torch.tensor(
            [float(mmd2(gaussian(size, 1, 2 * s), gaussian(size, 1, 2 * s + 1, 1.0))) for s in range(2000)]
        )
        assert abs(float(values.mean()) - 22) < 3 * float(values.std()) / math.sqrt(2000)


def test_separates_and_grows():
    x = gaussian(300, 8, 7)
    values = [kid(x, gaussian(300, 8, 8, shift), subsets=5, subset_size=200).mean for shift in (0.0, 0.5, 1.0)]
    assert values[0] < 0.05 < values[1] < values[2]


def test_seed_and_global_generator():
    x, y = gaussian(100, 4, 9), gaussian(120, 4, 10, 0.3)
    before = torch.random.get_rng_state()
    first = kid(x, y, subsets=10, subset_size=50, seed=3)
    assert isinstance(first, KID)
    assert first == kid(x, y, subsets=10, subset_size=50, seed=3)
    assert first != kid(x, y, subsets=10, subset_size=50, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_row_order():
    """Full subsets see every row, so only rounding remains; smaller ones are other draws of the same estimate."""
    x, y = gaussian(100, 4, 11), gaussian(100, 4, 12, 0.3)
    value = kid(x, y, subsets=3, subset_size=100)
    assert kid(x.flip(0), y.roll(9, 0), subsets=3, subset_size=100).mean == pytest.approx(value.mean, rel=1e-10)
    assert value.std < 1e-12


def test_bad_input():
    x = gaussian(50, 4, 13)
    for subsets, size in ((0, 10), (1, 51), (1, 1)):
        with pytest.raises(RangeError):
            kid(x, x, subsets=subsets, subset_size=size)
    with pytest.raises(RangeError, match="subset_size"):
        kid(x, x)
    with pytest.raises(ShapeError):
        kid(x, x[:, :2], subset_size=10)
    with pytest.raises(NonFiniteError):
        kid(x, x * math.inf, subset_size=10)
