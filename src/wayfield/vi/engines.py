"""The two ways to run an objective's body: all at once along dims, or again and again with choices given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from wayfield.core.errors import UnsupportedError
from wayfield.vi.run import Drawn, Run
from wayfield.vi.seeding import fresh, rewind, seeded, states
from wayfield.vi.smooth import Provenance
from wayfield.vi.strategy import Enum, LeaveOneOut, Reinforce
from wayfield.vi.surrogate import check_cost, enumerated, expected, possible, surrogate

if TYPE_CHECKING:
    from wayfield.vi.objective import Objective

__all__ = ["replayed", "vectorised"]


def vectorised(
    objective: Objective, args: tuple[Any, ...], watch: Provenance | None = None, runs: list[Run] | None = None
) -> Tensor:
    """The body once, samples, rows and enumerated values along dims; once more per alternative of an MVD site.

    watch: checks, and follows values / runs: filled with what was run.
    """
    batch = objective.batch(args)
    snapshots = None if torch.compiler.is_compiling() else states
    run = Run(objective.samples, batch, strategies=objective.strategies, watch=watch, snapshots=snapshots)
    cost = check_cost(run, objective.body(run, *args))
    made = [run]

    def again(term: Drawn, value: Tensor) -> Tensor:
        forced = {t.index: t.value for t in run.terms[: term.index]} | {term.index: value}
        other = Run(objective.samples, batch, forced, objective.strategies, pure=True)
        made.append(other)
        with torch.no_grad(), rewind(term.state):
            return expected(other, check_cost(other, objective.body(other, *args)), term.index)

    total = expected(run, surrogate(run, cost, again))
    if runs is not None:
        runs.extend(made)
    return total.mean()


def replayed(
    objective: Objective, args: tuple[Any, ...], watch: Provenance | None = None, runs: list[Run] | None = None
) -> Tensor:
    """The body once per sample and per path of enumerated values; MVD's alternatives likewise."""
    if objective.batch_dims:
        remedy = "Call the objective once per row, or write decisions with masks."
        raise UnsupportedError(
            "engine 'replay'", got=f"batch_dims={objective.batch_dims}", expected="batch_dims=0", remedy=remedy
        )
    made: list[Run] = []
    samples = [_paths(objective, args, watch, made) for _ in range(objective.samples)]
    means = [torch.stack([(path.weight * path.cost).detach() for path in paths]).sum() for paths in samples]
    total = torch.zeros(())
    for s, paths in enumerate(samples):
        others = [m for k, m in enumerate(means) if k != s]
        for path in paths:
            again = _again(objective, args, path.run, made)
            total = total + path.weight * surrogate(path.run, path.cost, again, _alone(path.run, others)).sum()
    if runs is not None:
        runs.extend(made)
    return total / objective.samples


@final
@dataclass(frozen=True, eq=False)
class _Path:
    """One run of one sample: the cost where its enumerated values lead, (), and their probability, ()."""

    run: Run
    cost: Tensor
    weight: Tensor


def _paths(objective: Objective, args: tuple[Any, ...], watch: Provenance | None, made: list[Run]) -> list[_Path]:
    """A run for every path of enumerated values, depth first: each tells where the next ones branch off.

    All start from the same noise, so that what is drawn before a branch is the same on both sides of it.
    """
    found: list[_Path] = []
    todo: list[list[int]] = [[]]
    seed = fresh()
    while todo:
        prefix = todo.pop()
        run = Run(strategies=objective.strategies, watch=watch, choices=list(prefix), snapshots=states)
        with seeded(seed):
            cost = check_cost(run, objective.body(run, *args)).sum()
        log_p = enumerated(run)
        weight = torch.ones_like(cost) if log_p is None else log_p.exp().sum()
        found.append(_Path(run, possible(weight, cost), weight))
        made.append(run)
        places = [t for t in run.terms if isinstance(t.strategy, Enum)]
        for d in range(len(prefix), len(places)):
            assert run.choices is not None
            todo.extend([*run.choices[:d], k] for k in range(1, places[d].count))
        limit = min((t.strategy.limit for t in places if isinstance(t.strategy, Enum)), default=1)
        if len(found) + len(todo) > max(limit, 1):
            remedy = "Choose Reinforce() or MVD() for some sites, or raise Enum(limit=...)."
            got = f"more than {limit} paths of enumerated values"
            raise UnsupportedError(f"site {places[-1].name!r}", got=got, expected=f"at most {limit}", remedy=remedy)
    return found


def _again(objective: Objective, args: tuple[Any, ...], run: Run, made: list[Run]) -> Any:
    def again(term: Drawn, value: Tensor) -> Tensor:
        forced = {t.index: t.value for t in run.terms[: term.index]} | {term.index: value}
        other = Run(forced=forced, strategies=objective.strategies, choices=[], pure=True)
        made.append(other)
        with torch.no_grad(), rewind(term.state):
            return check_cost(other, objective.body(other, *args))

    return again


def _alone(run: Run, others: list[Tensor]) -> Tensor | None:
    """The mean of the other samples, where a site asks for it."""
    left = any(isinstance(t.strategy, Reinforce) and isinstance(t.strategy.baseline, LeaveOneOut) for t in run.terms)
    return torch.stack([*others]).mean() if left and others else None
