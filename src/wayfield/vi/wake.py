r"""Learning the guide on the posterior instead of on its own draws: wake phases, the sleep phase, the symmetric sum.

.. math::
    \text{q\_wake:}\quad & \mathbb{E}_{P(z \mid y)} \log Q_\phi(z) \approx \textstyle\sum_i \bar w_i \log Q_\phi(z_i) \\
    \text{p\_wake:}\quad & \mathbb{E}_{P(z \mid y)} \log P_\theta(z, y)
        \approx \textstyle\sum_i \bar w_i \log P_\theta(z_i, y) \\
    \text{forward\_kl:}\quad & \mathbb{E}_{P(z, y)} \log Q_\phi(z \mid y) \\
    \text{symmetric:}\quad & \text{elbo} + \lambda\, \text{q\_wake}

z_i are n draws of the guide and w_i = P(z_i, y) / Q(z_i), divided by their sum; draws and weights carry no gradient, so
that q_wake moves only what is in the guide's density and p_wake only the model. No draw is differentiated: every
strategy of a site gives the same gradient. Self-normalised weights are **biased** towards the guide at order 1/n (the
gradient is unbiased for the finite-n objective, not for the posterior's); n = None weighs the guide's whole finite
support and is exact. All are maximised.

With a stochastic density as guide, log Q is its estimate: a lower bound of the objective, as everywhere.

References: Bornschein & Bengio 2015, Reweighted wake-sleep, arXiv 1406.2751; Le et al. 2019, arXiv 1805.10469.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, UnsupportedError, unknown_name
from wayfield.vi.objective import Objective
from wayfield.vi.program import Program, Trace
from wayfield.vi.run import Run
from wayfield.vi.stochastic import StochasticDensity
from wayfield.vi.support import everything, widened

__all__ = ["forward_kl", "p_wake", "q_wake", "symmetric"]

Guide = Program | StochasticDensity


def q_wake(model: Program, guide: Guide, n: int | None, samples: int = 1, batch_dims: int = 0) -> Objective:
    """log Q at posterior values: its gradient is the guide's alone. n: draws weighed, biased at order 1/n; None: exact.

    Raises RangeError for n < 1, UnsupportedError for n=None and a stochastic density.
    """
    _check(guide, n)

    def body(run: Run, *args: Any) -> Tensor:
        z, weights = _posterior(run, model, guide, n, args)
        return _mean(z, weights, run.replay(guide, z, *args).log_prob)

    return Objective(body, samples, batch_dims, name=_name("q_wake", n))


def p_wake(model: Program, guide: Guide, n: int | None, samples: int = 1, batch_dims: int = 0) -> Objective:
    """log P at posterior values: its gradient is the model's alone. n: draws weighed, biased at order 1/n; None: exact.

    Raises RangeError for n < 1, UnsupportedError for n=None and a stochastic density.
    """
    _check(guide, n)

    def body(run: Run, *args: Any) -> Tensor:
        z, weights = _posterior(run, model, guide, n, args)
        return _mean(z, weights, run.log_density(model, z, *args))

    return Objective(body, samples, batch_dims, name=_name("p_wake", n))


def symmetric(
    model: Program, guide: Guide, n: int | None, weight: float = 1.0, samples: int = 1, batch_dims: int = 0
) -> Objective:
    """ELBO plus `weight` times q_wake(n): both directions of the KL, against missing modes and against inventing them.

    Raises RangeError for n < 1 or a weight below zero, UnsupportedError for n=None and a stochastic density.
    """
    _check(guide, n)
    if not weight >= 0:
        raise RangeError("weight of symmetric", got=weight, expected="at least 0", remedy="Give 1, the usual sum.")

    def body(run: Run, *args: Any) -> Tensor:
        q = run.simulate(guide, *args)
        reverse = run.log_density(model, q, *args) - q.log_prob
        z, weights = _posterior(run, model, guide, n, args)
        return reverse + weight * _mean(z, weights, run.replay(guide, z, *args).log_prob)

    return Objective(body, samples, batch_dims, name=_name("symmetric", n))


def forward_kl(
    model: Program, guide: Guide, observed: str | Sequence[str], samples: int = 1, batch_dims: int = 0
) -> Objective:
    """log Q(z | y) at values and data that the model dreams: the sleep phase. Unbiased, and moves the guide alone.

    observed: names of the model's observed sites, in the order of its data arguments. Model and guide take data first,
    model(h, *data, *args); the objective is called with args alone, and the model gets None for each datum, which
    `observe` then draws. Raises UnknownNameError for a name that is not observed.
    """
    names = (observed,) if isinstance(observed, str) else tuple(observed)
    if not names:
        remedy = "Name the observed sites: forward_kl(model, guide, ['y'])."
        raise RangeError("observed", got=names, expected="one name or more", remedy=remedy)

    def body(run: Run, *args: Any) -> Tensor:
        p = run.simulate(model, *(None,) * len(names), *args, frozen=True)
        seen = {k: s.value for k, s in p.sites.items() if s.given and s.value is not None}
        for name in names:
            if name not in seen:
                raise unknown_name("observed site", name, seen)
        return run.replay(guide, p, *(seen[k] for k in names), *args).log_prob

    return Objective(body, samples, batch_dims, name="forward_kl")


def _check(guide: Guide, n: int | None) -> None:
    if n is None and isinstance(guide, StochasticDensity):
        remedy = "Give a number of draws."
        raise UnsupportedError("n=None", got=type(guide).__name__, expected="a program", remedy=remedy)
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
        remedy = "Give 1 or more, or None for the exact posterior over a finite support."
        raise RangeError("draws n", got=n, expected="a whole number of at least 1", remedy=remedy)


def _name(kind: str, n: int | None) -> str:
    return f"{kind} (exact posterior)" if n is None else f"{kind} ({n} self-normalised draws: biased at order 1/n)"


def _posterior(run: Run, model: Program, guide: Guide, n: int | None, args: tuple[Any, ...]) -> tuple[Trace, Tensor]:
    """Draws of the guide, or all its values, and their normalised weights, [..., n, ..., S, B]; without graph."""
    with torch.no_grad():
        z = everything(run, guide, *args) if n is None else run.simulate(guide, *args, n=n, frozen=True)  # type: ignore[arg-type]
        log_w = run.replay(model, z, *args, frozen=True).log_joint
        log_w = log_w if n is None else log_w - z.log_prob
        return z, widened(z, log_w).softmax(-z.dim)


def _mean(z: Trace, weights: Tensor, values: Tensor) -> Tensor:
    return (weights * widened(z, values)).sum(-z.dim, keepdim=True)
