"""The replay engine equals the vectorised one where both can run, and closed forms where Python decides by draws.

Statistical comparisons use independent calls with seeds of their own, at 4 standard errors; see `toys`.
"""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Exponential, Gamma, Independent, Normal
from toys import (
    COIN,
    PAIR,
    assert_unbiased,
    bound_renyi,
    coin_guide,
    coin_model,
    derivatives,
    exact,
    mixed_guide,
    mixed_model,
    mixed_states,
    stacked,
    t,
)

from wayfield.core.errors import UnsupportedError
from wayfield.vi import MVD, Enum, LeaveOneOut, Objective, Reinforce, Reparam, elbo, iwelbo


def objective_of(program, samples=1, engine="auto", **options):
    return Objective(lambda run, *a: run.simulate(program, *a).result, samples, engine=engine, **options)


def gradients_of(objective, parameters, calls, seed=0):
    """(P, calls) gradients and the mean value of independent calls."""
    thetas = [t(p, grad=True) for p in parameters]
    found, values = [], []
    for k in range(calls):
        estimate = objective(*thetas, seed=seed * 100_000 + k)
        found.append(torch.stack(torch.autograd.grad(estimate.surrogate, thetas)))
        values.append(estimate.value)
    return torch.stack(found, 1), torch.stack(values).mean()


# Equal where both run


def two_coins(h, p, q):
    a = h.sample("a", Bernoulli(p), Enum())
    b = h.sample("b", Bernoulli(q * (0.5 + 0.5 * a)), Enum())
    c = h.sample("c", Categorical(logits=stacked(p + a, q * b, p * 0)), Enum())
    return (1 + a) * (2 + b) ** 2 + c * c * q


def test_enumeration_is_the_same_in_both_engines():
    both = [gradients_of(objective_of(two_coins, engine=e), (0.3, 0.6), 1) for e in ("vectorised", "replay")]
    assert torch.allclose(both[0][0], both[1][0], atol=1e-13, rtol=0)
    assert torch.allclose(both[0][1], both[1][1], atol=1e-13, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_enumeration_of_particles_is_the_same_in_both_engines(n):
    found = []
    for engine in ("vectorised", "replay"):
        objective = Objective(iwelbo(coin_model, coin_guide(Enum()), n).body, engine=engine)
        found.append(gradients_of(objective, COIN, 1))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-13, rtol=0)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-13, rtol=0)


@pytest.mark.parametrize("coin", [Reinforce(), Reinforce(LeaveOneOut()), Enum(), MVD(), MVD(coupled=False)], ids=repr)
def test_both_engines_have_the_same_mean(coin):
    truth = exact(mixed_states, bound_renyi(0.0), 2, PAIR)[1]
    body = iwelbo(mixed_model, mixed_guide(coin), 2).body
    for engine, samples, calls in (("replay", 2, 150), ("vectorised", 2, 150)):
        objective = Objective(body, samples, engine=engine)
        assert_unbiased(gradients_of(objective, PAIR, calls)[0], truth)


def test_the_same_seed_gives_the_same_numbers_and_leaves_no_trace():
    objective = objective_of(walk(MVD()), samples=2)
    before = torch.get_rng_state()
    first, second = (gradients_of(objective, (0.4,), 1, seed=3)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, gradients_of(objective, (0.4,), 1, seed=4)[0])


# Python decides


def branch(strategy, then):
    def program(h, p, q):
        a = h.sample("a", Bernoulli(p), strategy)
        if a == 1:
            return 3 * h.sample("b", Bernoulli(q), then) + 1
        x = h.sample("c", Categorical(logits=torch.stack([q, 2 * q, -q])), then)
        return t(2.0, -1.0, 5.0)[x] * (1 + p)

    return program


def branch_mean(p, q):
    soft = torch.softmax(torch.stack([q, 2 * q, -q]), 0)
    return p * (3 * q + 1) + (1 - p) * (1 + p) * (soft * t(2.0, -1.0, 5.0)).sum()


def test_a_branch_with_everything_enumerated_is_exact():
    found, value = gradients_of(objective_of(branch(Enum(), Enum())), (0.3, 0.6), 1)
    assert found[:, 0].tolist() == pytest.approx(derivatives(branch_mean, (0.3, 0.6)), abs=1e-12)
    assert value.item() == pytest.approx(branch_mean(t(0.3), t(0.6)).item(), abs=1e-12)


CHOICES = [Reinforce(), Reinforce(LeaveOneOut()), Enum(), MVD()]


@pytest.mark.parametrize("then", CHOICES, ids=repr)
@pytest.mark.parametrize("first", CHOICES, ids=repr)
def test_a_branch_is_unbiased_whatever_stands_up_and_downstream(first, then):
    """Enum downstream of Reinforce and of MVD, and upstream of them; the sites depend on what was drawn."""
    objective = objective_of(branch(first, then), samples=2)
    found, _ = gradients_of(objective, (0.3, 0.6), 150)
    assert_unbiased(found, derivatives(branch_mean, (0.3, 0.6)))


def walk(strategy, most=10**9):
    """Geometric: how many heads before the first tail."""

    def program(h, p):
        count = 0
        while count < most and h.sample(f"go{count}", Bernoulli(p), strategy) == 1:
            count += 1
        return torch.tensor(float(count), dtype=torch.float64) + 0 * p

    return program


def geometric(p):
    return p / (1 - p)


@pytest.mark.parametrize("strategy", [Reinforce(), Reinforce(0.6), MVD()], ids=repr)
def test_a_loop_of_random_length(strategy):
    found, _ = gradients_of(objective_of(walk(strategy), samples=2), (0.4,), 500)
    assert_unbiased(found, derivatives(geometric, (0.4,)))


def test_a_loop_of_random_length_can_be_enumerated_up_to_a_length():
    def truncated(p):
        return sum(p**k for k in range(1, 7))

    found, value = gradients_of(objective_of(walk(Enum(), most=6)), (0.4,), 1)
    assert found.item() == pytest.approx(derivatives(truncated, (0.4,))[0], abs=1e-12)
    assert value.item() == pytest.approx(truncated(0.4), abs=1e-12)


def test_a_loop_without_end_is_refused_at_the_limit():
    with pytest.raises(UnsupportedError, match=r"site 'go\d+': got more than 20 paths"):
        objective_of(walk(Enum(limit=20)))(t(0.4, grad=True), seed=0)


def test_recursion():
    """A random binary tree: mean number of leaves L = (1 - p) + 2 p L."""

    def tree(h, p, name="r"):
        if h.sample(name, Bernoulli(p), MVD()) == 1:
            return tree(h, p, name + "0") + tree(h, p, name + "1")
        return torch.ones((), dtype=torch.float64) + 0 * p

    found, _ = gradients_of(objective_of(lambda h, p: tree(h, p)), (0.3,), 500)
    assert_unbiased(found, derivatives(lambda p: (1 - p) / (1 - 2 * p), (0.3,)))


def test_an_alternative_that_draws_more_than_the_main_run_did():
    """The alternatives' own noise is apart from the noise of the runs they start: n must not be made of the noise that
    made x+, though the main run with x < 0 stops before it.
    """

    def program(h, m):
        x = h.sample("x", Normal(m, t(0.7)), MVD())
        return x * h.sample("n", Exponential(t(1.0)), Reinforce()) if x > 0 else 0 * x

    def mean(m):
        z = Normal(t(0.0), t(1.0))
        return m * z.cdf(m / 0.7) + 0.7 * torch.exp(z.log_prob(m / 0.7))

    found, _ = gradients_of(objective_of(program), (-0.8,), 1500)
    assert_unbiased(found, derivatives(mean, (-0.8,)))


def test_an_enumerated_site_in_one_branch_only():
    """The paths of a call share what was drawn before they part; else the weights of a branch would not sum to one."""

    def program(h, p, q):
        a = h.sample("a", Bernoulli(p), Reinforce())
        return 1 + 4 * h.sample("e", Bernoulli(q), Enum()) if a == 1 else 3 + 0 * q

    found, value = gradients_of(objective_of(program, engine="replay"), (0.4, 0.3), 1000)
    assert_unbiased(found, derivatives(lambda p, q: p * (1 + 4 * q) + (1 - p) * 3, (0.4, 0.3)))
    assert abs(value.item() - 2.68) < 4 * 0.4 / math.sqrt(1000)  # the cost has 2.2 or 3: deviation 0.39


def test_reparameterised_values_pass_through_a_decision_of_another_site():
    def program(h, p, m):
        b = h.sample("b", Bernoulli(p), Enum())
        x = h.sample("x", Normal(m, t(0.5)), Reparam())
        return x * x if b == 1 else 3 * x

    def mean(p, m):
        return p * (m * m + 0.25) + (1 - p) * 3 * m

    found, _ = gradients_of(objective_of(program), (0.3, 0.7), 300)
    assert_unbiased(found, derivatives(mean, (0.3, 0.7)))


def test_what_is_drawn_before_a_branch_is_the_same_on_every_path():
    seen = []

    def program(h, p):
        a = h.sample("a", Bernoulli(p), Reinforce())
        if a == 1:
            h.sample("e", Bernoulli(p), Enum())
        seen.append(float(a))
        return a + 0 * p

    objective = objective_of(program, engine="replay")
    for seed in range(6):
        seen.clear()
        objective(t(0.5, grad=True), seed=seed)
        last = seen[-2:] if seen[-1] == 1 else seen[-1:]
        assert len(set(last)) == 1


@pytest.mark.parametrize("engine", ["vectorised", "replay"])
def test_an_impossible_value_has_no_part(engine):
    """A probability of zero times a cost of minus infinity: nothing, in the value and in the gradient."""

    def program(h, l):
        k = h.sample("k", Categorical(logits=torch.stack([l, 2 * l, torch.full_like(l, -math.inf)])), Enum())
        b = h.sample("b", Bernoulli(torch.sigmoid(l)), Reinforce())
        return t(1.0, 3.0, -math.inf)[k] + b

    found, value = gradients_of(objective_of(program, engine=engine), (0.4,), 1)
    assert torch.isfinite(found).all()
    assert torch.isfinite(value)


# What auto chooses


def test_auto_is_vectorised_until_a_decision_needs_otherwise():
    assert "vectorised engine (no decision in Python" in objective_of(two_coins).explain(t(0.3), t(0.6))
    told = objective_of(branch(Enum(), Reinforce())).explain(t(0.3), t(0.6))
    assert "replay engine (site 'a' decides in Python)" in told
    assert "a: Enum(limit=4096) of Bernoulli" in told
    assert "runs 2 times a call" in told


def test_one_draw_may_decide_in_the_vectorised_engine():
    assert "vectorised" in objective_of(branch(Reinforce(), Reinforce())).explain(t(0.3), t(0.6))
    assert "replay" in objective_of(branch(Reinforce(), Reinforce()), samples=2).explain(t(0.3), t(0.6))


def test_a_decision_by_the_sum_of_several_draws_is_noticed():
    def program(h, p):
        b = h.sample("b", Bernoulli(p), Reinforce())
        return b * 2 if b.sum() > 1 else b

    assert "replay" in objective_of(program, samples=3).explain(t(0.5))


def test_rows_and_decisions_do_not_go_together():
    def program(h, x):
        return x if h.sample("b", Bernoulli(torch.sigmoid(x)), Reinforce()).sum() > 1 else -x

    with pytest.raises(UnsupportedError, match=r"site 'b'.*torch\.where"):
        objective_of(program, batch_dims=1)(torch.zeros(3), seed=0)
    with pytest.raises(UnsupportedError, match="engine 'replay': got batch_dims=1"):
        objective_of(program, batch_dims=1, engine="replay")(torch.zeros(3), seed=0)


def test_explain_counts_the_runs():
    assert "runs 3 times" in objective_of(lambda h, m: h.sample("x", Normal(m, 1.0), MVD())).explain(t(0.0, grad=True))
    told = elbo(mixed_model, mixed_guide(Enum())).explain(*map(t, PAIR))
    assert told.splitlines()[0].startswith("elbo: vectorised")
    assert "x: Reparam() of Normal" in told


# Measure-valued derivatives with samples, rows, and other sites


def test_mvd_of_several_sites_rows_and_samples():
    def program(h, r, m):
        k = h.sample("k", Exponential(r), MVD())
        x = h.sample("x", Independent(Normal(stacked(m, k), t(0.5)), 1), MVD())
        g = h.sample("g", Gamma(t(2.0).expand(r.shape), r), MVD())
        return torch.sin(x[..., 0]) * x[..., 1] + g * k

    def mean(r, m):  # E sin = sin(m) e^(-1/8), E k = 1/r, E g = 2/r
        return torch.sin(m) * math.exp(-0.125) / r + 2 / r / r

    thetas = [t(p).expand(20_000).clone().requires_grad_() for p in (1.4, 0.6)]
    objective = objective_of(program, samples=2, batch_dims=1)
    found = torch.autograd.grad(objective(*thetas, seed=0).surrogate, thetas)
    assert_unbiased(torch.stack(found) * 20_000, derivatives(mean, (1.4, 0.6)))
    assert "runs 7 times" in objective.explain(*thetas)  # 1, k and g once each, two components of x, up and down
