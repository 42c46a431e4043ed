"""Policies: every step has the stated scale and costs the stated rows."""

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import RangeError, ShapeError
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import VP
from wayfield.field.binding import COND, NULL, Query
from wayfield.guide import CFG, PLAIN, Away, Guidance  # noqa: F401  (Away: for eval)
from wayfield.guide.gates import Steps  # noqa: F401  (for eval)
from wayfield.guide.nodes import When  # noqa: F401  (for eval)
from wayfield.guide.policy import Instead, policy, policy_cost
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, Heun

W = 3.0
GRID = G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1])
SCALES = (W, 0, 2 * W, 1, W / 2, 0.0)


def run(mixture, guidance, samples=5, labels=LABELS, **options):
    options = {"dtype": torch.float64, "solver": DDIM(), **options}
    return sample(
        mixture(VP(), d=3), GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options
    )


def test_a_run_by_hand(mixture):
    den = mixture(VP(), d=3)
    x = float(GRID.scales.sigma[0]) * SeededNoise(3, 5).draw((3,), Address(-1)).double()
    a, s = GRID.scales.alpha, GRID.scales.sigma
    for i, scale in enumerate(SCALES):
        c, u = den(x, GRID.t[i], {"label": LABELS}).x0, den(x, GRID.t[i]).x0
        x0 = u + scale * (c - u)
        x = a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]
    torch.testing.assert_close(run(mixture, policy(SCALES)).x, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
@pytest.mark.parametrize("scales", [SCALES, (0,) * 6, (1,) * 6, (W,) * 6, (0, 1) * 3, (1.0000000000000002, W) * 3])
def test_rows_are_the_sum_of_costs(mixture, scales, rows):
    guidance = policy(scales)
    guidance = Guidance(guidance.term, sources=guidance.sources, rows=rows)
    counts = run(mixture, guidance).counts
    assert counts.rows == 5 * policy_cost(scales) == 5 * sum(1 if round(s, 9) in (0, 1) else 2 for s in scales)
    assert counts.calls == 6


@pytest.mark.parametrize(("scales", "same"), [((W,) * 6, CFG(W)), ((0,) * 6, CFG(0.0)), ((1,) * 6, None)])
@pytest.mark.parametrize("solver", [DPM2M(), Heun()], ids=str)
def test_one_scale_at_every_step_is_that_guidance(mixture, scales, same, solver):
    got, want = run(mixture, policy(scales), solver=solver), run(mixture, same, solver=solver)
    torch.testing.assert_close(got.x, want.x, rtol=1e-12, atol=1e-12)
    assert got.counts[:2] == want.counts[:2]


def test_negative_conditions(mixture):
    got = run(mixture, policy(SCALES, away="negative"), conds={"negative": {"label": 2}})
    torch.testing.assert_close(got.x, run(mixture, policy(SCALES)).x, rtol=1e-12, atol=1e-12)


def test_compiled_is_eager(mixture):
    torch._dynamo.reset()
    grid = G.karras(VP(), 3, sigma_min=0.05, sigma_max=20.0)
    options = {"samples": 5, "cond": {"label": LABELS}, "guidance": policy((W, 0, W / 2)), "dtype": torch.float64}
    eager, compiled = (sample(mixture(VP(), d=3), grid, compile=c, **options).x for c in (False, "eager"))
    torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12)
    torch._dynamo.reset()


def test_sample_k_does_not_depend_on_its_batch(mixture):
    alone = run(mixture, policy(SCALES), samples=[3], labels=LABELS[3:4]).x
    torch.testing.assert_close(alone[0], run(mixture, policy(SCALES)).x[3], rtol=1e-12, atol=1e-12)


def test_repr_rebuilds():
    assert eval(repr(policy(SCALES))) == policy(SCALES)
    assert policy((1, 1.0)) == PLAIN


def test_misfits_are_refused(mixture):
    for scales in ((), (float("nan"),), (True, 2.0)):
        with pytest.raises(RangeError):
            policy(scales)
        with pytest.raises(RangeError):
            policy_cost(scales)
    with pytest.raises(RangeError, match="another"):
        Instead((True,), by=COND)
    with pytest.raises(ShapeError, match="6 steps"):
        run(mixture, policy((0, 1)))
    with pytest.raises(RangeError, match="6 steps"):
        run(mixture, policy((W, 1)))
    assert Instead((True,)).needs == (NULL,)
    assert Instead((True,), Query("negative")).query == COND
