"""The loop: it learns, resumes to the bit, refuses other runs, names the step that broke, and logs what it did."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from tiny_training import SCHEMA, SPEC, config, denoiser, points
from torch import nn

from wayfield import files
from wayfield.core.errors import CheckpointError, ConditionError, DTypeError, NonFiniteError, RangeError, ShapeError
from wayfield.core.path import EDM, Straight
from wayfield.data import InMemory
from wayfield.field.cond import Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import build
from wayfield.train import LogNormal, PowerEMA, fit, read_snapshots, synthesise
from wayfield.train.batches import draw
from wayfield.train.losses import denoising_loss


def weights(model: Denoiser) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.net.parameters()])


def run(settings=None, **options):
    return fit(denoiser(), points(), settings or config(), progress=False, **options)


def test_the_loss_of_a_tiny_model_falls_below_a_third():
    lines = []
    result = run(config(steps=400, batch=64, log_every=40), log=lines.append)
    assert lines[-1]["loss"] < lines[0]["loss"] / 3  # measured: 0.753 to 0.205
    assert result.loss == lines[-1]["loss"]
    assert [line["step"] for line in lines] == list(range(40, 401, 40))
    batch = draw(points(), SCHEMA, EDM(10.0), config(batch=50, drop=0.0, seed=9), 0, range(50))
    losses = [denoising_loss(m, *batch, weight="edm").mean().item() for m in (denoiser(), result.denoiser)]
    assert losses[1] < losses[0] / 2


def test_one_step_is_the_one_written_by_hand():
    settings = config(steps=1, warmup=0, decay=0.0, clip=None, ema=None, weight_decay=0.1, log_every=1)
    result = run(settings)
    model = denoiser()
    batch = draw(points(), SCHEMA, EDM(10.0), settings, 0, range(9))
    denoising_loss(model, *batch, weight="edm").mean().backward()
    for name, p in model.net.named_parameters():
        with torch.no_grad():  # AdamW's first step: bias-corrected moments are g and g^2
            p.mul_(1 - settings.lr * 0.1 * (p.ndim > 1)).sub_(settings.lr * p.grad / (p.grad.abs() + 1e-8))
        assert torch.allclose(p, result.raw.net.get_parameter(name), rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("ema", [None, PowerEMA((0.1, 0.05)), config().ema], ids=["none", "power", "half-life"])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, ema):
    whole = run(config(ema=ema), out=tmp_path / "whole")
    for stop_at in (
        1,
        23,
        23,
        50,
        None,
    ):  # inside and at the borders of log windows; asking twice for the same changes nothing
        part = run(config(ema=ema, save_every=17), out=tmp_path / "parts", stop_at=stop_at)
    a, b = (files.read(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    assert a[1] == b[1]
    assert torch.equal(weights(whole.denoiser), weights(part.denoiser))
    logs = [[json.loads(x) for x in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("whole", "parts")]
    plain = [[{k: v for k, v in line.items() if k != "samples_per_second"} for line in log] for log in logs]
    assert plain[0] == plain[1]
    assert [line["step"] for line in plain[0]] == [8, 16, 24, 32, 40, 48, 56, 60]


def test_a_finished_run_returns_at_once_and_a_fresh_one_starts_over(tmp_path):
    first = run(config(steps=20), out=tmp_path)
    again = run(config(steps=20), out=tmp_path)
    assert torch.equal(weights(first.raw), weights(again.raw))
    assert (again.step, again.loss) == (first.step, first.loss)
    run(config(steps=20, seed=5), out=tmp_path, resume=False)
    assert files.read(tmp_path / "checkpoint.safetensors")[1]["identity"]["seed"] == "5"


def test_nothing_is_written_without_a_folder_and_no_generator_moves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    result = run(config(steps=5))
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert result.step == 5


def test_the_average_lives_apart_from_the_raw_network():
    result = run()
    assert result.denoiser.net is not result.raw.net
    assert not torch.equal(weights(result.denoiser), weights(result.raw))
    assert not any(p.requires_grad for p in result.denoiser.net.parameters())
    plain = run(config(ema=None))
    assert plain.denoiser is plain.raw
    assert torch.equal(weights(plain.raw), weights(result.raw))  # averaging does not touch the training


def test_snapshots_make_other_averages(tmp_path):
    settings = config(ema=PowerEMA((0.05, 0.1)), snapshot_every=5)
    result = run(settings, out=tmp_path)
    kept = read_snapshots(tmp_path / "snapshots")
    assert len(kept) == 24
    made = torch.cat([synthesise(kept, 0.05)[k].flatten() for k, _ in result.raw.net.named_parameters()])
    assert torch.allclose(made, weights(result.denoiser), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"seed": 1}, "seed"), ({"steps": 61}, "steps"), ({"lr": 1e-3}, "lr"), ({"levels": LogNormal()}, "levels")],
)
def test_a_checkpoint_of_other_settings_is_refused_and_the_setting_named(tmp_path, change, named):
    run(out=tmp_path, stop_at=10)
    with pytest.raises(CheckpointError, match=rf"{named} = "):
        run(config(**change), out=tmp_path)


def test_a_checkpoint_of_another_network_path_or_data_is_refused(tmp_path):
    run(out=tmp_path, stop_at=10)
    wide = dataclasses.replace(denoiser(), net=build(SPEC | {"width": 20}))
    for model, data, named in (
        (wide, points(), "network"),
        (dataclasses.replace(denoiser(), path=EDM(9.0)), points(), "path"),
        (denoiser(), points(51), "data"),
        (denoiser(), InMemory(points().x + 0.1, points().cond, SCHEMA), "data"),
    ):
        with pytest.raises(CheckpointError, match=f"{named} = "):
            fit(model, data, config(), out=tmp_path, progress=False)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    run(out=tmp_path, stop_at=10)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    for bad in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            run(out=tmp_path)
    files.write(path, {"x": torch.zeros(1)}, {"format": "wayfield.model", "version": 1})
    with pytest.raises(CheckpointError, match=r"wayfield\.checkpoint"):
        run(out=tmp_path)


def test_left_overs_of_a_killed_save_are_swept_away(tmp_path):
    (tmp_path / ".checkpoint.safetensors.abc.tmp").write_bytes(b"half")
    (tmp_path / "log.jsonl").write_text('{"step": 8}\n{"step": 90}\n{"st')
    run(out=tmp_path, stop_at=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "log.jsonl"]
    assert (tmp_path / "log.jsonl").read_text() == ""  # both lines are from after step 0


class Breaks(nn.Module):
    """Answers with infinity, or has an infinite gradient, from its n-th call on."""

    def __init__(self, at: int, where: str) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.calls, self.at, self.where = itertools.count(), at, where

    def forward(self, x, time, cond):
        if next(self.calls) < self.at:
            return x * self.w
        if self.where == "loss":
            return x * self.w * float("inf")
        return x * self.w + (self.w - self.w.detach()).abs().sqrt().sum()  # 0, with an infinite slope


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("at", [0, 5, 13, 15])
def test_a_broken_run_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path, where, at):
    model = Denoiser(Breaks(at, where), Straight(), "velocity")
    with pytest.raises(NonFiniteError, match=f"{where} at step {at + 1}:"):
        fit(model, points(), config(steps=30, save_every=3, log_every=8), out=tmp_path, progress=False)
    if at >= 3:
        tensors, record = files.read(tmp_path / "checkpoint.safetensors")
        assert record["step"] == at // 3 * 3
        assert all(bool(v.isfinite().all()) for v in tensors.values())


def test_bf16_trains_and_differs_only_a_little():
    full, half = run(config(steps=30)), run(config(steps=30, precision="bf16"))
    assert all(p.dtype == torch.float32 for p in half.raw.net.parameters())
    assert half.loss == pytest.approx(full.loss, rel=0.05)
    assert half.loss != full.loss


def test_progress_bar_and_log_function(capsys):
    lines = []
    fit(denoiser(), points(), config(steps=16), progress=True, log=lines.append)
    assert capsys.readouterr().out == ""  # people read stderr, programs stdout
    assert [sorted(line) for line in lines] == [["grad_norm", "loss", "lr", "samples_per_second", "step"]] * 2


def frozen() -> Denoiser:
    model = denoiser()
    model.net.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "data", "settings", "error"),
    [
        (frozen, points, config, DTypeError),
        (denoiser, lambda: InMemory(torch.zeros(4, 3), {"label": torch.zeros(4).long()}, SCHEMA), config, ShapeError),
        (denoiser, lambda: InMemory(torch.zeros(4, 2)), config, ConditionError),
        (lambda: dataclasses.replace(denoiser(), schema=Schema(SCHEMA.fields)), points, config, ConditionError),
        (denoiser, points, lambda: config(snapshot_every=5), DTypeError),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_the_first_step(model, data, settings, error):
    with pytest.raises(error):
        fit(model(), data(), settings(), progress=False)


def test_a_model_without_conditions_trains_on_labelled_data():
    net = build({k: v for k, v in SPEC.items() if k != "num_classes"})
    fit(Denoiser(net, EDM(10.0), "edm"), points(), config(steps=3), progress=False)


def test_more_processes_than_samples_are_refused(monkeypatch):
    from wayfield.train import loop
    from wayfield.train.engine import Engine

    monkeypatch.setattr(loop, "start_engine", lambda device: Engine(0, 10, device))
    with pytest.raises(RangeError, match="10 processes"):
        run()
