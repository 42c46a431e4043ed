"""The recipe of GFCG: its machinery runs, rows are those of CFG, and each criterion can fail."""

from __future__ import annotations

import math

import pytest
import torch

from wayfield.data.scenes import Prompt, parse
from wayfield.guide.gfcg import GFCG
from wayfield.recipes.gfcg import FAMILIES, OTHERS, WATCHED, _ByLot, _verdict, run
from wayfield.recipes.gfcg_shapes import ASKED, PAIRS, PLAIN, SCALES, setting


@pytest.mark.slow
def test_a_quick_run_reports_every_figure(tmp_path):
    report = run(1, True, tmp_path)
    digits, shapes = report.per_seed
    assert list(digits["settings"]) == [PLAIN, *named(FAMILIES), *OTHERS]
    assert list(shapes["settings"]) == [PLAIN, *named(SCALES)]
    for figures in (*digits["settings"].values(), *shapes["settings"].values(), shapes["real"]):
        assert all(math.isfinite(v) for v in figures.values())
        assert 0 <= figures["accuracy"] <= 1
    costly = {PLAIN: 20, OTHERS[2]: 60}
    for name, figures in digits["settings"].items():
        assert figures["rows_per_sample"] == costly.get(name, 40)
    assert {f["rows_per_sample"] for name, f in shapes["settings"].items() if name != PLAIN} == {8}
    assert len(digits["mean_scale"]) == 20
    assert all(1 <= w <= FAMILIES["GFCG"][3] for w in digits["mean_scale"])
    assert len(report.criteria) == 6
    assert all((tmp_path / name).exists() for name in report.pictures)
    assert not any("_pictures" in r for r in report.per_seed)
    assert report.write(tmp_path).exists()


def named(families):
    """The names of settings, in order."""
    return [setting(name, w) for name, scales in families.items() for w in scales]


def test_the_control_by_lot_keeps_the_scale():
    """q_y is the guide's; the rest is on one wrong class, another at another call."""
    labels = torch.arange(100) % 10
    given = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    lots = _ByLot(lambda x0: x0, labels, 0)
    first, second = (lots(given).exp() for _ in range(2))
    q = given.double().softmax(1)
    row = torch.arange(100)
    for p in (first, second):
        torch.testing.assert_close(p[row, labels], q[row, labels])
        torch.testing.assert_close(p.sum(1), torch.ones(100).double())
        assert ((p > 0).sum(1) == 2).all()
    assert (first.argsort(1) != second.argsort(1)).any()


def test_classes_of_the_second_world():
    assert len(set(PAIRS)) == 30
    assert all(isinstance(p, Prompt) and parse(p.text) == p for p in ASKED)
    assert WATCHED in named(FAMILIES)
    assert GFCG(lambda x0: x0, classes={"tokens": torch.stack([p.tokens for p in ASKED])}).classes


def runs(**change):
    """Two runs as they should come out, with changes. change: digits_..., shapes_... of a family: (FD, accuracy)."""
    good = {"CFG": (0.5, 0.999), "GFCG": (0.4, 0.999), "constant": (0.9, 1.0), "random": (0.45, 0.99)}
    drawn = {name: good.get(name, (0.4, 0.9)) for name in FAMILIES}
    shown = {"CFG": (0.02, 0.99), "GFCG": (0.015, 0.99), "adaptive CFG": (0.01, 0.99)}
    for key, value in change.items():
        world, _, family = key.partition("_")
        (drawn if world == "digits" else shown)[family] = value
    figures = [
        {setting(n, w): dict(zip(("fd", "accuracy"), each[n], strict=True)) for n, ws in families.items() for w in ws}
        for each, families in ((drawn, FAMILIES), (shown, SCALES))
    ]
    figures[1][PLAIN] = {"fd": 0.02, "accuracy": 0.9}
    return [{"world": w, "settings": f} for w, f in zip(("digits", "shapes"), figures, strict=True)]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, ()),
        ({"digits_GFCG": (0.43, 0.999)}, (0,)),
        ({"digits_GFCG": (0.4, 0.994)}, (0, 1)),
        ({"digits_CFG": (0.4, 0.999)}, (0,)),
        ({"digits_constant": (0.3, 0.999)}, (1,)),
        ({"digits_random": (0.45, 1.0)}, (2,)),
        ({"digits_random": (0.38, 0.99)}, (3,)),
        ({"shapes_GFCG": (0.018, 0.99)}, (4,)),
        ({"shapes_GFCG": (0.015, 0.92)}, (4, 5)),
        ({"digits_GFCG": (math.nan, 0.999)}, (0, 1, 3)),
    ],
    ids=str,
)
def test_each_criterion_can_fail(change, failed):
    assert [k for k, c in enumerate(_verdict(runs(**change))) if not c.passed] == list(failed)
