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
from torch import Tensor

from wayfield.core.errors import RangeError, UnsupportedError, unknown_name
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query
from wayfield.guide.judged import check_judge, factor_of, flat, judge_name, labels_of, logits_of
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
        check_judge("classifier", self.classifier)
        if self.on not in _SEES:
            raise unknown_name("classifier input", self.on, _SEES)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            remedy = "1 leaves the logits as they are, more makes them less sure."
            raise RangeError("temperature", got=self.temperature, expected="> 0 and finite", remedy=remedy)
        if isinstance(self.of, str):
            object.__setattr__(self, "of", Query(self.of))

    def __repr__(self) -> str:
        """With functions by their names: a run is known again, after a restart too, by what it prints."""
        rest = ("scale", "on", "target", "temperature", "of")
        return (
            f"ClassifierGuidance({judge_name(self.classifier)}, {', '.join(f'{k}={getattr(self, k)!r}' for k in rest)})"
        )

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
        seen = (ask(self._query)[0].x0,) if self.on == "clean" else (ask.leaf, flat(level))
        with torch.enable_grad():
            log_p = self._log_p(ask, logits_of(ask, self.classifier, *seen))
        scale = ask.column(self.scale) if isinstance(self.scale, tuple) else self.scale
        return scale * factor_of(level) * ask.pull(log_p), state

    def _log_p(self, ask: Ask, logits: Tensor) -> Tensor:
        """log p(y | .), (b,); 0 where the label says nothing."""
        if not logits.requires_grad:
            remedy = "Compute the logits in torch, without detach or no_grad."
            raise UnsupportedError("classifier", got="no gradient", expected="differentiable logits", remedy=remedy)
        label, null = labels_of(ask, self.target, logits.shape[1])
        inside = label.clamp(max=logits.shape[1] - 1)
        log_p = (logits / self.temperature).log_softmax(1).gather(1, inside[:, None])[:, 0]
        return log_p if null is None else torch.where(label == null, 0, log_p)
