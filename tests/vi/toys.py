"""Two small programs with known values and gradients, and gradients with their standard errors.

Unbiasedness: |mean - truth| < 4 standard errors over independent rows. A right estimator with normal errors fails that
with probability 6e-5 per number compared; seeds are fixed, so a pass stays a pass.
"""

import math

import numpy
import torch
from torch.distributions import Bernoulli, Normal

from wayfield.vi import Objective

LIMIT = 4.0
F64 = torch.float64


def t(*values, grad=False):
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=F64, requires_grad=grad)


def stacked(*values):
    """Along a last dim, after broadcasting."""
    return torch.stack(torch.broadcast_tensors(*values), -1)


def row_gradients(objective, parameters, rows, seed=0):
    """(value, gradients (P, rows)): every row has parameters of its own, so that it has a gradient of its own.

    objective: with batch_dims=1, of the parameters as rows.
    """
    thetas = [t(p).expand(rows).clone().requires_grad_() for p in parameters]
    estimate = objective(*thetas, seed=seed)
    found = torch.autograd.grad(estimate.surrogate, thetas, allow_unused=True)
    return estimate.value, torch.stack([torch.zeros(rows, dtype=F64) if g is None else g * rows for g in found])


def z_scores(gradients, truth):
    """Distances of the means of rows from the truth, in standard errors; rows that do not vary must be exact."""
    error = gradients.mean(1) - torch.as_tensor(truth, dtype=F64)
    spread = gradients.std(1) / math.sqrt(gradients.shape[1])
    return torch.where(error.abs() < 1e-9, torch.zeros_like(error), error / spread).abs()


def assert_unbiased(gradients, truth):
    z = z_scores(gradients, truth)
    assert (z < LIMIT).all(), f"means {gradients.mean(1).tolist()} truth {list(map(float, truth))} z {z.tolist()}"


def drawn_cost(dist, cost, strategy, **options):
    """E cost(x), x ~ dist(*parameters) at site "x"."""

    def body(run, *a):
        return cost(run.simulate(lambda h: h.sample("x", dist(*a), strategy)).result)

    return Objective(body, batch_dims=1, **options)


def derivatives(mean, parameters):
    thetas = [t(p, grad=True) for p in parameters]
    return [g.item() for g in torch.autograd.grad(mean(*thetas), thetas)]


# Oracle 1: a coin, then a Gaussian; the parameters are (l, m0, m1, c).

MIXED = (0.3, -0.5, 0.8, 0.2)
MIXED_GRADIENT = (0.7725, -0.4256, 1.8382, 0.5744)


def mixed_exact(l, m0, m1, c):
    p = torch.sigmoid(l)
    return p * (2 * (m1**2 + 1.21) + c) + (1 - p) * (m0**2 + 0.49)


def mixed(coin, gauss=None, **options):
    """The objective E[x^2 (1 + b) + b c] with these strategies."""

    def program(h, l, m0, m1, c):
        b = h.sample("b", Bernoulli(logits=l), coin)
        x = h.sample("x", Normal(m0 + (m1 - m0) * b, 0.7 + 0.4 * b), gauss)
        return x * x * (1 + b) + b * c

    return Objective(lambda run, *a: run.simulate(program, *a).result, batch_dims=1, **options)


# The same shape as model and guide: the parameters are (l, m0, m1, c), c the model's own.

PAIR = (0.3, -0.4, 0.7, 0.2)


def mixed_model(h, l, m0, m1, c):
    b = h.sample("b", Bernoulli(t(0.35)))
    x = h.sample("x", Normal(c + 0.9 * b, t(1.0)))
    h.observe("y", Normal(x, 0.8 + 0.3 * b), t(0.6))


def mixed_guide(coin, gauss=None):
    def guide(h, l, m0, m1, c):
        b = h.sample("b", Bernoulli(logits=l), coin)
        h.sample("x", Normal(m0 + (m1 - m0) * b, 0.7 + 0.4 * b), gauss)

    return guide


def mixed_states(l, m0, m1, c, nodes=32):
    """Probability and log weight of every state, (2 nodes,), x by Gauss-Hermite quadrature: nothing of the library."""
    where, weight = (torch.tensor(v, dtype=F64) for v in numpy.polynomial.hermite_e.hermegauss(nodes))
    probs, logs = [], []
    for b in (0, 1):
        p, m, s = torch.sigmoid(l if b else -l), m1 if b else m0, 0.7 + 0.4 * b
        x = m + s * where
        log_q = p.log() + log_normal(x, m, s)
        log_p = math.log(0.35 if b else 0.65) + log_normal(x, c + 0.9 * b, 1.0) + log_normal(0.6, x, 0.8 + 0.3 * b)
        probs.append(p * weight / weight.sum())
        logs.append(log_p - log_q)
    return torch.cat(probs), torch.cat(logs)


def log_normal(x, m, s):
    return -0.5 * ((x - m) / s) ** 2 - math.log(s) - 0.5 * math.log(2 * math.pi)


# Oracle 2: a coin for a guide, joint weights 0.35 and 0.15; the parameter is (l,).

COIN = (0.4,)
COIN_EXACT = {
    1: (-0.883549, -0.299677),
    2: (-0.795597, -0.184013),
    3: (-0.761096, -0.126199),
    8: (-0.717455, -0.045108),
}


def coin_model(h, l):
    h.sample("b", Bernoulli(t(0.3)))
    h.factor("half", t(math.log(0.5)))


def coin_guide(strategy):
    def guide(h, l):
        h.sample("b", Bernoulli(logits=l), strategy)

    return guide


def coin_states(l):
    probs = torch.stack([torch.sigmoid(-l), torch.sigmoid(l)])
    return probs, t(0.35, 0.15).log() - probs.log()


# Bounds of two particles or one from states, by summing over them all.


def exact(states, bound, n, parameters):
    """(value, gradient) of E[bound(log weights (n, ...))] over n independent states."""
    thetas = [t(p, grad=True) for p in parameters]
    probs, logs = states(*thetas)
    K = len(probs)
    grid = torch.cartesian_prod(*[torch.arange(K)] * n).reshape(-1, n).T
    value = (probs[grid].prod(0) * bound(logs[grid])).sum()
    found = torch.autograd.grad(value, thetas, allow_unused=True)
    return value.item(), [0.0 if g is None else g.item() for g in found]


def bound_elbo(log_w):
    return log_w.mean(0)


def bound_renyi(alpha):
    def bound(log_w):
        n = len(log_w)
        return (torch.logsumexp((1 - alpha) * log_w, 0) - math.log(n)) / (1 - alpha)

    return bound
