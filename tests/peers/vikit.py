"""Five models of variational inference, once for wayfield and once for Pyro and NumPyro, whose languages agree.

Everything is float64. A model has parameters by name, data, and a guide; `ours` gives our objective, `theirs` a pair of
functions (parameters, data) for a library `lib` with distributions `dist` and array functions `xp`. Bounds are sums
over rows here, as peers take them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributions import Bernoulli, Beta, Categorical, Independent, Normal

from wayfield.vi import Enum, Implicit, Reparam, elbo

__all__ = ["MODELS", "World", "bound", "numbers"]

ROWS, PIXELS, LATENT, HIDDEN, GROUPS, EACH, CLUSTERS = 4, 6, 2, 5, 4, 3, 3


def draws(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@dataclass
class World:
    """parameters: leaves by name / x: data / guides: (parameters) -> our model and guide / rows: batch of x, or 1."""

    parameters: dict[str, torch.Tensor]
    x: torch.Tensor
    ours: Any
    theirs: Any
    batch_dims: int = 0

    @property
    def rows(self):
        return len(self.x) if self.batch_dims else 1

    def objective(self, build=elbo, parameters=None, **options):
        model, guide = self.ours(parameters or self.parameters)
        return build(model, guide, batch_dims=self.batch_dims, **options)


def normal():
    def ours(p):
        def model(h, x):
            m = h.sample("m", Normal(0.3, 1.5))
            h.observe("x", Independent(Normal(m[..., None].expand(*m.shape, 6), 0.8), 1), x)

        def guide(h, x):
            h.sample("m", Normal(p["mean"], p["spread"].exp()), Reparam())

        return model, guide

    def theirs(lib, dist, xp):
        def model(p, x):
            m = lib.sample("m", dist.Normal(0.3, 1.5))
            lib.sample("x", dist.Normal(m + xp.zeros(6), 0.8).to_event(1), obs=x)

        def guide(p, x):
            lib.sample("m", dist.Normal(p["mean"], xp.exp(p["spread"])))

        return model, guide

    return World({"mean": draws(seed=1), "spread": draws(seed=2)}, draws(6, seed=3), ours, theirs)


def beta_bernoulli():
    def ours(p):
        def model(h, x):
            chance = h.sample("chance", Beta(torch.tensor(2.0), torch.tensor(3.0)))
            h.observe("x", Independent(Bernoulli(chance[..., None].expand(*chance.shape, 10)), 1), x)

        def guide(h, x):
            h.sample("chance", Beta(p["a"].exp(), p["b"].exp()), Implicit())

        return model, guide

    def theirs(lib, dist, xp):
        def model(p, x):
            chance = lib.sample("chance", dist.Beta(2.0, 3.0))
            lib.sample("x", dist.Bernoulli(probs=chance + xp.zeros(10)).to_event(1), obs=x)

        def guide(p, x):
            lib.sample("chance", dist.Beta(xp.exp(p["a"]), xp.exp(p["b"])))

        return model, guide

    flips = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 1, 1, 0])
    parameters = {"a": torch.tensor(2.1), "b": torch.tensor(1.8)}  # near the posterior, whose weights hardly vary
    return World({k: v.double() for k, v in parameters.items()}, flips.double(), ours, theirs)


def mixture():
    def ours(p):
        def model(h, x):
            k = h.sample("k", Categorical(logits=p["weight"]))
            h.observe("x", Normal(p["place"][k], 0.6), x)

        def guide(h, x):
            h.sample("k", Categorical(logits=p["choice"]), Enum())

        return model, guide

    def theirs(lib, dist, xp):
        def model(p, x):
            with lib.plate("rows", len(x)):
                k = lib.sample("k", dist.Categorical(logits=p["weight"]))
                lib.sample("x", dist.Normal(p["place"][k], 0.6), obs=x)

        def guide(p, x):
            with lib.plate("rows", len(x)):
                lib.sample("k", dist.Categorical(logits=p["choice"]))

        return model, guide

    parameters = {"weight": draws(CLUSTERS), "place": draws(CLUSTERS, seed=1), "choice": draws(ROWS, CLUSTERS, seed=2)}
    return World(parameters, draws(ROWS, seed=3), ours, theirs, 1)


def vae():
    shapes = {
        "inner": (PIXELS, HIDDEN),
        "mean": (HIDDEN, LATENT),
        "spread": (HIDDEN, LATENT),
        "outer": (LATENT, HIDDEN),
        "logits": (HIDDEN, PIXELS),
    }

    def encode(xp, p, x):
        h = xp.tanh(x @ p["inner"])
        return h @ p["mean"], xp.exp(h @ p["spread"])

    def decode(xp, p, z):
        return xp.tanh(z @ p["outer"]) @ p["logits"]

    def ours(p):
        def model(h, x):
            z = h.sample("z", Independent(Normal(torch.zeros(LATENT), 1.0), 1))
            h.observe("x", Independent(Bernoulli(logits=decode(torch, p, z)), 1), x)

        def guide(h, x):
            h.sample("z", Independent(Normal(*encode(torch, p, x)), 1), Reparam())

        return model, guide

    def theirs(lib, dist, xp):
        def model(p, x):
            with lib.plate("rows", len(x)):
                z = lib.sample("z", dist.Normal(xp.zeros(LATENT), 1.0).to_event(1))
                lib.sample("x", dist.Bernoulli(logits=decode(xp, p, z)).to_event(1), obs=x)

        def guide(p, x):
            with lib.plate("rows", len(x)):
                lib.sample("z", dist.Normal(*encode(xp, p, x)).to_event(1))

        return model, guide

    parameters = {name: draws(*shape, seed=k, scale=0.7) for k, (name, shape) in enumerate(shapes.items())}
    return World(parameters, (draws(ROWS, PIXELS, seed=9) > 0).double(), ours, theirs, 1)


def regression():
    """Groups with slopes of their own around a common one, whose spread is unknown."""
    at, group = draws(GROUPS * EACH, seed=8), torch.arange(GROUPS).repeat_interleave(EACH)

    def ours(p):
        def model(h, x):
            common = h.sample("common", Normal(0.0, 2.0))
            log_tau = h.sample("log_tau", Normal(-0.5, 0.7))
            lead = torch.zeros(GROUPS)
            own = h.sample("own", Independent(Normal(common[..., None] + lead, log_tau.exp()[..., None] + lead), 1))
            h.observe("x", Independent(Normal(own[..., group] * at, 0.4), 1), x)

        def guide(h, x):
            for name, event in (("common", 0), ("log_tau", 0), ("own", 1)):
                h.sample(name, Independent(Normal(p[f"{name}_mean"], p[f"{name}_spread"].exp()), event), Reparam())

        return model, guide

    def theirs(lib, dist, xp):
        places, which = xp.asarray(at.numpy()), xp.asarray(group.numpy())

        def model(p, x):
            common = lib.sample("common", dist.Normal(0.0, 2.0))
            log_tau = lib.sample("log_tau", dist.Normal(-0.5, 0.7))
            own = lib.sample("own", dist.Normal(common + xp.zeros(GROUPS), xp.exp(log_tau)).to_event(1))
            lib.sample("x", dist.Normal(own[which] * places, 0.4).to_event(1), obs=x)

        def guide(p, x):
            for name, event in (("common", 0), ("log_tau", 0), ("own", 1)):
                lib.sample(name, dist.Normal(p[f"{name}_mean"], xp.exp(p[f"{name}_spread"])).to_event(event))

        return model, guide

    shapes = {"common": (), "log_tau": (), "own": (GROUPS,)}
    parameters = {f"{n}_mean": draws(*s, seed=k) for k, (n, s) in enumerate(shapes.items())}
    parameters |= {f"{n}_spread": draws(*s, seed=5 + k, scale=0.3) - 1 for k, (n, s) in enumerate(shapes.items())}
    return World(parameters, draws(GROUPS * EACH, seed=11), ours, theirs)


MODELS = {
    "normal": normal,
    "beta-Bernoulli": beta_bernoulli,
    "mixture": mixture,
    "vae": vae,
    "regression": regression,
}


def bound(world, objective, seed=0):
    """Our value and gradients by name, as sums over rows."""
    for p in world.parameters.values():
        p.requires_grad_(True).grad = None
    estimate = objective(world.x, seed=seed)
    (world.rows * estimate.surrogate).backward()
    return numbers(world.rows * estimate.value, {k: p.grad for k, p in world.parameters.items()})


def numbers(value, gradients):
    """One flat float64 tensor: the value, then gradients in the order of names."""
    parts = [value, *(gradients[k] for k in sorted(gradients))]
    return torch.cat([torch.as_tensor(v).detach().double().reshape(-1) for v in parts])
