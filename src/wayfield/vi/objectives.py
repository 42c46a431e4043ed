r"""Bounds on a log evidence as short programs; all are maximised.

With weights w = P(z, y) / Q(z), z from the guide Q,

.. math::
    \text{elbo:}\quad & \log w \\
    \text{iwelbo:}\quad & \log \tfrac1n \textstyle\sum_i w_i \\
    \text{renyi:}\quad & \tfrac{1}{1 - \alpha} \log \tfrac1n \textstyle\sum_i w_i^{1 - \alpha} \\
    \text{hvi:}\quad & \log P(x, y) - \log \hat w, \qquad \hat w = q(u, x) / r(u \mid x) \\
    \text{iwhvi:}\quad & \log P(x, y) - \log \tfrac1m \textstyle\sum_j \hat w_j \\
    \text{diwhvi:}\quad & \log \tfrac1n \textstyle\sum_i P(x_i, y) / \tfrac1m \sum_j \hat w_{ij}

In expectation hvi <= iwhvi(m) <= diwhvi(n, m) <= log P(y), and each grows with m and n.

Model and guide take the objective's arguments after their handle. Any guide or part of a model may be a stochastic
density: hvi and iwhvi are elbo of a marginal, diwhvi is iwelbo of one. Writing one's own takes the same few lines: a
body, and `Objective(body)`.

Refused, since their gradient would be biased: sticking the landing where a site is not smooth or a density is only
estimated; exact KL where sites differ in name or order.

References: Burda et al. 2016 (iwelbo); Li & Turner 2016 (renyi); Roeder et al. 2017 (sticking the landing); Becker et
al. 2024, arXiv 2406.15742; Ranganath et al. 2016, Sobolev & Vetrov 2019 (hvi, iwhvi).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from wayfield.core.errors import DTypeError, RangeError, UnsupportedError, unknown_name
from wayfield.vi.objective import Objective
from wayfield.vi.program import Trace
from wayfield.vi.run import Run
from wayfield.vi.stochastic import Marginal
from wayfield.vi.strategy import SMOOTH

__all__ = ["diwhvi", "elbo", "hvi", "iwelbo", "iwhvi", "renyi"]


def elbo(
    model: Any,
    guide: Any,
    samples: int = 1,
    batch_dims: int = 0,
    form: Literal["plain", "landing", "kl"] = "plain",
) -> Objective:
    """E log P(z, y) - log Q(z) <= log P(y).

    form: "plain" / "landing" sticks the landing: without the guide's own score term, whose mean is zero; its variance
    vanishes where the guide is exact. Every site must be smooth / "kl": a site's log Q - log P is replaced by its
    exact KL given the sites before it; model and guide must have the same sites in the same order. Raises
    UnsupportedError.
    """
    if form not in ("plain", "landing", "kl"):
        raise unknown_name("form", form, ("plain", "landing", "kl"))

    def body(run: Run, *args: Any) -> Tensor:
        q = run.simulate(guide, *args)
        p = run.replay(model, q, *args)
        if form == "kl":
            return p.log_likelihood - _exact_kl(q, p)
        if form == "landing":
            return p.log_joint - q.log_prob + _score(run, guide, q, args)
        return p.log_joint - q.log_prob

    return Objective(body, samples, batch_dims, name=f"elbo (form {form!r})" if form != "plain" else "elbo")


def iwelbo(model: Any, guide: Any, n: int, samples: int = 1, batch_dims: int = 0) -> Objective:
    """E log mean of n importance weights: tighter as n grows. n = 1 is the ELBO."""
    return renyi(model, guide, n, 0.0, samples, batch_dims)


def renyi(model: Any, guide: Any, n: int, alpha: float, samples: int = 1, batch_dims: int = 0) -> Objective:
    """Renyi's bound of order alpha with n particles: 0 is the IWELBO, 1 the ELBO; below 1 a lower bound for every n."""
    if not isinstance(n, int) or n < 1:
        raise RangeError("particles n", got=n, expected="a whole number of at least 1", remedy="Give n=1 or more.")
    if not 0 <= alpha <= 1:
        remedy = "Other orders are no lower bounds with finitely many particles."
        raise RangeError("order alpha", got=alpha, expected="0 to 1", remedy=remedy)

    def body(run: Run, *args: Any) -> Tensor:
        q = run.simulate(guide, *args, n=n)
        return q.logmeanexp(run.log_density(model, q, *args) - q.log_prob, alpha)

    return Objective(body, samples, batch_dims, name=f"iwelbo({n})" if alpha == 0 else f"renyi({n}, {alpha:g})")


def hvi(model: Any, guide: Marginal, samples: int = 1, batch_dims: int = 0) -> Objective:
    """The ELBO of a marginal guide with one helper: a lower bound of the exact marginal's ELBO.

    guide: from `marginal`; its m is set here. Raises DTypeError for anything else.
    """
    return replace(elbo(model, _helped(guide, 1), samples, batch_dims), name="hvi")


def iwhvi(model: Any, guide: Marginal, m: int, samples: int = 1, batch_dims: int = 0) -> Objective:
    """hvi with m helpers averaged inside of the logarithm: tighter as m grows, towards the exact marginal's ELBO."""
    return replace(elbo(model, _helped(guide, m), samples, batch_dims), name=f"iwhvi({m})")


def diwhvi(model: Any, guide: Marginal, n: int, m: int, samples: int = 1, batch_dims: int = 0) -> Objective:
    """The IWELBO of a marginal guide, n particles with m helpers each: tighter as either grows, towards log P(y)."""
    return replace(iwelbo(model, _helped(guide, m), n, samples, batch_dims), name=f"diwhvi({n}, {m})")


def _helped(guide: Marginal, m: int) -> Marginal:
    if not isinstance(guide, Marginal):
        remedy = "Say what stays: marginal(guide, keep=['z'])."
        raise DTypeError("guide", got=type(guide).__name__, expected="a marginal", remedy=remedy)
    return replace(guide, m=m)


def _score(run: Run, guide: Any, q: Trace, args: tuple[Any, ...]) -> Tensor:
    """log Q at the values held fixed, less itself: value zero, and its gradient is the score term."""
    if rough := sorted(k for k, s in q.sites.items() if not isinstance(s.strategy, SMOOTH)):
        remedy = "Use form='plain', or Reparam() for every site."
        strategy = q.sites[rough[0]].strategy
        got = f"{strategy!r} at site {rough[0]!r}" if strategy else f"an estimated density at site {rough[0]!r}"
        raise UnsupportedError("elbo(form='landing')", got=got, expected="Reparam() everywhere", remedy=remedy)
    fixed = run.log_density(guide, {k: v.detach() for k, v in q.values.items()}, *args)
    return fixed - fixed.detach()


def _exact_kl(q: Trace, p: Trace) -> Tensor:
    shared = [k for k, s in p.sites.items() if not s.given]
    if shared != list(q.sites):
        remedy = "Draw the same sites in the same order, or use form='plain'."
        raise UnsupportedError("elbo(form='kl')", got=f"guide {list(q.sites)}", expected=shared, remedy=remedy)
    total = torch.zeros(())
    for name in shared:
        a, b = q.sites[name].dist, p.sites[name].dist
        try:
            kl = kl_divergence(a, b)  # type: ignore[arg-type]
        except NotImplementedError:
            kinds = [type(d).__name__ if d is not None else "an estimated density" for d in (a, b)]
            got = f"{kinds[0]} and {kinds[1]} at site {name!r}"
            remedy = "Use form='plain'."
            raise UnsupportedError("elbo(form='kl')", got=got, expected="a known KL", remedy=remedy) from None
        total = total + kl
    return total
