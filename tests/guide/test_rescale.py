"""Rescaled guidance against equations 15 and 16 of its paper, written out in the network's own space."""

import math
from types import SimpleNamespace

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import RangeError, UnknownNameError
from wayfield.core.path import VP
from wayfield.core.predict import Prediction, convert
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Guidance
from wayfield.guide.rescale import Rescale
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M

GRID = G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1])
T = 0.7


def model_of(mixture, kind):
    """The exact mixture, answering in a kind."""
    exact = mixture(VP(), d=3)

    class Net(torch.nn.Module):
        def forward(self, x, t, cond):
            scales = exact.path.scales(t.double())
            a, s = (v[:, None] if v.ndim else v for v in (scales.alpha, scales.sigma))
            x0 = exact.net(x, t, cond)
            return convert(kind, Prediction(x0, (x - a * x0) / s), scales)

    return Denoiser(Net(), exact.path, kind, shape=exact.shape, schema=exact.schema)


def step(model, guidance):
    """One step to the clean end lands on the guided x0: it, c, u and the point."""
    x = torch.linspace(-1, 2, 15).double().reshape(5, 3)
    cond = {"label": LABELS}
    got = sample(model, G.given(VP(), (T, 0.0)), x=x, samples=5, cond=cond, guidance=guidance, dtype=torch.float64).x
    return got, model(x, T, cond).x0, model(x, T).x0, x


def to(space, x0, x, scales):
    """x0 in a space, (B, *D)."""
    a, s = float(scales.alpha), float(scales.sigma)
    eps = (x - a * x0) / s
    return {"x0": x0, "eps": eps, "v": a * eps - s * x0}[space]


def back(space, y, x, scales):
    """The x0 behind it."""
    a, s = float(scales.alpha), float(scales.sigma)
    return {"x0": y, "eps": (x - s * y) / a, "v": a * x - s * y}[space]


def paper(c, u, w, phi, x, space):
    """Sample by sample."""
    scales = VP().scales(torch.tensor(T, dtype=torch.float64))
    pos, neg = (to(space, x0, x, scales) for x0 in (c, u))
    cfg, out = neg + w * (pos - neg), []
    for one, full in zip(pos, cfg, strict=True):
        rescaled = full * (one.std() / full.std())
        out.append(phi * rescaled + (1 - phi) * full)
    return back(space, torch.stack(out), x, scales)


@pytest.mark.parametrize(
    ("kind", "space", "inside"),
    [("v", "native", "v"), ("eps", "native", "eps"), ("x0", "native", "x0"), ("v", "x0", "x0"), ("x0", "eps", "eps")],
)
@pytest.mark.parametrize("phi", [0.0, 0.3, 0.7, 1.0])
def test_the_paper_by_hand(mixture, kind, space, inside, phi):
    got, c, u, x = step(model_of(mixture, kind), CFG(6.0).through(Rescale(phi, space)))
    torch.testing.assert_close(got, paper(c, u, 6.0, phi, x, inside), rtol=1e-10, atol=1e-10)


def test_in_full_the_spread_is_that_of_the_condition(mixture):
    got, c, _, _ = step(model_of(mixture, "x0"), CFG(6.0).through(Rescale(1.0)))
    torch.testing.assert_close(got.std(1), c.std(1), rtol=1e-11, atol=0)
    assert not torch.allclose(got, c, atol=1e-2)


def test_spaces_differ(mixture):
    spaces = ("native", "x0", "eps")
    native, x0, eps = (step(model_of(mixture, "v"), CFG(6.0).through(Rescale(0.7, s)))[0] for s in spaces)
    for a, b in ((native, x0), (native, eps), (x0, eps)):
        assert float((a - b).abs().max()) > 1e-3


def run(mixture, guidance, samples=5, labels=LABELS, **options):
    options = {"solver": DPM2M(), "dtype": torch.float64, **options}
    return sample(
        mixture(VP(), d=3), GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options
    )


def test_phi_0_changes_nothing_to_the_bit(mixture):
    assert torch.equal(run(mixture, CFG(3.0).through(Rescale(0.0))).x, run(mixture, CFG(3.0)).x)


def test_w_1_is_no_guidance_to_the_bit(mixture):
    got = run(mixture, CFG(1.0).through(Rescale(0.7)))
    assert torch.equal(got.x, run(mixture, None).x)
    assert got.counts.rows == 30


def test_the_push_of_equal_predictions_stays_nothing(mixture):
    """Away from the same condition: the ratio is 1 and no rounding of a conversion enters."""
    guidance = CFG(5.0, away="same").through(Rescale(0.7, "eps"))
    got = run(mixture, guidance, conds={"same": {"label": LABELS}}).x
    assert torch.equal(got, run(mixture, None).x)


def test_sample_k_does_not_depend_on_its_batch(mixture):
    guidance = CFG(5.0).through(Rescale(0.7))
    whole, alone = run(mixture, guidance).x, run(mixture, guidance, [3], LABELS[3:4]).x
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-11, atol=1e-11)


def test_constant_answers_have_no_spread(mixture):
    """A network that answers with constants: nothing to compare, nothing changes, no NaN."""
    schema = mixture(VP(), d=3).schema

    class Net(torch.nn.Module):
        def forward(self, x, t, cond):
            return (0.1 + cond["label"].to(x.dtype))[:, None].expand_as(x)

    model = Denoiser(Net(), VP(), "x0", shape=(3,), schema=schema)
    got, c, u, _ = step(model, CFG(3.0).through(Rescale(1.0)))
    torch.testing.assert_close(got, u + 3 * (c - u), rtol=1e-12, atol=1e-12)


def test_a_single_value_is_warned_of(mixture):
    with pytest.warns(UserWarning, match="single value"):
        Rescale().init(torch.zeros(4, 1), 3)
    Rescale(0.0).init(torch.zeros(4, 1), 3)


@pytest.mark.parametrize("rows", ["exact", "fixed"])
def test_it_compiles_and_rebuilds(mixture, rows):
    guidance = Guidance(CFG(5.0).through(Rescale(0.7, "eps")), rows=rows)
    got = run(mixture, guidance, solver=DDIM(), compile="eager").x
    torch.testing.assert_close(got, run(mixture, guidance, solver=DDIM()).x, rtol=1e-11, atol=1e-11)
    assert eval(repr(Rescale(0.5, "x0"))) == Rescale(0.5, "x0")


def alone(base, push, phi=1.0):
    """A shaper at a point whose answers are x0 itself."""
    ask = SimpleNamespace(base=base, express=lambda x0, space: x0, recover=lambda y, space: y)
    return Rescale(phi, "x0").shape(ask, push, None, ())[0]


def test_float16(randn64):
    """Squares of these answers overflow it; twice the base is scaled back to it."""
    base = 300 * randn64(2, 50).half()
    push = alone(base, base)
    assert push.dtype == torch.float16
    torch.testing.assert_close(push, torch.zeros_like(base), rtol=0, atol=1.0)


def test_without_spread_nothing_changes_and_gradients_are_finite():
    """A single value, and constant answers; samples may be differentiated through."""
    for shape in ((2, 1), (2, 4)):
        base, push = torch.ones(shape).requires_grad_(), torch.full(shape, 0.5).requires_grad_()
        got = alone(base, push)
        assert torch.equal(got, push)
        assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), (base, push)))


@pytest.mark.parametrize("phi", [-0.1, 1.1, math.nan])
def test_bad_phi(phi):
    with pytest.raises(RangeError, match="phi"):
        Rescale(phi)


def test_bad_space():
    with pytest.raises(UnknownNameError, match="eps"):
        Rescale(0.5, "ep")
