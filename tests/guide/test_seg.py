"""Smoothed attention: the blur against a padded convolution, layers against blurred queries, and as a term."""

import math

import pytest
import torch
from tests.field.patchworld import B, ask, dit, normal, points, sd3, sd_unet, unet
from torch.nn import functional as F

from wayfield.core.errors import RangeError
from wayfield.core.grid import uniform
from wayfield.core.path import Straight
from wayfield.field.patch import install
from wayfield.guide.seg import SEG, SmoothedAttention, blur
from wayfield.sampling.driver import sample

ON = torch.ones(B).bool()


def convolved(h, sigma):
    """h (B, C, H, W) blurred by one convolution, its edges reflected."""
    half = math.ceil(6 * sigma) // 2
    line = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=h.dtype) / sigma) ** 2)
    line = line / line.sum()
    kernel = (line[:, None] * line).expand(h.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(h, (half,) * 4, mode="reflect"), kernel, groups=h.shape[1])


def smoothed(world, sigma):
    model, undo = install(world.model, "seg", SmoothedAttention((world.layer,), sigma))
    out = ask(model, {**world.cond, "seg": ON}, points(world))
    undo()
    return out


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.9])
@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
def test_blur_is_a_convolution(sigma, size):
    h = normal(3, 2, 3, *size).double()
    got = blur(h.movedim(1, -1), sigma).unflatten(1, size).movedim(-1, 1)
    torch.testing.assert_close(got, convolved(h, sigma), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 4), (1, 6), (2, 3), (1, 1)])
@pytest.mark.parametrize("sigma", [0.5, 5.0, 200.0, math.inf])
def test_blur_keeps_what_is_flat(size, sigma):
    h = torch.full((1, *size, 2), 3.0, dtype=torch.float64)
    torch.testing.assert_close(blur(h, sigma), h.flatten(1, 2), rtol=1e-12, atol=1e-12)


def test_narrow_is_nothing_and_wide_is_the_mean():
    h = normal(4, 2, 5, 5, 3).double()
    torch.testing.assert_close(blur(h, 0.05), h.flatten(1, 2), rtol=0, atol=1e-12)
    mean = h.mean((1, 2))[:, None].expand(2, 25, 3)
    assert torch.equal(blur(h, math.inf), mean)
    assert torch.equal(blur(h, 1e5), mean)


@pytest.mark.parametrize("sigma", [0.6, math.inf])
def test_our_transformer_by_hand(sigma):
    world = dit()
    got, layer = smoothed(world, sigma), world.model.net.blocks[1].attention
    query = layer.query.forward
    layer.query.forward = lambda h: blur(query(h).unflatten(1, (4, 4)), sigma)
    close(got, ask(world.model, world.cond, points(world)))


def test_our_unet_by_hand():
    world = unet()
    got, layer = smoothed(world, math.inf), world.model.net.middle[0].attention.attention
    query = layer.query.forward
    layer.query.forward = lambda h: query(h).mean(1, keepdim=True).expand(-1, h.shape[1], -1)
    close(got, ask(world.model, world.cond, points(world)))


def test_unet_of_diffusers_by_hand():
    world = sd_unet()
    got, layer = smoothed(world, 0.4), world.model.net.get_submodule(world.layer)
    query = layer.to_q.forward
    layer.to_q.forward = lambda h: (
        convolved(query(h).unflatten(1, (4, 4)).movedim(-1, 1), 0.4).flatten(2).transpose(1, 2)
    )
    close(got, ask(world.model, world.cond, points(world)))


def test_words_are_not_blurred():
    world = sd3()
    layer = world.model.net.get_submodule(world.layer)
    layer.norm_q = layer.norm_k = None  # so that blurring before the heads' norm is the same
    got, query = smoothed(world, math.inf), layer.to_q.forward
    layer.to_q.forward = lambda h: query(h).mean(1, keepdim=True).expand(-1, h.shape[1], -1)
    close(got, ask(world.model, world.cond, points(world)))


def test_the_term():
    world = dit()
    model, _ = install(world.model, "seg", SmoothedAttention((world.layer,), 2.0))
    off = {"tokens": world.cond["tokens"]}
    told = {"cond": off, "conds": {"smoothed": {**off, "seg": True}}, "samples": B}
    grid = uniform(Straight(), 1)
    plain, steered = sample(model, grid, **told), sample(model, grid, **told, guidance=SEG(3.0))
    away = sample(model, grid, cond={**off, "seg": True}, samples=B)
    close(steered.x, plain.x + 3 * (plain.x - away.x))
    assert steered.counts[:2] == (1, 2 * B)
    none = sample(model, grid, **told, guidance=SEG(0.0))
    assert torch.equal(none.x, plain.x)
    assert none.counts == plain.counts


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), "1", True])
def test_bad_sigma(sigma):
    with pytest.raises(RangeError, match="sigma"):
        SmoothedAttention((), sigma)


def test_bad_scale():
    with pytest.raises(RangeError, match="scale s of SEG"):
        SEG(float("nan"))


def test_written_out():
    assert eval(repr(SEG(2.5))) == SEG(2.5)
    assert SEG().s == 3.0
