"""The recipe of dynamic CFG: its machinery runs, rows are those of CFG, and each criterion can fail."""

from __future__ import annotations

import math

import pytest
import torch

from wayfield.data.scenes import tokenize
from wayfield.recipes import dynamic_cfg_shapes as shapes
from wayfield.recipes.dynamic_cfg import FIXED, REPLAY, RULE, _verdict, at_accuracy, run, sign_flip


@pytest.mark.slow
def test_a_quick_run_reports_every_figure(tmp_path):
    report = run(1, True, tmp_path)
    digits, pictures = report.per_seed
    assert {*FIXED, RULE, REPLAY} < set(digits["settings"])
    assert {*shapes.FIXED, shapes.RULE, shapes.REPLAY} < set(pictures["settings"])
    for figures in (*digits["settings"].values(), *pictures["settings"].values(), pictures["real"]):
        assert all(math.isfinite(v) for v in figures.values())
        assert 0 <= figures["accuracy"] <= 1
    assert digits["settings"]["CFG w=1"]["rows_per_sample"] == 20
    assert digits["settings"][RULE]["rows_per_sample"] == digits["settings"]["CFG w=1.5"]["rows_per_sample"] == 40
    assert pictures["settings"][shapes.RULE]["rows_per_sample"] == 8
    for chosen in (*digits["chosen"].values(), *pictures["chosen"].values()):
        assert all(low <= high for low, high in zip(chosen["tenth"], chosen["ninetieth"], strict=True))
    assert set(digits["areas"]) == {"alignment", "realism"}
    assert set(pictures["areas"]) == {"alignment", "number", "realism"}
    assert len(report.criteria) == 6
    assert all((tmp_path / name).exists() for name in report.pictures)
    assert not any("_pictures" in r for r in report.per_seed)
    assert report.write(tmp_path).exists()


def test_distance_at_equal_accuracy_is_interpolated():
    curve = [(0.90, 4.0), (0.96, 3.0), (1.0, 5.0), (1.0, 9.0)]
    assert at_accuracy(curve, 0.98) == pytest.approx(4.0)
    assert at_accuracy(curve, 0.96) == pytest.approx(3.0)
    assert at_accuracy(curve, 1.0) == pytest.approx(5.0)
    assert at_accuracy(curve, 0.5) == 4.0
    assert at_accuracy([(0.9, 1.0), (0.95, 2.0)], 0.99) == 2.0


def test_sign_flips_are_counted():
    assert sign_flip(torch.ones(9)) == 1 / 512
    assert sign_flip(torch.zeros(3)) == 1.0
    assert sign_flip(torch.tensor([1.0, 2.0, -4.0])) == 5 / 8
    assert sign_flip(torch.tensor([1.0, math.nan])) == 1.0
    assert sign_flip(-torch.ones(3)) == 1.0


def test_numbers_are_read_from_prompts():
    prompts = ["a red ring", "two small red rings", "three small blue circles", "a red ring left of a blue square"]
    prompts += ["a red ring, a blue square and a green cross"]
    assert shapes.asked_number({"tokens": tokenize(prompts)}).tolist() == [0, 1, 2, 1, 2]


def digit_runs(rule=(0.5, 0.99), replayed=(0.6, 0.98), useful=0.9):
    """Runs as they should come out, with changes; settings are (distance, accuracy)."""
    settings = {name: (0.5 + w / 10, 0.9 + w / 20) for name, w in FIXED.items()} | {RULE: rule, REPLAY: replayed}
    figures = {name: {"fd": fd, "accuracy": accuracy} for name, (fd, accuracy) in settings.items()}
    areas = {"alignment": [(0.0, 0.9)] * 4, "realism": [(0.0, 0.5), (1.0, 0.5), (2.0, useful), (3.0, useful)]}
    return [{"world": "digits", "settings": figures, "areas": areas}] * 6


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, ()),
        ({"rule": (0.68, 0.99)}, (0,)),
        ({"rule": (0.5, 0.97), "replayed": (0.4, 0.98)}, (1,)),
        ({"rule": (0.5, 0.99), "replayed": (0.4, 0.98)}, ()),
        ({"useful": 0.55}, (2,)),
        ({"rule": (math.nan, 0.99), "replayed": (0.6, 0.99)}, (0, 1)),
    ],
    ids=str,
)
def test_each_criterion_of_digits_can_fail(change, failed):
    assert [k for k, c in enumerate(_verdict(digit_runs(**change))) if not c.passed] == list(failed)


def shape_runs(rule=0.6, best=0.5, replayed=0.55, useful=0.9):
    """Runs as they should come out, with changes."""
    settings = {shapes.RULE: rule, shapes.REPLAY: replayed, "CFG w=3": best}
    areas = {"number": [(0.0, 0.9)] * 4, "realism": [(0.0, 0.5), (1.0, 0.5), (2.0, useful), (3.0, useful)]}
    figures = {name: {"accuracy": accuracy} for name, accuracy in settings.items()}
    return [{"world": "shapes", "settings": figures, "areas": areas, "best_fixed": "CFG w=3"}] * 2


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, ()),
        ({"best": 0.59}, (0,)),
        ({"replayed": 0.61}, (1,)),
        ({"useful": 0.6}, (2,)),
        ({"rule": math.nan}, (0, 1)),
    ],
    ids=str,
)
def test_each_criterion_of_shapes_can_fail(change, failed):
    assert [k for k, c in enumerate(shapes.verdict(shape_runs(**change))) if not c.passed] == list(failed)
