"""APG against its formulas written out, sample by sample; whole runs against loops written without the engine."""

import math
import warnings
from types import SimpleNamespace

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import RangeError, ShapeError, UnknownNameError
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import VP
from wayfield.field.binding import NULL, Query
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Auto, Away, Guidance
from wayfield.guide.apg import APG, PRESETS, apg, apg_preset, clip_norm, project
from wayfield.guide.roles import Gate
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, Heun

GRID = G.karras(VP(), 8, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1])
SHAPES = [(4, 3, 5, 5), (4, 6)]
FULL = APG(eta=0.3, r=0.4, beta=-0.5)


def pair(randn64, shape):
    return randn64(*shape, seed=1), randn64(*shape, seed=2)


def shaped(part, c, delta, state=None):
    state = part.init(c, 4) if state is None else state
    return part.shape(SimpleNamespace(base=c), delta, None, state)


def guided(part, c, u, w):
    return c + (w - 1) * shaped(part, c, c - u)[0]


def inner(a, b):
    return (a * b).flatten(1).sum(1)


def hand(c, delta, m, eta=0.0, r=math.inf, beta=0.0):
    """The algorithm, one sample after the other: what is pushed, and the momentum."""
    m, out = delta + beta * m, []
    for one, base in zip(m, c, strict=True):
        d, base = one.flatten(), base.flatten()
        d = d * min(1.0, r / math.sqrt(sum(v * v for v in d.tolist())))
        k = sum((d * base).tolist()) / sum((base * base).tolist())
        out.append((d - k * base + eta * k * base).reshape(one.shape))
    return torch.stack(out), m


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("w", [-1.0, 0.0, 1.0, 2.5, 15.0])
def test_neutral_settings_are_cfg(randn64, shape, w):
    c, u = pair(randn64, shape)
    torch.testing.assert_close(guided(APG(eta=1.0), c, u, w), u + w * (c - u), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_the_parallel_part_pythagoras_holds(randn64, shape):
    c, u = pair(randn64, shape)
    g = guided(APG(), c, u, 7.0)
    torch.testing.assert_close(inner(g - c, c), torch.zeros(4).double(), rtol=0, atol=1e-11)
    torch.testing.assert_close(inner(g, g) - inner(c, c), inner(g - c, g - c), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eta", [-1.0, 0.0, 0.4, 1.0])
def test_gain_form(randn64, eta):
    c, u = pair(randn64, (4, 6))
    k = (inner(c - u, c) / inner(c, c))[:, None]
    want = (1 + 6 * eta * k) * c + 6 * (c - u - k * c)
    torch.testing.assert_close(guided(APG(eta), c, u, 7.0), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("w", [0.0, 3.0, 15.0])
def test_parallel_predictions_are_left_alone(randn64, w):
    c = randn64(4, 6)
    torch.testing.assert_close(guided(APG(), c, 0.3 * c, w), c, rtol=1e-12, atol=1e-12)


def test_a_single_value_has_no_orthogonal_part(randn64):
    c, u = pair(randn64, (4, 1))
    with pytest.warns(UserWarning, match="single value"):
        g = guided(APG(), c, u, 9.0)
    torch.testing.assert_close(g, c, rtol=1e-12, atol=1e-12)


def test_clipping_shortens_to_r(randn64):
    d = randn64(6, 3, 2) * torch.tensor([0.0, 0.01, 0.1, 1.0, 10.0, 100.0]).double()[:, None, None]
    got, length = clip_norm(d, 1.5), d.flatten(1).norm(dim=1)
    torch.testing.assert_close(got.flatten(1).norm(dim=1), length.clamp(max=1.5), rtol=1e-12, atol=0)
    assert torch.equal(got[:3], d[:3])
    assert torch.equal(clip_norm(d, None), d)
    assert torch.equal(clip_norm(d, 0.0), d)


@pytest.mark.parametrize("part", [APG(r=0.4), FULL], ids=repr)
def test_scales_with_the_data(randn64, part):
    c, u = pair(randn64, (4, 6))
    big = APG(part.eta, 1e3 * part.r, part.beta)
    torch.testing.assert_close(guided(big, 1e3 * c, 1e3 * u, 5.0), 1e3 * guided(part, c, u, 5.0), rtol=1e-11, atol=0)


def test_turns_with_the_data(randn64):
    c, u = pair(randn64, (4, 6))
    q = torch.linalg.qr(randn64(6, 6, seed=3)).Q
    torch.testing.assert_close(guided(FULL, c @ q, u @ q, 5.0), guided(FULL, c, u, 5.0) @ q, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("beta", [-0.75, -0.5, 0.4])
def test_momentum_of_a_steady_push_is_a_geometric_sum(randn64, beta):
    c, delta = pair(randn64, (4, 6))
    part, state = APG(eta=1.0, beta=beta), None
    for n in range(1, 6):
        push, state = shaped(part, c, delta, state)
        torch.testing.assert_close(push, delta * (1 - beta**n) / (1 - beta), rtol=1e-12, atol=1e-12)
        assert torch.equal(state[0], push)


def test_momentum_is_kept_unclipped_and_unprojected(randn64):
    c, delta = pair(randn64, (4, 6))
    _, (m,) = shaped(APG(eta=0.0, r=0.01, beta=-0.5), c, delta)
    assert torch.equal(m, delta)
    assert APG().init(c, 4) == ()
    assert not APG().remembers
    assert APG(beta=-0.5).remembers


@pytest.mark.parametrize("shape", SHAPES)
def test_all_of_it_against_the_algorithm_written_out(randn64, shape):
    state, m = None, torch.zeros(shape).double()
    for n in range(4):
        c, delta = randn64(*shape, seed=10 + n), randn64(*shape, seed=20 + n)
        push, state = shaped(FULL, c, delta, state)
        want, m = hand(c, delta, m, 0.3, 0.4, -0.5)
        torch.testing.assert_close(push, want, rtol=1e-12, atol=1e-12)


def test_the_push_is_a_gradient(randn64):
    """delta is the gradient of |c - u|^2 / 2 in c, exactly: what makes clipping and momentum optimiser ideas."""
    c, u = pair(randn64, (4, 6))
    leaf = c.clone().requires_grad_()
    (g,) = torch.autograd.grad(0.5 * (leaf - u).square().sum(), leaf)
    assert torch.equal(shaped(APG(eta=1.0), c, c - u)[0], g)


def test_axes_and_rms(randn64):
    """Per channel: as if each channel were a sample of its own."""
    c, u = pair(randn64, (4, 3, 7))
    rows = guided(APG(r=0.5), c.reshape(12, 7), u.reshape(12, 7), 4.0).reshape(4, 3, 7)
    torch.testing.assert_close(guided(APG(r=0.5, axes=(-1,)), c, u, 4.0), rows, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(guided(APG(r=0.5, axes=(2,)), c, u, 4.0), rows, rtol=1e-12, atol=1e-12)
    rms = guided(APG(r=0.1, unit="rms"), c, u, 4.0)
    torch.testing.assert_close(rms, guided(APG(r=0.1 * 21**0.5), c, u, 4.0), rtol=1e-12, atol=1e-12)
    assert torch.equal(guided(APG(eta=0.3, axes=(1, 2)), c, u, 4.0), guided(APG(eta=0.3), c, u, 4.0))


def test_nothing_is_parallel_to_nothing(randn64):
    d, c = pair(randn64, (4, 6))
    c = c * torch.tensor([0.0, 1e-20, 1e-170, 1.0]).double()[:, None]
    parallel, orthogonal = project(d, c)
    assert torch.equal(orthogonal[0], d[0])
    assert parallel.isfinite().all()
    for k in (1, 3):  # a direction has no length
        torch.testing.assert_close(parallel[k], project(d, 5 * c)[0][k], rtol=1e-12, atol=0)
        assert (parallel[k] != 0).all()
    both = project(1e-170 * d, 1e-170 * d)  # squares underflow
    assert all(p.isfinite().all() for p in both)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_types_are_computed_in_float32(randn64, dtype):
    c, delta = (x.to(dtype) for x in pair(randn64, (4, 300)))
    big = delta * 300  # squares overflow float16
    parallel, orthogonal = project(big, c)
    assert parallel.dtype == orthogonal.dtype == dtype
    want = project(big.double(), c.double())[1].to(dtype)
    for got in (orthogonal, shaped(APG(), c, big)[0]):
        torch.testing.assert_close(got, want, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-2)
    push, (m,) = shaped(APG(r=2.0, beta=-0.5), c, big)
    assert push.dtype == dtype
    assert m.dtype == torch.float32
    assert float(push.double().norm(dim=1).max()) < 2.01


def test_gradients_are_finite_where_there_is_nothing(randn64):
    """Of a zero push and of a zero prediction: samples may be differentiated through."""
    for d, c in ((torch.zeros(2, 3), torch.ones(2, 3)), (torch.ones(2, 3), torch.zeros(2, 3))):
        d, c = d.requires_grad_(), c.requires_grad_()
        push, _ = shaped(APG(r=1.0), c, d)
        assert all(g.isfinite().all() for g in torch.autograd.grad(push.sum(), (d, c)))


def run(mixture, guidance, samples=5, labels=LABELS, kind="x0", **options):
    options = {"dtype": torch.float64, "solver": DPM2M(), "x": None, **options}
    model = mixture(VP(), d=3)
    if kind != "x0":
        model = mixture_of(model, kind)
    return sample(model, GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options)


def mixture_of(model, kind, gain=1.0):
    """The same exact world, answering in another kind; or a worse one, x0 times a gain."""
    from wayfield.core.predict import Prediction, convert

    class Net(torch.nn.Module):
        def forward(self, x, t, cond):
            scales = model.path.scales(t.double())
            x0 = gain * model.net(x, t, cond)
            a, s = (v.reshape(-1, *(1,) * (x.ndim - 1)) if v.ndim else v for v in (scales.alpha, scales.sigma))
            return convert(kind, Prediction(x0, (x - a * x0) / s), scales)

    return Denoiser(Net(), model.path, kind, shape=model.shape, schema=model.schema)


TERMS = {
    "paper": apg(4.0, r=0.5, beta=-0.5),
    "per sample": apg((1.0, 4.0, 2.0, 8.0, 0.0), r=0.5, beta=-0.5),
    "uncond_base": apg(4.0, beta=-0.5, variant="uncond_base"),
}


def start():
    noise = SeededNoise(3, 5)
    return float(GRID.scales.sigma[0]) * noise.draw((3,), Address(-1, 0, GRID.t[0], GRID.t[0])).double()


def looped(mixture, w=4.0, eta=0.0, r=0.5, beta=-0.5):
    """c, u and APG by hand at a point: a function of x, t and momentum."""
    den = mixture(VP(), d=3)

    def at(x, t, m):
        c, u = den(x, t, {"label": LABELS}).x0, den(x, t).x0
        push, m = hand(c, c - u, m, eta, r, beta)
        return c + (w - 1) * push, m

    return at


def test_dpm2m_against_a_loop_by_hand(mixture):
    a, s, x = GRID.scales.alpha, GRID.scales.sigma, start()
    lam, at, m, before = (a / s).log(), looped(mixture), torch.zeros(5, 3).double(), None
    for i in range(8):
        g, m = at(x, GRID.t[i], m)
        d, h = g, lam[i + 1] - lam[i]
        if before is not None and s[i + 1] > 0:
            ratio = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * ratio)) * g - before / (2 * ratio)
        grown = torch.expm1(-h) if s[i + 1] > 0 else torch.tensor(-1.0).double()
        x, before = s[i + 1] / s[i] * x - a[i + 1] * grown * d, g
    torch.testing.assert_close(run(mixture, TERMS["paper"]).x, x, rtol=1e-9, atol=1e-9)


def test_heun_commits_momentum_once_a_step(mixture):
    """Both evaluations add to the momentum of the step before; that of the first is kept."""
    a, s, x = GRID.scales.alpha, GRID.scales.sigma, start()
    at, m = looped(mixture), torch.zeros(5, 3).double()
    for i in range(8):
        g, new = at(x, GRID.t[i], m)
        eps = (x - a[i] * g) / s[i]
        x = a[i + 1] * g + s[i + 1] * eps
        if s[i + 1] > 0:
            later, _ = at(x, GRID.t[i + 1], m)
            slope = (x - a[i + 1] * later) / s[i + 1] - eps
            x = x + 0.5 * (s[i + 1] - a[i + 1] * s[i] / a[i]) * slope
        m = new
    result = run(mixture, TERMS["paper"], solver=Heun())
    torch.testing.assert_close(result.x, x, rtol=1e-9, atol=1e-9)
    assert (result.counts.calls, result.counts.rows) == (15, 150)
    ((_, (kept,)),) = [(p, st) for p, st in Guidance(TERMS["paper"]).remembered(result.state) if isinstance(p, APG)]
    torch.testing.assert_close(kept, m, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["paper", "uncond_base"])
def test_w_1_is_no_guidance_to_the_bit_and_asks_for_nothing(mixture, variant):
    plain, got = run(mixture, None), run(mixture, apg(1.0, r=0.5, beta=-0.5, variant=variant))
    assert torch.equal(got.x, plain.x)
    assert got.counts.rows == plain.counts.rows == 40


def test_each_sample_has_its_own_scale(mixture):
    got, plain = run(mixture, TERMS["per sample"]).x, run(mixture, None).x
    torch.testing.assert_close(got[0], plain[0], rtol=1e-12, atol=1e-12)
    for k, w in enumerate((1.0, 4.0, 2.0, 8.0, 0.0)):
        alone = run(mixture, apg(w, r=0.5, beta=-0.5), [k], LABELS[k : k + 1]).x
        torch.testing.assert_close(got[k], alone[0], rtol=1e-11, atol=1e-11)
    either = apg((1.0, 4.0), beta=-0.5, variant="uncond_base")
    got = run(mixture, either, 2, LABELS[:2]).x
    torch.testing.assert_close(got[0], plain[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[1], run(mixture, TERMS["uncond_base"]).x[1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", TERMS)
def test_sample_k_does_not_depend_on_its_batch(mixture, name):
    if name != "per sample":
        whole, alone = run(mixture, TERMS[name]).x, run(mixture, TERMS[name], [3], LABELS[3:4]).x
        torch.testing.assert_close(alone[0], whole[3], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["eps", "v", "velocity"])
def test_the_kind_of_the_answer_does_not_matter(mixture, kind):
    torch.testing.assert_close(
        run(mixture, TERMS["paper"], kind=kind).x, run(mixture, TERMS["paper"]).x, rtol=1e-8, atol=1e-8
    )


def test_projecting_eps_is_another_method(randn64):
    """Guards the commonest error: at one point, the same steps taken in eps give another x0."""
    x, (c, u), a, s = randn64(4, 6), pair(randn64, (4, 6)), 0.6, 0.8
    ec, eu = (x - a * c) / s, (x - a * u) / s
    wrong = (x - s * guided(APG(), ec, eu, 7.0)) / a
    assert float((wrong - guided(APG(), c, u, 7.0)).abs().max()) > 1e-3
    neutral = (x - s * guided(APG(eta=1.0), ec, eu, 7.0)) / a
    torch.testing.assert_close(neutral, guided(APG(eta=1.0), c, u, 7.0), rtol=1e-11, atol=1e-11)


def first_x0(mixture, guidance):
    """The guided x0 at the first point: where a single step to the clean end lands."""
    grid = G.given(VP(), (0.7, 0.0))
    x = torch.linspace(-1, 2, 15).double().reshape(5, 3)
    cond = {"label": LABELS}
    den = mixture(VP(), d=3)
    got = sample(den, grid, x=x, samples=5, cond=cond, solver=DDIM(), guidance=guidance, dtype=torch.float64).x
    return got, den(x, 0.7, cond).x0, den(x, 0.7).x0


def test_variants(mixture):
    """paper - uncond_base = delta - d'; plus_one is one unit stronger; all from c, u at one point."""
    paper, c, u = first_x0(mixture, apg(4.0, r=0.02))
    push, _ = hand(c, c - u, torch.zeros_like(c), r=0.02)
    assert float((c - u).norm(dim=1).min()) > 0.02
    torch.testing.assert_close(paper, c + 3 * push, rtol=1e-11, atol=1e-11)
    other = first_x0(mixture, apg(4.0, r=0.02, variant="uncond_base"))[0]
    torch.testing.assert_close(paper - other, c - u - push, rtol=1e-10, atol=1e-10)
    stronger = first_x0(mixture, apg(4.0, r=0.02, variant="plus_one"))[0]
    torch.testing.assert_close(stronger, c + 4 * push, rtol=1e-11, atol=1e-11)
    for variant in ("paper", "uncond_base"):
        neutral = first_x0(mixture, apg(4.0, eta=1.0, variant=variant))[0]
        torch.testing.assert_close(neutral, u + 4 * (c - u), rtol=1e-11, atol=1e-11)


def test_clipping_a_scaled_push_is_another_method(mixture):
    unit = first_x0(mixture, apg(4.0, r=0.02))[0]
    with pytest.warns(UserWarning, match="already scaled"):
        trap = first_x0(mixture, CFG(4.0).through(APG(r=0.02)))[0]
    assert float((unit - trap).abs().max()) > 1e-3
    with pytest.warns(UserWarning, match="already scaled"):
        same = first_x0(mixture, CFG(4.0).through(APG(r=0.06)))[0]
    torch.testing.assert_close(unit, same, rtol=1e-11, atol=1e-11)


def test_of_autoguidance(mixture):
    """Any difference will do: away from a weaker network."""
    weak = {"weak": mixture_of(mixture(VP(), d=3), "x0")}
    got = run(mixture, 3 * Away(Query("cond", "weak")).through(APG(eta=1.0)), nets=weak).x
    torch.testing.assert_close(got, run(mixture, Auto(4.0), nets=weak).x, rtol=1e-11, atol=1e-11)


def test_two_networks_keep_two_momenta(mixture):
    """The guided model against a guided other one: each with its own base and memory."""
    den, x, (a, s) = mixture(VP(), d=3), start(), GRID.scales[:2]
    other = mixture_of(den, "x0", 0.6)
    momenta = [torch.zeros(5, 3).double()] * 2
    for i in range(8):
        both = []
        for k, net in enumerate((den, other)):
            c, u = net(x, GRID.t[i], {"label": LABELS}).x0, net(x, GRID.t[i]).x0
            push, momenta[k] = hand(c, c - u, momenta[k], 0.0, 0.5, -0.5)
            both.append(c + 3 * push)
        x0 = both[0] + 0.6 * (both[0] - both[1])
        x = a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]
    got = run(mixture, TERMS["paper"].versus("other", 1.6), solver=DDIM(), nets={"other": other}).x
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


class Few(Gate):
    """Open for all at even steps, for the first three rows at odd ones."""

    masked = True

    def open(self, step, state):
        return True if step.i % 2 == 0 else torch.arange(5) < 3


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
def test_momentum_stands_still_where_a_gate_is_closed(mixture, rows):
    """Each row as if its gate were its own, by a loop: closed steps neither push nor remember."""
    x, a, s = start(), GRID.scales.alpha, GRID.scales.sigma
    den, at, m = mixture(VP(), d=3), looped(mixture), torch.zeros(5, 3).double()
    for i in range(8):
        g, new = at(x, GRID.t[i], m)
        mask = torch.ones(5, 1).bool() if i % 2 == 0 else (torch.arange(5) < 3)[:, None]
        x0 = torch.where(mask, g, den(x, GRID.t[i], {"label": LABELS}).x0)
        m = torch.where(mask, new, m)
        x = a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]
    got = run(mixture, Guidance(TERMS["paper"].when(Few()), rows=rows), solver=DDIM())
    torch.testing.assert_close(got.x, x, rtol=1e-9, atol=1e-9)
    assert got.counts.rows == (80 if rows == "fixed" else 72)


@pytest.mark.parametrize(
    ("term", "graphs"), [(TERMS["paper"], 1), (TERMS["paper"].when(Few()), 2)], ids=["always", "gated"]
)
def test_it_compiles(mixture, term, graphs):
    """One graph for all steps; with the gate one where all rows are open and one where the mask decides."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    guidance = Guidance(term, rows="fixed")
    got = run(mixture, guidance, solver=DDIM(), compile="eager").x
    torch.testing.assert_close(got, run(mixture, guidance, solver=DDIM()).x, rtol=1e-11, atol=1e-11)
    assert counters["stats"]["unique_graphs"] == graphs


def test_presets():
    for name, (w, r, beta, axes) in PRESETS.items():
        term = apg_preset(name, 3.0)
        assert term == apg(3.0, r=r, beta=beta, axes=axes)
        assert w is None or apg_preset(name) == apg(w, r=r, beta=beta, axes=axes)
    assert apg_preset("sdxl") == 14.0 * Away(NULL).through(APG(r=15.0, beta=-0.5))
    with pytest.raises(RangeError, match="audio"):
        apg_preset("audio")
    with pytest.raises(UnknownNameError, match="sdxl"):
        apg_preset("sdx")


@pytest.mark.parametrize(
    "term", [*TERMS.values(), apg_preset("audio", 7.0), apg(2, unit="rms", away="negative")], ids=str
)
def test_repr_rebuilds(term):
    from wayfield.guide.contrast import Away  # noqa: F401
    from wayfield.guide.nodes import Scale, Sum, Through  # noqa: F401

    assert eval(repr(term)) == term


@pytest.mark.parametrize(
    "bad",
    [{"beta": b} for b in (1.0, -1.0, 2.0, math.nan)]
    + [{"r": r} for r in (-1.0, math.nan, math.inf)]
    + [{"eta": e} for e in (-1.5, 2.5, math.nan)]
    + [{"axes": a} for a in ((), (0,), (1.5,), (True,))],
    ids=str,
)
def test_bad_settings(bad):
    with pytest.raises(RangeError):
        APG(**bad)


def test_bad_arguments(randn64):
    for w in (math.nan, math.inf, "4", True, (1.0, math.nan)):
        with pytest.raises(RangeError, match="w"):
            apg(w)
    with pytest.raises(UnknownNameError, match="paper"):
        apg(2.0, variant="papr")
    with pytest.raises(UnknownNameError, match="rms"):
        APG(unit="rm")
    with pytest.raises(ShapeError, match="projected"):
        project(randn64(2, 3), randn64(2, 4))
    with pytest.raises(RangeError):
        clip_norm(randn64(2, 3), -1.0)
    for axes in ((-2,), (2,), (1, -1)):
        with pytest.raises(ShapeError, match="axes"):
            APG(axes=axes).init(randn64(2, 3), 1)


def test_eta_above_1_is_warned_of():
    with pytest.warns(UserWarning, match="parallel"):
        APG(eta=1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        APG(eta=1.0)
