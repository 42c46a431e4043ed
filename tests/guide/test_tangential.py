"""Tangential damping: the closed form against a singular value decomposition and diffusers' guider, and its edges."""

from types import SimpleNamespace

import pytest
import torch
from tests.guide import peers

from wayfield.core.errors import UnknownNameError
from wayfield.guide import CFG, Guidance
from wayfield.guide.tangential import Tangential, tcfg


def paper(c, u, w):
    """Sample by sample, with singular vectors in float64."""
    out = []
    for one, none in zip(c, u, strict=True):
        v = torch.linalg.svd(torch.stack([one.flatten(), none.flatten()]), full_matrices=False)[2][0]
        damped = ((none.flatten() @ v) * v).reshape(none.shape)
        out.append(damped + w * (one - damped))
    return torch.stack(out)


def alone(c, u):
    """The shaped contrast at a point whose answers are x0 itself."""
    ask = SimpleNamespace(base=c, express=lambda x0, space: x0, recover=lambda y, space: y)
    return Tangential("x0").shape(ask, c - u, None, ())[0]


@pytest.mark.parametrize("kind", list(peers.PATHS))
def test_singular_vectors_by_hand(kind):
    den, x, c, u = peers.world(kind)
    got = peers.ours(den, x, tcfg(4.0))
    torch.testing.assert_close(got, peers.x0_of(kind, paper(c, u, 4.0), x), rtol=1e-9, atol=1e-9)


def test_the_papers_space():
    """Scores, here of a network of velocities: a network of noise has them as its native space."""
    den, x, c, u = peers.world("velocity")
    path = den.path.scales(torch.tensor(peers.T, dtype=torch.float64))
    eps = [(x - path.alpha * peers.x0_of("velocity", y, x)) / path.sigma for y in (c, u)]
    want = (x - path.sigma * paper(*eps, 4.0)) / path.alpha
    got = peers.ours(den, x, tcfg(4.0, space="eps"))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert float((got - peers.ours(den, x, tcfg(4.0))).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["velocity", "eps"])
def test_agrees_with_diffusers(kind):
    """Theirs decomposes in float32."""
    guiders = pytest.importorskip("diffusers.guiders")
    den, x, c, u = peers.world(kind)
    want = peers.theirs(guiders.TangentialClassifierFreeGuidance(guidance_scale=4.0), c, u)
    torch.testing.assert_close(peers.ours(den, x, tcfg(4.0)), peers.x0_of(kind, want, x), rtol=1e-4, atol=1e-4)


def test_many_pairs_of_random_rows():
    """Both signs of the product, either row the longer one."""
    c, u = peers.noise(1, 60, 6), peers.noise(2, 60, 6) * torch.linspace(0.1, 3, 60)[:, None]
    torch.testing.assert_close(alone(c, u), paper(c, u, 1.0) - paper(c, u, 0.0), rtol=1e-9, atol=1e-9)


def test_orthogonal_answers():
    """The longer one decides; of two equal ones the unconditional answer stays as it is."""
    c = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]).double()
    u = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 1.0], [0.0, 0.0]]).double()
    want = torch.stack([c[0], c[1] - u[1], c[2] - u[2], c[3]])
    torch.testing.assert_close(alone(c, u), want, rtol=1e-12, atol=1e-12)


def test_of_a_small_push_the_part_along_stays_and_half_of_the_rest():
    c = 1 + peers.noise(1, 3, 7)
    push = 1e-6 * peers.noise(2, 3, 7)
    along = (push * c).sum(1, keepdim=True) / (c * c).sum(1, keepdim=True) * c
    torch.testing.assert_close(alone(c, c - push), along + (push - along) / 2, rtol=1e-4, atol=1e-11)


def test_gradients_are_finite():
    """Also where no direction is the better one."""
    c = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    u = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    assert all(g.isfinite().all() for g in torch.autograd.grad(alone(c, u).sum(), (c, u)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    c, u = 300 * peers.noise(1, 2, 50), 200 * peers.noise(2, 2, 50)
    got = alone(c.to(dtype), u.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), alone(c, u), rtol=3e-2, atol=12.0)


def test_neutral():
    assert tcfg(1.0).neutral
    assert torch.equal(peers.run(tcfg(1.0)).x, peers.run(None).x)


def test_scales_per_sample_and_batches():
    each = peers.run(tcfg((1.0, 3.0, 5.0))).x
    torch.testing.assert_close(each[1], peers.run(tcfg(3.0), [1], peers.LABELS[1:2]).x[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(each[2], peers.run(tcfg(5.0)).x[2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", ["exact", "fixed"])
def test_it_compiles(rows):
    got = peers.run(Guidance(tcfg(4.0, space="eps"), rows=rows), kind="v", compile="eager").x
    torch.testing.assert_close(got, peers.run(tcfg(4.0, space="eps"), kind="v").x, rtol=1e-10, atol=1e-10)


def test_it_rebuilds_and_refuses():
    assert eval(repr(Tangential("eps"))) == Tangential("eps")
    with pytest.raises(UnknownNameError):
        Tangential("score")
    with pytest.warns(UserWarning, match="already scaled"):
        CFG(3.0).through(Tangential())
