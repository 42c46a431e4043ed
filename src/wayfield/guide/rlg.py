r"""RLG: one number, chosen when sampling, for how much of a fine-tuning is applied.

A model that was fine-tuned by reinforcement learning has the strength of alignment that its training chose. Mixing its
predictions with those of the model it started from turns that strength into a dial.

.. math:: \hat{x}_0 = (x_{ref} + P_{ref}) + w\, [(x_{tuned} + P_{tuned}) - (x_{ref} + P_{ref})]

w = 0 is the reference, w = 1 the fine-tuned model, 0 < w < 1 in between, w > 1 more than was trained, w < 0 away from
the reward. P: guidance inside each model, e.g. classifier-free; for linear guidance the order does not matter. Since
the weights sum to one, x0, eps, v, velocity and score give the same rule; clip afterwards only (`Guidance(clip=...)`).

    model      main = the reference, nets={"tuned": the fine-tuned one}: so experts add up, and w is what it says

    rlg(1.6)                                       the dial; two rows a sample, one at w = 0 and at w = 1
    rlg(1.6, guided=CFG(4.5))                      with CFG inside each of them: four rows
    rlg(2.0, warmup=2)                             the first two steps by the fine-tuned model alone
    RLG(1.0).when(Schedule(((-4, 0), (2, 1.6))))   w by noise level: a term, multiplied by its gate
    RLG(1.2, "sharp") + RLG(0.7, "warm")           two experts, s_ref + sum of w_i (s_i - s_ref)

*What w means.* KL-regularised fine-tuning, max E[R] - beta KL(p || p_ref), has the optimum p_beta(x) = p_ref(x)
exp(R(x)/beta)/Z. If the tuned model is exactly that, then at t = 0 the mixed score is that of p_{beta/w}: w acts as
training with beta/w would (`effective_kl`). At t > 0 it is not: noising a product of densities is not the product of
noised ones. It stays exact for a reward linear in x on Gaussian data. For one-dimensional N(0, S0) and N(0, S1) the
truth would be variance 1/((1-w)/S0 + w/S1); the ODE ends with S0^(1-w) S1^w, the reverse SDE with the integral over
u > 0 of (S0/(S0+u))^(2-2w) (S1/(S1+u))^(2w): beyond w = 1 both shrink too much. Where the fine-tuning has no such
optimum (GRPO with normalised advantages, DPO), beta/w is a name, not a fact: sweep w, and stop before a measure that
was not trained falls.

One set of weights with an adapter that is switched on and off is two denoisers around one network: give the tuned one
`call=`, a function that switches the adapter on around the call. Networks must be in evaluation mode.

Reference: Jin et al. 2025, arXiv 2508.21016; their w is this w, their velocities the ones of `core.predict`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from wayfield.core.errors import RangeError, UnsupportedError
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query, renamed
from wayfield.field.denoiser import Denoiser
from wayfield.field.rows import Rows
from wayfield.guide.guidance import Guidance
from wayfield.guide.planner import Planner
from wayfield.guide.roles import Decision, Gate, State, Step
from wayfield.guide.terms import Factor, Nets, Pushed, Term, TermPlan, check_factor, check_part

__all__ = ["RLG", "effective_kl", "rlg"]

_FAR = 5.0
_NOISY = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


@final
@dataclass(frozen=True)
class RLG(Term):
    """The reference with guidance, towards or beyond a fine-tuned network with the same guidance.

    w: finite, 0 the reference and 1 the tuned network; a tuple gives every sample its own / net: name of the tuned
    network among the `nets` given to `sample`; the main one is the reference / guided: guidance inside each of them,
    part of the push / warmup: steps >= 0 at the start that take w = 1 / strict: refuse networks whose path, kind or
    conditions differ; levels are matched by log-SNR, so False is sound for two models of the same data.
    Usually pushes from the reference, but may from the tuned network, which is cheaper at w = 1: see `rlg`.
    Warns beyond |w| = 5. Raises RangeError or DTypeError; UnsupportedError in the first step for networks that do not
    belong together or have active dropout.
    """

    w: Factor
    net: str = "tuned"
    guided: Term | None = None
    warmup: int = 0
    strict: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "w", check_factor("w of RLG", self.w))
        if self.net == "main":
            remedy = "Sample the reference, and pass nets={'tuned': ...}."
            raise UnsupportedError("network of RLG", got="main", expected="another than the reference", remedy=remedy)
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 0:
            remedy = "Give the number of steps that take w = 1."
            raise RangeError("warmup of RLG", got=self.warmup, expected="an integer >= 0", remedy=remedy)
        if self.guided is not None:
            # twice: each network's guidance remembers its own
            object.__setattr__(self, "inside", (check_part("term", self.guided, Term),) * 2)
        if self.warmup:
            object.__setattr__(self, "own", _From(self.warmup))  # tells a run that its steps differ
        if max(abs(v) for v in (self.w if isinstance(self.w, tuple) else (self.w,))) > _FAR:
            said = f"w = {self.w} of RLG multiplies the difference of two networks, errors included, by more than 5"
            warnings.warn(said, UserWarning, stacklevel=3)

    @property
    def start(self) -> Query:
        """The prediction that it is best pushed from if it stands alone: the tuned network's where w is 1 at times."""
        return Query("cond", self.net) if self.warmup or self.w == 1 else COND

    @property
    def neutral(self) -> bool:
        """Never by itself: what w = 0 and w = 1 leave out depends on what is pushed."""
        return False

    def plan(self, p: Planner, step: Step, state: State, rows: Rows | None, nets: Nets) -> TermPlan | None:
        """See `Term.plan`."""
        a = self._share(p.origin, warming=step.i < self.warmup)
        here, there = (renamed(nets, names) for names in self._names(p.origin))
        mine = None if a == 1 else self._planned(p, 0, step, state, rows, here)
        if a == 0:
            return None if mine is None else TermPlan(inside=(mine, None, a))
        p.want((p.origin,), rows, there)
        return TermPlan(inside=(mine, self._planned(p, 1, step, state, rows, there), a))

    def __call__(self, ask: Ask, step: Step, state: State, plan: TermPlan) -> Pushed:
        """See `Term`."""
        first, second, a = plan.inside
        here, there = (ask.view(nets=names) for names in self._names(ask.origin))
        states = list(state)
        mine = self._pushed(0, here, step, states, first)
        if a == 0:
            return mine, tuple(states)
        self.check(ask.binding.nets)
        theirs = self._pushed(1, there, step, states, second)
        gap = there.base - ask.base
        gap = gap if theirs is None else gap + theirs
        gap = gap if mine is None else gap - mine
        push = gap if a == 1 else gap * (ask.column(a) if isinstance(a, tuple) else a)
        return push if mine is None else push + mine, tuple(states)

    def onto(self, x0: Tensor, ask: Ask, step: Step, state: State, plan: TermPlan) -> tuple[Tensor, State]:
        """See `Term.onto`: one network alone is that network's guidance, to the bit."""
        first, _, a = plan.inside
        if a != 0 or self.guided is None:
            return super().onto(x0, ask, step, state, plan)
        here, _ = self._names(ask.origin)
        x0, inner = self.guided.onto(x0, ask.view(nets=here), step, state[1], first)
        return x0, (state[0], inner, state[2])

    def queries(self, origin: Query, nets: Nets) -> Iterator[Query]:
        """Those of both networks, as far as w asks them."""
        shares = [self._share(origin, warming=on) for on in ({True, False} if self.warmup else {False})]
        here, there = (renamed(nets, names) for names in self._names(origin))
        if self.guided is not None and any(a != 1 for a in shares):
            yield from self.guided.queries(origin, here)
        if any(a != 0 for a in shares):
            yield origin._replace(net=there.get(origin.net, origin.net))
            yield from () if self.guided is None else self.guided.queries(origin, there)

    def check(self, nets: Mapping[str, Denoiser]) -> None:
        """Refuse networks that do not belong together or are not ready. Raises UnsupportedError."""
        tuned, ref = nets[self.net], nets["main"]
        for name, each in (("tuned", tuned), ("reference", ref)):
            if any(m.training and isinstance(m, _NOISY) for m in each.net.modules()):
                got, remedy = "active dropout", "Call .eval() on it: w multiplies the noise of either network."
                raise UnsupportedError(f"{name} network", got=got, expected="evaluation mode", remedy=remedy)
        if not self.strict:
            return
        for what, mine, other in (
            ("path", tuned.path, ref.path),
            ("kind", tuned.output, ref.output),
            ("conditions", tuned.schema.fields, ref.schema.fields),
        ):
            if mine != other:
                raise UnsupportedError(
                    f"{what} of the tuned network {self.net!r}",
                    got=mine,
                    expected=f"{other}, like the reference",
                    remedy="Pass the model it was tuned from, or strict=False for two models of the same data.",
                )

    def _share(self, origin: Query, *, warming: bool) -> Factor:
        """The weight of the network that is not pushed."""
        w = 1.0 if warming else self.w
        if origin.net != self.net:
            return w
        return tuple(1 - v for v in w) if isinstance(w, tuple) else 1 - w

    def _names(self, origin: Query) -> tuple[Nets, Nets]:
        """Renamings under which guidance inside sees the pushed network, and the other one, as its own."""
        tuned: Nets = {"main": self.net}
        return (tuned, {self.net: "main"}) if origin.net == self.net else ({}, tuned)

    def _planned(self, p: Planner, k: int, step: Step, state: State, rows: Rows | None, nets: Nets) -> TermPlan | None:
        inner = self.guided
        return None if inner is None else p.place(k, lambda: inner.plan(p, step, state[1 + k], rows, nets))

    def _pushed(self, k: int, ask: Ask, step: Step, states: list[State], plan: TermPlan | None) -> Tensor | None:
        if plan is None or self.guided is None:
            return None
        push, states[1 + k] = self.guided(ask, step, states[1 + k], plan)
        return push


@final
@dataclass(frozen=True)
class _From(Gate):
    """Open from step m on."""

    m: int

    def open(self, step: Step, state: State) -> Decision:
        return step.i >= self.m


def rlg(w: Factor, net: str = "tuned", guided: Term | None = None, *, warmup: int = 0, strict: bool = True) -> Guidance:
    """RLG as the whole guidance of a run, with its cheapest base: w = 0 and w = 1 are one model alone, to the bit.

    Arguments and errors as of `RLG`; steps of the warm-up cost the fine-tuned model only.
    """
    term = RLG(w, net, guided, warmup, strict)
    return Guidance(term, base=term.start)


def effective_kl(beta: float, w: float) -> float:
    """beta / w: the KL coefficient whose optimum RLG aims at, from a model that is the optimum at `beta`.

    beta, w: > 0 and finite. A fact for exact optima (see the module for where even that is approximate), a figure of
    speech for others. Raises RangeError.
    """
    for what, value in (("KL coefficient beta", beta), ("w of RLG", w)):
        if not (value > 0 and math.isfinite(value)):
            remedy = "w = 0 is the reference, an infinite coefficient; below 0 there is none."
            raise RangeError(what, got=value, expected="> 0 and finite", remedy=remedy)
    return beta / w
