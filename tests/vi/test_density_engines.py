"""Stochastic densities and wakes under every engine: replayed, compiled, under torch.func, and told in words."""

from dataclasses import replace

import densitytoys as X
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.distributions import Bernoulli, Distribution, Exponential, Normal

from wayfield.core.errors import RangeError
from wayfield.vi import (
    MVD,
    Enum,
    Reinforce,
    diwhvi,
    elbo,
    forward_kl,
    hvi,
    iwelbo,
    iwhvi,
    marginal,
    normalize,
    p_wake,
    q_wake,
    symmetric,
)
from wayfield.vi.seeding import seeded

F = torch.float64
P = X.leaves()
MODEL, GUIDE, MARGINAL = X.programs(P, Enum())


def single(strategy=None):
    return lambda h: h.sample("b", Bernoulli(logits=P["a"]), strategy)


ENUMERATED = {
    "hvi": hvi(MODEL, MARGINAL),
    "iwhvi": iwhvi(MODEL, MARGINAL, 2),
    "diwhvi": diwhvi(MODEL, MARGINAL, 2, 2),
    "exact marginal": elbo(MODEL, marginal(GUIDE, ["b"], m=None)),
    "exact marginal, iwelbo": iwelbo(MODEL, marginal(GUIDE, ["b"], m=None), 2),
    "resampled": elbo(MODEL, normalize(MODEL, single(Enum()), 3)),
    "exact posterior": elbo(MODEL, normalize(MODEL, single(), None)),
    "q_wake": q_wake(MODEL, single(), None),
    "p_wake": p_wake(MODEL, single(), None),
    "symmetric": symmetric(MODEL, single(Enum()), None),
}


@pytest.mark.parametrize("name", ENUMERATED)
def test_replay_equals_vectorised(name):
    objective = ENUMERATED[name]
    one, other = objective(seed=0), replace(objective, engine="replay")(seed=0)
    assert abs((one.value - other.value).item()) < 1e-12
    for a, b in zip(X.gradients(one.surrogate, P).values(), X.gradients(other.surrogate, P).values(), strict=True):
        assert abs((a - b).item()) < 1e-12


@pytest.mark.parametrize("strategy", [Reinforce(), MVD()], ids=repr)
@pytest.mark.parametrize("kind", ["hvi", "iwhvi", "resampled"])
def test_replayed_draws_are_unbiased(kind, strategy):
    """4 standard errors over 200 calls, 4 parameters: one false alarm in 4000 per case."""
    model, _, q = X.programs(P, strategy)
    exact = {"hvi": ENUMERATED["hvi"], "iwhvi": ENUMERATED["iwhvi"], "resampled": ENUMERATED["resampled"]}[kind]
    resampled = normalize(model, single(strategy), 3, strategy)
    made = {"hvi": hvi(model, q), "iwhvi": iwhvi(model, q, 2), "resampled": elbo(model, resampled)}[kind]
    made = replace(made, engine="replay")
    found = [list(X.gradients(made(seed=k).surrogate, P).values()) for k in range(200)]
    g = torch.tensor([[v.item() for v in row] for row in found], dtype=F)
    want = torch.tensor([v.item() for v in X.gradients(exact(seed=0).surrogate, P).values()], dtype=F)
    assert ((g.mean(0) - want).abs() <= 4 * g.std(0) / len(g) ** 0.5 + 1e-12).all()


def test_a_density_inside_of_a_program_that_decides_is_replayed():
    """b decides in Python which density is drawn next; value and gradient equal the sum over paths written out."""

    def guide(h):
        if h.sample("b", Bernoulli(logits=P["a"]), Enum()) == 1:
            h.sample("x", marginal(inner, "b", m=None))

    def model(h):
        if h.sample("b", Bernoulli(logits=P["t"])) == 1:
            h.sample("x", Bernoulli(torch.tensor(0.25, dtype=F)))

    def inner(h):
        u = h.sample("u", Bernoulli(logits=P["c0"]), Enum())
        h.sample("b", Bernoulli(logits=P["c1"] * (2 * u - 1)), Enum())

    objective = elbo(model, guide)
    e = objective(seed=0)
    assert "replay" in objective.explain()
    q, u, one = (torch.sigmoid(P[k]) for k in ("a", "c0", "c1"))
    x = u * one + (1 - u) * (1 - one)
    below = x * (0.25 / x).log() + (1 - x) * (0.75 / (1 - x)).log()
    t = torch.sigmoid(P["t"])
    want = q * ((t / q).log() + below) + (1 - q) * ((1 - t) / (1 - q)).log()
    assert abs((e.value - want).item()) < 1e-12
    for a, b in zip(X.gradients(e.surrogate, P).values(), X.gradients(want, P).values(), strict=True):
        assert abs((a - b).item()) < 1e-12


def gauss_model(h, x):
    z = h.sample("z", Normal(torch.zeros((), dtype=F), torch.ones((), dtype=F)))
    h.observe("x", Normal(z, torch.tensor(0.5, dtype=F)), x)


def gauss_guide(h, x):
    u = h.sample("u", Normal(P["a"] * x, torch.ones((), dtype=F)))
    h.sample("z", Normal(P["c0"] + P["c1"] * u, P["t"].exp()))


def plain_guide(h, x):
    h.sample("z", Normal(P["a"] * x, P["t"].exp()))


COMPILED = {
    "diwhvi": diwhvi(gauss_model, marginal(gauss_guide, ["z"]), 2, 3, batch_dims=1),
    "resampled": elbo(gauss_model, normalize(gauss_model, plain_guide, 3), batch_dims=1),
    "resampled, reinforce": elbo(gauss_model, normalize(gauss_model, plain_guide, 3, Reinforce()), batch_dims=1),
    "symmetric": symmetric(gauss_model, plain_guide, 4, batch_dims=1),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_is_one_graph_and_equal_to_eager(name, monkeypatch):
    objective, x = COMPILED[name], torch.tensor([0.3, -1.0, 2.0], dtype=F)
    eager = objective(x, seed=3)
    torch._dynamo.reset()
    monkeypatch.setattr(Distribution, "_validate_args", False)  # torch.compile does this too, and leaves it so
    counter = CompileCounter()
    compiled = torch.compile(lambda x: objective.surrogate(x), fullgraph=True, backend=counter)
    with seeded(3):
        surrogate = compiled(x)
    assert counter.frame_count == 1
    assert abs((surrogate - eager.value).item()) < 1e-12
    for a, b in zip(X.gradients(surrogate, P).values(), X.gradients(eager.surrogate, P).values(), strict=True):
        assert abs((a - b).item()) < 1e-12


def test_the_first_call_checks_after_something_was_compiled(monkeypatch):
    """torch.compile switches the checks of torch.distributions off for the whole process."""
    monkeypatch.setattr(Distribution, "_validate_args", False)

    def model(h):
        h.observe("x", Exponential(torch.ones((), dtype=F)), torch.tensor(-1.0, dtype=F))

    with pytest.raises(RangeError, match="'x'"):
        elbo(model, lambda h: None)(seed=0)
    assert not Distribution._validate_args


def test_rows_have_bounds_of_their_own():
    """A batch's bound is the mean of its rows' bounds, where enumeration leaves no noise."""
    model, q = X.by_rows(Enum())
    start = torch.tensor(list(X.START.values()), dtype=F)
    many = start[:, None] + torch.tensor([0.0, 0.4, -0.9], dtype=F)
    for n, m in ((1, 3), (2, 1)):
        made = diwhvi(model, q, n, m, batch_dims=1)(*many, seed=0).value
        each = [X.bound(dict(zip(X.START, row, strict=True)), n, m) for row in many.T]
        assert abs((made - torch.stack(each).mean()).item()) < 1e-12


def test_explain_tells_what_is_frozen_and_what_selects():
    told = symmetric(gauss_model, plain_guide, 4).explain(torch.tensor(0.2, dtype=F))
    assert "z: Reparam() of Normal" in told
    assert "z: Frozen() of Normal" in told
    assert "biased at order 1/n" in told
    assert "select: Enum(limit=4096) of Categorical" in COMPILED["resampled"].explain(torch.zeros(2, dtype=F))
    dream = forward_kl(gauss_model, plain_guide, "x")
    assert "x: Frozen() of Normal" in dream.explain()
    frozen = q_wake(gauss_model, plain_guide, 4).with_strategies({"z": MVD()})
    assert "Frozen()" in frozen.explain(torch.tensor(0.2, dtype=F))
