"""One process or many: the few operations a training loop needs of the engine below it.

A single process needs no engine and imports none. Under `torchrun` or `accelerate launch` (WORLD_SIZE > 1) the work
is spread by accelerate: each process owns a slice of the global batch, DistributedDataParallel averages gradients.

rank, world: this process's number and how many there are / device: where this process computes.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import MissingExtraError, UnsupportedError

__all__ = ["Engine", "processes", "start_engine"]

_ALONE = (
    "`accelerate launch --cpu` starts a single process, whatever --num_processes says; to spread the work, "
    "on the CPU too, use `accelerate launch --multi_gpu --num_processes N` or torchrun"
)


@final
@dataclass(frozen=True, eq=False)
class Engine:
    """The engine of this process. `accelerator` is None for a single one."""

    rank: int
    world: int
    device: torch.device
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network to call in training, already on `device`: its gradients are means over all processes."""
        return net if self.accelerator is None else self.accelerator.prepare_model(net, device_placement=False)

    def place(self, x: Tensor) -> Tensor:
        """`x` on this process's device, without waiting for the device's earlier work."""
        # only pinned memory is copied behind the host's back
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)

    def mean(self, x: Tensor) -> Tensor:
        """The mean of `x` over all processes."""
        return x if self.accelerator is None else self.accelerator.reduce(x, "mean")

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def processes() -> int:
    """How many processes the launcher started, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_engine(device: torch.device) -> Engine:
    """The engine that the launcher's environment asks for. device: for a single process; accelerate has its own.

    Raises MissingExtraError if there are several processes and accelerate is not installed. Warns if a launcher was
    asked for several and started one.
    """
    if processes() <= 1:
        if {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
            warnings.warn(_ALONE, RuntimeWarning, stacklevel=2)
        return Engine(0, 1, device)
    try:
        from accelerate import Accelerator
    except ImportError as error:
        remedy = 'Run: pip install "wayfield[train]", or start a single process.'
        got = "several processes, no accelerate"
        raise MissingExtraError("training", got=got, expected="accelerate >= 1.2", remedy=remedy) from error
    accelerator = Accelerator(cpu=device.type == "cpu")
    if accelerator.num_processes != processes():
        remedy = "Start with `accelerate launch`, or torchrun with a backend that accelerate knows."
        got = f"{accelerator.num_processes} joined of {processes()} started"
        raise UnsupportedError("processes", got=got, expected="all of them", remedy=remedy)
    return Engine(accelerator.process_index, accelerator.num_processes, accelerator.device, accelerator)
