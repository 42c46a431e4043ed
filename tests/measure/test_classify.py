import math
import sys
import warnings

import pytest
import torch
from scipy.stats import wasserstein_distance

from wayfield.core.errors import DTypeError, MissingExtraError, NonFiniteError, RangeError, ShapeError, UnknownNameError
from wayfield.measure import accuracy, c2st, ece, inception_score, sliced_wasserstein


def gaussian(n, d, seed, shift=0.0, scale=1.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def probabilities(n, k, seed):
    return (2 * gaussian(n, k, seed)).softmax(1)


def labels(n, k, seed):
    return torch.randint(0, k, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [2, 10])
def test_inception_score_of_balanced_one_hot_and_constant_rows(k):
    one_hot = torch.eye(k).repeat(20, 1)
    assert inception_score(one_hot).mean == pytest.approx(k, rel=1e-12)
    assert inception_score(torch.full((50, k), 1 / k)).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(one_hot[:1].repeat(50, 1)).mean == pytest.approx(1, rel=1e-12)


def test_inception_score_is_exp_of_mutual_information():
    p = probabilities(100, 5, 0)
    marginal = p.mean(0)
    kl = [sum(float(a * (a / b).log()) for a, b in zip(row, marginal, strict=True)) for row in p]
    assert inception_score(p).mean == pytest.approx(math.exp(sum(kl) / 100), rel=1e-10)
    assert inception_score(p).std == 0


def test_inception_score_agrees_with_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    logits = gaussian(120, 6, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the features they keep, and the deviation of a single split
        theirs = InceptionScore(feature=torch.nn.Identity(), splits=1)
        theirs.update(logits)
        expected = theirs.compute()[0]
    assert inception_score(logits.softmax(1)).mean == pytest.approx(float(expected), rel=1e-6)


def test_inception_score_splits():
    one_hot = torch.eye(10).repeat_interleave(100, 0)
    shuffled = inception_score(one_hot, splits=5, seed=1)
    assert 9 < shuffled.mean < 10
    assert shuffled.std > 0
    assert shuffled == inception_score(one_hot, splits=5, seed=1)
    assert shuffled != inception_score(one_hot, splits=5, seed=2)
    assert inception_score(one_hot.roll(3, 0)).mean == pytest.approx(10, rel=1e-12)


def test_inception_score_default_splits_are_of_five_thousand():
    p = probabilities(19999, 3, 2)
    assert inception_score(p, seed=3) == inception_score(p, splits=3, seed=3)


def test_probabilities_are_checked():
    with pytest.raises(RangeError, match="softmax"):
        inception_score(gaussian(20, 3, 4))
    with pytest.raises(RangeError, match="softmax"):
        ece(torch.full((20, 3), 0.5), labels(20, 3, 0))
    with pytest.raises(NonFiniteError):
        inception_score(torch.full((20, 3), math.nan))
    with pytest.raises(ShapeError):
        inception_score(torch.full((20,), 0.5))
    for splits in (0, 21):
        with pytest.raises(RangeError, match="splits"):
            inception_score(probabilities(20, 3, 5), splits=splits)


def test_accuracy_agrees_with_torchmetrics():
    from torchmetrics.functional.classification import multiclass_accuracy

    p, y = probabilities(200, 4, 6), labels(200, 4, 7)
    expected = float(multiclass_accuracy(p, y, num_classes=4, average="micro"))
    assert accuracy(p, y) == pytest.approx(expected, abs=1e-7)
    assert accuracy(p.log(), y) == accuracy(p, y) == accuracy(p.argmax(1), y)
    assert accuracy(y, y) == 1


def test_labels_are_checked():
    p, y = probabilities(20, 3, 8), labels(20, 3, 9)
    with pytest.raises(ShapeError):
        accuracy(p, y[:10])
    with pytest.raises(ShapeError):
        accuracy(y, y[:10])
    with pytest.raises(ShapeError):
        accuracy(p, y[:, None])
    with pytest.raises(DTypeError):
        accuracy(p, y.float())
    with pytest.raises(DTypeError):
        accuracy(y.float(), y)
    with pytest.raises(RangeError, match=r"0\.\.2"):
        accuracy(p, y + 1)
    with pytest.raises(RangeError):
        ece(p, y - 1)
    with pytest.raises(ShapeError):
        accuracy(y[:0], y[:0])


def test_ece_agrees_with_torchmetrics_off_the_edges():
    from torchmetrics.functional.classification import multiclass_calibration_error

    p, y = probabilities(500, 4, 10), labels(500, 4, 11)
    for bins in (1, 10, 15):
        expected = multiclass_calibration_error(p, y, num_classes=4, n_bins=bins, norm="l1")
        assert ece(p, y, bins=bins) == pytest.approx(float(expected), abs=1e-6)


def test_ece_closed_forms():
    sure = torch.eye(2)[labels(40, 2, 12)]
    assert ece(sure, sure.argmax(1)) == 0
    assert ece(sure, 1 - sure.argmax(1)) == 1
    p = torch.tensor([[0.8, 0.2]]).repeat(10, 1)
    y = torch.tensor([0] * 8 + [1] * 2)
    assert ece(p.double(), y) == pytest.approx(0, abs=1e-7)
    assert ece(p.double(), torch.zeros(10, dtype=torch.long)) == pytest.approx(0.2, abs=1e-7)


def test_ece_bins_are_closed_on_the_right():
    """1/2 lies in (0, 1/2], 0.9 in (1/2, 1]: the gaps +1/2 and -0.9 do not cancel; in one bin [1/2, 1) they would."""
    p, y = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=torch.float64), torch.tensor([0, 1])
    assert ece(p, y, bins=2) == pytest.approx((0.5 + 0.9) / 2, abs=1e-12)
    with pytest.raises(RangeError, match="bins"):
        ece(p, y, bins=0)


def test_ece_row_order():
    p, y = probabilities(100, 4, 13), labels(100, 4, 14)
    assert ece(p.flip(0), y.flip(0)) == pytest.approx(ece(p, y), abs=1e-14)


@pytest.mark.parametrize("classifier", ["rbf", "mlp"])
def test_c2st_same_and_separated(classifier):
    """Under equality within 4 standard deviations of 1/2 (sqrt(1 / (8 N)) = 0.025 at N = 200)."""
    x = gaussian(200, 3, 15)
    assert abs(c2st(x, gaussian(200, 3, 16), classifier=classifier) - 0.5) < 0.1
    assert c2st(x, gaussian(200, 3, 17, 6.0), classifier=classifier) > 0.99


def test_c2st_sees_what_a_linear_classifier_cannot():
    """Same mean, other scale: N(0, 1) against N(0, 3^2) in 4 dimensions; the Bayes accuracy is about 0.87."""
    assert c2st(gaussian(300, 4, 18), gaussian(300, 4, 19, scale=3.0)) > 0.8


def test_c2st_bayes_accuracy():
    """Shift m of unit Gaussians: Phi(m / 2) is the best accuracy; m = 2 gives 0.841."""
    x, y = gaussian(500, 1, 20), gaussian(500, 1, 21, 2.0)
    best = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    assert c2st(x, y) == pytest.approx(best, abs=0.04)


@pytest.mark.parametrize("classifier", ["rbf", "mlp"])
def test_c2st_seed(classifier):
    x, y = gaussian(60, 2, 22), gaussian(60, 2, 23, 0.5)
    value = c2st(x, y, classifier=classifier, seed=1)
    assert value == c2st(x, y, classifier=classifier, seed=1)
    assert 0 <= value <= 1


def test_c2st_constant_feature_and_tiny_sets():
    x, y = gaussian(6, 2, 24), gaussian(6, 2, 25)
    x[:, 1] = y[:, 1] = 1.0
    assert 0 <= c2st(x, y, folds=6) <= 1


def test_c2st_bad_input():
    x = gaussian(20, 2, 26)
    with pytest.raises(ShapeError, match="20 and 19"):
        c2st(x, x[:19])
    with pytest.raises(ShapeError):
        c2st(x, x[:, :1])
    for folds in (1, 21):
        with pytest.raises(RangeError, match="folds"):
            c2st(x, x, folds=folds)
    with pytest.raises(UnknownNameError, match="rbf"):
        c2st(x, x, classifier="rbff")
    with pytest.raises(NonFiniteError):
        c2st(x, x / 0)


def test_c2st_names_the_missing_extra(monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r'pip install "wayfield\[measure\]"'):
        c2st(gaussian(20, 2, 27), gaussian(20, 2, 28))


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 25), (7, 12), (1, 5)])
def test_sliced_wasserstein_in_one_dimension_agrees_with_scipy(n, m):
    x, y = gaussian(n, 1, 29), gaussian(m, 1, 30, 0.4, 1.5)
    expected = wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, p=1, projections=3) == pytest.approx(expected, rel=1e-10)


def test_sliced_wasserstein_of_two_shifted_gaussians():
    """SW_2 = |m| / sqrt(d): N = 4000, 2000 directions; Monte-Carlo error of the mean square sqrt(2 / 2000) = 3%."""
    d, n = 6, 4000
    shift = gaussian(1, d, 31)
    x, y = gaussian(n, d, 32), gaussian(n, d, 33) + 2 * shift
    expected = 2 * float(shift.norm()) / math.sqrt(d)
    assert sliced_wasserstein(x, y, projections=2000) == pytest.approx(expected, rel=0.05)


def test_sliced_wasserstein_of_a_translated_set_is_exact_per_direction():
    """Translation by v moves each projection by theta.v; with d = 1 that is |v| whatever p."""
    x = gaussian(50, 1, 34)
    for p in (1, 2, 3.5):
        assert sliced_wasserstein(x, x + 2.5, p=p) == pytest.approx(2.5, rel=1e-10)


def test_sliced_wasserstein_is_a_metric():
    x, y, z = gaussian(50, 3, 35), gaussian(60, 3, 36, 1.0), gaussian(70, 3, 37, -1.0)
    assert sliced_wasserstein(x, x) == 0
    assert sliced_wasserstein(x, y) == pytest.approx(sliced_wasserstein(y, x), rel=1e-12)
    assert sliced_wasserstein(y, z) <= sliced_wasserstein(y, x) + sliced_wasserstein(x, z)
    assert sliced_wasserstein(x.flip(0), y.roll(3, 0)) == pytest.approx(sliced_wasserstein(x, y), rel=1e-12)
    assert sliced_wasserstein(x.repeat(3, 1), y) == pytest.approx(sliced_wasserstein(x, y), rel=1e-10)


def test_sliced_wasserstein_seed_and_global_generator():
    x, y = gaussian(50, 3, 38), gaussian(50, 3, 39, 1.0)
    before = torch.random.get_rng_state()
    assert sliced_wasserstein(x, y, seed=1) == sliced_wasserstein(x, y, seed=1)
    assert sliced_wasserstein(x, y, seed=1) != sliced_wasserstein(x, y, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("options", [{"p": 0.5}, {"p": math.inf}, {"p": math.nan}, {"projections": 0}])
def test_sliced_wasserstein_bad_input(options):
    x = gaussian(10, 2, 40)
    with pytest.raises(RangeError):
        sliced_wasserstein(x, x, **options)
    with pytest.raises(ShapeError):
        sliced_wasserstein(x, x[:, :1])
