"""The guidances that every law is tried on: for each, the rows per sample and step it declares, or None where they
vary."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from wayfield.field.binding import COND, NULL, Query
from wayfield.field.denoiser import Level
from wayfield.guide import CFG, Auto, Away, Guidance
from wayfield.guide.adaptive import AG
from wayfield.guide.apg import apg
from wayfield.guide.classifier import ClassifierGuidance
from wayfield.guide.energy import Energy
from wayfield.guide.gates import Interval, Schedule, Stage, Steps
from wayfield.guide.hold import Hold
from wayfield.guide.linear import LinearAG, alternating
from wayfield.guide.policy import policy
from wayfield.guide.rescale import Rescale
from wayfield.guide.terms import Term

STEPS = 8


class Case(NamedTuple):
    """guidance / rows: per sample and step if nothing closes / calls: of a DPM2M run / neutral: the same, switched
    off."""

    guidance: Guidance | Term | None
    rows: int
    calls: int
    neutral: Guidance | Term | None = None


def energy(x0: Tensor) -> Tensor:
    """Distance from a point."""
    return (x0 - 0.5).square().sum(1)


def logits(x0: Tensor) -> Tensor:
    """A classifier of clean data."""
    return torch.stack([-(x0 + 1).square().sum(1), -(x0 - 1).square().sum(1)], 1)


def noisy(x: Tensor, level: Level) -> Tensor:
    """A classifier of noisy points."""
    spread = (level.alpha**2 + level.sigma**2).reshape(-1, 1)
    return logits(x) / spread


HALF = Steps((True, False) * (STEPS // 2))
CASES = {
    "none": Case(None, 1, 8),
    "clip": Case(Guidance(CFG(3.0), clip=(-1.0, 1.0)), 2, 8, Guidance(CFG(1.0), clip=(-100.0, 100.0))),
    "cfg": Case(CFG(3.0), 2, 8, CFG(1.0)),
    "cfg w=0": Case(CFG(0.0), 1, 8),
    "cfg per sample": Case(CFG((1.0, 2.0, 3.0, 4.0, 5.0)), 2, 8, CFG((1.0,) * 5)),
    "cfg++": Case(Guidance(CFG(0.6), noise=NULL), 2, 8),
    "negative": Case(CFG(3.0, "negative"), 2, 8, CFG(1.0, "negative")),
    "two conditions": Case(CFG(2.0) + 0.5 * Away("negative", of="null"), 3, 8, CFG(1.0) + 0 * Away("negative")),
    "auto": Case(Auto(2.0), 2, 16, Auto(1.0)),
    "and": Case(Guidance(2 * Away(NULL) - 0.5 * Away(NULL, of="negative"), base=NULL), 3, 8),
    "interval": Case(CFG(3.0).when(Interval(high=2.0)), 2, 8, CFG(3.0).when(Interval(high=-90.0))),
    "schedule": Case(CFG(3.0).when(Schedule(((-6.0, 0.2), (6.0, 1.0)))), 2, 8, CFG(3.0).when(Schedule(((0.0, 0.0),)))),
    "steps": Case(CFG(3.0).when(HALF), 2, 8, CFG(3.0).when(Steps((False,) * STEPS))),
    "stage": Case(CFG(3.0).when(Stage(0)), 2, 8, CFG(3.0).when(Stage(5))),
    "sum": Case(CFG(3.0) + Auto(2.0).when(HALF), 3, 12, CFG(1.0) + Auto(1.0)),
    "versus": Case(CFG(3.0).versus("weak", 1.6), 4, 16, CFG(1.0).versus("weak", 1.0)),
    "versus base": Case(Away(Query("cond", "weak"), of=COND).versus("weak", 1.0), 2, 16),
    "apg": Case(apg(4.0, r=0.5, beta=-0.5), 2, 8, apg(1.0, r=0.5, beta=-0.5)),
    "rescaled": Case(CFG(4.0).through(Rescale(0.7)), 2, 8, CFG(1.0).through(Rescale(0.7))),
    "energy": Case(Energy(energy, 0.1), 1, 8, Energy(energy, 0.0)),
    "energy beside": Case(CFG(2.0) + Energy(energy, 0.1, "gaussian", 0.5), 2, 8, CFG(1.0) + Energy(energy, 0.0)),
    "classifier": Case(CFG(2.0) + ClassifierGuidance(logits, 0.5, "clean"), 2, 16, ClassifierGuidance(logits, 0.0)),
    "noisy classifier": Case(Guidance(ClassifierGuidance(noisy, 0.5), base=NULL), 1, 8),
    "ag": Case(CFG(3.0).when(AG(0.95)), 2, 8, CFG(3.0).when(AG(0.95)).when(Interval(high=-90.0))),
    "ag over apg": Case(apg(4.0, beta=-0.5).when(AG(0.95, min_steps=2)), 2, 8, apg(1.0).when(AG(0.95))),
    "hold": Case(Guidance(CFG(3.0), sources=(Hold(AG(0.95)),)), 2, 8),
    "extrapolate": Case(Guidance(CFG(3.0), sources=(Hold(HALF, 1),)), 2, 8),
    "linear": Case(Guidance(CFG(3.0), sources=(LinearAG.hold(alternating(STEPS)),)), 2, 8),
    "policy": Case(policy((3.0, 0.0, 1.0, 2.0) * (STEPS // 4)), 2, 8, policy((1.0,) * STEPS)),
}
"""Every part of the library in at least one guidance."""

FUNCTIONS: dict[str, Any] = {"energy": energy, "logits": logits, "noisy": noisy}
"""Functions that guidances hold, by the names under which they are kept."""
