r"""Gradient-free classifier guidance (GFCG): away from the class that a sample is being confused with.

Classifier guidance aligns samples with their labels but differentiates a classifier; CFG needs no gradient but pushes
as hard where nothing is wrong. Here a classifier is only asked: at each step it names, sample by sample, a reference
class and how confused it is, and guidance pushes away from the model's own prediction for that class.

.. math:: q &= \mathrm{softmax}(f / T), \qquad \rho = \arg\max_{k \ne y} q_k, \qquad w_t = 1 + (w_{max} - 1)\,\kappa \\
   \hat{x}_0 &= c + (w_t - 1)(c - D_\rho)

==========  ==========================================================================  ========
symbol      meaning                                                                     shape
==========  ==========================================================================  ========
c, D_k      x0-predictions for the run's class y and for class k                        (b, *D)
f, q        logits and probabilities of the classifier                                  (b, K)
rho, w_t    reference class and scale, held within a step of a solver with several      (b,)
kappa       confusion: 1 - q_y ("p"), q_rho / (q_y + q_rho) ("ratio"), whether          (b,)
            q_rho > q_y ("gate"), whether q_y is below a number, or 1 ("always")
==========  ==========================================================================  ========

By Bayes c - D_rho is sigma^2/alpha times the gradient of log p(y | x) / p(rho | x). So this is classifier guidance on
pairwise log-odds, and CFG is the sum over all classes, sum_k p(k | x)(c - D_k) = c - u: with the exact classifier of
noisy points ("noisy"), confusion "p" and floor 0, two classes, or a "mix" of all wrong ones, make it CFG(w_max).

What is judged is c ("clean"), what this term made of the step before ("previous", where there was one), the prediction
without a condition ("uncond") or the noisy point ("noisy"). c knows its label: at high noise it is near the mean of its
class, which looks sure. A classifier of clean pictures is given x0, one of latents has to decode them itself.

    GFCG(judge, 10)                                                     2 rows a sample, as CFG
    GFCG(judge, 10).when(Interval.sigma(0.2, 5))                        a window
    CFG(1.5) + GFCG(judge, 10), Auto(1.5) + GFCG(judge, 10)             both, 3 rows
    GFCG(judge, confusion=0.5, combine="swap", w=1.5)                   CFG; where confused, D_rho for u: 2 rows
    GFCG(judge, confusion=0.5, combine="swap", w=1.5, other=WEAK)       WEAK = Query("cond", "weak"): the same
                                                                        of autoguidance: the weak one is asked for rho
    GFCG(judge, 10, confusion=0.5, combine="alternate", w=1.5, ...)     autoguidance where sure, else GFCG: 3 rows

A reference is evaluated for every sample, confused or not: who is confused is known on the device only, within a step.

The paper says that the classifier runs in inference mode, that reference and scale are made anew at every step, that
the scale follows the confusion, and that it combines with autoguidance. Its functions are not public; those above are
ours. References drawn by lot are left out. In the recipe the scale does most: on digits CFG with it
(`reference="null"`) is as good, and better at large w_max. A large w_max tears samples apart where the classifier is
unsure of what it is shown, as of blurred predictions at high noise: on pictures of shapes 5 was too much already. There
a window took the harm away, and the gain with it.

Reference: Shenoy et al. 2024, Gradient-Free Classifier Guidance for Diffusion Model Sampling, arXiv 2411.15393.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, UnsupportedError, unknown_name
from wayfield.core.shapes import expand
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, NULL, Query
from wayfield.guide.judged import check_judge, flat, judge_name, logits_of
from wayfield.guide.references import (
    CONFUSIONS,
    Classes,
    Table,
    Temperature,
    conditions,
    confusion,
    frozen_table,
    points_of,
    tempered,
    top_wrong,
)
from wayfield.guide.roles import State, Step
from wayfield.guide.terms import Direction, Pushed

__all__ = ["GFCG"]

_SEES = ("clean", "previous", "uncond", "noisy")
_REFERENCES = ("top", "mix", "null")
_COMBINATIONS = ("alone", "swap", "alternate")


@final
@dataclass(frozen=True)
class GFCG(Direction):
    """A push away from the class that the sample is confused with, as strong as it is confused.

    classifier: called as classifier(x0), for "noisy" as classifier(x, level) with scales () or (b,); returns logits
    (b, K), one for each class of the model, row by row; never differentiated / w_max: >= 1, the scale at kappa = 1; 1
    means no guidance / on: "clean", "previous", "uncond" or "noisy" / confusion: "p", "ratio", "gate", "always", or a
    number in (0, 1) / reference: "top", "mix" (of the `mixed` likeliest wrong classes, weighted by q), or "null": no
    class, which is CFG with this scale / classes: what a class is to the model: by default its number in `field`; else
    {name: (K, ...)}, and samples whose condition is none of these are not pushed, as null labels are not /
    temperature: > 0, divides the logits; or ((log-SNR, T), ...), linear between, log-SNR rising / cap: largest w_t /
    floor: (w_max - 1) kappa up to it counts as 0 / combine: "alone", "swap" or "alternate" with scale `w` away from
    `other` where a sample is not confused / net: who is asked for the reference class, unless swapped.
    Probabilities cannot be told from logits: give logits. Raises DTypeError, RangeError, UnknownNameError or
    UnsupportedError; at the first step ShapeError, DeviceError, ConditionError or RangeError where classifier, classes
    and model do not fit.
    """

    classifier: Callable[..., Tensor]
    w_max: float = 10.0
    on: Literal["clean", "previous", "uncond", "noisy"] = "clean"
    confusion: str | float = "p"
    reference: Literal["top", "mix", "null"] = "top"
    mixed: int = 2
    classes: Mapping[str, Any] | Table | None = None
    field: str = "label"
    temperature: Temperature = 1.0
    cap: float | None = None
    floor: float = 0.01
    combine: Literal["alone", "swap", "alternate"] = "alone"
    w: float = 1.0
    other: Query = NULL
    net: str = "main"

    remembers: ClassVar[bool] = True
    reads: ClassVar[Literal["previous", "current"]] = "current"

    def __post_init__(self) -> None:
        check_judge("classifier of GFCG", self.classifier)
        _check_names(self)
        _check_numbers(self)
        object.__setattr__(self, "temperature", points_of(self.temperature))
        object.__setattr__(self, "classes", frozen_table(self.classes))
        object.__setattr__(self, "_classes", Classes.of(self.field, frozen_table(self.classes)))

    def __repr__(self) -> str:
        """With functions by their names: a run is known again, after a restart too, by what it prints."""
        rest = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self)[1:])
        return f"GFCG({judge_name(self.classifier)}, {', '.join(rest)})"

    @property
    def neutral(self) -> bool:
        """With scales of 1."""
        return {"alone": self.w_max == 1, "swap": self.w == 1, "alternate": self.w_max == self.w == 1}[self.combine]

    @property
    def needs(self) -> tuple[Query, ...]:
        """The condition, and whatever else has a name; reference classes have none."""
        null = self.on == "uncond" or self.reference == "null"
        asked = (COND, *((NULL,) if null else ()), *((self.other,) if self.combine == "alternate" else ()))
        return tuple(dict.fromkeys(asked))

    @property
    def told(self) -> tuple[Query, ...]:
        """The condition, for its labels, and what is asked instead of a class where a sample is not confused."""
        return (COND, self.other) if self.combine == "swap" else (COND,)

    @property
    def extra(self) -> tuple[str, ...]:
        """The networks asked for reference classes, one entry for each."""
        if self.combine == "swap":
            return (self.other.net,)
        return () if self.reference == "null" else (self.net,) * self._many

    def init(self, x: Tensor, n: int) -> State:
        """No reference and no push; for "previous" also what was made of no step yet."""
        weights = x.new_zeros(len(x), self._many, dtype=torch.promote_types(x.dtype, torch.float32))
        verdict = (torch.zeros_like(weights, dtype=torch.int64), weights, weights.new_zeros(len(x)))
        before = (torch.zeros_like(x), torch.zeros(len(x), dtype=torch.bool, device=x.device))
        return (*verdict, *before) if self.on == "previous" else verdict

    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        """See `Direction.push`. The state: references (b, m), their weights (b, m), w_t - 1 (b,); for "previous" also
        that x0 (b, *D), and whether there is one (b,).
        """
        c = ask(COND)[0].x0
        # a reference that changed inside a step would break the order of its solver
        rho, weights, gain = verdict = self._verdict(ask, c, state) if step.stage == 0 else state[:3]
        push = self._swapped(ask, c, rho, gain) if self.combine == "swap" else self._away(ask, c, rho, weights, gain)
        if self.on != "previous":
            return push, verdict
        return push, (*verdict, (c + push).detach(), torch.ones_like(state[4]))

    @property
    def _many(self) -> int:
        return self.mixed if self.reference == "mix" else 1

    @torch.no_grad()
    def _verdict(self, ask: Ask, c: Tensor, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """References, their weights and w_t - 1."""
        logits = logits_of(ask, self.classifier, *self._seen(ask, c, state)).to(state[1].dtype)
        K = logits.shape[1]
        if self._many >= K:
            remedy = "A mix has at most all classes but the sample's own."
            raise RangeError("classes in a mix", got=self.mixed, expected=f"at most {K - 1}", remedy=remedy)
        label, known = self._classes.own(ask, K)  # pyright: ignore[reportAttributeAccessIssue]
        mine, top, rho = top_wrong(tempered(logits, self.temperature, ask).log_softmax(1), label, self._many)
        gain = (self.w_max - 1) * confusion(mine, top[:, 0], self.confusion)
        gain = gain if self.cap is None else gain.clamp(max=self.cap - 1)
        return rho, top.softmax(1), torch.where((gain <= self.floor) | ~known, 0, gain)  # NaN is not <=, and stays

    def _seen(self, ask: Ask, c: Tensor, state: State) -> tuple[Any, ...]:
        """What the classifier is called with."""
        if self.on == "noisy":
            return ask.x, flat(ask.level)
        if self.on == "uncond":
            return (ask(NULL)[0].x0,)
        return (torch.where(expand(state[4], c), state[3], c) if self.on == "previous" else c,)

    def _away(self, ask: Ask, c: Tensor, rho: Tensor, weights: Tensor, gain: Tensor) -> Tensor:
        """(w_t - 1)(c - reference); alternating, that of `other` where w_t = 1."""
        if self.reference == "null":
            away = ask(NULL)[0].x0
        else:
            each = [ask.told(self.net, self._told(ask, k)).x0 for k in rho.unbind(1)]
            shares = zip(weights.to(c.dtype).unbind(1), each, strict=True)
            away = each[0] if len(each) == 1 else torch.stack([expand(v, x0) * x0 for v, x0 in shares]).sum(0)
        push = expand(gain.to(c.dtype), c) * (c - away)
        if self.combine == "alone":
            return push
        return torch.where(expand(gain == 0, c), (self.w - 1) * (c - ask(self.other)[0].x0), push)

    def _swapped(self, ask: Ask, c: Tensor, rho: Tensor, gain: Tensor) -> Tensor:
        """(w - 1)(c - reference), the class's where w_t > 1 and else what `other` is told, in one evaluation."""
        chosen, usual = self._told(ask, rho[:, 0]), conditions(ask, self.other)
        cond = {name: torch.where(expand(gain == 0, value), value, chosen[name]) for name, value in usual.items()}
        scale = torch.where(gain.isnan(), gain, self.w - 1).to(c.dtype)
        return expand(scale, c) * (c - ask.told(self.other.net, cond).x0)

    def _told(self, ask: Ask, k: Tensor) -> dict[str, Tensor]:
        return self._classes.told(ask, k)  # pyright: ignore[reportAttributeAccessIssue]


def _check_names(part: GFCG) -> None:
    """Raises UnknownNameError, and UnsupportedError for what does not go together."""
    for what, got, known in (
        ("input of GFCG's classifier", part.on, _SEES),
        ("reference of GFCG", part.reference, _REFERENCES),
        ("combination of GFCG", part.combine, _COMBINATIONS),
    ):
        if got not in known:
            raise unknown_name(what, got, known)
    if isinstance(part.confusion, str) and part.confusion not in CONFUSIONS:
        raise unknown_name("confusion of GFCG", part.confusion, CONFUSIONS)
    if part.combine == "swap" and (part.reference != "top" or part.net != "main"):
        got = f"reference={part.reference!r}, net={part.net!r}"
        remedy = "The network of `other` is asked for one class; use combine='alternate' for anything else."
        raise UnsupportedError("GFCG with combine='swap'", got=got, expected="the defaults of both", remedy=remedy)


def _check_numbers(part: GFCG) -> None:
    """Raises RangeError."""
    rule = part.confusion
    wrong = {
        ("w_max", ">= 1 and finite"): not 1 <= part.w_max < math.inf,
        ("w", "finite"): not math.isfinite(part.w),
        ("cap", "None, or >= 1"): part.cap is not None and not part.cap >= 1,
        ("floor", ">= 0 and finite"): not 0 <= part.floor < math.inf,
        ("mixed", "an integer >= 1"): not isinstance(part.mixed, int) or part.mixed < 1,
        ("confusion", "a name, or a number in (0, 1)"): not isinstance(rule, str) and not 0 < rule < 1,
        ("w", "1, which is unused"): part.combine == "alone" and part.w != 1,
    }
    for (name, expected), bad in wrong.items():
        if bad:
            remedy = "See the arguments of GFCG; w belongs to combine='swap' and 'alternate'."
            raise RangeError(f"{name} of GFCG", got=getattr(part, name), expected=expected, remedy=remedy)
