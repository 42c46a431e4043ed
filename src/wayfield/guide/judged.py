r"""What all steering by judges shares: a judge is checked once, its labels and logits at every point.

A judge is a callable or a module: judge(x, level) for noisy points x (b, *D) at scales level.alpha and level.sigma,
each () or (b,); judge(x0) for clean data. It answers row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wayfield.core.errors import (
    ConditionError,
    DeviceError,
    DTypeError,
    RangeError,
    ShapeError,
    UnsupportedError,
    unknown_name,
)
from wayfield.field.ask import Ask
from wayfield.field.binding import COND
from wayfield.field.denoiser import Level

__all__ = ["check_device", "check_judge", "factor_of", "flat", "judge_name", "labels_of", "logits_of"]


def check_judge(what: str, judge: Any) -> None:
    """Refuse what cannot be called (DTypeError), and a module in training mode (UnsupportedError)."""
    if not callable(judge):
        remedy = "Give a module or a function that answers row by row."
        raise DTypeError(what, got=type(judge).__name__, expected="a function", remedy=remedy)
    if isinstance(judge, nn.Module) and judge.training:
        remedy = f"Call {what}.eval() first: dropout and batch norm would mix the samples of a batch."
        raise UnsupportedError(what, got="training mode", expected="evaluation mode", remedy=remedy)


def check_device(what: str, judge: Any, x: Tensor) -> None:
    """Refuse a module whose weights are not where the points are (DeviceError)."""
    weight = next(judge.parameters(), None) if isinstance(judge, nn.Module) else None
    if weight is not None and weight.device != x.device:
        remedy = f"Move it with .to({str(x.device)!r})."
        raise DeviceError(what, got=weight.device, expected=f"{x.device}, like the points", remedy=remedy)


def judge_name(judge: Any) -> str:
    """Its name in a repr: a run is known again, after a restart too, by what it prints."""
    return getattr(judge, "__qualname__", None) or type(judge).__name__


def labels_of(ask: Ask, field: str, classes: int, who: str = "classifier guidance") -> tuple[Tensor, int | None]:
    """Labels (b,) of the run's condition at this view's rows, and the label that means "none".

    classes: that the judge knows / who: asks. Raises ConditionError for a run without labels, UnknownNameError for
    another field, RangeError for a judge of fewer classes than the model has; all from facts of the host.
    """
    binding = ask.binding
    schema = binding.nets["main"].schema
    if binding.given.get("cond") is None:
        remedy = f"Pass cond={{{field!r}: ...}} to sample; with base=NULL it serves the judge alone."
        raise ConditionError(who, got="a run without a condition", expected="labels", remedy=remedy)
    if field not in schema.fields:
        raise unknown_name("condition field", field, schema.fields)
    kind, null = schema.fields[field], None if schema.null is None else schema.null[field]
    if kind.values is None or kind.shape:
        remedy = "Choose a field that is one integer, with a known number of values."
        raise ConditionError(f"condition {field!r}", got=kind, expected="class labels", remedy=remedy)
    most = kind.values - (null == kind.values - 1)
    if most > classes:
        raise RangeError(
            "classes of the classifier",
            got=classes,
            expected=f"{most}, as the model has",
            remedy="Use a classifier of the same labels, in the same order.",
        )
    label = binding.cond(COND)[field]
    return (label if ask.rows is None else label.index_select(0, ask.rows.tensor)), null


def logits_of(ask: Ask, judge: Callable[..., Tensor], *seen: Any, what: str = "classifier") -> Tensor:
    """What a classifier says of this view's points, (b, K). Raises ShapeError, or DeviceError for another device."""
    check_device(what, judge, ask.x)
    logits, rows = judge(*seen), len(ask.x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows or logits.shape[1] < 2:
        raise ShapeError(
            f"{what} output",
            got=tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__,
            expected=f"logits ({rows}, K) with K >= 2",
            remedy="Return one logit for each class, unnormalised.",
        )
    if logits.device != ask.x.device:
        remedy = f"Move it with .to({str(ask.x.device)!r})."
        raise DeviceError(what, got=logits.device, expected=f"{ask.x.device}, like the points", remedy=remedy)
    return logits


def factor_of(level: Level) -> Tensor:
    """sigma^2 / alpha, which turns a gradient of log p into a push on x0; 0 without signal, where the gradient is 0."""
    return torch.where(level.alpha > 0, level.sigma**2 / level.alpha, 0)


def flat(level: Level) -> Level:
    """The level with numbers () or (b,), as judges take them, from one that is laid out over the points."""
    return level.map(lambda c: c if c.ndim == 0 else c.reshape(-1))
