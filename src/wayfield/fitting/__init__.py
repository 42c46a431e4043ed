"""What guidance fits before it runs: thresholds, coefficients and policies, from runs of the same model."""

from wayfield.fitting.apg_clip import calibrate_r
from wayfield.fitting.linear_ag import LinearFit, RollOut, fit_linear_ag, roll_out
from wayfield.fitting.policy_search import PolicySearch, search_policy
from wayfield.fitting.shared import load_guidance, save_guidance
from wayfield.fitting.stops import calibrate, guided_steps, record_gammas, saving

__all__ = [
    "LinearFit",
    "PolicySearch",
    "RollOut",
    "calibrate",
    "calibrate_r",
    "fit_linear_ag",
    "guided_steps",
    "load_guidance",
    "record_gammas",
    "save_guidance",
    "roll_out",
    "saving",
    "search_policy",
]
