r"""One 2x2 solve for every kind of network output.

A network answers with y, an affine mixture of clean data and noise at the point x:

.. math:: y = A\, x_0 + B\, \varepsilon, \qquad x = \alpha x_0 + \sigma \varepsilon
   \;\Longrightarrow\;  x_0 = (B x - \sigma y)/d, \quad \varepsilon = (\alpha y - A x)/d, \quad d = \alpha B - \sigma A

=========  ==============================  =====================================================================
kind       row (A, B)                      reference
=========  ==============================  =====================================================================
x0         (1, 0)                          the clean data
eps        (0, 1)                          Ho et al. 2020
v          (-sigma, alpha)                 Salimans & Ho 2022; not the velocity
velocity   (alpha', sigma')                flow matching, dx/dt on our clock (t = 1 is noise)
score      (0, -1/sigma)                   Song et al. 2021
edm        ((1 - c_skip alpha)/c_out,      Karras et al. 2022, eq. 7: D = c_skip x + c_out y with sigma_data, for
           -c_skip sigma/c_out)            x/alpha; preconditioning is one more row, not another mechanism
=========  ==============================  =====================================================================

d = 0 says exactly when an answer carries no information: "eps" at alpha = 0, "x0" at sigma = 0.
Shapes: y, x, x0, eps (B, *D); scales () or (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, SingularError, unknown_name
from wayfield.core.path import Path, Scales
from wayfield.core.shapes import expand

__all__ = ["KINDS", "Kind", "Prediction", "check_regular", "convert", "score", "solve", "velocity", "with_graph"]

KINDS = ("x0", "eps", "v", "velocity", "score", "edm")


@final
class Prediction:
    """A pair (x0, eps), each (B, *D). `eps` may be given as a function, evaluated on first use: many answers never need
    it.

    tied: whether x = alpha x0 + sigma eps at the point x of the prediction, so that a solver may do without eps. A
    guided pair may break it on purpose (CFG++ does); solvers then use both members as they are.
    """

    __slots__ = ("_eps", "tied", "x0")

    def __init__(self, x0: Tensor, eps: Tensor | Callable[[], Tensor], tied: bool = False) -> None:
        self.x0 = x0
        self._eps = eps
        self.tied = tied

    @property
    def eps(self) -> Tensor:
        """The noise member of the pair, (B, *D)."""
        if callable(self._eps):
            self._eps = self._eps()
        return self._eps

    def map(self, f: Callable[[Tensor], Tensor]) -> Prediction:
        """The pair with `f` applied to both members, to eps when it is first used; f keeps a tied pair tied."""
        return Prediction(f(self.x0), lambda: f(self.eps), self.tied)

    def take(self, index: Tensor) -> Prediction:
        """Some rows of the pair, by index (b,)."""
        return self.map(lambda y: y.index_select(0, index))

    def join(self, other: Prediction) -> Prediction:
        """The rows of this pair, then those of the other."""
        return Prediction(
            torch.cat([self.x0, other.x0]), lambda: torch.cat([self.eps, other.eps]), self.tied and other.tied
        )

    def __repr__(self) -> str:
        return f"Prediction(x0={tuple(self.x0.shape)}, {self.x0.dtype})"


@final
@dataclass(frozen=True)
class Kind:
    """What a network's output means: a name from `KINDS`, and the data's standard deviation for "edm"."""

    name: str
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise unknown_name("output kind", self.name, KINDS)
        if not self.sigma_data > 0:
            raise RangeError(
                "sigma_data", got=self.sigma_data, expected="> 0", remedy="Give the data's standard deviation."
            )

    def row(self, scales: Scales) -> tuple[Tensor, Tensor]:
        """(A, B) with y = A x0 + B eps, each with the shape of the scales."""
        a, s, da, ds = scales
        zero, one = torch.zeros_like(a), torch.ones_like(a)
        match self.name:
            case "x0":
                return one, zero
            case "eps":
                return zero, one
            case "v":
                return -s, a
            case "velocity":
                return da, ds
            case "score":
                return zero, -1 / s
            case _:
                # with noise level s/a and point x/a: c_skip = sd^2 a / q, c_out = s sd / sqrt(q), q = s^2 + a^2 sd^2,
                # written so that nothing divides by a or s
                sd, q = self.sigma_data, (s**2 + (a * self.sigma_data) ** 2).sqrt()
                return s / (sd * q), -sd * a / q

    def solve_row(self, scales: Scales) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four numbers of the solve: x0 = c0 x + c1 y, eps = c2 x + c3 y. Infinite where the kind is singular."""
        a, s, _, _ = scales
        if self.name == "score":  # -1/sigma times sigma, cancelled by hand so that sigma = 0 stays finite
            return 1 / a, s**2 / a, torch.zeros_like(a), -s
        A, B = self.row(scales)
        d = a * B - s * A
        return B / d, -s / d, -A / d, a / d


def solve(kind: Kind | str, y: Tensor, x: Tensor, scales: Scales) -> Prediction:
    """The pair (x0, eps) behind an answer y at the point x, both (B, *D). Singular levels give inf; see
    `check_regular`.
    """
    c0, c1, c2, c3 = (expand(c.to(x.dtype), x) for c in _kind(kind).solve_row(scales))
    return Prediction(c0 * x + c1 * y, lambda: c2 * x + c3 * y)


def convert(kind: Kind | str, prediction: Prediction, scales: Scales) -> Tensor:
    """The answer y = A x0 + B eps of the given kind, (B, *D)."""
    A, B = (expand(c.to(prediction.x0.dtype), prediction.x0) for c in _kind(kind).row(scales))
    return A * prediction.x0 + B * prediction.eps


def check_regular(kind: Kind, path: Path, t: Tensor) -> None:
    """Raise SingularError if answers of `kind` carry no information about x0 at one of the times `t` (host float64)."""
    a, s, da, ds = path.scales(t)
    singular = {"eps": a, "score": a, "x0": s, "velocity": a * ds - da * s}.get(kind.name)
    if singular is not None and bool((singular == 0).any()):
        at = t[singular == 0].reshape(-1)[0].item()
        end, others = ("alpha", "x0, v or edm") if kind.name in ("eps", "score") else ("sigma", "eps, v or edm")
        raise SingularError(
            f"{kind.name!r} prediction",
            got=f"t = {at:g}, where {end} = 0 on {path!r}",
            expected=f"{end} > 0",
            remedy=f"Start at another level, or use a model that predicts {others}.",
        )


def score(prediction: Prediction, scales: Scales) -> Tensor:
    """grad log p_t(x) = -eps / sigma (Tweedie), (B, *D)."""
    return convert("score", prediction, scales)


def velocity(prediction: Prediction, scales: Scales) -> Tensor:
    """dx/dt of the probability-flow ODE, alpha' x0 + sigma' eps, (B, *D)."""
    return convert("velocity", prediction, scales)


def with_graph(make: Callable[[], Prediction]) -> Prediction:
    """A prediction whose both members are made now, under autograd: made later, they would have no graph."""
    with torch.enable_grad():
        made = make()
        return Prediction(made.x0, made.eps, made.tied)


def _kind(kind: Kind | str) -> Kind:
    return Kind(kind) if isinstance(kind, str) else kind
