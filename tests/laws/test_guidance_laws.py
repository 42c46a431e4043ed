"""Laws that every guidance obeys, whatever it does: checked for each of them by name."""

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import VP
from wayfield.core.predict import Prediction
from wayfield.field.ask import COND, NULL
from wayfield.field.batching import Batching
from wayfield.guide import CFG, Clip, Guidance, Plain
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, DPM3M, Heun, UniPC

GRID = G.karras(VP(), 8, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1])
# guidance -> rows per sample and step it declares
GUIDANCES = {
    "plain": (Plain(), 1),
    "cfg": (CFG(3.0), 2),
    "cfg w=1": (CFG(1.0), 1),
    "cfg w=0": (CFG(0.0), 1),
    "clipped cfg": (Clip(CFG(3.0)), 2),
}
NEUTRAL = [CFG(1.0), Clip(Plain(), -100, 100), Clip(CFG(1.0), -100, 100)]


def run(mixture, guidance, samples=5, labels=LABELS, **options):
    options = {"dtype": torch.float64, "solver": DPM2M(), **options}
    den = mixture(VP(), d=3)
    return sample(den, GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options)


@pytest.mark.parametrize("guidance", NEUTRAL, ids=str)
def test_the_neutral_parameter_is_plain_sampling(mixture, guidance):
    torch.testing.assert_close(run(mixture, guidance).x, run(mixture, Plain()).x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", GUIDANCES)
def test_declared_rows_are_counted_rows(mixture, name):
    guidance, rows = GUIDANCES[name]
    counts = run(mixture, guidance).counts
    assert len(guidance.needs()) == rows
    assert counts.rows == 8 * 5 * rows
    assert counts.rows + counts.skipped == 8 * 5 * guidance.branches


@pytest.mark.parametrize("name", GUIDANCES)
def test_sharing_calls_does_not_change_values(mixture, name):
    guidance, _ = GUIDANCES[name]
    shared = run(mixture, guidance, batching=Batching())
    apart = run(mixture, guidance, batching=Batching(merge_below=0))
    torch.testing.assert_close(shared.x, apart.x, rtol=1e-12, atol=1e-12)
    assert shared.counts.rows == apart.counts.rows
    assert shared.counts.calls == 8


@pytest.mark.parametrize("name", GUIDANCES)
def test_sample_k_does_not_depend_on_its_batch(mixture, name):
    guidance, _ = GUIDANCES[name]
    whole, alone = run(mixture, guidance).x, run(mixture, guidance, [3], LABELS[3:4]).x
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", GUIDANCES)
def test_float32_differs_from_float64_by_rounding(mixture, name):
    guidance, _ = GUIDANCES[name]
    torch.testing.assert_close(
        run(mixture, guidance, dtype=torch.float32).x.double(), run(mixture, guidance).x, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", GUIDANCES)
def test_repr_rebuilds(name):
    guidance, _ = GUIDANCES[name]
    assert eval(repr(guidance)) == guidance


def test_clip_is_the_clamped_prediction(mixture, randn64):
    """One DDIM step by hand: x0 clamped, eps made from it."""
    den, x = mixture(VP(), d=3), 3 * randn64(4, 3)
    grid = G.given(VP(), (0.7, 0.4))
    got = sample(den, grid, x=x, samples=4, solver=DDIM(), guidance=Clip(low=-0.2, high=0.3), dtype=torch.float64).x
    (a, an), (s, sn) = grid.scales[:2]
    x0 = den(x, 0.7).x0.clamp(-0.2, 0.3)
    torch.testing.assert_close(got, an * x0 + sn * (x - a * x0) / s, rtol=1e-12, atol=1e-12)


def test_rows_skipped_by_a_two_stage_solver(mixture):
    """Heun asks 2N - 1 times; at w = 1 each of them skips one branch."""
    counts = run(mixture, CFG(1.0), solver=Heun()).counts
    assert (counts.calls, counts.rows, counts.skipped) == (15, 75, 75)


class Broken(Guidance):
    """As CFG++: the guided x0 with the unconditional eps, a pair that no point has."""

    branches = 2  # pyright: ignore[reportAssignmentType]

    def needs(self):
        return COND, NULL

    def __call__(self, ask, state):
        c, u = ask(COND, NULL)
        return Prediction(u.x0 + 0.6 * (c.x0 - u.x0), u.eps), state


@pytest.mark.parametrize("solver", [DDIM(), DPM2M(), DPM3M(), UniPC(1)], ids=str)
def test_pairs_broken_on_purpose_are_kept(mixture, randn64, solver):
    """The first step of each solver moves x0 and eps as they are: x_s = alpha_s x0 + sigma_s eps."""
    den, x = mixture(VP(), d=3), 2 * randn64(5, 3)
    grid = G.given(VP(), (0.7, 0.4, 0.2))
    seen = []
    sample(
        den,
        grid,
        x=x,
        samples=5,
        cond={"label": LABELS},
        solver=solver,
        guidance=Broken(),
        dtype=torch.float64,
        callback=lambda info: seen.append(info.x),
    )
    c, u = den(x, 0.7, {"label": LABELS}), den(x, 0.7)
    a, s = (v[1] for v in grid.scales[:2])
    want = a * (u.x0 + 0.6 * (c.x0 - u.x0)) + s * u.eps
    torch.testing.assert_close(seen[0], want, rtol=1e-12, atol=1e-12)


class Remembering(Guidance):
    """Halves what it remembers and adds the present x0; predicts the memory."""

    branches = 1  # pyright: ignore[reportAssignmentType]

    def init(self, x):
        return (torch.zeros_like(x),)

    def needs(self):
        return (COND,)

    def __call__(self, ask, state):
        memory = 0.5 * state[0] + 0.5 * ask(COND)[0].x0
        return ask.point(memory), (memory,)


def test_state_is_committed_by_the_first_evaluation_of_a_step(mixture):
    """Heun by hand: both evaluations read the memory from before the step; the first one's is kept."""
    den, noise = mixture(VP(), d=3), SeededNoise(3, 5)
    x = float(GRID.scales.sigma[0]) * noise.draw((3,), Address(-1)).double()
    a, s, memory = GRID.scales.alpha, GRID.scales.sigma, torch.zeros(5, 3, dtype=torch.float64)
    cond = {"label": LABELS}
    for i in range(8):
        now = 0.5 * memory + 0.5 * den(x, GRID.t[i], cond).x0
        eps = (x - a[i] * now) / s[i]
        x = a[i + 1] * now + s[i + 1] * eps
        if s[i + 1] > 0:
            later = 0.5 * memory + 0.5 * den(x, GRID.t[i + 1], cond).x0
            slope = (x - a[i + 1] * later) / s[i + 1] - eps
            x = x + 0.5 * (s[i + 1] - a[i + 1] * s[i] / a[i]) * slope
        memory = now
    torch.testing.assert_close(run(mixture, Remembering(), solver=Heun()).x, x, rtol=1e-9, atol=1e-9)
