r"""Fine-tuning towards a reward by policy gradient: the sampler's steps are the actions.

A reward need not be differentiable, and samples with large rewards need not be drawn often enough to be resampled. Run
stochastically, a sampler is a chain of Gaussian decisions with a density (`tune.steps`), and what led to better samples
than its group's can be made likelier:

.. math:: A_k = \frac{R_k - \text{mean}_g R}{\text{std}_g R}, \qquad
   \rho_{ik} = \frac{p_\theta(x_{i+1} | x_i)}{p_{old}(x_{i+1} | x_i)}, \qquad
   L = \frac{1}{B} \sum_{k, i} -\min\bigl(\rho A, \text{clip}(\rho, 1 \pm c) A\bigr)
       + \beta\, \text{KL}\bigl(p_\theta \,\|\, p_{ref}\bigr)_{ik}

=========  ==============================================================================  ==========
symbol     meaning                                                                         shape
=========  ==============================================================================  ==========
g          groups of G samples of one condition                                            P x G = B
R, A       rewards of the last points, advantages                                          (B,)
rho        ratio of densities of step i of sample k, over all axes                         (n, B)
KL         of that step's Gaussian from the reference's, |mean - mean_ref|^2 / (2 noise^2) (n, B)
=========  ==============================================================================  ==========

An iteration draws P G samples with new noise, then makes `epochs` optimiser steps on all their transitions. What beta
means: with `normalise=False` the objective is E[R] - beta KL of whole runs, which bounds KL(p || p_ref) from above, but
for how the visited points depend on the weights in the KL term. p_beta is not its fixed point in general, so after
GRPO the effective coefficient beta / w of RLG is a name. Guidance is left out: the conditional model itself is tuned.

References: Liu et al. 2025 (Flow-GRPO), arXiv 2505.05470; Shao et al. 2024 (GRPO), arXiv 2402.03300; Schulman et al.
2017, arXiv 1707.06347 (the clipped ratio); Black et al. 2023, arXiv 2305.13301.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path as FilePath
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield import files
from wayfield.core.errors import DTypeError, NonFiniteError
from wayfield.core.grid import Grid
from wayfield.core.noise import SeededNoise
from wayfield.field.cond import Cond
from wayfield.field.denoiser import Denoiser
from wayfield.field.identity import weights_digest
from wayfield.judge.rewards import Reward, rewards_of
from wayfield.progress import track
from wayfield.sampling import sample
from wayfield.solve.roles import Solver
from wayfield.train.batches import indices
from wayfield.train.checks import check_number
from wayfield.train.ema import Average
from wayfield.train.state import State, load, save
from wayfield.tune.reweight import count_of, trainable
from wayfield.tune.steps import FlowSDE, Transitions

__all__ = ["GRPO", "Improved", "advantages", "grpo"]


@final
@dataclass(frozen=True)
class GRPO:
    """How to improve. Raises DTypeError or RangeError at construction.

    iterations: >= 1 / prompts, group: P conditions an iteration, G >= 2 samples of each / beta: KL coefficient >= 0, in
    units of the reward (of its standard deviation, if normalised) / clip: c > 0 / epochs: optimiser steps on one set of
    samples / lr: of Adam / norm: largest norm of the gradient / normalise: divide advantages by the group's standard
    deviation / rows: transitions in one backward pass / ema: average of the weights, None = none / seed: of noise and
    order / save_every: iterations between checkpoints.
    """

    iterations: int = 100
    prompts: int = 8
    group: int = 16
    beta: float = 0.04
    clip: float = 0.2
    epochs: int = 2
    lr: float = 1e-4
    norm: float = 1.0
    normalise: bool = True
    rows: int = 4096
    ema: Average | None = None
    seed: int = 0
    save_every: int = 20

    def __post_init__(self) -> None:
        for name, low in (("iterations", 1), ("prompts", 1), ("group", 2), ("epochs", 1), ("rows", 1)):
            check_number(f"{name} of GRPO", getattr(self, name), low, whole=True)
        check_number("save_every of GRPO", self.save_every, 1, whole=True)
        check_number("seed of GRPO", self.seed, 0, 2**63 - 1, whole=True)
        check_number("beta of GRPO", self.beta, 0)
        for name in ("clip", "lr", "norm"):
            check_number(f"{name} of GRPO", getattr(self, name), 0, open_low=True)
        if self.ema is not None and not isinstance(self.ema, Average):
            remedy = "Give an Average such as EMA(0.99), or None."
            raise DTypeError("ema of GRPO", got=type(self.ema).__name__, expected="an Average", remedy=remedy)


@final
@dataclass(frozen=True, eq=False)
class Improved:
    """denoiser: the tuned model, a network of its own / rewards: mean of every iteration's samples, before its update /
    divergence: mean KL of whole runs from the reference's, at every iteration's last optimiser step.
    """

    denoiser: Denoiser
    rewards: tuple[float, ...]
    divergence: tuple[float, ...]


class _Rollout(NamedTuple):
    """Transitions of one iteration, flat over (n, B). x, y: from, to / steps: on the grid / cond: bound / old: log
    density when drawn / ref: means of the reference / advantage: of each.
    """

    x: Tensor
    y: Tensor
    steps: Tensor
    cond: Cond
    old: Tensor
    ref: Tensor
    advantage: Tensor

    def part(self, rows: slice) -> _Rollout:
        cond = {name: c[rows] for name, c in self.cond.items()}
        return _Rollout(*(v[rows] if isinstance(v, Tensor) else cond for v in self))  # pyright: ignore[reportArgumentType]


def advantages(rewards: Tensor, group: int, *, normalise: bool = True) -> Tensor:
    """R - mean of its group of neighbours, over the group's standard deviation if asked; (B,). A group whose rewards
    are all equal has none.
    """
    r = rewards.reshape(-1, group)
    gap = r - r.mean(1, keepdim=True)
    if normalise:
        std = r.std(1, correction=0, keepdim=True)
        gap = torch.where(std > 1e-6 * (1 + r.abs().amax(1, keepdim=True)), gap / std, 0)
    return gap.reshape(-1)


def grpo(
    model: Denoiser,
    grid: Grid,
    reward: Reward,
    config: GRPO,
    *,
    cond: Mapping[str, Any] | None = None,
    solver: Solver = FlowSDE(),
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = False,
) -> Improved:
    """Fine-tune a copy of a model by group-relative policy gradient. The model itself is not touched.

    model: a denoiser that knows its shape / grid, solver: of the stochastic runs; 10 steps will do / cond: {field:
    (P', ...)}, the conditions to take in turn; None for the model's null alone, then one group has all samples / out:
    folder of a checkpoint, None = keep nothing; a run that was stopped goes on from it.
    Raises UnsupportedError for solvers without densities, NonFiniteError naming the sample or the iteration, what
    `sample` raises, and CheckpointError if `out` holds another run.
    """
    policy, mine = Transitions(solver, grid), trainable(model)
    net, trained = mine.net, [p for p in mine.net.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config.lr)
    average = {} if config.ema is None else config.ema.init(net.state_dict())
    state = State(net, (optimizer,), average, torch.zeros(2, config.iterations, device=trained[0].device))
    folder = None if out is None else FilePath(out)
    identity = _identity(model, policy, reward, config, cond)
    first = 0 if folder is None or not resume else load(folder, state, identity)
    for k in track(range(first, config.iterations), "grpo", on=progress):
        rollout, mean = _draw(model, mine, policy, reward, config, cond, k)
        state.meter[0, k] = mean
        for _ in range(config.epochs):
            state.meter[1, k] = _improve(mine, policy, rollout, config, optimizer, k)
        if config.ema is not None:
            batch = config.prompts * config.group
            config.ema.update(average, net.state_dict(), seen=(k + 1) * batch, batch=batch)
        if folder is not None and ((k + 1) % config.save_every == 0 or k + 1 == config.iterations):
            folder.mkdir(parents=True, exist_ok=True)
            save(folder, state, k + 1, identity)
    if config.ema is not None:
        net.load_state_dict(config.ema.read(average))
    optimizer.zero_grad(set_to_none=True)
    rewards, divergence = (tuple(row) for row in state.meter.tolist())
    return Improved(replace(mine, net=net.requires_grad_(False)), rewards, divergence)


def _draw(
    model: Denoiser,
    mine: Denoiser,
    policy: Transitions,
    reward: Reward,
    config: GRPO,
    cond: Mapping[str, Any] | None,
    k: int,
) -> tuple[_Rollout, Tensor]:
    """The transitions of iteration k under the present network, and the mean reward."""
    batch, device = config.prompts * config.group, next(mine.net.parameters()).device
    bound = mine.schema.bind(cond, 1 if cond is None else count_of(cond), device)
    if cond is not None:
        chosen = indices(config.seed, count_of(cond), config.prompts, k, range(config.prompts))
        bound = {name: c[chosen.to(device)] for name, c in bound.items()}
    bound = {name: c.repeat_interleave(batch // len(c), 0) for name, c in bound.items()}
    noise = SeededNoise(config.seed, range(k * batch, (k + 1) * batch))
    options = {"noise": noise, "solver": policy.solver, "record": True, "device": device}
    result = sample(mine, policy.grid, samples=batch, cond=bound or None, **options)
    assert result.trajectory is not None
    r = rewards_of(reward, result.x, bound)
    group = batch if cond is None else config.group
    kept, n = torch.tensor(policy.kept), len(policy.kept)
    x, y = (result.trajectory[kept + j].flatten(0, 1) for j in (0, 1))
    steps = kept.repeat_interleave(batch)
    whole = {name: c.repeat(n, *(1,) * (c.ndim - 1)) for name, c in bound.items()}
    advantage = advantages(r, group, normalise=config.normalise).to(x.dtype).repeat(n)
    rollout = _Rollout(x, y, steps, whole, advantage, x, advantage)
    with torch.no_grad():
        old, ref = [], []
        for p in _parts(rollout, config.rows):
            old.append(policy.log_density(policy.means(mine, p.x, p.steps, p.cond), p.y, p.steps))
            ref.append(policy.means(model, p.x, p.steps, p.cond))
    return rollout._replace(old=torch.cat(old), ref=torch.cat(ref)), r.mean()


def _improve(
    mine: Denoiser, policy: Transitions, rollout: _Rollout, config: GRPO, optimizer: torch.optim.Optimizer, k: int
) -> float:
    """One optimiser step on all transitions; the mean divergence of whole runs."""
    optimizer.zero_grad(set_to_none=True)
    batch, total, far = config.prompts * config.group, 0.0, 0.0
    for p in _parts(rollout, config.rows):
        mean = policy.means(mine, p.x, p.steps, p.cond)
        ratio = (policy.log_density(mean, p.y, p.steps) - p.old).exp()
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        gain = torch.minimum(ratio * p.advantage, clipped * p.advantage)
        divergence = policy.divergence(mean, p.ref, p.steps)
        loss = (config.beta * divergence - gain).sum() / batch
        loss.backward()
        total, far = total + float(loss.detach()), far + float(divergence.detach().sum()) / batch
    norm = torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.norm)
    if not (math.isfinite(total) and math.isfinite(float(norm))):
        remedy = "Lower lr or clip, raise beta, or look at the rewards."
        got = f"loss {total}, gradient norm {float(norm)} in iteration {k + 1}"
        raise NonFiniteError("policy gradient", got=got, expected="finite", remedy=remedy)
    optimizer.step()
    return far


def _parts(rollout: _Rollout, rows: int) -> list[_Rollout]:
    return [rollout.part(slice(a, a + rows)) for a in range(0, len(rollout.x), rows)]


def _identity(
    model: Denoiser, policy: Transitions, reward: Reward, config: GRPO, cond: Mapping[str, Any] | None
) -> dict[str, str]:
    """What a resumed run must agree on."""
    settings = {f.name: repr(getattr(config, f.name)) for f in fields(config) if f.name != "save_every"}
    bound = {} if cond is None else model.schema.bind(cond, count_of(cond), "cpu")
    name = getattr(reward, "__qualname__", type(reward).__name__)
    parts = {
        "solver": repr(policy.solver),
        "grid": repr(policy.grid),
        "reward": name,
        "conditions": files.digest(dict(bound), "")[:16],
    }
    return settings | parts | {"model": f"{model.reading!r}, weights {weights_digest(model.net)}"}
