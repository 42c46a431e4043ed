r"""Energies: any differentiable number of the clean data that samples should make small.

A model knows p(x0) and an energy E says what is wanted: the target is p(x0) exp(-scale E(x0)). Its exact noisy score is
out of reach, so the energy is read at the predicted clean data, and Tweedie's formula turns the score into a push:

.. math:: \text{push} = -\,\text{scale}\; \frac{\sigma^2}{\alpha}\, \nabla_x E(\hat{x}_0(x))
   = -\,\text{scale}\; \frac{\sigma^2}{\alpha} J^T \nabla_{x_0} E, \qquad J = \frac{\partial \hat{x}_0}{\partial x}

===================  ===========================================================================  =====================
jacobian             J                                                                            cost
===================  ===========================================================================  =====================
"network"            of the network, by one backward pass; sigma^2/alpha J = Cov[x0 | x] for an   backward; the query
                     exact denoiser                                                               is evaluated apart
"gaussian"           of data N(m, std^2 I), whose x0 = m + alpha std^2 / (alpha^2 std^2 +         none
                     sigma^2) (x - alpha m); so sigma^2/alpha J = std^2 sigma^2 / (alpha^2 std^2
                     + sigma^2), the posterior variance
===================  ===========================================================================  =====================

x, x0: (b, *D) / E: (b, *D) -> (b,). On Gaussian data both rows are the same. At alpha = 0 the points say nothing of x0:
"network" then pushes nothing, "gaussian" by the full std^2.

References: Chung et al. 2023, arXiv 2209.14687, and Yu et al. 2023, arXiv 2303.09833 (through the network). The
Gaussian case is Tweedie's formula in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, RangeError, ShapeError, UnsupportedError, unknown_name
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query
from wayfield.guide.roles import State, Step
from wayfield.guide.terms import Direction, Factor, Pushed, check_factor

__all__ = ["Energy"]

_JACOBIANS = ("network", "gaussian")


@final
@dataclass(frozen=True)
class Energy(Direction):
    """A push towards small energies of the predicted clean data.

    energy: clean data (b, *D) -> energies (b,), each of its own sample alone / scale: of the energy; a tuple gives
    every sample its own / jacobian: "network" or "gaussian", see the module / std: of the data about their mean, for
    "gaussian" / of: whose prediction is judged, a `Query` or the name of a condition.
    Raises DTypeError, RangeError or UnknownNameError; at the first step ShapeError or UnsupportedError for energies
    that are not (b,) or have no gradient.
    """

    energy: Callable[[Tensor], Tensor]
    scale: Factor = 1.0
    jacobian: Literal["network", "gaussian"] = "network"
    std: float = 1.0
    of: Query | str = COND

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_factor("scale of an energy", self.scale))
        if not callable(self.energy):
            remedy = "Give a function of clean data (b, *D) that returns energies (b,)."
            raise DTypeError("energy", got=type(self.energy).__name__, expected="a function", remedy=remedy)
        if self.jacobian not in _JACOBIANS:
            raise unknown_name("jacobian", self.jacobian, _JACOBIANS)
        if not (self.std > 0 and math.isfinite(self.std)):
            remedy = "Give the standard deviation of the data, about 0.5 for pixels in [-1, 1]."
            raise RangeError("std of an energy", got=self.std, expected="> 0 and finite", remedy=remedy)
        if isinstance(self.of, str):
            object.__setattr__(self, "of", Query(self.of))

    def __repr__(self) -> str:
        """With functions by their names: a run is known again, after a restart too, by what it prints."""
        name = getattr(self.energy, "__qualname__", None) or repr(self.energy)
        return f"Energy({name}, scale={self.scale}, jacobian={self.jacobian!r}, std={self.std}, of={self.of})"

    @property
    def neutral(self) -> bool:
        """At scale 0."""
        return self.scale == 0

    @property
    def needs(self) -> tuple[Query, ...]:
        """The prediction that is judged, with its gradient if that goes through the network."""
        return (self._query,)

    @property
    def _query(self) -> Query:
        assert isinstance(self.of, Query)
        return self.of._replace(grad=self.jacobian == "network")

    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        """See `Direction.push`."""
        x0, level = ask(self._query)[0].x0, ask.level
        square = level.sigma**2
        if self.jacobian == "network":
            grad = ask.pull(self._energies(x0))
            # the gradient is 0 without signal, where 1/alpha would make it NaN
            factor = torch.where(level.alpha > 0, square / level.alpha, 0)
        else:
            again = x0.requires_grad  # a run that is differentiated as a whole
            leaf = x0 if again else x0.detach().requires_grad_()
            energies = self._energies(leaf)
            (grad,) = torch.autograd.grad(energies, leaf, torch.ones_like(energies), create_graph=again)
            factor = self.std**2 * square / (level.alpha**2 * self.std**2 + square)
        scale = ask.column(self.scale) if isinstance(self.scale, tuple) else self.scale
        return -scale * factor * grad, state

    def _energies(self, x0: Tensor) -> Tensor:
        with torch.enable_grad():
            e = self.energy(x0)
        if not isinstance(e, Tensor) or e.shape != (len(x0),):
            raise ShapeError(
                "energies",
                got=tuple(e.shape) if isinstance(e, Tensor) else type(e).__name__,
                expected=f"({len(x0)},), one for each sample",
                remedy="Sum or average over all axes but the first.",
            )
        if not e.requires_grad:
            raise UnsupportedError(
                "energy",
                got="energies without a gradient",
                expected="a differentiable function of the clean data",
                remedy="Compute it from its argument in torch, without detach, no_grad or rounding.",
            )
        return e
