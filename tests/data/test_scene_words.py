"""Prompts: captions read back, tokens tell prompts apart, and what is outside the grammar is named."""

import itertools

import pytest
import torch

from wayfield.core.errors import ConditionError, UnknownNameError
from wayfield.data import scenes
from wayfield.data.scenes import Prompt, Wanted, parse, tokenize
from wayfield.data.scenes.scene import COLOURS, FORMS, SIZES
from wayfield.data.scenes.words import LENGTH, PLACES, RELATIONS, SCHEMA, SORTS, TOKENS

WANTED = [Wanted(*w) for w in itertools.product((None, *FORMS, *SORTS), (None, *COLOURS), (None, *SIZES))]
RING, DIGIT = Wanted("ring", "red", "small"), Wanted("7", "green")


def every_prompt():
    yield Prompt()
    for wanted in WANTED:
        yield Prompt((wanted,))
        yield Prompt((wanted,), count=2)
        for place in PLACES:
            yield Prompt((wanted,), place=place)
        for relation in (None, *RELATIONS):
            yield Prompt((wanted, DIGIT), relation)
            yield Prompt((RING, wanted), relation)
        if wanted.size != "large":
            yield Prompt((wanted,), count=3)
            yield Prompt((wanted, RING, DIGIT))


def test_every_prompt_reads_back_and_has_tokens_of_its_own():
    seen = {}
    for prompt in every_prompt():
        assert parse(prompt.text) == prompt
        tokens = prompt.tokens
        assert tokens.shape == (LENGTH,)
        key = tuple(tokens.tolist())
        assert seen.setdefault(key, prompt) == prompt
    assert len(seen) > 9000


def test_tokens_are_numbered_once_and_fit_the_schema():
    assert len(set(TOKENS)) == len(TOKENS) == SCHEMA.fields["tokens"].values
    assert not Prompt().tokens.any()
    assert torch.equal(tokenize(["", RING_TEXT]), torch.stack([Prompt().tokens, Prompt((RING,)).tokens]))


RING_TEXT = "a small red ring"


@pytest.mark.parametrize("data", [scenes.training(), scenes.testing()], ids=["training", "testing"])
def test_captions_of_scenes_read_back(data):
    for prompt in data.prompts(range(400)):
        assert parse(prompt.text) == prompt


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (
            "a small red ring left of a large blue square",
            Prompt((RING, Wanted("square", "blue", "large")), "left of"),
        ),
        ("The digit 7 in green.", Prompt((DIGIT,))),
        ("a green digit 7", Prompt((DIGIT,))),
        ("THREE CROSSES", Prompt((Wanted("cross"),), count=3)),
        ("red small ring", Prompt((RING,))),
        ("a letter a in the middle", Prompt((Wanted("A"),), place="centre")),
        ("a ring to the left of something", Prompt((Wanted("ring"), Wanted()), "left of")),
        ("a ring on the left of a digit", Prompt((Wanted("ring"), Wanted("digit")), "left of")),
        ("a ring on the left", Prompt((Wanted("ring"),), place="left")),
        ("a disc, a ring, and a cross", Prompt((Wanted("circle"), Wanted("ring"), Wanted("cross")))),
        ("one ring", Prompt((Wanted("ring"),))),
        ("two digits 3 in blue", Prompt((Wanted("3", "blue"),), count=2)),
        ("   ", Prompt()),
    ],
)
def test_readings(text, prompt):
    assert parse(text) == prompt


@pytest.mark.parametrize(
    ("text", "nearest"), [("a smal ring", "small"), ("a red rnig", "ring"), ("a purple ring", "purple")]
)
def test_unknown_words_are_named_with_the_nearest(text, nearest):
    with pytest.raises(UnknownNameError, match=nearest) as error:
        parse(text)
    assert any(word in str(error.value) for word in text.split())


@pytest.mark.parametrize(
    "text",
    [
        "red",
        "a ring a square",
        "a red blue ring",
        "a small large ring",
        "a ring of a square",
        "left of a ring",
        "a ring above",
        "a ring above a square above a cross",
        "a ring, a ring, a ring, a ring",
        "two rings on the left",
        "two rings left of a square",
        "three large rings",
        "the digit A",
        "the letter 7",
        "a ring 7",
        "two",
        "a ring and",
        "a ring ; a square",
    ],
)
def test_what_the_grammar_lacks_is_refused(text):
    with pytest.raises((ConditionError, UnknownNameError)) as error:
        parse(text)
    assert "what to do" in str(error.value) or "expected" in str(error.value)


@pytest.mark.parametrize(
    "bad",
    [
        {"things": (RING,) * 4},
        {"things": (RING,), "relation": "above"},
        {"things": (RING,), "count": 4},
        {"things": (RING, DIGIT), "count": 2},
        {"things": (RING, DIGIT), "place": "left"},
        {"things": (Wanted("ring", None, "large"),), "count": 3},
    ],
)
def test_impossible_prompts_are_refused_at_construction(bad):
    with pytest.raises(ConditionError, match=r"grammar|words"):
        Prompt(**bad)


def test_unknown_attributes_are_refused():
    with pytest.raises(UnknownNameError, match="ring"):
        Wanted("rnig")
    with pytest.raises(UnknownNameError, match="above"):
        Prompt((RING, DIGIT), "abov")
