r"""Measure-valued derivatives of the common distributions: what to draw instead, and with which weight.

.. math:: \partial_a p_a = c(a)\, (p^+_a - p^-_a)

=================  ===========  ==================  =============================  ===========================
distribution       parameter a  c                   x+                             x-
=================  ===========  ==================  =============================  ===========================
Bernoulli(p)       p            1                   1                              0
Categorical(pi)    pi_j         1                   j                              any (sum of d pi_j is 0)
Normal(mu, s)      mu           1 / (s sqrt(2 pi))  mu + s W                       mu - s W, W Rayleigh
Normal(mu, s)      s            1 / s               mu + s M, M two-sided Maxwell  mu + s N, N = U M
Poisson(l)         l            1                   x + 1                          x
Exponential(l)     l            1 / l               x                              x + Exponential(l)
Gamma(k, l)        l            k / l               x                              x + Exponential(l)
=================  ===========  ==================  =============================  ===========================

x is the value drawn in the main run, whose cost is known already. Shapes: those of the parameters, [..., *event].

Reference: Mohamed, Rosca, Figurnov & Mnih 2020, Monte Carlo gradient estimation in machine learning, table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    Normal,
    Poisson,
)

from wayfield.core.errors import UnsupportedError
from wayfield.vi.strategy import base_of

__all__ = ["Pair", "pairs"]


@final
@dataclass(frozen=True, eq=False)
class Pair:
    """One parameter's derivative: coefficient (L(plus) - L(minus)).

    parameter: with its graph, [..., *event] / coefficient: detached, like it / plus, minus: values, None for the drawn.
    """

    parameter: Tensor
    coefficient: Tensor
    plus: Tensor | None
    minus: Tensor | None


def pairs(name: str, dist: Distribution, x: Tensor, coupled: bool) -> list[Pair]:
    """A pair for every parameter that asks for a gradient. x: drawn, [..., *event].

    Raises UnsupportedError for a distribution without a decomposition, or a shape parameter that asks for a gradient.
    """
    base = base_of(dist)
    rule = _RULES.get(type(base))
    if rule is None:
        known = ", ".join(k.__name__ for k in _RULES)
        remedy = "Choose Reparam() or Implicit() where possible, else Reinforce()."
        raise UnsupportedError(f"MVD() at site {name!r}", got=type(base).__name__, expected=known, remedy=remedy)
    if isinstance(base, Gamma) and base.concentration.requires_grad:
        remedy = "Choose Implicit()."
        got = "a concentration with a gradient"
        raise UnsupportedError(f"MVD() at site {name!r}", got=got, expected="a gradient in rate only", remedy=remedy)
    with torch.no_grad():
        found = rule(base, x, coupled)
    return [p for p in found if p.parameter.requires_grad]


def _bernoulli(dist: Bernoulli, x: Tensor, coupled: bool) -> list[Pair]:
    with torch.enable_grad():
        p = dist.probs
    # the drawn value is one of the two; its sign makes it (L(1) - L(0)) either way
    return [Pair(p, 1 - 2 * x, 1 - x, None)]


def _categorical(dist: Categorical, x: Tensor, coupled: bool) -> list[Pair]:
    with torch.enable_grad():
        probs, K = dist.probs, dist.probs.shape[-1]
        others = [(x + r) % K for r in range(1, K)]
        laid = probs.expand(*torch.broadcast_shapes(probs.shape[:-1], x.shape), K)
        taken = [laid.gather(-1, j.expand(laid.shape[:-1])[..., None])[..., 0] for j in others]
    return [Pair(p, torch.ones_like(p), j, None) for p, j in zip(taken, others, strict=True)]


def _normal(dist: Normal, x: Tensor, coupled: bool) -> list[Pair]:
    mu, s = dist.loc.expand(x.shape), dist.scale.expand(x.shape)
    found = []
    if dist.loc.requires_grad:
        up = s * _rayleigh(x)
        down = up if coupled else s * _rayleigh(x)
        found.append(Pair(dist.loc, 1 / (s * math.sqrt(2 * math.pi)), mu + up, mu - down))
    if dist.scale.requires_grad:
        sign = 2 * (torch.empty_like(x).uniform_() < 0.5) - 1
        maxwell = sign * _normals(x, 3).square().sum(0).sqrt()
        normal = maxwell * torch.empty_like(x).uniform_() if coupled else torch.empty_like(x).normal_()
        found.append(Pair(dist.scale, 1 / s, mu + s * maxwell, mu + s * normal))
    return found


def _poisson(dist: Poisson, x: Tensor, coupled: bool) -> list[Pair]:
    return [Pair(dist.rate, torch.ones_like(x), x + 1, None)]


def _exponential(dist: Exponential, x: Tensor, coupled: bool) -> list[Pair]:
    rate = dist.rate.expand(x.shape)
    start = x if coupled else torch.empty_like(x).exponential_() / rate
    return [Pair(dist.rate, 1 / rate, None, start + torch.empty_like(x).exponential_() / rate)]


def _gamma(dist: Gamma, x: Tensor, coupled: bool) -> list[Pair]:
    rate, k = dist.rate.expand(x.shape), dist.concentration.expand(x.shape)
    start = x if coupled else Gamma(k, rate).sample()
    return [Pair(dist.rate, k / rate, None, start + torch.empty_like(x).exponential_() / rate)]


def _rayleigh(x: Tensor) -> Tensor:
    return (2 * torch.empty_like(x).exponential_()).sqrt()


def _normals(x: Tensor, count: int) -> Tensor:
    return x.new_empty(count, *x.shape).normal_()


_RULES: dict[type[Distribution], Callable[..., list[Pair]]] = {
    Bernoulli: _bernoulli,
    Categorical: _categorical,
    Normal: _normal,
    Poisson: _poisson,
    Exponential: _exponential,
    Gamma: _gamma,
}
