"""Bands of frequency: against a pyramid of convolutions by hand, diffusers' guider, and facts of pyramids."""

from itertools import pairwise

import pytest
import torch
from tests.guide import peers
from torch.nn import functional as F

from wayfield.core.errors import RangeError, ShapeError
from wayfield.guide import CFG, NULL, Away, Guidance
from wayfield.guide.frequency import Bands, fdg


def blur(y):
    """Convolution of every channel with the outer product of binomial weights, edges mirrored."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=y.dtype) / 16
    channels = y.shape[1]
    kernel = torch.outer(line, line).expand(channels, 1, 5, 5)
    return F.conv2d(F.pad(y, (2, 2, 2, 2), mode="reflect"), kernel, groups=channels)


def halved(y):
    return F.interpolate(blur(y), size=(y.shape[2] // 2, y.shape[3] // 2), mode="bilinear", align_corners=False)


def doubled(y, like):
    return blur(F.interpolate(y, size=like.shape[2:], mode="bilinear", align_corners=False))


def pyramid(y, levels):
    smooth = [y]
    for _ in range(levels - 1):
        smooth.append(halved(smooth[-1]))
    return [a - doubled(b, a) for a, b in pairwise(smooth)] + smooth[-1:]


def paper(c, u, scales):
    """Both answers taken apart, every band guided, and put together again."""
    guided = [b + w * (a - b) for a, b, w in zip(pyramid(c, len(scales)), pyramid(u, len(scales)), scales, strict=True)]
    out = guided[-1]
    for band in guided[-2::-1]:
        out = doubled(out, band) + band
    return out


def shaped(push, gains, axes=(-2, -1)):
    bands = Bands(gains, axes)
    return bands.shape(None, push, None, bands.init(push, 1))[0]


@pytest.mark.parametrize("kind", list(peers.PATHS))
@pytest.mark.parametrize("scales", [(10.0, 5.0), (6.0, 1.0), (1.0, 4.0), (8.0, 4.0, 2.0), (3.0,)])
def test_the_paper_by_hand_in_every_space(kind, scales):
    size = (2, 12, 10)
    den, x, c, u = peers.world(kind, size)
    got = peers.ours(den, x, fdg(scales))
    torch.testing.assert_close(got, peers.x0_of(kind, paper(c, u, scales), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scales", [(10.0, 5.0), (8.0, 4.0, 2.0)])
def test_agrees_with_diffusers(scales):
    pytest.importorskip("kornia", reason="diffusers' guider takes its pyramid from kornia")
    guiders = pytest.importorskip("diffusers.guiders")
    den, x, c, u = peers.world("velocity", (2, 16, 16))
    want = peers.theirs(guiders.FrequencyDecoupledGuidance(guidance_scales=list(scales)), c, u)
    got = peers.ours(den, x, fdg(scales))
    torch.testing.assert_close(got, peers.x0_of("velocity", want, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [(7, 9), (16, 16), (13, 6)])
def test_equal_gains_give_back_what_came(size):
    push = peers.noise(1, 2, 3, *size)
    torch.testing.assert_close(shaped(push, (3.0, 3.0, 3.0)[: 2 + (min(size) > 6)]), 3 * push, rtol=1e-13, atol=1e-13)


def test_a_constant_is_coarse_and_a_checkerboard_is_fine():
    flat = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(shaped(flat, (9.0, 4.0)), 4 * flat, rtol=1e-13, atol=1e-13)
    board = 1.0 - 2 * (torch.arange(16)[:, None] + torch.arange(16)).remainder(2)[None, None].double()
    torch.testing.assert_close(shaped(board, (9.0, 4.0)), 9 * board, rtol=1e-13, atol=1e-13)


def test_bands_add_up():
    """The rule is linear in the gains, and in the push."""
    push = peers.noise(1, 2, 3, 8, 8)
    apart = shaped(push, (9.0, 0.0)) + shaped(push, (0.0, 4.0))
    torch.testing.assert_close(apart, shaped(push, (9.0, 4.0)), rtol=1e-12, atol=1e-12)


def test_axes():
    """Along one axis every line is on its own; two axes in any order are the same."""
    push = peers.noise(1, 2, 3, 8)
    lines = torch.stack([shaped(push[:, k], (5.0, 1.0), (-1,)) for k in range(3)], 1)
    torch.testing.assert_close(shaped(push, (5.0, 1.0), (-1,)), lines, rtol=1e-13, atol=1e-13)
    picture = peers.noise(2, 2, 3, 8, 10)
    swapped = shaped(picture, (5.0, 1.0), (2, 3))
    torch.testing.assert_close(shaped(picture, (5.0, 1.0), (-1, -2)), swapped, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    push = peers.noise(1, 2, 3, 8, 8)
    got = shaped(push.to(dtype), (9.0, 4.0))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), shaped(push, (9.0, 4.0)), rtol=2e-2, atol=0.15)


def test_neutral():
    assert fdg((1.0, 1.0)).neutral
    assert torch.equal(peers.run(fdg((1.0, 1.0))).x, peers.run(None).x)
    torch.testing.assert_close(peers.run(fdg((3.0, 3.0))).x, peers.run(CFG(3.0)).x, rtol=1e-11, atol=1e-11)


def test_sample_k_does_not_depend_on_its_batch():
    whole, alone = peers.run(fdg()).x, peers.run(fdg(), [2], peers.LABELS[2:]).x
    torch.testing.assert_close(alone[0], whole[2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", ["exact", "fixed"])
def test_it_compiles(rows):
    got = peers.run(Guidance(fdg(), rows=rows), compile="eager").x
    torch.testing.assert_close(got, peers.run(fdg()).x, rtol=1e-11, atol=1e-11)


def test_fields():
    assert eval(repr(Bands((1.0, 2.0, 3.0), (-1,)))) == Bands((1.0, 2.0, 3.0), (-1,))
    assert fdg() == 1.0 * Away(NULL).through(Bands())
    for fields in (((),), ((float("nan"),),), ((1.0, 2.0), ()), ((1.0, 2.0), (0,))):
        with pytest.raises(RangeError, match="bands"):
            Bands(*fields)


@pytest.mark.parametrize(
    ("size", "gains", "axes"),
    [((4,), (1.0, 2.0), (-2, -1)), ((3, 2, 8), (1.0, 2.0), (-2, -1)), ((3, 8, 5), (1.0, 2.0, 3.0), (-2, -1))],
)
def test_data_that_has_no_such_bands(size, gains, axes):
    with pytest.raises(ShapeError, match="bands"):
        Bands(gains, axes).init(torch.zeros(2, *size), 1)


def test_one_axis_twice():
    with pytest.raises(ShapeError, match="axes"):
        Bands((1.0, 2.0), (-1, 3)).init(torch.zeros(2, 3, 8, 8), 1)
