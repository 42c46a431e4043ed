"""Judges: networks outside of the generative model that steer it, their one trainer, and how far they can be trusted.

A judge is any callable judge(x, level) -> (b, K) or (b,) of noisy points, or judge(x0) of clean data; row by row.
"""

from wayfield.judge.calibration import (
    IntegralECE,
    Reliability,
    ece,
    fit_temperature,
    fit_temperatures,
    integral_ece,
    logits_at,
    reliability,
)
from wayfield.judge.evaluators import Evaluator, Seen, area, measure, train_evaluator
from wayfield.judge.experts import Experts, NoiseRanges
from wayfield.judge.heads import Captions, Labels, Preference, Rating, Realism
from wayfield.judge.lora import Adapter, LoRA
from wayfield.judge.nets import MLPJudge, PictureJudge
from wayfield.judge.noisy import Blind, Noisy, Scaled
from wayfield.judge.smooth import accuracy_drop, smooth_activations
from wayfield.judge.training import train_judge
from wayfield.judge.transfer import (
    class_shares,
    kt_classification,
    kt_regression,
    kt_segmentation,
    pixels,
    stored,
    transfer,
)

__all__ = [
    "Evaluator",
    "Seen",
    "area",
    "measure",
    "train_evaluator",
    "Experts",
    "NoiseRanges",
    "Captions",
    "Labels",
    "Preference",
    "Rating",
    "Realism",
    "Adapter",
    "LoRA",
    "class_shares",
    "kt_classification",
    "kt_regression",
    "kt_segmentation",
    "pixels",
    "stored",
    "transfer",
    "Blind",
    "IntegralECE",
    "MLPJudge",
    "Noisy",
    "PictureJudge",
    "Reliability",
    "Scaled",
    "accuracy_drop",
    "ece",
    "fit_temperature",
    "fit_temperatures",
    "integral_ece",
    "logits_at",
    "reliability",
    "smooth_activations",
    "train_judge",
]
