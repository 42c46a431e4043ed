"""The state of a training and its one file on disk: everything that the next step depends on, and nothing else.

A run that is killed at any moment must go on as if nothing had happened. The checkpoint holds the network, its
averages, the optimisers' memory and the latest losses as named tensors; randomness needs no state (`train.batches`).
It is replaced atomically (`wayfield.files`), so a reader finds the old state or the new one, whole.

    net/NAME   ema/TRACK/NAME   meter (2, log_every)
    optimizer/NAME/{step, exp_avg, exp_avg_sq}, or optimizer/NAME/momentum where it is Muon's
    record: {"format", "version", "step", "identity"}

identity: what a resumed run must agree on, as texts by name; a difference is refused and named.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import final

import torch
from torch import Tensor, nn

from wayfield import files
from wayfield.core.errors import CheckpointError
from wayfield.data.dataset import Dataset
from wayfield.train.config import TrainConfig
from wayfield.train.muon import Muon, matrices
from wayfield.train.task import Task

__all__ = ["CHECKPOINT", "State", "identity_of", "load", "new_state", "save", "sweep"]

CHECKPOINT = "checkpoint.safetensors"
_FORMAT, _VERSION = "wayfield.checkpoint", 2


@final
@dataclass(frozen=True, eq=False)
class State:
    """What a training changes, in place. net: bare, not wrapped by an engine / optimizers: each has parameters of its
    own and, in every group, the `peak` of its learning rate / average: state of the config's average, empty if none /
    meter: loss and gradient norm of the latest log_every steps, on the device, (2, log_every); column = step mod
    log_every.
    """

    net: nn.Module
    optimizers: tuple[torch.optim.Optimizer, ...]
    average: dict[str, Tensor]
    meter: Tensor


def new_state(net: nn.Module, config: TrainConfig) -> State:
    """The state before the first step. Weight decay falls on parameters of two and more axes."""
    trained = [p for p in net.parameters() if p.requires_grad]
    average = {} if config.ema is None else config.ema.init(net.state_dict())
    meter = torch.zeros((2, config.log_every), device=trained[0].device)
    return State(net, tuple(_optimizers(net, trained, config)), average, meter)


def _optimizers(net: nn.Module, trained: list[nn.Parameter], config: TrainConfig) -> Iterator[torch.optim.Optimizer]:
    hidden = matrices(net) if config.optimizer == "muon" else []
    if hidden:
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        yield Muon(
            [{"params": hidden, "peak": config.muon_lr}], config.muon_lr, weight_decay=config.weight_decay, dtype=dtype
        )
    taken = set(hidden)
    groups = [
        {"params": [p for p in trained if p.ndim > 1 and p not in taken], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g | {"peak": config.lr} for g in groups if g["params"]]
    if groups:
        # fused: one pass over all parameters, and several times faster than the default for small networks
        yield torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def identity_of(task: Task, dataset: Dataset, config: TrainConfig) -> dict[str, str]:
    """What a checkpoint belongs to: settings, task, shapes of the network, data by its first samples."""
    x0, cond = dataset.batch(range(min(len(dataset), 64)))
    first = {"x0": x0} | {f"cond/{k}": v for k, v in cond.items()}
    shapes = "; ".join(f"{k} {tuple(v.shape)}" for k, v in task.net.state_dict().items())
    parts = task.identity()
    parts["network"] = f"{type(task.net).__name__} {files.digest({}, shapes)[:16]}"
    parts["data"] = f"{len(dataset)} x {dataset.shape} {files.digest(first, '')[:16]}"
    return config.identity() | parts


def save(folder: FilePath, state: State, step: int, identity: Mapping[str, str]) -> None:
    """Replace the checkpoint in `folder` by this state after `step` steps."""
    tensors = {f"net/{k}": v for k, v in state.net.state_dict().items()}
    tensors |= {f"ema/{k}": v for k, v in state.average.items()}
    for name, parameter in state.net.named_parameters():
        for optimizer in state.optimizers:
            tensors |= {f"optimizer/{name}/{k}": v for k, v in optimizer.state.get(parameter, {}).items()}
    tensors["meter"] = state.meter
    record = {"format": _FORMAT, "version": _VERSION, "step": step, "identity": dict(identity)}
    files.write(folder / CHECKPOINT, tensors, record)


def load(folder: FilePath, state: State, identity: Mapping[str, str]) -> int:
    """Fill `state` in place from the checkpoint in `folder` and return its step; 0, untouched, if there is none.

    Raises CheckpointError if the file is damaged, not a checkpoint, or of another run: the differences are named.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    tensors, record = files.read(path)
    if (record.get("format"), record.get("version")) != (_FORMAT, _VERSION):
        got = f"{record.get('format')!r} version {record.get('version')!r}"
        expected, remedy = f"{_FORMAT!r} version {_VERSION}", "Give an empty folder."
        raise CheckpointError(f"file {os.fspath(path)!r}", got=got, expected=expected, remedy=remedy)
    _check_identity(path, record["identity"], identity)
    state.net.load_state_dict(_under(tensors, "net/"))
    for k, v in _under(tensors, "ema/").items():
        state.average[k].copy_(v)
    state.meter.copy_(tensors["meter"])
    _load_memory(state, tensors)
    return record["step"]


def sweep(folder: FilePath) -> None:
    """Remove what a killed process left of half-written checkpoints."""
    for path in folder.glob(f".{CHECKPOINT}.*.tmp"):
        path.unlink(missing_ok=True)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _load_memory(state: State, tensors: Mapping[str, Tensor]) -> None:
    """What the optimisers remember, through their own loaders, which know what lives on which device."""
    names = {parameter: name for name, parameter in state.net.named_parameters()}
    for optimizer in state.optimizers:
        plain = optimizer.state_dict()
        order = [p for group in optimizer.param_groups for p in group["params"]]
        kept = {i: _under(tensors, f"optimizer/{names[p]}/") for i, p in enumerate(order)}
        plain["state"] = {i: memory for i, memory in kept.items() if memory}
        optimizer.load_state_dict(plain)


def _check_identity(path: FilePath, kept: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    differ = sorted(k for k in kept.keys() | wanted.keys() if kept.get(k) != wanted.get(k))
    if differ:
        got = ", ".join(f"{k} = {kept.get(k)}" for k in differ)
        expected = ", ".join(f"{k} = {wanted.get(k)}" for k in differ)
        remedy = "Give another folder, the run's own settings, or resume=False to overwrite it."
        raise CheckpointError(
            f"checkpoint {os.fspath(path)!r} of another run", got=got, expected=expected, remedy=remedy
        )
