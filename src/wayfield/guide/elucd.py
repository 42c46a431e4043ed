r"""EluCD: guidance by a classifier that has never seen noise, shown the predicted clean data.

A classifier off the shelf knows clean data only, and an ordinary gradient through the denoiser doubles the cost. EluCD
shows it the prediction, takes its gradient *there*, and uses that as if it were one in the noisy points:

.. math:: h = \tau_1 f_y(\hat{x}_0) - \log \sum_k e^{\tau_2 f_k(\hat{x}_0)}, \qquad
   \text{push} = \text{scale}\; \frac{\sigma^2}{\alpha}\, m_i \nabla_{\hat{x}_0} h

========  =====================================================================  ====================================
symbol    meaning                                                                shape
========  =====================================================================  ====================================
x0_hat    the model's prediction; nothing is differentiated through the model    (b, *D)
f, y      logits and wanted class                                                (b, K), (b,)
tau       (1, 1) pushes along log p(y | x), (1, 0) along the joint log p(x, y),
          (1, 0.5) between
m_i       the multiplier of step i, see `sine`                                   number
========  =====================================================================  ====================================

The exact gradient is J^T grad h with J = d x0_hat / d x_t = (alpha / sigma^2) Cov[x0 | x_t]; EluCD takes J = 1. On data
N(0, S) J = alpha S / (alpha^2 S + sigma^2), which falls to 0 with the noise: leaving it out strengthens early guidance.
`ClassifierGuidance(on="clean")` and `Energy` keep J.

A smaller tau_2 pushes harder: compare settings at scales chosen for each. Smooth the classifier first, see
`judge.smooth`; what it wants of its input (size, normalisation) belongs in front of it, in the same module. The
official figures use neither.

`Nudge` is the paper's rule for EDM samplers, which is another one: the sample itself is moved, before it is denoised,
by a share c of its own length, G = c rms(x) g / rms(g), g the gradient at x / max(rms(x), 1). A push acts after the
prediction, so with r the ratio of the noise levels sigma/alpha after and before a deterministic Euler step (alpha = 1)

.. math:: \text{push} = \Bigl(\frac{r}{1 - r} + J\Bigr) G, \qquad J = \frac{s^2}{s^2 + \sigma^2}

lands where the moved sample would, exactly on Gaussian data of standard deviation s, to first order in G and up to the
model's own J otherwise. It holds for one evaluation a step (Euler, DDIM); in a second one the nudge is zero, so Heun's
method keeps half of it.

References: Ma et al. 2024 (EluCD), arXiv 2310.11311; factors, constants and the EDM rule from its official code.
Recurrence (denoise, noise again, repeat) is left out: it belongs to solvers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal, final

import torch
from torch import Tensor

from wayfield.core.errors import GridError, RangeError, UnsupportedError, unknown_name
from wayfield.core.grid import Grid
from wayfield.core.shapes import expand, flatten
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query
from wayfield.guide.gates import Schedule, Steps
from wayfield.guide.judged import check_judge, factor_of, judge_name, labels_of, logits_of
from wayfield.guide.roles import State, Step
from wayfield.guide.terms import Direction, Factor, Pushed, Term, check_factor

__all__ = ["EluCD", "Nudge", "elucd", "nudge_steps", "sine", "tempered_log_p"]

Target = str | int | tuple[int, ...]
"""The field of the condition that holds the labels / one class for all samples / one for each sample."""

_FORMS = ("score", "variance", "even")
_SAME = 1e-5  # a second evaluation of a step stands at the level that the step goes to


def tempered_log_p(logits: Tensor, labels: Tensor, tau: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """tau_1 f_y - log sum_k exp(tau_2 f_k), (b,), of logits (b, K) and labels (b,)."""
    return tau[0] * logits.gather(1, labels[:, None])[:, 0] - (tau[1] * logits).logsumexp(1)


class _Judged(Direction):
    """What both rules share: a clean classifier, what is wanted of it, and the gradient of h."""

    classifier: Callable[[Tensor], Tensor]
    scale: Factor
    tau: tuple[float, float]
    target: Target

    def __repr__(self) -> str:
        """With functions by their names: a run is known again, after a restart too, by what it prints."""
        rest = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self)[1:])  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({judge_name(self.classifier)}, {', '.join(rest)})"

    @property
    def neutral(self) -> bool:
        """At scale 0, or where both tau are."""
        return self.scale == 0 or self.tau == (0, 0)

    @property
    def told(self) -> tuple[Query, ...]:
        """The condition, if it holds the labels."""
        return (COND,) if isinstance(self.target, str) else ()

    def _check(self) -> None:
        """Refuse what both cannot be, and make tuples of sequences."""
        who, target = type(self).__name__, self.target
        object.__setattr__(self, "scale", check_factor(f"scale of {who}", self.scale))
        check_judge("classifier", self.classifier)
        object.__setattr__(self, "tau", tuple(self.tau))
        if len(self.tau) != 2 or not all(t >= 0 and math.isfinite(t) for t in self.tau):
            remedy = "(1, 1) is log p(y | x), (1, 0.5) the paper's."
            raise RangeError(f"tau of {who}", got=self.tau, expected="two numbers >= 0", remedy=remedy)
        if not isinstance(target, str):
            many = (target,) if isinstance(target, int) else tuple(target)
            if not many or any(isinstance(y, bool) or not isinstance(y, int) or y < 0 for y in many):
                remedy = "Give a field's name, a class, or one class for each sample."
                raise RangeError(f"target of {who}", got=target, expected="integers >= 0", remedy=remedy)
            object.__setattr__(self, "target", target if isinstance(target, int) else many)

    def _factor(self, ask: Ask) -> Any:
        return ask.column(self.scale) if isinstance(self.scale, tuple) else self.scale

    def _gradient(self, ask: Ask, seen: Tensor) -> Tensor:
        """Of h in what the classifier is shown, (b, *D)."""
        again = seen.requires_grad  # a run that is differentiated as a whole
        leaf = seen if again else seen.detach().requires_grad_()
        with torch.enable_grad():
            logits = logits_of(ask, self.classifier, leaf)
            if not logits.requires_grad:
                remedy = "Compute the logits in torch, without detach or no_grad."
                raise UnsupportedError("classifier", got="no gradient", expected="differentiable logits", remedy=remedy)
            label, null = self._wanted(ask, logits)
            h = tempered_log_p(logits, label.clamp(max=logits.shape[1] - 1), self.tau)
            h = h if null is None else torch.where(label == null, 0, h)
            (gradient,) = torch.autograd.grad(h, leaf, torch.ones_like(h), create_graph=again)
        return gradient

    def _wanted(self, ask: Ask, logits: Tensor) -> tuple[Tensor, int | None]:
        """Labels (b,) and the one that means "none"."""
        target, who = self.target, type(self).__name__
        if isinstance(target, str):
            return labels_of(ask, target, logits.shape[1], who)
        # numbers per sample travel in the type of the points, where large integers are not exact
        most = min(logits.shape[1], int(2 / torch.finfo(ask.x.dtype).eps))
        largest = target if isinstance(target, int) else max(target)
        if largest >= most:
            raise RangeError(f"target of {who}", got=largest, expected=f"0..{most - 1}", remedy="Classes count from 0.")
        if isinstance(target, int):
            return torch.full_like(logits[:, 0], target, dtype=torch.int64), None
        return ask.column(target).reshape(-1).long(), None


@final
@dataclass(frozen=True, repr=False)
class EluCD(_Judged):
    """A push towards a class, by a clean classifier's gradient at the predicted clean data.

    classifier: called as classifier(x0), returns logits (b, K), K >= 2, row by row / scale: a tuple gives every sample
    its own / tau: of the wanted logit and of all, >= 0, see the module / target: what is wanted: the field of the
    condition that holds labels (rows with its null value are not pushed), a class, or one class for each sample / of:
    whose prediction is judged, a `Query` or the name of a condition; with base=NULL say "null", or its row is paid for
    / clip: bounds that the prediction is clamped to before it is judged; clamped values are pushed all the same.
    Raises DTypeError, RangeError, UnsupportedError for a module in training mode; at the first step ShapeError,
    DeviceError, ConditionError or RangeError where logits and labels do not fit.
    """

    classifier: Callable[[Tensor], Tensor]
    scale: Factor = 1.0
    tau: tuple[float, float] = (1.0, 0.5)
    target: Target = "label"
    of: Query | str = COND
    clip: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        self._check()
        if isinstance(self.of, str):
            object.__setattr__(self, "of", Query(self.of))
        if self.clip is not None:
            object.__setattr__(self, "clip", tuple(self.clip))
            if len(self.clip) != 2 or not self.clip[0] < self.clip[1]:
                remedy = "Use (-1.0, 1.0) for pictures."
                raise RangeError("clip of EluCD", got=self.clip, expected="low < high", remedy=remedy)

    @property
    def needs(self) -> tuple[Query, ...]:
        """The prediction that is judged, never with a gradient."""
        assert isinstance(self.of, Query)
        return (self.of._replace(grad=False),)

    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        """See `Direction.push`."""
        x0 = ask(*self.needs)[0].x0
        gradient = self._gradient(ask, x0 if self.clip is None else x0.clamp(*self.clip))
        return self._factor(ask) * factor_of(ask.level) * gradient, state


@final
@dataclass(frozen=True, repr=False)
class Nudge(_Judged):
    """The paper's EDM rule: the sample moved by `scale` of its own length along the gradient, see the module.

    classifier: of clean data, called with the noisy points over max(rms, 1) (at alpha = 1) / scale: c_0, a share of
    the root mean square of x, which `nudge_steps` varies / tau, target: as in `EluCD` / std: of the data, for J.
    Where the gradient is zero so is the push. Needs a solver with a fixed grid. Raises as `EluCD`.
    """

    classifier: Callable[[Tensor], Tensor]
    scale: Factor = 0.004
    tau: tuple[float, float] = (1.0, 0.0)
    target: Target = "label"
    std: float = 1.0

    def __post_init__(self) -> None:
        self._check()
        if not (self.std > 0 and math.isfinite(self.std)):
            remedy = "Give the standard deviation of the data, about 0.5 for pixels in [-1, 1]."
            raise RangeError("std of a nudge", got=self.std, expected="> 0 and finite", remedy=remedy)

    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        """See `Direction.push`."""
        x, (alpha, sigma), after = ask.x, ask.level[:2], ask.landing
        size = _rms(x)
        gradient = self._gradient(ask, x / torch.maximum(size, alpha))
        length = _rms(gradient)
        moved = size * gradient / torch.where(length == 0, 1, length)  # not > 0: NaN stays NaN
        # both terms times 1/alpha, since x is alpha times the point they hold for; finite at alpha = 0
        kept = after.sigma / (after.alpha * sigma)
        ratio = alpha * kept
        first = ratio < 1 - _SAME
        held = kept / torch.where(first, 1 - ratio, 1) + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        return self._factor(ask) * torch.where(first, held, 0) * moved, state


def elucd(
    classifier: Callable[[Tensor], Tensor],
    grid: Grid,
    scale: Factor = 1.0,
    *,
    tau: tuple[float, float] = (1.0, 0.5),
    gamma: float = 0.3,
    form: Literal["score", "variance", "even"] = "score",
    target: Target = "label",
    of: Query | str = COND,
    clip: tuple[float, float] | None = None,
) -> Term:
    """EluCD with its schedule: `EluCD(...).when(sine(grid, gamma, form))`. Raises as both."""
    return EluCD(classifier, scale, tau, target, of, clip).when(sine(grid, gamma, form))


def sine(grid: Grid, gamma: float = 0.3, form: Literal["score", "variance", "even"] = "score") -> Schedule:
    r"""The paper's multiplier, stronger in the middle of a run, as a schedule over the noise levels of a falling grid.

    With j = N-1, ..., 0 steps to go, beta and V = (1 - abar_s)/(1 - abar_t) beta of the ancestral step in
    variance-preserving coordinates and V_max the largest V of the grid:

    "score"     1 + gamma (V_max / V) sin(pi j / N)                          the rule for any solver
    "variance"  (V + gamma V_max sin(pi j / N)) sqrt(1 - beta) / beta        ancestral steps, `DDIM(eta=1)`, then move
                                                                             their mean by (V + ...) scale g, as the
                                                                             paper's sampler does
    "even"      1 + gamma sin(pi j / N)                                      without the ratio

    At the last step the sine is zero: the multiplier is 1 where V = 0 would divide, and V sqrt(1 - beta)/beta, that is
    0 at a clean end, for "variance". gamma: >= 0. Raises RangeError, UnknownNameError, or GridError for a rising grid.
    """
    if form not in _FORMS:
        raise unknown_name("form of the schedule", form, _FORMS)
    if not (gamma >= 0 and math.isfinite(gamma)):
        remedy = "0.3 is the paper's, 0 switches the sine off."
        raise RangeError("gamma", got=gamma, expected=">= 0 and finite", remedy=remedy)
    if grid.rising:
        raise GridError("grid of the schedule", got="a rising one", expected="falling times", remedy="Reverse it.")
    levels, n = (2 * grid.lam).tolist(), grid.steps
    steps = [_ancestral(a, b) for a, b in pairwise(levels)]
    most, points = max(v for _, v in steps), []
    for i, (beta, v) in enumerate(steps):
        wave = gamma * math.sin(math.pi * (n - 1 - i) / n)
        if form == "variance":
            factor = (v + most * wave) * math.sqrt(1 - beta) / beta
        else:
            factor = 1 + (wave * (most / v if form == "score" else 1) if wave else 0)
        points.append((levels[i], factor))
    if math.isinf(levels[0]):  # without signal nothing is pushed whatever the factor
        points = points[1:] or [(0.0, points[0][1])]
    return Schedule(tuple(points))


def nudge_steps(steps: int, add: float = 0.3) -> Steps:
    """The paper's schedule of a `Nudge`, c_i / c_0 = max(1 - i/(steps + 1), 1/400) + add sin(pi i / steps)."""
    if steps < 1 or not (add >= 0 and math.isfinite(add)):
        got = (steps, add)
        raise RangeError("schedule of a nudge", got=got, expected="steps >= 1, add >= 0", remedy="Try (18, 0.3).")
    falls = (max(1 - i / (steps + 1), 1 / 400) for i in range(steps))
    return Steps(tuple(c + add * math.sin(math.pi * i / steps) for i, c in enumerate(falls)))


def _ancestral(before: float, after: float) -> tuple[float, float]:
    """beta and V of the ancestral step between two log-SNRs."""
    a, b = (torch.tensor(v, dtype=torch.float64) for v in (before, after))
    beta = -torch.expm1(torch.nn.functional.logsigmoid(a) - torch.nn.functional.logsigmoid(b))
    return float(beta), float(torch.sigmoid(-b) / torch.sigmoid(-a) * beta)


def _rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, laid out over x."""
    return expand(flatten(x).square().mean(1).sqrt(), x)
