r"""Guidance by any differentiable judge of noisy points: labels, masks, depths, or a loss of one's own.

A plain model and a network that reads pictures make a steered model, if that network can read noisy ones. With a loss L
of its answer against what is wanted, exp(-scale L) multiplies the density of noisy points, and

.. math:: \text{push} = -\,\text{scale}\; \frac{\sigma^2}{\alpha}\, g, \qquad g = \nabla_x L(f(x, \text{level}),\, y)

No gradient goes through the denoiser and no row is added to it. What makes a clean network f fit for noisy points are
the experts of `wayfield.judge`: one small adapter for each range of levels, trained without labels or real data.

===========  =====================================  ==================================================================
objective    L, a mean over the places P            answers f (b, ...) and what is wanted y (b, ...)
===========  =====================================  ==================================================================
"labels"     -log softmax(f)_y                      logits (b, K, *P) and classes (b, *P): a mask, or one label
"squares"    (f - y)^2                              numbers (b, *P) twice: depth, brightness, an embedding
a function   its own                                what it takes; returns (b,)
===========  =====================================  ==================================================================

normalise="sample" pushes by a length that does not depend on how steep L is. With points and scales brought to
alpha^2 + sigma^2 = 1, marked by bars, and norms of each sample,

.. math:: \text{push} = -\,\text{scale}\; \frac{\bar\sigma^2}{\bar\alpha}\, \|\bar x\|\, \frac{g}{\|g\|}

x: (b, *D) / y: a field of the run's condition, or numbers given here. For one label out of the run's condition,
`ClassifierGuidance(experts, scale)` does the same and knows the model's classes; there scale 1 is Bayes' rule. Here L
is a mean, so that a scale fits every resolution; independent places would take scale = their number for Bayes' rule.

Reference: Go et al. 2022, arXiv 2212.05973 (PPAP). Its code normalises by the norm of g over the whole batch and of the
first sample's step mean, for which the points themselves stand here, since a mean belongs to one solver.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from wayfield.core.errors import (
    ConditionError,
    DeviceError,
    DTypeError,
    RangeError,
    ShapeError,
    UnsupportedError,
    unknown_name,
)
from wayfield.core.shapes import expand, norm
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query
from wayfield.guide.judged import check_device, check_judge, factor_of, flat, judge_name
from wayfield.guide.roles import State, Step
from wayfield.guide.terms import Direction, Factor, Pushed, check_factor

__all__ = ["JudgeGuidance"]

Numbers = tuple[Any, ...]
Objective = Literal["labels", "squares"] | Callable[[Tensor, Tensor], Tensor]


def _labels(out: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross entropy of each sample, (b,)."""
    return F.cross_entropy(out, wanted, reduction="none").reshape(len(out), -1).mean(1)


def _squares(out: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of each sample, (b,)."""
    return (out - wanted).square().reshape(len(out), -1).mean(1)


_OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"labels": _labels, "squares": _squares}
_NORMS = (None, "sample")


@final
@dataclass(frozen=True)
class JudgeGuidance(Direction):
    """A push towards points of which a judge says what is wanted.

    judge: called as judge(x, level) with noisy points and scales () or (b,); returns (b, ...), row by row / objective:
    "labels", "squares" or a function (answers, wanted) -> (b,), each of its own sample alone / target: what is wanted,
    the name of a field of the run's condition, of which rows with its null value are not pushed; or numbers (1, ...)
    for all samples, or (B, ...), one entry for each (not with adaptive solvers); kept as tuples / scale: of the
    gradient; a tuple gives every sample its own / normalise: None, or "sample" for a push of fixed length.
    Raises DTypeError, RangeError, ShapeError or UnknownNameError, or UnsupportedError for a module in training mode; at
    the first step ShapeError, DeviceError, ConditionError or RangeError where answers and target do not fit.
    """

    judge: Callable[..., Tensor]
    objective: Objective
    target: str | Numbers | Tensor
    scale: Factor = 7.5
    normalise: Literal["sample"] | None = None

    def __post_init__(self) -> None:
        check_judge("judge", self.judge)
        if isinstance(self.objective, str) and self.objective not in _OBJECTIVES:
            raise unknown_name("objective", self.objective, _OBJECTIVES)
        if not isinstance(self.objective, str):
            check_judge("objective", self.objective)
        if self.normalise not in _NORMS:
            raise unknown_name("normalise", str(self.normalise), ("sample",))
        object.__setattr__(self, "scale", check_factor("scale of a judge", self.scale))
        if not isinstance(self.target, str):
            object.__setattr__(self, "target", _kept(self.target, classes=self.objective == "labels"))
            _ = self._numbers, self._classes  # made here: compiled steps only read them
            object.__setattr__(self, "remembers", len(self._numbers) > 1)

    def __repr__(self) -> str:
        """With functions by their names, and numbers by their shape and a digest: a run is known again by it."""
        objective = self.objective if isinstance(self.objective, str) else judge_name(self.objective)
        digest = hashlib.sha256(repr(self.target).encode()).hexdigest()[:8]
        shown = repr(self.target) if isinstance(self.target, str) else f"<{tuple(self._numbers.shape)} {digest}>"
        rest = f"target={shown}, scale={self.scale!r}, normalise={self.normalise!r}"
        return f"JudgeGuidance({judge_name(self.judge)}, {objective!r}, {rest})"

    @property
    def neutral(self) -> bool:
        """At scale 0."""
        return self.scale == 0

    @property
    def told(self) -> tuple[Query, ...]:
        """The condition, if it holds what is wanted."""
        return (COND,) if isinstance(self.target, str) else ()

    @cached_property
    def _numbers(self) -> Tensor:
        """The target's numbers (B, ...) or (1, ...), on the host; int64 or float64."""
        numbers = torch.tensor(self.target)
        return torch.tensor(self.target, dtype=torch.float64) if numbers.is_floating_point() else numbers

    @cached_property
    def _classes(self) -> int:
        """How many classes the target's numbers speak of."""
        return int(self._numbers.max()) + 1

    def init(self, x: Tensor, n: int) -> State:
        """What is wanted of each sample (B, ...): as state it follows the samples through gates and checkpoints."""
        if not self.remembers:
            return ()
        if len(self._numbers) != len(x):
            remedy = "Give one entry for each sample of the run, or a single one for all."
            raise ShapeError("entries of a target", got=len(self._numbers), expected=len(x), remedy=remedy)
        return (_like(self._numbers, x),)

    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        """See `Direction.push`."""
        level = ask.level
        check_device("judge", self.judge, ask.x)
        with torch.enable_grad():
            out = _answer(ask, self.judge(ask.leaf, flat(level)))
            wanted, said = self._wanted(ask, out, state)
            loss = self._loss(out, wanted)
            grad = ask.pull(loss if said is None else torch.where(said, loss, 0))
        factor = factor_of(level)
        if self.normalise is not None:
            # the factor is that of scales on the unit circle, where the points have length |x| / size
            size = torch.hypot(level.alpha, level.sigma)
            length = expand(norm(grad), grad)
            grad = torch.where(length > 0, grad / length, grad) * expand(norm(ask.x), grad) / size**2
        scale = ask.column(self.scale) if isinstance(self.scale, tuple) else self.scale
        return -scale * factor * grad, state

    def _loss(self, out: Tensor, wanted: Tensor) -> Tensor:
        """L of each sample, (b,)."""
        if isinstance(self.objective, str):
            _check_fit(self.objective, out, wanted)
            loss = _OBJECTIVES[self.objective](
                out, wanted.long() if self.objective == "labels" else wanted.to(out.dtype)
            )
        else:
            loss = self.objective(out, wanted)
        if not isinstance(loss, Tensor) or loss.shape != (len(out),):
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            remedy = "Sum or average over all axes but the first."
            raise ShapeError("objective", got=got, expected=f"({len(out)},), one for each sample", remedy=remedy)
        if not loss.requires_grad:
            remedy = "Compute answers and objective in torch, without detach, no_grad or rounding."
            raise UnsupportedError("judge", got="no gradient", expected="differentiable answers", remedy=remedy)
        return loss

    def _wanted(self, ask: Ask, out: Tensor, state: State) -> tuple[Tensor, Tensor | None]:
        """What is wanted at this view's rows (b, ...), and which rows say so (b,), None for all."""
        if not isinstance(self.target, str):
            if self.objective == "labels":
                _check_classes(self._classes, out)
            numbers = state[0] if state else _like(self._numbers, out)
            return numbers.expand(len(out), *numbers.shape[1:]), None
        binding = ask.binding
        schema = binding.nets["main"].schema
        if binding.given.get("cond") is None:
            got, remedy = "a run without a condition", f"Pass cond={{{self.target!r}: ...}} to sample, or numbers here."
            raise ConditionError("guidance by a judge", got=got, expected=f"{self.target!r}", remedy=remedy)
        if self.target not in schema.fields:
            raise unknown_name("condition field", self.target, schema.fields)
        kind, wanted, said = schema.fields[self.target], binding.cond(COND)[self.target], None
        wanted = wanted if ask.rows is None else wanted.index_select(0, ask.rows.tensor)
        null = None if schema.null is None else schema.null[self.target]
        if null is not None:
            said = (wanted != kind.spread(null, 1, wanted.device)).reshape(len(wanted), -1).any(1)
        if self.objective == "labels":
            if kind.values is not None:
                _check_classes(kind.values - (null == kind.values - 1), out)
            wanted = wanted.clamp(max=out.shape[1] - 1)  # the null label may be one too many
        return wanted, said


def _like(numbers: Tensor, x: Tensor) -> Tensor:
    """Numbers on the device of x; those that are not whole in its type."""
    return (numbers.to(x.dtype) if numbers.is_floating_point() else numbers).to(x.device)


def _answer(ask: Ask, out: Any) -> Tensor:
    rows = len(ask.x)
    if not isinstance(out, Tensor) or not out.ndim or len(out) != rows:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        remedy = "Return one answer for each row."
        raise ShapeError("judge output", got=got, expected=f"({rows}, ...)", remedy=remedy)
    if out.device != ask.x.device:
        remedy = f"Move it with .to({str(ask.x.device)!r})."
        raise DeviceError("judge", got=out.device, expected=f"{ask.x.device}, like the points", remedy=remedy)
    return out


def _check_fit(objective: str, out: Tensor, wanted: Tensor) -> None:
    labels = objective == "labels"
    fits = out.ndim >= 2 and out.shape[1] >= 2 and wanted.shape == (len(out), *out.shape[2:])
    if not (fits if labels else wanted.shape == out.shape):
        got = f"answers {tuple(out.shape)}, target {tuple(wanted.shape)}"
        expected = "(b, K, *P) with K >= 2, and (b, *P)" if labels else "equal shapes"
        remedy = "A mask has one class for each place; a target for all samples has a first axis of 1."
        raise ShapeError(f"objective {objective!r}", got=got, expected=expected, remedy=remedy)
    if labels and wanted.is_floating_point():
        raise DTypeError("target of 'labels'", got=wanted.dtype, expected="whole numbers", remedy="Give class numbers.")


def _check_classes(most: int, out: Tensor) -> None:
    classes = out.shape[1] if out.ndim > 1 else 0
    if most > classes:
        remedy = "Use a judge of the same labels, in the same order."
        raise RangeError("classes of the judge", got=classes, expected=f"{most}, as are asked for", remedy=remedy)


def _kept(target: Any, *, classes: bool) -> tuple[Any, ...]:
    """Numbers as nested tuples. classes: whether they must be class numbers. Raises DTypeError, ShapeError or
    RangeError.
    """
    try:
        numbers = torch.as_tensor(target)
        if numbers.is_floating_point() and not isinstance(target, Tensor):
            numbers = torch.as_tensor(target, dtype=torch.float64)  # as they were written
    except (TypeError, ValueError, RuntimeError) as error:
        remedy = "Give a tensor or nested tuples of numbers, or the name of a field."
        raise DTypeError("target", got=type(target).__name__, expected="numbers", remedy=remedy) from error
    if not numbers.ndim or not numbers.numel():
        remedy = "Its first axis counts samples; 1 serves all."
        raise ShapeError("target", got=tuple(numbers.shape), expected="(B, ...) or (1, ...)", remedy=remedy)
    if not bool(numbers.isfinite().all()):
        raise RangeError("target", got="NaN or infinity", expected="finite numbers", remedy="Check where it is from.")
    if classes and numbers.is_floating_point():
        raise DTypeError(
            "target of 'labels'", got=numbers.dtype, expected="whole numbers", remedy="Give class numbers."
        )
    if classes and int(numbers.min()) < 0:
        raise RangeError("target of 'labels'", got=int(numbers.min()), expected=">= 0", remedy="Classes count from 0.")
    return _tuples((numbers.long() if numbers.dtype == torch.bool else numbers).tolist())


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
