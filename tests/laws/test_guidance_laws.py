"""Laws that every guidance obeys, whatever it does: checked for each of them by name."""

import itertools

import pytest
import torch
from tests.laws.guidances import CASES, FUNCTIONS, STEPS
from tests.test_sampling import Reads

from wayfield.core import grid as G
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import VP
from wayfield.field.batching import Batching
from wayfield.guide import CFG, Guidance, planner
from wayfield.guide.codec import PARTS, from_json, to_json
from wayfield.guide.guidance import guidance_of
from wayfield.guide.roles import Shaper
from wayfield.sampling import Checkpoint, sample
from wayfield.solve import DDIM, DPM2M, DPM3M, Heun, UniPC

GRID = G.karras(VP(), STEPS, sigma_min=0.05, sigma_max=20.0)
_OPEN = planner._open
LABELS = torch.tensor([0, 1, 1, 0, 1])


def run(mixture, guidance, samples=5, labels=LABELS, **options):
    options = {"dtype": torch.float64, "solver": DPM2M(), **options}
    den, nets = mixture(VP(), d=3), {"weak": weaker(mixture)}
    given = {"cond": {"label": labels}, "conds": {"negative": {"label": 0}}, "nets": nets, "guidance": guidance}
    return sample(den, GRID, samples=samples, seed=3, **given, **options)


def weaker(mixture):
    """The same world as a network that has learned it badly: its noise level is too high."""
    return mixture(VP(), d=3, spread=0.5)


def refused(name, solver):
    """Whether a guidance counts steps by evaluations, so that solvers with several are refused (its own test)."""
    return name == "linear" and isinstance(solver, Heun)


def cases(*, alone=True):
    return pytest.mark.parametrize("name", [n for n in CASES if alone or "per sample" not in n])


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.neutral is not None])
def test_the_neutral_parameter_is_plain_sampling(mixture, name):
    neutral = run(mixture, CASES[name].neutral)
    torch.testing.assert_close(neutral.x, run(mixture, None).x, rtol=1e-11, atol=1e-11)


@cases()
def test_declared_rows_are_counted_rows(mixture, name):
    guidance, rows, calls, _ = CASES[name]
    counts = run(mixture, guidance, batching=Batching()).counts
    assert guidance_of(guidance).branches == rows
    assert counts.rows + counts.skipped == STEPS * 5 * rows
    assert counts.calls == calls


@cases()
def test_sharing_calls_does_not_change_values(mixture, name):
    guidance = CASES[name].guidance
    shared = run(mixture, guidance, batching=Batching())
    apart = run(mixture, guidance, batching=Batching(merge_below=0))
    torch.testing.assert_close(shared.x, apart.x, rtol=1e-12, atol=1e-12)
    assert shared.counts.rows == apart.counts.rows


@cases(alone=False)
@pytest.mark.parametrize("solver", [DPM2M(), Heun(), DPM2M(eta=1.0)], ids=str)
def test_sample_k_does_not_depend_on_its_batch(mixture, name, solver):
    guidance = CASES[name].guidance
    if refused(name, solver):
        return
    whole = run(mixture, guidance, solver=solver).x
    for k in (0, 3):
        alone = run(mixture, guidance, [k], LABELS[k : k + 1], solver=solver).x
        torch.testing.assert_close(alone[0], whole[k], rtol=1e-10, atol=1e-10)


@cases()
def test_float32_differs_from_float64_by_rounding(mixture, name):
    guidance = CASES[name].guidance
    single, double = run(mixture, guidance, dtype=torch.float32).x.double(), run(mixture, guidance).x
    torch.testing.assert_close(single, double, rtol=2e-3, atol=2e-3)


@cases()
def test_row_modes_give_equal_values(mixture, name):
    """Masks on the host, a step late, or on the device: rows differ, values do not."""
    guidance = guidance_of(CASES[name].guidance)
    want = run(mixture, guidance)
    for mode in ("late", "fixed"):
        got = run(mixture, _with_rows(guidance, mode))
        torch.testing.assert_close(got.x, want.x, rtol=1e-11, atol=1e-11)
        assert got.counts.rows >= want.counts.rows


@cases()
def test_the_host_reads_nothing_but_masks(mixture, name, monkeypatch):
    """In the loop: no value of a tensor, but one mask a step where a gate decides by sample, until all have latched."""
    guidance, read = guidance_of(CASES[name].guidance), []
    monkeypatch.setattr(planner, "_open", lambda mask: read.append(mask) or _OPEN(mask))
    with Reads() as mode:
        seen = []
        run(mixture, guidance, callback=lambda info: seen.append((mode.n, len(read))))
    assert seen[-1][0] == seen[0][0]
    masks = [n for _, n in seen]
    assert max(b - a for a, b in itertools.pairwise(masks)) <= (1 if guidance.masked else 0)
    if guidance.masked:
        assert masks[-1] < STEPS  # all have latched before the end, and nobody asks again
    read.clear()
    run(mixture, _with_rows(guidance, "fixed"))
    assert not read


@cases()
def test_compiled_equals_eager(mixture, name):
    torch._dynamo.reset()
    guidance = _with_rows(guidance_of(CASES[name].guidance), "fixed")
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        got = run(mixture, guidance, compile="eager")
    torch.testing.assert_close(got.x, run(mixture, guidance).x, rtol=1e-11, atol=1e-11)


@cases()
@pytest.mark.parametrize("solver", [DPM2M(), Heun()], ids=str)
def test_resume_from_the_middle(mixture, name, solver, tmp_path):
    guidance = CASES[name].guidance
    if refused(name, solver):
        return
    place = Checkpoint(str(tmp_path / "run.safetensors"), every=3)

    def stop(info):
        if info.i == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(mixture, guidance, solver=solver, checkpoint=place, callback=stop)
    got, want = run(mixture, guidance, solver=solver, checkpoint=place), run(mixture, guidance, solver=solver)
    torch.testing.assert_close(got.x, want.x, rtol=0, atol=0)
    assert got.counts == want.counts


@cases()
def test_json_round_trip(name):
    guidance = CASES[name].guidance
    if guidance is not None:
        back = from_json(to_json(guidance, FUNCTIONS), FUNCTIONS)
        assert back == guidance


@cases()
def test_repr_rebuilds(name):
    guidance = CASES[name].guidance
    fields = tuple(value for part in guidance_of(guidance).parts for value in vars(part).values())
    if guidance is not None and not any(map(callable, leaves(fields))):
        names = {part: getattr(__import__(module, fromlist=[part]), part) for part, module in PARTS.items()}
        from wayfield.field.binding import Query

        assert eval(repr(guidance), {**names, "Query": Query}) == guidance


def leaves(value):
    """What a field holds, tuples taken apart."""
    if not isinstance(value, tuple):
        yield value
        return
    for each in value:
        yield from leaves(each)


def test_every_part_is_in_some_case():
    """A part that may be kept in a file obeys the laws."""
    used = {type(part).__name__ for case in CASES.values() for part in guidance_of(case.guidance).parts}
    nodes = {"Sum", "Scale", "Through", "When", "Versus", "Guidance", "RLG"}
    assert set(PARTS) - nodes <= used | {"Away"}


def test_clip_is_the_clamped_prediction(mixture, randn64):
    """One DDIM step by hand: x0 clamped, eps made from it."""
    den, x = mixture(VP(), d=3), 3 * randn64(4, 3)
    grid = G.given(VP(), (0.7, 0.4))
    guidance = Guidance(clip=(-0.2, 0.3))
    got = sample(den, grid, x=x, samples=4, solver=DDIM(), guidance=guidance, dtype=torch.float64).x
    (a, an), (s, sn) = grid.scales[:2]
    x0 = den(x, 0.7).x0.clamp(-0.2, 0.3)
    torch.testing.assert_close(got, an * x0 + sn * (x - a * x0) / s, rtol=1e-12, atol=1e-12)


def test_rows_skipped_by_a_two_stage_solver(mixture):
    """Heun asks 2N - 1 times; half of the steps are closed."""
    counts = run(mixture, CASES["steps"].guidance, solver=Heun()).counts
    assert (counts.calls, counts.rows, counts.skipped) == (15, 75 + 40, 35)


@pytest.mark.parametrize("solver", [DDIM(), DPM2M(), DPM3M(), UniPC(1)], ids=str)
def test_pairs_broken_on_purpose_are_kept(mixture, randn64, solver):
    """The first step of each solver moves x0 and eps as they are: x_s = alpha_s x0 + sigma_s eps."""
    den, x = mixture(VP(), d=3), 2 * randn64(5, 3)
    grid = G.given(VP(), (0.7, 0.4, 0.2))
    seen = []
    options = {"dtype": torch.float64, "callback": lambda info: seen.append(info.x), "solver": solver}
    sample(den, grid, x=x, samples=5, cond={"label": LABELS}, guidance=CASES["cfg++"].guidance, **options)
    c, u = den(x, 0.7, {"label": LABELS}), den(x, 0.7)
    a, s = (v[1] for v in grid.scales[:2])
    want = a * (u.x0 + 0.6 * (c.x0 - u.x0)) + s * u.eps
    torch.testing.assert_close(seen[0], want, rtol=1e-12, atol=1e-12)


class Remembering(Shaper):
    """Halves what it remembers and adds the present push."""

    remembers = True

    def init(self, x, n):
        return (torch.zeros_like(x),)

    def shape(self, ask, push, step, state):
        memory = 0.5 * state[0] + 0.5 * push
        return memory, (memory,)


class Eager(Remembering):
    """The same, but later evaluations of a step read what the first one made of it."""

    reads = "current"


@pytest.mark.parametrize("shaper", [Remembering(), Eager()], ids=lambda s: s.reads)
def test_state_is_committed_by_the_first_evaluation_of_a_step(mixture, shaper):
    """Heun by hand: the first evaluation's memory is kept; the second reads that of before the step, or the new one."""
    den, noise = mixture(VP(), d=3), SeededNoise(3, 5)
    x = float(GRID.scales.sigma[0]) * noise.draw((3,), Address(-1)).double()
    a, s, memory = GRID.scales.alpha, GRID.scales.sigma, torch.zeros(5, 3, dtype=torch.float64)
    cond = {"label": LABELS}

    def guided(x, i, memory):
        c, u = den(x, GRID.t[i], cond).x0, den(x, GRID.t[i]).x0
        memory = 0.5 * memory + 0.5 * (2 * (c - u))
        return c + memory, memory

    for i in range(STEPS):
        now, new = guided(x, i, memory)
        eps = (x - a[i] * now) / s[i]
        x = a[i + 1] * now + s[i + 1] * eps
        if s[i + 1] > 0:
            later, _ = guided(x, i + 1, new if shaper.reads == "current" else memory)
            slope = (x - a[i + 1] * later) / s[i + 1] - eps
            x = x + 0.5 * (s[i + 1] - a[i + 1] * s[i] / a[i]) * slope
        memory = new
    got = run(mixture, CFG(3).through(shaper), solver=Heun())
    torch.testing.assert_close(got.x, x, rtol=1e-9, atol=1e-9)


def _with_rows(guidance, mode):
    return Guidance(guidance.term, guidance.base, guidance.noise, guidance.sources, guidance.clip, mode)
