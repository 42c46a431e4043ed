"""Fine-tuning of any denoiser towards a reward: by weighted resampling, or by policy gradient through its sampler.

reweight   samples drawn again with weights exp(R / beta): slow to sample, plain to train, its optimum known exactly
grpo       the sampler's stochastic steps as actions, better ones made likelier: for rewards that are rare

Both leave the model as it is and return a tuned copy, to be mixed with it by `wayfield.guide.rlg`.
"""

from wayfield.tune.grpo import GRPO, Improved, advantages, grpo
from wayfield.tune.reweight import Pool, Reweighted, draw_pool, reweight
from wayfield.tune.steps import FlowSDE, Transitions

__all__ = [
    "GRPO",
    "FlowSDE",
    "Improved",
    "Pool",
    "Reweighted",
    "Transitions",
    "advantages",
    "draw_pool",
    "grpo",
    "reweight",
]
