"""CFG-Zero*: against its least squares by hand, against diffusers' guider, and as a run that first stands still."""

from types import SimpleNamespace

import pytest
import torch
from tests.guide import peers

from wayfield.core.errors import RangeError, UnknownNameError
from wayfield.guide import CFG, NULL, Away, Guidance
from wayfield.guide.window import Window
from wayfield.guide.zero_star import OptimalScale, Still, zero_star


def paper(c, u, w):
    """Sample by sample, with the factor of a least-squares solver."""
    out = []
    for one, none in zip(c, u, strict=True):
        s = torch.linalg.lstsq(none.reshape(-1, 1), one.reshape(-1, 1)).solution.item()
        out.append(s * none + w * (one - s * none))
    return torch.stack(out)


@pytest.mark.parametrize("kind", list(peers.PATHS))
def test_least_squares_by_hand(kind):
    den, x, c, u = peers.world(kind)
    got = peers.ours(den, x, zero_star(4.0, 0))
    torch.testing.assert_close(got, peers.x0_of(kind, paper(c, u, 4.0), x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("space", ["x0", "eps"])
def test_spaces_are_those_of_such_networks(space):
    """In x0 the rule is that of a network that answers with x0, whatever this one answers with."""
    den, x, c, u = peers.world("v")
    path = den.path.scales(torch.tensor(peers.T, dtype=torch.float64))
    a, s = path.alpha, path.sigma
    x0s = [peers.x0_of("v", y, x) for y in (c, u)]
    c, u = x0s if space == "x0" else [(x - a * x0) / s for x0 in x0s]
    got = peers.ours(den, x, zero_star(4.0, 0, space=space))
    torch.testing.assert_close(got, peers.x0_of(space, paper(c, u, 4.0), x), rtol=1e-9, atol=1e-9)
    assert float((got - peers.ours(den, x, zero_star(4.0, 0))).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", ["velocity", "eps"])
def test_agrees_with_diffusers(kind):
    """Theirs computes the factor in float32."""
    guiders = pytest.importorskip("diffusers.guiders")
    den, x, c, u = peers.world(kind)
    guider = guiders.ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=2)
    want = peers.x0_of(kind, peers.theirs(guider, c, u, step=2), x)
    torch.testing.assert_close(peers.ours(den, x, zero_star(4.0, 0)), want, rtol=1e-5, atol=1e-5)
    want = peers.x0_of(kind, peers.theirs(guider, c, u, step=1), x)
    torch.testing.assert_close(peers.ours(den, x, zero_star(4.0, 2)), want, rtol=1e-9, atol=1e-9)


def test_the_first_steps_stand_still():
    """On a straight path a velocity of 0 leaves the point; those steps ask no unconditional answer."""
    seen = []
    got = peers.run(zero_star(3.0, 2), callback=lambda info: seen.append(info.x))
    start = peers.run(None, steps=6, callback=lambda info: seen.append(info.x) if not info.i else None)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(seen[1], seen[2])
    assert not torch.allclose(got.x, start.x)
    assert got.counts.rows == 3 * (2 + 4 * 2)


def test_shares_are_rounded_down():
    still = zero_star(3.0, 0.4, unit="share")
    torch.testing.assert_close(peers.run(still).x, peers.run(zero_star(3.0, 2)).x, rtol=0, atol=0)


def test_proportional_answers_leave_nothing_to_push():
    """c = 2 u: s* = 2."""

    class Net(torch.nn.Module):
        def forward(self, x, t, cond):
            return torch.where(cond["label"] == 2, 1.0, 2.0)[:, None, None, None] * (x + 1)

    den, x, *_ = peers.world("velocity")
    den = type(den)(Net(), den.path, "velocity", schema=den.schema)
    want = peers.ours(den, x, None)
    torch.testing.assert_close(peers.ours(den, x, zero_star(5.0, 0)), want, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(peers.ours(den, x, CFG(5.0)), want)


def test_an_answer_of_zero_has_no_size_to_correct():
    """The push is then as it was, and differentiable; so it is where both are 0."""
    c = peers.noise(1, 2, 5) * torch.tensor([[1.0], [0.0]])
    ask = SimpleNamespace(base=c, express=lambda x0, space: x0, recover=lambda y, space: y)
    push = c.clone().requires_grad_()
    got, _ = OptimalScale("x0").shape(ask, push, None, ())
    assert torch.equal(got, push)
    assert torch.autograd.grad(got.sum(), push)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Squares of these answers overflow float16."""
    c, push = 300 * peers.noise(1, 2, 50), 100 * peers.noise(2, 2, 50)

    def shaped(c, push):
        ask = SimpleNamespace(base=c, express=lambda x0, space: x0, recover=lambda y, space: y)
        return OptimalScale("x0").shape(ask, push, None, ())[0]

    got = shaped(c.to(dtype), push.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), shaped(c, push), rtol=2e-2, atol=6.0)


def test_neutral():
    assert zero_star(1.0, 0).neutral
    assert torch.equal(peers.run(zero_star(1.0, 0)).x, peers.run(None).x)


def test_scales_per_sample():
    each = peers.run(zero_star((1.0, 3.0, 5.0))).x
    for k, w in enumerate((1.0, 3.0, 5.0)):
        torch.testing.assert_close(each[k], peers.run(zero_star(w)).x[k], rtol=1e-10, atol=1e-10)


def test_sample_k_does_not_depend_on_its_batch():
    whole, alone = peers.run(zero_star(4.0)).x, peers.run(zero_star(4.0), [2], peers.LABELS[2:]).x
    torch.testing.assert_close(alone[0], whole[2], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
def test_it_compiles(rows):
    guidance = Guidance(zero_star(4.0, 2), rows=rows)
    got = peers.run(guidance, compile="eager").x
    torch.testing.assert_close(got, peers.run(zero_star(4.0, 2)).x, rtol=1e-11, atol=1e-11)


def test_it_rebuilds_and_refuses():
    for part in (OptimalScale("eps"), Still("x0")):
        assert eval(repr(part)) == part
    for make in (lambda: OptimalScale("velocity"), lambda: Still("v"), lambda: zero_star(3.0, unit="step")):
        with pytest.raises(UnknownNameError):
            make()
    with pytest.raises(RangeError, match="whole number"):
        zero_star(3.0, 0.5)
    with pytest.warns(UserWarning, match="already scaled"):
        CFG(3.0).through(OptimalScale())


def test_still_is_a_term_of_its_own():
    term = 3 * Away(NULL).through(OptimalScale()).when(Window(1)) + Still().when(Window(0, 1))
    torch.testing.assert_close(peers.run(term).x, peers.run(zero_star(4.0)).x, rtol=0, atol=0)
