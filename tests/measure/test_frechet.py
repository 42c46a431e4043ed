import math
import warnings

import pytest
import torch
from scipy.linalg import sqrtm

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, ShapeError, WayfieldError
from wayfield.measure import Moments, SmallSampleWarning, frechet_distance, frechet_infinity
from wayfield.measure.frechet import check_features, check_pair


def gaussian(n, d, seed, scale=1.0, shift=0.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def mixed(n, d, seed):
    return gaussian(n, d, seed) @ gaussian(d, d, seed + 1000) + gaussian(1, d, seed + 2000)


def diagonal(mean, variances, n=10**9):
    return Moments(torch.as_tensor(mean).double(), torch.diag(torch.as_tensor(variances).double()), n)


@pytest.mark.parametrize("d", [1, 2, 7, 64])
def test_diagonal_closed_form(d):
    m1, m2 = gaussian(2, d, 0)
    l1, l2 = gaussian(2, d, 1).exp()
    expected = float((m1 - m2).square().sum() + (l1.sqrt() - l2.sqrt()).square().sum())
    got = frechet_distance(diagonal(m1, l1), diagonal(m2, l2))
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("d", [2, 16, 64])
def test_rotated_closed_form(d):
    """Commuting covariances: one orthogonal basis, known eigenvalues."""
    q = torch.linalg.qr(gaussian(d, d, 3)).Q
    l1, l2 = gaussian(2, d, 4).exp()
    a, b = (Moments(torch.zeros(d).double(), q @ torch.diag(v) @ q.T, 10**9) for v in (l1, l2))
    assert frechet_distance(a, b) == pytest.approx(float((l1.sqrt() - l2.sqrt()).square().sum()), rel=1e-9)


def test_close_covariances_do_not_cancel():
    """The trace form loses this: trace 64, distance 1.6e-7, true relative error of the result below 1e-8."""
    x = gaussian(2000, 64, 5)
    a = Moments.of(x)
    b = Moments(a.mean, a.cov * (1 + 1e-4) ** 2, a.n)
    assert frechet_distance(a, b) == pytest.approx(1e-8 * float(a.cov.trace()), rel=1e-8)


def test_zero_for_equal_sets():
    x = mixed(500, 20, 6)
    assert 0 <= frechet_distance(x, x) < 1e-6
    assert frechet_distance(x, x) < 1e-12 * float(Moments.of(x).cov.trace())


def test_zero_for_equal_singular_sets():
    x = gaussian(300, 4, 7) @ gaussian(4, 20, 8)
    assert 0 <= frechet_distance(x, x) < 1e-12 * float(Moments.of(x).cov.trace())


def test_singular_against_full_rank_closed_form():
    """Rank 1 against the identity, d = 10: |1 - s|^2 + 9, s the standard deviation along the one direction."""
    direction = gaussian(1, 10, 9)[0]
    direction = direction / direction.norm()
    a = Moments(torch.zeros(10).double(), 4.0 * torch.outer(direction, direction), 10**9)
    assert frechet_distance(a, diagonal(torch.zeros(10), torch.ones(10))) == pytest.approx(10.0, rel=1e-12)


def test_agrees_with_scipy_sqrtm():
    x, y = mixed(400, 12, 10), mixed(300, 12, 11)
    a, b = Moments.of(x), Moments.of(y)
    root = sqrtm((a.cov @ b.cov).numpy()).real
    expected = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root.trace()
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-9)


def test_agrees_with_torchmetrics_form():
    from torchmetrics.image.fid import _compute_fid

    x, y = mixed(400, 12, 12), mixed(300, 12, 13)
    a, b = Moments.of(x), Moments.of(y)
    assert frechet_distance(x, y) == pytest.approx(float(_compute_fid(a.mean, a.cov, b.mean, b.cov)), rel=1e-9)


def test_symmetric_row_order_and_float_type():
    x, y = mixed(400, 8, 14), mixed(300, 8, 15)
    value = frechet_distance(x, y)
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-12)
    assert frechet_distance(x.flip(0), y.roll(7, 0)) == pytest.approx(value, rel=1e-12)
    assert frechet_distance(x.float(), y.float()) == pytest.approx(value, rel=1e-5)
    assert frechet_distance(Moments.of(x), y) == value


def test_translation_and_rotation():
    x, y = mixed(400, 8, 16), mixed(300, 8, 17)
    q = torch.linalg.qr(gaussian(8, 8, 18)).Q
    value = frechet_distance(x, y)
    assert frechet_distance(x @ q + 3, y @ q + 3) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(2 * x, 2 * y) == pytest.approx(4 * value, rel=1e-12)


def test_moments_use_unbiased_covariance():
    x = gaussian(50, 5, 19)
    m = Moments.of(x)
    torch.testing.assert_close(m.cov, torch.cov(x.T), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(m.mean, x.mean(0))
    assert m.n == 50
    assert m.cov.dtype == torch.float64


def test_merge_is_exact():
    x = mixed(700, 6, 20)
    whole, merged = Moments.of(x), Moments.of(x[:100]).merge(Moments.of(x[100:102])).merge(Moments.of(x[102:]))
    assert merged.n == whole.n
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.cov, whole.cov, rtol=1e-12, atol=1e-12)


def test_refuses_few_samples_and_warns_below_ten_d():
    x = gaussian(200, 10, 21)
    with pytest.raises(RangeError, match="allow_small=True"):
        frechet_distance(x, x[:19])
    with pytest.warns(SmallSampleWarning, match="19 samples in 10 dimensions"):
        frechet_distance(x, x[:19], allow_small=True)
    with pytest.warns(SmallSampleWarning):
        frechet_distance(x[:99], x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(x[:100], x)


def test_warning_points_at_the_caller():
    with pytest.warns(SmallSampleWarning) as record:
        frechet_distance(gaussian(30, 5, 22), gaussian(30, 5, 23))
    assert record[0].filename == __file__
    assert len(record) == 1


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.3, 1.3)])
def test_infinity_removes_the_bias_on_gaussians(shift, scale):
    """True FD known; 60 seeds. FD_N is many standard errors off, FD_inf within 3 (false alarm 0.3%) and 5x nearer."""
    d, n = 8, 400
    truth = d * shift**2 + d * (scale - 1) ** 2
    real = diagonal(torch.zeros(d), torch.ones(d))
    plain, limit = [], []
    for seed in range(60):
        x = gaussian(n, d, 100 + seed, scale, shift)
        plain.append(frechet_distance(real, x) - truth)
        limit.append(frechet_infinity(real, x, smallest=100, seed=seed).value - truth)
    plain, limit = torch.tensor(plain), torch.tensor(limit)
    assert float(plain.mean()) > 3 * float(plain.std()) / math.sqrt(60)
    assert abs(float(limit.mean())) < 3 * float(limit.std()) / math.sqrt(60)
    assert abs(float(limit.mean())) < float(plain.mean()) / 5


def test_infinity_fits_its_own_points():
    fit = frechet_infinity(gaussian(500, 4, 24), gaussian(400, 4, 25), smallest=60)
    assert len(fit.sizes) == len(fit.distances) == 15
    assert fit.sizes[0] == 60
    assert fit.sizes[-1] == 400
    design = torch.stack([torch.ones(15).double(), 1 / torch.tensor(fit.sizes).double()], 1)
    expected = torch.linalg.lstsq(design, torch.tensor(fit.distances, dtype=torch.float64)[:, None]).solution[:, 0]
    assert fit.value == pytest.approx(float(expected[0]), rel=1e-9)
    assert fit.slope == pytest.approx(float(expected[1]), rel=1e-9)


def test_infinity_last_point_is_the_plain_distance_and_default_smallest():
    x, y = gaussian(500, 4, 26), gaussian(400, 4, 27)
    fit = frechet_infinity(x, y)
    assert fit.distances[-1] == pytest.approx(frechet_distance(x, y), rel=1e-10)
    assert fit.sizes[0] == 40
    assert frechet_infinity(gaussian(50, 4, 26), y[:50]).sizes[0] == 8


def test_infinity_seed():
    x, y = gaussian(500, 4, 28), gaussian(400, 4, 29)
    before = torch.random.get_rng_state()
    first = frechet_infinity(x, y, seed=1)
    assert first == frechet_infinity(x, y, seed=1)
    assert first != frechet_infinity(x, y, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("options", [{"sizes": 1}, {"smallest": 40}, {"smallest": 1}, {"smallest": 7}])
def test_infinity_bad_sizes(options):
    with pytest.raises(RangeError):
        frechet_infinity(gaussian(100, 4, 30), gaussian(40, 4, 31), **options)


def test_infinity_small_subsets_allowed_on_request():
    fit = frechet_infinity(gaussian(100, 4, 30), gaussian(40, 4, 31), smallest=5, allow_small=True)
    assert fit.sizes[0] == 5


def test_bad_features():
    good = gaussian(50, 4, 32)
    bad = good.clone()
    bad[3, 1] = math.nan
    with pytest.raises(NonFiniteError, match="1 values"):
        frechet_distance(good, bad)
    bad[3, 1] = math.inf
    with pytest.raises(NonFiniteError):
        frechet_distance(bad, good)
    with pytest.raises(ShapeError, match="flatten"):
        frechet_distance(good, good.reshape(50, 2, 2))
    with pytest.raises(ShapeError):
        frechet_distance(good[:, 0], good)
    with pytest.raises(ShapeError, match="4 and 3"):
        frechet_distance(good, good[:, :3])
    with pytest.raises(DTypeError):
        frechet_distance(good, good.long())
    with pytest.raises(DTypeError):
        frechet_distance(good, good.tolist())
    with pytest.raises(RangeError):
        frechet_distance(good, good[:1], allow_small=True)


def test_bad_moments():
    mean, cov = torch.zeros(3).double(), torch.eye(3).double()
    with pytest.raises(DTypeError):
        Moments(mean.float(), cov, 10)
    with pytest.raises(ShapeError):
        Moments(mean, cov[:2], 10)
    with pytest.raises(ShapeError):
        Moments(mean[None], cov, 10)
    with pytest.raises(RangeError):
        Moments(mean, cov, 1)
    with pytest.raises(RangeError, match="asymmetric"):
        Moments(mean, cov + torch.triu(torch.ones(3, 3), 1), 10)
    with pytest.raises(NonFiniteError):
        Moments(mean / 0, cov, 10)
    with pytest.raises(RangeError, match="eigenvalue"):
        frechet_distance(Moments(mean, -cov, 100), Moments(mean, cov, 100))
    with pytest.raises(ShapeError):
        Moments(mean, cov, 10).merge(diagonal(torch.zeros(2), torch.ones(2)))


def test_errors_carry_got_expected_remedy():
    with pytest.raises(WayfieldError) as caught:
        check_pair(gaussian(5, 2, 33), gaussian(5, 3, 34))
    assert caught.value.got == "2 and 3"
    assert caught.value.remedy


def test_check_features_detaches_and_widens():
    x = gaussian(5, 2, 35).float().requires_grad_()
    y = check_features("x", x)
    assert y.dtype == torch.float64
    assert not y.requires_grad
