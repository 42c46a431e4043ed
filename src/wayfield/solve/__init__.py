"""Floor 2: solvers. Each is a frozen description with a `plan` for a grid and a pure `step`."""

from wayfield.solve.adaptive import Adaptive
from wayfield.solve.corrector import PredictorCorrector
from wayfield.solve.ddim import DDIM, Ancestral
from wayfield.solve.dpm import DPM2M, DPM2S, DPM3M
from wayfield.solve.euler import Euler, HeunTime
from wayfield.solve.heun import Churn, Heun
from wayfield.solve.roles import Plan, Solver
from wayfield.solve.unipc import UniPC

__all__ = [
    "DDIM",
    "DPM2M",
    "DPM2S",
    "DPM3M",
    "Adaptive",
    "Ancestral",
    "Churn",
    "Euler",
    "Heun",
    "HeunTime",
    "Plan",
    "PredictorCorrector",
    "Solver",
    "UniPC",
]
