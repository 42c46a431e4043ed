r"""Searching a guidance policy by gradient: one of a few scales for every step, good and cheap at once.

The choice at step i is relaxed to a mixture with logits a_ij. Every option is u + s_j (c - u), so the mixture is
guidance with one effective scale, and a run is differentiable in the logits while the network is frozen:

.. math:: p_i = \mathrm{softmax}(a_i / \tau), \quad \bar{s}_i = \sum_j p_{ij} s_j, \quad
   L = \frac{\| x(a) - x^* \|^2}{\text{numel}} + \lambda \frac{1}{2N} \sum_{ij} p_{ij} k_j

========  ==================================================================  ==========
symbol    meaning                                                             shape
========  ==================================================================  ==========
a, p      logits and probabilities of the options at each step                (N, K)
s, k      scales of the options, 0, 1, w/2, w, 2 w, and their rows 1 or 2     (K,)
x*        samples of full guidance with w from the same noise                 (B, *D)
tau       temperature, falling geometrically from 1 to 0.1
========  ==================================================================  ==========

The images see the mixture through its effective scale only: two options may imitate a third and pay another price. So
the temperature falls, and what counts is the policy of the largest logits, sampled again at its true cost.

Reference: Castillo et al. 2023, Adaptive Guidance, arXiv 2312.12487; the paper's loss weights and optimiser are not
known, those here are this library's choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.core.grid import Grid
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query
from wayfield.field.denoiser import Denoiser
from wayfield.fitting.draws import Draws, check_solver
from wayfield.guide.contrast import CFG
from wayfield.guide.guidance import Guidance
from wayfield.guide.policy import policy, policy_cost
from wayfield.guide.roles import State, Step
from wayfield.guide.terms import Direction, Pushed
from wayfield.progress import track
from wayfield.solve.ddim import DDIM
from wayfield.solve.roles import Solver

__all__ = ["PolicySearch", "Relaxed", "search_policy"]


@final
@dataclass(frozen=True)
class PolicySearch:
    """scales: of the found policy, (N,) / logits: (N, K) / options: scales to choose from, (K,) / losses: L at every
    update / soft_mse: mean squared difference per element to full guidance of the last mixture, over all samples / mse:
    of the policy itself / rows: network rows per sample of the policy; full guidance has 2 N.
    """

    scales: tuple[float, ...]
    logits: tuple[tuple[float, ...], ...]
    options: tuple[float, ...]
    losses: tuple[float, ...]
    soft_mse: float
    mse: float
    rows: int
    away: str = "null"

    @property
    def guidance(self) -> Guidance:
        """The found policy, for `sample`."""
        return policy(self.scales, self.away)


@final
@dataclass(frozen=True, eq=False)
class _Scales(Direction):
    """(s_i - 1)(c - u) with scales that are a tensor (N,), to be differentiated in; never compiled."""

    scales: Tensor
    away: str

    @property
    def needs(self) -> tuple[Query, ...]:
        return COND, Query(self.away)

    def push(self, ask: Ask, step: Step, state: State) -> Pushed:
        c, u = ask(*self.needs)
        return (self.scales[step.i] - 1) * (c.x0 - u.x0), state


@final
@dataclass(frozen=True, eq=False)
class Relaxed:
    """The relaxed problem: runs whose scales are mixtures of `options`, compared with full guidance.

    draws: the runs / w, away: full guidance, as in CFG / options: scales to choose from, (K,).
    """

    draws: Draws
    w: float
    options: tuple[float, ...]
    away: str = "null"

    def probabilities(self, logits: Tensor, tau: float) -> Tensor:
        """p (N, K)."""
        return (logits / tau).softmax(-1)

    def cost(self, p: Tensor) -> Tensor:
        """Expected rows relative to full guidance, ()."""
        rows = [policy_cost((s,)) for s in self.options]
        return (p @ p.new_tensor(rows)).sum() / (2 * len(p))

    def teacher(self, part: range) -> Tensor:
        """x* of some samples, (b, *D)."""
        return self.draws(part, CFG(self.w, self.away)).x

    def mse(self, p: Tensor, part: range, teacher: Tensor) -> Tensor:
        """Mean squared difference per element between mixtures and teacher, (); differentiable in p."""
        scales = p @ p.new_tensor(self.options)
        x = self.draws(part, Guidance(_Scales(scales, self.away)), grad=p.requires_grad).x
        return (x - teacher).square().mean()


def search_policy(
    model: Denoiser,
    grid: Grid,
    *,
    w: float,
    lam: float,
    cond: Mapping[str, Any] | None = None,
    samples: int = 64,
    batch: int = 32,
    seed: int = 0,
    steps: int = 200,
    lr: float = 0.1,
    tau: tuple[float, float] = (1.0, 0.1),
    options: Sequence[float] | None = None,
    away: str = "null",
    conds: Mapping[str, Mapping[str, Any]] | None = None,
    shape: Sequence[int] | None = None,
    solver: Solver = DDIM(),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> PolicySearch:
    """Search the scale of every step with Adam on the logits.

    w: of the full guidance to imitate, not 1 / lam: price of cost, >= 0, in units of the mean squared difference; sweep
    it for a curve of cost against loss / samples: pairs of noise and condition, `batch` of them an update, whose whole
    run is held in memory / steps, lr: updates and step size / tau: first and last temperature / options: scales to
    choose from, by default 0, 1, w/2, w, 2 w / others: as in `sample`.
    Raises RangeError, UnsupportedError for solvers with several evaluations a step, and what `sample` raises.
    """
    _check(w, lam, steps, lr, tau)
    check_solver("policy search", solver, grid)
    choice = tuple(dict.fromkeys((0.0, 1.0, w / 2, w, 2 * w) if options is None else options))
    policy_cost(choice)  # checks the numbers
    draws = Draws(model, grid, samples, seed, cond, conds, None, shape, solver, dtype, device)
    problem, parts = Relaxed(draws, w, choice, away), list(draws.parts(batch))
    teachers = [problem.teacher(part) for part in parts]
    logits = torch.zeros(grid.steps, len(choice), dtype=dtype, device=device, requires_grad=True)
    adam, losses = torch.optim.Adam([logits], lr=lr), []
    for k in track(range(steps), "searching a policy", on=progress):
        p = problem.probabilities(logits, tau[0] * (tau[1] / tau[0]) ** (k / max(1, steps - 1)))
        j = k % len(parts)
        loss = problem.mse(p, parts[j], teachers[j]) + lam * problem.cost(p)
        (logits.grad,) = torch.autograd.grad(loss, logits)  # of the logits alone: the network collects nothing
        adam.step()
        losses.append(loss.detach())
    return _judged(problem, logits.detach(), tau[1], losses, parts, teachers)


def _judged(
    problem: Relaxed, logits: Tensor, tau: float, losses: list[Tensor], parts: list[range], teachers: list[Tensor]
) -> PolicySearch:
    """The policy of the largest logits, sampled again over all samples."""
    scales = tuple(problem.options[k] for k in logits.argmax(-1).tolist())
    p, found, n = problem.probabilities(logits, tau), policy(scales, problem.away), problem.draws.samples
    soft = sum(float(problem.mse(p, part, x)) * len(part) for part, x in zip(parts, teachers, strict=True)) / n
    hard = sum(
        float((problem.draws(part, found).x - x).square().mean()) * len(part)
        for part, x in zip(parts, teachers, strict=True)
    )
    table = tuple(tuple(row) for row in logits.tolist())
    history = tuple(torch.stack(losses).tolist())
    return PolicySearch(scales, table, problem.options, history, soft, hard / n, policy_cost(scales), problem.away)


def _check(w: float, lam: float, steps: int, lr: float, tau: tuple[float, float]) -> None:
    if not math.isfinite(w) or w == 1:
        remedy = "At w = 1 there is no guidance to spare."
        raise RangeError("guidance scale w", got=w, expected="finite, not 1", remedy=remedy)
    wrong = {"lam": not 0 <= lam < math.inf, "steps": steps < 1, "lr": not 0 < lr < math.inf}
    wrong["tau"] = not all(0 < t < math.inf for t in tau)
    for name, bad in wrong.items():
        if bad:
            got = {"lam": lam, "steps": steps, "lr": lr, "tau": tau}[name]
            raise RangeError(name, got=got, expected="a positive number", remedy="The defaults are a good start.")
