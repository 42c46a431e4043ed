"""Somebody who follows a training: is told what begins, and is handed the averaged network now and then to draw from.

The loop stands below samplers and pictures, so it cannot draw. It calls whoever can, and what is called cannot touch
the training's numbers: it gets a copy, and nothing here draws from a generator that moves.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

from wayfield.data.dataset import Dataset
from wayfield.train.config import TrainConfig
from wayfield.train.task import Task

__all__ = ["Watch", "not_written"]


class Watch(ABC):
    """What `fit` calls. An OSError of `sample`, such as that of a full disk, becomes a warning; others end the run."""

    @abstractmethod
    def begin(self, task: Task, dataset: Dataset, config: TrainConfig, step: int) -> None:
        """Once, on every process, when `step` steps are done and all is checked; may refuse the training by raising."""

    @abstractmethod
    def sample(self, task: Task, step: int) -> None:
        """Every config.sample_every steps and at the end, on the main process. task: around a copy with the averaged
        weights, frozen and in evaluation mode.
        """


def not_written(what: str, error: OSError) -> None:
    """Warn that something beside the checkpoint could not be written: that is no reason to stop a training."""
    warnings.warn(f"{what} could not be written: {error}", RuntimeWarning, stacklevel=2)
