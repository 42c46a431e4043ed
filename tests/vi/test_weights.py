"""Effective sample size and the tail of importance weights, against scipy's Pareto draws and weights of known tail."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import genpareto

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError
from wayfield.vi.weights import effective_sample_size, pareto_k, pareto_limit


def test_ess_of_equal_weights_is_their_number_and_of_one_weight_one():
    for n in (1, 7, 1000):
        assert float(effective_sample_size(torch.full((n,), -800.0, dtype=torch.float64))) == pytest.approx(n)
    alone = torch.tensor([0.0, -math.inf, -math.inf])
    assert float(effective_sample_size(alone)) == 1


def test_ess_by_its_formula_on_any_dim():
    w = torch.tensor([[1.0, 2.0, 3.0], [4.0, 1.0, 0.5]], dtype=torch.float64)
    want = w.sum(1).square() / w.square().sum(1)
    torch.testing.assert_close(effective_sample_size(w.log() + 500, 1), want, rtol=1e-12, atol=0)
    torch.testing.assert_close(effective_sample_size(w.log().T), want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("k", [-0.3, 0.1, 0.5, 0.7, 1.2])
def test_k_of_pareto_draws(k):
    """Excesses of a Pareto variable over a threshold have the same k. The mean of 200 fits to M = 425 excesses has a
    standard error of (1 + k) / sqrt(M) / sqrt(200) < 0.01; the fit's own bias at this M was measured, 0.004 to 0.013.
    """
    S, M = 20_000, math.ceil(3 * math.sqrt(20_000))
    draws = genpareto.rvs(c=k, size=(200, S), random_state=np.random.default_rng(0))
    found = pareto_k(torch.from_numpy(np.log(draws)), dim=1)
    assert found.shape == (200,)
    want = (k * M + 5) / (M + 10)
    assert abs(float(found.mean()) - want) < 4 * (1 + k) / math.sqrt(M * 200) + 0.013
    assert float(found.std()) == pytest.approx((1 + k) / math.sqrt(M), rel=0.25)


def test_few_draws_are_drawn_towards_one_half():
    """With M = 20 of 100 draws the prior of 10 moves 1.2 to 0.97; the fit's own bias at this M was measured, -0.05."""
    draws = genpareto.rvs(c=1.2, size=(2000, 100), random_state=np.random.default_rng(0))
    found = pareto_k(torch.from_numpy(np.log(draws)), dim=1)
    assert float(found.mean()) == pytest.approx((1.2 * 20 + 5) / 30, abs=0.08)


def test_k_agrees_with_maximum_likelihood():
    """scipy's fit to the same excesses: both estimate k with a spread of (1 + k) / sqrt(M) = 0.08, from the same draws.
    Measured differences are below 0.01, the prior taken off.
    """
    S, M = 20_000, math.ceil(3 * math.sqrt(20_000))
    for seed in range(3):
        w = np.sort(genpareto.rvs(c=0.6, size=S, random_state=np.random.default_rng(seed)))
        likely, _, _ = genpareto.fit(w[-M:] - w[-M - 1], floc=0)
        ours = (float(pareto_k(torch.from_numpy(np.log(w)))) * (M + 10) - 5) / M
        assert abs(ours - likely) < 0.02


def test_k_of_a_gaussian_guide():
    """A guide N(0, s^2) of N(0, 1) has weights with P(w > t) ~ t^(-1 / (1 - s^2)) up to a slow factor, so k = 1 - s^2
    in the limit, approached from below; and a guide that is too wide has bounded weights.
    """
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, dtype=torch.float64, generator=gen)
    found = [float(pareto_k(-(s**2) * x.square() / 2 + x.square() / 2)) for s in (0.4, 0.7, 0.9, 1.5)]
    assert 0.6 < found[0] < 0.95
    assert 0.3 < found[1] < 0.65
    assert found[0] > found[1] > found[2] > found[3]
    assert found[3] < 0


def test_k_does_not_depend_on_scale_and_survives_any_range():
    gen = torch.Generator().manual_seed(0)
    log_w = torch.randn(1000, dtype=torch.float64, generator=gen)
    assert float(pareto_k(log_w + 3000)) == pytest.approx(float(pareto_k(log_w)), abs=1e-9)
    assert float(pareto_k(1e5 * log_w)) > 1
    assert float(pareto_k(log_w.float())) == pytest.approx(float(pareto_k(log_w)), abs=1e-4)


def test_k_of_ties_and_of_no_tail():
    """A discrete guide has tied weights; an exact one has equal ones."""
    assert float(pareto_k(torch.zeros(100))) == -math.inf
    gen = torch.Generator().manual_seed(0)
    values = torch.tensor([-3.0, 0.0, 1.0, 1.5])
    tied = values[torch.randint(4, (3, 1000), generator=gen)]
    assert bool(pareto_k(tied, 1).isfinite().logical_or(pareto_k(tied, 1) == -math.inf).all())
    assert float(pareto_k(torch.cat([torch.zeros(90), torch.full((910,), -math.inf)]))) < 0.7


def test_limit_of_the_paper():
    assert pareto_limit(100) == pytest.approx(0.5)
    assert pareto_limit(1000) == pytest.approx(2 / 3)
    assert pareto_limit(10_000) == 0.7


@pytest.mark.parametrize("f", [effective_sample_size, pareto_k])
def test_bad_weights_are_refused(f):
    good = torch.zeros(100)
    for bad in (good.index_fill(0, torch.tensor(3), math.nan), good + math.inf, good - math.inf):
        with pytest.raises(NonFiniteError, match="log weights"):
            f(bad)
    for bad in (torch.zeros(100, dtype=torch.long), torch.zeros(()), [0.0] * 100):
        with pytest.raises(DTypeError, match="log weights"):
            f(bad)
    with pytest.raises(RangeError, match="draws"):
        pareto_k(torch.zeros(24))
    with pytest.raises(RangeError, match="draws"):
        pareto_limit(3)
