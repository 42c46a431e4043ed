"""Guidance: how the answers of one or several networks become the prediction that a solver follows."""

from wayfield.field.binding import COND, NULL, Query
from wayfield.guide.adaptive import AG
from wayfield.guide.apg import APG, apg, apg_preset
from wayfield.guide.classifier import ClassifierGuidance
from wayfield.guide.compose import compose
from wayfield.guide.contrast import CFG, Auto, Away
from wayfield.guide.dynamic import Greedy, dynamic_cfg
from wayfield.guide.elucd import EluCD, Nudge, elucd
from wayfield.guide.energy import Energy
from wayfield.guide.expression import parse_guidance
from wayfield.guide.frequency import Bands, fdg
from wayfield.guide.gates import Interval, Schedule, Stage, Steps
from wayfield.guide.gfcg import GFCG
from wayfield.guide.guidance import PLAIN, Guidance
from wayfield.guide.handover import handover
from wayfield.guide.hold import Hold
from wayfield.guide.linear import LinearAG
from wayfield.guide.magnitude import MagnitudeAware, mambo
from wayfield.guide.nasa import NASA, NegativeAttention, negative
from wayfield.guide.pag import PAG, PerturbedAttention
from wayfield.guide.policy import policy
from wayfield.guide.ppap import JudgeGuidance
from wayfield.guide.rescale import Rescale
from wayfield.guide.rlg import RLG, rlg
from wayfield.guide.seg import SEG, SmoothedAttention
from wayfield.guide.slg import SLG, SkipLayers
from wayfield.guide.tangential import Tangential, tcfg
from wayfield.guide.window import Window
from wayfield.guide.zero_star import OptimalScale, Still, zero_star

__all__ = [
    "Bands",
    "fdg",
    "handover",
    "MagnitudeAware",
    "mambo",
    "Tangential",
    "tcfg",
    "Window",
    "OptimalScale",
    "Still",
    "zero_star",
    "NASA",
    "NegativeAttention",
    "negative",
    "PAG",
    "PerturbedAttention",
    "SEG",
    "SmoothedAttention",
    "SLG",
    "SkipLayers",
    "AG",
    "APG",
    "CFG",
    "COND",
    "NULL",
    "PLAIN",
    "Auto",
    "Away",
    "ClassifierGuidance",
    "Energy",
    "Guidance",
    "Hold",
    "Interval",
    "LinearAG",
    "Query",
    "Rescale",
    "Schedule",
    "Stage",
    "Steps",
    "apg",
    "apg_preset",
    "compose",
    "parse_guidance",
    "policy",
    "Greedy",
    "dynamic_cfg",
    "EluCD",
    "Nudge",
    "elucd",
    "GFCG",
    "JudgeGuidance",
    "RLG",
    "rlg",
]
