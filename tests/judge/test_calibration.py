"""Calibration: worked cases of ECE, its laws, temperatures by hand, and what the judge is shown at a level."""

import pytest
import torch

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from wayfield.core.path import VP, Straight
from wayfield.judge import ece, fit_temperature, fit_temperatures, integral_ece, logits_at, reliability
from wayfield.measure.classify import ece as measured


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_constant_confidence():
    """Confidence 0.9 and accuracy 0.7: 0.2 exactly."""
    conf = torch.full((10,), 0.9, dtype=torch.float64)
    assert ece(conf, torch.arange(10) < 7) == pytest.approx(0.2, abs=1e-15)


def test_a_calibrated_predictor_has_none():
    conf = torch.rand(1_000_000, generator=generator(), dtype=torch.float64)
    correct = torch.rand(1_000_000, generator=generator(1), dtype=torch.float64) < conf
    assert ece(conf, correct) < 2e-3


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_laws(bins):
    conf = torch.rand(300, generator=generator(2), dtype=torch.float64)
    correct = torch.rand(300, generator=generator(3)) < 0.4
    order = torch.randperm(300, generator=generator(4))
    value = ece(conf, correct, bins)
    assert 0 <= value <= 1
    assert ece(conf[order], correct[order], bins) == pytest.approx(value, abs=1e-14)
    assert ece(torch.ones(5), torch.zeros(5), bins) == 1
    assert ece(torch.zeros(5), torch.zeros(5), bins) == 0


def test_it_is_the_measure_of_probabilities():
    logits, labels = torch.randn(500, 4, generator=generator(5), dtype=torch.float64), torch.arange(500) % 4
    p = logits.softmax(1)
    conf, choice = p.max(1)
    assert ece(conf, choice == labels) == pytest.approx(measured(p, labels), abs=1e-14)


def test_reliability_curve():
    """Edges belong to the bin below; empty bins are NaN."""
    got = reliability(torch.tensor([0.2, 0.25, 0.5, 0.9]), torch.tensor([1, 0, 1, 0]), bins=4)
    assert got.rows.tolist() == [2, 1, 0, 1]
    torch.testing.assert_close(
        got.confidence[[0, 1, 3]], torch.tensor([0.225, 0.5, 0.9], dtype=torch.float64), atol=1e-7, rtol=0
    )
    assert got.accuracy[[0, 1, 3]].tolist() == [0.5, 1.0, 0.0]
    assert bool(got.accuracy[2].isnan())


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_temperature_undoes_a_scaling(true):
    """Labels drawn from softmax(f); the judge says true * f."""
    f = 2 * torch.randn(40_000, 3, generator=generator(6), dtype=torch.float64)
    labels = torch.multinomial(f.softmax(1), 1, generator=generator(7))[:, 0]
    assert fit_temperature(true * f, labels) == pytest.approx(true, rel=0.03)


def test_temperature_is_where_the_likelihood_is_flat():
    f, labels = torch.randn(50, 3, generator=generator(8), dtype=torch.float64), torch.arange(50) % 3
    best = torch.tensor(fit_temperature(f, labels), dtype=torch.float64).log().requires_grad_()
    nll = torch.nn.functional.cross_entropy(f / best.exp(), labels)
    (grad,) = torch.autograd.grad(nll, best)
    assert abs(float(grad)) < 1e-8


def test_temperature_stays_in_bounds():
    sure = 3 * torch.eye(3, dtype=torch.float64)
    assert fit_temperature(sure, torch.arange(3)) == pytest.approx(1e-3)
    assert fit_temperature(-sure, torch.arange(3)) == pytest.approx(1e3)


def posterior(den):
    return lambda x, level: den.net.posterior(x, VP().time(2 * (level.alpha / level.sigma).log())).log()


def drawn(den, n):
    """Data and labels of the mixture of conftest."""
    weights = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    k = torch.multinomial(weights, n, replacement=True, generator=generator(9))
    means = torch.tensor([-1.0, 0.2, 1.1], dtype=torch.float64)[k, None]
    return means + 0.3 * torch.randn(n, 1, generator=generator(10), dtype=torch.float64), torch.tensor([0, 1, 1])[k]


def test_the_exact_posterior_is_calibrated_at_every_level(mixture):
    den = mixture(VP())
    x0, labels = drawn(den, 20_000)
    got = integral_ece(posterior(den), x0, labels, (0.1, 0.3, 0.6), path=VP())
    assert got.mean == pytest.approx(sum(got.ece) / 3)
    assert max(got.ece) < 0.02
    assert got.accuracy[0] > got.accuracy[2]
    hot = integral_ece(lambda x, level: 3 * posterior(den)(x, level), x0, labels, (0.1, 0.3, 0.6), path=VP())
    assert hot.mean > got.mean + 0.02
    temperatures = fit_temperatures(lambda x, l: 3 * posterior(den)(x, l), x0, labels, (0.1, 0.3, 0.6), path=VP())
    levels = [a for a, _ in temperatures]
    assert levels == sorted(levels)
    assert [b for _, b in temperatures] == pytest.approx([3.0] * 3, rel=0.1)


def test_clean_judges_see_what_the_model_predicts(mixture):
    den = mixture(VP())
    x0, labels = drawn(den, 700)
    seen = []

    def judge(x):
        seen.append(x)
        return torch.cat([x, -x], 1)

    whole = logits_at(judge, x0, 0.4, path=VP(), on="clean", denoiser=den, cond={"label": labels}, seed=2)
    noisy = logits_at(lambda x, level: x, x0, 0.4, path=VP(), seed=2)
    torch.testing.assert_close(torch.cat(seen), den(noisy, 0.4, {"label": labels}).x0)
    assert whole.shape == (700, 2)
    part = logits_at(judge, x0[:3], 0.4, path=VP(), on="clean", denoiser=den, cond={"label": labels[:3]}, seed=2)
    torch.testing.assert_close(part, whole[:3])


def test_what_does_not_fit_is_refused(mixture):
    x0, labels = torch.zeros(4, 1, dtype=torch.float64), torch.tensor([0, 1, 0, 1])

    def judge(x, level):
        return torch.cat([x, -x], 1)

    with pytest.raises(ShapeError):
        ece(torch.rand(3), torch.rand(4))
    with pytest.raises(RangeError, match="softmax"):
        ece(torch.tensor([1.5]), torch.ones(1))
    with pytest.raises(NonFiniteError):
        ece(torch.tensor([float("nan")]), torch.ones(1))
    with pytest.raises(RangeError, match="bins"):
        ece(torch.rand(3), torch.ones(3), 0)
    with pytest.raises(ShapeError, match="logits"):
        fit_temperature(torch.zeros(4, 1), labels)
    with pytest.raises(RangeError, match="labels"):
        fit_temperature(torch.zeros(4, 2), labels + 1)
    with pytest.raises(NonFiniteError, match="logits"):
        fit_temperature(torch.full((4, 2), float("nan")), labels)
    with pytest.raises(UnknownNameError, match="judge input"):
        logits_at(judge, x0, 0.5, path=VP(), on="x0")
    with pytest.raises(UnsupportedError, match="no denoiser"):
        logits_at(judge, x0, 0.5, path=VP(), on="clean")
    with pytest.raises(UnsupportedError, match="one of"):
        logits_at(judge, x0, 0.5, path=Straight(), on="clean", denoiser=mixture(VP()))
    with pytest.raises(RangeError, match="times"):
        integral_ece(judge, x0, labels, (), path=VP())
    with pytest.raises(RangeError, match="t:"):
        logits_at(judge, x0, 1.5, path=VP())
