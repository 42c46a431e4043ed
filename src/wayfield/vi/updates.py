"""The steps of a fit: one update each, and the way back when a number breaks.

A step that is read at once is checked before the optimiser moves. Where several steps are made between two readings,
the state at the last reading is kept; when one of them has broken, they are made again from there, each checked, until
the one that breaks is met with the parameters as they were before it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import LBFGS

from wayfield.core.errors import NonFiniteError, UnsupportedError, WayfieldError
from wayfield.vi.checkpoint import FitState
from wayfield.vi.feed import step_seed
from wayfield.vi.objective import Objective, unvalidated
from wayfield.vi.seeding import seeded

__all__ = ["Surrogate", "Updates"]

Surrogate = Callable[..., Tensor]
Kept = tuple[dict[str, Tensor], dict[str, Any]]
_INSIDE = 2  # the stage of seeds for what an optimiser draws itself


@final
class Updates:
    """Makes steps and reads them.

    surrogate: the objective's, perhaps compiled / every: steps between readings / clip: largest norm of the gradient /
    schedule: factor of the learning rates `peaks` / allow_unused: parameters may be without gradient at the first step.
    """

    def __init__(
        self,
        objective: Objective,
        surrogate: Surrogate,
        state: FitState,
        seed: int,
        every: int,
        clip: float | None,
        schedule: Callable[[int], float] | None,
        peaks: Sequence[Any],
        allow_unused: bool,
    ) -> None:
        self.objective, self.surrogate, self.state = objective, surrogate, state
        self.seed, self.every, self.clip, self.schedule, self.peaks = seed, every, clip, schedule, peaks
        self._fresh, self._allow_unused = True, allow_unused
        self._repeats = isinstance(state.optimizer, LBFGS)  # it moves before it has evaluated all
        self._made: list[Tensor] = []  # bound and norm of the gradient since the last reading, (2,) each
        self._fed: list[tuple[int, tuple[Any, ...]]] = []
        self._kept = self._keep() if every > 1 else None

    def make(self, step: int, args: tuple[Any, ...]) -> None:
        """One step, in place. Raises NonFiniteError if it is read at once and breaks, UnsupportedError for a parameter
        without gradient.
        """
        self._fed.append((step, args))
        if self._kept is None:
            self._made.append(self._careful(step, args))
            return
        try:
            self._made.append(self._update(step, args, check=False))
        except (RuntimeError, ArithmeticError, ValueError):
            self._trace()
            raise

    def read(self) -> None:
        """Put the bounds of the steps since the last reading into the state. Raises NonFiniteError, see the module."""
        pairs = torch.stack(self._made).cpu()
        if self._kept is not None:
            if not bool(pairs.isfinite().all()):
                self._trace()
                broken = int((~pairs.isfinite().all(1)).nonzero()[0])
                raise self._broken(*self._fed[broken], pairs[broken])
            self._kept = self._keep()
        self.state.values.extend(pairs[:, 0].double().tolist())
        self._made, self._fed = [], []

    def _update(self, step: int, args: tuple[Any, ...], *, check: bool) -> Tensor:
        """One step in place; its pair, on the host and finite if `check`."""
        optimizer, found = self.state.optimizer, []
        if self.schedule is not None:
            groups = (g for g in optimizer.param_groups if "lr" in g)
            for group, peak in zip(groups, self.peaks, strict=True):
                group["lr"] = peak * self.schedule(step)

        def closure() -> Tensor:
            pair, bound = self._gradient(step, args)
            found.append(pair.cpu() if check else pair)
            if check and not bool(found[-1].isfinite().all()):
                raise self._broken(step, args, found[-1])
            return -bound

        with seeded(step_seed(self.seed, step, _INSIDE)):
            optimizer.step(closure)  # type: ignore[arg-type]
        return found[0]

    def _gradient(self, step: int, args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Gradients into `.grad`, clipped; the pair and the bound."""
        tensors = list(self.state.named.tensors.values())
        for p in tensors:
            p.grad = None
        with torch.enable_grad(), seeded(step_seed(self.seed, step)), unvalidated():
            bound = self.surrogate(*args)
            if bound.requires_grad:
                (-bound).backward(inputs=tensors)
        if self._fresh:
            self._used()
        bound = bound.detach()
        norm = get_total_norm([p.grad for p in tensors if p.grad is not None])
        if self.clip is not None:
            clip_grads_with_norm_(tensors, self.clip, norm)
        return torch.stack([bound, norm.to(bound)]), bound

    def _used(self) -> None:
        """Refuse a parameter that the gradient does not reach: it would silently stay as it is."""
        tensors = self.state.named.tensors
        missing = [f"{k} {tuple(p.shape)}" for k, p in tensors.items() if p.grad is None]
        if missing and (len(missing) == len(tensors) or not self._allow_unused):
            remedy = "Use it in the programs, without detach(); leave it out; or say allow_unused=True."
            got = f"no gradient for {', '.join(missing)}"
            raise UnsupportedError(f"parameters of {self.objective.name}", got=got, expected="one each", remedy=remedy)
        self._fresh = False

    def _careful(self, step: int, args: tuple[Any, ...]) -> Tensor:
        """A step that is checked; when it breaks, all is as before it."""
        buffers = {k: b.detach().clone() for k, b in self.state.named.buffers.items()}
        kept = self._keep() if self._repeats else None
        try:
            return self._update(step, args, check=True)
        except (RuntimeError, ArithmeticError, ValueError) as error:
            rotten = _broken_names(self.state.named.tensors)
            if kept is not None:
                self._back(kept)
            for k, b in buffers.items():
                self.state.named.buffers[k].copy_(b)
            if not rotten or isinstance(error, NonFiniteError):
                raise
            got = f"parameters {rotten} not finite, and then: {error}"
            remedy = "The optimiser's last step made it so: lower the learning rate."
            raise NonFiniteError(f"parameters at step {step}", got=got, expected="finite", remedy=remedy) from error

    def _trace(self) -> None:
        """Go back to the last reading and make the steps since with care; raises where one breaks."""
        assert self._kept is not None
        self._back(self._kept)
        for step, args in self._fed:
            self._careful(step, args)

    def _broken(self, step: int, args: tuple[Any, ...], pair: Tensor) -> NonFiniteError:
        """The error for a step whose numbers are not finite, with the site if the checks find one."""
        value, norm = pair.tolist()
        tensors, seed = self.state.named.tensors, step_seed(self.seed, step)
        spoilt = _broken_names({k: p.grad for k, p in tensors.items() if p.grad is not None})
        rotten, cause = _broken_names(tensors), None
        try:
            with seeded(seed):
                self.objective.check(args)
        except (RuntimeError, ArithmeticError, ValueError) as error:
            cause = error
        for p in tensors.values():
            p.grad = None
        what = f"{'gradient' if math.isfinite(value) else 'bound'} at step {step}"
        what += f", {cause.what}" if isinstance(cause, WayfieldError) else ""
        got = f"bound {value:g}, norm of the gradient {norm:g}"
        got += f", parameters {rotten} not finite" if rotten else f", not finite for {spoilt}" if spoilt else ""
        got += f"; {cause}" if cause is not None and not isinstance(cause, WayfieldError) else ""
        remedy = (
            f"The parameters are as before that step, and objective(*args, seed={seed}) repeats it. "
            "Lower the learning rate, clip the gradient, or keep scales from zero."
        )
        error = NonFiniteError(what, got=got, expected="finite numbers", remedy=remedy)
        error.__cause__ = cause
        return error

    def _keep(self) -> Kept:
        return self.state.named.copy(), copy.deepcopy(self.state.optimizer.state_dict())

    def _back(self, kept: Kept) -> None:
        self.state.named.fill(kept[0])
        self.state.optimizer.load_state_dict(copy.deepcopy(kept[1]))


def _broken_names(tensors: dict[str, Tensor] | Any) -> list[str]:
    return [k for k, v in tensors.items() if not bool(v.detach().isfinite().all())]
