r"""Objectives as programs: a body that draws, weighs and returns a cost; here it becomes a value and an unbiased
gradient.

.. math:: \ell(\theta) = \mathbb{E}[\,\text{body}_\theta\,], \qquad
    \mathbb{E}[\text{value}] = \ell, \quad \mathbb{E}[\nabla\, \text{surrogate}] = \nabla \ell

Sign: objectives of this folder are bounds and are **maximised**; value and surrogate have the same sign. The loss for
an optimiser that descends is `-estimate`.

Two engines. `vectorised` runs the body once with all samples, rows and enumerated values along dims. `replay` runs it
once per sample and per path of enumerated values, for programs whose Python decides by what was drawn. `auto` is
vectorised until a program shows that it needs the other.

Shapes: cost [..., S, B]; value and surrogate (), means over samples and rows, sums over enumerated values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError, WayfieldError, unknown_name
from wayfield.core.estimate import Estimate
from wayfield.vi.engines import replayed, vectorised
from wayfield.vi.run import Run
from wayfield.vi.seeding import rewind, seeded, states
from wayfield.vi.smooth import NeedsReplayError, Provenance
from wayfield.vi.strategy import Strategy

__all__ = ["Objective", "unvalidated"]

Engine = Literal["auto", "vectorised", "replay"]
Body = Callable[..., Tensor]
"""body(run, *args) -> cost [..., S, B]; `run` simulates programs and gives their densities."""


@final
@dataclass(frozen=True, eq=False)
class Objective:
    """An expectation with an unbiased gradient; call it with the body's arguments and a seed.

    body: see `Body` / samples: independent draws, averaged / batch_dims: leading dims of the first argument that are
    independent rows; every site has them / strategies: by site name, over what programs say / engine: see the module /
    name: what messages and `explain` call it.

    The first call with arguments of new shapes checks what later ones take on trust: smooth use of reparameterised
    values, shapes and finite values of log-densities, torch's own checks of parameters. Raises RangeError,
    UnknownNameError for wrong options; in a call ShapeError, UnsupportedError, NonFiniteError that name the site.
    """

    body: Body
    samples: int = 1
    batch_dims: int = 0
    strategies: Mapping[str, Strategy] = field(default_factory=dict)
    engine: Engine = "auto"
    name: str = "objective"
    _seen: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for what, value, least in (("samples", self.samples, 1), ("batch_dims", self.batch_dims, 0)):
            if not isinstance(value, int) or value < least:
                want = f"a whole number of at least {least}"
                raise RangeError(what, got=value, expected=want, remedy=f"Give {what}={least} or more.")
        if self.engine not in ("auto", "vectorised", "replay"):
            raise unknown_name("engine", self.engine, ("auto", "vectorised", "replay"))

    def __call__(self, *args: Any, seed: int) -> Estimate:
        """Value and surrogate, (). The same seed gives the same numbers; nothing else is random."""
        shapes = tuple(a.shape if isinstance(a, Tensor) else None for a in args)
        if shapes not in self._seen:
            with seeded(seed):
                self.check(args)
            self._seen[shapes] = True
        with seeded(seed), unvalidated():
            surrogate = self.surrogate(*args)
        return Estimate(surrogate, surrogate)

    def surrogate(self, *args: Any) -> Tensor:
        """The surrogate alone, (), from torch's default generators as they stand, and without checks: what
        torch.compile and torch.func take.

        Its value is the objective's. `fit` seeds around it.
        """
        if self._seen.get("engine", self.engine) == "replay":
            return replayed(self, args)
        return vectorised(self, args)

    def with_strategies(self, strategies: Mapping[str, Strategy]) -> Objective:
        """The same objective with other strategies at these sites."""
        merged = {**self.strategies, **strategies}
        return Objective(self.body, self.samples, self.batch_dims, merged, self.engine, self.name)

    def explain(self, *args: Any, seed: int = 0) -> str:
        """What a call does, in words: the engine and why, each site's strategy, and how often the body is run."""
        with seeded(seed):
            self.check(args)
        return self._seen["told"]

    @property
    def decided(self) -> str | None:
        """The engine that calls use, "vectorised" or "replay"; None before the first call or `explain`."""
        return self._seen.get("engine")

    def batch(self, args: tuple[Any, ...]) -> tuple[int, ...]:
        """The rows of a call. Raises ShapeError where the first argument has too few dims."""
        if not self.batch_dims:
            return ()
        first = args[0] if args else None
        if not isinstance(first, Tensor) or first.ndim < self.batch_dims:
            got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            remedy = "Give the data first, rows leading; or batch_dims=0."
            want = f"at least {self.batch_dims} dims"
            raise ShapeError(f"first argument of {self.name}", got=got, expected=want, remedy=remedy)
        return tuple(first.shape[: self.batch_dims])

    def check(self, args: tuple[Any, ...]) -> None:
        """One run with every check, from torch's default generators as they stand; decides the engine."""
        engine, why = self.engine, "asked for"
        if engine == "auto" and self._seen.get("engine") == "replay":
            engine, why = "replay", self._seen["why"]
        if engine == "auto":
            engine, why = "vectorised", "no decision in Python depends on several drawn values"
            try:
                told = _checked(self, vectorised, args)
            except NeedsReplayError as error:
                if self.batch_dims:
                    raise
                engine, why = "replay", f"{error.what} decides in Python"
                told = _checked(self, replayed, args)
        else:
            told = _checked(self, vectorised if engine == "vectorised" else replayed, args)
        self._seen.update(engine=engine, why=why, told=f"{self.name}: {engine} engine ({why})\n{told}")


def _checked(objective: Objective, engine: Callable[..., Tensor], args: tuple[Any, ...]) -> str:
    """Run once under the watch; what its sites did, a line each."""
    runs: list[Run] = []
    start = states()
    try:
        with Provenance() as watch, _validating(True):  # torch.compile leaves these checks switched off
            value = engine(objective, args, watch, runs)
    except ValueError as error:
        if not isinstance(error, WayfieldError):  # torch's checks of parameters name no site, its density does
            with rewind(start), Provenance() as watch, unvalidated():
                engine(objective, args, watch, [])
        raise
    if not bool(torch.isfinite(value.detach())):
        remedy = "Every site's log density is finite; look at what the objective does with them."
        raise NonFiniteError(f"value of {objective.name}", got=float(value.detach()), expected="finite", remedy=remedy)
    terms = [t for run in runs for t in run.terms]
    names = {t.name for t in terms}
    # where Python decides by what was drawn, a site may be met in other runs only
    if not watch.decided and (missing := sorted(objective.strategies.keys() - names)):
        raise unknown_name("site in strategies", missing[0], names)
    lines = dict.fromkeys(f"  {t.name}: {t.strategy!r} of {type(t.dist).__name__}" for t in terms)
    return "\n".join([*lines, f"  the body runs {len(runs)} times a call"])


def unvalidated() -> AbstractContextManager[None]:
    """torch.distributions do not check their parameters inside: the first call has."""
    return _validating(False)


@contextmanager
def _validating(on: bool) -> Iterator[None]:
    before = Distribution._validate_args
    Distribution.set_default_validate_args(on)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)
