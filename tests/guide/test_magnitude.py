"""Magnitude-aware guidance: against its formula sample by sample and diffusers' guider, and its edges."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.guide import peers

from wayfield.core.errors import RangeError, UnknownNameError
from wayfield.guide import CFG, Guidance
from wayfield.guide.magnitude import MagnitudeAware, mambo


def paper(c, u, w, a):
    """Sample by sample."""
    out = []
    for one, none in zip(c, u, strict=True):
        r = float((one - none).norm() / none.norm())
        out.append(none + (1 + (w - 1) * math.exp(-a * r)) * (one - none))
    return torch.stack(out)


def alone(c, push, a=8.0):
    """The shaped contrast at a point whose answers are x0 itself."""
    ask = SimpleNamespace(base=c, express=lambda x0, space: x0, recover=lambda y, space: y)
    return MagnitudeAware(a, "x0").shape(ask, push, None, ())[0]


@pytest.mark.parametrize("kind", list(peers.PATHS))
@pytest.mark.parametrize("a", [0.0, 0.5, 8.0])
def test_the_formula_by_hand(kind, a):
    den, x, c, u = peers.world(kind)
    got = peers.ours(den, x, mambo(10.0, a))
    torch.testing.assert_close(got, peers.x0_of(kind, paper(c, u, 10.0, a), x), rtol=1e-9, atol=1e-9)


def test_another_space():
    """Lengths of x0 with a network of velocities."""
    den, x, *answers = peers.world("velocity")
    c, u = (peers.x0_of("velocity", y, x) for y in answers)
    got = peers.ours(den, x, mambo(10.0, 1.0, space="x0"))
    torch.testing.assert_close(got, paper(c, u, 10.0, 1.0), rtol=1e-9, atol=1e-9)
    assert float((got - peers.ours(den, x, mambo(10.0, 1.0))).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["velocity", "eps"])
def test_agrees_with_diffusers(kind):
    """Theirs takes norms over two dimensions at most, so it is shown each picture as rows."""
    guiders = pytest.importorskip("diffusers.guiders")
    den, x, c, u = peers.world(kind)
    guider = guiders.MagnitudeAwareGuidance(guidance_scale=10.0, alpha=1.5)
    want = peers.theirs(guider, c.flatten(1, 2), u.flatten(1, 2)).reshape(x.shape)
    got = peers.ours(den, x, mambo(10.0, 1.5))
    torch.testing.assert_close(got, peers.x0_of(kind, want, x), rtol=1e-9, atol=1e-9)


def test_diffusers_defaults_are_ours():
    guider = pytest.importorskip("diffusers.guiders").MagnitudeAwareGuidance()
    assert mambo() == mambo(guider.guidance_scale, guider.alpha)


def test_zeros():
    """No push, no answer to compare it with, neither."""
    c = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    push = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    got = alone(c, push)
    assert torch.equal(got, torch.zeros(3, 2))
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), (c, push)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    c, push = 300 * peers.noise(1, 2, 5000), 30 * peers.noise(2, 2, 5000)
    got = alone(c.to(dtype), push.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), alone(c, push), rtol=3e-2, atol=1e-2)


def test_neutral():
    assert mambo(1.0).neutral
    assert torch.equal(peers.run(mambo(1.0)).x, peers.run(None).x)
    torch.testing.assert_close(peers.run(mambo(3.0, 0.0)).x, peers.run(CFG(3.0)).x, rtol=1e-11, atol=1e-11)


def test_scales_per_sample_and_batches():
    each = peers.run(mambo((1.0, 3.0, 5.0), 1.0)).x
    torch.testing.assert_close(each[1], peers.run(mambo(3.0, 1.0), [1], peers.LABELS[1:2]).x[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(each[2], peers.run(mambo(5.0, 1.0)).x[2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", ["exact", "fixed"])
def test_it_compiles(rows):
    got = peers.run(Guidance(mambo(4.0, 1.0, space="eps"), rows=rows), kind="v", compile="eager").x
    torch.testing.assert_close(got, peers.run(mambo(4.0, 1.0, space="eps"), kind="v").x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("a", [-1.0, math.nan, math.inf])
def test_bad_a(a):
    with pytest.raises(RangeError, match="MagnitudeAware"):
        MagnitudeAware(a)


def test_it_rebuilds_and_refuses():
    assert eval(repr(MagnitudeAware(2.0, "eps"))) == MagnitudeAware(2.0, "eps")
    with pytest.raises(UnknownNameError):
        MagnitudeAware(8.0, "score")
    with pytest.warns(UserWarning, match="already scaled"):
        CFG(3.0).through(MagnitudeAware())
