"""The judge of scenes, with readers that say what a test wants, and with small untrained networks from end to end."""

from __future__ import annotations

import pytest
import torch

from wayfield.core.path import Straight
from wayfield.data.scenes import Prompt, Thing
from wayfield.data.scenes.reader import Sighting
from wayfield.data.scenes.scene import FORMS
from wayfield.data.scenes.words import SCHEMA
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import build
from wayfield.zoo.judging import scenes
from wayfield.zoo.judging.prompts import report, selection

PLACES = {"left": (6, 16), "right": (26, 16), "top": (16, 6), "bottom": (16, 26), "centre": (16, 16)}
SIDES = {
    "left of": ((6, 16), (26, 16)),
    "right of": ((26, 16), (6, 16)),
    "above": ((16, 6), (16, 26)),
    "below": ((16, 26), (16, 6)),
}


def obedient(prompt: Prompt) -> tuple[Thing, ...]:
    """Things exactly as the prompt asks."""
    wanted = prompt.things * prompt.count
    at = ((6, 6), (26, 26), (6, 26))
    at = SIDES[prompt.relation] if prompt.relation else (PLACES[prompt.place],) if prompt.place else at
    return tuple(Thing(w.form, w.colour, w.size or "small", *where) for w, where in zip(wanted, at, strict=False))


def seen(things: tuple[Thing, ...], sure: float = 1.0) -> Sighting:
    return Sighting(things, (1.0,) * len(things), (sure,) * len(things))


@pytest.fixture
def judged(monkeypatch):
    """The judge's answer if every picture holds what `answer(prompt, w)` says; no network is called."""

    def run(answer):
        known = {tuple(p.tokens.tolist()): p for ps in (*report().values(), selection()) for p in ps}
        asked = []

        def draw(model, cond, *, w=1.0, seed=0, steps=20, first=0, solver=None):
            asked.append((seed, first, len(cond["tokens"]), solver))
            found = [answer(known[tuple(tokens.tolist())], w) for tokens in cond["tokens"]]
            pictures.extend(found)
            return torch.zeros(len(found), 3, 32, 32)

        def read(net, x):
            return [pictures[len(pictures) - len(x) + k] for k in range(len(x))]

        pictures: list[Sighting] = []
        monkeypatch.setattr(scenes, "draw", draw)
        monkeypatch.setattr(scenes, "readings", read)
        monkeypatch.setattr(scenes, "_distance", lambda model, net, n, known: {})
        return scenes.denoiser(None, "scenes", judge=torch.nn.Identity()), asked

    return run


def test_a_model_that_obeys_has_everything_right(judged):
    found, asked = judged(lambda prompt, w: seen(obedient(prompt)))
    assert {figure.value for figure in found.figures.values()} == {1.0}
    assert found.settings["w"] == 1.0
    assert {v for row in found.tables[0].rows.values() for v in row} == {1.0, None}
    counts = {name: figure.count for name, figure in found.figures.items()}
    assert counts == {
        "prompts": 546,
        "prompts_single": 120,
        "prompts_single_sure": 120,
        "prompts_place": 60,
        "prompts_held_out": 48,
        "prompts_digit": 60,
        "prompts_letter": 78,
        "prompts_relation": 72,
        "prompts_trio": 48,
        "prompts_count": 60,
        "prompts_single_deterministic": 60,
    }
    n = len(scenes.SCALES)
    choosing, reporting, plain = asked[:n], asked[n : n + 8], asked[n + 8]
    assert {seed for seed, *_ in choosing}.isdisjoint(seed for seed, *_ in (*reporting, plain))
    ends = [first + n for _, first, n, _ in reporting]
    assert [first for _, first, *_ in reporting] == [0, *ends[:-1]]  # no noise is used twice
    assert {solver.eta for *_, solver in (*choosing, *reporting)} == {1.0}
    assert plain[3] is None  # the deterministic solver is the default


def test_one_wrong_colour_is_wrong_in_colour_only(judged):
    def answer(prompt, w):
        first, *rest = obedient(prompt)
        other = "red" if first.colour != "red" else "blue"
        return seen((Thing(first.form, other, first.size, first.x, first.y), *rest))

    rows = judged(answer)[0].tables[0].rows
    columns = scenes._RESPECTS
    for name in ("single", "place", "held-out", "digit", "letter", "count"):
        row = dict(zip(columns, rows[name], strict=True))
        assert row["colour"] == row["all"] == 0.0, name
        assert {v for k, v in row.items() if k not in ("colour", "all")} <= {1.0, None}, name


def test_a_form_of_which_the_reader_is_not_sure_is_wrong(judged):
    table = judged(lambda prompt, w: seen(obedient(prompt), sure=0.4))[0].tables[0]
    for row in table.rows.values():
        values = dict(zip(table.columns, row, strict=True))
        assert values["form"] == values["all"] == 0.0
        assert values["colour"] == values["count"] == 1.0


def test_the_scale_is_the_one_with_the_most_prompts_right(judged):
    found, _ = judged(lambda prompt, w: seen(obedient(prompt) if w in (3.0, 5.0) else ()))
    assert found.settings["w"] == 3.0
    assert found.settings["respects_right_while_choosing_w"] == {"1": 0.0, "2": 0.0, "3": 1.0, "5": 1.0}
    assert found.settings["prompts_while_choosing_w"] == 64


def test_the_share_of_respects_in_closed_form():
    flags = [{"count": True, "form": False, "all": False}, {"count": True, "place": True, "form": False, "all": False}]
    assert scenes._respects(flags) == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.fixture(scope="module")
def small():
    net = build({"net": "Detector", "shape": [3, 32, 32], "width": 8, "fine": 0, "deep": 1})
    spec = {"net": "UNet", "shape": [3, 32, 32], "channels": [8, 8], "blocks": 1, "patch": 4, "width": 16}
    unet = build({**spec, "vocab": SCHEMA.fields["tokens"].values, "max_tokens": 12})
    return Denoiser(unet.eval(), Straight(), "velocity", "t", schema=SCHEMA, shape=(3, 32, 32)), net.eval()


def test_networks_from_end_to_end(small):
    model, net = small
    first = scenes.denoiser(model, "scenes", judge=net, most=1, drawn=40, reference=200)
    assert first.figures["frechet_distance"].value > 10 * first.figures["frechet_distance_of_real"].value
    assert first.sheet is not None
    assert first.sheet.pictures.shape == (40, 3, 32, 32)
    assert len(first.sheet.rows) == 8


def test_a_reader_is_judged_on_clean_noisy_and_held_out_scenes(small, monkeypatch):
    found = scenes.reader(small[1], "scenes-reader", pictures=16)
    rows = found.tables[0].rows
    assert list(rows) == ["test scenes", "test scenes, noise 0.1", "test scenes, noise 0.2", "held-out pairs"]
    assert found.figures["read_right"].count == 16
    assert rows["held-out pairs"][3] is None  # no digits there


def test_two_readers_of_generated_pictures(small, monkeypatch):
    model, net = small
    monkeypatch.setattr(scenes, "names", lambda: ("scenes", "scenes-second-reader"))
    monkeypatch.setattr(scenes, "load", lambda name: model)
    monkeypatch.setattr(scenes, "load_detector", lambda name: net)
    monkeypatch.setattr(scenes, "selection", lambda: selection(1))
    found = scenes.reader(net, "scenes-reader", pictures=4)
    assert found.figures["agreement_on_generated"].value == 1.0  # the same reader twice
    assert found.figures["agreement_on_generated"].count == 8
    assert len(FORMS) == 42
