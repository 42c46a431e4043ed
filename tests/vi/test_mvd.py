"""Measure-valued derivatives: their means, what is refused, what they cost, and what their alternatives are. See `toys`
for the rate of false alarms.
"""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Beta, Gamma, Independent, Normal, Uniform
from toys import (
    COIN,
    assert_unbiased,
    coin_guide,
    coin_model,
    derivatives,
    drawn_cost,
    row_gradients,
    stacked,
    t,
)

from wayfield.core.errors import UnsupportedError
from wayfield.vi import MVD, Objective, Reinforce, elbo, iwelbo
from wayfield.vi.measure_valued import pairs
from wayfield.vi.seeding import seeded


def objective_of(dist, strategy, cost=torch.square, **options):
    return Objective(lambda run, *a: cost(run.simulate(lambda h: h.sample("x", dist(*a), strategy)).result), **options)


def test_normal_pairs_have_the_moments_of_their_laws():
    """W Rayleigh: E W = sqrt(pi / 2). M double-sided Maxwell: E M = 0, E M^2 = 3. Errors below 5 standard errors."""
    mu, s = t(0.4, grad=True), t(0.8, grad=True)
    x = torch.zeros(200_000, dtype=torch.float64)
    with seeded(0):
        mean, scale = pairs("x", Normal(mu, s), x, coupled=True)
    w = (mean.plus - 0.4) / 0.8
    assert w.mean().item() == pytest.approx(math.sqrt(math.pi / 2), abs=5 * 0.66 / 447)
    assert torch.allclose(mean.plus - 0.4, 0.4 - mean.minus)
    m, n = ((v - 0.4) / 0.8 for v in (scale.plus, scale.minus))
    assert m.mean().item() == pytest.approx(0, abs=5 * math.sqrt(3) / 447)
    assert m.square().mean().item() == pytest.approx(3, abs=5 * math.sqrt(6) / 447)
    assert n.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2) / 447)
    assert n.pow(4).mean().item() == pytest.approx(3, abs=5 * math.sqrt(96) / 447)
    assert mean.coefficient[0].item() == pytest.approx(1 / (0.8 * math.sqrt(2 * math.pi)))
    assert scale.coefficient[0].item() == pytest.approx(1 / 0.8)


def test_only_parameters_with_a_gradient_are_run_for():
    told = objective_of(Normal, MVD()).explain(t(0.4, grad=True), t(0.8))
    assert "runs 3 times" in told
    assert "runs 5 times" in objective_of(Normal, MVD()).explain(t(0.4, grad=True), t(0.8, grad=True))
    assert "runs 1 times" in objective_of(Normal, MVD()).explain(t(0.4), t(0.8))


def test_every_particle_has_runs_of_its_own():
    assert "runs 5 times" in iwelbo(coin_model, coin_guide(MVD()), 4).explain(t(COIN[0], grad=True))
    assert "runs 2 times" in elbo(coin_model, coin_guide(MVD()), samples=4).explain(t(COIN[0], grad=True))


def test_a_distribution_without_a_decomposition_is_refused_by_name():
    with pytest.raises(UnsupportedError, match=r"MVD\(\) at site 'x': got Beta.*Bernoulli"):
        objective_of(Beta, MVD())(t(0.4, grad=True), t(0.8), seed=0)


def test_gamma_s_concentration_is_refused_by_name():
    with pytest.raises(UnsupportedError, match=r"site 'x': got a concentration.*Implicit"):
        objective_of(Gamma, MVD())(t(0.4, grad=True), t(0.8), seed=0)


@pytest.mark.parametrize("strategy", [MVD(), Reinforce()], ids=repr)
def test_a_support_that_moves_with_a_parameter_is_refused(strategy):
    with pytest.raises(UnsupportedError, match=r"site 'x'.*support"):
        objective_of(lambda a: Uniform(t(0.0), a), strategy)(t(0.4, grad=True), seed=0)


def test_more_runs_than_the_limit_are_refused():
    with pytest.raises(UnsupportedError, match=r"MVD\(\) at site 'b': got 5 components"):
        iwelbo(coin_model, coin_guide(MVD(limit=4)), 5)(t(COIN[0], grad=True), seed=0)


def test_an_unlikely_branch_costs_no_variance():
    """The correction does not divide by p: at p = 1e-9 its variance is that of the cost's two values, zero here."""
    p = t(1e-9).expand(1000).clone().requires_grad_()
    objective = objective_of(Bernoulli, MVD(), cost=lambda b: 3 * b + 1, batch_dims=1)
    objective(p, seed=0).surrogate.backward()
    assert torch.allclose(p.grad * 1000, torch.full_like(p, 3.0), rtol=1e-12)


# Oracle 9 and the measure-valued triples


def sin2(x):
    return torch.sin(2 * x)


@pytest.mark.parametrize("coupled", [True, False])
def test_mvd_of_a_normal(coupled):
    _, gradients = row_gradients(drawn_cost(Normal, sin2, MVD(coupled)), (0.4, 0.8), 400_000)
    assert_unbiased(gradients, [2 * math.cos(0.8) * math.exp(-1.28), -3.2 * math.sin(0.8) * math.exp(-1.28)])
    assert gradients.mean(1).tolist() == pytest.approx([0.387421, -0.638246], abs=0.01)


def categorical(*a):
    return torch.distributions.Categorical(logits=stacked(*a))


SINES = lambda x: torch.sin(x[..., 0]) * torch.cos(x[..., 1]) + x[..., 0] * x[..., 2]  # noqa: E731
TRIPLES = {  # distribution of the parameters, parameters, cost, its mean in closed form
    "bernoulli": (Bernoulli, (0.3,), torch.exp, lambda p: 1 + p * (math.e - 1)),
    "bernoulli near 1": (Bernoulli, (0.999,), torch.exp, lambda p: 1 + p * (math.e - 1)),
    "bernoulli logits": (
        lambda l: Bernoulli(logits=l),
        (0.3,),
        torch.exp,
        lambda l: 1 + torch.sigmoid(l) * (math.e - 1),
    ),
    "categorical": (
        categorical,
        (0.1, -0.4, 0.6),
        lambda x: t(1.0, -2.0, 5.0)[x],
        lambda *a: (torch.softmax(torch.stack(a), 0) * t(1.0, -2.0, 5.0)).sum(),
    ),
    "categoricals": (
        lambda a, b: Independent(
            torch.distributions.Categorical(logits=torch.stack([stacked(a, b, 0 * a), stacked(b, a, b)], -2)), 1
        ),
        (0.4, -0.3),
        lambda x: t(1.0, -2.0, 5.0)[x[..., 0]] * t(2.0, 1.0, -1.0)[x[..., 1]],
        lambda a, b: (
            (torch.softmax(stacked(a, b, 0 * a), 0) * t(1.0, -2.0, 5.0)).sum()
            * (torch.softmax(stacked(b, a, b), 0) * t(2.0, 1.0, -1.0)).sum()
        ),
    ),
    "poisson": (torch.distributions.Poisson, (2.3,), lambda x: 0.5**x, lambda r: torch.exp(-0.5 * r)),
    "exponential": (torch.distributions.Exponential, (1.7,), lambda x: (-x).exp(), lambda r: r / (r + 1)),
    "gamma rate": (
        lambda r: Gamma(t(2.5).expand(r.shape), r),
        (1.7,),
        lambda x: (-x).exp(),
        lambda r: (r / (r + 1)) ** 2.5,
    ),
    "normals": (
        lambda a, b, c, s: Independent(Normal(stacked(a, b, c), s[..., None]), 1),
        (0.3, -0.5, 0.8, 0.6),
        SINES,
        lambda a, b, c, s: torch.sin(a) * torch.cos(b) * torch.exp(-s * s) + a * c,
    ),
    "bernoullis": (
        lambda a, b, c: Independent(Bernoulli(stacked(a, b, c)), 1),
        (0.3, 0.5, 0.8),
        lambda x: (1 + x * t(1.0, 2.0, 3.0)).prod(-1),
        lambda a, b, c: (1 + a) * (1 + 2 * b) * (1 + 3 * c),
    ),
    "poissons": (
        lambda a, b: Independent(torch.distributions.Poisson(stacked(a, b)), 1),
        (1.3, 0.5),
        lambda x: 0.5 ** x[..., 0] * x[..., 1],
        lambda a, b: torch.exp(-0.5 * a) * b,
    ),
}


@pytest.mark.parametrize("coupled", [True, False], ids=["coupled", "apart"])
@pytest.mark.parametrize("case", TRIPLES.values(), ids=TRIPLES)
def test_measure_valued_derivatives(case, coupled):
    dist, parameters, cost, mean = case
    _, gradients = row_gradients(drawn_cost(dist, cost, MVD(coupled)), parameters, 100_000, seed=1)
    assert_unbiased(gradients, derivatives(mean, parameters))


def test_coupling_lowers_the_variance_of_a_smooth_cost():
    var = {c: row_gradients(drawn_cost(Normal, sin2, MVD(c)), (0.4, 0.8), 20_000)[1].var(1) for c in (True, False)}
    assert (var[True] < var[False]).all()


def test_what_is_drawn_downstream_depends_on_the_alternative():
    def program(h, m):
        x = h.sample("x", Normal(m, t(0.7)), MVD())
        return x * h.sample("g", Gamma(torch.exp(x), t(1.0)), Reinforce())

    def mean(m):  # E x e^x, x normal with variance 0.49
        return (m + 0.49) * torch.exp(m + 0.245)

    objective = Objective(lambda run, m: run.simulate(program, m).result, batch_dims=1)
    _, gradients = row_gradients(objective, (0.2,), 100_000)
    assert_unbiased(gradients, derivatives(mean, (0.2,)))
