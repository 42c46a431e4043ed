"""Judging pictures by their things: records satisfy their own prompts, and each fault is found where it is."""

import pytest

from wayfield.core.errors import ShapeError
from wayfield.data import scenes
from wayfield.data.scenes import Thing, parse
from wayfield.data.scenes.judge import agreement, place_of, relation_of, verdict

RING = Thing("ring", "red", "small", 8.0, 15.0)
SQUARE = Thing("square", "blue", "large", 22.0, 18.0)
SEVEN = Thing("7", "green", "small", 16.0, 27.0)
ASKED = parse("a small red ring left of a large blue square")


@pytest.mark.parametrize("data", [scenes.training(), scenes.testing()], ids=["training", "testing"])
def test_every_record_satisfies_its_own_prompt(data):
    prompts, things = data.prompts(range(600)), data.things(range(600))
    assert agreement(prompts, things)["all"] == 1
    assert agreement(prompts[1:], things[:-1])["all"] < 0.1  # and seldom another's


@pytest.mark.parametrize(
    ("things", "wrong"),
    [
        ([RING, SQUARE], set()),
        ([SQUARE, RING], set()),  # the order of reading does not matter
        ([RING, SQUARE, SEVEN], {"count"}),
        ([RING], {"count", "form", "colour", "size", "relation"}),
        ([], {"count", "form", "colour", "size", "relation"}),
        ([RING, Thing("square", "cyan", "large", 22.0, 18.0)], {"colour"}),
        ([RING, Thing("cross", "blue", "large", 22.0, 18.0)], {"form"}),
        ([RING, Thing("square", "blue", "small", 22.0, 18.0)], {"size"}),
        ([Thing("ring", "red", "small", 22.0, 18.0), Thing("square", "blue", "large", 8.0, 18.0)], {"relation"}),
        # colours swapped between the forms: binding fails though both words are there
        ([Thing("ring", "blue", "small", 8.0, 15.0), Thing("square", "red", "large", 22.0, 18.0)], {"colour"}),
    ],
)
def test_faults_are_found_where_they_are(things, wrong):
    flags = verdict(ASKED, things)
    assert {name for name, ok in flags.items() if not ok} == wrong | ({"all"} if wrong else set())


@pytest.mark.parametrize(
    ("text", "things", "right"),
    [
        ("a digit", [SEVEN], True),
        ("a shape", [SEVEN], False),
        ("something green", [SEVEN], True),
        ("something at the bottom", [SEVEN], True),
        ("something on the left", [SEVEN], False),
        ("two rings", [RING, Thing("ring", "blue", "large", 20.0, 20.0)], True),
        ("two rings", [RING, SQUARE], False),
        ("", [RING, SQUARE], True),
    ],
)
def test_open_prompts_ask_for_what_they_name(text, things, right):
    assert verdict(parse(text), things)["all"] is right


def test_relations_and_places():
    assert relation_of(RING, SQUARE) == "left of"
    assert relation_of(SQUARE, RING) == "right of"
    assert relation_of(SEVEN, RING) == "below"
    assert relation_of(RING, SEVEN) == "above"
    assert [place_of(t) for t in (RING, SQUARE, SEVEN)] == ["left", "right", "bottom"]
    assert place_of(Thing("ring", "red", "small", 16.0, 4.0)) == "top"
    assert place_of(Thing("ring", "red", "small", 18.0, 14.0)) == "centre"


def test_agreement_wants_one_reading_per_prompt():
    with pytest.raises(ShapeError, match="one per prompt"):
        agreement([ASKED], [])
    assert agreement([ASKED, parse("a ring")], [[RING, SQUARE], [SQUARE]])["relation"] == 1
