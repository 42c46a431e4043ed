"""A training that is killed with SIGKILL, in the middle of a save or anywhere, goes on as if nothing had happened."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_training as tiny
import torch

from wayfield import files
from wayfield.train import fit


@contextlib.contextmanager
def training(out: Path) -> Iterator[subprocess.Popen]:
    """The long tiny training with slow saves, as a program of its own; killed at the end of the block."""
    process = subprocess.Popen([sys.executable, tiny.__file__, str(out), "slow"], stderr=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()  # it was still at work


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, "the training ended early"
        assert time.monotonic() < end, "the training never came that far"
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_runs_end_with_the_weights_of_an_uninterrupted_one(tmp_path):
    out, checkpoint = tmp_path / "killed", tmp_path / "killed" / "checkpoint.safetensors"
    with training(out) as process:  # killed while a save is half done
        wait_until(checkpoint.exists, process)
        wait_until(lambda: any(out.glob(".checkpoint.safetensors.*.tmp")), process)
    first = files.read(checkpoint)[1]["step"]
    assert 0 < first < tiny.LONG["steps"]
    assert any(out.glob(".*.tmp"))  # it was hit inside the save
    before = checkpoint.stat().st_mtime_ns
    with training(out) as process:  # killed anywhere
        wait_until(lambda: checkpoint.stat().st_mtime_ns > before, process)
        time.sleep(random.uniform(0.0, 0.3))
    assert files.read(checkpoint)[1]["step"] > first
    settings = tiny.config(**tiny.LONG | {"save_every": 1000})  # how often to save is not part of a run
    resumed = fit(tiny.denoiser(), tiny.points(), settings, out=out, progress=False)
    whole = fit(tiny.denoiser(), tiny.points(), settings, progress=False)
    for ours, theirs in ((resumed.raw, whole.raw), (resumed.denoiser, whole.denoiser)):
        for a, b in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
            assert torch.equal(a, b)
    assert not any(out.glob(".*.tmp"))
