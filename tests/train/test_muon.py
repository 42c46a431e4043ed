"""Muon: orthogonal directions, the published step, the right parameters, and runs that resume and spread like any."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import tiny_training as tiny
import torch
from torch import nn

from wayfield import files
from wayfield.core.errors import CheckpointError, DTypeError, RangeError, ShapeError
from wayfield.field.nets import build
from wayfield.train import fit
from wayfield.train.muon import Muon, matrices, orthogonalise


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 16, 48), (40, 10), (2, 3, 64, 9)], ids=str)
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_singular_values_become_alike_and_directions_stay(shape, size):
    u = size * randn(*shape)
    x = orthogonalise(u)
    assert x.shape == u.shape
    values = torch.linalg.svdvals(x)
    assert 0.68 < float(values.min()) <= float(values.max()) < 1.21
    left, _, right = torch.linalg.svd(u, full_matrices=False)
    inside = left.mT @ x @ right.mT  # diagonal: X U^T is U S V^T with another S
    torch.testing.assert_close(inside, torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1)), rtol=0, atol=1e-4)
    torch.testing.assert_close(orthogonalise(u, dtype=torch.bfloat16), x, rtol=0, atol=0.06)  # measured: at most 0.03


def test_nothing_comes_from_nothing():
    assert not orthogonalise(torch.zeros(2, 3, 5)).any()


def test_it_takes_the_steps_of_the_reference():
    """torch's own, for matrices only and with products in bfloat16, which is what the tolerance is for."""
    reference = getattr(torch.optim, "Muon", None)
    if reference is None:
        pytest.skip("torch has its own Muon from 2.9 on")
    start = [randn(8, 20, seed=1), randn(20, 8, seed=2), randn(8, 20, seed=3)]
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}
    one, two = Muon(ours, **options, dtype=torch.bfloat16), reference(theirs, **options)
    for k in range(5):
        for parameters, optimizer in ((ours, one), (theirs, two)):
            for i, p in enumerate(parameters):
                p.grad = randn(*p.shape, seed=10 * k + i)
            optimizer.step()
    for a, b, p in zip(ours, theirs, start, strict=True):
        assert float((a - p).detach().abs().max()) > 0.2
        torch.testing.assert_close(a, b, rtol=0, atol=0.01)  # measured: at most 0.003


def test_a_kernel_is_stepped_as_the_matrix_it_is():
    kernel, matrix = nn.Parameter(randn(6, 4, 3, 3)), nn.Parameter(randn(6, 4, 3, 3).reshape(6, 36))
    for p in (kernel, matrix):
        p.grad = randn(6, 36, seed=1).reshape(p.shape)
        Muon([p], 0.1).step()
    assert torch.equal(kernel.reshape(6, 36), matrix)
    values = torch.linalg.svdvals(matrix.detach() - randn(6, 36))
    assert 0.068 < float(values.min()) <= float(values.max()) < 0.121  # lr times a nearly orthogonal matrix


def test_a_tall_matrix_takes_larger_steps():
    tall, wide = nn.Parameter(torch.zeros(32, 8)), nn.Parameter(torch.zeros(8, 32))
    tall.grad = randn(32, 8)
    wide.grad = tall.grad.T.contiguous()
    Muon([tall, wide], 0.1).step()
    torch.testing.assert_close(tall, 2 * wide.T)


def test_it_descends_on_a_badly_scaled_quadratic_where_gradient_steps_crawl():
    scales, target = torch.logspace(-2, 0, 12), randn(12, 30)
    w = nn.Parameter(torch.zeros(12, 30))
    optimizer = Muon([w], 0.2)
    losses = []
    for k in range(150):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - k / 150)
        loss = 0.5 * ((w - target) * scales[:, None]).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-3 * losses[0]
    # the flattest row: 150 gradient steps at rate 1 leave (1 - 1e-4)^150 = 98.5 % of its error
    assert float((w - target)[0].detach().norm() / target[0].norm()) < 0.5  # measured: 0.40


@pytest.mark.parametrize(
    "spec",
    [
        {"net": "UNet", "shape": [3, 8, 8], "channels": [8, 16], "attention": [1], "num_classes": 3, "width": 16},
        {"net": "DiT", "shape": [3, 8, 8], "depth": 2, "width": 32, "num_classes": 3, "places": "learned"},
        {"net": "ResidualMLP", "shape": [2], "width": 16, "num_classes": 3},
        {"net": "Classifier", "shape": [1, 8, 8], "classes": 3, "width": 8},
    ],
    ids=lambda spec: spec["net"],
)
def test_hidden_matrices_and_kernels_only(spec):
    net = build(spec)
    chosen = {name for name, p in net.named_parameters() if any(p is q for q in matrices(net))}
    rest = {name: p for name, p in net.named_parameters() if name not in chosen}
    assert {"stem.weight", "out.weight"} <= rest.keys()
    for name, p in rest.items():
        embedding = isinstance(net.get_submodule(name.rpartition(".")[0]), nn.Embedding)
        assert name.startswith(("stem.", "out.")) or p.ndim == 1 or embedding, name
    assert len(chosen) > 4
    assert all(net.get_parameter(name).ndim in (2, 4) for name in chosen)
    if spec["net"] in ("UNet", "DiT"):
        assert any(name.endswith("attention.out.weight") for name in chosen)  # an inner `out` is hidden
    net.requires_grad_(False)
    assert matrices(net) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, precision):
    settings, parts = tiny.config(**tiny.MUON, precision=precision), (23, 24, None)
    whole = fit(tiny.denoiser(), tiny.points(), settings, out=tmp_path / "whole", progress=False)
    for stop_at in parts:
        fit(tiny.denoiser(), tiny.points(), settings, out=tmp_path / "parts", progress=False, stop_at=stop_at)
    a, b = (files.read(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "parts"))
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    hidden = {name for name, p in whole.raw.net.named_parameters() if any(p is q for q in matrices(whole.raw.net))}
    assert {k.split("/")[1] for k in a[0] if k.endswith("/momentum")} == hidden
    rest = dict(whole.raw.net.named_parameters()).keys() - hidden
    assert {k.split("/")[1] for k in a[0] if k.endswith("/exp_avg")} == rest


def test_a_run_of_adamw_is_not_gone_on_with_by_muon(tmp_path):
    fit(tiny.denoiser(), tiny.points(), tiny.config(), out=tmp_path, progress=False, stop_at=5)
    with pytest.raises(CheckpointError, match="optimizer = 'adamw'"):
        fit(tiny.denoiser(), tiny.points(), tiny.config(optimizer="muon"), out=tmp_path, progress=False)


def test_the_loop_sets_both_rates_and_learns():
    lines = []
    settings = tiny.config(**tiny.MUON, steps=200, batch=64, log_every=40, decay=0.5)
    fit(tiny.denoiser(), tiny.points(), settings, progress=False, log=lines.append)
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    one = tiny.config(
        **tiny.MUON | {"weight_decay": 0.0}, steps=1, warmup=2, decay=0.0, clip=None, muon_lr=0.04, ema=None
    )
    result, start = fit(tiny.denoiser(), tiny.points(), one, progress=False), tiny.denoiser()
    change = {n: p.detach() - start.net.get_parameter(n).detach() for n, p in result.raw.net.named_parameters()}
    assert float(change["stem.weight"].abs().max()) <= 1.001 * one.lr / 2  # AdamW's first step, half way up the rise
    hidden = next(n for n, p in result.raw.net.named_parameters() if any(p is q for q in matrices(result.raw.net)))
    assert torch.linalg.matrix_norm(change[hidden], 2) <= 1.21 * 0.04 / 2 * 2**0.5  # hidden matrices are 1 : 2 at most


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    fit(tiny.denoiser(), tiny.points(), tiny.config(**tiny.MUON), out=tmp_path / "one", progress=False)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, tiny.__file__, str(tmp_path / "two"), "muon"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (one, _), (two, _) = (files.read(tmp_path / n / "checkpoint.safetensors") for n in ("one", "two"))
    assert 0 < max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda w: Muon([w], 0.0), RangeError),
        (lambda w: Muon([w], momentum=1.0), RangeError),
        (lambda w: Muon([w], weight_decay=-1.0), RangeError),
        (lambda w: Muon([w], "0.1"), DTypeError),
        (lambda w: Muon([nn.Parameter(torch.zeros(3))]), ShapeError),
    ],
)
def test_bad_settings_are_refused(make, error):
    with pytest.raises(error):
        make(nn.Parameter(torch.zeros(2, 2)))
