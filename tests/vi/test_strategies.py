"""Every strategy against closed forms: unbiased, with the variance theory gives. See `toys` for the false alarms."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Beta, Dirichlet, Gamma
from toys import (
    COIN,
    COIN_EXACT,
    LIMIT,
    MIXED,
    MIXED_GRADIENT,
    assert_unbiased,
    coin_guide,
    coin_model,
    derivatives,
    drawn_cost,
    mixed,
    mixed_exact,
    row_gradients,
    stacked,
    t,
    z_scores,
)

from wayfield.vi import MVD, Enum, Implicit, Learned, LeaveOneOut, Objective, Reinforce, Reparam, iwelbo

COINS = {
    "reinforce": Reinforce(),
    "constant": Reinforce(1.5),
    "leave one out": Reinforce(LeaveOneOut()),
    "enum": Enum(),
    "mvd": MVD(),
}
ROWS = 400_000


# Oracle 1


def test_the_known_gradient_is_the_closed_form_s():
    thetas = [t(p, grad=True) for p in MIXED]
    found = torch.autograd.grad(mixed_exact(*thetas), thetas)
    assert torch.stack(found).tolist() == pytest.approx(MIXED_GRADIENT, abs=5e-5)


@pytest.mark.parametrize("coin", COINS.values(), ids=COINS)
def test_every_strategy_of_the_coin_has_the_mixed_program_s_gradient(coin):
    samples = 2 if coin == COINS["leave one out"] else 1
    value, gradients = row_gradients(mixed(coin, Reparam(), samples=samples), MIXED, ROWS // samples)
    assert_unbiased(gradients, exact_gradient())
    assert abs(value - 2.555238) < LIMIT * 3.8 / math.sqrt(ROWS)  # the cost's deviation is 3.8


@pytest.mark.parametrize("gauss", [Reinforce(), Reinforce(2.0), MVD(), MVD(coupled=False)], ids=repr)
def test_so_does_every_strategy_of_the_gaussian(gauss):
    _, gradients = row_gradients(mixed(Enum(), gauss), MIXED, ROWS // 2)
    assert_unbiased(gradients, exact_gradient())


def exact_gradient():
    thetas = [t(p, grad=True) for p in MIXED]
    return [g.item() for g in torch.autograd.grad(mixed_exact(*thetas), thetas)]


def test_enumeration_with_the_gaussian_by_quadrature_is_exact():
    import numpy

    where, weight = (torch.tensor(v, dtype=torch.float64) for v in numpy.polynomial.hermite_e.hermegauss(8))

    def program(h, l, m0, m1, c):
        b = h.sample("b", Bernoulli(logits=l), Enum())
        x = (m0 + (m1 - m0) * b)[..., None] + (0.7 + 0.4 * b)[..., None] * where
        return ((x * x * (1 + b)[..., None] + (b * c)[..., None]) * weight).sum(-1) / weight.sum()

    thetas = [t(p, grad=True) for p in MIXED]
    estimate = Objective(lambda run, *a: run.simulate(program, *a).result)(*thetas, seed=0)
    found = torch.autograd.grad(estimate.surrogate, thetas)
    assert estimate.value.item() == pytest.approx(mixed_exact(*thetas).item(), abs=1e-10)
    assert [g.item() for g in found] == pytest.approx(exact_gradient(), abs=1e-10)


def test_without_the_score_the_coin_has_no_gradient_and_the_check_sees_it():
    def program(h, l):
        h.sample("b", Bernoulli(logits=l), Reinforce())

    def body(run, l):
        b = run.simulate(program, l, frozen=True).values["b"]
        return b * 3 + l * 0

    _, gradients = row_gradients(Objective(body, batch_dims=1), (0.3,), 1000)
    assert torch.equal(gradients, torch.zeros_like(gradients))
    assert not z_scores(gradients, [0.77]).lt(LIMIT).all()


@pytest.mark.parametrize(
    ("coin", "variance"), [(Reinforce(), 3.70), (Reinforce(2.555238), 2.69), (Enum(), 1.50), (MVD(), 1.50)], ids=repr
)
def test_variance_of_a_single_draw(coin, variance):
    _, gradients = row_gradients(mixed(coin, Reparam()), MIXED, 1_000_000, seed=3)
    assert gradients[0].var().item() == pytest.approx(variance, rel=0.03)


# Oracle 2


@pytest.mark.parametrize("n", COIN_EXACT)
def test_enumeration_of_particles_is_exact(n):
    l = t(COIN[0], grad=True)
    estimate = iwelbo(coin_model, coin_guide(Enum()), n)(l, seed=0)
    estimate.surrogate.backward()
    want = iwelbo_by_counts(n)
    assert (estimate.value.item(), l.grad.item()) == pytest.approx(want, abs=1e-12)
    assert want == pytest.approx(COIN_EXACT[n], abs=1e-6)


def iwelbo_by_counts(n):
    """Exact (value, gradient): the number of ones among n particles is binomial."""
    l = t(COIN[0], grad=True)
    p = torch.sigmoid(l)
    value = t(0.0)
    for k in range(n + 1):
        mean = (k * 0.15 / p + (n - k) * 0.35 / (1 - p)) / n
        value = value + math.comb(n, k) * p**k * (1 - p) ** (n - k) * mean.log()
    value.backward()
    return value.item(), l.grad.item()


@pytest.mark.parametrize("strategy", [Reinforce(), Reinforce(-0.8), Reinforce(LeaveOneOut()), MVD()], ids=repr)
@pytest.mark.parametrize("n", [2, 3])
def test_particles_are_unbiased(strategy, n):
    objective = iwelbo(coin_model, coin_guide(strategy), n, batch_dims=1)
    _, gradients = row_gradients(objective, COIN, 200_000, seed=n)
    assert_unbiased(gradients, [COIN_EXACT[n][1]])


def test_vimco_keeps_the_signal_that_plain_reinforce_loses():
    variance = []
    for baseline in (None, LeaveOneOut()):
        objective = iwelbo(coin_model, coin_guide(Reinforce(baseline)), 8, batch_dims=1)
        variance.append(row_gradients(objective, COIN, 20_000)[1].var().item())
    assert variance[1] < 0.05 * variance[0]


def test_a_score_inside_the_logarithm_gives_exactly_zero():
    def wrong(run, l):
        q = run.simulate(coin_guide(None), l, n=2, frozen=True)
        log_q = Bernoulli(logits=l).log_prob(q.values["b"])
        magic = log_q - log_q.detach()
        return q.logmeanexp(run.log_density(coin_model, q, l) - log_q + magic)

    _, gradients = row_gradients(Objective(wrong, batch_dims=1), COIN, 1000)
    assert gradients.abs().max() < 1e-12
    assert not torch.allclose(gradients.mean(), t(COIN_EXACT[2][1]), atol=0.1)


# Implicit


@pytest.mark.parametrize(
    ("dist", "parameters", "cost", "mean"),
    [
        (Gamma, (2.5, 1.7), lambda x: (-x).exp(), lambda k, r: (r / (r + 1)) ** k),
        (Beta, (1.5, 2.5), torch.square, lambda a, b: a * (a + 1) / ((a + b) * (a + b + 1))),
        (
            lambda a, b, c: Dirichlet(stacked(a, b, c)),
            (1.2, 2.0, 0.7),
            lambda x: x[..., 0] * x[..., 1],
            lambda a, b, c: a * b / ((a + b + c) * (a + b + c + 1)),
        ),
    ],
    ids=["gamma", "beta", "dirichlet"],
)
def test_implicit_derivatives(dist, parameters, cost, mean):
    _, gradients = row_gradients(drawn_cost(dist, cost, Implicit()), parameters, 50_000, seed=2)
    assert_unbiased(gradients, derivatives(mean, parameters))


# Baselines


def test_a_learned_baseline_is_unbiased_and_regresses_to_the_mean_cost():
    table = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    kind = torch.arange(100_000) % 2

    def program(h, l):
        b = h.sample("b", Bernoulli(logits=l), Reinforce(Learned(table[kind])))
        return b * (1 + 3 * kind) + 0 * l

    objective = Objective(lambda run, l: run.simulate(program, l).result, batch_dims=1)
    optimiser = torch.optim.SGD([table], lr=0.5)
    for step in range(12):
        optimiser.zero_grad()
        l = t(0.3).expand(100_000).clone().requires_grad_()
        (-objective(l, seed=step).surrogate).backward()
        optimiser.step()
    p = torch.sigmoid(t(0.3)).item()
    assert table.tolist() == pytest.approx([p, 4 * p], rel=0.03)
    want = p * (1 - p)
    assert_unbiased((-l.grad * 100_000).reshape(-1, 2).T, [want, 4 * want])


def test_a_learned_baseline_lowers_the_variance():
    mean = t(2.555)
    var = [row_gradients(mixed(Reinforce(b), Reparam()), MIXED, 50_000)[1][0].var() for b in (None, Learned(mean))]
    assert var[1] < 0.8 * var[0]


def test_leave_one_out_of_particles_that_are_averaged_is_the_others_mean():
    def body(run, l):
        q = run.simulate(coin_guide(Reinforce(LeaveOneOut())), l, n=3)
        return q.mean(q.values["b"] * 5 + 100)

    _, gradients = row_gradients(Objective(body, batch_dims=1), (0.3,), 20_000)
    p = torch.sigmoid(t(0.3)).item()
    assert_unbiased(gradients, [5 * p * (1 - p)])
    # sum_i s_i (c_i - mean of others) / 3, s_i = b_i - p: the constant 100 has gone
    assert gradients.var().item() < 10


@pytest.mark.parametrize("samples", [2, 5])
def test_leave_one_out_equals_its_formula(samples):
    l = t(0.3).expand(50).clone().requires_grad_()
    drawn = []

    def body(run, l):
        b = run.simulate(coin_guide(Reinforce(LeaveOneOut())), l).values["b"]
        drawn.append(b)
        return 2 * b + 1

    Objective(body, samples=samples, batch_dims=1)(l, seed=4).surrogate.backward()
    b = drawn[-1]
    cost = 2 * b + 1
    others = (cost.sum(0) - cost) / (samples - 1)
    want = ((b - torch.sigmoid(l)) * (cost - others)).mean(0) / 50
    assert torch.allclose(l.grad, want.detach(), atol=1e-14)
