r"""How the gradient passes a random site: one choice per site, made apart from the model and from the objective.

A site draws x ~ p_a, a its parameters; L(x) is the expected rest of the program. Each strategy is an unbiased estimator
of d/da E[L(x)], so that changing one never changes the expected gradient, only its variance and its cost.

.. math::
    \text{Reparam, Implicit:}\quad & \partial_x L \; \partial_a x \\
    \text{Reinforce:}\quad & (L(x) - b)\, \partial_a \log p_a(x) \\
    \text{Enum:}\quad & \textstyle\sum_x L(x)\, \partial_a p_a(x) \\
    \text{MVD:}\quad & c\,(L(x^+) - L(x^-)), \quad \partial_a p_a = c\,(p^+ - p^-)

What is drawn by Reparam or Implicit may be used smoothly only: the jump of a comparison has no derivative, and the
gradient would be biased. What is drawn by the others may decide anything.

References: Becker et al. 2024, Probabilistic programming with programmable variational inference, arXiv 2406.15742;
Figurnov et al. 2018 (implicit); Williams 1992, Mnih & Rezende 2016, VIMCO (score function); Mohamed et al. 2020 (MVD).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, TransformedDistribution, constraints

from wayfield.core.errors import DTypeError, RangeError, UnsupportedError

__all__ = [
    "MVD",
    "Baseline",
    "Enum",
    "Implicit",
    "Learned",
    "LeaveOneOut",
    "Reinforce",
    "Reparam",
    "Strategy",
    "default",
]


@final
@dataclass(frozen=True)
class Reparam:
    """x = g(a, noise), differentiated through g. Needs a distribution with `rsample`."""


@final
@dataclass(frozen=True)
class Implicit:
    """dx/da = -(dF/da) / p by the distribution function F, for Gamma, Beta, Dirichlet, Student's t...

    torch's `rsample` of these is implicit, so the estimator is Reparam's; the name says what is meant, and is refused
    for a distribution that has no such derivative.
    """


@final
@dataclass(frozen=True)
class LeaveOneOut:
    """Baseline of a draw: what the others say. For averaged samples their mean, for the particles of a log mean exp
    VIMCO's: the bound with this particle's weight replaced by the geometric mean of the others. Needs two or more.
    """


@final
@dataclass(frozen=True, eq=False)
class Learned:
    """Baseline predicted by a network, from what is known before the site draws.

    prediction: the network's output, one value per row, shaped like the site's log-probability, with its graph: it is
    regressed on the objective (mean squared error, weight 1) in the same backward pass.
    """

    prediction: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.prediction, Tensor):
            raise DTypeError(
                "Learned(prediction)",
                got=type(self.prediction).__name__,
                expected="a tensor",
                remedy="Call the network: Learned(net(x)).",
            )


Baseline = float | Tensor | LeaveOneOut | Learned


@final
@dataclass(frozen=True, eq=False)
class Reinforce:
    """Score function: the rest of the program times d log p_a(x) / da, less a baseline that does not see x.

    baseline: a number, a tensor without graph, LeaveOneOut() or Learned(net(x)). Raises DTypeError for a tensor that
    asks for a gradient.
    """

    baseline: Baseline | None = None

    def __post_init__(self) -> None:
        b = self.baseline
        if isinstance(b, Tensor) and b.requires_grad:
            remedy = "Detach it, or let it learn: Learned(net(x))."
            raise DTypeError("baseline of Reinforce", got="a tensor with a graph", expected="none", remedy=remedy)
        if b is not None and not isinstance(b, (int, float, Tensor, LeaveOneOut, Learned)):
            remedy = "Give a number, a tensor, LeaveOneOut() or Learned(net(x))."
            raise DTypeError("baseline of Reinforce", got=type(b).__name__, expected="a baseline", remedy=remedy)


@final
@dataclass(frozen=True)
class Enum:
    """Every value of a finite support, weighted by its probability: no variance, at the cost of all values.

    limit: the most joint values this site may add; more is refused rather than run out of memory.
    """

    limit: int = 4096

    def __post_init__(self) -> None:
        _positive("limit of Enum", self.limit)


@final
@dataclass(frozen=True)
class MVD:
    """Measure-valued derivative: the rest of the program run again, with the site drawn from p+ and from p-.

    For Bernoulli, Categorical, Normal, Poisson, Exponential and Gamma's rate, and Independent ones of these. Rows of a
    batch share a run; particles and components of an event need runs of their own, `limit` of them at most.

    coupled: both alternatives from the same noise, which lowers the variance (Normal's mean, Gamma's rate).
    """

    coupled: bool = True
    limit: int = 256

    def __post_init__(self) -> None:
        _positive("limit of MVD", self.limit)


Strategy = Reparam | Implicit | Reinforce | Enum | MVD
SMOOTH = (Reparam, Implicit)
_IMPLICIT = ("Gamma", "Beta", "Dirichlet", "StudentT", "Chi2", "InverseGamma", "FisherSnedecor", "Wishart")


def default(dist: Distribution) -> Strategy:
    """Reparam where the distribution can, else Reinforce: always unbiased."""
    return Reparam() if dist.has_rsample else Reinforce()


def check(name: str, dist: Distribution, strategy: Strategy) -> None:
    """Refuse a strategy that cannot serve the site, by name (UnsupportedError, DTypeError)."""
    if not isinstance(strategy, Strategy):
        remedy = "Choose Reparam(), Implicit(), Reinforce(), Enum() or MVD()."
        raise DTypeError(f"strategy of site {name!r}", got=repr(strategy), expected="a strategy", remedy=remedy)
    kind = type(base_of(dist)).__name__
    if isinstance(strategy, SMOOTH) and not dist.has_rsample:
        remedy = "Choose Reinforce(), Enum() or MVD(); a plain sample would lose its gradient."
        raise UnsupportedError(f"site {name!r}", got=f"{strategy} of {kind}", expected="an rsample", remedy=remedy)
    if isinstance(strategy, Implicit) and kind not in _IMPLICIT:
        remedy = "Choose Reparam()."
        raise UnsupportedError(f"site {name!r}", got=f"Implicit() of {kind}", expected=_IMPLICIT, remedy=remedy)
    if isinstance(strategy, (Reinforce, MVD)) and _moving(dist):
        remedy = "Choose Reparam(), or keep the bounds fixed."
        raise UnsupportedError(
            f"site {name!r}",
            got=f"{type(strategy).__name__} of {kind} whose support has a gradient",
            expected="a support that does not depend on parameters",
            remedy=remedy,
        )


def base_of(dist: Distribution) -> Distribution:
    """The distribution inside of Independent wrappers."""
    while isinstance(dist, Independent):
        dist = dist.base_dist
    return dist


def _moving(dist: Distribution) -> bool:
    """Does the support depend on something differentiated?"""
    dist = base_of(dist)
    if isinstance(dist, TransformedDistribution):
        moved = any(_graph(vars(t)) for t in dist.transforms)
        return (moved and dist.base_dist.support is not constraints.real) or _moving(dist.base_dist)
    try:
        support = dist.support
    except NotImplementedError:  # a distribution of the user's own need not tell
        return False
    return support is not None and _graph(vars(support))


def _graph(values: dict[str, object]) -> bool:
    return any(isinstance(v, Tensor) and v.requires_grad for v in values.values())


def _positive(what: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise RangeError(what, got=value, expected="a whole number of at least 1", remedy="Give 1 or more.")


def support_of(name: str, dist: Distribution, limit: int) -> Tensor:
    """Every value of a finite support, (K, *event); of an Independent one the K^components joint values.

    Raises UnsupportedError for a support that is not finite, or larger than `limit`.
    """
    base, fixed = base_of(dist), "Choose Reinforce() or MVD()."
    if not base.has_enumerate_support:
        kind = type(base).__name__
        raise UnsupportedError(f"site {name!r}", got=f"Enum() of {kind}", expected="a finite support", remedy=fixed)
    values = base.enumerate_support(expand=False)
    values = values.reshape(values.shape[0], *base.event_shape)
    own = () if base is dist else dist.event_shape[: len(dist.event_shape) - len(base.event_shape)]
    count = values.shape[0] ** math.prod(own)
    if count > limit:
        remedy = f"{fixed} Or raise Enum(limit=...)."
        raise UnsupportedError(f"site {name!r}", got=f"{count} values", expected=f"at most {limit}", remedy=remedy)
    if not own:
        return values
    index = torch.arange(count, device=values.device)
    K = values.shape[0]
    places = torch.stack([index // K**k % K for k in reversed(range(math.prod(own)))], 1)
    return values[places].reshape(count, *dist.event_shape)
