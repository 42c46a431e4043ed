"""What a training tells the world: loss, gradient norm and speed every so many steps, and the alarm when they break.

Reading a number from the device makes the device wait, so losses stay there in a ring (the meter) and are read
together every `log_every` steps. A NaN is then found late, but the ring still knows at which step it appeared.

    log.jsonl, one line per reading: {"step", "loss", "grad_norm", "lr", "samples_per_second"}

A line that cannot be written, because the disk is full, is left out with a warning; the training goes on.

step: steps done / loss, grad_norm: means over the latest log_every steps
meter: (2, L = log_every), column = step mod L.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import final

from torch import Tensor

from wayfield import files
from wayfield.core.errors import NonFiniteError
from wayfield.train.config import TrainConfig, learning_rate
from wayfield.train.watch import not_written

__all__ = ["LOG", "Journal", "check_finite", "window_mean"]

LOG = "log.jsonl"


def check_finite(meter: Tensor, done: int) -> None:
    """Raise NonFiniteError naming the first bad step among the latest of `done` steps. meter: (2, L) on the host."""
    bad = (~meter.isfinite()).any(0).nonzero()[:, 0].tolist()
    if not bad:
        return
    width = meter.shape[1]
    column = min(bad, key=lambda c: done - 1 - (done - 1 - c) % width)
    step = done - 1 - (done - 1 - column) % width
    loss, norm = meter[:, column].tolist()
    what = "loss" if not math.isfinite(loss) else "gradient"
    raise NonFiniteError(
        f"{what} at step {step + 1}",
        got=f"loss {loss:g}, gradient norm {norm:g}",
        expected="finite numbers",
        remedy="The last checkpoint is from before it. Lower lr, add warmup or clip, or check the data.",
    )


def window_mean(meter: Tensor, done: int) -> tuple[float, float]:
    """Mean loss and gradient norm over the current window: the steps since the last multiple of its length."""
    count = (done - 1) % meter.shape[1] + 1
    loss, norm = meter[:, :count].double().mean(1).tolist()
    return loss, norm


@final
class Journal:
    """Writes the log of one run, and hands each line to a function.

    folder: where log.jsonl goes, None = nowhere / start: steps already done; later lines of an earlier run are cut off.
    """

    def __init__(
        self,
        folder: FilePath | None,
        config: TrainConfig,
        start: int,
        log: Callable[[Mapping[str, float]], None] | None,
    ) -> None:
        self._path = None if folder is None else folder / LOG
        self._config, self._log = config, log
        self._since, self._clock = start, time.perf_counter()
        if self._path is not None:
            files.write_bytes(self._path, b"".join(_kept(self._path, start)))

    def line(self, meter: Tensor, done: int) -> None:
        """Report the window that ends after `done` steps. meter: (2, L) on the host."""
        loss, norm = window_mean(meter, done)
        now = time.perf_counter()
        rate = (done - self._since) * self._config.batch / (now - self._clock)
        lr = learning_rate(self._config, done - 1)
        self._since, self._clock = done, now
        entry = {"step": done, "loss": loss, "grad_norm": norm, "lr": lr, "samples_per_second": round(rate, 1)}
        if self._path is not None:
            _append(self._path, json.dumps(entry) + "\n")
        if self._log is not None:
            self._log(entry)


def _append(path: FilePath, text: str) -> None:
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # half a line would spoil the next
        not_written(f"a line of {os.fspath(path)!r}", error)


def _kept(path: FilePath, start: int) -> list[bytes]:
    """The whole lines of an existing log up to step `start`; a kill can cut the last one short."""
    out = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            if json.loads(line)["step"] <= start:
                out.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return out
