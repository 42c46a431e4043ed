"""The autoencoder's code is a Gaussian with the textbook divergence; shapes, seeds and gradients are as promised."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from wayfield.core.errors import DTypeError, RangeError, ShapeError, UnknownNameError
from wayfield.field.nets import Autoencoder, AutoencoderConfig, Posterior, build, spec_of

SPEC = {"net": "Autoencoder", "shape": [3, 16, 8], "latent": 2, "channels": [8, 16], "patch": 2}


def net(seed=0, **changes):
    return build(SPEC | changes, seed=seed)


def test_the_divergence_is_that_of_two_normals(randn64):
    mean, logvar = randn64(5, 2, 3, 3), randn64(5, 2, 3, 3, seed=1)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(Posterior(mean, logvar).kl(), expected, rtol=1e-12, atol=1e-12)


def test_a_sample_is_the_mean_moved_by_the_deviation(randn64):
    mean, noise = randn64(4, 2, 3, 3), randn64(4, 2, 3, 3, seed=1)
    drawn = Posterior(mean, torch.full_like(mean, 2 * torch.tensor(0.25).log())).sample(noise)
    torch.testing.assert_close(drawn, mean + 0.25 * noise)
    with pytest.raises(ShapeError, match="noise"):
        Posterior(mean, mean).sample(noise[:2])


@pytest.mark.parametrize(
    ("changes", "factor", "code"),
    [
        ({}, 4, (2, 4, 2)),
        ({"patch": 1}, 2, (2, 8, 4)),
        ({"channels": [8]}, 2, (2, 8, 4)),
        ({"channels": [8, 8, 8], "patch": 1, "blocks": 2, "latent": 3}, 4, (3, 4, 2)),
    ],
)
def test_sizes(changes, factor, code, randn64):
    model = net(**changes)
    assert (model.config.factor, model.config.code) == (factor, code)
    x = randn64(2, 3, 16, 8, dtype=torch.float32)
    y, posterior = model(x)
    assert y.shape == x.shape
    assert posterior.mean.shape == posterior.logvar.shape == (2, *code)
    assert torch.equal(y, model.decode(model.encode(x).mean))


def test_noise_reaches_the_picture_and_is_scaled_by_the_deviation(randn64):
    model, x = net(), randn64(2, 3, 16, 8, dtype=torch.float32)
    noise = randn64(2, 2, 4, 2, dtype=torch.float32)
    y, posterior = model(x, noise)
    assert torch.equal(y, model.decode(posterior.mean + (0.5 * posterior.logvar).exp() * noise))


def test_every_parameter_learns(randn64):
    model, x = net(), randn64(2, 3, 16, 8, dtype=torch.float32)
    noise = randn64(2, 2, 4, 2, dtype=torch.float32)
    for _ in range(2):  # at first a residual block is silent before its last convolution, which starts at zero
        y, posterior = model(x, noise)
        grads = torch.autograd.grad((y - x).square().mean() + posterior.kl().mean(), list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.1 * g
    assert all(bool(g.any()) for g in grads)


def test_specs_round_trip_and_seeds_decide_the_weights():
    model = net(seed=3)
    again = build(spec_of(model), seed=3)
    assert spec_of(again) == spec_of(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(net(seed=4).moments.weight, model.moments.weight)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"shape": [3, 16]}, ShapeError, "shape"),
        ({"shape": [3, 16, 6]}, ShapeError, "downsampling"),
        ({"channels": []}, RangeError, "level"),
        ({"channels": [8, 12]}, ShapeError, "groups"),
        ({"latent": 0}, RangeError, "latent"),
        ({"latent": 49}, RangeError, "48"),
        ({"latent": 2.0}, DTypeError, "latent"),
        ({"patch": 0}, RangeError, "patch"),
        ({"laten": 2}, UnknownNameError, "latent"),
    ],
)
def test_bad_settings_are_refused(changes, error, match):
    with pytest.raises(error, match=match):
        net(**changes)


def test_wrong_shapes_are_refused():
    model = Autoencoder(AutoencoderConfig((1, 8, 8), channels=(8, 8)))
    with pytest.raises(ShapeError, match="Autoencoder input"):
        model.encode(torch.zeros(1, 1, 8, 4))
    with pytest.raises(ShapeError, match="latents"):
        model.decode(torch.zeros(1, 4, 4, 4))
