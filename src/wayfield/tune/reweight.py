r"""Fine-tuning towards a reward by weighted resampling: the plain way whose optimum is known exactly.

Maximising E[R] - beta KL(p || p_ref) over all distributions has one answer, p_beta(x) = p_ref(x) exp(R(x)/beta) / Z. So
samples of the model, drawn again with weights exp(R/beta), are samples of the answer, and the usual denoising loss on
them is all the training there is:

    x_1 .. x_M ~ p_ref(. | c),   w = softmax(R(x) / beta)  within each condition c        importance weights
    model      = denoising loss on draws from {x_m} with probabilities w_m               `wayfield.train.fit`

M: samples of each condition / effective size: 1 / sum w^2 of M, summed over conditions; where it is small, few samples
carry the weight and the model learns them by heart. With few samples of each condition the weights are too even: the
model is tuned less than beta says. Draws are stratified: sample i of `size` is a quantile (k + 1/2) / size of the
weights, each k once, so a sample comes floor or ceil of size w times.

The same is known as reward-weighted regression, and as one round of expectation-maximisation (Dayan & Hinton 1997,
Peters & Schaal 2007); with rounds, or rejection instead of weights, RAFT (Dong et al. 2023, arXiv 2304.06767).
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, RangeError
from wayfield.core.grid import Grid
from wayfield.data.dataset import Dataset, rows_of
from wayfield.field.cond import Cond, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide.guidance import Guidance
from wayfield.guide.terms import Term
from wayfield.judge.rewards import Reward, rewards_of
from wayfield.progress import track
from wayfield.sampling import sample
from wayfield.solve.ddim import DDIM
from wayfield.solve.roles import Solver
from wayfield.train.config import TrainConfig
from wayfield.train.loop import fit

__all__ = ["Pool", "Reweighted", "Weighted", "draw_pool", "reweight"]

_FEW = 30.0


@final
@dataclass(frozen=True, eq=False)
class Pool:
    """Samples of a model with their rewards. x: (P M, *D), M for each of P conditions in turn, on the host / cond: of
    each / rewards: (P M,) / conditions: P.
    """

    x: Tensor
    cond: Cond
    rewards: Tensor
    conditions: int

    def weights(self, beta: float) -> Tensor:
        """Probabilities (P M,), float64: each condition the same share, within it softmax(R / beta). Raises
        RangeError.
        """
        if not (beta > 0 and math.isfinite(beta)):
            remedy = "Infinity is the model itself; below 0 the reward would be avoided."
            raise RangeError("KL coefficient beta", got=beta, expected="> 0 and finite", remedy=remedy)
        each = (self.rewards.double().reshape(self.conditions, -1) / beta).softmax(1)
        return each.reshape(-1) / self.conditions

    def effective(self, beta: float) -> float:
        """Effective number of samples, 1 / sum w^2, summed over conditions; of P M."""
        each = self.weights(beta).reshape(self.conditions, -1) * self.conditions
        return float((1 / each.square().sum(1)).sum())


@final
@dataclass(frozen=True, eq=False)
class Weighted(Dataset):
    """A pool as a dataset of `size` draws with given probabilities (P M,). schema: of its conditions."""

    pool: Pool
    probabilities: Tensor
    schema: Schema
    size: int = 1 << 16

    @property
    def shape(self) -> tuple[int, ...]:
        """*D."""
        return tuple(self.pool.x.shape[1:])

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: Any) -> tuple[Tensor, Cond]:
        """See `Dataset.batch`."""
        edges = self.probabilities.cumsum(0)
        place = rows_of(indices, self.size) * self._stride % self.size
        at = torch.searchsorted(edges, (place + 0.5) / self.size * edges[-1])
        at = at.clamp(max=len(edges) - 1)
        return self.pool.x[at].float(), {name: c[at] for name, c in self.pool.cond.items()}

    @cached_property
    def _stride(self) -> int:
        """Neighbours in number are far apart in the pool: by the first few draws a set is known from others."""
        return next(k for k in range(round(0.618 * self.size) | 1, 2 * self.size) if math.gcd(k, self.size) == 1)


@final
@dataclass(frozen=True, eq=False)
class Reweighted:
    """denoiser: fine-tuned, a network of its own / pool: what it learned from / reward: mean over the pool / target:
    weighted mean, the estimate of E[R] under p_beta / effective: number of samples, see `Pool` / loss: the last.
    """

    denoiser: Denoiser
    pool: Pool
    reward: float
    target: float
    effective: float
    loss: float


def draw_pool(
    model: Denoiser,
    grid: Grid,
    reward: Reward,
    *,
    samples: int = 8192,
    cond: Mapping[str, Any] | None = None,
    solver: Solver = DDIM(),
    guidance: Guidance | Term | None = None,
    seed: int = 0,
    rows: int = 1024,
    progress: bool = False,
) -> Pool:
    """Draw samples of every condition and reward them. model: a denoiser that knows its shape.

    samples: M of each condition / cond: {field: (P, ...)}, P conditions; None for one, the model's null / guidance: if
    the reference to be tuned is the guided model / rows: drawn at a time.
    Raises RangeError, ConditionError and what `sample` and `rewards_of` raise.
    """
    count = 1 if cond is None else count_of(cond)
    for what, value in (("samples of a pool", samples), ("rows at a time", rows)):
        if value < 1:
            raise RangeError(what, got=value, expected=">= 1", remedy="8192 samples, 1024 at a time, are usual.")
    device = next((p.device for p in model.net.parameters()), torch.device("cpu"))
    bound = model.schema.bind(cond, count, device)
    bound = {name: c.repeat_interleave(samples, 0) for name, c in bound.items()}
    parts = [range(a, min(a + rows, count * samples)) for a in range(0, count * samples, rows)]
    options = {"seed": seed, "solver": solver, "guidance": guidance, "device": device}
    xs, rewards = [], []
    for part in track(parts, "drawing a pool", on=progress):
        some = {name: c[part.start : part.stop] for name, c in bound.items()}
        x = sample(model, grid, samples=part, cond=some or None, **options).x
        rewards.append(rewards_of(reward, x, some).cpu())
        xs.append(x.cpu())
    return Pool(torch.cat(xs), {name: c.cpu() for name, c in bound.items()}, torch.cat(rewards), count)


def reweight(
    model: Denoiser,
    pool: Pool,
    beta: float,
    config: TrainConfig,
    *,
    size: int = 1 << 16,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = False,
) -> Reweighted:
    """Fine-tune a copy of a model to p_beta. The model itself is not touched.

    pool: its samples with rewards, of `draw_pool`; one pool serves every beta / beta: KL coefficient > 0, in units of
    the reward / config: of the training, see `TrainConfig`; the loss should be the one the model was trained with /
    size: draws from the pool, a set that training goes through again and again / out, resume, progress: as of `fit`.
    Warns if fewer than 30 samples count. Raises RangeError, and what `fit` raises.
    """
    weights, effective = pool.weights(beta), pool.effective(beta)
    if effective < _FEW:
        said = f"at beta = {beta:g} only {effective:.3g} samples count; draw more, or raise beta"
        warnings.warn(said, UserWarning, stacklevel=2)
    mine = trainable(model)
    fitted = fit(mine, Weighted(pool, weights, model.schema, size), config, out=out, resume=resume, progress=progress)
    target = float((weights * pool.rewards.double()).sum())
    fitted.denoiser.net.requires_grad_(False)
    return Reweighted(fitted.denoiser, pool, float(pool.rewards.mean()), target, effective, fitted.loss)


def trainable(model: Denoiser) -> Denoiser:
    """The same denoiser around a copy of its network, in evaluation mode, that can be trained: what required gradients
    does, everything where nothing did.
    """
    net = copy.deepcopy(model.net).eval()
    if not any(p.requires_grad for p in net.parameters()):
        net.requires_grad_(True)
    return replace(model, net=net)


def count_of(cond: Mapping[str, Any]) -> int:
    """The number of conditions in {field: (P, ...)}. Raises ConditionError if fields differ in it."""
    sizes = {name: len(torch.as_tensor(c)) if torch.as_tensor(c).ndim else 0 for name, c in cond.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        remedy = "Give one row for each condition to draw."
        raise ConditionError("conditions of a pool", got=sizes, expected="equal numbers of rows", remedy=remedy)
    return next(iter(sizes.values()))
