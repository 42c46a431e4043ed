r"""The finite world of one-shape scenes in words: 240 scenes, one caption each, and sets of scenes named by captions.

To steer by text one must know which pictures a text means. Here a caption, full or partial, negated or joined, is
exactly a set of scenes; the grammar is small and anything outside it is refused.

    caption  = clause { "or" clause }                              union; the empty caption means every scene
    clause   = part { ("," | "and" | "but") part | "not" phrase }  intersection
    part     = [ "not" ] phrase                                    complement
    phrase   = [ article ] { size | colour } [ noun { size | colour } ] [ [ preposition ] [ "the" ] place ]
    noun     = "circle" | "square" | "triangle" | "ring" | "shape" | "something" | "anything"
    place    = "centre" (or "center", "middle") | "left" | "right" | "top" | "bottom"

"not" binds tighter than "and", "and" tighter than "or": "a circle, not red or blue" is (a circle, not red) or blue.

=======  ==========================================================  ==============
symbol   meaning                                                     shape
=======  ==========================================================  ==============
SCENES   all scenes; shape varies slowest, then colour, size, place  240
mask     the scenes that a caption allows                            (240,) bool
=======  ==========================================================  ==============
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from itertools import product
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, unknown_name

__all__ = ["ATTRIBUTES", "SCENES", "VOCABULARY", "Description", "Scene", "caption", "parse"]

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "shape": ("circle", "square", "triangle", "ring"),
    "colour": ("red", "green", "blue", "yellow", "magenta", "cyan"),
    "size": ("small", "large"),
    "position": ("centre", "left", "right", "top", "bottom"),
}
"""The values of each attribute of a scene, in their fixed order."""

_PLACES = {
    "centre": "in the centre",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
_SYNONYMS = {"center": "centre", "middle": "centre"}
_CLASSES = {  # one letter per class of words; a phrase is then a regular expression over letters
    "A": ("a", "an", "the"),
    "P": ("in", "on", "at"),
    "S": (",", "and", "but"),
    "X": ("not",),
    "O": ("or",),
    "N": (*ATTRIBUTES["shape"], "shape", "something", "anything"),
    "Z": ATTRIBUTES["size"],
    "C": ATTRIBUTES["colour"],
    "L": (*ATTRIBUTES["position"], *_SYNONYMS),
}
_CLASS = {word: letter for letter, words in _CLASSES.items() for word in words}
_PHRASE = re.compile(r"(?=.*[NZCL])A?[ZC]*(N[ZC]*)?(P?A?L)?")

VOCABULARY: tuple[str, ...] = tuple(sorted(_CLASS))
"""Every word of the grammar, and the comma."""


@final
@dataclass(frozen=True)
class Scene:
    """One shape on a black ground. Each attribute is a value from `ATTRIBUTES`; raises UnknownNameError otherwise."""

    shape: str
    colour: str
    size: str
    position: str

    def __post_init__(self) -> None:
        for name, values in ATTRIBUTES.items():
            if getattr(self, name) not in values:
                raise unknown_name(name, getattr(self, name), values)


SCENES: tuple[Scene, ...] = tuple(Scene(*values) for values in product(*ATTRIBUTES.values()))
"""The 240 scenes in their fixed order: scene k is everywhere called by this number."""
_VALUES = tuple(frozenset(astuple(scene)) for scene in SCENES)


@final
@dataclass(frozen=True)
class Description:
    """A set of scenes, never empty: allowed[k] says whether scene k is in it. text: the words it came from.

    ``~q``, ``q & r`` and ``q | r`` are complement, intersection and union. Queries are equal if their sets are. Raises
    ConditionError if the set is empty or not of 240 flags.
    """

    allowed: tuple[bool, ...]
    text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.allowed) != len(SCENES):
            got, expected = f"{len(self.allowed)} flags", f"{len(SCENES)} flags, one per scene"
            raise ConditionError("query", got=got, expected=expected, remedy="Make it with `parse`.")
        if not any(self.allowed):
            remedy = 'A picture holds one shape: join alternatives with "or".'
            raise ConditionError(
                "caption", got=repr(self.text), expected="one that some of the 240 scenes satisfies", remedy=remedy
            )

    @property
    def mask(self) -> Tensor:
        """The flags as a new tensor, (240,) bool."""
        return torch.tensor(self.allowed)

    @property
    def scenes(self) -> tuple[Scene, ...]:
        """The scenes in the set, in the order of `SCENES`."""
        return tuple(scene for scene, ok in zip(SCENES, self.allowed, strict=True) if ok)

    def __len__(self) -> int:
        return sum(self.allowed)

    def __contains__(self, scene: Scene) -> bool:
        return self.allowed[SCENES.index(scene)]

    def __invert__(self) -> Description:
        return Description(tuple(not ok for ok in self.allowed), f"not ({self.text})")

    def __and__(self, other: Description) -> Description:
        return self._join(other, bool.__and__, "and")

    def __or__(self, other: Description) -> Description:
        return self._join(other, bool.__or__, "or")

    def _join(self, other: Description, rule: Callable[[bool, bool], bool], word: str) -> Description:
        allowed = tuple(rule(p, q) for p, q in zip(self.allowed, other.allowed, strict=True))
        return Description(allowed, f"({self.text}) {word} ({other.text})")


def caption(scene: Scene) -> str:
    """The full caption, such as "a small red circle on the left"."""
    return f"a {scene.size} {scene.colour} {scene.shape} {_PLACES[scene.position]}"


def parse(text: str) -> Description:
    """The scenes that a caption means; the empty caption means all.

    Raises UnknownNameError for a word outside `VOCABULARY`, naming the nearest, and ConditionError for words in an
    order that the grammar lacks or that no scene satisfies.
    """
    words = re.findall(r"[^\s,]+|,", text.strip().removesuffix(".").lower())
    for word in words:
        if word not in _CLASS:
            raise unknown_name("word", word, (known for known in VOCABULARY if known != ","))
    allowed = [False] * len(SCENES) if words else [True] * len(SCENES)
    for clause in _split(words, "O"):
        for k, ok in enumerate(_clause(clause, text)):
            allowed[k] |= ok
    return Description(tuple(allowed), text)


def _split(words: list[str], letter: str) -> Iterator[list[str]]:
    """The words between those of class `letter`; a missing part comes out empty."""
    part: list[str] = []
    for word in words:
        if _CLASS[word] == letter:
            yield part
            part = []
        else:
            part.append(word)
    if words:
        yield part


def _clause(words: list[str], text: str) -> list[bool]:
    """The flags of the scenes that satisfy every part of a clause."""
    if words and words[-1] == ",":  # "a red circle, or a blue square"
        words = words[:-1]
    apart: list[str] = []
    for word in words:  # "a circle not red" and "a circle, and not red" both become "a circle , not red"
        separates = _CLASS[word] == "S"
        if word == "not" and apart and apart[-1] != ",":
            apart.append(",")
        if not (separates and apart and apart[-1] == "," and word != ","):
            apart.append("," if separates else word)
    allowed = [True] * len(SCENES)
    for part in _split(apart, "S") if apart else [[]]:
        refused = part[:1] == ["not"]
        for k, ok in enumerate(_phrase(part[refused:], text)):
            allowed[k] &= ok != refused
    return allowed


def _phrase(words: list[str], text: str) -> Iterator[bool]:
    """For each scene, whether it has every attribute the phrase names."""
    if _PHRASE.fullmatch("".join(_CLASS[word] for word in words)) is None:
        got = f"{' '.join(words)!r} in {text!r}"
        expected = 'a phrase such as "a small red circle on the left", "something blue" or "large"'
        raise ConditionError(
            "caption", got=got, expected=expected, remedy="See wayfield.data.captions for its grammar."
        )
    named = {_SYNONYMS.get(word, word) for word in words}
    named &= {value for values in ATTRIBUTES.values() for value in values}
    return (named <= values for values in _VALUES)
