"""The demonstration: what it prints, what it writes, how it judges, and that it is the same every time."""

import json
import re

import pytest
import standins
import torch
from PIL import Image

from wayfield import zoo
from wayfield.cli import main
from wayfield.core.errors import ConditionError, UnknownNameError
from wayfield.data import scenes
from wayfield.data.fashion import FASHION_CLASSES
from wayfield.data.scenes import Thing, parse
from wayfield.data.scenes.reader import Sighting
from wayfield.demo import Cast, demo
from wayfield.demo.digits import SETTINGS, draw
from wayfield.demo.fashion import draw_fashion
from wayfield.demo.scenes import NEGATIVE, PROMPT, SHOWCASE, Ask, Score, Seen, Size, draw_scenes
from wayfield.demo.scenes_page import scenes_cells
from wayfield.measure import accuracy

PICTURES = ("prompt", "showcase", "fashion", "sheet", "quality", "paths", "strip")
TINY = Size(steps=2, scales=(1.0, 3.0), copies=2, show=1, prompts=6)


@pytest.fixture(scope="module")
def cast(tmp_path_factory):
    """Stand-ins that know nothing, for what is drawn from prompts and by class."""
    folder = tmp_path_factory.mktemp("cast")
    scenes = (standins.words(folder, "scenes"), standins.flow(folder))
    return Cast(scenes, standins.detector(folder), standins.clothes(folder), standins.classifier(folder))


@pytest.fixture(scope="module")
def out(tmp_path_factory, cast):
    """The report in its quick form, by the models of the zoo, or by stand-ins where they are not all there."""
    folder, own = tmp_path_factory.mktemp("demo"), Cast()
    if {*own.scenes, own.reader, own.fashion, own.judge} <= set(zoo.names()):
        assert main(["demo", "--quick", "--out", str(folder)]) == 0
    else:
        demo(folder, quick=True, cast=cast)
    return folder


def test_it_writes_what_it_promises(out):
    names = {f"{name}{tail}.png" for name in PICTURES for tail in ("", "-dark")}
    assert {p.name for p in out.iterdir()} == names | {"report.html", "report.json"}
    for name in names:
        with Image.open(out / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300


def test_the_sheet_has_a_row_per_setting_and_a_column_per_class(out):
    with Image.open(out / "sheet.png") as image:
        width, height = image.size
    assert 1800 < width < 2400
    assert 1200 < height < 2400


def test_the_page_needs_nothing_else(out):
    page = (out / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert page.count("data:image/png;base64,") == 2 * len(PICTURES)
    assert "prefers-color-scheme: dark" in page
    for words in ("Pictures from prompts", "Your prompt", "Showcase", "What comes out right", "Clothes by class"):
        assert f">{words}</h" in page
    for words in ("Figures", "Quality against cost", "The sheet", "From noise to data", "What ran", "Reproduce it"):
        assert f">{words}</h" in page
    assert "wayfield demo --seed 0 --quick --out runs/demo" in page


def test_its_figures_make_sense(out):
    report = json.loads((out / "report.json").read_text())["digits"]
    quick = [s for s in SETTINGS if s.steps <= 20]
    assert len(report["settings"]) == len(quick)
    for line, setting in zip(report["settings"], quick, strict=True):
        assert (line["title"], line["steps"], line["w"]) == (setting.title, setting.steps, setting.w)
        assert line["rows"] == line["evaluations"] * report["samples"]
        assert 0 < line["pixels"] < 20
        assert line["accuracy"] > 0.8
    by = {(line["title"], line["steps"], line["w"]): line for line in report["settings"]}
    assert by["DDIM", 20, 1.0]["evaluations"] == 20
    assert by["Heun", 10, 1.0]["evaluations"] == 19
    assert by["DDIM", 20, 2.0]["evaluations"] == 40
    assert by["DDIM", 20, 1.0]["pixels"] < by["DDIM", 5, 1.0]["pixels"]
    assert by["DPM++ 2M", 5, 1.0]["pixels"] < by["DDIM", 5, 1.0]["pixels"]
    assert report["real"]["accuracy"] > 0.95
    assert report["real"]["rows"] is None


def test_the_judged_parts_say_what_was_asked_and_seen(out):
    report = json.loads((out / "report.json").read_text())
    drawn, fashion = report["scenes"], report["fashion"]
    assert (drawn["prompt"], drawn["negative"]) == (parse(PROMPT).text, parse(NEGATIVE).text)
    assert len(drawn["models"]) == 2
    assert len(drawn["user"]) == 2 * 3 * 2  # models, settings, pictures
    assert [p["prompt"] for p in drawn["showcase"]] == 2 * [parse(text).text for text in SHOWCASE]
    assert all(set(p) == {"model", "w", "prompt", "negative", "seen", "right"} for p in drawn["user"])
    assert [line["w"] for line in drawn["accuracy"]] == [1.0, 3.0] * 2
    assert all(0 <= share <= 1 for line in drawn["accuracy"] for share in line["figures"].values())
    assert [line["rows"] for line in drawn["accuracy"][:2]] == [8 * 8, 8 * 8 * 2]
    assert list(fashion["scales"][0]["classes"]) == list(FASHION_CLASSES)
    for line in fashion["scales"]:
        assert line["accuracy"] == pytest.approx(sum(line["classes"].values()) / 10)


def test_real_scenes_are_read_right(out):
    real = json.loads((out / "report.json").read_text())["scenes"]["real"]
    assert real["figures"]["all"] >= 0.75  # of 8; a reader right in 99 % fails this once in 10,000 sets


RING = Thing("ring", "red", "small", 8.0, 16.0)
SQUARE = Thing("square", "blue", "large", 22.0, 17.0)
RELATED = "a small red ring left of a large blue square"


def seen(prompt, *things, negative=None, certainty=0.9):
    reading = Sighting(things, (1.0,) * len(things), (certainty,) * len(things))
    return Seen(torch.zeros(3, 32, 32), parse(prompt), None if negative is None else parse(negative), reading)


@pytest.mark.parametrize(
    ("picture", "right", "words"),
    [
        (seen(RELATED, RING, SQUARE), True, "small red ring left of large blue square"),
        (seen(RELATED, SQUARE, RING), True, "small red ring left of large blue square"),
        (seen("a blue square left of a red ring", RING, SQUARE), False, "large blue square right of small red ring"),
        (seen(RELATED, RING), False, "small red ring"),
        (seen(RELATED), False, "nothing"),
        (seen("a ring", RING, SQUARE), False, "small red ring, large blue square"),
        (seen("two small red rings", RING, RING), True, "two small red rings"),
        (seen("a ring", RING, SQUARE, RING), False, "two small red rings, large blue square"),
        (seen("a ring", RING, certainty=0.4), False, "small red ring?"),
        (seen("something red", RING, certainty=0.4), False, "small red ring?"),
        (seen("a ring", RING, negative="something red"), False, "small red ring"),
        (seen("a ring", RING, negative="something blue"), True, "small red ring"),
        (seen("a ring", RING, negative="a large red ring"), True, "small red ring"),
    ],
)
def test_a_picture_is_right_if_all_that_was_asked_is_there_and_nothing_else(picture, right, words):
    assert picture.right is right
    assert picture.words == words


def test_what_is_asked_for():
    assert Ask.of(None, None) == Ask(parse(PROMPT), parse(NEGATIVE))
    assert Ask.of("a ring", None) == Ask(parse("a ring"), None)  # the usual negative might contradict it
    assert Ask.of(None, "a ring") == Ask(parse(PROMPT), parse("a ring"))
    assert Ask.of(None, "") == Ask(parse(PROMPT), None)
    with pytest.raises(UnknownNameError, match="green"):
        Ask.of("a gren ring", None)
    with pytest.raises(ConditionError):
        Ask.of("a ring", "red")


def test_a_row_per_setting_with_the_same_noise_and_counted_rows(cast):
    ask = Ask.of("a ring", "something red")
    run, again = (draw_scenes(cast.scenes, cast.reader, ask, TINY, seed=3) for _ in range(2))
    assert [(r.w, r.negative is not None) for r in run.user] == [(1.0, False), (3.0, False), (3.0, True)] * 2
    for row, other in zip((*run.user, *run.show), (*again.user, *again.show), strict=True):
        for one, two in zip(row.seen, other.seen, strict=True):
            assert torch.equal(one.x, two.x)
    plain, guided, away = (row.seen[0].x for row in run.user[:3])
    assert not torch.equal(plain, guided)
    assert not torch.equal(guided, away)
    assert [score.rows for score in run.scores] == [6 * 2, 6 * 2 * 2] * 2
    flow = run.show[1].seen[0].x
    assert not torch.equal(run.show[0].seen[0].x, flow)


def test_the_table_marks_the_best_and_leaves_open_what_was_not_asked():
    scores = [
        Score("scenes", 1.0, {"count": 0.5, "all": 0.25}, 96, 1.0),
        Score("/folder/flow/model.safetensors", 3.0, {"count": 1.0, "all": 0.25}, 192, 2.0),
    ]
    rows = scenes_cells(scores, Score("real pictures", None, {"count": 1.0, "all": 1.0}))
    assert rows == [
        ("scenes", "1", "50", "", "", "", "", "", "*25", "96", "1.0"),
        ("flow", "3", "*100", "", "", "", "", "", "*25", "192", "2.0"),
        ("real pictures", "", "100", "", "", "", "", "", "100", "", ""),
    ]


def test_the_prompts_of_the_table_ask_for_everything():
    assert all(w.form and w.colour and w.size for prompt in scenes.testing().prompts(range(20)) for w in prompt.things)


def test_clothes_are_judged_class_by_class(cast):
    run = draw_fashion(cast.fashion, cast.judge, 3, seed=0)
    net = zoo.load_classifier(cast.judge)
    for line in run.scaled:
        assert line.first.shape == (10, 3, 1, 28, 28)
        label = torch.arange(10).repeat_interleave(3)
        with torch.no_grad():
            assert line.accuracy == pytest.approx(accuracy(net(line.first.flatten(0, 1).clamp(-1, 1)), label))
    assert not torch.equal(run.scaled[0].first, run.scaled[1].first)


def test_the_same_seed_gives_the_same_digits():
    model = zoo.load("digits")
    with torch.no_grad():
        one, two, other = (draw(model, SETTINGS[0], 20, seed).x for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_prompt_of_ones_own_is_in_the_command_that_repeats_it(cast, tmp_path, monkeypatch, capsys):
    from wayfield import demo as module

    monkeypatch.setattr(module, "draw_digits", lambda names, quick, seed: None)
    monkeypatch.setattr(module, "digits_chapter", lambda run: module.Chapter("digits", (), {}, {}, ()))
    monkeypatch.setattr(module, "show_digits", lambda run: None)
    monkeypatch.setattr(module, "_QUICK", TINY)
    result = demo(tmp_path, quick=True, ask=Ask.of("the digit 7", "something red"), cast=cast)
    assert "FD" not in capsys.readouterr().err
    assert result.to_json()["scenes"]["prompt"] == "a digit 7"
    page = (tmp_path / "report.html").read_text()
    assert "wayfield demo --seed 0 --quick --prompt &quot;a digit 7&quot; --negative &quot;a red thing&quot;" in page
