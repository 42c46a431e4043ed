"""Static programs compile to one graph, equal to eager on the same noise; and run under torch.func."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.distributions import Bernoulli, Categorical, Independent, Normal, Uniform

from wayfield.vi import MVD, Enum, LeaveOneOut, Objective, Reinforce, elbo, iwelbo, renyi
from wayfield.vi.objective import unvalidated
from wayfield.vi.seeding import seeded


def nets():
    enc = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 4)).double()
    dec = nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(), nn.Linear(8, 6)).double()
    noise = torch.Generator().manual_seed(0)
    for p in (*enc.parameters(), *dec.parameters()):
        p.data.copy_(0.5 * torch.randn(p.shape, generator=noise, dtype=p.dtype))
    return enc, dec


ENC, DEC = nets()
TABLE = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)
X = (torch.arange(30).reshape(5, 6) % 3 == 0).double()


def vae_model(h, x):
    z = h.sample("z", Independent(Normal(torch.zeros(2, dtype=x.dtype), 1.0), 1))
    h.observe("x", Independent(Bernoulli(logits=DEC(z)), 1), x)


def vae_guide(h, x):
    mean, log_std = ENC(x).chunk(2, -1)
    h.sample("z", Independent(Normal(mean, log_std.exp()), 1))


def mixture_model(h, x):
    k = h.sample("k", Categorical(torch.ones(4, dtype=x.dtype) / 4))
    h.observe("x", Independent(Bernoulli(logits=TABLE[k]), 1), x)


def mixture_guide(strategy):
    return lambda h, x: h.sample("k", Categorical(logits=ENC(x)), strategy)


OBJECTIVES = {
    "vae": elbo(vae_model, vae_guide, batch_dims=1),
    "vae, samples": elbo(vae_model, vae_guide, 3, batch_dims=1),
    "vae, kl": elbo(vae_model, vae_guide, batch_dims=1, form="kl"),
    "vae, landing": elbo(vae_model, vae_guide, batch_dims=1, form="landing"),
    "vae, iwelbo": iwelbo(vae_model, vae_guide, 4, batch_dims=1),
    "vae, renyi": renyi(vae_model, vae_guide, 4, 0.5, batch_dims=1),
    "mixture, enum": elbo(mixture_model, mixture_guide(Enum()), batch_dims=1),
    "mixture, enum of particles": iwelbo(mixture_model, mixture_guide(Enum()), 2, batch_dims=1),
    "mixture, reinforce": elbo(mixture_model, mixture_guide(Reinforce(-3.0)), batch_dims=1),
    "mixture, leave one out": elbo(mixture_model, mixture_guide(Reinforce(LeaveOneOut())), 2, batch_dims=1),
    "mixture, vimco": iwelbo(mixture_model, mixture_guide(Reinforce(LeaveOneOut())), 3, batch_dims=1),
    "mixture, mvd": elbo(mixture_model, mixture_guide(MVD()), batch_dims=1),
}


def gradients(surrogate):
    with seeded(7), unvalidated():  # torch's own checks do not compile
        value = surrogate(X)
    return [value, *torch.autograd.grad(value, list(ENC.parameters()))]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_one_graph_equal_to_eager(objective):
    objective(X, seed=0)  # as every fit does first, with all checks
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(lambda x: objective.surrogate(x), fullgraph=True, backend=counter)
    want, found = gradients(objective.surrogate), gradients(compiled)
    assert counter.frame_count == 1
    for a, b in zip(want, found, strict=True):
        assert torch.allclose(a, b, atol=1e-12, rtol=1e-12)
    gradients(compiled)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_the_inductor_s_code_equals_eager():
    objective = OBJECTIVES["mixture, enum of particles"]
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: objective.surrogate(x), fullgraph=True)
    for a, b in zip(gradients(objective.surrogate), gradients(compiled), strict=True):
        assert torch.allclose(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("strategy", [Enum(), Reinforce(), Reinforce(LeaveOneOut())], ids=repr)
def test_gradients_of_single_rows_by_vmap(strategy):
    """Enum: equal to a loop over rows. Others: rows draw for themselves, and their mean is near the exact gradient."""

    def objective_of(kind):
        def guide(h, x, w):
            h.sample("k", Categorical(logits=x @ w), kind)

        def model(h, x, w):
            mixture_model(h, x)

        return elbo(model, guide, samples=200 if kind != Enum() else 1)

    w = torch.linspace(-0.5, 0.5, 24, dtype=torch.float64).reshape(6, 4)
    exact = torch.stack([torch.func.grad(lambda w, x=x: objective_of(Enum()).surrogate(x, w))(w) for x in X])
    each = torch.func.vmap(
        torch.func.grad(lambda w, x: objective_of(strategy).surrogate(x, w)), (None, 0), randomness="different"
    )
    with seeded(0):
        found = each(w, X)
    assert torch.allclose(found, exact, atol=1e-12 if strategy == Enum() else 0.5)
    assert strategy == Enum() or not torch.allclose(found, exact, atol=1e-3)


def test_reparameterised_rows_by_vmap_draw_for_themselves():
    """torch's Normal draws in place, which its vmap refuses; for such programs rows are batch_dims, with parameters
    expanded to rows.
    """

    def program(h, x, m):
        return h.sample("z", Uniform(0 * m, m)) * x

    objective = Objective(lambda run, x, m: run.simulate(program, x, m).result)
    each = torch.func.vmap(torch.func.grad(lambda m, x: objective.surrogate(x, m)), (None, 0), randomness="different")
    with seeded(0):
        found = each(torch.ones((), dtype=torch.float64), torch.ones(1000, dtype=torch.float64))
    assert len(set(found.tolist())) == 1000
    assert found.mean().item() == pytest.approx(0.5, abs=4 * 0.289 / 31.6)
