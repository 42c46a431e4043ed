"""AIR for suite "vi": geometry and size of the recipe (`recipes.air`), small networks, the same program three times.

A model and a guide of two objects: is there one, where, and what; masked densities of what is absent. The guide is a
recurrent network that sees the picture and what it found before. The choices pass the gradient by score function, by
enumeration, or (wayfield alone) by measure-valued derivatives.
"""

from __future__ import annotations

from copy import copy
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, Normal

from wayfield.bench.peers import peer
from wayfield.bench.vi_models import Bound, pyro_bound
from wayfield.recipes.air import Masked, attend, paste
from wayfield.vi import Enum, Handle, Objective, Reinforce, Reparam, elbo
from wayfield.vi.strategy import Strategy

__all__ = ["AIR", "SCORE"]

CANVAS, GLIMPSE, MOST, WHAT, HIDDEN = 24, 8, 2, 8, 64
PRESENT, NOISE = 0.3, 0.3
BASELINE = -1.0  # Pyro leaves out the gradient of a choice's own -log q, whose mean is zero: this does the same
SCORE = Reinforce(BASELINE)


@final
class AIR(nn.Module):
    """x: pictures (B, 24, 24). strategy: how the gradient passes the choices."""

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self.strategy = strategy
        self.decoder = _mlp(WHAT, HIDDEN, GLIMPSE**2)
        self.encoder = _mlp(GLIMPSE**2, HIDDEN, 2 * WHAT)
        self.picture, self.found = nn.Linear(CANVAS**2, HIDDEN), nn.Linear(4 + WHAT + HIDDEN, HIDDEN)
        self.predict = _mlp(HIDDEN, HIDDEN, 7)
        self.place, self.spread = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.2, 1.0, 1.0])
        self.zeros, self.ones = torch.zeros(WHAT), torch.ones(WHAT)
        self.noise, self.start = torch.tensor(NOISE), torch.zeros(4 + WHAT + HIDDEN)

    def look(self, seen: Tensor, found: Tensor, alive: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next state, the probability of an object, and its place's mean and spread."""
        state = (seen + self.found(found)).tanh()
        logit, move, spread = self.predict(state).split((1, 3, 3), -1)
        return state, _within(logit[..., 0].sigmoid() * alive), self.place + 0.1 * move, F.softplus(spread - 2)

    def encode(self, x: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the code of what lies there."""
        mean, spread = self.encoder(attend(x, where, GLIMPSE).flatten(-2)).chunk(2, -1)
        return mean, F.softplus(spread)

    def painted(self, alive: Tensor, where: Tensor, what: Tensor) -> Tensor:
        """One object on an empty canvas."""
        glimpse = self.decoder(what).sigmoid().unflatten(-1, (GLIMPSE, GLIMPSE))
        return alive[..., None, None] * paste(glimpse, where, CANVAS)

    def objective(self) -> Objective:
        """The ELBO by the strategy for choices, Reparam for the rest."""

        def model(h: Handle, x: Tensor) -> None:
            alive, canvas = x.new_ones(()), x.new_zeros(())
            for t in range(MOST):
                alive = alive * h.sample(f"pres_{t}", Bernoulli(_within(PRESENT * alive)))
                where = h.sample(f"where_{t}", Masked(Independent(Normal(self.place, self.spread), 1), alive))
                what = h.sample(f"what_{t}", Masked(Independent(Normal(self.zeros, self.ones), 1), alive))
                canvas = canvas + self.painted(alive, where, what)
            h.observe("x", Independent(Normal(canvas, self.noise), 2), x)

        def guide(h: Handle, x: Tensor) -> None:
            seen, found, alive = self.picture(x.flatten(-2)), self.start, x.new_ones(())
            for t in range(MOST):
                state, p, place, spread = self.look(seen, found, alive)
                alive = alive * h.sample(f"pres_{t}", Bernoulli(p), self.strategy)
                where = h.sample(f"where_{t}", Masked(Independent(Normal(place, spread), 1), alive), Reparam())
                q_what = Masked(Independent(Normal(*self.encode(x, where)), 1), alive)
                what = h.sample(f"what_{t}", q_what, Reparam())
                found = _joined(alive[..., None], where, what, state)

        return elbo(model, guide, batch_dims=1)

    def by_hand(self, x: Tensor) -> Tensor:
        """The same: one loop over the objects; enumerated choices each on a leading dim of their own."""
        every = isinstance(self.strategy, Enum)
        seen, found, alive = self.picture(x.flatten(-2)), self.start, torch.ones(())
        log_w, log_q, canvas = torch.zeros(()), torch.zeros(()), torch.zeros(())
        p_where, p_what = Normal(self.place, self.spread), Normal(self.zeros, self.ones)
        for t in range(MOST):
            p_pres = Bernoulli(_within(PRESENT * alive))
            state, p, place, spread = self.look(seen, found, alive)
            q_pres, q_where = Bernoulli(p), Normal(place, spread)
            pres = torch.arange(2.0).reshape(2, *(1,) * (t + 1)) if every else q_pres.sample()
            log_p = q_pres.log_prob(pres)
            alive, where = alive * pres, q_where.rsample()
            q_what = Normal(*self.encode(x, where))
            what = q_what.rsample()
            canvas = canvas + self.painted(alive, where, what)
            log_q, log_w = log_q + log_p, log_w + p_pres.log_prob(pres) - log_p
            inside = (p_where.log_prob(where) - q_where.log_prob(where)).sum(-1)
            log_w = log_w + alive * (inside + (p_what.log_prob(what) - q_what.log_prob(what)).sum(-1))
            found = _joined(alive[..., None], where, what, state)
        log_w = log_w + Normal(canvas, self.noise).log_prob(x).sum((-2, -1))
        if every:
            return (log_q.exp() * log_w).sum(tuple(range(MOST))).mean()
        return (log_w + (log_q - log_q.detach()) * (log_w.detach() - BASELINE)).mean()

    def pyro(self) -> Bound:
        """Trace_ELBO, or TraceEnum_ELBO in parallel."""
        pyro, dist, infer = peer("pyro"), peer("pyro.distributions"), peer("pyro.infer")
        every = isinstance(self.strategy, Enum)
        how: dict[str, Any] = {"enumerate": "parallel"} if every else {}

        def model(x: Tensor) -> None:
            alive, canvas = x.new_ones(()), x.new_zeros(())
            with pyro.plate("rows", len(x)):
                for t in range(MOST):
                    alive = alive * pyro.sample(f"pres_{t}", dist.Bernoulli(_within(PRESENT * alive)))
                    with pyro.poutine.mask(mask=alive.bool()):
                        where = pyro.sample(f"where_{t}", dist.Normal(self.place, self.spread).to_event(1))
                        what = pyro.sample(f"what_{t}", dist.Normal(self.zeros, self.ones).to_event(1))
                    canvas = canvas + self.painted(alive, where, what)
                pyro.sample("x", dist.Normal(canvas, self.noise).to_event(2), obs=x)

        def guide(x: Tensor) -> None:
            seen, found, alive = self.picture(x.flatten(-2)), self.start, x.new_ones(())
            with pyro.plate("rows", len(x)):
                for t in range(MOST):
                    state, p, place, spread = self.look(seen, found, alive)
                    alive = alive * pyro.sample(f"pres_{t}", dist.Bernoulli(p), infer=how)
                    with pyro.poutine.mask(mask=alive.bool()):
                        where = pyro.sample(f"where_{t}", dist.Normal(place, spread).to_event(1))
                        what = pyro.sample(f"what_{t}", dist.Normal(*self.encode(x, where)).to_event(1))
                    found = _joined(alive[..., None], where, what, state)

        return pyro_bound(infer.TraceEnum_ELBO(max_plate_nesting=1) if every else infer.Trace_ELBO(), model, guide)

    def by(self, strategy: Strategy) -> AIR:
        """The same weights, shared, under another strategy."""
        other = copy(self)
        other.strategy = strategy
        return other


def _within(p: Tensor) -> Tensor:
    """Kept away from 0 and 1."""
    return (1e-3 + p) / (1 + 1.01e-3)


def _joined(*parts: Tensor) -> Tensor:
    """Side by side along the last dim, leading dims broadcast."""
    lead = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*lead, p.shape[-1]) for p in parts], -1)


def _mlp(a: int, hidden: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(a, hidden), nn.ReLU(), nn.Linear(hidden, b))
