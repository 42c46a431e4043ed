"""Guidance by judges of noisy points: by hand, against exact posteriors, with other guidance, and what it refuses."""

import pytest
import torch
from torch import nn

from wayfield.core import grid as G
from wayfield.core.errors import (
    ConditionError,
    DeviceError,
    DTypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from wayfield.core.path import VP, Straight
from wayfield.field.binding import COND, NULL
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import AG, APG, CFG, ClassifierGuidance, Guidance, Interval
from wayfield.guide.codec import from_json, to_json
from wayfield.guide.ppap import JudgeGuidance
from wayfield.guide.roles import Gate
from wayfield.judge import MLPJudge
from wayfield.judge.experts import Experts, NoiseRanges
from wayfield.judge.lora import LoRA
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, Adaptive, Heun

LABELS = torch.tensor([0, 1, 1, 0, 1])
GRID = G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)
WANTED = torch.tensor([[0.3, -0.5], [0.1, 0.2], [-0.4, 0.0], [0.0, 0.9], [0.5, 0.5]], dtype=torch.float64)


def posterior(den):
    """The exact noisy classifier, log p(y | x_t) up to a constant."""
    return lambda x, level: den.net.posterior(x, level.c_time).log() + 7.0


def two(x, level):
    """Two numbers of each noisy point."""
    return torch.stack([x.sum(1), (2 * x).sin().sum(1)], 1)


def bank(count=3, apart=0.3):
    """Experts of a small network, unlike each other."""
    experts = Experts(MLPJudge(3, 2, width=8, clean=True).double(), NoiseRanges.from_count(count, VP()), LoRA(2))
    g = torch.Generator().manual_seed(5)
    for p in experts.adapters.parameters():
        p.data += apart * torch.randn(p.shape, dtype=torch.float64, generator=g)
    return experts


def run(den, guidance, labels=LABELS, samples=5, **options):
    options = {"dtype": torch.float64, "solver": DPM2M(), **options}
    return sample(den, GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options)


@pytest.fixture
def den(mixture):
    return mixture(VP(), d=3)


@pytest.mark.parametrize("t", [0.9, 0.4, 0.05])
def test_a_mixture_guided_by_its_exact_classifier_is_conditional(randn64, t):
    """Data pi_k N(mu_k, s2 I): eps' = sigma (x - alpha mu_y) / (alpha^2 s2 + sigma^2), and x0' to match, at scale 1."""
    from wayfield.core.exact import isotropic_mixture

    mu, s2, path = randn64(2, 3), 0.2, Straight()
    net = isotropic_mixture(path, mu, s2, torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([0, 1]))
    den = Denoiser(net, path, "x0", shape=(3,), schema=Schema({"label": Field(values=3)}, {"label": 2}))
    x, end = 2 * randn64(5, 3, seed=1), 0.5 * t
    a, s, spread = 1 - t, t, (1 - t) ** 2 * s2 + t**2
    eps = s * (x - a * mu[LABELS]) / spread
    x0 = (x - s * eps) / a
    # time is sigma on the straight path
    judge = JudgeGuidance(lambda x, level: net.posterior(x, level.sigma).log(), "labels", "label", 1.0)
    got = sample(
        den,
        G.given(path, (t, end)),
        x=x,
        samples=5,
        cond={"label": LABELS},
        guidance=Guidance(judge, base=NULL),
        solver=DDIM(),
        dtype=torch.float64,
    ).x
    want = (1 - end) * x0 + end * eps  # DDIM: what it read of both is on the straight line
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    velocity = (got - x) / (end - t)  # v = alpha' x0 + sigma' eps
    torch.testing.assert_close(velocity, eps - x0, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("solver", [DPM2M(), Heun()], ids=str)
def test_experts_guide_as_a_classifier(den, solver):
    """By the condition's labels, by the same labels as numbers, and as classifier guidance: one and the same push."""
    experts = bank()
    want = run(den, Guidance(ClassifierGuidance(experts, 2.0), base=NULL), solver=solver).x
    for target in ("label", LABELS, tuple(LABELS.tolist())):
        judge = JudgeGuidance(experts, "labels", target, 2.0)
        got = run(den, Guidance(judge, base=NULL), solver=solver).x
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_squares_and_their_mean_by_hand(den):
    """One step of DDIM at t = 0.4: x0 + 0.7 (s^2 / a) grad of minus the mean squared difference."""
    x = 2 * torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    grid = G.given(VP(), (0.4, 0.2))
    (a, an), (s, sn) = grid.scales[:2]
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((two(leaf, None) - WANTED).square().mean(1).sum(), leaf)
    x0 = den(x, 0.4).x0 - 0.7 * s**2 / a * grad
    options = {"x": x, "samples": 5, "cond": {"label": LABELS}, "solver": DDIM(), "dtype": torch.float64}
    judges = [
        JudgeGuidance(two, "squares", WANTED, 0.7),
        JudgeGuidance(two, lambda out, y: (out - y).square().mean(1), WANTED, 0.7),
        JudgeGuidance(two, "squares", WANTED, (0.7,) * 5),
    ]
    for judge in judges:
        got = sample(den, grid, guidance=Guidance(judge, base=NULL), **options)
        torch.testing.assert_close(got.x, an * x0 + sn * (x - a * x0) / s, rtol=1e-12, atol=1e-12)
        assert (got.counts.calls, got.counts.rows) == (1, 5)


@pytest.mark.parametrize("path", [VP(), Straight()], ids=str)
def test_a_normalised_push_has_the_stated_length(mixture, path):
    """scale sigma^2 / (alpha (alpha^2 + sigma^2)) |x| in the direction of the gradient, sample by sample."""
    den, x = mixture(path, d=3), 2 * torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    grid = G.given(path, (0.4, 0.2))
    (a, an), (s, sn) = grid.scales[:2]
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad((two(leaf, None) - WANTED).square().mean(1).sum(), leaf)
    unit = grad / torch.linalg.vector_norm(grad, dim=1, keepdim=True)
    length = s**2 / (a * (a**2 + s**2)) * torch.linalg.vector_norm(x, dim=1, keepdim=True)
    x0 = den(x, 0.4).x0 - 0.3 * length * unit
    judge = JudgeGuidance(lambda x, level: 50 * two(x, level), "squares", 50 * WANTED, 0.3, "sample")
    options = {"x": x, "samples": 5, "cond": {"label": LABELS}, "solver": DDIM(), "dtype": torch.float64}
    got = sample(den, grid, guidance=Guidance(judge, base=NULL), **options).x
    torch.testing.assert_close(got, an * x0 + sn * (x - a * x0) / s, rtol=1e-12, atol=1e-12)


def test_a_flat_objective_does_not_push(den):
    """A gradient of zero has no direction: no NaN of 0/0."""
    judge = JudgeGuidance(lambda x, level: 0 * two(x, level), "squares", torch.zeros(1, 2), 1.0, "sample")
    assert torch.equal(run(den, judge).x, run(den, None).x)


def test_masks(randn64):
    """Dense labels of pictures: by hand, one step; every sample its own mask, or one for all."""
    path, x = VP(), randn64(3, 2, 4, 4)
    den = Denoiser(nn.Identity(), path, "x0", shape=(2, 4, 4), call=lambda net, x, *_: 0.5 * x)
    head = nn.Conv2d(2, 3, 3, padding=1).double().eval()
    masks = torch.randint(3, (3, 4, 4), generator=torch.Generator().manual_seed(0))
    grid = G.given(path, (0.4, 0.2))
    (a, an), (s, sn) = grid.scales[:2]

    def by_hand(masks):
        leaf = x.clone().requires_grad_()
        log_p = head(leaf).log_softmax(1).gather(1, masks[:, None])[:, 0]
        (grad,) = torch.autograd.grad(log_p.mean((1, 2)).sum(), leaf)
        x0 = 0.5 * x + 4.0 * s**2 / a * grad
        return an * x0 + sn * (x - a * x0) / s

    for target, want in ((masks, by_hand(masks)), (masks[:1], by_hand(masks[:1].expand(3, 4, 4)))):
        judge = JudgeGuidance(lambda x, level: head(x), "labels", target, 4.0)
        got = sample(den, grid, x=x, samples=3, guidance=judge, solver=DDIM(), dtype=torch.float64).x
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


class Half(Gate):
    """Closes rows 1 and 3 of five."""

    masked = True

    def open(self, step, state):
        return torch.tensor([True, False, True, False, True])


TARGETS = {"labels": ("labels", "label"), "numbers": ("squares", WANTED), "one for all": ("squares", WANTED[:1])}


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
@pytest.mark.parametrize("kind", list(TARGETS))
def test_some_rows_only(den, kind, rows):
    """Targets, scales and gradients of the open rows are their own, in every row mode."""
    term = JudgeGuidance(bank(), *TARGETS[kind], (0.1, 0.2, 0.3, 0.4, 0.5))
    got = run(den, Guidance(term.when(Half()), rows=rows)).x
    whole, plain, mask = run(den, term).x, run(den, None).x, torch.tensor([1, 0, 1, 0, 1]).bool()
    torch.testing.assert_close(got, torch.where(mask[:, None], whole, plain), rtol=1e-11, atol=1e-11)
    assert (whole - plain).abs().max() > 1e-4


@pytest.mark.parametrize("normalise", [None, "sample"])
def test_sample_k_does_not_depend_on_its_batch(den, normalise):
    term = CFG(2.0) + JudgeGuidance(bank(), "squares", WANTED, 0.1, normalise)
    alone = CFG(2.0) + JudgeGuidance(bank(), "squares", WANTED[3:4], 0.1, normalise)
    whole = run(den, term).x
    torch.testing.assert_close(run(den, alone, LABELS[3:4], [3]).x[0], whole[3], rtol=1e-11, atol=1e-11)


def test_neutral_is_plain_to_the_bit(den):
    out, plain = run(den, JudgeGuidance(bank(), "labels", "label", 0.0)), run(den, None)
    assert torch.equal(out.x, plain.x)
    assert out.counts == plain.counts


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
def test_with_cfg_adaptive_projection_and_gates(den, rows):
    """Beside CFG no row is added; through APG, under an interval and until AG closes, all stay finite and differ."""
    judge = JudgeGuidance(bank(), "squares", WANTED, 0.5)
    beside, cfg = run(den, Guidance(CFG(2.0) + judge, rows=rows)), run(den, CFG(2.0))
    assert beside.counts[:2] == cfg.counts[:2]
    through = run(den, Guidance((CFG(2.0) + judge).through(APG(r=0.5)), rows=rows))
    never = run(den, Guidance(CFG(2.0) + judge.when(Interval(high=-90.0)), rows=rows))
    torch.testing.assert_close(never.x, cfg.x, rtol=1e-12, atol=1e-12)
    gated = run(den, Guidance((CFG(2.0) + judge).when(AG(0.98)), rows=rows))
    for a in (beside, through, gated):
        assert a.x.isfinite().all()
        assert (a.x - cfg.x).abs().max() > 1e-4
    assert rows == "fixed" or gated.counts.rows < beside.counts.rows


def test_gates_stop_the_push_as_they_say(den):
    """Closed from the fourth step on, the run goes on as from there without it."""
    judge = JudgeGuidance(bank(), "labels", "label", 2.0)
    grid = GRID
    high = float(grid.lam[3]) * 2 - 1e-6
    gated = run(den, judge.when(Interval(high=high)), solver=DDIM(), record=True).trajectory
    whole = run(den, judge, solver=DDIM(), record=True).trajectory
    torch.testing.assert_close(gated[:4], whole[:4], rtol=1e-12, atol=1e-12)
    options = {"x": gated[3], "samples": 5, "cond": {"label": LABELS}, "solver": DDIM(), "dtype": torch.float64}
    rest = sample(den, G.given(VP(), grid.t[3:]), **options).x
    torch.testing.assert_close(gated[-1], rest, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("kind", "normalise"), [("labels", None), ("numbers", "sample")])
def test_compiled_is_one_graph(den, kind, normalise):
    """Experts are chosen by tensors alone, across all ranges of one run."""
    import torch._dynamo as dynamo

    term = CFG(2.0) + JudgeGuidance(bank(), *TARGETS[kind], 0.5, normalise)
    dynamo.reset()
    with dynamo.config.patch(trace_autograd_ops=True, error_on_recompile=True):
        got = run(den, term, compile="eager").x
    torch.testing.assert_close(got, run(den, term).x, rtol=1e-12, atol=1e-12)


def test_experts_change_over_as_the_run_goes(den):
    """Guided by a bank whose experts are one and the same, a run is another than by the bank itself."""
    experts, same = bank(), bank()
    for n in (1, 2):
        same.adapter(n).load_state_dict(same.adapter(0).state_dict())
    level = [den.level(torch.tensor(t, dtype=torch.float64)) for t in GRID.t[:-1]]
    assert [int(experts.ranges.index(each)) for each in level] == sorted(
        [int(experts.ranges.index(each)) for each in level], reverse=True
    )
    got, other = (run(den, JudgeGuidance(e, "labels", "label", 2.0)).x for e in (experts, same))
    assert (got - other).abs().max() > 1e-3


def test_levels_of_their_own(den):
    """An adaptive solver gives every row its own level, and drops rows that have arrived."""
    experts = bank(apart=0.03)  # where experts change over the push jumps: a solver may not get past a large jump
    options = {"solver": Adaptive(rtol=1e-2, atol=1e-2)}
    got = run(den, Guidance(JudgeGuidance(experts, "labels", "label", 1.0), base=NULL), **options).x
    want = run(den, Guidance(ClassifierGuidance(experts, 1.0), base=NULL), **options).x
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    with pytest.raises(UnsupportedError, match="adaptive solver"):
        run(den, JudgeGuidance(experts, "squares", WANTED, 1.0), **options)


def test_rows_without_a_target_are_not_pushed(den):
    """Label 2 means none, and is one more than the judge knows."""
    term = Guidance(JudgeGuidance(bank(), "labels", "label", 2.0), base=NULL)
    got = run(den, term, torch.tensor([0, 2, 1, 2, 1])).x
    torch.testing.assert_close(got[[1, 3]], run(den, CFG(0.0)).x[[1, 3]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[[0, 2, 4]], run(den, term).x[[0, 2, 4]], rtol=1e-12, atol=1e-12)


def test_a_field_of_numbers(randn64):
    """A condition that is a place to go to; its null value is nowhere."""
    schema = Schema({"place": Field((2,), "float64")}, {"place": [9.0, 9.0]})
    den = Denoiser(nn.Identity(), VP(), "x0", shape=(3,), schema=schema, call=lambda net, x, *_: 0.5 * x)
    places = torch.cat([WANTED[:4], torch.full((1, 2), 9.0, dtype=torch.float64)])
    options = {"samples": 5, "seed": 3, "dtype": torch.float64, "solver": DDIM()}
    got = sample(den, GRID, cond={"place": places}, guidance=JudgeGuidance(two, "squares", "place", 0.1), **options).x
    want = sample(den, GRID, guidance=JudgeGuidance(two, "squares", WANTED, 0.1), **options).x
    torch.testing.assert_close(got[:4], want[:4], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got[4], sample(den, GRID, **options).x[4], rtol=1e-12, atol=1e-12)


def test_no_signal_no_push(mixture):
    """At alpha = 0 of the straight path 1/alpha must not make NaN."""
    den = mixture(Straight(), d=3)
    grid = G.given(Straight(), (1.0, 0.5, 0.1))
    judge = JudgeGuidance(lambda x, level: two(level.alpha * x, level), "squares", WANTED, 0.1, "sample")
    options = {"samples": 5, "cond": {"label": LABELS}, "solver": DDIM(), "dtype": torch.float64}
    assert sample(den, grid, guidance=judge, **options).x.isfinite().all()


def test_json_and_repr(den):
    judge = JudgeGuidance(two, "squares", WANTED, 0.5, "sample")
    term = CFG(2.0) + judge.when(Interval(high=2.0))
    assert eval(repr(judge.target)) == judge.target == tuple(map(tuple, WANTED.tolist()))
    assert judge == JudgeGuidance(two, "squares", WANTED.tolist(), 0.5, "sample")
    assert judge != JudgeGuidance(two, "squares", WANTED + 1, 0.5, "sample")
    assert repr(judge).startswith("JudgeGuidance(two, 'squares', target=<(5, 2) ")
    assert repr(judge) != repr(JudgeGuidance(two, "squares", WANTED + 1, 0.5, "sample"))
    named = JudgeGuidance(two, "labels", "label")
    assert repr(named) == "JudgeGuidance(two, 'labels', target='label', scale=7.5, normalise=None)"
    assert (named.needs, named.told, judge.told) == ((), (COND,), ())
    kept = to_json(term, {"two": two})
    assert from_json(kept, {"two": two}) == term


@pytest.mark.parametrize(
    ("judge", "target", "error", "text"),
    [
        (lambda x, level: x[:2], "label", ShapeError, "judge output"),
        (lambda x, level: x.tolist(), "label", ShapeError, "got list"),
        (lambda x, level: x.sum(1), "label", RangeError, "classes of the judge: got 0; expected 2"),
        (lambda x, level: x[:, :1], "label", RangeError, "got 1; expected 2"),
        (lambda x, level: x[:, :2], (2, 0, 0, 0, 0), RangeError, "got 2; expected 3"),
        (lambda x, level: x[:, :2], LABELS[:, None], ShapeError, "equal|answers"),
        (lambda x, level: x[:, :2], LABELS[:4], ShapeError, "entries of a target: got 4; expected 5"),
        (lambda x, level: x.detach()[:, :2], "label", UnsupportedError, "no gradient"),
        (lambda x, level: x[:, :2].to("meta"), "label", DeviceError, "like the points"),
        (lambda x, level: x[:, :2] * float("nan"), "label", NonFiniteError, "after step 1"),
        (two, "labels", UnknownNameError, "Did you mean 'label'"),
    ],
)
def test_what_does_not_fit(den, judge, target, error, text):
    with pytest.raises(error, match=text):
        run(den, JudgeGuidance(judge, "labels", target, 1.0))


def test_a_judge_on_another_device(den):
    with pytest.raises(DeviceError, match="judge: got meta; expected cpu"):
        run(den, JudgeGuidance(bank().to("meta"), "labels", "label"))


def test_no_condition(den):
    with pytest.raises(ConditionError, match="without a condition"):
        sample(den, GRID, guidance=JudgeGuidance(two, "labels", "label"), dtype=torch.float64)
    with pytest.raises(ShapeError, match="equal shapes"):
        run(den, JudgeGuidance(two, "squares", torch.zeros(1, 3)))
    with pytest.raises(ShapeError, match=r"objective: got \(\); expected \(5,\)"):
        run(den, JudgeGuidance(two, lambda out, y: (out - y).sum(), WANTED))


def test_bad_fields():
    with pytest.raises(DTypeError, match="judge"):
        JudgeGuidance(None, "labels", "label")
    with pytest.raises(UnsupportedError, match=r"judge.eval\(\)"):
        JudgeGuidance(nn.Linear(3, 2), "labels", "label")
    with pytest.raises(UnknownNameError, match="Did you mean 'labels'"):
        JudgeGuidance(two, "label", "label")
    with pytest.raises(DTypeError, match="objective"):
        JudgeGuidance(two, None, "label")
    with pytest.raises(UnknownNameError, match="normalise"):
        JudgeGuidance(two, "labels", "label", 1.0, "batch")
    with pytest.raises(RangeError, match="scale of a judge"):
        JudgeGuidance(two, "labels", "label", float("nan"))
    with pytest.raises(DTypeError, match="whole numbers"):
        JudgeGuidance(two, "labels", (0.0, 1.0))
    with pytest.raises(RangeError, match="target of 'labels'"):
        JudgeGuidance(two, "labels", (-1, 1))
    with pytest.raises(RangeError, match="finite"):
        JudgeGuidance(two, "squares", (float("nan"),))
    for bad in (3, (), {"a": 1}, None):
        with pytest.raises((DTypeError, ShapeError), match="target"):
            JudgeGuidance(two, "squares", bad)
