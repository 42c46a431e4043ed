"""Variational inference as programs: model, guide and objective are functions, the gradient's estimator is chosen per
site."""

from wayfield.vi.diagnose import bias_test, gradient_report, guide_report
from wayfield.vi.feed import minibatches
from wayfield.vi.fit import EarlyStop, Fitted, fit
from wayfield.vi.objective import Objective
from wayfield.vi.objectives import diwhvi, elbo, hvi, iwelbo, iwhvi, renyi
from wayfield.vi.program import Handle, Site, Trace
from wayfield.vi.reports import BiasTest, GradientReport, GradientRow, GuideReport
from wayfield.vi.run import Run
from wayfield.vi.sampling import log_density, simulate
from wayfield.vi.stochastic import StochasticDensity, marginal, normalize
from wayfield.vi.strategy import MVD, Enum, Implicit, Learned, LeaveOneOut, Reinforce, Reparam
from wayfield.vi.wake import forward_kl, p_wake, q_wake, symmetric
from wayfield.vi.weights import effective_sample_size, pareto_k, pareto_limit

__all__ = [
    "MVD",
    "BiasTest",
    "EarlyStop",
    "Enum",
    "Fitted",
    "GradientReport",
    "GradientRow",
    "GuideReport",
    "Handle",
    "Implicit",
    "Learned",
    "LeaveOneOut",
    "Objective",
    "Reinforce",
    "Reparam",
    "Run",
    "Site",
    "StochasticDensity",
    "Trace",
    "bias_test",
    "diwhvi",
    "effective_sample_size",
    "elbo",
    "fit",
    "forward_kl",
    "gradient_report",
    "guide_report",
    "hvi",
    "iwelbo",
    "iwhvi",
    "log_density",
    "marginal",
    "minibatches",
    "normalize",
    "p_wake",
    "pareto_k",
    "pareto_limit",
    "q_wake",
    "renyi",
    "simulate",
    "symmetric",
]
