"""A codec standardises latents by stored numbers, undoes that exactly, and lets gradients through both ways."""

from __future__ import annotations

import pytest
import torch

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, ShapeError, UnsupportedError
from wayfield.core.noise import SeededNoise
from wayfield.field.latent import LatentCodec
from wayfield.field.nets import build

SPEC = {"net": "Autoencoder", "shape": [1, 8, 8], "latent": 2, "channels": [8, 8], "patch": 1, "groups": 4}
MEAN, STD = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0])


def codec(**changes):
    return LatentCodec.of(build(SPEC).requires_grad_(False), MEAN, STD, **changes)


def linear(mean=MEAN, std=STD, **changes):
    """Doubles and halves: every number is known."""
    return LatentCodec(lambda x: 2 * x, lambda z: z / 2, mean, std, **changes)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_each_channel_is_moved_and_scaled(sigma_data, randn64):
    x = randn64(6, 2, 3, 3)
    z = linear(sigma_data=sigma_data).encode(x)
    for k in range(2):
        torch.testing.assert_close(z[:, k], sigma_data * (2 * x[:, k] - MEAN[k]) / STD[k])
    torch.testing.assert_close(linear(sigma_data=sigma_data).decode(z), x)


def test_latents_need_not_be_maps(randn64):
    x = randn64(6, 2)
    torch.testing.assert_close(linear().decode(linear().encode(x)), x)


def test_decoding_the_code_is_the_autoencoder(randn64):
    c, x = codec(), randn64(4, 1, 8, 8, dtype=torch.float32)
    torch.testing.assert_close(c.decode(c.encode(x)), c.net(x)[0], rtol=1e-5, atol=1e-5)
    assert (c.shape, c.code) == ((1, 8, 8), (2, 4, 4))


def test_gradients_pass_both_ways(randn64):
    c = linear()
    assert torch.autograd.gradcheck(c.encode, randn64(1, 2, 2, 2).requires_grad_())
    assert torch.autograd.gradcheck(c.decode, randn64(1, 2, 2, 2).requires_grad_())
    net = build(SPEC).double().requires_grad_(False)
    real = LatentCodec.of(net, MEAN, STD)
    for f, shape in ((real.encode, (1, 8, 8)), (real.decode, (2, 4, 4))):
        at = randn64(2, *shape).requires_grad_()
        along = randn64(2, *shape, seed=1)
        (slope,) = torch.autograd.grad(f(at).square().sum(), at)
        h = 1e-6
        difference = (f(at + h * along).square().sum() - f(at - h * along).square().sum()) / (2 * h)
        torch.testing.assert_close((slope * along).sum(), difference, rtol=1e-6, atol=1e-8)


def test_sampled_latents_have_addressed_noise(randn64):
    c, x = codec(), randn64(3, 1, 8, 8, dtype=torch.float32)
    z = c.encode(x, noise=SeededNoise(5, range(10, 13)))
    assert not torch.equal(z, c.encode(x))
    torch.testing.assert_close(c.encode(x[1:2], noise=SeededNoise(5, range(11, 12))), z[1:2], rtol=1e-5, atol=1e-6)
    posterior = c.net.encode(x)
    spread = (z - c.encode(x)) / (0.5 / STD[:, None, None] * (0.5 * posterior.logvar).exp())
    assert abs(float(spread.mean())) < 0.45  # 96 standard normals: 4.4 standard errors
    pair = LatentCodec(lambda x: (x, torch.zeros_like(x)), lambda z: z, MEAN, STD)
    assert not torch.equal(
        pair.encode(x.repeat(1, 2, 1, 1), noise=SeededNoise(0, 3)), pair.encode(x.repeat(1, 2, 1, 1))
    )


def test_an_encoder_of_points_cannot_be_sampled(randn64):
    with pytest.raises(UnsupportedError, match="logvar"):
        linear().encode(randn64(2, 2), noise=SeededNoise(0, 2))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: linear(std=torch.tensor([1.0, 0.0])), RangeError, "std"),
        (lambda: linear(std=torch.tensor([1.0, -1.0])), RangeError, "std"),
        (lambda: linear(std=torch.ones(3)), ShapeError, "mean"),
        (lambda: linear(torch.zeros(1, 2), torch.ones(1, 2)), ShapeError, "mean"),
        (lambda: linear(torch.zeros(0), torch.ones(0)), ShapeError, "mean"),
        (lambda: linear(torch.tensor([0.0, float("nan")])), NonFiniteError, "mean"),
        (lambda: linear(sigma_data=0.0), RangeError, "sigma_data"),
        (lambda: linear(sigma_data="1"), DTypeError, "sigma_data"),
        (lambda: linear(code=(3, 4, 4)), ShapeError, "codec mean"),
        (lambda: LatentCodec("encoder", lambda z: z, MEAN, STD), DTypeError, "encoder"),
        (lambda: linear().encode(torch.zeros(2, 3)), ShapeError, "latents"),
        (lambda: linear().decode(torch.zeros(2, 3)), ShapeError, "latents"),
        (lambda: codec().encode(torch.zeros(2, 1, 8, 4)), ShapeError, "pictures"),
        (lambda: codec().decode(torch.zeros(2, 2, 8, 8)), ShapeError, "latents"),
        (lambda: codec().encode(torch.zeros(2, 1, 8, 8, dtype=torch.int64)), DTypeError, "pictures"),
    ],
)
def test_bad_codecs_and_tensors_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
