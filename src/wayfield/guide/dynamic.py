r"""Dynamic CFG: at every step, each sample takes the guidance scale whose next point a set of evaluators likes best.

No scale suits every prompt and every noise level. The two answers of classifier-free guidance already tell where a step
would land for any scale; small networks that read noisy points choose among these landings, at no row of the denoiser.

.. math:: x_0^w = \text{base} + (w - 1)\, d, \qquad
   x_s^w = \alpha_s x_0^w + \sigma_s \frac{x - \alpha x_0^w}{\sigma}
         = x_s^1 + (w - 1) \Bigl(\alpha_s - \alpha \frac{\sigma_s}{\sigma}\Bigr) d, \qquad
   w^* = \arg\max_{w \in W} \; \hat e(x_s^w)

=========  ======================================================================================  ==========
symbol     meaning                                                                                 shape
=========  ======================================================================================  ==========
d          the unit push, conditional minus unconditional x0                                       (B, *D)
x_s        where the step lands, at the scales alpha_s, sigma_s of the grid's next time            (B, *D)
W          candidate scales, n of them; 1 means no guidance                                        (n,)
e_j        score of evaluator j, higher is better                                                  (n, B)
=========  ======================================================================================  ==========

The landing is that of the deterministic first-order step (DDIM, Euler), affine in w. Stochastic and multistep solvers
land elsewhere by terms that do not depend on the choice, and by another factor before d; what is scored is then a point
of the same noise level with the same noise for every candidate, not the very next one. A step with several evaluations
chooses in its first and holds the choice.

How scores combine (`combine`), a_j: `weights`, q_j in [0, 1]: what the evaluator says of its own use at this level:

================  ====================================================================================================
"standardised"    sum_j a_j q_j (e_j - mean_W e_j) / std_W e_j, the default: no evaluator's units matter
"sum"             sum_j a_j q_j e_j
"product"         sum_j a_j q_j log e_j, the product of the scores to these powers; scores must be positive
"paper"           sum_j r_j a_j q_j e_j, r_j = (mean_W e_j - e'_j) / e'_j: how fast it changes along the trajectory,
                  e'_j the chosen score of the step before; r_j = 1 in the first step
"paper_abs"       the same with |r_j|
================  ====================================================================================================

The paper's rule is known from notes and reviews, which leave open whose scores enter; r_j can be negative, and does not
survive a shift of the score. Ties go to the candidate nearest the default: so does a level at which all q_j are 0.
A greedy choice by alignment alone drifts to the largest scale, which is reward hacking; a realism term is needed. Never
report with the evaluator that chose.

Reference: Papalampidi et al. 2025, Dynamic Classifier-Free Diffusion Guidance via Online Feedback, arXiv 2509.16131.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from wayfield.core.errors import DeviceError, DTypeError, RangeError, ShapeError, unknown_name
from wayfield.core.shapes import expand
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query
from wayfield.field.denoiser import Landing
from wayfield.guide.contrast import Away
from wayfield.guide.gates import Steps
from wayfield.guide.guidance import Guidance, guidance_of
from wayfield.guide.judged import check_device, check_judge
from wayfield.guide.roles import Shaper, State, Step
from wayfield.guide.terms import Term

__all__ = ["COMBINATIONS", "Evaluator", "Greedy", "choices", "dynamic_cfg", "replay"]

Evaluator = Callable[[Tensor, Landing, Mapping[str, Tensor]], Tensor]
"""evaluator(x (m, *D), level, cond) -> scores (m,), higher is better, row by row. level: scales, () each / cond: rows
(m, ...) of the run's condition. One with a method quality(level) -> () in [0, 1] counts that much at this level.
"""

SCALES, DEFAULT = (1.0, 1.25, 1.5, 2.0, 3.0), 1.5
_SMALLEST = 1e-6  # size of a score that is divided by
Combination = Literal["standardised", "sum", "product", "paper", "paper_abs"]


@final
@dataclass(frozen=True)
class Greedy(Shaper):
    """A unit push times w - 1, with the w of every sample and step that its evaluators like best. See the module.

    evaluators: (name, evaluator) each, or a mapping / scales: candidates, rising / default: one of them, which ties go
    to / combine: one of `COMBINATIONS` / weights: one for each evaluator, >= 0, by default 1 / margin: >= 0, by how
    much another candidate's total must exceed the default's / chunk: most rows of one evaluator call, though never
    fewer than the samples of the run.
    Remembers the scales chosen, (B, N), the latest last, see `choices`, and the scores of the latest, (B, E).
    Raises RangeError, DTypeError, UnknownNameError, or UnsupportedError for a module in training mode; DeviceError
    before the first step; ShapeError and DeviceError in the first for scores that do not fit. A score that is not
    finite makes the sample NaN, which the run reports with its step.
    """

    evaluators: tuple[tuple[str, Evaluator], ...]
    scales: tuple[float, ...] = SCALES
    default: float = DEFAULT
    combine: Combination = "standardised"
    weights: tuple[float, ...] | None = None
    margin: float = 0.0
    chunk: int = 1024

    remembers: ClassVar[bool] = True
    reads: ClassVar[Literal["previous", "current"]] = "current"
    absolute: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "evaluators", _named(self.evaluators))
        object.__setattr__(self, "scales", _rising(self.scales))
        if self.default not in self.scales:
            remedy = "Add it to the scales, or choose another default."
            raise RangeError("default scale", got=self.default, expected=f"one of {self.scales}", remedy=remedy)
        if self.combine not in COMBINATIONS:
            raise unknown_name("combination of scores", self.combine, COMBINATIONS)
        if self.weights is not None:
            object.__setattr__(self, "weights", _weights(self.weights, len(self.evaluators)))
        if not 0 <= self.margin < math.inf:
            raise RangeError("margin", got=self.margin, expected=">= 0 and finite", remedy="0 takes any gain.")
        if not isinstance(self.chunk, int) or self.chunk < 1:
            raise RangeError("chunk", got=self.chunk, expected="an integer >= 1", remedy="It bounds memory; try 1024.")

    def __repr__(self) -> str:
        """With evaluators by their names: a run is known again, after a restart too, by what it prints."""
        names = ", ".join(name for name, _ in self.evaluators)
        rest = ("scales", "default", "combine", "weights", "margin")
        return f"Greedy([{names}], {', '.join(f'{k}={getattr(self, k)!r}' for k in rest)})"

    @property
    def told(self) -> tuple[Query, ...]:
        """The condition, which evaluators read."""
        return (COND,)

    def init(self, x: Tensor, n: int) -> State:
        """Choices, the default before there are any, and scores, NaN before there are any."""
        for name, evaluator in self.evaluators:
            check_device(f"evaluator {name!r}", evaluator, x)
        rows, dtype = len(x), _wide(x.dtype)
        scores = torch.full((rows, len(self.evaluators)), math.nan, dtype=dtype, device=x.device)
        return torch.full((rows, n), self.default, dtype=dtype, device=x.device), scores

    def shape(self, ask: Ask, push: Tensor, step: Step, state: State) -> tuple[Tensor, State]:
        """See `Shaper.shape`."""
        chosen, before = state
        if step.stage == 0:
            scores = self._scores(ask, push)
            total = self._total(scores, before, ask.landing)
            index = total.argmax(0)  # the first of equals: candidates stand in the order of their distance
            w = torch.stack([total.new_full((), scale) for scale in self._ordered])[index]
            good = scores.isfinite().flatten(0, 1).all(0) & ~total.isnan().any(0)
            before = scores.gather(1, index.expand(len(scores), 1, -1))[:, 0].T
            chosen = torch.cat([chosen[:, 1:], torch.where(good, w, math.nan)[:, None]], 1)
        return push * expand((chosen[:, -1] - 1).to(push.dtype), push), (chosen, before)

    @property
    def _ordered(self) -> tuple[float, ...]:
        """The candidates, nearest to the default first."""
        return tuple(sorted(self.scales, key=lambda w: abs(w - self.default)))

    @torch.no_grad()
    def _scores(self, ask: Ask, push: Tensor) -> Tensor:
        """What every evaluator says of every candidate, (E, n, b)."""
        landing, level, rows = ask.landing, ask.level, len(push)
        here = ask.point(ask.base)
        at_one = landing.alpha * here.x0 + landing.sigma * here.eps
        shift = (landing.alpha + landing.sigma * level.point_x0) * push
        cond = ask.binding.cond(COND)
        if ask.rows is not None:
            cond = {k: c.index_select(0, ask.rows.tensor) for k, c in cond.items()}
        each, parts = max(1, self.chunk // rows), []
        for first in range(0, len(self.scales), each):
            some = self._ordered[first : first + each]
            x = torch.cat([torch.add(at_one, shift, alpha=w - 1) for w in some])
            told = {k: torch.cat([c] * len(some)) for k, c in cond.items()}
            scores = [_checked(name, e(x, landing, told), x) for name, e in self.evaluators]
            parts.append(torch.stack(scores).reshape(-1, len(some), rows))
        return torch.cat(parts, 1)

    def _total(self, scores: Tensor, before: Tensor, level: Landing) -> Tensor:
        """The combined scores, (n, b), with the margin of the default."""
        given = (1.0,) * len(self.evaluators) if self.weights is None else self.weights
        pairs = zip(self.evaluators, given, strict=True)
        weights = torch.stack([a * _quality(e, level, scores) for (_, e), a in pairs])
        total = (weights[:, None, None] * COMBINATIONS[self.combine](scores, before.T[:, None])).sum(0)
        return torch.cat([total[:1] + self.margin, total[1:]]) if self.margin else total


def dynamic_cfg(
    evaluators: Mapping[str, Evaluator] | Sequence[tuple[str, Evaluator]],
    scales: Sequence[float] = SCALES,
    default: float = DEFAULT,
    *,
    combine: Combination = "standardised",
    weights: Sequence[float] | None = None,
    margin: float = 0.0,
    chunk: int = 1024,
    away: str = "null",
) -> Term:
    """Classifier-free guidance whose scale is chosen by `Greedy`, with its arguments. away: name of the condition that
    is pushed away from. Raises as `Greedy`.
    """
    named, given = _named(evaluators), None if weights is None else tuple(weights)
    return Away(away).through(Greedy(named, tuple(scales), default, combine, given, margin, chunk))


def replay(scales: Sequence[float] | Tensor, away: str = "null") -> Term:
    """The same schedule for everybody, the control of a choice per sample: the scale of each step, (N,).

    Raises RangeError for scales that are not finite, and for a run with another number of steps.
    """
    values = scales.tolist() if isinstance(scales, Tensor) else scales
    return Away(away).when(Steps(tuple(float(w) - 1 for w in values)))


def choices(guidance: Guidance | Term, state: State) -> Tensor:
    """The scales (B, N) that a run chose, from its guidance and `Result.state` or `StepInfo.state`.

    In the order of the steps, the latest last; a step that a gate closed chose none, and leaves a default in front.
    Raises DTypeError for a guidance without `Greedy`.
    """
    for part, own in guidance_of(guidance).remembered(state):
        if isinstance(part, Greedy):
            return own[0]
    raise DTypeError("guidance", got=guidance, expected="one with Greedy", remedy="Use dynamic_cfg(...).")


def _standardised(scores: Tensor, before: Tensor) -> Tensor:
    mean, low, high = scores.mean(1, True), scores.amin(1, True), scores.amax(1, True)
    # candidates that differ by rounding alone are equal, and must not be blown up
    equal = high - low <= 8 * torch.finfo(scores.dtype).eps * torch.maximum(high.abs(), low.abs())
    return torch.where(equal, 0, (scores - mean) / torch.where(equal, 1, scores.std(1, correction=0, keepdim=True)))


def _rate(scores: Tensor, before: Tensor) -> Tensor:
    """Relative change of the mean over candidates against the score before, (E, 1, b); 1 where there is none."""
    size = torch.where(before < 0, -1, 1) * before.abs().clamp(min=_SMALLEST)
    return torch.where(before.isnan(), 1, (scores.mean(1, True) - before) / size)


COMBINATIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "standardised": _standardised,
    "sum": lambda scores, before: scores,
    "product": lambda scores, before: scores.log(),
    "paper": lambda scores, before: scores * _rate(scores, before),
    "paper_abs": lambda scores, before: scores * _rate(scores, before).abs(),
}
"""What becomes of scores (E, n, b) before they are weighed and summed; before: the chosen ones of the last step,
(E, 1, b), NaN in the first."""


def _quality(evaluator: Evaluator, level: Landing, like: Tensor) -> Tensor:
    """What an evaluator says of its own use at a level, ()."""
    quality = getattr(evaluator, "quality", None)
    return like.new_ones(()) if quality is None else quality(level).to(like)


def _checked(name: str, scores: Any, x: Tensor) -> Tensor:
    """Scores (m,), in float32 at least."""
    what, remedy = f"scores of evaluator {name!r}", "Return one score for each row, on its device, higher is better."
    if not isinstance(scores, Tensor) or scores.shape != x.shape[:1]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ShapeError(what, got=got, expected=f"({len(x)},)", remedy=remedy)
    if scores.device != x.device:
        raise DeviceError(what, got=scores.device, expected=x.device, remedy=remedy)
    return scores.to(_wide(x.dtype))


def _named(given: Mapping[str, Any] | Iterable[Any]) -> tuple[tuple[str, Evaluator], ...]:
    pairs = tuple(given.items() if isinstance(given, Mapping) else given)
    good = [isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs]
    if not pairs or not all(good):
        remedy = "Give (name, evaluator) for each, at least one."
        raise DTypeError("evaluators", got=pairs, expected="pairs of a name and an evaluator", remedy=remedy)
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise RangeError("names of evaluators", got=names, expected="different ones", remedy="Rename one.")
    for name, evaluator in pairs:
        check_judge(f"evaluator {name!r}", evaluator)
    return tuple([(name, evaluator) for name, evaluator in pairs])


def _rising(scales: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(w) for w in scales)
    if not values or not all(math.isfinite(w) for w in values) or not all(a < b for a, b in pairwise(values)):
        remedy = "Give at least one scale, sorted, none twice; 1 means no guidance."
        raise RangeError("candidate scales", got=values, expected="finite and rising", remedy=remedy)
    return values


def _weights(weights: Sequence[float], count: int) -> tuple[float, ...]:
    values = tuple(float(a) for a in weights)
    if len(values) != count or not all(0 <= a < math.inf for a in values) or not any(values):
        remedy = "Give one for each evaluator, not all of them 0; for lower scores negate the evaluator."
        raise RangeError("weights of evaluators", got=values, expected=f"{count} numbers >= 0", remedy=remedy)
    return values


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
