"""The recipe of APG: its machinery runs, rows are those of CFG, and each criterion can fail."""

from __future__ import annotations

import math

import pytest

from wayfield.recipes.apg import BASELINE, CONTROL, FULL, ONLY, PLAIN, SCALES, SETTINGS, _verdict, run


@pytest.mark.slow
def test_a_quick_run_reports_every_figure(tmp_path):
    report = run(1, True, tmp_path)
    digits, shapes = report.per_seed
    assert list(digits["settings"]) == list(SETTINGS)
    assert list(shapes["settings"]) == [f"{name} w={w:g}" for w in SCALES for name in ("CFG", "APG")]
    for figures in (*digits["settings"].values(), *shapes["settings"].values(), shapes["real"]):
        assert all(math.isfinite(v) for v in figures.values())
        assert 0 <= figures["accuracy"] <= 1
    for name, figures in digits["settings"].items():
        assert figures["rows_per_sample"] == (20 if name == PLAIN else 40)
    assert {f["rows_per_sample"] for f in shapes["settings"].values()} == {8}
    assert shapes["r"] > 0
    assert len(report.criteria) == 7
    assert all((tmp_path / name).exists() for name in report.pictures)
    assert not any("_pictures" in r for r in report.per_seed)
    assert report.write(tmp_path).exists()


GOOD = {PLAIN: (0.5, 0.7), BASELINE: (70, 1.5), ONLY: (40, 1.1), FULL: (14, 0.9), CONTROL: (21, 1.1)}


def runs(accuracy=1.0, right=0.9, contrast=0.2, **fd):
    """Two runs as they should come out, with changes. fd, std: of a setting by the name of its constant."""
    drawn = {name: {"fd": 50.0, "std": 1.0, "accuracy": 0.5} for name in SETTINGS}
    for name, (value, std) in GOOD.items():
        drawn[name] = {"fd": value, "std": std, "accuracy": 0.5}
    drawn[FULL]["accuracy"] = accuracy
    for key, value in fd.items():
        name, _, figure = key.partition("_")
        drawn[{"ONLY": ONLY, "FULL": FULL, "CONTROL": CONTROL}[name]][figure or "fd"] = value
    shapes = {"CFG w=15": {"contrast": 0.3, "accuracy": 0.9}, "APG w=15": {"contrast": contrast, "accuracy": right}}
    return [
        {"world": "digits", "real_std": 0.75, "settings": drawn},
        {"world": "shapes", "real": {"contrast": 0.15}, "settings": shapes},
    ]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, ()),
        ({"ONLY": 50.0}, (0,)),
        ({"FULL": 17.6}, (1,)),
        ({"accuracy": 0.4}, (2,)),
        ({"FULL_std": 1.6}, (3,)),
        ({"FULL_std": -0.1}, (3,)),
        ({"CONTROL": 16.0}, (4,)),
        ({"contrast": 0.31}, (5,)),
        ({"contrast": 0.0}, ()),
        ({"right": 0.8}, (6,)),
        ({"FULL": math.nan}, (1, 4)),
    ],
    ids=str,
)
def test_each_criterion_can_fail(change, failed):
    assert [k for k, c in enumerate(_verdict(runs(**change))) if not c.passed] == list(failed)
