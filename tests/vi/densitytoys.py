"""Programs with helpers and wakes, and their exact objectives: finite sums, quadrature where a site is Gaussian.

Two bits: guide u ~ Bernoulli(s(a)), b ~ Bernoulli(s(c0 + (c1 - c0) u)); what is kept is b. Model: b ~ Bernoulli(s(t))
and a factor, so that P(b, y) is unnormalised. s is the sigmoid. The mixed programs are those of `toys`.
"""

import itertools
import math

import numpy
import torch
from torch.distributions import Bernoulli, Normal
from toys import log_normal, mixed_guide

from wayfield.vi import marginal

F = torch.float64
START = {"a": 0.4, "c0": -0.6, "c1": 1.1, "t": -0.8}
FACTOR = (math.log(0.9), math.log(0.35))


def leaves(rows=None):
    """The parameters as float64 leaves, one for each row if there are rows."""
    shape = () if rows is None else (rows,)
    return {k: torch.full(shape, v, dtype=F).requires_grad_() for k, v in START.items()}


def programs(p, strategy=None):
    """model, guide, guide's marginal in b."""

    def guide(h, *args):
        u = h.sample("u", Bernoulli(logits=p["a"]), strategy)
        h.sample("b", Bernoulli(logits=p["c0"] + (p["c1"] - p["c0"]) * u), strategy)

    def model(h, *args):
        b = h.sample("b", Bernoulli(logits=p["t"]))
        h.factor("y", FACTOR[0] + (FACTOR[1] - FACTOR[0]) * b)

    return model, guide, marginal(guide, ["b"])


def joint(p):
    """log P(b, y), (2,)."""
    return torch.stack([Bernoulli(logits=p["t"]).log_prob(torch.tensor(float(b), dtype=F)) + FACTOR[b] for b in (0, 1)])


def prior(p):
    """q(u), (2,)."""
    return torch.stack([1 - torch.sigmoid(p["a"]), torch.sigmoid(p["a"])])


def conditional(p):
    """q(b | u), (2, 2)."""
    one = torch.sigmoid(torch.stack([p["c0"], p["c1"]]))
    return torch.stack([1 - one, one], 1)


def kept(p):
    """q(b), (2,)."""
    return prior(p) @ conditional(p)


def states(m):
    """Probability and log weight of what one particle draws, b and m helpers: for `toys.exact`."""

    def found(*values):
        p = dict(zip(START, values, strict=True))
        q_u, q_b, log_p = prior(p), conditional(p), joint(p)
        probs, logs = [], []
        for b, *us in itertools.product((0, 1), repeat=m + 1):
            probs.append(q_b[us[0], b] * q_u[us].prod())
            logs.append(log_p[b] - q_b[us, b].mean().log())
        return torch.stack(probs), torch.stack(logs)

    return found


def bound(p, n, m):
    """DIWHVI(n, m): the sum over every b and u of n particles."""
    probs, logs = states(m)(*p.values())
    grid = torch.cartesian_prod(*[torch.arange(len(probs))] * n).reshape(-1, n).T
    return (probs[grid].prod(0) * (torch.logsumexp(logs[grid], 0) - math.log(n))).sum()


def by_rows(strategy):
    """The model and the marginal guide with the parameters as arguments, which may be rows."""

    def model(h, *values):
        programs(dict(zip(START, values, strict=True)))[0](h)

    def guide(h, *values):
        programs(dict(zip(START, values, strict=True)), strategy)[1](h)

    return model, marginal(guide, ["b"])


def evidence(p):
    return torch.logsumexp(joint(p), 0)


def gradients(value, p):
    found = torch.autograd.grad(value, list(p.values()), allow_unused=True)
    return {k: torch.zeros(()) if g is None else g for k, g in zip(p, found, strict=True)}


# A coin as guide, its model with a parameter of its own: (a, t).

COIN = (0.4, -0.8)


def coin_model(h, a, t):
    b = h.sample("b", Bernoulli(logits=t))
    h.factor("y", FACTOR[0] + (FACTOR[1] - FACTOR[0]) * b)


def coin_guide(strategy):
    def guide(h, a, t):
        h.sample("b", Bernoulli(logits=a), strategy)

    return guide


def coin_wake(a, t):
    """Of every state: its probability, log P, log Q."""
    log_q = torch.stack([torch.sigmoid(-a), torch.sigmoid(a)]).log()
    log_p = torch.stack([torch.sigmoid(-t), torch.sigmoid(t)]).log() + torch.tensor(FACTOR, dtype=F)
    return log_q.exp(), log_p, log_q


def coin_states(a, t):
    """Probability and log weight of every state: for `toys.exact`."""
    q, log_p, log_q = coin_wake(a, t)
    return q, log_p - log_q


# The mixed guide of `toys` with b left out; the model has x alone.


def helped_model(h, l, m0, m1, c):
    x = h.sample("x", Normal(c, torch.tensor(1.2, dtype=F)))
    h.observe("y", Normal(x, torch.tensor(0.9, dtype=F)), torch.tensor(0.6, dtype=F))


def helped_guide(strategy):
    return marginal(mixed_guide(strategy), ["x"])


def helped_states(m, nodes=48):
    """As `states`, x by Gauss-Hermite quadrature."""

    def found(l, m0, m1, c):
        where, weight = _nodes(nodes)
        chance, mean, scale = (torch.sigmoid(-l), torch.sigmoid(l)), (m0, m1), (0.7, 1.1)
        probs, logs = [], []
        for us in itertools.product((0, 1), repeat=m):
            x = mean[us[0]] + scale[us[0]] * where
            q = torch.stack([log_normal(x, mean[u], scale[u]) for u in us]).exp().mean(0)
            probs.append(math.prod(chance[u] for u in us) * weight)
            logs.append(log_normal(x, c, 1.2) + log_normal(0.6, x, 0.9) - q.log())
        return torch.cat(probs), torch.cat(logs)

    return found


def mixed_wake(l, m0, m1, c):
    """As `coin_wake`, for `toys.mixed_model` and `toys.mixed_guide`; draws do not move with the parameters."""
    where, weight = _nodes(32)
    chance, log_p, log_q = [], [], []
    for b in (0, 1):
        p, m, s = torch.sigmoid(l if b else -l), m1 if b else m0, 0.7 + 0.4 * b
        x = (m + s * where).detach()
        chance.append(p.detach() * weight)
        log_q.append(p.log() + log_normal(x, m, s))
        model = log_normal(x, c + 0.9 * b, 1.0) + log_normal(0.6, x, 0.8 + 0.3 * b)
        log_p.append(math.log(0.35 if b else 0.65) + model)
    return torch.cat(chance), torch.cat(log_p), torch.cat(log_q)


def exact_wake(wake, n, side, parameters):
    """(value, gradient) of E sum of normalised weights times log P or log Q: n draws of fixed states, or all."""
    thetas = [torch.tensor(v, dtype=F, requires_grad=True) for v in parameters]
    chance, log_p, log_q = wake(*thetas)
    aim = log_q if side == "q" else log_p
    if n is None:
        value = (log_p.detach().softmax(0) * aim).sum()
    else:
        grid = torch.cartesian_prod(*[torch.arange(len(aim))] * n).reshape(-1, n).T
        weights = (log_p - log_q).detach()[grid].softmax(0)
        value = (chance.detach()[grid].prod(0) * (weights * aim[grid]).sum(0)).sum()
    found = torch.autograd.grad(value, thetas, allow_unused=True)
    return value.item(), [0.0 if g is None else g.item() for g in found]


def exact_sleep(t, v, w):
    """(value, gradient in v and w) of E log Q(b | y), b ~ Bernoulli(s(t)), y ~ N(b, 1), Q = Bernoulli(s(v + w y))."""
    v, w = (torch.tensor(k, dtype=F, requires_grad=True) for k in (v, w))
    where, weight = _nodes(64)
    value = torch.zeros((), dtype=F)
    for b, sign in ((0, -1), (1, 1)):
        chance = 1 / (1 + math.exp(-sign * t))
        value = value + chance * (weight * torch.nn.functional.logsigmoid(sign * (v + w * (b + where)))).sum()
    return value.item(), [g.item() for g in torch.autograd.grad(value, (v, w))]


def _nodes(count):
    where, weight = (torch.tensor(v, dtype=F) for v in numpy.polynomial.hermite_e.hermegauss(count))
    return where, weight / weight.sum()
