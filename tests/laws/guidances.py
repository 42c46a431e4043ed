"""The guidances that every law is tried on: for each, the rows per sample and step it declares, or None where they
vary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wayfield.field.binding import COND, NULL, Query
from wayfield.field.denoiser import Landing, Level
from wayfield.guide import CFG, Auto, Away, Guidance
from wayfield.guide.adaptive import AG
from wayfield.guide.apg import APG, apg
from wayfield.guide.classifier import ClassifierGuidance
from wayfield.guide.dynamic import Greedy, dynamic_cfg
from wayfield.guide.elucd import EluCD, Nudge
from wayfield.guide.energy import Energy
from wayfield.guide.frequency import fdg
from wayfield.guide.gates import Interval, Schedule, Stage, Steps
from wayfield.guide.gfcg import GFCG
from wayfield.guide.handover import handover
from wayfield.guide.hold import Hold
from wayfield.guide.linear import LinearAG, alternating
from wayfield.guide.magnitude import mambo
from wayfield.guide.nasa import NASA
from wayfield.guide.pag import PAG
from wayfield.guide.policy import policy
from wayfield.guide.ppap import JudgeGuidance
from wayfield.guide.rescale import Rescale
from wayfield.guide.rlg import RLG, rlg
from wayfield.guide.seg import SEG
from wayfield.guide.slg import SLG
from wayfield.guide.tangential import tcfg
from wayfield.guide.terms import Term
from wayfield.guide.window import Window
from wayfield.guide.zero_star import zero_star

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


def three(x0: Tensor) -> Tensor:
    """A classifier of three classes, the last of which means "none"."""
    return torch.cat([logits(x0), -x0.square().sum(1, keepdim=True)], 1)


def near(x: Tensor, level: Landing, cond: Mapping[str, Tensor]) -> Tensor:
    """An evaluator of landings: how near they are to what the label wants."""
    return -(x - level.alpha * (2.0 * cond["label"][:, None] - 1)).square().sum(1)


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
    "elucd": Case(CFG(2.0) + EluCD(logits, 0.3), 2, 8, EluCD(logits, 0.0)),
    "nudge": Case(Nudge(logits, 0.05), 1, 8, Nudge(logits, 0.0)),
    "gfcg": Case(GFCG(logits, 4.0), 2, 16, GFCG(logits, 1.0)),
    "gfcg on cfg": Case(CFG(2.0) + GFCG(noisy, 4.0, on="noisy", confusion="ratio"), 3, 16),
    "gfcg mix": Case(GFCG(three, 4.0, reference="mix", classes={"label": (0, 1, 2)}), 3, 24),
    "gfcg swap": Case(GFCG(logits, confusion=0.5, combine="swap", w=2.0, other=Query("cond", "weak")), 2, 16),
    "gfcg previous": Case(GFCG(logits, 4.0, on="previous").when(HALF), 2, 12),
    "judge": Case(JudgeGuidance(noisy, "labels", "label", 0.5), 1, 8, JudgeGuidance(noisy, "labels", "label", 0.0)),
    "judge normalised": Case(JudgeGuidance(noisy, "squares", ((1.0, -1.0),), 0.1, "sample"), 1, 8),
    "dynamic": Case(dynamic_cfg({"near": near}), 2, 8, dynamic_cfg({"near": near}, (1.0,), 1.0)),
    "dynamic apg": Case(Away().through(APG(beta=-0.5)).through(Greedy((("near", near),))).when(AG(0.97)), 2, 8),
    "zero star": Case(zero_star(3.0, 2), 2, 8, zero_star(1.0, 0)),
    "zero star per sample": Case(
        zero_star((1.0, 2.0, 3.0, 4.0, 5.0), 0.2, unit="share"), 2, 8, zero_star((1.0,) * 5, 0)
    ),
    "tcfg": Case(tcfg(4.0), 2, 8, tcfg(1.0)),
    "tcfg in eps": Case(tcfg(3.0, space="eps").when(Window(0.1, 0.8, "share")), 2, 8, tcfg(3.0).when(Window(0, 0))),
    "mambo": Case(mambo(6.0, 2.0), 2, 8, mambo(1.0)),
    "fdg": Case(fdg((4.0, 2.0), axes=(-1,)), 2, 8, fdg((1.0, 1.0), axes=(-1,))),
    "handover": Case(handover(CFG(2.0), apg(4.0, r=0.5, beta=-0.5), 3), 2, 8, handover(CFG(1.0), apg(1.0), 3)),
    "pag": Case(CFG(2.0) + PAG(1.5, "negative"), 3, 8, PAG(0.0, "negative")),
    "slg": Case(SLG(1.5, "negative").when(HALF), 2, 8, SLG(0.0, "negative")),
    "seg per sample": Case(SEG((0.5, 1.0, 1.5, 2.0, 2.5), "negative"), 2, 8, SEG((0.0,) * 5, "negative")),
    "nasa": Case(NASA(0.5, "negative"), 2, 8, NASA(0.0, "negative")),
    "rlg": Case(rlg(1.6, "weak"), 2, 16, rlg(0.0, "weak")),
    "rlg of cfg": Case(rlg(1.6, "weak", CFG(2.0), warmup=2), 4, 14),
    "rlg term": Case(RLG(1.6, "weak").when(Interval(high=2.0)) + CFG(2.0), 3, 14),
}
"""Every part of the library in at least one guidance."""

FUNCTIONS: dict[str, Any] = {"energy": energy, "logits": logits, "near": near, "noisy": noisy, "three": three}
"""Functions that guidances hold, by the names under which they are kept."""
