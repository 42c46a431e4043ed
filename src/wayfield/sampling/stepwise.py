"""Guidance in a loop that is not ours: it says which branches it wants, somebody else evaluates them, it takes the
answers.

The plan of a step is that of `sample`, and the same terms are called, on a network that only says what it was told. A
branch is evaluated for all samples or for none; rows are taken from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import ShapeError, UnsupportedError
from wayfield.core.path import Path
from wayfield.core.predict import Kind
from wayfield.field.batching import Batching
from wayfield.field.binding import COND, NULL, Binding, Query
from wayfield.field.denoiser import Denoiser, Level
from wayfield.guide.guidance import At, Guidance, Steering
from wayfield.guide.planner import Planner
from wayfield.guide.roles import State, Step

__all__ = ["Planned", "Stepwise", "wide"]


class Planned(NamedTuple):
    """One step, decided. asked: the branches to evaluate, in order / time: on the path, ()."""

    asked: tuple[Query, ...]
    plan: Steering
    step: Step
    time: Tensor
    binding: Binding

    @property
    def linear(self) -> bool:
        """Whether the guided answer is a weighted sum of answers, for which nobody need know the points."""
        return self.plan.blend is not None


@final
class _Told(nn.Module):
    """A network that says what another has said: branches in order, each for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.known: Tensor | None = None

    def forward(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """The known answers, once. Raises UnsupportedError for questions that were not declared."""
        known, self.known = self.known, None
        if known is None or len(known) != len(x):
            got, remedy = (
                "a part that asks for what it did not declare",
                "Name all queries in `needs`, or use `sample`.",
            )
            raise UnsupportedError("guidance step by step", got=got, expected="declared queries", remedy=remedy)
        return known


@final
class Stepwise:
    """One run after another of a guidance whose network is called by others.

    rule: with one network and without gradients / path, kind: as of a `Denoiser` / order: of the branches, those
    conditions that may be asked for.
    """

    def __init__(self, rule: Guidance, path: Path, kind: Kind | str) -> None:
        self.rule, self._told = rule, _Told()
        self.order = tuple(sorted(rule.queries, key=lambda q: q != COND))
        self.model = Denoiser(self._told, path, kind)
        self._planner: Planner | None = None
        self._memory: State | None = None

    def reset(self) -> None:
        """Forget the run: another one begins."""
        self._planner = self._memory = None

    def decide(self, i: int, n: int, time: Tensor, rows: int, like: Tensor) -> Planned:
        """What step i of n asks for, of so many rows. time: on the path, () float64 / like: a tensor of the type and
        place of the points. Raises UnsupportedError for a memory that begins later than step 0.
        """
        step = Step(i, n, 0, float(self.model.path.log_snr(time)), i == n - 1)
        # nothing but their number is known of the points yet; what is decided from them is, at the first step, the same
        points = torch.zeros(rows, 2, 2, 2, 2, dtype=wide(like.dtype), device=like.device)
        given = {q.cond: {} for q in self.order if q != NULL}
        binding = Binding({"main": self.model}, given, rows, like.device, Batching())
        if self._planner is None:
            if i and any(part.remembers for part in self.rule.parts):
                got, remedy = f"a run that begins at step {i}", "Let it see every step."
                raise UnsupportedError("guidance with a memory", got=got, expected="step 0", remedy=remedy)
            self._planner = Planner(self.rule.rows, self.rule.base, points)
        state = self.rule.init(points, n) if self._memory is None else self._memory
        plan = self.rule.plan(self._planner, step, state, binding, points)
        wanted = {q for calls in plan.calls for call in calls for q, _ in call.wants}
        return Planned(tuple([q for q in self.order if q in wanted]), plan, step, time, binding)

    def level(self, now: Planned, like: Tensor) -> Level:
        """The numbers of the step's level, to compute in for answers like these."""
        return self.model.level(now.time, dtype=wide(like.dtype), device=like.device)

    def finish(self, now: Planned, answers: Sequence[Tensor], x: Tensor) -> Tensor:
        """The guided answer (B, *D). answers: of the branches, (B, *D) each / x: the points (B, *D) in a type no
        narrower than float32; zeros serve where the step is linear. Raises ShapeError for another number of rows.
        """
        if len(x) != now.binding.batch:
            remedy = "The first input of the guider must have the samples as its first axis."
            raise ShapeError("answers", got=f"{len(x)} rows", expected=f"{now.binding.batch}", remedy=remedy)
        state = self.rule.init(x, now.step.n) if self._memory is None else self._memory
        self._told.known = torch.cat([y.to(x.dtype) for y in answers])
        calls = (now.binding.layout(tuple([(q, None) for q in now.asked]), x),)
        plan, level = now.plan._replace(calls=calls, blend=None), self.level(now, x)
        pred, self._memory, *_ = self.rule(now.binding, x, At({"main": level}), now.step, state, plan)
        return level.express(pred.x0, x, "native")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type to compute in."""
    return torch.promote_types(dtype, torch.float32)
