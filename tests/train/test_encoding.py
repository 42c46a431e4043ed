"""The loss of an autoencoder is the sum of its terms, and its training resumes to the bit."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from wayfield import files, zoo
from wayfield.core.errors import CheckpointError, DTypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from wayfield.data.digits import digits
from wayfield.field.nets import build
from wayfield.train import TrainConfig, fit, setup, train
from wayfield.train.batches import draw
from wayfield.train.encoding import Encoding, Terms, feature_distance

CONFIG = {
    "data": "digits",
    "autoencoder": {"channels": [8, 8], "patch": 1, "latent": 2},
    "loss": {"kl": 0.01, "perceptual": {"model": "digits-classifier", "weight": 0.3}},
    "train": {"steps": 12, "batch": 9, "lr": 3e-3, "log_every": 4, "save_every": 4},
}


def batch(task, step=0):
    config = TrainConfig(batch=6, drop=0.0)
    return draw(digits(), task.schema, task.path, config, step, range(6)), config


@pytest.mark.parametrize("pixels", ["l1", "l2"])
def test_the_loss_is_the_sum_of_its_terms(pixels):
    task, _, _ = setup(CONFIG | {"loss": CONFIG["loss"] | {"pixels": pixels}})
    rows, config = batch(task)
    mean, logvar = task.net.encode(rows.x0)
    noise = rows.eps.flatten(1)[:, :32].reshape(6, 2, 4, 4)
    y = task.net.decode(mean + (0.5 * logvar).exp() * noise)
    kl = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).flatten(1).mean(1)
    apart = (y - rows.x0).flatten(1)
    expected = (apart.abs() if pixels == "l1" else apart**2).mean(1) + 0.01 * kl
    expected = expected + 0.3 * feature_distance(task.judge, rows.x0, y)
    torch.testing.assert_close(task.losses(rows, config), expected, rtol=1e-5, atol=1e-6)


def test_the_noise_of_a_row_is_its_own():
    task, _, _ = setup(CONFIG)
    rows, config = batch(task)
    alone = rows._replace(x0=rows.x0[2:3], eps=rows.eps[2:3], t=rows.t[2:3])
    torch.testing.assert_close(task.losses(alone, config), task.losses(rows, config)[2:3], rtol=1e-5, atol=1e-6)
    other = rows._replace(eps=rows.eps + 1)
    assert not torch.allclose(task.losses(other, config), task.losses(rows, config), rtol=1e-3)


def test_features_are_compared_at_unit_length(randn64):
    judge = zoo.load_classifier("digits-classifier")
    x, y = (randn64(4, 1, 8, 8, seed=s, dtype=torch.float32) for s in (0, 1))
    assert float(feature_distance(judge, x, x).max()) == 0
    d = feature_distance(judge, x, y)
    blocks = 2  # one per level
    assert bool(((d > 0) & (d <= 4 * blocks)).all())
    y.requires_grad_()
    feature_distance(judge, x, y).sum().backward()
    assert bool(y.grad.any())
    assert all(p.grad is None for p in judge.parameters())


def test_training_makes_it_better_and_keeps_the_statistics(tmp_path):
    before = setup(CONFIG)[0]
    after = train(CONFIG | {"train": {"steps": 40, "batch": 32, "lr": 3e-3}}, tmp_path, progress=False).model
    rows, config = batch(before)
    with torch.no_grad():
        assert float(after.losses(rows, config).mean()) < 0.7 * float(before.losses(rows, config).mean())
    record = files.read(tmp_path / "model.safetensors")[1]
    assert record["autoencoder"]["channels"] == [8, 8]
    raw = after.net.encode(digits().x).mean.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(record["latents"]["mean"], dtype=torch.float64), raw.mean(1))
    deviation = raw.std(1, correction=0)
    torch.testing.assert_close(torch.tensor(record["latents"]["std"], dtype=torch.float64), deviation)
    assert record["latents"]["sigma_data"] == 0.5


def test_an_interrupted_training_goes_on_to_the_bit(tmp_path):
    def run(folder, stop):
        task, data, settings = setup(CONFIG)
        return fit(task, data, settings, out=folder, progress=False, stop_at=stop)

    whole = run(tmp_path / "whole", None)
    run(tmp_path / "parts", 7)
    parts = run(tmp_path / "parts", None)
    assert whole.step == parts.step == 12
    for kind in ("model", "trained"):
        ours, theirs = getattr(whole, kind).net.state_dict(), getattr(parts, kind).net.state_dict()
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    task, data, settings = setup(CONFIG | {"loss": {"kl": 0.02}})
    with pytest.raises(CheckpointError, match="loss"):
        fit(task, data, settings, out=tmp_path / "parts", progress=False)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"autoencoder": {"chanels": [8]}}, UnknownNameError, "channels"),
        ({"autoencoder": 3}, DTypeError, "mapping"),
        ({"autoencoder": {"shape": [1, 4, 4], "channels": [8], "patch": 1, "latent": 1}}, ShapeError, "classifier"),
        ({"loss": {"kl": -1.0}}, RangeError, "kl"),
        ({"loss": {"pixels": "l3"}}, UnknownNameError, "pixel loss"),
        ({"loss": {"gan": 1}}, UnknownNameError, "loss"),
        ({"loss": {"perceptual": {"weight": 1.0}}}, UnknownNameError, "model"),
        ({"loss": {"perceptual": {"model": "digits"}}}, DTypeError, "classifier"),
        ({"sigma_data": 0.0}, RangeError, "sigma_data"),
        ({"train": {"drop": 0.1}}, UnknownNameError, "drop"),
        ({"conditions": []}, UnknownNameError, "condition"),
        ({"data": "shapes-240"}, ShapeError, "classifier"),
    ],
)
def test_bad_configs_are_refused(change, error, match, tmp_path):
    with pytest.raises(error, match=match):
        train(CONFIG | change, tmp_path, progress=False)


def test_classifiers_that_cannot_judge_are_refused():
    net = build({"net": "Autoencoder", "shape": [1, 8, 8], "channels": [8, 8], "patch": 1})
    judge = build({"net": "Classifier", "shape": [1, 8, 8], "classes": 3, "width": 8, "noise_aware": True})
    with pytest.raises(UnsupportedError, match="noise level"):
        Encoding(net, net.config.code, (1, 8, 8), Terms(perceptual=0.1), judge)
    with pytest.raises(UnsupportedError, match="perceptual"):
        Encoding(net, net.config.code, (1, 8, 8), Terms(perceptual=0.1))
