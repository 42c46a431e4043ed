"""EluCD against closed forms: its gradient and what it leaves out, its schedules, its cost, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from wayfield.core import grid as G
from wayfield.core.errors import (
    ConditionError,
    DeviceError,
    DTypeError,
    GridError,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from wayfield.core.exact import gaussian, isotropic_mixture
from wayfield.core.path import EDM, VP, Straight
from wayfield.field.binding import COND, NULL
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Auto, Guidance
from wayfield.guide.adaptive import AG
from wayfield.guide.apg import APG
from wayfield.guide.classifier import ClassifierGuidance
from wayfield.guide.codec import PARTS, from_json, to_json
from wayfield.guide.elucd import EluCD, Nudge, elucd, nudge_steps, sine, tempered_log_p
from wayfield.guide.gates import Interval
from wayfield.guide.roles import Gate
from wayfield.judge import MLPJudge, smooth_activations
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, Heun

LABELS = torch.tensor([0, 1, 1, 0, 1])
GRID = G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)
X = 2 * torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)


def linear(x0):
    """Two logits of clean data."""
    return torch.stack([x0.sum(1), (2 * x0).sin().sum(1)], 1)


def net(classes=2, dim=3):
    return smooth_activations(MLPJudge(dim, classes, width=16, clean=True).double().eval(), 3.0)


def run(den, guidance, labels=LABELS, samples=5, **options):
    options = {"dtype": torch.float64, "solver": DPM2M(), **options}
    return sample(den, GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options)


def one_step(den, guidance, x=X, t=0.4, s=0.2, solver=None, **options):
    """The x0 that one deterministic step went towards."""
    grid = G.given(den.path, (t, s))
    (a, an), (sg, sn) = grid.scales[:2]
    options = {"cond": {"label": LABELS[: len(x)]}} | options
    got = sample(
        den, grid, x=x, samples=len(x), guidance=guidance, solver=solver or DDIM(), dtype=torch.float64, **options
    )
    return (got.x - sn / sg * x) / (an - sn / sg * a), got


@pytest.fixture
def den(mixture):
    return mixture(VP(), d=3)


# ------------------------------------------------------------------------------------------------ oracles 1 and 2
@pytest.mark.parametrize("tau", [(1.0, 1.0), (1.0, 0.5), (1.0, 0.0), (0.7, 1.3)])
def test_gradient_in_the_logits(randn64, tau):
    """tau_1 onehot(y) - tau_2 softmax(tau_2 f)."""
    f, y = (5 * randn64(6, 4)).requires_grad_(), torch.arange(6) % 4
    (got,) = torch.autograd.grad(tempered_log_p(f, y, tau).sum(), f)
    want = tau[0] * torch.nn.functional.one_hot(y, 4).double() - tau[1] * (tau[1] * f.detach()).softmax(1)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


def test_two_ends_of_tau(randn64):
    """(1, 1) is log-softmax; (1, 0) is the logit up to log C; large logits do not overflow."""
    f, y = randn64(6, 4), torch.arange(6) % 4
    picked = f.gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(tempered_log_p(f, y), f.log_softmax(1).gather(1, y[:, None])[:, 0], rtol=0, atol=1e-14)
    torch.testing.assert_close(tempered_log_p(f, y, (1.0, 0.0)), picked - math.log(4), rtol=0, atol=1e-14)
    assert bool(tempered_log_p(1e4 * f.float(), y).isfinite().all())


# ------------------------------------------------------------------------------------------------------ oracle 4, 5
@pytest.fixture
def two(path):
    """Two Gaussians of one variance, a class each, and their clean exact classifier: LDA."""
    means = torch.tensor([[-0.8, 0.3, 0.1], [0.6, -0.2, 0.5]], dtype=torch.float64)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    made = isotropic_mixture(path, means, 0.25, weights, torch.tensor([0, 1]))
    den = Denoiser(made, path, "x0", shape=(3,), schema=Schema({"label": Field(values=3)}, {"label": 2}))

    def clean(x):
        return weights.log() - (x[:, None] - means).square().sum(2) / (2 * 0.25)

    return den, clean, means


T = (0.7, 0.4, 0.15)


@pytest.mark.parametrize("t", T)
def test_the_exact_noisy_classifier_gives_the_classs_own_noise(two, t):
    """eps - sigma grad log p(y | x_t) = sigma (x - alpha mu_y) / (alpha^2 s2 + sigma^2)."""
    den, _, means = two
    a, s = (float(c) for c in den.path.scales(torch.tensor(t, dtype=torch.float64))[:2])
    var = a * a * 0.25 + s * s

    def noisy(x, level):
        gap = x[:, None] - a * means
        return torch.tensor([0.4, 0.6], dtype=torch.float64).log() - gap.square().sum(2) / (2 * var)

    x = s * X
    got, _ = one_step(den, Guidance(ClassifierGuidance(noisy), base=NULL), x=x, t=t, s=0.8 * t)
    want = s * (x - a * means[LABELS]) / var
    torch.testing.assert_close((x - a * got) / s, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", T)
def test_what_taking_the_jacobian_for_one_leaves_out(two, t):
    """EluCD's push minus the exact chain rule's is sigma^2/alpha (1 - J^T) g, and J = alpha/sigma^2 Cov[x0 | x]."""
    den, clean, _ = two
    a, s = (float(c) for c in den.path.scales(torch.tensor(t, dtype=torch.float64))[:2])
    x = s * X
    short, _ = one_step(den, Guidance(EluCD(clean, tau=(1, 1), of="null"), base=NULL), x=x, t=t, s=0.8 * t)
    chain = ClassifierGuidance(clean, on="clean", of="null")
    exact, _ = one_step(den, Guidance(chain, base=NULL), x=x, t=t, s=0.8 * t)
    x0 = den(x, t).x0
    leaf = x0.clone().requires_grad_()
    (g,) = torch.autograd.grad(clean(leaf).log_softmax(1).gather(1, LABELS[:, None]).sum(), leaf)
    j = torch.stack([torch.autograd.functional.jacobian(lambda v: den(v[None], t).x0[0], row) for row in x])
    left = s * s / a * (g - torch.einsum("bji,bj->bi", j, g))
    torch.testing.assert_close(short - exact, left, rtol=1e-8, atol=1e-10)
    assert float(left.abs().max()) > 1e-5 * float(g.abs().max())
    torch.testing.assert_close(short - x0, s * s / a * g, rtol=1e-8, atol=1e-10)
    p = den.net.posterior(x, torch.tensor(t, dtype=torch.float64))
    means = torch.stack([one_class(den, x, t, k) for k in (0, 1)], 1)
    mean = (p[:, :, None] * means).sum(1)
    within = 0.25 * s * s / (a * a * 0.25 + s * s) * torch.eye(3, dtype=torch.float64)
    spread = torch.einsum("bk,bki,bkj->bij", p, means - mean[:, None], means - mean[:, None])
    torch.testing.assert_close(j, a / s**2 * (within + spread), rtol=1e-8, atol=1e-9)


def one_class(den, x, t, k):
    return den(x, t, {"label": torch.full((len(x),), k)}).x0


# ------------------------------------------------------------------------------------------------- by hand, and cost
def test_one_step_by_hand_beside_cfg(den):
    """CFG's conditional answer is what is judged; the sum costs what CFG does, and no query asks for a gradient."""
    a, s = (float(c) for c in VP().scales(torch.tensor(0.4, dtype=torch.float64))[:2])
    c, u = den(X, 0.4, {"label": LABELS}).x0, den(X, 0.4).x0
    leaf = c.clamp(-0.5, 0.5).requires_grad_()
    (g,) = torch.autograd.grad(tempered_log_p(linear(leaf), LABELS, (1.0, 0.5)).sum(), leaf)
    term = CFG(3.0) + EluCD(linear, (0.1, 0.2, 0.3, 0.4, 0.5), clip=(-0.5, 0.5))
    assert not any(q.grad for q in term.queries(COND, {}))
    got, out = one_step(den, term)
    scale = torch.tensor([[0.1], [0.2], [0.3], [0.4], [0.5]], dtype=torch.float64)
    torch.testing.assert_close(got, c + 2 * (c - u) + scale * s * s / a * g, rtol=1e-11, atol=1e-11)
    assert (out.counts.calls, out.counts.rows) == (1, 10)


def test_it_costs_what_it_stands_beside(den):
    """No rows of its own beside the condition, or beside CFG; the chain rule pays for a call apart."""
    plain, cfg = run(den, None).counts, run(den, CFG(2.0)).counts
    assert run(den, EluCD(linear, 0.1)).counts[:2] == plain[:2]
    assert run(den, CFG(2.0) + EluCD(linear, 0.1)).counts[:2] == cfg[:2]
    assert run(den, Guidance(EluCD(linear, 0.1, of="null"), base=NULL)).counts[:2] == plain[:2]
    assert run(den, CFG(2.0) + ClassifierGuidance(linear, 0.1, on="clean")).counts.calls == 2 * cfg.calls


def test_no_gradient_passes_the_denoiser(den):
    """Where the network refuses to be differentiated, EluCD does not notice and the chain rule does."""

    class Opaque(nn.Module):
        def forward(self, x, time, cond):
            assert not x.requires_grad
            return den.net(x, time, cond)

    opaque = Denoiser(Opaque(), den.path, "x0", shape=(3,), schema=den.schema)
    assert torch.equal(run(opaque, EluCD(linear, 0.3)).x, run(den, EluCD(linear, 0.3)).x)
    with pytest.raises(AssertionError):
        run(opaque, ClassifierGuidance(linear, 0.3, on="clean"))


def test_a_class_may_be_named_without_a_field(den):
    """As a number, or one for each sample: needed where the model's own condition is something else."""
    named = run(den, EluCD(linear, 0.3))
    assert torch.equal(run(den, EluCD(linear, 0.3, target=(0, 1, 1, 0, 1))).x, named.x)
    ones = run(den, EluCD(linear, 0.3, target=1)).x
    assert torch.equal(ones[LABELS == 1], named.x[LABELS == 1])
    assert not torch.equal(ones[LABELS == 0], named.x[LABELS == 0])
    free = sample(den, GRID, samples=5, seed=3, guidance=EluCD(linear, 0.3, target=1), dtype=torch.float64)
    assert bool(free.x.isfinite().all())


def test_rows_without_a_label_are_not_pushed(den):
    labels = torch.tensor([0, 2, 1, 2, 1])
    got, plain = run(den, EluCD(linear, 0.5), labels).x, run(den, None, labels).x
    torch.testing.assert_close(got[[1, 3]], plain[[1, 3]], rtol=1e-12, atol=1e-12)
    assert bool((got[[0, 2, 4]] != plain[[0, 2, 4]]).any())


# --------------------------------------------------------------------------------------------------------- schedules
def by_hand(grid):
    """beta and V of every step, from the definition."""
    a, s = grid.scales[:2]
    bar = a**2 / (a**2 + s**2)
    beta = 1 - bar[:-1] / bar[1:]
    return beta, (1 - bar[1:]) / (1 - bar[:-1]) * beta


def test_sine_by_hand(path):
    grid = G.karras(path, 9, sigma_min=0.05, sigma_max=15.0)
    v = by_hand(grid)[1]
    wave = 0.3 * torch.sin(math.pi * torch.arange(8, -1, -1, dtype=torch.float64) / 9)
    got = [f for _, f in sine(grid, 0.3).points]
    want = 1 + wave[:-1] * v.max() / v[:-1]
    torch.testing.assert_close(torch.tensor(got[:-1], dtype=torch.float64), want, rtol=1e-7, atol=1e-9)
    assert got[-1] == 1
    even = torch.tensor([f for _, f in sine(grid, 0.3, "even").points], dtype=torch.float64)
    torch.testing.assert_close(even, 1 + wave, rtol=1e-12, atol=1e-12)
    levels = [a for a, _ in sine(grid).points]
    torch.testing.assert_close(torch.tensor(levels, dtype=torch.float64), 2 * grid.lam[:-1])


def test_sine_is_largest_in_the_middle_and_zero_at_the_end():
    even = [f for _, f in sine(G.uniform(EDM(10.0), 10), 0.3, "even").points]
    assert max(even) == even[4]
    assert even[4] == pytest.approx(1.3)
    assert even[-1] == 1


def test_without_signal_the_first_level_is_left_out():
    points = sine(G.uniform(Straight(), 5)).points
    assert len(points) == 4
    assert sine(G.uniform(Straight(), 1)).points == ((0.0, 1.0),)


def test_gamma_zero_is_plain_and_scale_zero_is_nothing(den):
    same = run(den, elucd(linear, GRID, 0.4, tau=(1, 1), gamma=0.0))
    assert torch.equal(same.x, run(den, EluCD(linear, 0.4, tau=(1, 1))).x)
    none, plain = run(den, elucd(linear, GRID, 0.0)), run(den, None)
    assert torch.equal(none.x, plain.x)
    assert none.counts == plain.counts._replace(skipped=none.counts.skipped)


@pytest.mark.parametrize("i", [0, 3, 7])
def test_ancestral_mean_in_both_forms(mixture, i):
    """Score form: beta/sqrt(1-beta) a g. Variance form: (V + gamma V_max sin) g, the paper's sampler."""
    den = mixture(VP(), d=3)
    grid = G.karras(VP(), 9, sigma_min=0.05, sigma_max=15.0)
    beta, v = by_hand(grid)
    part = G.given(VP(), grid.t[i : i + 2])
    wave = math.sin(math.pi * (8 - i) / 9)
    options = {"x": X, "samples": 5, "seed": 1, "cond": {"label": LABELS}, "dtype": torch.float64}
    plain = sample(den, part, solver=DDIM(1.0), **options).x
    leaf = den(X, grid.t[i], {"label": LABELS}).x0.requires_grad_()
    (g,) = torch.autograd.grad(tempered_log_p(linear(leaf), LABELS, (1.0, 0.5)).sum(), leaf)
    for form, want in (
        ("score", beta[i] / (1 - beta[i]).sqrt() * (1 + 0.3 * v.max() / v[i] * wave)),
        ("variance", v[i] + 0.3 * v.max() * wave),
    ):
        term = EluCD(linear, 0.7).when(sine(grid, 0.3, form))
        moved = sample(den, part, solver=DDIM(1.0), guidance=term, **options).x - plain
        torch.testing.assert_close(moved, 0.7 * want * g, rtol=1e-9, atol=1e-11)


# ------------------------------------------------------------------------------------------------------------- nudge
def edm_gaussian(std=0.5):
    path = EDM(10.0)
    cov = std**2 * torch.eye(3, dtype=torch.float64)
    made = gaussian(path, torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64), cov)
    return Denoiser(made, path, "x0", shape=(3,))


def nudge_of(x, labels, c, classifier=linear):
    """G of the official rule."""
    z = (x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1)).requires_grad_()
    (g,) = torch.autograd.grad(classifier(z).gather(1, labels[:, None]).sum(), z)
    return c * g / g.square().mean(1, keepdim=True).sqrt() * x.square().mean(1, keepdim=True).sqrt()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("size", [0.3, 4.0])
def test_nudge_is_the_papers_step_on_gaussian_data(last, size):
    """By hand: x moved by G, then denoised, then one Euler step in sigma."""
    den, c = edm_gaussian(), 0.02
    x, t, s = size * X / 2, 0.3, 0.0 if last else 0.21
    hat = x + nudge_of(x, LABELS, c)
    want = hat + (s / t - 1) * (hat - den(hat, t).x0)
    grid = G.given(den.path, (t, s))
    term = Nudge(linear, c, target=tuple(LABELS.tolist()), std=0.5)
    got = sample(den, grid, x=x, samples=5, guidance=term, solver=DDIM(), dtype=torch.float64).x
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_length_of_a_nudge():
    """rms(G) = c rms(x) for every sample, whatever the size of the logits if tau_2 = 0."""
    den = edm_gaussian()
    options = {"x": X, "samples": 5, "solver": DDIM(), "dtype": torch.float64}
    grid = G.given(den.path, (0.3, 0.2))
    plain = sample(den, grid, **options).x
    one, other = (
        sample(den, grid, guidance=Nudge(f, 0.01, target=tuple(LABELS.tolist())), **options).x - plain
        for f in (linear, lambda x: 37 * linear(x))
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    r, j = 2 / 3, 1 / (1 + 3.0**2)
    moved = one.square().mean(1).sqrt() / ((r / (1 - r) + j) * (1 - r))  # what the step makes of G
    torch.testing.assert_close(moved, 0.01 * X.square().mean(1).sqrt(), rtol=1e-10, atol=0)


def test_nudge_on_another_path_is_the_same_step():
    """A rotation of the point does not matter: VP in sigma/alpha is EDM."""
    edm, c = edm_gaussian(), 0.02
    cov = 0.25 * torch.eye(3, dtype=torch.float64)
    vp = Denoiser(gaussian(VP(), torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64), cov), VP(), "x0", shape=(3,))
    noise = (3.0, 2.1)
    times = [tuple(float(p.at_sigma(v)) for v in noise) for p in (edm.path, vp.path)]
    a, an = VP().scales(torch.tensor(times[1], dtype=torch.float64)).alpha
    term = Nudge(linear, c, target=1, std=0.5)
    options = {"samples": 5, "guidance": term, "solver": DDIM(), "dtype": torch.float64}
    one = sample(edm, G.given(edm.path, times[0]), x=X, **options).x
    other = sample(vp, G.given(VP(), times[1]), x=a * X, **options).x / an
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_nudge_steps_are_the_papers():
    """c_i = max(c_0 (1 - i/n), 1e-5) + c_0 a sin(pi i/(n - 1)), n = steps + 1, with c_0 = 0.004 and a = 0.3."""
    got, n = torch.tensor(nudge_steps(10).values, dtype=torch.float64), 11
    i = torch.arange(10, dtype=torch.float64)
    want = (0.004 * (1 - i / n)).clamp(min=1e-5) + 0.004 * 0.3 * torch.sin(math.pi * i / (n - 1))
    torch.testing.assert_close(0.004 * got, want, rtol=1e-12, atol=0)
    assert got[0] == 1


def test_second_evaluations_are_not_nudged(den):
    """Heun's corrector stands where the step goes: nothing there, and nothing infinite."""
    got = run(den, Nudge(linear, 0.05), solver=Heun())
    assert bool(got.x.isfinite().all())
    assert not torch.equal(got.x, run(den, None, solver=Heun()).x)


def test_a_flat_classifier_pushes_nothing(den):
    def flat(x):
        return 0 * linear(x)

    assert torch.equal(run(den, Nudge(flat, 0.1)).x, run(den, None).x)


# ------------------------------------------------------------------------------------------------------------- laws
class Half(Gate):
    """Closes rows 1 and 3 of five."""

    masked = True

    def open(self, step, state):
        return torch.tensor([True, False, True, False, True])


TERMS = {
    "elucd": elucd(linear, GRID, 0.3),
    "labels given": EluCD(linear, (0.1, 0.2, 0.3, 0.4, 0.5), target=(0, 1, 1, 0, 1)),
    "nudge": Nudge(linear, 0.02),
}


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
@pytest.mark.parametrize("name", TERMS)
def test_some_rows_only(den, name, rows):
    got = run(den, Guidance(TERMS[name].when(Half()), rows=rows)).x
    mask = torch.tensor([1, 0, 1, 0, 1]).bool()[:, None]
    want = torch.where(mask, run(den, TERMS[name]).x, run(den, None).x)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("part", [EluCD(linear, 0.3), Nudge(linear, 0.02)], ids=["elucd", "nudge"])
def test_sample_k_does_not_depend_on_its_batch(den, part):
    term = CFG(2.0) + part
    torch.testing.assert_close(run(den, term, LABELS[3:4], [3]).x[0], run(den, term).x[3], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["elucd", "nudge"])
def test_compiled_is_one_graph(den, name):
    import torch._dynamo as dynamo

    term = CFG(2.0) + TERMS[name]
    dynamo.reset()
    with dynamo.config.patch(trace_autograd_ops=True, error_on_recompile=True):
        got = run(den, term, compile="eager").x
    torch.testing.assert_close(got, run(den, term).x, rtol=1e-12, atol=1e-12)


def test_a_run_as_a_whole_can_be_differentiated(den):
    """The start's gradient through a guided run, against differences."""
    f = net()

    def end(x):
        return sample(
            den, GRID, x=x, samples=5, cond={"label": LABELS}, guidance=EluCD(f, 0.3), dtype=torch.float64, grad=True
        ).x

    x = (20 * X).requires_grad_()
    (g,) = torch.autograd.grad(end(x).sum(), x)
    step = torch.zeros_like(X)
    step[2, 1] = 1e-5
    with torch.no_grad():
        slope = (end(x + step) - end(x - step)).sum() / 2e-5
    assert float(slope) == pytest.approx(float(g[2, 1]), rel=1e-4, abs=1e-7)


def test_json_and_repr(den, monkeypatch):
    for name in ("EluCD", "Nudge"):
        monkeypatch.setitem(PARTS, name, "wayfield.guide.elucd")
    functions = {"linear": linear}
    for term in (*TERMS.values(), CFG(2.0) + EluCD(linear, of="null", clip=(-1, 1))):
        assert from_json(to_json(term, functions), functions) == term
    assert repr(EluCD(linear)) == f"EluCD(linear, scale=1.0, tau=(1.0, 0.5), target='label', of={COND!r}, clip=None)"
    assert repr(Nudge(net())).startswith("Nudge(MLPJudge, scale=0.004")


# ------------------------------------------------------------------------------------------------------ combinations
def test_through_apg(den):
    """r = infinity and eta = 1 leave the push alone; eta = 0 removes what is parallel to the prediction."""
    term = EluCD(linear, 0.3)
    torch.testing.assert_close(run(den, term.through(APG(eta=1.0))).x, run(den, term).x, rtol=1e-11, atol=1e-11)
    c = den(X, 0.4, {"label": LABELS}).x0
    push = one_step(den, term)[0] - c
    got = one_step(den, term.through(APG(eta=0.0)))[0] - c
    want = push - (push * c).sum(1, keepdim=True) / c.square().sum(1, keepdim=True) * c
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_on_an_interval(den):
    low, high = run(den, EluCD(linear, 0.3).when(Interval(-1.0, None))), run(den, EluCD(linear, 0.3))
    assert low.counts[:2] == high.counts[:2]
    assert not torch.equal(low.x, high.x)
    assert torch.equal(run(den, EluCD(linear, 0.3).when(Interval(50.0, None))).x, run(den, None).x)


@pytest.mark.parametrize("rows", ["exact", "fixed"])
def test_adaptive_guidance_closes_both(den, rows):
    """AG compares COND and NULL; where it closes a row, CFG and EluCD stop for it."""
    term = (CFG(3.0) + elucd(linear, GRID, 0.2)).when(AG(0.995))
    got, always = run(den, Guidance(term, rows=rows)), run(den, CFG(3.0) + elucd(linear, GRID, 0.2))
    plain = run(den, CFG(3.0).when(AG(0.995)))
    assert not torch.equal(got.x, plain.x)
    if rows == "exact":
        assert got.counts.rows < always.counts.rows
    for k in range(5):
        alone = run(den, Guidance(term, rows=rows), LABELS[k : k + 1], [k]).x
        torch.testing.assert_close(alone[0], got.x[k], rtol=1e-10, atol=1e-10)


def test_beside_autoguidance(mixture):
    den, weak = mixture(VP(), d=3), mixture(VP(), d=3, spread=0.3)
    both = run(den, Auto(2.0) + EluCD(linear, 0.3), nets={"weak": weak})
    assert both.counts.rows == run(den, Auto(2.0), nets={"weak": weak}).counts.rows
    weaker = run(den, EluCD(linear, 0.3).versus("weak", 2.0), nets={"weak": weak})
    assert bool(weaker.x.isfinite().all())


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("part", [EluCD, Nudge])
@pytest.mark.parametrize(
    ("classifier", "error", "text"),
    [
        (lambda x: x.sum(1), ShapeError, "logits"),
        (lambda x: x[:, :1], ShapeError, "K >= 2"),
        (lambda x: linear(x).detach(), UnsupportedError, "no gradient"),
        (lambda x: linear(x).to("meta"), DeviceError, "meta"),
        (net().to("meta"), DeviceError, "meta"),
        (lambda x: linear(x) * float("nan"), NonFiniteError, "after step 1 of 6"),
    ],
)
def test_wrong_logits(den, part, classifier, error, text):
    with pytest.raises(error, match=text):
        run(den, part(classifier, 0.5))


def test_labels_that_do_not_fit(den):
    three = Denoiser(den.net, den.path, "x0", shape=(3,), schema=Schema({"label": Field(values=3)}))
    with pytest.raises(RangeError, match="got 2; expected 3"):
        run(three, EluCD(linear))
    with pytest.raises(UnknownNameError, match="Did you mean 'label'"):
        run(den, EluCD(linear, target="labels"))
    with pytest.raises(ConditionError, match="without a condition"):
        sample(den, GRID, guidance=EluCD(linear), dtype=torch.float64)
    with pytest.raises(RangeError, match=r"0\.\.1"):
        run(den, EluCD(linear, target=2))
    with pytest.raises(RangeError, match=r"0\.\.1"):
        run(den, EluCD(linear, target=(0, 0, 0, 0, 5)))
    with pytest.raises(ShapeError, match="numbers per sample"):
        run(den, EluCD(linear, target=(0, 1)))


@pytest.mark.parametrize("part", [EluCD, Nudge])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scale": float("inf")}, "scale of"),
        ({"tau": (1.0, -0.5)}, "tau"),
        ({"tau": (1.0,)}, "tau"),
        ({"tau": (float("nan"), 0.0)}, "tau"),
        ({"target": -1}, "target of"),
        ({"target": ()}, "target of"),
        ({"target": (0, 1.5)}, "target of"),
    ],
)
def test_bad_numbers(part, options, text):
    with pytest.raises(RangeError, match=text):
        part(linear, **options)


def test_bad_fields():
    for part in (EluCD, Nudge):
        with pytest.raises(DTypeError, match="a function"):
            part(None)
        with pytest.raises(UnsupportedError, match="evaluation mode"):
            part(nn.Linear(3, 2))
    with pytest.raises(RangeError, match="clip"):
        EluCD(linear, clip=(1.0, -1.0))
    with pytest.raises(RangeError, match="std"):
        Nudge(linear, std=0.0)
    with pytest.raises(RangeError, match="gamma"):
        sine(GRID, -0.1)
    with pytest.raises(UnknownNameError, match="form"):
        sine(GRID, form="scores")
    with pytest.raises(GridError, match="rising"):
        sine(GRID.reversed(0.01))
    with pytest.raises(RangeError, match="steps"):
        nudge_steps(0)
