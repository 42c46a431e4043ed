"""Does a picture hold what was asked for? Prompts against things, read or recorded, attribute by attribute.

The things of a picture are matched to those of the prompt by the assignment with the most attributes right (at most
3! of them are tried). Then, each only where the prompt asks for it:

    count     as many things as asked             form, colour, size   right on every thing asked for
    relation  the first stands so to the second   place                the thing stands there
    all       everything asked for is right

Left, right, above and below mean the larger of the two differences of centres; the centre is within 4 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

from wayfield.core.errors import ShapeError
from wayfield.data.scenes.scene import DIGITS, LETTERS, SHAPES, SIDE, Thing
from wayfield.data.scenes.words import Prompt, Wanted

__all__ = ["agreement", "place_of", "relation_of", "verdict"]

_MEMBERS = {"shape": SHAPES, "digit": DIGITS, "letter": LETTERS}
_CENTRE = 4.0


def verdict(prompt: Prompt, things: Sequence[Thing]) -> Mapping[str, bool]:
    """What of the prompt is right, by the names above; "all" is always there."""
    wanted = prompt.things * prompt.count
    best: dict[str, bool] = {}
    if wanted and len(things) >= len(wanted):
        each = (_matched(prompt, wanted, chosen) for chosen in permutations(things, len(wanted)))
        best = max(each, key=lambda flags: (sum(flags.values()), flags.get("form", True)))
    elif wanted:
        best = dict.fromkeys(_matched(prompt, wanted, [None] * len(wanted)), False)
    if prompt.total:
        best["count"] = len(things) == prompt.total
    return best | {"all": all(best.values())}


def agreement(prompts: Sequence[Prompt], readings: Sequence[Sequence[Thing]]) -> dict[str, float]:
    """The share of pictures right in each respect, over those whose prompt asks for it. Raises ShapeError."""
    if len(prompts) != len(readings):
        raise ShapeError("readings", got=len(readings), expected=len(prompts), remedy="Give one per prompt.")
    flags = [verdict(prompt, things) for prompt, things in zip(prompts, readings, strict=True)]
    names = [name for name in _NAMES if any(name in f for f in flags)]
    return {n: sum(f[n] for f in flags if n in f) / sum(n in f for f in flags) for n in names}


_NAMES = ("count", "form", "colour", "size", "relation", "place", "all")


def relation_of(first: Thing, second: Thing) -> str:
    """How the first thing stands to the second: "left of", "right of", "above" or "below"."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def place_of(thing: Thing) -> str:
    """Where a thing stands in the picture: "left", "right", "top", "bottom" or "centre"."""
    dx, dy = thing.x - SIDE / 2, thing.y - SIDE / 2
    if max(abs(dx), abs(dy)) < _CENTRE:
        return "centre"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _matched(prompt: Prompt, wanted: Sequence[Wanted], things: Sequence[Thing | None]) -> dict[str, bool]:
    """What is right if things[k] is the answer to wanted[k]; None is no answer."""
    out: dict[str, bool] = {}
    for name in ("form", "colour", "size"):
        asked = [(getattr(w, name), t) for w, t in zip(wanted, things, strict=True) if getattr(w, name) is not None]
        if asked:
            out[name] = all(t is not None and getattr(t, name) in _MEMBERS.get(value, (value,)) for value, t in asked)
    if prompt.relation is not None:
        first, second = things
        out["relation"] = first is not None and second is not None and relation_of(first, second) == prompt.relation
    if prompt.place is not None:
        out["place"] = things[0] is not None and place_of(things[0]) == prompt.place
    return out
