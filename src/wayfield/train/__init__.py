"""Floor 2: training. Losses and levels for any path and kind, averages of weights, one loop that resumes to the bit."""

from wayfield.train.config import TrainConfig, learning_rate
from wayfield.train.ema import EMA, Average, HalfLifeEMA, PowerEMA
from wayfield.train.levels import Levels, LogitNormal, LogNormal, Shifted, Uniform
from wayfield.train.loop import Fit, fit
from wayfield.train.losses import Weight, denoising_loss, drop_labels
from wayfield.train.posthoc import Snapshot, read_snapshots, synthesise
from wayfield.train.run import setup, train
from wayfield.train.spec import denoiser_from, denoiser_spec
from wayfield.train.task import Classifying, Denoising, Task

__all__ = [
    "EMA",
    "Average",
    "Classifying",
    "Denoising",
    "Fit",
    "HalfLifeEMA",
    "Levels",
    "LogNormal",
    "LogitNormal",
    "PowerEMA",
    "Shifted",
    "Snapshot",
    "Task",
    "TrainConfig",
    "Uniform",
    "Weight",
    "denoiser_from",
    "denoiser_spec",
    "denoising_loss",
    "drop_labels",
    "fit",
    "learning_rate",
    "read_snapshots",
    "setup",
    "synthesise",
    "train",
]
