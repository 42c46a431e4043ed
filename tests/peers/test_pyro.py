"""Pyro 1.9.2: the same ELBO and the same gradients, from the same draws, in float64.

Both draw by torch.distributions from torch's default generator. Where sites are drawn in the same order, equal seeds
give equal draws, and everything is compared to 1e-10; nothing here is statistical.
"""

import pytest
import torch
from vikit import MODELS, bound, numbers

from wayfield.bench.peers import peer
from wayfield.core.errors import MissingExtraError
from wayfield.vi import Reinforce, renyi
from wayfield.vi.seeding import seeded

TOLERANCE = 1e-10


@pytest.fixture
def infer():
    """pyro.infer in float64; torch's default type as it was, afterwards."""
    try:
        infer = peer("pyro.infer")
    except MissingExtraError as error:
        pytest.skip(str(error))
    torch.set_default_dtype(torch.float64)
    yield infer
    torch.set_default_dtype(torch.float32)


def pyros(world, loss, seed=0, guide=None):
    """Pyro's value and gradients, negated: it minimises."""
    model, plain = world.theirs(peer("pyro"), peer("pyro.distributions"), torch)
    for p in world.parameters.values():
        p.requires_grad_(True).grad = None
    with seeded(seed):
        value = -loss.differentiable_loss(model, (guide or (lambda f: f))(plain), world.parameters, world.x)
    value.backward()
    return numbers(value, {k: p.grad for k, p in world.parameters.items()})


def agree(ours, theirs):
    assert float(theirs.abs().max()) < 1e3
    assert float((theirs != 0).double().mean()) > 0.9
    assert float((ours - theirs).abs().max()) < TOLERANCE * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("name", ["normal", "beta-Bernoulli", "vae", "regression"])
def test_elbo_by_rsample(infer, name, seed):
    world = MODELS[name]()
    agree(bound(world, world.objective(), seed), pyros(world, infer.Trace_ELBO(), seed))


def test_elbo_by_enumeration(infer):
    """Both are exact: no seed matters."""
    world = MODELS["mixture"]()
    theirs = pyros(world, infer.TraceEnum_ELBO(max_plate_nesting=1), 3, infer.config_enumerate)
    agree(bound(world, world.objective(), 7), theirs)


@pytest.mark.parametrize("seed", [0, 5])
def test_elbo_by_score_function(infer, seed):
    """Pyro leaves out the gradient of a choice's own -log q, whose mean is zero; so does a baseline of -1."""
    world = MODELS["mixture"]()
    objective = world.objective().with_strategies({"k": Reinforce(-1.0)})
    theirs = pyros(world, infer.Trace_ELBO(), seed)
    agree(bound(world, objective, seed), theirs)
    plain = bound(world, world.objective().with_strategies({"k": Reinforce()}), seed)
    assert float((plain - theirs).abs().max()) > 0.01  # another estimator, of the same mean


@pytest.mark.parametrize("name", ["normal", "vae"])
def test_exact_kl(infer, name):
    world = MODELS[name]()
    agree(bound(world, world.objective(form="kl")), pyros(world, infer.TraceMeanField_ELBO()))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_bounds_of_several_particles(infer, alpha):
    world, n, pyro = MODELS["vae"](), 5, peer("pyro")
    loss = infer.RenyiELBO(alpha=alpha, num_particles=n, vectorize_particles=True, max_plate_nesting=1)
    model, guide = world.theirs(pyro, peer("pyro.distributions"), torch)
    ours = bound(world, world.objective(renyi, n=n, alpha=alpha), 2)
    for p in world.parameters.values():
        p.grad = None

    def learning(p, x):
        pyro.param("anything", torch.zeros(()))  # this loss runs backward only where the store has a parameter
        guide(p, x)

    pyro.clear_param_store()
    with seeded(2):
        value = -loss.loss_and_grads(model, learning, world.parameters, world.x)
    agree(ours, numbers(torch.tensor(value), {k: -p.grad for k, p in world.parameters.items()}))
