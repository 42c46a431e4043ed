"""The training loop: batch, loss, gradient, step, average; stopped at any moment, resumed to the bit.

    for i = 0 .. steps - 1:
        x0, cond, t, eps = draw(i)                         what this process owns of the global batch, `train.batches`
        loss   = sum_k loss_k / batch                      `train.task`, (B,) -> ()
        g      = grad loss, averaged over processes, clipped
        theta  = AdamW or Muon(theta, g, lr(i))
        theta_ = average(theta_, theta)                    `train.ema`

Batch i is a pure function of (seed, i) and the state is one file (`train.state`), so a run that was killed equals the
uninterrupted one bit for bit on one process (same machine, same number of threads), and a run on W processes equals it
up to the order of sums. A network that draws its own random numbers (dropout) is outside of this promise. The device is
read every log_every steps only.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, DTypeError, RangeError, ShapeError
from wayfield.data.dataset import Dataset
from wayfield.field.denoiser import Denoiser
from wayfield.progress import track
from wayfield.train.batches import Batch, draw, share_of
from wayfield.train.config import TrainConfig, rate
from wayfield.train.ema import PowerEMA
from wayfield.train.engine import Engine, start_engine
from wayfield.train.journal import Journal, check_finite, window_mean
from wayfield.train.posthoc import Snapshot, write_snapshot
from wayfield.train.state import State, identity_of, load, new_state, save, sweep
from wayfield.train.task import Denoising, Task, as_task, with_weights
from wayfield.train.watch import Watch, not_written

__all__ = ["Fit", "fit"]

Log = Callable[[Mapping[str, float]], None]


@final
@dataclass(frozen=True, eq=False)
class Fit:
    """A training's result.

    model: the task around a network of its own with the averaged weights (the trained one if there is no average) /
    trained: the task around the network that was trained, in place / average: state of config.ema, for its other tracks
    /
    step: steps done / loss: mean over the last window of log_every steps / seconds: of this call.
    """

    model: Task
    trained: Task
    average: Mapping[str, Tensor]
    step: int
    loss: float
    seconds: float

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser with averaged weights. Raises DTypeError if a classifier was trained."""
        return _denoiser(self.model)

    @property
    def raw(self) -> Denoiser:
        """The denoiser as trained. Raises DTypeError if a classifier was trained."""
        return _denoiser(self.trained)


@final
@dataclass(frozen=True, eq=False)
class _Run:
    """What every step reads. task: its net is wrapped by the engine; state.net is the bare one."""

    task: Task
    dataset: Dataset
    config: TrainConfig
    engine: Engine
    state: State
    folder: FilePath | None
    identity: Mapping[str, str]
    watch: Watch | None = None


def fit(
    model: Denoiser | Task,
    dataset: Dataset,
    config: TrainConfig,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    log: Log | None = None,
    watch: Watch | None = None,
    stop_at: int | None = None,
) -> Fit:
    """Train the network of a denoiser, or of another task, in place.

    dataset: samples (N, *D) with at least the task's conditions / out: folder of the checkpoint, log and snapshots,
    None = keep nothing / resume: go on from the checkpoint in `out`, if any; False starts again and overwrites it /
    progress: show a bar / log: called with each line of the log / stop_at: stop, and save, at that step.
    Raises CheckpointError if `out` holds another run, NonFiniteError naming the step if the loss or gradient breaks,
    ShapeError or ConditionError if data and denoiser do not fit, RangeError if there are more processes than samples.
    """
    clock = time.perf_counter()
    task = as_task(model)
    _check(task, dataset, config)
    engine = start_engine(next(p.device for p in task.net.parameters() if p.requires_grad))
    if engine.world > config.batch:
        remedy = "Start fewer processes."
        raise RangeError("batch", got=f"{config.batch} on {engine.world} processes", expected="one each", remedy=remedy)
    task.net.to(engine.device)
    folder, state = None if out is None else FilePath(out), new_state(task.net, config)
    identity = identity_of(task, dataset, config)
    start = 0 if folder is None or not resume else load(folder, state, identity)
    stop = config.steps if stop_at is None else min(stop_at, config.steps)
    if watch is not None:
        watch.begin(task, dataset, config, start)
    engine.wait()  # nobody may replace the checkpoint before all have read it
    run = _Run(task.around(engine.wrap(task.net)), dataset, config, engine, state, folder, identity, watch)
    _loop(run, start, stop, log, progress and engine.main)
    engine.wait()
    done = max(start, stop)
    averaged = task if config.ema is None else _averaged(task, config, state)
    loss = window_mean(state.meter.cpu(), done)[0] if done else math.nan
    return Fit(averaged, task, state.average, done, loss, time.perf_counter() - clock)


def _denoiser(task: Task) -> Denoiser:
    if not isinstance(task, Denoising):
        raise DTypeError("trained model", got=type(task).__name__, expected="a denoiser", remedy="Use .model.net.")
    return task.denoiser


def _loop(run: _Run, start: int, stop: int, log: Log | None, progress: bool) -> None:
    writes = run.folder if run.engine.main else None
    if writes is not None:
        writes.mkdir(parents=True, exist_ok=True)
        sweep(writes)
    journal = Journal(writes, run.config, start, log if run.engine.main else None)
    run.state.net.train()
    try:
        for step in track(range(start, stop), "training", on=progress):
            _update(run, step)
            _keep(run, journal, writes, step + 1, last=step + 1 == stop)
    finally:
        run.state.net.eval()


def _update(run: _Run, step: int) -> None:
    """One step of the algorithm above, in place; nothing is read from the device."""
    config, engine, state, task = run.config, run.engine, run.state, run.task
    share = share_of(config.batch, engine.rank, engine.world)
    host = draw(run.dataset, task.schema, task.path, config, step, share)
    cond = {name: engine.place(v) for name, v in host.cond.items()}
    batch = Batch(engine.place(host.x0), cond, host.t, engine.place(host.eps))
    bf16 = config.precision == "bf16"
    with torch.autocast(engine.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
        losses = task.losses(batch, config)
    # engines average gradients over processes; times `world`, the average is the gradient of the global mean
    loss = losses.sum() * (engine.world / config.batch)
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    limit = math.inf if config.clip is None else config.clip
    norm = torch.nn.utils.clip_grad_norm_(state.net.parameters(), limit)
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(config, step)
        optimizer.step()
    if config.ema is not None:
        seen = (step + 1) * config.batch
        config.ema.update(state.average, state.net.state_dict(), seen=seen, batch=config.batch)
    state.meter[:, step % config.log_every] = torch.stack([loss.detach(), norm])


def _keep(run: _Run, journal: Journal, writes: FilePath | None, done: int, *, last: bool) -> None:
    """After `done` steps: show samples, read the meter, log, save, when it is time to."""
    config, state = run.config, run.state
    shows = config.sample_every and (done % config.sample_every == 0 or done == config.steps)
    if run.watch is not None and run.engine.main and shows:
        try:  # before the checkpoint: a run that is killed while it draws will draw again
            run.watch.sample(_averaged(run.task, config, state), done)
        except OSError as error:
            not_written(f"samples of step {done}", error)
    logs = done % config.log_every == 0 or done == config.steps
    saves = done % config.save_every == 0 or last
    snaps = config.snapshot_every and done % config.snapshot_every == 0
    if not (logs or saves or snaps):
        return
    state.meter.copy_(run.engine.mean(state.meter))
    meter = state.meter.cpu()
    check_finite(meter, done)
    if logs:
        journal.line(meter, done)
    if writes is None:
        return
    if saves:
        save(writes, state, done, run.identity)
    if snaps and isinstance(config.ema, PowerEMA):
        for width, name in zip(config.ema.widths, config.ema.tracks, strict=True):
            kept = Snapshot(done * config.batch, width, config.ema.read(state.average, name))
            write_snapshot(writes / "snapshots", kept)


def _averaged(task: Task, config: TrainConfig, state: State) -> Task:
    """The task around a copy of the bare network with the averaged weights, or the trained ones if there is no
    average.
    """
    weights = state.net.state_dict() if config.ema is None else config.ema.read(state.average)
    return with_weights(task.around(state.net), weights)


def _check(task: Task, dataset: Dataset, config: TrainConfig) -> None:
    if not any(p.requires_grad for p in task.net.parameters()):
        remedy = "Call requires_grad_(True) on what should learn."
        raise DTypeError("network to train", got="no trainable parameter", expected="some", remedy=remedy)
    if task.shape is not None and task.shape != dataset.shape:
        remedy = "Build the network for this data."
        raise ShapeError("samples of the dataset", got=dataset.shape, expected=task.shape, remedy=remedy)
    for name, field in task.schema.fields.items():
        if dataset.schema.fields.get(name) != field:
            got, remedy = dataset.schema.fields.get(name), "Give the denoiser the dataset's schema."
            raise ConditionError(f"condition {name!r} of the dataset", got=got, expected=field, remedy=remedy)
    if config.drop and task.schema.fields and task.schema.null is None:
        got, remedy = f"drop = {config.drop}, no null condition", "Set drop = 0, or give the schema a null."
        raise ConditionError("label dropping", got=got, expected="a null condition", remedy=remedy)
    if config.snapshot_every and not isinstance(config.ema, PowerEMA):
        got, remedy = repr(config.ema), "Set ema = PowerEMA(), or snapshot_every = 0."
        raise DTypeError("average of a run with snapshots", got=got, expected="PowerEMA", remedy=remedy)
