r"""Classifier guidance: push towards points that a classifier takes for the wanted class.

By Bayes the score of p(x | y) is that of p(x) plus that of p(y | x), so a model without labels and a classifier make a
conditional model; a scale above 1 sharpens the classifier.

.. math:: \text{push} = \text{scale}\; \frac{\sigma^2}{\alpha}\, \nabla_x \log p(y | \cdot)

========  ============================  ============================  ================================================
on        the classifier sees           gradient                      reference
========  ============================  ============================  ================================================
"noisy"   the noisy points and level    of the classifier alone       Dhariwal & Nichol 2021, arXiv 2105.05233,
                                                                      algorithm 2
"clean"   the predicted clean data      through the denoiser too      Bansal et al. 2023, arXiv 2302.07121 (forward
                                                                      universal guidance)
========  ============================  ============================  ================================================

x, x0: (b, *D) / logits: (b, K), divided by `temperature` / y: labels of the run's condition. The paper's epsilon form,
eps - scale sigma grad log p, is the same push. With the exact noisy posterior, scale 1 and base=NULL the guided
prediction is the conditional one exactly; with base=COND it acts on top of the condition. "clean" shares the row of
whoever asks for the same prediction, as CFG does for the condition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import ConditionError, DTypeError, RangeError, ShapeError, UnsupportedError, unknown_name
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query
from wayfield.guide.roles import State, Step
from wayfield.guide.terms import Direction, Factor, Pushed, check_factor

__all__ = ["ClassifierGuidance"]

_SEES = ("noisy", "clean")


@final
@dataclass(frozen=True)
class ClassifierGuidance(Direction):
    """A push towards the labels of the run's condition, by a classifier's gradient.

    classifier: called as classifier(x, level) for "noisy", with the numbers of a `Level`, each () or (b,), and as
    classifier(x0) for "clean"; returns logits (b, K), K >= 2, row by row / scale: 1 is Bayes' rule; a tuple gives every
    sample its own / on: "noisy" or "clean" / target: the field of the condition that holds the labels; rows with its
    null value are not pushed / temperature: > 0, divides the logits / of: whose clean data are judged for "clean", a
    `Query` or the name of a condition.
    Raises DTypeError, RangeError, UnknownNameError, or UnsupportedError for a module in training mode; at the first
    step ShapeError, ConditionError or RangeError where logits and labels do not fit.
    """

    classifier: Callable[..., Tensor]
    scale: Factor = 1.0
    on: Literal["noisy", "clean"] = "noisy"
    target: str = "label"
    temperature: float = 1.0
    of: Query | str = COND

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_factor("scale of a classifier", self.scale))
        if not callable(self.classifier):
            remedy = "Give a module or a function that returns logits (b, K)."
            raise DTypeError("classifier", got=type(self.classifier).__name__, expected="a function", remedy=remedy)
        if isinstance(self.classifier, nn.Module) and self.classifier.training:
            remedy = "Call classifier.eval() first: dropout and batch norm would mix the samples of a batch."
            raise UnsupportedError("classifier", got="training mode", expected="evaluation mode", remedy=remedy)
        if self.on not in _SEES:
            raise unknown_name("classifier input", self.on, _SEES)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            remedy = "1 leaves the logits as they are, more makes them less sure."
            raise RangeError("temperature", got=self.temperature, expected="> 0 and finite", remedy=remedy)
        if isinstance(self.of, str):
            object.__setattr__(self, "of", Query(self.of))

    def __repr__(self) -> str:
        """With functions by their names: a run is known again, after a restart too, by what it prints."""
        name = getattr(self.classifier, "__qualname__", None) or type(self.classifier).__name__
        rest = ("scale", "on", "target", "temperature", "of")
        return f"ClassifierGuidance({name}, {', '.join(f'{k}={getattr(self, k)!r}' for k in rest)})"

    @property
    def neutral(self) -> bool:
        """At scale 0."""
        return self.scale == 0

    @property
    def needs(self) -> tuple[Query, ...]:
        """For "clean", the prediction that is judged, with its gradient."""
        return (self._query,) if self.on == "clean" else ()

    @property
    def told(self) -> tuple[Query, ...]:
        """The condition, for its labels."""
        return (COND,)

    @property
    def _query(self) -> Query:
        assert isinstance(self.of, Query)
        return self.of._replace(grad=True)

    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        """See `Direction.push`."""
        level = ask.level
        if self.on == "clean":
            seen = (ask(self._query)[0].x0,)
        else:
            seen = ask.leaf, level.map(lambda c: c if c.ndim == 0 else c.reshape(-1))
        with torch.enable_grad():
            log_p = self._log_p(ask, self.classifier(*seen))
        # the gradient is 0 without signal, where 1/alpha would make it NaN
        factor = torch.where(level.alpha > 0, level.sigma**2 / level.alpha, 0)
        scale = ask.column(self.scale) if isinstance(self.scale, tuple) else self.scale
        return scale * factor * ask.pull(log_p), state

    def _log_p(self, ask: Ask, logits: Tensor) -> Tensor:
        """log p(y | .), (b,); 0 where the label says nothing."""
        rows = len(ask.x)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != rows or logits.shape[1] < 2:
            raise ShapeError(
                "classifier output",
                got=tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__,
                expected=f"logits ({rows}, K) with K >= 2",
                remedy="Return one logit for each class, unnormalised.",
            )
        if not logits.requires_grad:
            remedy = "Compute the logits in torch, without detach or no_grad."
            raise UnsupportedError("classifier", got="no gradient", expected="differentiable logits", remedy=remedy)
        null = self._null(ask, logits.shape[1])
        label = ask.binding.cond(COND)[self.target]
        if ask.rows is not None:
            label = label.index_select(0, ask.rows.tensor)
        inside = label.clamp(max=logits.shape[1] - 1)
        log_p = (logits / self.temperature).log_softmax(1).gather(1, inside[:, None])[:, 0]
        return log_p if null is None else torch.where(label == null, 0, log_p)

    def _null(self, ask: Ask, classes: int) -> int | None:
        """The label that means "none"; the check, from facts of the host, that the classifier knows all others."""
        binding = ask.binding
        schema = binding.nets["main"].schema
        if binding.given.get("cond") is None:
            remedy = f"Pass cond={{{self.target!r}: ...}} to sample; with base=NULL it serves the classifier alone."
            raise ConditionError(
                "classifier guidance", got="a run without a condition", expected="labels", remedy=remedy
            )
        if self.target not in schema.fields:
            raise unknown_name("condition field", self.target, schema.fields)
        field, null = schema.fields[self.target], None if schema.null is None else schema.null[self.target]
        if field.values is None or field.shape:
            remedy = "Choose a target that is one integer, with a known number of values."
            raise ConditionError(f"condition {self.target!r}", got=field, expected="class labels", remedy=remedy)
        most = field.values - (null == field.values - 1)
        if most > classes:
            raise RangeError(
                "classes of the classifier",
                got=classes,
                expected=f"{most}, as the model has",
                remedy="Use a classifier of the same labels, in the same order.",
            )
        return null
