"""Models of suite "vi", each written for wayfield, by hand in torch.distributions and for Pyro; one for Storchastic.

All share networks and compute the same estimator from the same draws in the same order, so that value and
gradient agree number by number. Bounds are maximised and are means over the rows of a batch.

`VAE`: pictures of 784 Bernoulli pixels, latent 10, one hidden layer of 200 on each side, leaky ReLU. `Chain`: ten
scalar normals, each around the one before it, mean-field guide. `Clusters`: one of K clusters by enumeration, and a
reparameterised place inside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Normal

from wayfield.bench.peers import peer
from wayfield.bench.vi_peers import storchastic
from wayfield.vi import Enum, Handle, Objective, Reparam, elbo

__all__ = ["VAE", "Bound", "Chain", "Clusters", "Model"]

Bound = Callable[[Tensor], Tensor]
"""Rows -> the bound (), whose backward pass is the gradient's estimator."""


class Model(Protocol):
    """A model in its versions."""

    def parameters(self) -> Any:
        """The parameters that all versions share."""
        ...

    def objective(self) -> Objective:
        """For wayfield."""
        ...

    def by_hand(self, x: Tensor) -> Tensor:
        """In torch.distributions."""
        ...

    def pyro(self) -> Bound:
        """For Pyro. Raises MissingExtraError."""
        ...


@final
class VAE(nn.Module):
    """x: pictures (B, 784) of zeros and ones."""

    def __init__(self, pixels: int = 784, hidden: int = 200, latent: int = 10) -> None:
        super().__init__()
        self.inner, self.mean, self.spread = (
            nn.Linear(*s) for s in ((pixels, hidden), (hidden, latent), (hidden, latent))
        )
        self.decode = nn.Sequential(nn.Linear(latent, hidden), nn.LeakyReLU(), nn.Linear(hidden, pixels))
        self.zeros, self.ones = torch.zeros(latent), torch.ones(latent)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent, (B, latent) each."""
        h = F.leaky_relu(self.inner(x))
        return self.mean(h), self.spread(h).exp()

    def objective(self) -> Objective:
        """The ELBO by Reparam."""

        def model(h: Handle, x: Tensor) -> None:
            z = h.sample("z", Independent(Normal(self.zeros, self.ones), 1))
            h.observe("x", Independent(Bernoulli(logits=self.decode(z)), 1), x)

        def guide(h: Handle, x: Tensor) -> None:
            h.sample("z", Independent(Normal(*self.encode(x)), 1), Reparam())

        return elbo(model, guide, batch_dims=1)

    def by_hand(self, x: Tensor) -> Tensor:
        """The same, log-densities of both sides at one draw."""
        q = Normal(*self.encode(x))
        z = q.rsample()
        log_x = Bernoulli(logits=self.decode(z)).log_prob(x).sum(-1)
        return (log_x + (Normal(self.zeros, self.ones).log_prob(z) - q.log_prob(z)).sum(-1)).mean()

    def pyro(self) -> Bound:
        """Trace_ELBO."""
        pyro, dist = peer("pyro"), peer("pyro.distributions")

        def model(x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(self.zeros, self.ones).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decode(z)).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                pyro.sample("z", dist.Normal(*self.encode(x)).to_event(1))

        return pyro_bound(peer("pyro.infer").Trace_ELBO(), model, guide)

    def storchastic(self, x: Tensor) -> Callable[[], Tensor]:
        """A whole step: Storchastic keeps the cost to itself and runs backward. Raises MissingExtraError."""
        storch, weights = storchastic(), list(self.parameters())
        method = storch.method.Reparameterization("z", n_samples=1)

        def step() -> Tensor:
            for w in weights:
                w.grad = None
            rows = storch.denote_independent(x, 0, "rows")
            mean, spread = self.encode(rows)
            q = Normal(mean, spread)
            z = method(q)
            log_x = Bernoulli(logits=self.decode(z)).log_prob(rows).sum(-1)
            log_w = log_x + (Normal(self.zeros, self.ones).log_prob(z) - q.log_prob(z)).sum(-1)
            storch.add_cost(log_w, "bound")  # whatever is added is differentiated; its sign is ours to choose
            return storch.backward()

        return step


@final
class Chain(nn.Module):
    """x: measurements (B,) of the last of `sites` latents."""

    def __init__(self, sites: int = 10) -> None:
        super().__init__()
        self.names = [f"z{k}" for k in range(sites)]
        self.mean = nn.Parameter(torch.linspace(-0.5, 0.5, sites))
        self.spread = nn.Parameter(torch.linspace(-1.0, 0.0, sites))
        self.gain = nn.Parameter(torch.tensor(0.9))
        self.zero, self.one, self.noise = torch.zeros(()), torch.ones(()), torch.tensor(0.5)

    def objective(self) -> Objective:
        """The ELBO by Reparam."""

        def model(h: Handle, x: Tensor) -> None:
            z = self.zero
            for name in self.names:
                z = h.sample(name, Normal(self.gain * z, self.one))
            h.observe("x", Normal(z, self.noise), x)

        def guide(h: Handle, x: Tensor) -> None:
            for name, mean, spread in zip(self.names, self.mean, self.spread.exp(), strict=True):
                h.sample(name, Normal(mean, spread), Reparam())

        return elbo(model, guide, batch_dims=1)

    def by_hand(self, x: Tensor) -> Tensor:
        """The same: a loop over the sites, as one would write it for a chain."""
        total, before = torch.zeros(()), self.zero
        for mean, spread in zip(self.mean, self.spread.exp(), strict=True):
            q = Normal(mean, spread)
            z = q.rsample(x.shape)
            total = total + Normal(self.gain * before, self.one).log_prob(z) - q.log_prob(z)
            before = z
        return (total + Normal(before, self.noise).log_prob(x)).mean()

    def pyro(self) -> Bound:
        """Trace_ELBO."""
        pyro, dist = peer("pyro"), peer("pyro.distributions")

        def model(x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                z = self.zero
                for name in self.names:
                    z = pyro.sample(name, dist.Normal(self.gain * z, self.one))
                pyro.sample("x", dist.Normal(z, self.noise), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                for name, mean, spread in zip(self.names, self.mean, self.spread.exp(), strict=True):
                    pyro.sample(name, dist.Normal(mean, spread))

        return pyro_bound(peer("pyro.infer").Trace_ELBO(), model, guide)


@final
class Clusters(nn.Module):
    """x: points (B, features)."""

    def __init__(self, clusters: int = 10, features: int = 32, latent: int = 4, hidden: int = 64) -> None:
        super().__init__()
        self.inner = nn.Linear(features, hidden)
        self.choice, self.mean = nn.Linear(hidden, clusters), nn.Linear(hidden, latent)
        self.decode = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, features))
        self.shift = nn.Parameter(torch.linspace(-1, 1, clusters)[:, None].repeat(1, latent))
        self.centre = nn.Parameter(torch.linspace(-2, 2, clusters)[:, None].repeat(1, latent))
        self.spread, self.prior = nn.Parameter(torch.zeros(latent)), nn.Parameter(torch.linspace(-0.5, 0.5, clusters))
        self.one, self.noise, self.clusters = torch.ones(()), torch.tensor(0.7), clusters

    def objective(self) -> Objective:
        """The ELBO: the cluster by Enum, the place by Reparam."""

        def model(h: Handle, x: Tensor) -> None:
            k = h.sample("k", Categorical(logits=self.prior))
            z = h.sample("z", Independent(Normal(self.centre[k], self.one), 1))
            h.observe("x", Independent(Normal(self.decode(z), self.noise), 1), x)

        def guide(h: Handle, x: Tensor) -> None:
            inner = F.relu(self.inner(x))
            k = h.sample("k", Categorical(logits=self.choice(inner)), Enum())
            h.sample("z", Independent(Normal(self.mean(inner) + self.shift[k], self.spread.exp()), 1), Reparam())

        return elbo(model, guide, batch_dims=1)

    def by_hand(self, x: Tensor) -> Tensor:
        """The same: clusters on a leading dim, weighed by their probabilities."""
        inner, k = F.relu(self.inner(x)), torch.arange(self.clusters)[:, None]
        log_q = Categorical(logits=self.choice(inner)).log_prob(k)
        log_p = Categorical(logits=self.prior).log_prob(k)
        q = Normal(self.mean(inner) + self.shift[:, None], self.spread.exp())
        z = q.rsample()
        inside = (Normal(self.centre[:, None], self.one).log_prob(z) - q.log_prob(z)).sum(-1)
        log_x = Normal(self.decode(z), self.noise).log_prob(x).sum(-1)
        return (log_q.exp() * (log_x + inside + log_p - log_q)).sum(0).mean()

    def pyro(self) -> Bound:
        """TraceEnum_ELBO, enumerated in parallel."""
        pyro, dist = peer("pyro"), peer("pyro.distributions")

        def model(x: Tensor) -> None:
            with pyro.plate("rows", len(x)):
                k = pyro.sample("k", dist.Categorical(logits=self.prior))
                z = pyro.sample("z", dist.Normal(self.centre[k], self.one).to_event(1))
                pyro.sample("x", dist.Normal(self.decode(z), self.noise).to_event(1), obs=x)

        def guide(x: Tensor) -> None:
            inner = F.relu(self.inner(x))
            with pyro.plate("rows", len(x)):
                k = pyro.sample("k", dist.Categorical(logits=self.choice(inner)), infer={"enumerate": "parallel"})
                pyro.sample("z", dist.Normal(self.mean(inner) + self.shift[k], self.spread.exp()).to_event(1))

        return pyro_bound(peer("pyro.infer").TraceEnum_ELBO(max_plate_nesting=1), model, guide)


def pyro_bound(loss: Any, model: Callable[[Tensor], None], guide: Callable[[Tensor], None]) -> Bound:
    """Pyro's loss as a bound: Pyro minimises, and sums over rows.

    Its `differentiable_loss` is documented for torch's own optimisers; parameters need no store then, which saves Pyro
    the work of `pyro.module`.
    """
    return lambda x: loss.differentiable_loss(model, guide, x) / -len(x)
