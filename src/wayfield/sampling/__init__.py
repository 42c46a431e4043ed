"""The driver: `sample` walks a grid with a solver under a guidance, counts the cost, and can stop and resume."""

from wayfield.sampling.driver import Result, StepInfo, sample
from wayfield.sampling.resume import Checkpoint

__all__ = ["Checkpoint", "Result", "StepInfo", "sample"]
