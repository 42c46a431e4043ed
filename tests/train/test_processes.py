"""Two processes train the same model as one: noise, levels and data are addressed by position, gradients averaged."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiny_training as tiny
import torch

from wayfield import files
from wayfield.core.errors import MissingExtraError
from wayfield.train import fit


@pytest.mark.slow
def test_two_processes_equal_one_and_go_on_where_one_stopped(tmp_path):
    whole = fit(tiny.denoiser(), tiny.points(), tiny.config(), out=tmp_path / "one", progress=False)
    fit(tiny.denoiser(), tiny.points(), tiny.config(), out=tmp_path / "two", progress=False, stop_at=7)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, tiny.__file__, str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (one, record), (two, other) = (files.read(tmp_path / n / "checkpoint.safetensors") for n in ("one", "two"))
    assert record == other
    assert record["step"] == whole.step == 60
    worst = max(float((one[k] - two[k]).abs().max()) for k in one)
    assert 0 < worst < 1e-5  # not 0: the sums really ran in another order
    start = dict(tiny.denoiser().net.named_parameters())
    assert max(float((one[f"net/{k}"] - p.detach()).abs().max()) for k, p in start.items()) > 0.05


def test_several_processes_need_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r'pip install "wayfield\[train\]"'):
        fit(tiny.denoiser(), tiny.points(), tiny.config(), progress=False)


def test_a_single_process_does_not_import_accelerate():
    code = "import sys, wayfield.train; sys.exit('accelerate' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_global_generator_is_not_touched_by_import_or_build():
    state = torch.get_rng_state()
    tiny.denoiser()
    assert torch.equal(torch.get_rng_state(), state)
