"""Reports of recipes: a verdict that follows from the criteria, JSON that every parser reads."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from wayfield.core.errors import RangeError
from wayfield.recipes.report import Criterion, Report, at_least, at_most

GOOD, BAD = at_most("a", 1.0, 2.0), at_least("b", 1.0, 2.0)


def report(*criteria):
    return Report("name", "claim", criteria, [{"seed": 0, "x": float("inf"), "deep": {"y": (1, 2.5)}}], 3.5, ["a.png"])


@pytest.mark.parametrize(("criteria", "passed"), [((GOOD,), True), ((BAD,), False), ((GOOD, BAD), False)])
def test_the_verdict_is_that_of_the_criteria(criteria, passed):
    assert report(*criteria).passed is passed


def test_a_claim_without_criteria_is_none():
    with pytest.raises(RangeError, match="criteria"):
        report()


def test_json_has_exactly_the_promised_keys():
    out = report(GOOD, Criterion("c", float("nan"), "as published", False)).to_json()
    assert list(out) == ["method", "claim", "passed", "criteria", "per_seed", "seconds", "pictures"]
    assert [list(c) for c in out["criteria"]] == [["name", "value", "bar", "passed"]] * 2
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["criteria"][1]["value"] is None
    assert out["per_seed"] == [{"seed": 0, "x": None, "deep": {"y": [1, 2.5]}}]


def test_it_is_written_where_it_says(tmp_path):
    path = report(GOOD).write(tmp_path / "deep")
    assert path == Path(tmp_path / "deep" / "report.json")
    assert json.loads(path.read_text()) == report(GOOD).to_json()


def test_reports_do_not_change():
    with pytest.raises(FrozenInstanceError):
        report(GOOD).passed = False  # pyright: ignore
