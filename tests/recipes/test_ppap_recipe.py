"""The recipe of PPAP: its machinery runs, its reading of pictures is exact, and each criterion can fail."""

import math

import pytest
import torch

from wayfield.data.scenes import training
from wayfield.recipes import ppap_masks
from wayfield.recipes.ppap import ARMS, LADDER, _matched, _verdict, run
from wayfield.recipes.ppap_masks import Segmenter, colours_of, overlap
from wayfield.recipes.shapes_world import SHAPES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the teacher finds classes")
def test_a_quick_run_reports_every_figure(tmp_path):
    report = run(1, True, tmp_path)
    digits, shapes = report.per_seed
    scaled = {f"{name} s={s:g}" for name in ("naive", *ARMS) for s in (2.0, 7.5)}
    more = {"unguided", "naive s=2 not clipped", "KT-5 s=2 not clipped", *(f"KT-1 s={s:g}" for s in LADDER)}
    assert set(digits["settings"]) == scaled | more
    assert set(shapes["settings"]) == {"unguided", "naive", "KT-1", "KT-5"}
    for figures in (*digits["settings"].values(), *shapes["settings"].values(), shapes["real"]):
        assert all(math.isfinite(v) for v in figures.values())
    assert shapes["real"]["overlap"] == 1
    assert all(len(losses) == 5 for losses in digits["kt_by_range"].values())
    assert digits["share_per_expert"]["KT-5"] == pytest.approx(3840 / 26122)
    assert digits["share_per_expert"]["KT-5 rank 2"] == pytest.approx(1152 / 26122)
    assert len(report.criteria) == 6
    assert all((tmp_path / name).exists() for name in report.pictures)
    assert not any("_pictures" in r for r in report.per_seed)
    assert report.write(tmp_path).exists()


def test_colours_of_rendered_pictures_are_the_scenes():
    """Whatever the ground: the colours seen are those of the record, and no pixel is white."""
    scenes, rows = training(), range(200)
    x, things = scenes.batch(rows)[0], scenes.things(rows)
    seen = colours_of(x)
    codes = {"red": 1, "green": 2, "blue": 4, "yellow": 3, "magenta": 5, "cyan": 6}
    for picture, record in zip(seen, things, strict=True):
        assert set(picture.flatten().tolist()) - {0} == {codes[thing.colour] for thing in record}


def test_overlap():
    """By hand: 2 of 4 wanted pixels, one more in another place, one in another colour: 2 / 6."""
    wanted = torch.tensor([[[1, 1, 1], [1, 2, 0]]])
    red, none, green = [0.9, -1.0, -0.8], [-0.1, -1.0, -0.5], [-1.0, 0.1, -1.0]
    rows = torch.tensor([[red, red, none], [none, red, green]])
    got = overlap(rows.permute(2, 0, 1)[None], wanted)
    assert got.item() == pytest.approx(2 / 6)
    x = SHAPES.batch(range(4))[0]
    assert torch.equal(overlap(x, colours_of(x)), torch.ones(4))
    assert torch.equal(overlap(-torch.ones_like(x), colours_of(x)), torch.zeros(4))
    assert set(colours_of(torch.ones_like(x)).flatten().tolist()) == {7}  # white is coloured, and wrong


def test_the_segmenter_answers_row_by_row():
    net, x = Segmenter(width=8, deep=8), SHAPES.batch(range(3))[0]
    out = net(x)
    assert out.shape == (3, ppap_masks.CLASSES, 32, 32)
    torch.testing.assert_close(net(x[1:2]), out[1:2], rtol=1e-5, atol=1e-5)


def test_distance_at_matched_accuracy():
    """Between s = 3 and 4, a quarter of the way."""
    at = {
        s: {"accuracy": a, "fd": f}
        for s, a, f in zip(LADDER, (0.7, 0.8, 0.84, 0.9, 0.95), (1, 2, 6, 7, 8), strict=True)
    }
    settings = {f"KT-1 s={s:g}": v for s, v in at.items()} | {"KT-5 s=2": {"accuracy": 0.81, "fd": 0.5}}
    assert _matched(settings) == pytest.approx(3.0)
    assert _matched(settings | {"KT-5 s=2": {"accuracy": 0.99, "fd": 0.5}}) is None


def runs(naive=0.63, kt1=0.75, kt5=0.87, fd=0.7, over=(0.2, 0.4, 0.5), share=0.044):
    """A run of each world as they should come out, with changes."""
    right, distance = {"naive": naive, "KT-1": kt1, "KT-5": kt5}, {"naive": 1.3, "KT-1": 0.65, "KT-5": fd}
    digits = {f"{n} s=2": {"accuracy": right[n], "fd": distance[n]} for n in right}
    shapes = {n: {"overlap": v} for n, v in zip(("naive", "KT-1", "KT-5"), over, strict=True)}
    return [
        {"world": "digits", "settings": digits},
        {"world": "shapes", "settings": shapes, "share_per_expert": share},
    ]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, ()),
        ({"naive": 0.73}, (0,)),
        ({"kt1": 0.84}, (1,)),
        ({"fd": 1.4}, (2,)),
        ({"over": (0.4, 0.4, 0.5)}, (3,)),
        ({"over": (0.2, 0.47, 0.5)}, (4,)),
        ({"share": 0.051}, (5,)),
        ({"kt5": math.nan}, (0, 1)),
    ],
    ids=str,
)
def test_each_criterion_can_fail(change, failed):
    assert [k for k, c in enumerate(_verdict(runs(**change))) if not c.passed] == list(failed)
