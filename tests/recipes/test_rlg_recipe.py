"""The recipe of RLG: its machinery runs, rows are those of the models that count, and each criterion can fail."""

from __future__ import annotations

import math

import pytest

from wayfield.recipes.rlg import ASKED, SMALL, WS, _truth, _verdict, run

NAMES = [f"w={w:g}" for w in WS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:at beta")  # the small version tunes on a handful of samples
def test_a_quick_run_reports_every_figure(tmp_path):
    report = run(1, True, tmp_path)
    points, small, asked = report.per_seed
    for world in (points, small, asked):
        assert list(world["settings"]) == NAMES
        for figures in world["settings"].values():
            assert all(math.isfinite(v) for v in figures.values())
    assert list(points["grpo"]) == NAMES
    assert len(points["grpo_rewards"]) == 2
    assert [small["settings"][name]["rows_per_sample"] for name in NAMES] == [3, 6, 3, 6, 6, 6]
    assert (small["trained_on"], asked["trained_on"]) == (SMALL, ASKED)
    assert small["target"] > small["pool"]
    assert 0 <= asked["pool"] <= asked["target"] <= 1
    assert len(report.criteria) == 8
    assert all((tmp_path / name).exists() for name in report.pictures)
    assert not any("_pictures" in r for r in report.per_seed)
    assert report.write(tmp_path).exists()


def test_the_truth_is_the_cards():
    """Figures of its pilot, exact p_{beta/w} at beta = 2."""
    for w, want in ((0.5, 0.678), (1.0, 1.231), (1.5, 1.628), (2.0, 1.901), (3.0, 2.253)):
        assert _truth(2.0 / w) == pytest.approx(want, abs=6e-4)


def runs(points=None, direct=1.9, small=None, right=0.9, variance=0.9, asked=0.8, better=0.95):
    """Runs as they should come out, with changes. points, small: w -> reward / right, better: prompts at w = 1 /
    asked: the second reader's reward at w = 1.
    """
    rewards = dict(zip(WS, (0.0, 0.6, 1.2, 1.7, 2.0, 2.5), strict=True)) | (points or {})
    sizes = dict(zip(WS, (-1.1, -1.08, -1.05, -1.03, -1.0, -0.95), strict=True)) | (small or {})
    drawn = {f"w={w:g}": {"reward": r} for w, r in rewards.items()}
    seen = {f"w={w:g}": {"reward": r, "accuracy": 0.9, "variance": 1.0} for w, r in sizes.items()}
    seen["w=1"]["accuracy"], seen["w=2"]["variance"] = right, variance
    read = {f"w={w:g}": {"reward": 0.7, "accuracy": 0.9} for w in WS}
    read["w=1"] = {"reward": asked, "accuracy": better}
    return [
        {"world": "points", "settings": drawn, "direct": {"reward": direct}},
        {"world": "shapes", "trained_on": SMALL, "settings": seen},
        {"world": "shapes", "trained_on": ASKED, "settings": read},
    ]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, ()),
        ({"points": {3.0: 1.9}}, (0,)),
        ({"points": {3.0: 2.0}}, (0,)),
        ({"points": {2.0: 2.3}}, (1,)),
        ({"direct": 1.3, "points": {2.0: 1.45, 1.5: 1.4}}, (2,)),
        ({"small": {2.0: -1.06}}, (3,)),
        ({"small": {3.0: -2.0}}, ()),
        ({"right": 0.75}, (4,)),
        ({"variance": 1.1}, (5,)),
        ({"asked": 0.7}, (6,)),
        ({"better": 0.89}, (7,)),
        ({"points": {2.0: math.nan}}, (0, 1)),
    ],
    ids=str,
)
def test_each_criterion_can_fail(change, failed):
    assert [k for k, c in enumerate(_verdict(runs(**change))) if not c.passed] == list(failed)
