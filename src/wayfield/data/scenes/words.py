"""What is said of a scene of the open world: prompts, their grammar, and the tokens that a network reads.

A caption is a prompt in English; a prompt is what it asks for, and every field may be left open. Anything outside the
grammar is refused with the nearest word, because a model would quietly do something else.

    prompt = "" | [ count ] thing [ place ] | thing relation thing | thing { ("," | "and") thing }     at most 3 things
    thing  = [ "a" | "an" | "the" ] { size | colour } noun { size | [ "in" ] colour }
    noun   = shape | "digit" [ 0 .. 9 ] | "letter" [ A .. Z ] | "shape" | "thing" (or "something"), also in the plural
    count  = "one" | "two" | "three"
    place  = "on the left" | "on the right" | "at the top" | "at the bottom" | "in the centre"
    relation = "left of" (or "to the left of") | "right of" | "above" | "below"

    "a small red ring left of a large blue square"   "the digit 7 in green"   "three small cyan crosses"

Tokens keep what matters: per thing its size, colour and form, between things the relation or "and", first the count,
last the place; at most `LENGTH`, then zeros. The empty prompt is all zeros, which networks read as no condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, unknown_name
from wayfield.data.scenes.scene import COLOURS, DIGITS, FORMS, LETTERS, SHAPES, SIZES
from wayfield.field.cond import Field, Schema

__all__ = ["LENGTH", "PLACES", "RELATIONS", "SCHEMA", "TOKENS", "Prompt", "Wanted", "parse", "tokenize"]

RELATIONS = ("left of", "right of", "above", "below")
PLACES = ("left", "right", "top", "bottom", "centre")
SORTS = ("shape", "digit", "letter")
LENGTH = 12
"""Tokens per prompt."""

_PHRASE = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_PHRASE["centre"] = "in the centre"
_COUNT = ("one", "two", "three")
TOKENS: tuple[str, ...] = (
    *("", *SIZES, *COLOURS, *FORMS, *SORTS, "thing"),
    *(*RELATIONS, "and", "two", "three", *(f"at {place}" for place in PLACES)),
)
"""The meaning of each token; token 0 is padding."""
_TOKEN = {name: k for k, name in enumerate(TOKENS)}

SCHEMA = Schema({"tokens": Field((LENGTH,), values=len(TOKENS))}, null={"tokens": [0] * LENGTH})
"""The condition of a network that reads prompts."""

_NOUNS = (*SHAPES, *SORTS, "thing")
_SAME: dict[str, str] = {f"{noun}s": noun for noun in _NOUNS if noun != "cross"} | {"crosses": "cross"}
_SAME |= {"center": "centre", "middle": "centre", "under": "below", "over": "above", "something": "thing"}
_SAME |= {"anything": "thing", "disc": "circle", "disk": "circle"}
_ARTICLES = ("a", "an", "the")
_SMALL = (*_ARTICLES, "of", "to", "and", "at", "in", "on", "left", "right", "above", "below", "top", "bottom")
WORDS: tuple[str, ...] = tuple(sorted({*_SMALL, *SIZES, *COLOURS, *_NOUNS, *_SAME, *_COUNT, "centre"}))
"""Every word of the grammar, but for digits, letters and the comma."""


@final
@dataclass(frozen=True)
class Wanted:
    """What is asked of one thing; None leaves it open. form: of FORMS, or "shape", "digit", "letter" for any of these.

    Raises UnknownNameError for another value.
    """

    form: str | None = None
    colour: str | None = None
    size: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("form", (*FORMS, *SORTS)), ("colour", COLOURS), ("size", SIZES)):
            if getattr(self, name) is not None and getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Size, colour and form, where they are asked for."""
        return tuple(word for word in (self.size, self.colour, self.form or "thing") if word)

    def text(self, *, many: bool = False) -> str:
        """As words: "small red ring", "digit 7 in green"; many: in the plural."""
        form = self.form or "thing"
        sort = "digit" if form in DIGITS else "letter" if form in LETTERS else ""
        noun = sort or form
        noun = (f"{noun}es" if noun == "cross" else f"{noun}s") if many else noun
        if not sort:
            return " ".join(word for word in (self.size, self.colour, noun) if word)
        return " ".join(word for word in (self.size, noun, form, f"in {self.colour}" if self.colour else "") if word)


@final
@dataclass(frozen=True)
class Prompt:
    """What a picture should hold. things: one each, none for no demand / relation: of the first of two things to the
    second / place: of a single thing / count: how many of a single thing.

    Raises ConditionError for a combination outside the grammar.
    """

    things: tuple[Wanted, ...] = ()
    relation: str | None = None
    place: str | None = None
    count: int = 1

    def __post_init__(self) -> None:
        for name, known in (("relation", RELATIONS), ("place", PLACES)):
            if getattr(self, name) is not None and getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        n = len(self.things)
        wrong = {
            f"{n} things": n > 3,
            f"count {self.count}": self.count not in (1, 2, 3) or (self.count > 1 and n != 1),
            f"a relation between {n} things": self.relation is not None and n != 2,
            f"a place of {n * self.count} things": self.place is not None and n * self.count != 1,
            "three large things, which do not fit": n * self.count == 3 and any(w.size == "large" for w in self.things),
        }
        for got, bad in wrong.items():
            if bad:
                expected = "one thing with a place, two in a relation, up to three, or two or three alike"
                raise ConditionError("prompt", got=got, expected=expected, remedy="See wayfield.data.scenes.words.")

    @property
    def total(self) -> int:
        """How many things the picture should hold; 0 if that is left open."""
        return len(self.things) * self.count

    @property
    def tokens(self) -> Tensor:
        """(LENGTH,) int64."""
        words = [] if self.count == 1 else [_COUNT[self.count - 1]]
        for k, wanted in enumerate(self.things):
            words += [self.relation or "and"] if k else []
            words += wanted.tokens
        words += [f"at {self.place}"] if self.place else []
        numbers = [_TOKEN[word] for word in words]
        return torch.tensor(numbers + [0] * (LENGTH - len(numbers)))

    @property
    def text(self) -> str:
        """As a caption that `parse` reads back."""
        if self.count > 1:
            return f"{_COUNT[self.count - 1]} {self.things[0].text(many=True)}"
        parts = [f"a {w.text()}" for w in self.things]
        if self.relation:
            return f"{parts[0]} {self.relation} {parts[1]}"
        start = ", ".join(parts[:-1])
        text = f"{start} and {parts[-1]}" if start else "".join(parts)
        return f"{text} {_PHRASE[self.place]}" if self.place else text

    def __str__(self) -> str:
        return self.text


def tokenize(prompts: Iterable[Prompt | str]) -> Tensor:
    """The tokens of prompts or captions, (N, LENGTH) int64. Raises as `parse` does."""
    return torch.stack([(parse(p) if isinstance(p, str) else p).tokens for p in prompts])


_OF = re.compile(r"(?:(?:to|on) the )?(left|right) of\b")


def parse(text: str) -> Prompt:
    """The prompt that a caption means; the empty caption asks for nothing.

    Raises UnknownNameError for a word outside the grammar, naming the nearest, and ConditionError for words in an order
    that the grammar lacks.
    """
    words: list[str] = re.findall(r"\w+|[^\w\s]", text.strip().removesuffix(".").lower())
    for word in words:
        if word not in WORDS and word != "," and not (len(word) == 1 and word.isascii() and word.isalnum()):
            raise unknown_name("word", word, WORDS)
    line = " ".join(_SAME.get(word, word) for word in words).replace(" ,", ",")
    line, place = _without_place(line)
    line = _OF.sub(r"\1-of", line)
    related = re.split(r" (left-of|right-of|above|below) ", line, maxsplit=1)
    relation = related[1].replace("-", " ") if len(related) > 1 else None
    parts = related[::2] if relation else re.split(r", and |, | and ", line) if line else []
    count, parts = _counted(parts)
    things = tuple(_wanted(part, text) for part in parts)
    return Prompt(things, relation, place, count)


def _without_place(line: str) -> tuple[str, str | None]:
    for place, phrase in _PHRASE.items():
        if line.endswith(f" {phrase}"):
            return line.removesuffix(f" {phrase}"), place
    return line, None


def _counted(parts: Sequence[str]) -> tuple[int, list[str]]:
    """The count that begins the only part, and the parts without it."""
    first, _, rest = parts[0].partition(" ") if parts else ("", "", "")
    if len(parts) == 1 and first in _COUNT:
        return _COUNT.index(first) + 1, [rest]
    return 1, list(parts)


def _wanted(part: str, text: str) -> Wanted:
    """What one phrase asks for."""
    words = part.split()
    words = words[1:] if words[:1] and words[0] in _ARTICLES else words
    if words[-2:-1] == ["in"] and words[-1] in COLOURS:
        words.pop(-2)
    found = {"form": [], "colour": [], "size": []}
    for before, word in zip(["", *words], words, strict=False):
        named = word.upper() in {"digit": DIGITS, "letter": LETTERS}.get(before, ())
        role = "colour" if word in COLOURS else "size" if word in SIZES else "form"
        if named:
            found["form"][-1] = word.upper()
        elif role != "form" or word in _NOUNS:
            found[role].append(word)
        else:
            found["form"] += [word, "which is no noun"]
    if len(found["form"]) != 1 or any(len(values) > 1 for values in found.values()):
        expected = 'captions such as "a small red ring left of a large blue square" or "the digit 7 in green"'
        remedy = "See wayfield.data.scenes.words for the grammar."
        raise ConditionError("caption", got=f"{part!r} in {text!r}", expected=expected, remedy=remedy)
    form, colour, size = (values[0] if values else None for values in found.values())
    return Wanted(None if form == "thing" else form, colour, size)
