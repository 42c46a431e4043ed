"""Variational inference as programs: model, guide and objective are functions, the gradient's estimator is chosen per
site."""

from wayfield.vi.objective import Objective
from wayfield.vi.objectives import elbo, iwelbo, renyi
from wayfield.vi.program import Handle, Site, Trace
from wayfield.vi.run import Run
from wayfield.vi.sampling import log_density, simulate
from wayfield.vi.strategy import MVD, Enum, Implicit, Learned, LeaveOneOut, Reinforce, Reparam

__all__ = [
    "MVD",
    "Enum",
    "Handle",
    "Implicit",
    "Learned",
    "LeaveOneOut",
    "Objective",
    "Reinforce",
    "Reparam",
    "Run",
    "Site",
    "Trace",
    "elbo",
    "iwelbo",
    "log_density",
    "renyi",
    "simulate",
]
