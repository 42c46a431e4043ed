"""The recipe of EluCD: its machinery runs, no arm costs more rows than another, and each criterion can fail."""

from __future__ import annotations

import math

import pytest

from wayfield.recipes.elucd import CLEAN, DIGIT_ARMS, FULL, NOISY, PLAIN, SHAPE_ARMS, SOFT, _chosen, _verdict, run


@pytest.mark.slow
def test_a_quick_run_reports_every_figure(tmp_path):
    report = run(1, True, tmp_path)
    digits, shapes = report.per_seed
    assert list(digits["settings"]) == [PLAIN, *DIGIT_ARMS]
    assert list(shapes["settings"]) == [PLAIN, *SHAPE_ARMS]
    for world, steps in ((digits, 5), (shapes, 3)):
        assert {f["rows_per_sample"] for f in world["settings"].values()} == {steps}
        assert set(world["ece"]) == {NOISY, CLEAN, SOFT}
        assert all(0 <= e["integral"] <= 1 for e in world["ece"].values())
        for figures in world["settings"].values():
            assert all(math.isfinite(v) for v in figures.values())
    assert len(report.criteria) == 6
    assert all((tmp_path / name).exists() for name in report.pictures)
    assert not any("_pictures" in r for r in report.per_seed)
    assert report.write(tmp_path).exists()


def test_scales_are_chosen_at_matched_distance():
    """The noisy arm by accuracy; the others by accuracy within 1.1 of its distance, or by distance if none is."""

    def curve(*points):
        return {s: {"accuracy": a, "fd": fd} for s, a, fd in points}

    curves = {
        CLEAN: curve((1, 0.8, 1.0), (2, 0.9, 1.09), (4, 0.99, 1.2)),
        NOISY: curve((1, 0.5, 0.7), (2, 0.6, 1.0), (4, 0.6, 0.9)),
        FULL: curve((1, 0.8, 2.0), (2, 0.9, 3.0)),
    }
    assert _chosen(curves) == {NOISY: 2, CLEAN: 2, FULL: 1}


def runs(accuracy=0.9, fd=1.0, ece=0.3, right=0.6, made=0.9, seen=0.3):
    """Three runs as they should come out, with changes."""
    digits = {FULL: {"accuracy": accuracy, "fd": fd}, NOISY: {"accuracy": 0.7, "fd": 1.0}}
    shapes = {FULL: {"accuracy": right, "well_made": made}, NOISY: {"accuracy": 0.3}, PLAIN: {"well_made": 0.9}}
    return [
        {"world": "digits", "settings": digits, "ece": {CLEAN: {"integral": 0.3}, NOISY: {"integral": 0.4}}},
        {"world": "digits", "settings": digits, "ece": {CLEAN: {"integral": ece}, NOISY: {"integral": 0.4}}},
        {"world": "shapes", "settings": shapes, "ece": {CLEAN: {"integral": seen}, NOISY: {"integral": 0.4}}},
    ]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, ()),
        ({"accuracy": 0.79}, (0,)),
        ({"fd": 1.11}, (1,)),
        ({"ece": 0.41}, (2,)),
        ({"right": 0.39}, (3,)),
        ({"made": 0.79}, (4,)),
        ({"seen": 0.5}, (5,)),
        ({"accuracy": math.nan}, (0,)),
    ],
)
def test_each_criterion_can_fail(change, failed):
    assert tuple(k for k, c in enumerate(_verdict(runs(**change))) if not c.passed) == failed
