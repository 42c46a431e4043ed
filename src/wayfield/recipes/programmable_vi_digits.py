r"""Digits with discrete causes: four gradient strategies for one objective, on a world small enough to be summed.

.. math::
    \text{part}_{1, 2} \sim \operatorname{Bernoulli}(\tfrac12), \quad \text{kind} \sim \operatorname{Categorical}(10),
    \quad x \sim \operatorname{Bernoulli}(\operatorname{decoder}(\text{part}, \text{kind}))

The guide is a network that gives the three sites' logits from the picture. There are 40 joint values, so that the ELBO
of a picture, and its gradient, are known exactly. Shapes: x (B, 64) of 0 and 1; logits (B, 12), parts before kinds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent
from torch.nn import functional as F

from wayfield import vi
from wayfield.data.digits import digits
from wayfield.vi import MVD, Enum, LeaveOneOut, Objective, Reinforce
from wayfield.vi.program import Handle
from wayfield.vi.seeding import seeded
from wayfield.vi.strategy import Strategy

__all__ = ["ARMS", "ENUM", "LOO", "MEASURE", "SCORE", "Causes", "gradients", "pictures", "trained"]

SCORE, LOO, MEASURE, ENUM = "REINFORCE", "REINFORCE, leave one out", "MVD", "ENUM"


def _sites(parts: Strategy, kind: Strategy) -> dict[str, Strategy]:
    return {"part_1": parts, "part_2": parts, "kind": kind}


ARMS: Mapping[str, Mapping[str, Strategy]] = {
    SCORE: _sites(Reinforce(), Reinforce()),
    LOO: _sites(Reinforce(LeaveOneOut()), Reinforce(LeaveOneOut())),
    MEASURE: _sites(MVD(), Reinforce()),
    ENUM: _sites(Enum(), Enum()),
}
"""Strategies by arm. MVD serves the parts alone, beside the score function; leaving one out takes two samples."""


def pictures() -> tuple[Tensor, Tensor]:
    """1,500 digits to train on and 297 to test on, as (N, 64) of 0 and 1."""
    x = (digits().x.flatten(1) > 0).float()
    return x[:1500], x[1500:]


@final
class Causes(nn.Module):
    """Networks of model and guide, and both as programs for x (B, 64).

    Both take shifts of their output logits after x, zero in training: one shift per row has one gradient per row, which
    is that of the output bias.
    """

    flat: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        with seeded(seed):
            self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
            self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64))
        self.register_buffer("flat", torch.zeros(10))

    def model(self, h: Handle, x: Tensor, cause: Tensor, pixel: Tensor) -> None:
        """Parts, kind and picture. pixel: shifts, (B, 64) or (64,)."""
        half = self.flat.new_tensor(0.5)
        parts = [h.sample(f"part_{k}", Bernoulli(half)) for k in (1, 2)]
        kind = F.one_hot(h.sample("kind", Categorical(logits=self.flat)), 10).to(x)
        lead = torch.broadcast_shapes(kind.shape[:-1], *(p.shape for p in parts))
        inputs = torch.cat([*(p.expand(lead)[..., None] for p in parts), kind.expand(*lead, 10)], -1)
        h.observe("x", Independent(Bernoulli(logits=self.decoder(inputs) + pixel), 1), x)

    def guide(self, h: Handle, x: Tensor, cause: Tensor, pixel: Tensor) -> None:
        """Parts and kind from the picture. cause: shifts, (B, 12) or (12,)."""
        logits = self.encoder(x) + cause
        for k in (1, 2):
            h.sample(f"part_{k}", Bernoulli(logits=logits[..., k - 1]))
        h.sample("kind", Categorical(logits=logits[..., 2:]))

    def elbo(self, arm: str) -> Objective:
        """The bound with the strategies of an arm."""
        samples = 2 if arm == LOO else 1
        return vi.elbo(self.model, self.guide, samples, batch_dims=1).with_strategies(ARMS[arm])


def trained(arm: str, seed: int, steps: int, batch: int = 100, every: int = 250) -> dict[str, Any]:
    """Train one arm with Adam at 1e-3; returns the exact test ELBO in nats, its curve, and milliseconds a step."""
    train, test = pictures()
    net, generator = Causes(seed), torch.Generator().manual_seed(seed)
    objective, exact, none = net.elbo(arm), net.elbo(ENUM), (torch.zeros(12), torch.zeros(64))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    curve: list[tuple[int, float]] = []
    spent = 0.0
    for step in range(steps + 1):
        if step % every == 0 or step == steps:
            with torch.no_grad():
                curve.append((step, float(exact(test, *none, seed=0).value)))
        if step == steps:
            break
        x = train[torch.randint(len(train), (batch,), generator=generator)]
        start = time.thread_time()
        optimiser.zero_grad()
        (-objective(x, *none, seed=seed << 32 | step).surrogate).backward()
        optimiser.step()
        spent += time.thread_time() - start
    return {"elbo": curve[-1][1], "curve": curve, "ms_per_step": 1000 * spent / steps}


def gradients(arm: str, seed: int, draws: int, count: int = 10) -> tuple[Tensor, Tensor]:
    """Gradients at the start, of the guide's and the decoder's output biases together, (draws, 76), by `draws`
    independent draws of the mean over `count` pictures; and the exact one, (76,), by summing all values.
    """
    net, x = Causes(seed), pictures()[0][:count]

    def of(chosen: str, repeats: int) -> Tensor:
        rows = x.repeat(repeats, 1)
        shifts = [torch.zeros(len(rows), n, requires_grad=True) for n in (12, 64)]
        total = net.elbo(chosen)(rows, *shifts, seed=seed).surrogate * len(rows)
        found = torch.cat(torch.autograd.grad(total, shifts), 1)
        return found.unflatten(0, (repeats, count)).mean(1)

    return of(arm, draws), of(ENUM, 1)[0]
