"""Traces, densities, nesting and the invariances of a run."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, Normal
from toys import F64, t

from wayfield.vi import Enum, Objective, Reinforce, Reparam, log_density, simulate
from wayfield.vi.run import Run
from wayfield.vi.seeding import seeded


def chain(h, m=0.2):
    a = h.sample("a", Normal(t(m), t(1.0)))
    b = h.sample("b", Independent(Normal(a[..., None] * t(1.0, 2.0, 3.0), t(0.5)), 1))
    h.sample("k", Categorical(logits=b), Reinforce())


def test_a_trace_holds_values_and_their_density():
    trace = simulate(chain, seed=0, samples=5, batch=(2,))
    assert {k: tuple(v.shape) for k, v in trace.values.items()} == {"a": (5, 2), "b": (5, 2, 3), "k": (5, 2)}
    by_hand = (
        Normal(t(0.2), t(1.0)).log_prob(trace.values["a"])
        + Normal(trace.values["a"][..., None] * t(1.0, 2.0, 3.0), t(0.5)).log_prob(trace.values["b"]).sum(-1)
        + torch.log_softmax(trace.values["b"], -1).gather(-1, trace.values["k"][..., None])[..., 0]
    )
    assert torch.allclose(trace.log_prob, by_hand, atol=1e-12)


@pytest.mark.parametrize(("samples", "batch"), [(1, ()), (4, ()), (1, (3,)), (4, (3,)), (2, (3, 2))])
def test_the_density_of_a_trace_s_values_is_its_weight(samples, batch):
    trace = simulate(chain, seed=1, samples=samples, batch=batch)
    assert trace.log_prob.shape == (*((samples,) if samples > 1 else ()), *batch)
    assert torch.allclose(log_density(chain, trace.values, batch=batch), trace.log_prob, atol=1e-12, rtol=0)


def test_observations_and_factors_join_the_density():
    def model(h):
        z = h.sample("z", Normal(t(0.0), t(1.0)))
        h.observe("y", Normal(z, t(0.5)), t(0.7))
        h.factor("f", -z.square())

    value = t(0.4)
    run = Run()
    trace = run.replay(model, {"z": value})
    prior, like = Normal(t(0.0), t(1.0)).log_prob(value), Normal(value, t(0.5)).log_prob(t(0.7)) - 0.16
    assert trace.log_joint.item() == pytest.approx((prior + like).item(), abs=1e-14)
    assert trace.log_likelihood.item() == pytest.approx(like.item(), abs=1e-14)
    assert log_density(model, {"z": value}).item() == trace.log_joint.item()
    assert set(trace.values) == {"z"}


def test_nested_programs_prefix_their_names_and_return():
    def inner(h, m):
        return h.sample("z", Normal(m, t(1.0))) + 1

    def outer(h):
        return h.call("two", inner, h.call("one", inner, t(0.0)))

    trace = simulate(outer, seed=0)
    assert list(trace.values) == ["one/z", "two/z"]
    assert trace.result.item() == trace.values["two/z"].item() + 1
    assert log_density(outer, trace.values).item() == pytest.approx(trace.log_prob.item(), abs=1e-14)


def test_the_same_seed_draws_the_same_and_the_default_generator_is_left_alone():
    before = torch.get_rng_state()
    one, two, three = (simulate(chain, seed=s, samples=3).values["b"] for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert torch.equal(before, torch.get_rng_state())


# Oracle 8: invariances


def test_the_order_of_independent_sites_does_not_matter():
    values = {"a": t(0.3, -0.1), "b": t(1.2, 0.4)}

    def one(h):
        h.sample("a", Normal(t(0.0), t(1.0)))
        h.sample("b", Normal(t(0.5), t(2.0)))

    def two(h):
        h.sample("b", Normal(t(0.5), t(2.0)))
        h.sample("a", Normal(t(0.0), t(1.0)))

    assert torch.equal(log_density(one, values), log_density(two, values))


def test_the_order_of_enumerated_sites_does_not_matter():
    def program(order):
        def run(h, p, q):
            v = {n: h.sample(n, Bernoulli({"a": p, "b": q}[n]), Enum()) for n in order}
            return (1 + v["a"]) * torch.exp(v["b"])

        return Objective(lambda r, p, q: r.simulate(run, p, q).result)

    found = []
    for order in ("ab", "ba"):
        p, q = t(0.2, grad=True), t(0.7, grad=True)
        estimate = program(order)(p, q, seed=0)
        found.append([estimate.value, *torch.autograd.grad(estimate.surrogate, (p, q))])
    assert torch.allclose(*map(torch.stack, found), atol=1e-14, rtol=0)


def test_permuting_samples_permutes_densities_to_the_bit():
    trace = simulate(chain, seed=2, samples=6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = log_density(chain, {k: v[order] for k, v in trace.values.items()})
    assert torch.equal(moved, log_density(chain, trace.values)[order])


@pytest.mark.parametrize("n", [None, 3])
def test_enumerating_a_site_the_cost_does_not_use_changes_nothing(n):
    def program(extra):
        def run(h, m, p):
            x = h.sample("x", Normal(m, t(1.0)))
            if extra:
                h.sample("unused", Bernoulli(p), Enum())
            return torch.sin(x)

        def body(r, m, p):
            trace = r.simulate(run, m, p, n=n)
            return trace.mean(trace.result) + 0 * p

        return Objective(body, samples=4)

    found = []
    for extra in (False, True):
        m, p = t(0.3, grad=True), t(0.6, grad=True)
        estimate = program(extra)(m, p, seed=5)
        found.append(torch.stack([estimate.value, *torch.autograd.grad(estimate.surrogate, (m, p))]))
    assert torch.allclose(*found, atol=1e-12, rtol=0)


# Oracle 10


def test_two_enumerated_sites_are_weighed_by_the_product():
    p = t(0.2, 0.7, grad=True)
    table = t(5.0, 3.0, 2.0, 1.0)  # f(a, b) at 2 a + b

    def program(h):
        a = h.sample("a", Bernoulli(p[0]), Enum())
        b = h.sample("b", Bernoulli(p[1]), Enum())
        return table[(2 * a + b).long()]

    estimate = Objective(lambda run: run.simulate(program).result)(seed=0)
    estimate.surrogate.backward()
    assert estimate.value.item() == pytest.approx(3.14, abs=1e-12)
    assert p.grad.tolist() == pytest.approx([-2.3, -1.8], abs=1e-12)
    assert estimate.value.item() != pytest.approx(5.4, abs=1e-3)  # the sum of marginal expectations


def test_the_same_two_flips_as_one_independent_site():
    p = t(0.2, 0.7, grad=True)
    table = t(5.0, 3.0, 2.0, 1.0)

    def program(h):
        ab = h.sample("ab", Independent(Bernoulli(p), 1), Enum())
        return table[(2 * ab[..., 0] + ab[..., 1]).long()]

    estimate = Objective(lambda run: run.simulate(program).result)(seed=0)
    estimate.surrogate.backward()
    assert estimate.value.item() == pytest.approx(3.14, abs=1e-12)
    assert p.grad.tolist() == pytest.approx([-2.3, -1.8], abs=1e-12)


def test_rows_do_not_see_each_other():
    """Row k of a batch has the value and gradient of its parameters alone."""

    def body(run, l):
        def program(h):
            k = h.sample("k", Categorical(logits=l), Enum())
            return t(1.0, 5.0, -2.0)[k] * l[..., 0]

        return run.simulate(program).result

    rows = torch.tensor([[0.1, 0.2, 0.3], [1.0, -1.0, 0.0]], dtype=F64)
    both = rows.clone().requires_grad_()
    (g,) = torch.autograd.grad(Objective(body, batch_dims=1)(both, seed=0).surrogate * 2, both)
    for k in range(2):
        one = rows[k : k + 1].clone().requires_grad_()
        (own,) = torch.autograd.grad(Objective(body, batch_dims=1)(one, seed=0).surrogate, one)
        assert torch.allclose(g[k], own[0], atol=1e-14)


# Frozen draws, and noise


def test_a_frozen_trace_has_no_gradient_of_any_kind():
    m = t(0.3, grad=True)

    def guide(h):
        x = h.sample("x", Normal(m, t(1.0)), Reparam())
        h.sample("b", Bernoulli(torch.sigmoid(m + x)), Reinforce())

    with seeded(0):
        run = Run()
        trace = run.simulate(guide, frozen=True)
    assert not any(v.requires_grad for v in (*trace.values.values(), trace.log_prob))
    assert all(term.log_prob is None for term in run.terms)


def test_dtype_and_device_follow_the_program():
    for dtype in (torch.float32, torch.float64):
        m = torch.tensor(0.3, dtype=dtype, requires_grad=True)
        estimate = Objective(lambda run, m: run.simulate(lambda h: h.sample("x", Normal(m, 1.0))).result)(m, seed=0)
        assert estimate.value.dtype == dtype
