r"""Fitting: an objective is maximised by any optimiser of torch; stopped at any moment, resumed to the bit.

    for k = 0 .. steps - 1:
        args  = data of step k                                         a function of (seed, k), `vi.feed`
        g     = gradient of the surrogate, drawn from a seed of (seed, k); clipped
        theta = optimiser(theta, -g), its learning rate times schedule(k)

The state is one file (`vi.checkpoint`), and nothing else is remembered: a run that was killed equals the uninterrupted
one bit for bit on the same machine. Inside of one step the noise is fixed, so that an optimiser that evaluates several
times (LBFGS) sees one function.

The bound and its gradient are read every `check_every` steps. A NaN is traced to its step and site, and the parameters
go back to what they were before it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from wayfield.core.errors import DTypeError, UnsupportedError, unknown_name
from wayfield.progress import track
from wayfield.train.checks import check_number
from wayfield.vi.checkpoint import FitState, identity_of, load, save, sweep
from wayfield.vi.feed import Data, Feed, step_seed
from wayfield.vi.objective import Objective
from wayfield.vi.parameters import Named, Parameters, named
from wayfield.vi.updates import Surrogate, Updates

__all__ = ["EarlyStop", "Fitted", "fit"]


@final
@dataclass(frozen=True)
class EarlyStop:
    """Stop when the bound, averaged over blocks of `smooth` steps, has not risen for `patience` steps.

    least: a rise that counts, in the bound's unit / keep: the parameters that are left in the end, whatever ended the
    run: "best" those after the best block, "last" those of the last step. A block's mean is a noisy estimate: take
    `smooth` so long that its noise is below what matters. Raises RangeError, UnknownNameError.
    """

    patience: int = 1000
    smooth: int = 100
    least: float = 0.0
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        check_number("smooth", self.smooth, 1, whole=True)
        check_number("patience", self.patience, self.smooth, whole=True)
        check_number("least", self.least, 0)
        if self.keep not in ("best", "last"):
            raise unknown_name("keep", self.keep, ("best", "last"))


@final
@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit did; the parameters were changed in place.

    values: the bound at every step, one noisy estimate each, float64 (steps,) / steps: done, earlier calls' included /
    stopped: "steps" all were done, "patience" the bound rose no more / kept: the parameters are those after so many
    steps / seconds: of this call.
    """

    values: Tensor = field(repr=False)
    steps: int
    stopped: Literal["steps", "patience"]
    kept: int
    seconds: float

    def bound(self, window: int = 100) -> float:
        """The mean of the last `window` values before the parameters that were kept."""
        check_number("window", window, 1, whole=True)
        return float(self.values[max(0, self.kept - window) : self.kept].mean())


def fit(
    objective: Objective,
    parameters: Parameters,
    data: Data = (),
    *,
    steps: int,
    seed: int = 0,
    optimizer: Callable[[list[Tensor]], Optimizer] = lambda trained: Adam(trained, lr=1e-3, fused=True),
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    early_stop: EarlyStop | None = None,
    folder: str | os.PathLike[str] | None = None,
    save_every: int = 1000,
    resume: bool = True,
    check_every: int | None = None,
    compile: bool | Callable[[Surrogate], Surrogate] = False,
    allow_unused: bool = False,
    progress: bool = True,
) -> Fitted:
    """Maximise an objective in place.

    parameters: what is trained, tensors and modules / data: the objective's arguments: a tuple, a function of (step,
    seed) such as `minibatches(x, batch=100)`, or batches to iterate over / steps: in all, earlier calls' included /
    seed: step k draws from a seed of (seed, k) / optimizer: makes one from a list of tensors, Adam(1e-3) if not given /
    schedule: factor of the learning rate at a step / clip: largest norm of the gradient / early_stop: see `EarlyStop`;
    None makes all steps / folder: of the checkpoint, written every save_every steps / resume: go on from it, if it is
    there; False starts again / check_every: steps between readings of the device, None is 1 on the CPU and 50
    elsewhere / compile: True compiles the surrogate as one graph; or what to compile it with / allow_unused: a
    parameter may be without gradient at the first step, as where branches use different ones / progress: show a bar.
    Raises RangeError, DTypeError, UnsupportedError for wrong options, a parameter that the objective does not use, and
    for a program that cannot be compiled; NonFiniteError naming step and site, the parameters as before that step;
    CheckpointError if `folder` holds another run.
    """
    clock = time.perf_counter()
    _check(objective, steps, seed, clip, save_every, check_every)
    trained, feed = named(parameters), Feed(data, seed)
    made = _made(optimizer, list(trained.tensors.values()))
    peaks = [group["lr"] for group in made.param_groups if "lr" in group]
    state, disk = FitState(trained, made), None
    if folder is not None:
        settings = {"seed": seed, "clip": clip, "early_stop": early_stop}
        disk = _Disk(FilePath(folder), save_every, identity_of(objective, trained, made, feed(0), settings))
        sweep(disk.folder)
        if resume:
            load(disk.folder, state, disk.identity)
    start = len(state.values)
    if start < steps:
        _check_program(objective, trained, feed(start), step_seed(seed, start), bool(compile))
        if disk is not None and not start:
            save(disk.folder, state, disk.identity)  # what cannot be written is better found now than in an hour
    every = check_every or (1 if all(p.device.type == "cpu" for p in trained.tensors.values()) else 50)
    surrogate = _compiled(objective, compile)
    updates = Updates(objective, surrogate, state, seed, every, clip, schedule, peaks, allow_unused)
    stopped = _loop(updates, feed, steps, early_stop, disk, progress)
    kept = len(state.values)
    if state.best:
        trained.fill(state.best)
        kept = state.best_at
    values = torch.tensor(state.values, dtype=torch.float64)
    return Fitted(values, len(state.values), stopped, kept, time.perf_counter() - clock)


@final
@dataclass(frozen=True)
class _Disk:
    folder: FilePath
    every: int
    identity: Mapping[str, str]


def _loop(
    updates: Updates, feed: Feed, steps: int, rule: EarlyStop | None, disk: _Disk | None, progress: bool
) -> Literal["steps", "patience"]:
    label, state = _Label("fitting"), updates.state
    patience = None if rule is None else _Patience(rule, state)
    if patience is not None and patience.out:
        return "patience"
    for step in track(range(len(state.values), steps), label, on=progress):
        updates.make(step, feed(step))
        done = step + 1
        block = rule is not None and done % rule.smooth == 0
        saves = disk is not None and (done % disk.every == 0 or done == steps)
        if not (done % updates.every == 0 or done == steps or block or saves):
            continue
        updates.read()
        label.text = f"fitting, bound {_mean(state.values[-100:]):.5g}"
        if patience is not None and block:
            patience.block(done)
        out = patience is not None and patience.out
        if disk is not None and (saves or out):
            save(disk.folder, state, disk.identity)
        if out:
            return "patience"
    return "steps"


@final
class _Patience:
    """Which block was best so far; all of it follows from the values, so that resuming needs no more than these."""

    def __init__(self, rule: EarlyStop, state: FitState) -> None:
        self.rule, self.state = rule, state
        self.best, self.at = -math.inf, 0
        for end in range(rule.smooth, len(state.values) + 1, rule.smooth):
            self._compare(end)

    @property
    def out(self) -> bool:
        """Has it run out?"""
        return self.at > 0 and len(self.state.values) - self.at >= self.rule.patience

    def block(self, end: int) -> None:
        """A block has ended; the parameters are copied if it is the best."""
        if self._compare(end) and self.rule.keep == "best":
            self.state.best, self.state.best_at = self.state.named.copy(), end

    def _compare(self, end: int) -> bool:
        mean = _mean(self.state.values[end - self.rule.smooth : end])
        better = self.at == 0 or mean > self.best + self.rule.least
        if better:
            self.best, self.at = mean, end
        return better


@final
class _Label(str):
    """The text of a bar, which changes while it runs: it is formatted anew for every frame."""

    text = "fitting"

    def __format__(self, spec: str) -> str:
        return self.text


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _made(optimizer: Callable[[list[Tensor]], Optimizer], tensors: list[Tensor]) -> Optimizer:
    """The optimiser, which must descend: objectives are negated for it."""
    remedy = "Give a function of the tensors, such as lambda trained: torch.optim.SGD(trained, lr=0.1)."
    if isinstance(optimizer, Optimizer) or not callable(optimizer):
        got = f"{type(optimizer).__name__} itself"
        raise DTypeError("optimizer", got=got, expected="what makes one", remedy=remedy)
    made = optimizer(tensors)
    if not isinstance(made, Optimizer):
        got = f"{type(made).__name__} from it"
        raise DTypeError("optimizer", got=got, expected="a torch.optim.Optimizer", remedy=remedy)
    if any(group.get("maximize") for group in made.param_groups):
        remedy = "Leave maximize out: objectives are maximised already."
        raise UnsupportedError("optimizer", got="maximize=True", expected="one that descends", remedy=remedy)
    return made


def _check_program(objective: Objective, trained: Named, args: tuple[Any, ...], seed: int, compiled: bool) -> None:
    """One run with every check, which leaves nothing behind."""
    with trained.still():
        objective.explain(*args, seed=seed)
    if compiled and objective.decided == "replay":
        remedy = "Leave compile out, or write the decisions with masks (torch.where)."
        raise UnsupportedError("compile", got="the replay engine", expected="a static program", remedy=remedy)


def _compiled(objective: Objective, compile: bool | Callable[[Surrogate], Surrogate]) -> Surrogate:
    if callable(compile):
        return compile(objective.surrogate)
    return torch.compile(objective.surrogate, fullgraph=True) if compile else objective.surrogate


def _check(
    objective: Objective, steps: int, seed: int, clip: float | None, save_every: int, check_every: int | None
) -> None:
    if not isinstance(objective, Objective):
        remedy = "Give what elbo(model, guide) returns, or Objective(body)."
        raise DTypeError("objective", got=type(objective).__name__, expected="an Objective", remedy=remedy)
    for what, value, least in (("steps", steps, 1), ("seed", seed, 0), ("save_every", save_every, 1)):
        check_number(what, value, least, whole=True)
    if check_every is not None:
        check_number("check_every", check_every, 1, whole=True)
    if clip is not None:
        check_number("clip", clip, 0, open_low=True)
