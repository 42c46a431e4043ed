"""Whoever watches a training cannot change it, and what cannot be written beside the checkpoint does not stop it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from tiny_training import config, denoiser, points

from wayfield import files
from wayfield.core.errors import CheckpointError, UnsupportedError
from wayfield.core.grid import karras
from wayfield.sampling import sample
from wayfield.train import fit
from wayfield.train.watch import Watch


class Sees(Watch):
    """Draws two points each time, and remembers everything."""

    def __init__(self, fails=lambda step: None):
        self.begun, self.drawn, self.fails = [], {}, fails

    def begin(self, task, dataset, config, step):
        self.begun.append((len(dataset), config.steps, step))

    def sample(self, task, step):
        self.fails(step)
        assert not task.net.training
        assert not any(p.requires_grad for p in task.net.parameters())
        model, cond = task.denoiser, {"label": torch.tensor([0, 2])}
        self.drawn[step] = sample(model, karras(model.path, 4, sigma_max=10.0), samples=2, cond=cond).x
        for p in task.net.parameters():
            p.zero_()  # a copy: nothing that happens here reaches the training


def run(out=None, *, watch=None, stop_at=None, **changes):
    settings = config(**{"sample_every": 7} | changes)
    return fit(denoiser(), points(), settings, out=out, progress=False, watch=watch, stop_at=stop_at)


def tensors(folder):
    return files.read(folder / "checkpoint.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("ema", [config().ema, None], ids=["average", "none"])
def test_a_watched_training_has_the_numbers_of_an_unwatched_one(tmp_path, ema):
    watch, state = Sees(), torch.get_rng_state()
    watched = run(tmp_path / "a", watch=watch, ema=ema)
    run(tmp_path / "b", ema=ema, sample_every=0)
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
    assert torch.equal(torch.get_rng_state(), state)
    assert watch.begun == [(50, 60, 0)]
    assert list(watch.drawn) == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    model, cond = watched.denoiser, {"label": torch.tensor([0, 2])}
    last = sample(model, karras(model.path, 4, sigma_max=10.0), samples=2, cond=cond).x
    assert torch.equal(watch.drawn[60], last)
    assert float((last - watch.drawn[7]).abs().max()) > 0.2


def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(tmp_path):
    whole, first, second = Sees(), Sees(), Sees()
    run(tmp_path / "a", watch=whole)
    run(tmp_path / "b", watch=first, stop_at=30)
    run(tmp_path / "b", watch=second)
    assert second.begun == [(50, 60, 30)]
    assert same(first.drawn | second.drawn, whole.drawn)
    assert list(second.drawn) == [35, 42, 49, 56, 60]


def test_a_watch_may_refuse_before_the_first_step(tmp_path):
    class Refuses(Sees):
        def begin(self, task, dataset, config, step):
            raise UnsupportedError("samples", got="points", expected="pictures", remedy="Set sample_every = 0.")

    with pytest.raises(UnsupportedError):
        run(tmp_path / "out", watch=Refuses())
    assert not (tmp_path / "out").exists()


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_samples_that_cannot_be_written_are_left_out_with_a_warning(tmp_path):
    with pytest.warns(RuntimeWarning, match="samples of step 21 could not be written: .*No space"):
        run(tmp_path / "a", watch=Sees(lambda step: full() if step == 21 else None))
    run(tmp_path / "b")
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))


def test_a_bug_in_a_watch_is_not_hidden(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, watch=Sees(lambda step: 1 // (step - 21)))
    assert files.read(tmp_path / "checkpoint.safetensors")[1]["step"] == 20


def test_a_log_line_that_does_not_fit_is_left_out_whole(tmp_path, monkeypatch):
    real = Path.open
    fails = iter([False, True, *[False] * 20])

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:9])
            self.file.flush()
            full()

    def opened(path, *args, **options):
        file = real(path, *args, **options)
        return Half(file) if path.name == "log.jsonl" and args == ("a",) and next(fails) else file

    monkeypatch.setattr(Path, "open", opened)
    with pytest.warns(RuntimeWarning, match=r"a line of .*log\.jsonl' could not be written"):
        run(tmp_path / "a")
    lines = (tmp_path / "a" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [8, 24, 32, 40, 48, 56, 60]
    run(tmp_path / "b")
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))


def test_a_disk_that_fills_up_costs_the_steps_since_the_last_checkpoint(tmp_path, monkeypatch):
    real, left = os.fsync, iter([True] * 3)  # the empty log and two checkpoints fit
    monkeypatch.setattr(os, "fsync", lambda fd: real(fd) if next(left, False) else full())
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors'.*No space left") as caught:
        run(tmp_path / "a")
    assert "run the same again" in caught.value.remedy
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    assert files.read(tmp_path / "a" / "checkpoint.safetensors")[1]["step"] == 20
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
