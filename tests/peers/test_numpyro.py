"""NumPyro 0.22.0: the same ELBO and the same gradients, in float64.

JAX has generators of its own. Where every draw is normal, both are handed the same normal numbers in the same order
and agree to 1e-10; else both average draws of their own, or ours is exact, and they agree within 4 standard errors.
Seeds are fixed; a right program fails one such number in 16,000, so these tests one time in 500.
"""

import pytest
import torch
from torch.distributions import normal as torch_normal
from vikit import MODELS, bound, numbers

from wayfield.bench.peers import peer
from wayfield.core.errors import MissingExtraError
from wayfield.vi import Objective

TOLERANCE, SIGMAS, DRAWS = 1e-10, 4.0, 4_000


@pytest.fixture
def infer():
    """numpyro.infer in float64; JAX's and torch's default types as they were, afterwards."""
    try:
        infer, jax = peer("numpyro.infer"), peer("jax")
    except MissingExtraError as error:
        pytest.skip(str(error))
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    yield infer
    torch.set_default_dtype(torch.float32)
    jax.config.update("jax_enable_x64", before)


class Stream:
    """Normal numbers in a fixed order, for both."""

    def __init__(self):
        self.restart()

    def restart(self):
        self.generator = torch.Generator().manual_seed(3)

    def torch(self, shape, dtype, device):
        return torch.randn(tuple(shape), dtype=dtype, generator=self.generator)

    def jax(self, key, shape=(), dtype=None):
        return peer("jax.numpy").asarray(self.torch(shape, torch.float64, None).numpy())


def loss(world, elbo):
    """(key, parameters) -> NumPyro's loss; and the parameters as its arrays."""
    jnp = peer("jax.numpy")
    model, guide = world.theirs(peer("numpyro"), peer("numpyro.distributions"), jnp)
    x = jnp.asarray(world.x.numpy())
    parameters = {k: jnp.asarray(p.detach().numpy()) for k, p in world.parameters.items()}
    return lambda key, p: elbo.loss(key, {}, model, guide, p, x), parameters


def array(values):
    return torch.tensor(peer("numpy").array(values))


CASES = [("normal", False), ("vae", False), ("regression", False), ("normal", True), ("vae", True)]


@pytest.mark.parametrize(("name", "exact_kl"), CASES)
def test_elbo_by_rsample(infer, monkeypatch, name, exact_kl):
    jax, stream, world = peer("jax"), Stream(), MODELS[name]()
    monkeypatch.setattr(torch_normal, "_standard_normal", stream.torch)
    monkeypatch.setattr(jax.random, "normal", stream.jax)
    objective = world.objective(form="kl") if exact_kl else world.objective()
    objective(world.x, seed=0)  # its first call draws twice
    stream.restart()
    ours = bound(world, objective)
    stream.restart()
    f, parameters = loss(world, infer.TraceMeanField_ELBO() if exact_kl else infer.Trace_ELBO())
    value, gradients = jax.jit(jax.value_and_grad(f, 1))(jax.random.key(0), parameters)
    theirs = -numbers(array(value), {k: array(g) for k, g in gradients.items()})
    assert float(theirs.abs().max()) < 1e3
    assert float((theirs != 0).double().mean()) > 0.9
    assert float((ours - theirs).abs().max()) < TOLERANCE * float(theirs.abs().max())


def averaged(world, elbo):
    """NumPyro's value and gradients of every draw, (DRAWS, numbers)."""
    jax = peer("jax")
    f, parameters = loss(world, elbo)
    keys = jax.random.split(jax.random.key(1), DRAWS)
    values, gradients = jax.jit(jax.vmap(lambda key: jax.value_and_grad(f, 1)(key, parameters)))(keys)
    columns = [array(values)[:, None], *(array(gradients[k]).reshape(DRAWS, -1) for k in sorted(gradients))]
    return -torch.cat(columns, 1)


def rows_of(world):
    """Our value and gradients of every draw: draws along the rows, each with parameters of its own."""
    own = {k: p.detach().expand(DRAWS, *p.shape).clone().requires_grad_() for k, p in world.parameters.items()}
    model, guide = world.ours(own)
    kept = []

    def body(run, x):
        q = run.simulate(guide, x)
        cost = run.log_density(model, q, x) - q.log_prob
        kept.append(cost.detach())
        return cost

    estimate = Objective(body, batch_dims=1)(world.x.expand(DRAWS, *world.x.shape), seed=4)
    estimate.surrogate.backward()
    return torch.cat([kept[-1][:, None], *(DRAWS * own[k].grad.reshape(DRAWS, -1) for k in sorted(own))], 1)


def errors(draws):
    return draws.mean(0), draws.std(0) / len(draws) ** 0.5


def test_elbo_by_implicit_reparameterisation(infer):
    """Beta's derivative is computed by each in its own way."""
    world = MODELS["beta-Bernoulli"]()
    (a, s), (b, t) = errors(rows_of(world)), errors(averaged(world, infer.Trace_ELBO()))
    assert float(((a - b) / (s**2 + t**2).sqrt()).abs().max()) < SIGMAS
    assert float(s[0]) < 0.01  # near the posterior a bound hardly varies, and the draws say much


def test_enumeration_is_the_mean_of_their_score_function(infer):
    """Ours has no error. Without funsor, which is not installed, NumPyro does not enumerate."""
    world = MODELS["mixture"]()
    exact, (mean, error) = bound(world, world.objective()), errors(averaged(world, infer.TraceGraph_ELBO()))
    assert float(((exact - mean) / error).abs().max()) < SIGMAS
    assert float((error < 0.1 * exact.abs()).double().mean()) > 0.5
