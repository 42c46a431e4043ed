"""The fixed sets of prompts: what is in each, and that settings are chosen on others."""

from __future__ import annotations

import pytest

from wayfield.data.scenes import parse
from wayfield.data.scenes.scene import COLOURS, DIGITS, HELD_OUT, LETTERS, SHAPES
from wayfield.zoo.judging.prompts import report, selection

COUNTS = {
    "single": 60,
    "place": 60,
    "held-out": 12,
    "digit": 60,
    "letter": 78,
    "relation": 72,
    "trio": 48,
    "count": 60,
}


def test_no_prompt_is_both_reported_on_and_used_to_choose():
    reported = [prompt.text for prompts in report().values() for prompt in prompts]
    chosen = [prompt.text for prompt in selection()]
    assert len(set(reported)) == len(reported) == sum(COUNTS.values())
    assert len(set(chosen)) == len(chosen) == 64
    assert set(reported) & set(chosen) == set()
    assert set(reported) & {prompt.text for prompt in selection(15)} == set()


@pytest.mark.parametrize("name", COUNTS)
def test_every_prompt_is_language_of_the_world_and_names_everything(name):
    prompts = report()[name]
    assert len(prompts) == COUNTS[name]
    for prompt in prompts:
        assert parse(prompt.text) == prompt
        assert all(thing.form and thing.colour and thing.size for thing in prompt.things)


def test_held_out_pairs_are_in_their_set_and_nowhere_else():
    for name, prompts in report().items():
        pairs = {(thing.form, thing.colour) for prompt in prompts for thing in prompt.things} & set(HELD_OUT)
        assert pairs == (set(HELD_OUT) if name == "held-out" else set()), name
    assert not any((t.form, t.colour) in HELD_OUT for prompt in selection() for t in prompt.things)


def test_each_set_covers_what_it_is_about():
    sets = report()
    things = {name: [prompt.things[0] for prompt in prompts] for name, prompts in sets.items()}
    assert {(t.form, t.colour) for t in things["single"]} == {(s, c) for s in SHAPES for c in COLOURS} - set(HELD_OUT)
    assert {(t.form, t.colour) for t in things["digit"]} == {(d, c) for d in DIGITS for c in COLOURS}
    assert {t.form for t in things["letter"]} == set(LETTERS)
    assert {prompt.place for prompt in sets["place"]} == {"left", "right", "top", "bottom", "centre"}
    assert {prompt.relation for prompt in sets["relation"]} == {"left of", "right of", "above", "below"}
    assert {prompt.total for prompt in sets["trio"]} == {3}
    assert {prompt.count for prompt in sets["count"]} == {2, 3}


def test_selection_has_as_many_of_each_of_seven_abilities():
    chosen = selection(5)
    kinds = [
        sum(prompt.things[0].size is None for prompt in chosen),
        sum(prompt.place is not None for prompt in chosen),
        sum(prompt.relation is not None for prompt in chosen),
        sum(len(prompt.things) == 3 for prompt in chosen),
        sum(prompt.count > 1 for prompt in chosen),
    ]
    assert len(chosen) == 40
    assert kinds == [10, 5, 5, 5, 5]
