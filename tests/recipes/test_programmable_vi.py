"""The recipe of programmable VI: its machinery runs, its worlds are exact where they can be, and each bar can fail."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from wayfield import vi
from wayfield.core.errors import UnknownNameError, UnsupportedError
from wayfield.recipes import (
    air,
    programmable_vi as recipe,
    programmable_vi_cone as cone,
    programmable_vi_digits as causes,
)
from wayfield.recipes.programmable_vi import _paired_t, _verdict, run

QUICK = air.SIZES["quick"]


@pytest.mark.slow
def test_a_quick_run_reports_every_figure(tmp_path):
    report = run(2, True, tmp_path)
    assert [r["world"] for r in report.per_seed] == ["digits", "digits", "cone", "overhead", "air"]
    first, _, ring, cost, canvases = report.per_seed
    assert set(first["arms"]) == set(first["start"]) == set(causes.ARMS)
    assert first["start"][causes.ENUM] == pytest.approx({"variance": 0, "furthest": 0}, abs=1e-5)
    assert set(ring["bounds"]) == set(cone.BOUNDS)
    assert 0 < cost["low"] <= cost["ratio"] <= cost["high"]
    assert set(canvases["arms"]) == set(air.ARMS)
    assert all(0 <= f["accuracy"] <= 1 and math.isfinite(f["elbo"]) for f in canvases["arms"].values())
    assert len(report.criteria) == 14
    assert all((tmp_path / name).exists() for name in report.pictures)
    assert not any("_pictures" in r for r in report.per_seed)
    assert report.write(tmp_path).exists()


def test_sizes_are_refused_by_name(tmp_path):
    with pytest.raises(UnknownNameError, match="size"):
        run(1, True, tmp_path, "large")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(UnsupportedError, match="GPU"):
            run(1, True, tmp_path, "gpu")


def test_the_exact_bound_of_digits_is_the_sum_over_forty_values():
    """By hand: every value's log joint less log guide, weighted by the guide."""
    net, x = causes.Causes(0), causes.pictures()[1][:3]
    none = torch.zeros(12), torch.zeros(64)
    with torch.no_grad():
        got = float(net.elbo(causes.ENUM)(x, *none, seed=0).value)
        logits, want = net.encoder(x).double(), torch.zeros(3, dtype=torch.float64)
        kinds = logits[:, 2:].log_softmax(-1)
        for a in (0, 1):
            for b in (0, 1):
                for k in range(10):
                    code = F.one_hot(torch.tensor(k), 10).float()
                    pixels = net.decoder(torch.cat([torch.tensor([float(a), float(b)]), code]))
                    log_x = -F.binary_cross_entropy_with_logits(pixels.expand(3, 64), x, reduction="none").sum(-1)
                    log_q = kinds[:, k] + sum(F.logsigmoid(logits[:, j] * (2 * v - 1)) for j, v in ((0, a), (1, b)))
                    want += log_q.exp() * (log_x.double() - math.log(40) - log_q)
    assert got == pytest.approx(float(want.mean()), rel=1e-6)


@pytest.mark.parametrize("arm", [causes.SCORE, causes.LOO, causes.MEASURE])
def test_arms_of_digits_agree_in_gradient(arm):
    """76 numbers within 4.5 standard errors of 2,000 draws: a sound arm misses that once in 2,000 seeds."""
    drawn, exact = causes.gradients(arm, 1, 2000, count=3)
    error = drawn.std(0) / len(drawn) ** 0.5
    assert float(((drawn.mean(0) - exact) / error).abs().max()) < 4.5
    if arm == causes.LOO:  # of the three the most precise: a missing score term would be seen
        assert float((exact / error)[:12].abs().max()) > 10


def test_the_cone_has_the_evidence_it_says():
    """log P(z = 5) by a sum over the plane; the joint density of the program and the one of the picture agree."""
    at = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    x, y = at[None, :], at[:, None]
    p = cone.density(x, y)
    total = float(p.sum()) * float(at[1] - at[0]) ** 2 / (2 * math.pi) ** 1.5 / 100
    assert math.log(total) == pytest.approx(cone.EVIDENCE, abs=1e-4)
    points = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([-2.0, 0.5])}
    log_p = vi.log_density(cone.model, points, torch.full((2,), 5.0), torch.zeros(2), batch=(2,))
    picture = cone.density(points["x"], points["y"]).log() - 1.5 * math.log(2 * math.pi) - math.log(100)
    torch.testing.assert_close(log_p.flatten(), picture, rtol=1e-5, atol=1e-5)


def test_rows_of_the_cone_are_runs_of_their_own():
    """A row's gradient is that of the same draws alone, whatever stands in the other rows."""
    z, theta = torch.full((2,), 5.0), torch.tensor([[0.0, 0.0], [0.1, -0.2]]).requires_grad_()
    total = cone.BOUNDS["IWHVI(5)"].make(4)(z, theta, seed=0).surrogate
    changed = torch.tensor([[0.0, 0.0], [0.5, 0.5]]).requires_grad_()
    other = cone.BOUNDS["IWHVI(5)"].make(4)(z, changed, seed=0).surrogate
    first, second = (torch.autograd.grad(s, t)[0] for s, t in ((total, theta), (other, changed)))
    torch.testing.assert_close(first[0], second[0])
    assert not torch.allclose(first[1], second[1])


def test_a_few_steps_raise_every_bound_of_the_cone():
    for name in cone.BOUNDS:
        before, after = (cone.trained(name, 2, steps, 500)["bound"] for steps in (0, 30))
        assert sum(after) > sum(before), name


@pytest.mark.parametrize("where", [(3.0, 0.4, -0.7), (2.5, -1.5, 1.0)])
def test_paste_and_attend_are_grid_sample(where):
    g = torch.Generator().manual_seed(0)
    x, glimpse, w = torch.rand(2, 24, 24, generator=g), torch.rand(2, 8, 8, generator=g), torch.tensor(where)
    s, a, b = where
    grids = (torch.tensor([[s, 0, a], [0, s, b]]), torch.tensor([[1 / s, 0, -a / s], [0, 1 / s, -b / s]]))
    got = (air.paste(glimpse, w, 24), air.attend(x, w, 8))
    for matrix, source, out in zip(grids, (glimpse, x), got, strict=True):
        grid = F.affine_grid(matrix.expand(2, 2, 3), [2, 1, *out.shape[-2:]], align_corners=True)
        want = F.grid_sample(source[:, None], grid, align_corners=True)[:, 0]
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


def test_canvases_hold_as_many_digits_as_they_say():
    x, counts = air.canvases(replace(QUICK, train=30), "train")
    assert counts.bincount().tolist() == [10, 10, 10]
    ink = x.sum((1, 2))
    assert float(ink[counts == 0].max()) == 0 < float(ink[counts == 1].min())
    assert float(ink[counts == 2].mean()) == pytest.approx(2 * float(ink[counts == 1].mean()), rel=0.15)
    assert not torch.equal(x[:10], air.canvases(QUICK, "test")[0][:10])


def test_the_large_size_runs():
    """One value at the GPU's size, on three canvases: none, one and two digits."""
    size = replace(air.SIZES["gpu"], train=3)
    net, (x, counts) = air.Air(size, 0), air.canvases(size, "train")
    objective = vi.elbo(net.model, net.guide, batch_dims=1).with_strategies(air.strategies("MVD and ENUM", size))
    assert x.shape == (3, 50, 50)
    assert counts.tolist() == [0, 1, 2]
    assert math.isfinite(objective(x, seed=0).value)


def test_arms_of_air_share_one_expected_bound():
    """All arms have one program, so that their bounds agree: exactly where every choice is drawn alike."""
    net, x = air.Air(QUICK, 0), air.canvases(QUICK, "test")[0][:12]
    objective = vi.elbo(net.model, net.guide, batch_dims=1)
    values = {
        arm: torch.stack(
            [objective.with_strategies(air.strategies(arm, QUICK))(x, seed=s).value for s in range(10)]
        ).double()
        for arm in air.ARMS
    }
    assert torch.equal(values["REINFORCE"], values["REINFORCE + baseline"])
    assert torch.equal(values["REINFORCE"], values["MVD"])
    for arm in ("ENUM", "MVD and ENUM"):
        off = values[arm] - values["REINFORCE"]
        assert abs(float(off.mean())) < 4 * float(off.std()) / 10**0.5
    assert air.strategies("REINFORCE + baseline", QUICK) == {}


def test_absent_objects_have_no_density():
    """An empty canvas: the densities of where and what do not count, whatever their values."""
    net, x = air.Air(QUICK, 0), torch.zeros(1, 24, 24)
    values = {f"pres_{t}": torch.zeros(1) for t in range(2)}
    values |= {f"where_{t}": torch.full((1, 3), 2.0 + t) for t in range(2)}
    values |= {f"what_{t}": torch.full((1, 2), 9.0) for t in range(2)}
    moved = values | {"what_0": torch.zeros(1, 2), "where_1": torch.tensor([[4.0, 1.0, 1.0]])}
    with torch.no_grad():
        for program in (net.model, net.guide):
            a, b = (vi.log_density(program, v, x, batch=(1,)) for v in (values, moved))
            torch.testing.assert_close(a, b)


def test_boxes_are_drawn_where_the_guide_looks(monkeypatch):
    net, x = air.Air(QUICK, 0), torch.zeros(1, 24, 24)
    seen = torch.tensor([[1.0, 0.0]]), torch.tensor([[[3.0, 0.0, 0.0], [3.0, 1.0, 1.0]]])
    monkeypatch.setattr(air, "located", lambda *_: seen)
    drawn = air.boxes(net, x, seed=0, scale=2)[0]
    rows, columns = ((drawn[0] != -1).any(k).nonzero().flatten() for k in (1, 0))
    assert drawn.shape == (3, 48, 48)
    assert (rows[0], rows[-1]) == (columns[0], columns[-1]) == (16, 31)


def runs():
    """What should come out, in the least detail that the verdict reads."""
    elbo = {causes.SCORE: (-24.0, -24.2), causes.LOO: (-23.0, -23.1), causes.MEASURE: (-22.5, -22.4)}
    elbo[causes.ENUM] = (-21.0, -21.3)
    digits = [{"world": "digits", "arms": {arm: {"elbo": v[k]} for arm, v in elbo.items()}} for k in (0, 1)]
    variance = {causes.SCORE: 9.0, causes.LOO: 2.0, causes.MEASURE: 5.0, causes.ENUM: 0.0}
    digits[0]["start"] = {arm: {"variance": v, "furthest": 3.0} for arm, v in variance.items()}
    bounds = {"ELBO": -8.09, "IWELBO(5)": -7.6, "HVI": -9.74, "IWHVI(5)": -8.2, "DIWHVI(5,5)": -7.3}
    ring = {"world": "cone", "bounds": {k: [v, v] for k, v in bounds.items()}}
    arms = {arm: {"accuracy": 0.7} for arm in air.ARMS} | {air.MEASURE: {"accuracy": 0.8}}
    return [*digits, ring, {"world": "overhead", "ratio": 1.1}, {"world": "air", "arms": arms}]


@pytest.mark.parametrize(
    ("path", "value", "failed"),
    [
        ((3, "ratio"), 1.1, ()),
        ((1, "arms", causes.ENUM, "elbo"), -25.0, (0, 1, 2, 3)),
        ((0, "arms", causes.SCORE, "elbo"), math.nan, (2, 3)),
        ((0, "start", causes.MEASURE, "furthest"), 4.1, (4,)),
        ((0, "start", causes.ENUM, "variance"), 6.0, (5,)),
        ((0, "start", causes.MEASURE, "variance"), 10.0, (6,)),
        ((2, "bounds", "ELBO"), [-8.2, -8.2], (7,)),
        ((2, "bounds", "HVI"), [-9.6, -9.6], (8,)),
        ((2, "bounds", "IWHVI(5)"), [-8.4, -8.4], (9,)),
        ((2, "bounds", "DIWHVI(5,5)"), [-7.8, -7.8], (10,)),
        ((2, "bounds", "IWELBO(5)"), [-7.0, -5.3], (11,)),
        ((3, "ratio"), 1.5, (12,)),
        ((4, "arms", air.MEASURE, "accuracy"), 0.74, (13,)),
    ],
    ids=str,
)
def test_each_criterion_can_fail(path, value, failed):
    changed = copy.deepcopy(runs())
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert tuple(k for k, c in enumerate(_verdict(changed)) if not c.passed) == failed


def test_paired_t():
    """By hand: mean 2, standard deviation 1, four pairs."""
    assert _paired_t([1.0, 3.0, 1.0, 3.0]) == pytest.approx(2 / (math.sqrt(4 / 3) / 2))
    assert math.isnan(_paired_t([1.0]))
    assert recipe.OVER_SCORE > 0 < recipe.OVER_LOO
