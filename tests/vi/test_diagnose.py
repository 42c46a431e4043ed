"""Reports of gradients and guides against closed forms: exact variances by quadrature and by enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from wayfield.vi.diagnose import bias_test, gradient_report, guide_report
from wayfield.vi.objective import Objective
from wayfield.vi.objectives import elbo, iwelbo
from wayfield.vi.reports import GradientRow
from wayfield.vi.strategy import Enum, Reinforce, Reparam


def leaf(x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def mixed(strategy, score=True):
    """Oracle 1 of the card: b ~ Bernoulli(sigmoid l), x | b ~ N(m_b, s_b), cost x^2 (1 + b) + b c."""
    parameters = {k: leaf(v) for k, v in {"l": 0.3, "m0": -0.5, "m1": 0.8, "c": 0.2}.items()}
    l, m0, m1, c = parameters.values()

    def program(h):
        b = h.sample("b", Bernoulli(logits=l if score else l.detach()), strategy)
        x = h.sample("x", Normal(m0 + (m1 - m0) * b, 0.7 + 0.4 * b), Reparam())
        return x * x * (1 + b) + b * c

    return Objective(lambda run: run.simulate(program).result), parameters


EXACT = {"l": 0.7725, "m0": -0.4256, "m1": 1.8382, "c": 0.5744}  # as the card gives them, 4 digits


def exact_moments(enumerated, count=60):
    """Mean, variance and fourth central moment of one draw of d/dl, by Gauss-Hermite quadrature: exact here."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    weights = weights / weights.sum()
    p = 1 / (1 + math.exp(-0.3))
    cost = [(-0.5 + 0.7 * nodes) ** 2, 2 * (0.8 + 1.1 * nodes) ** 2 + 0.2]
    if enumerated:  # each branch draws an x of its own
        g = p * (1 - p) * (cost[1][:, None] - cost[0][None])
        w = np.outer(weights, weights)
    else:
        g = np.stack([cost[0] * -p, cost[1] * (1 - p)])
        w = np.stack([(1 - p) * weights, p * weights])
    mean = (w * g).sum()
    return mean, (w * (g - mean) ** 2).sum(), (w * (g - mean) ** 4).sum()


@pytest.mark.parametrize(("strategy", "enumerated", "card"), [(Reinforce(), False, 3.70), (Enum(), True, 1.50)])
def test_variance_of_the_mixed_toy(strategy, enumerated, card):
    """Mean and variance within 4 standard errors, (m4 - m2^2) / N for the variance: false alarms 1 in 8000 each."""
    mean, variance, fourth = exact_moments(enumerated)
    assert variance == pytest.approx(card, rel=0.03)
    objective, parameters = mixed(strategy)
    N = 2000
    row = gradient_report(objective, parameters, draws=N, seed=1)["l"]
    assert abs(float(row.mean) - mean) < 4 * math.sqrt(variance / N)
    assert abs(float(row.variance) - variance) < 4 * math.sqrt((fourth - variance**2) / N)
    assert float(row.error) == pytest.approx(math.sqrt(float(row.variance) / N))


def two_states(n, strategy):
    """Oracle 2 of the card: a Bernoulli guide of joint weights 0.35 and 0.15."""
    l = leaf(0.4)

    def guide(h):
        h.sample("b", Bernoulli(logits=l), strategy)

    def model(h):
        b = h.sample("b", Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
        h.factor("evidence", math.log(0.5) + 0 * b)

    return iwelbo(model, guide, n), l


def exact_two_states(n):
    """Mean and variance of one draw of the score-function gradient, over all 2^n draws."""
    q = 1 / (1 + math.exp(-0.4))
    total = []
    for draw in itertools.product((0, 1), repeat=n):
        p = math.prod(q if b else 1 - q for b in draw)
        w = np.array([(0.15 / q) if b else (0.35 / (1 - q)) for b in draw])
        score = np.array([b - q for b in draw])
        total.append((p, math.log(w.mean()) * score.sum() - (w / w.sum() * score).sum()))
    p, g = np.array(total).T
    return (p * g).sum(), (p * g**2).sum() - (p * g).sum() ** 2


@pytest.mark.parametrize("n", [1, 3])
def test_signal_to_noise_of_the_iwelbo(n):
    """The ratio of N draws has a standard error of about sqrt((1 + snr^2 / 2) / N), taken 4 times."""
    mean, variance = exact_two_states(n)
    assert mean == pytest.approx({1: -0.299677, 3: -0.126199}[n], abs=1e-6)
    objective, l = two_states(n, Reinforce())
    N = 2000
    row = gradient_report(objective, l, draws=N)["0"]
    snr = abs(mean) / math.sqrt(variance)
    assert abs(row.snr - snr) < 4 * math.sqrt((1 + snr**2 / 2) / N)


def test_more_particles_drown_the_signal_of_a_reparameterised_guide():
    """Rainforth et al.: SNR of the guide's gradient falls as 1 / sqrt(n); from 1 to 64 eightfold, below the 0.05 that
    400 draws can tell from nothing.
    """
    x = torch.tensor(2.0, dtype=torch.float64)

    def model(h, x):
        z = h.sample("z", Normal(torch.zeros((), dtype=torch.float64), 1.0))
        h.observe("x", Normal(z, 1.0), x)

    mu = leaf(0.7)

    def guide(h, x):
        h.sample("z", Normal(mu, 0.7))

    one, many = (gradient_report(iwelbo(model, guide, n), mu, x, draws=400)["0"].snr for n in (1, 64))
    assert one > 0.3
    assert many < 0.1


def test_norm_is_without_what_noise_adds():
    """|mean|^2 - tr Var / N = 25 - 45 / 5 = 16; where noise is all there is, nothing is left."""
    mean, variance = torch.tensor([3.0, 4.0]), torch.tensor([20.0, 25.0])
    row = GradientRow("a", mean, variance, 5)
    assert (row.norm, row.noise, row.snr) == pytest.approx((4, math.sqrt(45), 4 / math.sqrt(45)))
    assert GradientRow("a", mean, variance, 1).snr == 0
    assert math.isnan(GradientRow("a", 0 * mean, 0 * variance, 5).snr)
    assert GradientRow("a", mean, 0 * variance, 5).snr == math.inf


def test_exact_gradient_has_no_noise():
    objective, l = two_states(2, Enum())
    row = gradient_report(objective, l, draws=3)["0"]
    assert float(row.mean) == pytest.approx(-0.184013, abs=1e-6)
    assert float(row.variance) < 1e-30
    assert row.snr > 1e12


def test_report_is_a_table_and_shows_what_is_not_used():
    objective, parameters = mixed(Enum())
    report = gradient_report(objective, parameters | {"idle": leaf([1.0, 2.0])}, draws=10)
    text = str(report)
    assert [line.split()[0] for line in text.splitlines()[1:6]] == ["l", "m0", "m1", "c", "idle"]
    assert "no gradient" in text
    assert "10 draws" in text
    assert not report["idle"].reached
    with pytest.raises(UnknownNameError, match="parameter"):
        report["z"]
    with pytest.raises(UnsupportedError, match="no gradient for idle"):
        gradient_report(objective, {"idle": leaf(1.0)}, draws=2)


def test_report_leaves_nothing_behind():
    """Neither gradients, nor buffers, nor the caller's generator move; the same seed gives the same report."""
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]])

    def program(h, x):
        return h.sample("z", Normal(net(x).sum(-1), 1.0))

    objective = Objective(lambda run, x: run.simulate(program, x).result, batch_dims=1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.default_generator.get_state()
    one, two = (gradient_report(objective, net, x, draws=3, seed=5) for _ in range(2))
    assert torch.equal(state, torch.default_generator.get_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(one["0.weight"].mean, two["0.weight"].mean)
    assert one["1.bias"].mean.shape == (2,)


def test_bias_test_passes_an_unbiased_estimator_and_sees_a_missing_score():
    """Four entries at a false-alarm rate of 1e-4; the missing score is off by 0.77, 10 standard errors."""
    reference, parameters = mixed(Enum())
    l, m0, m1, c = parameters.values()

    def same_parameters(strategy, score=True):
        def program(h):
            b = h.sample("b", Bernoulli(logits=l if score else l.detach()), strategy)
            x = h.sample("x", Normal(m0 + (m1 - m0) * b, 0.7 + 0.4 * b), Reparam())
            return x * x * (1 + b) + b * c

        return Objective(lambda run: run.simulate(program).result)

    good = bias_test(same_parameters(Reinforce()), reference, parameters, draws=600)
    assert good.passed, str(good)
    assert good.entries == 4
    assert abs(good.value_z) < 4
    assert "no bias seen" in str(good)
    bad = bias_test(same_parameters(Reinforce(), score=False), reference, parameters, draws=600)
    assert not bad.passed
    assert max(bad.z, key=lambda k: float(bad.z[k].abs())) == "l"
    assert bad.p_value < 1e-4
    assert "BIASED" in str(bad)


def test_bias_test_against_exact_gradients():
    objective, parameters = mixed(Reinforce())
    exact = {k: torch.tensor(v) for k, v in EXACT.items()}
    assert bias_test(objective, exact, parameters, draws=600).passed
    assert not bias_test(objective, exact | {"m1": torch.tensor(0.0)}, parameters, draws=600).passed


def test_bias_test_of_two_exact_estimators_allows_for_rounding_only():
    objective, l = two_states(2, Enum())
    g = torch.autograd.grad(objective(seed=0).surrogate, l)[0]
    assert bias_test(objective, [g * (1 + 1e-15)], l, draws=2).passed
    assert not bias_test(objective, [g * (1 + 1e-9)], l, draws=2).passed


def test_limit_of_false_alarms():
    objective, l = two_states(1, Enum())
    test = bias_test(objective, objective, l, draws=2, false_alarm=1e-4)
    assert test.limit == pytest.approx(3.8906, abs=1e-4)  # the normal's two-sided quantile
    assert test.largest == 0
    assert test.p_value == 1
    at_limit = type(test)({"a": torch.tensor([test.limit])}, test.limit, 1e-4, 2)
    assert at_limit.p_value == pytest.approx(1e-4)


def test_wrong_questions_are_refused():
    objective, l = two_states(1, Reinforce())
    for draws in (1, 0):
        with pytest.raises(RangeError, match="draws"):
            gradient_report(objective, l, draws=draws)
    with pytest.raises(RangeError, match="false_alarm"):
        bias_test(objective, objective, l, false_alarm=1.0)
    with pytest.raises(ShapeError, match="exact gradient of '0'"):
        bias_test(objective, [torch.zeros(2)], l, draws=2)
    with pytest.raises(ShapeError, match="exact gradients"):
        bias_test(objective, [torch.zeros(()), torch.zeros(())], l, draws=2)
    with pytest.raises(UnknownNameError, match="reference"):
        bias_test(objective, {"l": torch.zeros(())}, l, draws=2)
    root = leaf(0.0)
    broken = Objective(lambda run: (root * 0).abs().sqrt())
    with pytest.raises(NonFiniteError, match="gradient of parameter '0'"):
        gradient_report(broken, root, draws=2)


def gaussian(scale):
    """z ~ N(0, 1), x | z ~ N(z, 1): posterior N(x / 2, 1 / 2), evidence N(x; 0, 2)."""

    def model(h, x):
        z = h.sample("z", Normal(torch.zeros((), dtype=x.dtype), 1.0))
        h.observe("x", Normal(z, 1.0), x)

    def guide(h, x):
        h.sample("z", Normal(x / 2, math.sqrt(0.5) * scale))

    return model, guide


def test_exact_guide_has_every_draw_and_no_tail():
    x = torch.tensor([2.0, -1.0], dtype=torch.float64)
    report = guide_report(*gaussian(1.0), x, draws=200, batch_dims=1)
    want = Normal(torch.zeros((), dtype=x.dtype), math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(report.evidence, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(report.elbo, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(report.ess, torch.full((2,), 200.0, dtype=torch.float64))
    assert bool(report.trusted.all())
    assert "as it should be" in str(report)


def test_narrow_guide_is_caught_by_row():
    """A standard deviation 0.3 of the posterior's: k = 1 - 0.09 in the limit, 0.85 with a spread of 0.1 for so many
    draws (measured); exact, and twice as wide: bounded weights.
    """
    scale = torch.tensor([1.0, 0.3, 2.0], dtype=torch.float64).repeat(10)
    x = torch.linspace(-2, 2, 30, dtype=torch.float64)
    report = guide_report(*gaussian(scale), x, draws=4000, batch_dims=1)
    k, trusted = report.k.reshape(10, 3), report.trusted.reshape(10, 3)
    assert bool(trusted[:, [0, 2]].all())
    assert 0.7 < float(k[:, 1].mean()) < 1
    bad = 30 - int(trusted.sum())
    assert bad >= 7
    assert f"{bad} of 30 rows" in str(report)
    assert bool((report.elbo <= report.evidence + 1e-12).all())
    # ESS of a Gaussian guide: draws (E w)^2 / E w^2 = sqrt(2 - 1 / s^2) / s = sqrt(7) / 4 for s = 2, within 5 %
    assert float(report.ess.reshape(10, 3)[:, 2].mean()) / 4000 == pytest.approx(math.sqrt(7) / 4, rel=0.05)


def test_enumerated_sites_are_drawn():
    """ESS per draw of a Bernoulli guide: (E w)^2 / E w^2, 0.25 / (0.35^2 / (1 - q) + 0.15^2 / q); 4 s.e. < 5 %."""
    q = 1 / (1 + math.exp(-0.4))

    def guide(h):
        h.sample("b", Bernoulli(torch.tensor(q, dtype=torch.float64)), Enum())

    def model(h):
        b = h.sample("b", Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
        h.factor("evidence", math.log(0.5) + 0 * b)

    report = guide_report(model, guide, draws=5000)
    want = 0.25 / (0.35**2 / (1 - q) + 0.15**2 / q)
    assert float(report.ess) / 5000 == pytest.approx(want, rel=0.05)
    assert float(report.evidence) == pytest.approx(math.log(0.5), abs=0.05)
    bound = float(elbo(model, guide)(seed=0).value)
    assert abs(float(report.elbo) - bound) < 4 * float(report.elbo_error)
    with pytest.raises(RangeError, match="draws"):
        guide_report(model, guide, draws=10)
