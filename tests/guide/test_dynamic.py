"""Dynamic CFG on an exact mixture: the arg-max of known rewards, its oracles one by one, and bad input."""

import math

import pytest
import torch
from torch import nn

from wayfield.core import grid as G
from wayfield.core.errors import (
    DeviceError,
    DTypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from wayfield.core.path import VP
from wayfield.field.batching import Batching
from wayfield.field.binding import NULL
from wayfield.field.denoiser import Landing
from wayfield.guide import CFG, Away, Guidance
from wayfield.guide.adaptive import AG
from wayfield.guide.apg import APG
from wayfield.guide.dynamic import COMBINATIONS, Greedy, choices, dynamic_cfg, replay
from wayfield.guide.gates import Interval, Stage
from wayfield.guide.policy import policy
from wayfield.sampling import Checkpoint, sample
from wayfield.solve import DDIM, DPM2M, Heun

STEPS = 8
GRID = G.karras(VP(), STEPS, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1])
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)


def run(mixture, guidance, samples=5, labels=LABELS, spread=0.09, **options):
    options = {"dtype": torch.float64, "solver": DDIM(), "grid": GRID, "cond": {"label": labels}, **options}
    model, grid = mixture(VP(), d=3, spread=spread), options.pop("grid")
    return sample(model, grid, samples=samples, seed=3, guidance=guidance, **options)


def near(target):
    """Minus the squared distance from a point."""

    def score(x, level, cond):
        return -(x - target).square().sum(1)

    return score


def constant(x, level, cond):
    return torch.full_like(x[:, 0], 0.1)


def posterior(mixture, spread=0.09):
    """log p(label | x), exact."""
    net = mixture(VP(), d=3, spread=spread).net

    def score(x, level, cond):
        time = VP().time(2 * (level.alpha / level.sigma).log())
        return net.posterior(x, time).log().gather(1, cond["label"][:, None])[:, 0]

    return score


def along(runs, grid=GRID):
    """Minus the distance from where a recorded run (N + 1, B, *D) stands at the level that is asked about."""
    levels = grid.scales.sigma

    def score(x, level, cond):
        i = int((levels - level.sigma).abs().argmin())
        return -(x - runs[i].repeat(len(x) // runs.shape[1], 1)).square().sum(1)

    return score


@pytest.mark.parametrize("w", [1.0, 2.5])
def test_one_candidate_is_that_scale(mixture, w):
    """Oracle 1: to the bit with the guidance that has a scale of its own for every sample."""
    got = run(mixture, dynamic_cfg({"any": constant}, (w,), w)).x
    assert torch.equal(got, run(mixture, CFG((w,) * 5)).x)
    torch.testing.assert_close(got, run(mixture, CFG(w)).x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_constant_scores_choose_the_default(mixture, combine):
    """Oracle 1: ties."""
    guidance = dynamic_cfg({"a": constant, "b": constant}, SCALES, 1.5, combine=combine)
    result = run(mixture, guidance)
    assert torch.equal(choices(guidance, result.state), torch.full((5, STEPS), 1.5, dtype=torch.float64))


@pytest.mark.parametrize("j", range(5))
def test_a_known_trajectory_is_followed(mixture, j):
    """Oracle 2: the reward is the nearness to what a fixed scale draws. Classes overlap, so that no push vanishes."""
    static = run(mixture, CFG((SCALES[j],) * 5), record=True, spread=0.6)
    guidance = dynamic_cfg({"near": along(static.trajectory)}, SCALES)
    result = run(mixture, guidance, spread=0.6)
    assert torch.equal(choices(guidance, result.state), torch.full((5, STEPS), SCALES[j], dtype=torch.float64))
    assert torch.equal(result.x, static.x)


def test_candidates_are_landings_of_the_first_order_step(mixture):
    """Oracle 3: what is scored is where DDIM lands for each scale, in the order of nearness to the default."""
    seen = []

    def watch(x, level, cond):
        seen.append((x, level))
        return constant(x, level, cond)

    grid = G.given(VP(), (0.7, 0.45))
    run(mixture, dynamic_cfg({"watch": watch}, SCALES), grid=grid)
    ((x, level),) = seen
    for got, w in zip(x.reshape(5, 5, 3), (1.5, 1.25, 1.0, 2.0, 3.0), strict=True):
        torch.testing.assert_close(got, run(mixture, CFG(w), grid=grid).x, rtol=1e-12, atol=1e-12)
    assert isinstance(level, Landing)
    assert (float(level.alpha), float(level.sigma)) == tuple(float(c[1]) for c in grid.scales[:2])


@pytest.mark.parametrize("solver", [DDIM(), DPM2M(), DPM2M(eta=1.0), DDIM(eta=1.0)], ids=str)
def test_steps_are_affine_in_the_scale(mixture, solver):
    """Oracles 3 and 9: with the same noise a step is x^1 + (w - 1) k d, k from two scales, and predicts a third."""
    grid = G.given(VP(), (0.7, 0.45))
    one, two, three = (run(mixture, CFG(w), grid=grid, solver=solver).x for w in (1.0, 2.0, 3.0))
    torch.testing.assert_close(three, one + 2 * (two - one), rtol=1e-12, atol=1e-12)
    assert torch.equal(two, run(mixture, CFG(2.0), grid=grid, solver=solver).x)


@pytest.mark.parametrize("count", [1, 5, 24])
@pytest.mark.parametrize(("solver", "calls"), [(DPM2M(), STEPS), (Heun(), 2 * STEPS - 1)], ids=["2m", "heun"])
def test_candidates_cost_no_rows(mixture, count, solver, calls):
    """Two rows per sample and evaluation, as CFG, however many candidates."""
    scales = tuple(1 + k / 8 for k in range(count))
    counts = run(mixture, dynamic_cfg({"a": constant}, scales, 1.0), solver=solver, batching=Batching()).counts
    assert counts == run(mixture, CFG(2.0), solver=solver, batching=Batching()).counts
    assert (counts.calls, counts.rows, counts.skipped) == (calls, 10 * calls, 0)


def test_quadratic_reward_has_its_optimum_in_closed_form(mixture, randn64):
    """Oracle 4: w = 1 + <x* - x^1, k d> / |k d|^2; a dense set of candidates finds it to half its spacing."""
    grid, target = G.given(VP(), (0.7, 0.45)), 0.3 * randn64(5, 3, seed=8)
    one, two = (run(mixture, CFG(w), grid=grid).x for w in (1.0, 2.0))
    best = 1 + ((target - one) * (two - one)).sum(1) / (two - one).square().sum(1)
    spacing = 0.05
    scales = tuple(round(-20 + spacing * k, 2) for k in range(801))

    def score(x, level, cond):
        return -(x - target.repeat(len(x) // 5, 1)).square().sum(1)

    guidance = dynamic_cfg({"near": score}, scales, 1.0)
    got = choices(guidance, run(mixture, guidance, grid=grid).state)[:, 0]
    inside = best.clamp(-20, 20)
    assert (inside == best).sum() >= 3
    assert float((got - inside).abs().max()) <= spacing / 2 + 1e-9


def test_the_exact_posterior_is_chosen_by_brute_force(mixture):
    """Oracle 5: every step equals the comparison of all candidates; alone it takes the largest scale where it grows."""
    score = posterior(mixture, 0.6)
    guidance = dynamic_cfg({"posterior": score}, SCALES)
    result = run(mixture, guidance, spread=0.6, record=True)
    chosen, grew = choices(guidance, result.state), 0
    for i in range(STEPS):
        grid = G.given(VP(), GRID.t[i : i + 2])
        level = Landing(*(c[1] for c in grid.scales[:2]))
        at = {"grid": grid, "x": result.trajectory[i], "spread": 0.6}
        scores = torch.stack([score(run(mixture, CFG(w), **at).x, level, {"label": LABELS}) for w in SCALES])
        assert torch.equal(chosen[:, i], torch.tensor(SCALES, dtype=torch.float64)[scores.argmax(0)])
        rising = (scores.diff(dim=0) > 0).all(0)
        assert bool((chosen[rising, i] == 3.0).all())
        grew += int(rising.sum())
    assert grew > 10


def test_standardised_scores_have_no_units(mixture, randn64):
    """Oracle 6: an affine change of a score, of positive slope, changes nothing; a negative slope does."""
    scores = randn64(2, 5, 4)
    other = torch.stack([7 * scores[0] - 30, scores[1] / 90 + 2])
    before = torch.full((2, 1, 4), math.nan, dtype=torch.float64)
    rule = COMBINATIONS["standardised"]
    torch.testing.assert_close(rule(scores, before), rule(other, before), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(rule(scores, before), rule(-scores, before))
    assert float(rule(scores, before).std(1, correction=0).sub(1).abs().max()) < 1e-12


@pytest.mark.parametrize("rule", ["paper", "paper_abs"])
def test_the_papers_weights(rule, randn64):
    """Oracle 6: scale-free in the weight but not in the sum, no shifts; no change means no weight; the first step."""
    scores, before = randn64(2, 5, 4).exp(), randn64(2, 1, 4, seed=1).exp()
    by_hand = (scores.mean(1, keepdim=True) - before) / before
    by_hand = by_hand.abs() if rule == "paper_abs" else by_hand
    f = COMBINATIONS[rule]
    torch.testing.assert_close(f(scores, before), by_hand * scores)
    torch.testing.assert_close(f(3 * scores, 3 * before) / (3 * scores), f(scores, before) / scores)
    assert not torch.allclose(f(scores + 1, before + 1) / (scores + 1), f(scores, before) / scores)
    assert float(f(scores, scores.mean(1, keepdim=True)).abs().max()) < 1e-15
    torch.testing.assert_close(f(scores, before * math.nan), scores)
    torch.testing.assert_close(f(-scores, -before), by_hand * -scores)


def test_product_is_the_product():
    scores = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    greedy = Greedy((("a", constant), ("b", constant)), combine="product", weights=(1.0, 2.0))
    level = Landing(torch.ones(()), torch.ones(()))
    torch.testing.assert_close(greedy._total(scores, scores[:, 0].T, level).exp(), scores[0] * scores[1] ** 2)


@pytest.mark.parametrize("solver", [DDIM(), Heun(), DPM2M(eta=1.0)], ids=str)
def test_sample_k_does_not_depend_on_its_batch(mixture, solver):
    """Oracle 7, for the rule that remembers scores too."""
    evaluators = {"posterior": posterior(mixture), "near": near(0.2)}
    for combine in ("standardised", "paper"):
        guidance = dynamic_cfg(evaluators, SCALES, combine=combine)
        whole = run(mixture, guidance, solver=solver)
        for k in (0, 3):
            alone = run(mixture, guidance, [k], LABELS[k : k + 1], solver=solver)
            torch.testing.assert_close(alone.x[0], whole.x[k], rtol=1e-10, atol=1e-10)
            assert torch.equal(choices(guidance, alone.state)[0], choices(guidance, whole.state)[k])


@pytest.mark.parametrize("chunk", [1, 7, 10])
def test_chunks_do_not_change_the_choice(mixture, chunk):
    """And no evaluator call has more rows than a chunk, or than the batch."""
    rows = []

    def watched(x, level, cond):
        rows.append(len(x))
        assert len(cond["label"]) == len(x)
        return near(0.2)(x, level, cond)

    got = run(mixture, dynamic_cfg({"a": watched}, SCALES, chunk=chunk)).x
    assert torch.equal(got, run(mixture, dynamic_cfg({"a": near(0.2)}, SCALES)).x)
    assert max(rows) == (10 if chunk == 10 else 5)


def test_correctors_hold_the_choice_of_their_step(mixture):
    """Heun by hand: with the chosen scales as a schedule per sample, the same samples."""
    guidance = dynamic_cfg({"a": posterior(mixture)}, SCALES)
    result = run(mixture, guidance, solver=Heun())
    chosen = choices(guidance, result.state)
    for k in range(5):
        again = run(mixture, replay(chosen[k]), [k], LABELS[k : k + 1], solver=Heun())
        torch.testing.assert_close(again.x[0], result.x[k], rtol=1e-10, atol=1e-10)
    unguided = run(mixture, guidance.when(Stage(1)), solver=Heun()).x
    torch.testing.assert_close(unguided, run(mixture, CFG(1.5).when(Stage(1)), solver=Heun()).x)


def test_a_schedule_is_replayed_for_everybody(mixture):
    guidance = dynamic_cfg({"a": near(0.2)}, SCALES)
    mean = choices(guidance, run(mixture, guidance).state).mean(0)
    result = run(mixture, replay(mean))
    again = run(mixture, policy(mean.tolist()))
    assert torch.equal(result.x, again.x)
    assert result.counts == again.counts
    with pytest.raises(RangeError):
        run(mixture, replay([2.0] * (STEPS + 1)))


class Trusted:
    """An evaluator that says at which levels it is of use."""

    def __init__(self, score, noisiest):
        self.score, self.noisiest = score, noisiest

    def __call__(self, x, level, cond):
        return self.score(x, level, cond)

    def quality(self, level):
        return (level.sigma < self.noisiest * level.alpha).double()


def test_where_an_evaluator_is_no_better_than_chance_the_default_stands(mixture):
    grid_levels = (GRID.scales.sigma / GRID.scales.alpha)[1:]
    guidance = dynamic_cfg({"a": Trusted(posterior(mixture), 1.0)}, SCALES)
    chosen = choices(guidance, run(mixture, guidance).state)
    assert bool((chosen[:, grid_levels >= 1.0] == 1.5).all())
    assert bool((chosen[:, grid_levels < 1.0] != 1.5).any())


def test_margin_is_what_a_change_must_gain(mixture):
    """In units of the total: here of the log-posterior, in nats."""

    def changed(margin):
        guidance = dynamic_cfg({"a": posterior(mixture, 0.6)}, SCALES, combine="sum", margin=margin)
        return float((choices(guidance, run(mixture, guidance, spread=0.6).state) != 1.5).double().mean())

    assert changed(0.0) > changed(0.05) > changed(100.0) == 0.0


def test_composes_with_apg_gates_and_ag(mixture):
    """After APG candidates are along the shaped push; a gate's closed steps choose nothing; AG closes rows."""
    greedy = Greedy((("near", near(0.2)),))
    shaped = Away(NULL).through(APG(r=0.5, beta=-0.5)).through(greedy)
    constant_w = Away(NULL).through(APG(r=0.5, beta=-0.5)).through(Greedy((("a", constant),)))
    torch.testing.assert_close(
        run(mixture, constant_w).x, run(mixture, 0.5 * Away(NULL).through(APG(r=0.5, beta=-0.5))).x
    )
    assert not torch.allclose(run(mixture, shaped).x, run(mixture, constant_w).x)
    gated = shaped.when(Interval(low=-2.0, high=2.0))
    result = run(mixture, gated)
    assert result.counts.skipped > 0
    stopped = Away(NULL).through(greedy).when(AG(0.95))
    want = run(mixture, stopped)
    assert want.counts.skipped > 0
    for mode in ("late", "fixed"):
        got = run(mixture, Guidance(stopped, rows=mode))
        torch.testing.assert_close(got.x, want.x, rtol=1e-11, atol=1e-11)
        assert torch.equal(choices(stopped, got.state), choices(stopped, want.state))


@pytest.mark.parametrize("solver", [DPM2M(), Heun()], ids=str)
def test_compiled_equals_eager(mixture, solver):
    torch._dynamo.reset()
    guidance = Guidance(dynamic_cfg({"a": near(0.2), "b": posterior(mixture)}, SCALES, margin=0.1), rows="fixed")
    got, want = run(mixture, guidance, compile="eager", solver=solver), run(mixture, guidance, solver=solver)
    torch.testing.assert_close(got.x, want.x, rtol=1e-11, atol=1e-11)


def test_resumes_to_the_bit(mixture, tmp_path):
    guidance = dynamic_cfg({"a": near(0.2), "b": posterior(mixture)}, SCALES, combine="paper")
    place = Checkpoint(str(tmp_path / "run.safetensors"), every=3)

    def stop(info):
        if info.i == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(mixture, guidance, checkpoint=place, callback=stop)
    got, want = run(mixture, guidance, checkpoint=place), run(mixture, guidance)
    assert torch.equal(got.x, want.x)
    assert torch.equal(choices(guidance, got.state), choices(guidance, want.state))


def test_float32_stays_float32(mixture):
    guidance = dynamic_cfg({"a": near(0.2)}, SCALES)
    result = run(mixture, guidance, dtype=torch.float32)
    assert result.x.dtype == choices(guidance, result.state).dtype == torch.float32


def test_prints_evaluators_by_name():
    assert repr(Greedy((("near", constant),))) == (
        "Greedy([near], scales=(1.0, 1.25, 1.5, 2.0, 3.0), default=1.5, combine='standardised', weights=None, "
        "margin=0.0)"
    )
    assert Greedy({"near": constant}) == Greedy([["near", constant]])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_surface_with_their_step(mixture, combine, bad):
    """One evaluator of two, one candidate, one sample, at one level."""

    def broken(x, level, cond):
        score = constant(x, level, cond)
        return torch.where((level.sigma < 0.5) & (torch.arange(len(x)) == 12), bad, score)

    with pytest.raises(NonFiniteError, match="after step"):
        run(mixture, dynamic_cfg({"a": constant, "b": broken}, SCALES, combine=combine))


def test_a_product_of_negative_scores_surfaces(mixture):
    with pytest.raises(NonFiniteError):
        run(mixture, dynamic_cfg({"a": near(0.2)}, SCALES, combine="product"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"evaluators": {}}, DTypeError),
        ({"evaluators": [("a", constant), ("a", constant)]}, RangeError),
        ({"evaluators": {"a": 3}}, DTypeError),
        ({"evaluators": [constant]}, DTypeError),
        ({"evaluators": {"a": nn.Linear(3, 1)}}, UnsupportedError),
        ({"scales": ()}, RangeError),
        ({"scales": (2.0, 1.5)}, RangeError),
        ({"scales": (1.5, 1.5)}, RangeError),
        ({"scales": (1.5, math.nan)}, RangeError),
        ({"scales": (1.5, math.inf)}, RangeError),
        ({"default": 1.7}, RangeError),
        ({"combine": "best"}, UnknownNameError),
        ({"weights": (1.0, 2.0)}, RangeError),
        ({"weights": (-1.0,)}, RangeError),
        ({"weights": (0.0,)}, RangeError),
        ({"margin": -0.1}, RangeError),
        ({"margin": math.nan}, RangeError),
        ({"chunk": 0}, RangeError),
    ],
)
def test_bad_settings_are_refused(change, error):
    with pytest.raises(error):
        dynamic_cfg(**{"evaluators": {"a": constant}, **change})


@pytest.mark.parametrize(
    ("score", "error"),
    [
        (lambda x, level, cond: x, ShapeError),
        (lambda x, level, cond: x[:1, 0], ShapeError),
        (lambda x, level, cond: 1.0, ShapeError),
        (lambda x, level, cond: torch.zeros(len(x), device="meta"), DeviceError),
    ],
    ids=["(m, d)", "(1,)", "number", "device"],
)
def test_bad_scores_are_refused(mixture, score, error):
    with pytest.raises(error):
        run(mixture, dynamic_cfg({"a": score}, SCALES))


def test_an_evaluator_elsewhere_is_refused_before_the_first_step(mixture):
    with pytest.raises(DeviceError, match="meta"):
        run(mixture, dynamic_cfg({"a": nn.Linear(3, 1, device="meta").eval()}, SCALES))


def test_scaled_pushes_warn():
    with pytest.warns(UserWarning, match="already scaled"):
        CFG(3.0).through(Greedy((("a", constant),)))


def test_choices_of_another_guidance_are_refused(mixture):
    with pytest.raises(DTypeError):
        choices(CFG(2.0), run(mixture, CFG(2.0)).state)
