"""Classifier guidance against the exact noisy posterior, its cost beside CFG, and what it refuses."""

import pytest
import torch
from torch import nn

from wayfield.core import grid as G
from wayfield.core.errors import (
    ConditionError,
    DTypeError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from wayfield.core.path import VP, Straight
from wayfield.field.binding import COND, NULL
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Guidance
from wayfield.guide.classifier import ClassifierGuidance
from wayfield.guide.roles import Gate
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, Adaptive, Heun

LABELS = torch.tensor([0, 1, 1, 0, 1])
GRID = G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)


def posterior(den):
    """The exact noisy classifier, log p(y | x_t) up to a constant."""
    return lambda x, level: den.net.posterior(x, level.c_time).log() + 7.0


def linear(x0):
    """Two logits of clean data."""
    return torch.stack([x0.sum(1), (2 * x0).sin().sum(1)], 1)


def run(den, guidance, labels=LABELS, samples=5, **options):
    options = {"dtype": torch.float64, "solver": DPM2M(), **options}
    return sample(den, GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options)


@pytest.fixture
def den(mixture):
    return mixture(VP(), d=3)


@pytest.mark.parametrize("t", [0.9, 0.5, 0.1])
def test_exact_posterior_from_null_is_the_conditional_prediction(mixture, randn64, path, t):
    """D(x, y) = D(x) + (s^2/a) grad log p(y | x): one DDIM step of both is the same step."""
    den, x = mixture(path, d=3), 2 * randn64(5, 3)
    grid = G.given(path, (t, 0.9 * t))
    guided = Guidance(ClassifierGuidance(posterior(den)), base=NULL)
    options = {"x": x, "samples": 5, "cond": {"label": LABELS}, "solver": DDIM(), "dtype": torch.float64}
    got, want = sample(den, grid, guidance=guided, **options), sample(den, grid, **options)
    torch.testing.assert_close(got.x, want.x, rtol=1e-10, atol=1e-10)
    assert (got.counts.calls, got.counts.rows) == (1, 5)


@pytest.mark.parametrize("solver", [DPM2M(), Heun()], ids=str)
@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_with_the_exact_posterior_it_is_cfg_of_that_scale(den, w, solver):
    """u + w (s^2/a) grad log p(y|x) = u + w (c - u), over whole runs; scale 0 is the unconditional model."""
    got = run(den, Guidance(ClassifierGuidance(posterior(den), w), base=NULL), solver=solver)
    torch.testing.assert_close(got.x, run(den, CFG(w), solver=solver).x, rtol=1e-9, atol=1e-9)


def test_on_top_of_the_condition(den):
    """base = COND and scale w - 1 is CFG(w) too."""
    got = run(den, ClassifierGuidance(posterior(den), 2.0))
    torch.testing.assert_close(got.x, run(den, CFG(3.0)).x, rtol=1e-9, atol=1e-9)


def test_an_adaptive_solver_gives_every_row_its_own_level(den):
    """The classifier then sees levels (b,)."""
    exact, shapes = posterior(den), set()

    def classifier(x, level):
        shapes.add((len(x), *level.alpha.shape))
        return exact(x, level)

    got = run(den, Guidance(ClassifierGuidance(classifier), base=NULL), solver=Adaptive(rtol=1e-4, atol=1e-4))
    want = run(den, None, solver=Adaptive(rtol=1e-4, atol=1e-4))
    torch.testing.assert_close(got.x, want.x, rtol=1e-9, atol=1e-9)
    assert len(shapes) > 1
    assert all(b == levels for b, levels in shapes)


def test_temperature_divides_the_logits(den):
    """By hand, one step of DDIM at t = 0.4: softmax(l / T) with its gradient in the noisy points."""
    x = 2 * torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    grid = G.given(VP(), (0.4, 0.2))
    (a, an), (s, sn) = grid.scales[:2]
    leaf = x.clone().requires_grad_()
    p = (linear(leaf) / 2.5).softmax(1)[torch.arange(5), LABELS]
    (grad,) = torch.autograd.grad(p.log().sum(), leaf)
    x0 = den(x, 0.4).x0 + 0.7 * s**2 / a * grad
    guided = ClassifierGuidance(lambda x, level: linear(x), 0.7, temperature=2.5)
    got = sample(
        den,
        grid,
        x=x,
        samples=5,
        cond={"label": LABELS},
        guidance=Guidance(guided, base=NULL),
        solver=DDIM(),
        dtype=torch.float64,
    )
    torch.testing.assert_close(got.x, an * x0 + sn * (x - a * x0) / s, rtol=1e-12, atol=1e-12)


def test_clean_shares_the_conditional_row_of_cfg(den):
    """By hand, one step: the gradient goes through the denoiser, and CFG's conditional answer is its own."""
    x = 2 * torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    grid = G.given(VP(), (0.4, 0.2))
    (a, an), (s, sn) = grid.scales[:2]
    leaf = x.clone().requires_grad_()
    c = den(leaf, 0.4, {"label": LABELS}).x0
    (grad,) = torch.autograd.grad(linear(c).log_softmax(1)[torch.arange(5), LABELS].sum(), leaf)
    x0 = c.detach() + 2 * (c.detach() - den(x, 0.4).x0) + 0.3 * s**2 / a * grad
    term = CFG(3.0) + ClassifierGuidance(linear, 0.3, on="clean")
    got = sample(den, grid, x=x, samples=5, cond={"label": LABELS}, guidance=term, solver=DDIM(), dtype=torch.float64)
    torch.testing.assert_close(got.x, an * x0 + sn * (x - a * x0) / s, rtol=1e-12, atol=1e-12)
    assert (got.counts.calls, got.counts.rows) == (2, 10)


class Half(Gate):
    """Closes rows 1 and 3 of five."""

    masked = True

    def open(self, step, state):
        return torch.tensor([True, False, True, False, True])


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
@pytest.mark.parametrize("on", ["noisy", "clean"])
def test_some_rows_only(den, on, rows):
    """Labels, scales and gradients of the open rows are their own, in every row mode."""
    classifier = posterior(den) if on == "noisy" else linear
    term = ClassifierGuidance(classifier, (0.1, 0.2, 0.3, 0.4, 0.5), on=on)
    got = run(den, Guidance(term.when(Half()), rows=rows)).x
    whole, plain, mask = run(den, term).x, run(den, None).x, torch.tensor([1, 0, 1, 0, 1]).bool()
    torch.testing.assert_close(got, torch.where(mask[:, None], whole, plain), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("on", ["noisy", "clean"])
def test_sample_k_does_not_depend_on_its_batch(den, on):
    term = CFG(2.0) + ClassifierGuidance(posterior(den) if on == "noisy" else linear, 0.5, on=on)
    whole, alone = run(den, term).x, run(den, term, LABELS[3:4], [3]).x
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-11, atol=1e-11)


def test_rows_without_a_label_are_not_pushed(den):
    """Label 2 means none; the other rows are as without them."""
    term = Guidance(ClassifierGuidance(posterior(den), 2.0), base=NULL)
    got = run(den, term, torch.tensor([0, 2, 1, 2, 1])).x
    torch.testing.assert_close(got[[1, 3]], run(den, CFG(0.0)).x[[1, 3]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[[0, 2, 4]], run(den, term).x[[0, 2, 4]], rtol=1e-12, atol=1e-12)


def test_neutral_is_plain_and_free(den):
    out, plain = run(den, ClassifierGuidance(linear, 0.0, on="clean")), run(den, None)
    assert torch.equal(out.x, plain.x)
    assert out.counts == plain.counts._replace(skipped=out.counts.skipped)


def test_no_signal_no_push(mixture):
    """At alpha = 0 of the straight path 1/alpha must not make NaN of a zero gradient."""
    den = mixture(Straight(), d=3)
    grid = G.given(Straight(), (1.0, 0.5, 0.1))
    options = {"samples": 5, "cond": {"label": LABELS}, "solver": DDIM(), "dtype": torch.float64}
    got = sample(den, grid, guidance=Guidance(ClassifierGuidance(posterior(den)), base=NULL), **options)
    assert got.x.isfinite().all()


@pytest.mark.parametrize("on", ["noisy", "clean"])
def test_compiled_is_one_graph(den, on):
    import torch._dynamo as dynamo

    term = CFG(2.0) + ClassifierGuidance((lambda x, level: linear(x)) if on == "noisy" else linear, 0.5, on=on)
    dynamo.reset()
    with dynamo.config.patch(trace_autograd_ops=True, error_on_recompile=True):
        got = run(den, term, compile="eager").x
    torch.testing.assert_close(got, run(den, term).x, rtol=1e-12, atol=1e-12)


def test_the_condition_is_checked_before_the_first_step(den):
    """Though only the classifier needs it, and no network is asked with it."""
    seen = []
    guided = Guidance(ClassifierGuidance(lambda x, level: seen.append(1) or linear(x)), base=NULL)
    with pytest.raises(ConditionError, match=r"0\.\.2"):
        run(den, guided, torch.tensor([0, 1, 5, 0, 1]))
    assert not seen


@pytest.mark.parametrize(
    ("classifier", "error", "text"),
    [
        (lambda x, level: x.sum(1), ShapeError, "logits"),
        (lambda x, level: x[:, :1], ShapeError, "K >= 2"),
        (lambda x, level: x[:2], ShapeError, "one logit for each class"),
        (lambda x, level: x.tolist(), ShapeError, "got list"),
        (lambda x, level: linear(x).detach(), UnsupportedError, "no gradient"),
    ],
)
def test_wrong_logits(den, classifier, error, text):
    with pytest.raises(error, match=text):
        run(den, ClassifierGuidance(classifier))


def labelled(den, **schema):
    return Denoiser(den.net, den.path, "x0", shape=(3,), schema=Schema(**schema))


def test_labels_that_the_classifier_does_not_know(den):
    """Found on the host, from the model's schema: three classes against two logits, even if the third is unused."""
    three = labelled(den, fields={"label": Field(values=3)})
    with pytest.raises(RangeError, match="got 2; expected 3"):
        run(three, ClassifierGuidance(lambda x, level: linear(x)))
    with pytest.raises(UnknownNameError, match="Did you mean 'label'"):
        run(den, ClassifierGuidance(lambda x, level: linear(x), target="labels"))
    with pytest.raises(ConditionError, match="without a condition"):
        sample(den, GRID, guidance=ClassifierGuidance(lambda x, level: linear(x)), dtype=torch.float64)
    words = Denoiser(
        nn.Identity(),
        VP(),
        "x0",
        shape=(3,),
        schema=Schema({"label": Field((3,), "float64")}),
        call=lambda net, x, *_: x,
    )
    with pytest.raises(ConditionError, match="class labels"):
        run(words, ClassifierGuidance(lambda x, level: linear(x)), torch.zeros(5, 3, dtype=torch.float64))


def test_bad_fields():
    with pytest.raises(DTypeError, match="a function"):
        ClassifierGuidance(None)
    with pytest.raises(UnsupportedError, match=r"classifier.eval\(\)"):
        ClassifierGuidance(nn.Linear(3, 2))
    with pytest.raises(UnknownNameError, match="Did you mean 'noisy'"):
        ClassifierGuidance(linear, on="noise")
    with pytest.raises(RangeError, match="scale of a classifier"):
        ClassifierGuidance(linear, float("inf"))
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(RangeError, match="temperature"):
            ClassifierGuidance(linear, temperature=bad)


def test_what_it_prints_and_needs():
    assert ClassifierGuidance(linear).needs == ()
    assert ClassifierGuidance(linear, on="clean", of="null").needs == (NULL._replace(grad=True),)
    assert repr(ClassifierGuidance(nn.Linear(3, 2).eval(), 2.0)) == (
        f"ClassifierGuidance(Linear, scale=2.0, on='noisy', target='label', temperature=1.0, of={COND!r})"
    )
