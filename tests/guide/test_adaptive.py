"""Adaptive guidance: its rule against closed forms and a loop by hand, its cost, its modes, and what it refuses."""

import math

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import DTypeError, RangeError, UnknownNameError
from wayfield.core.exact import isotropic_mixture
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import VP
from wayfield.field.binding import COND, NULL, Query
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Auto, Away, Guidance
from wayfield.guide.adaptive import AG, cosine
from wayfield.guide.apg import APG
from wayfield.sampling import Checkpoint, sample
from wayfield.solve import DDIM, DPM2M, Heun

N, B, W = 10, 6, 3.0
GRID = G.karras(VP(), N, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
MODES = ("exact", "late", "fixed")
BAR = 0.97
NEGATIVE = ((COND, Query("negative")),)


def run(den, guidance, samples=B, labels=LABELS, **options):
    options = {"dtype": torch.float64, "solver": DDIM(), "seed": 3, **options}
    return sample(den, GRID, samples=samples, cond={"label": labels}, guidance=guidance, **options)


def latch(guidance, result):
    return next(state for part, state in guidance.remembered(result.state) if isinstance(part, AG))


def by_hand(den, gate, w=W, other=None):
    """AG under DDIM, one sample after the other, without the library's guidance: points, guided steps, last cosines."""
    a, s, noise = GRID.scales.alpha, GRID.scales.sigma, SeededNoise(3, B)
    start = float(s[0]) * noise.draw((3,), Address(-1)).double()
    ends, steps, last = [], [], []
    for k in range(B):
        x, on, guided, gamma = start[k : k + 1], True, 0, -1.0
        for i in range(N):
            c = den(x, GRID.t[i], {"label": LABELS[k : k + 1]})
            x0 = c.x0
            if on:
                u = den(x, GRID.t[i], other)
                x0, guided = c.x0 + (w - 1) * (c.x0 - u.x0), guided + 1
                p, q = (c.x0, u.x0) if gate.space == "x0" else (c.eps, u.eps)
                gamma = float((p * q).sum() / (p.square().sum() * q.square().sum()).sqrt())
                on = not (gamma > gate.gamma_bar and i + 1 >= gate.min_steps)
            x = a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]
        ends.append(x)
        steps.append(guided)
        last.append(gamma)
    return torch.cat(ends), steps, last


def test_cosine_of_known_angles():
    a = torch.tensor([[[3.0, 0.0]], [[1.0, 1.0]], [[0.0, 0.0]], [[2.0, -1.0]]])
    b = torch.tensor([[[0.0, 2.0]], [[1.0, 0.0]], [[1.0, 2.0]], [[-4.0, 2.0]]])
    torch.testing.assert_close(cosine(a, b), torch.tensor([0.0, math.sqrt(0.5), -1.0, -1.0]))
    assert cosine(torch.zeros(1, 2), torch.zeros(1, 2)).item() == -1


def test_cosine_is_clamped_and_not_of_half_precision(randn64):
    x = randn64(200, 5).float()
    assert cosine(x, x).max() <= 1
    assert cosine(x.bfloat16(), x.bfloat16()).dtype == torch.float32
    assert cosine(x.double(), x.double()).dtype == torch.float64


@pytest.mark.parametrize("space", ["x0", "eps"])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_gamma_of_one_gaussian_in_closed_form(randn64, space, t):
    """Conditional N(m, v) and marginal N(0, V); D = mean + a v / (a^2 v + s^2) (x - a mean)."""
    path, v, big, m = VP(), 0.04, 0.5, torch.tensor([[0.6, -0.3, 0.9]], dtype=torch.float64)
    grid = G.given(path, (t, t / 2))
    a, s = float(grid.scales.alpha[0]), float(grid.scales.sigma[0])

    class Gaussian(torch.nn.Module):
        def forward(self, x, time, cond):
            label = cond["label"]
            mean, var = (torch.tensor([p, q], dtype=torch.float64)[label][:, None] for p, q in ((1.0, 0.0), (v, big)))
            mean = mean * m
            return mean + a * var / (a**2 * var + s**2) * (x - a * mean)

    den = Denoiser(Gaussian(), path, "x0", shape=(3,), schema=Schema({"label": Field(values=2)}, {"label": 1}))
    x, guidance = randn64(4, 3), Guidance(CFG(2.0).when(AG(1.0, space)))
    cond = {"label": torch.zeros(4, dtype=torch.long)}
    result = sample(den, grid, x=x, samples=4, cond=cond, guidance=guidance, dtype=torch.float64)
    c, u = m + a * v / (a**2 * v + s**2) * (x - a * m), a * big / (a**2 * big + s**2) * x
    if space == "eps":
        c, u = (x - a * c) / s, (x - a * u) / s
    want = (c * u).sum(1) / (c.square().sum(1) * u.square().sum(1)).sqrt()
    torch.testing.assert_close(latch(guidance, result)[1], want, rtol=1e-12, atol=1e-12)


def test_the_space_decides_how_gamma_runs():
    """Ten classes in 64 dimensions: noise predictions agree at both ends and least between, x0 agrees at the end."""
    path, g = VP(), torch.Generator().manual_seed(1)
    means = torch.randn(10, 64, generator=g, dtype=torch.float64) * 0.7
    net = isotropic_mixture(path, means, 0.05, torch.full((10,), 0.1, dtype=torch.float64), torch.arange(10))
    den = Denoiser(net, path, "x0", shape=(64,), schema=Schema({"label": Field(values=11)}, {"label": 10}))
    times = torch.linspace(0.999, 0.01, 25).tolist()
    labels, seen = torch.arange(40) % 10, {"x0": [], "eps": []}
    clean = means[labels]
    for t in times:
        a, s = (float(v[0]) for v in G.given(path, (t, 0.0)).scales[:2])
        x = a * clean + s * torch.randn(40, 64, generator=g, dtype=torch.float64)
        c, u = den(x, t, {"label": labels}), den(x, t)
        seen["x0"].append(float(cosine(c.x0, u.x0).mean()))
        seen["eps"].append(float(cosine(c.eps, u.eps).mean()))
    low = min(range(25), key=seen["eps"].__getitem__)
    assert 0 < low < 24
    assert min(seen["eps"][0], seen["eps"][-1]) > 0.999 > seen["eps"][low]
    assert seen["x0"][0] < 0.6 < 0.999 < seen["x0"][-1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gate", [AG(BAR), AG(0.998, "eps"), AG(-0.5, min_steps=4)], ids=str)
def test_equals_a_loop_by_hand(mixture, gate, mode):
    den, guidance = mixture(VP(), d=3), Guidance(CFG(W).when(gate), rows=mode)
    result, (x, steps, last) = run(den, guidance), by_hand(den, gate)
    torch.testing.assert_close(result.x, x, rtol=1e-10, atol=1e-10)
    on, gamma, guided = latch(guidance, result)
    assert guided.tolist() == steps
    assert on.tolist() == [k == N for k in steps]
    torch.testing.assert_close(gamma, torch.tensor(last, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_samples_stop_at_different_steps(mixture):
    """What the tests around this one rely on."""
    _, steps, _ = by_hand(mixture(VP(), d=3), AG(BAR))
    assert len(set(steps)) >= 3
    assert min(steps) < N


@pytest.mark.parametrize("bar", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("solver", [DPM2M(), Heun()], ids=str)
def test_a_threshold_of_one_is_plain_guidance(mixture, bar, solver):
    """To rounding: plain guidance is one weighted sum of the two answers, gated guidance a push."""
    den = mixture(VP(), d=3)
    plain, gated = (run(den, g, solver=solver) for g in (CFG(W), CFG(W).when(AG(bar))))
    torch.testing.assert_close(gated.x, plain.x, rtol=1e-13, atol=1e-13)
    assert gated.counts == plain.counts


def test_before_the_latch_it_is_plain_guidance(mixture):
    """To rounding; and to the bit it is the gate that never closes."""
    den = mixture(VP(), d=3)
    plain, gated, never = (
        run(den, Guidance(term, rows="fixed"), record=True).trajectory
        for term in (CFG(W), CFG(W).when(AG(BAR)), CFG(W).when(AG(1.0)))
    )
    for k, steps in enumerate(by_hand(den, AG(BAR))[1]):
        assert torch.equal(gated[: steps + 1, k], never[: steps + 1, k])
        torch.testing.assert_close(gated[: steps + 1, k], plain[: steps + 1, k], rtol=1e-13, atol=1e-13)
        assert steps == N or (gated[steps + 1, k] - plain[steps + 1, k]).norm() > 1e-4


def test_the_lowest_threshold_guides_one_step(mixture):
    den = mixture(VP(), d=3)
    assert run(den, CFG(W).when(AG(-1.0))).counts.rows == B * (N + 1)
    assert run(den, CFG(W).when(AG(-1.0, min_steps=3))).counts.rows == B * (N + 3)


def test_no_scale_is_the_condition_whatever_the_threshold(mixture):
    den = mixture(VP(), d=3)
    plain, gated = run(den, None), run(den, CFG(1.0).when(AG(0.5)))
    assert torch.equal(gated.x, plain.x)
    assert gated.counts.rows == B * N


def test_without_a_condition_it_stops_at_once(mixture):
    """c = u: the cosine is 1, and the samples are those of the condition."""
    den, nothing = mixture(VP(), d=3), torch.full((B,), 2)
    guidance = Guidance(CFG(W).when(AG(0.9999)))
    result = run(den, guidance, labels=nothing)
    assert result.counts.rows == B * (N + 1)
    torch.testing.assert_close(latch(guidance, result)[1], torch.ones(B, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(result.x, run(den, None, labels=nothing).x, rtol=1e-12, atol=1e-12)


def test_a_negative_prompt_like_the_prompt_stops_at_once(mixture):
    den, guidance = mixture(VP(), d=3), CFG(W, "negative").when(AG(0.9999, pairs=NEGATIVE))
    same = run(den, guidance, conds={"negative": {"label": LABELS}})
    assert same.counts.rows == B * (N + 1)
    other = run(den, guidance, conds={"negative": {"label": 1 - LABELS}})
    assert other.counts.rows > same.counts.rows


def test_every_pair_must_agree(mixture):
    """The gate of two pairs closes where the later of both alone would, as far as both see the same points."""
    den, w = mixture(VP(), d=3), 1 + 1e-9  # so little guidance that all runs visit the same points
    term, conds = CFG(w) + CFG(w, "negative"), {"negative": {"label": 1 - LABELS}}
    steps = []
    for pairs in (((COND, NULL),), NEGATIVE, ((COND, NULL), *NEGATIVE)):
        guidance = Guidance(term.when(AG(BAR, pairs=pairs)))
        steps.append(latch(guidance, run(den, guidance, conds=conds))[2])
    assert not torch.equal(steps[0], steps[1])
    assert torch.equal(steps[2], torch.maximum(steps[0], steps[1]))


@pytest.mark.parametrize("solver", [DDIM(), DPM2M(), Heun()], ids=str)
def test_row_modes_agree_and_count_what_they_promise(mixture, solver):
    den, results, guided = mixture(VP(), d=3), {}, None
    for mode in MODES:
        guidance = Guidance(CFG(W).when(AG(BAR)), rows=mode)
        results[mode] = run(den, guidance, solver=solver)
        guided = latch(guidance, results[mode])[2]
        torch.testing.assert_close(results[mode].x, results["exact"].x, rtol=1e-11, atol=1e-11)
    rows = {mode: result.counts.rows for mode, result in results.items()}
    if solver == Heun():  # two evaluations a step, one in the last
        spent = torch.where(guided == N, 2 * guided - 1, 2 * guided)
        want = B * (2 * N - 1) + int(spent.sum())
    else:
        want = B * N + int(guided.sum())
    assert rows["exact"] == want
    stages = 2 if solver == Heun() else 1
    assert want < rows["late"] <= want + B * stages
    assert rows["fixed"] == 2 * B * (2 * N - 1 if solver == Heun() else N)
    assert all(r.counts.rows + r.counts.skipped == rows["fixed"] for r in results.values())


def test_compiled_equals_eager(mixture):
    den, guidance = mixture(VP(), d=3), Guidance(CFG(W).when(AG(BAR)), rows="fixed")
    torch._dynamo.reset()
    compiled = run(den, guidance, compile="eager")
    torch.testing.assert_close(compiled.x, run(den, guidance).x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_sample_k_does_not_depend_on_its_batch(mixture, mode):
    den, guidance = mixture(VP(), d=3), Guidance(CFG(W).when(AG(BAR)), rows=mode)
    whole = run(den, guidance).x
    for k in (1, 4):
        alone = run(den, guidance, [k], LABELS[k : k + 1]).x
        torch.testing.assert_close(alone[0], whole[k], rtol=1e-12, atol=1e-12)


def test_any_space_gives_the_same_samples_if_it_latches_alike(mixture):
    """Guidance commutes with affine maps: with the latch after step 4 for all, the space does not matter."""
    den = mixture(VP(), d=3)
    results = [run(den, CFG(W).when(AG(-1.0, space, min_steps=4))).x for space in ("x0", "eps", "native")]
    assert all(torch.equal(x, results[0]) for x in results[1:])


def test_native_is_what_the_network_answers(mixture):
    den = mixture(VP(), d=3, kind="x0")
    states = []
    for space in ("x0", "native"):
        guidance = Guidance(CFG(W).when(AG(BAR, space)))
        states.append(latch(guidance, run(den, guidance)))
    torch.testing.assert_close(states[0][1], states[1][1], rtol=1e-12, atol=1e-12)
    assert torch.equal(states[0][2], states[1][2])


def test_with_a_weaker_network_no_unconditional_answer_is_asked(mixture):
    den, weak = mixture(VP(), d=3), mixture(VP(), d=3)
    gate = AG(0.999, pairs=((COND, Query("cond", "weak")),))
    counts = run(den, Auto(2.0).when(gate), nets={"weak": weak}).counts
    assert counts.rows == B * (N + 1)  # the weak network is the same one
    assert counts.skipped == B * (N - 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_goes_on_from_the_middle(mixture, tmp_path, mode):
    class Stopped(Exception):
        pass

    def stop(info):
        if info.i == 6:
            raise Stopped

    den, guidance = mixture(VP(), d=3), Guidance(CFG(W).when(AG(BAR)), rows=mode)
    options = {"solver": DPM2M(), "checkpoint": Checkpoint(str(tmp_path / "run"), every=5)}
    with pytest.raises(Stopped):
        run(den, guidance, callback=stop, **options)
    assert torch.equal(run(den, guidance, **options).x, run(den, guidance, solver=DPM2M()).x)


@pytest.mark.parametrize("mode", MODES)
def test_momentum_stands_still_on_closed_samples(mixture, mode):
    """AG over APG: a closed sample keeps the momentum of its last guided step; the open ones go on."""
    den, term = mixture(VP(), d=3), 2 * Away(NULL).through(APG(r=1.0, beta=-0.5))
    guidance, seen = Guidance(term.when(AG(BAR)), rows=mode), []
    run(den, guidance, callback=lambda info: seen.append(guidance.remembered(info.state)))
    momenta = [next(state[0] for part, state in each if isinstance(part, APG)) for each in seen]
    open_after = [next(state[0] for part, state in each if isinstance(part, AG)) for each in seen]
    assert len({int(on.sum()) for on in open_after}) >= 3
    for i in range(1, N):
        moved = (momenta[i] != momenta[i - 1]).any(1)
        assert torch.equal(moved, open_after[i - 1])


def test_repr_rebuilds():
    for gate in (AG(), AG(math.inf, "eps", 3), AG(pairs=NEGATIVE)):
        assert eval(repr(gate)) == gate


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"gamma_bar": math.nan}, RangeError),
        ({"gamma_bar": -1.01}, RangeError),
        ({"space": "score"}, UnknownNameError),
        ({"min_steps": 0}, RangeError),
        ({"pairs": ()}, RangeError),
        ({"pairs": (("cond", "null"),)}, DTypeError),
        ({"pairs": ((COND,),)}, DTypeError),
    ],
)
def test_wrong_fields_are_refused(fields, error):
    with pytest.raises(error):
        AG(**fields)
