"""Laws that every guidance obeys, whatever it does: checked for each of them by name."""

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.path import VP
from wayfield.field.batching import Batching
from wayfield.guide import CFG, Clip, Plain
from wayfield.sampling import sample
from wayfield.solve import DPM2M

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
    from wayfield.solve import DDIM

    den, x = mixture(VP(), d=3), 3 * randn64(4, 3)
    grid = G.given(VP(), (0.7, 0.4))
    got = sample(den, grid, x=x, samples=4, solver=DDIM(), guidance=Clip(low=-0.2, high=0.3), dtype=torch.float64).x
    (a, an), (s, sn) = grid.scales[:2]
    x0 = den(x, 0.7).x0.clamp(-0.2, 0.3)
    torch.testing.assert_close(got, an * x0 + sn * (x - a * x0) / s, rtol=1e-12, atol=1e-12)
