"""The prompts that models of scenes are judged by: fixed sets, each for one ability, and others to choose settings on.

=========  =======  ==============================================================================================
set        prompts  what is asked
=========  =======  ==============================================================================================
single     60       one shape: every size, colour and shape but the held-out pairs of colour and shape
place      60       the same, each at one of the five places
held-out   12       the six pairs of colour and shape that training never shows, small and large
digit      60       one digit: every digit in every colour
letter     78       one letter: every letter in three colours
relation   72       two things, the first left of, right of, above or below the second
trio       48       three different things
count      60       two or three things alike
=========  =======  ==============================================================================================

Every prompt names all attributes of its things. `report` is what is reported on. `selection` has other prompts of the
same sets, single shapes among them whose size is left open, and none of held-out; no prompt is in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from wayfield.data.scenes import Mix, Prompt, Scenes, Wanted
from wayfield.data.scenes.scene import COLOURS, DIGITS, HELD_OUT, LETTERS, SHAPES, SIZES
from wayfield.data.scenes.words import PLACES

__all__ = ["report", "selection"]

_REPORT, _SELECTION = 101, 102  # seeds of scenes whose prompts are asked for
_PAIRS = Mix(one=0, pair=1, trio=0, twins=0, triplets=0)
_TRIOS = Mix(one=0, pair=0, trio=1, twins=0, triplets=0)
_ALIKE = Mix(one=0, pair=0, trio=0, twins=1, triplets=1)


def report() -> dict[str, tuple[Prompt, ...]]:
    """The sets by name, in the order above."""
    return {
        "single": tuple(Prompt((thing,)) for thing in _single()),
        "place": _placed(0),
        "held-out": tuple(Prompt((Wanted(form, colour, size),)) for form, colour in HELD_OUT for size in SIZES),
        "digit": _named(DIGITS, 6, 0),
        "letter": _named(LETTERS, 3, 0),
        "relation": _drawn(_REPORT, _PAIRS, 72),
        "trio": _drawn(_REPORT, _TRIOS, 48),
        "count": _drawn(_REPORT, _ALIKE, 60),
    }


def selection(each: int = 8) -> tuple[Prompt, ...]:
    """Prompts to choose settings on: so many of each of seven sets, twice that of single; none is in `report`."""
    reported = {prompt.text for prompts in report().values() for prompt in prompts}
    sets = (
        tuple(Prompt((Wanted(thing.form, thing.colour),)) for thing in _single()[::2]),
        _placed(2),
        _named(DIGITS, 6, 1),
        _named(LETTERS, 3, 1),
        _drawn(_SELECTION, _PAIRS, 4 * each),
        _drawn(_SELECTION, _TRIOS, 4 * each),
        _drawn(_SELECTION, _ALIKE, 4 * each),
    )
    others = [[prompt for prompt in prompts if prompt.text not in reported] for prompts in sets]
    counts = [2 * each, *[each] * (len(sets) - 1)]
    return tuple(prompt for prompts, n in zip(others, counts, strict=True) for prompt in _spread(prompts, n))


def _single() -> list[Wanted]:
    combined = product(SHAPES, COLOURS, SIZES)
    return [Wanted(form, colour, size) for form, colour, size in combined if (form, colour) not in HELD_OUT]


def _placed(shift: int) -> tuple[Prompt, ...]:
    """Every single shape at one place; another shift gives each another place."""
    return tuple(Prompt((thing,), place=PLACES[(k + shift) % 5]) for k, thing in enumerate(_single()))


def _named(forms: Sequence[str], colours: int, shift: int) -> tuple[Prompt, ...]:
    """Every digit or letter in so many colours and in either size; an odd shift has the other size or colour."""
    out = []
    for k, form in enumerate(forms):
        for j in range(colours):
            colour = COLOURS[(k + j * (6 // colours) + shift * (colours < 6)) % 6]
            out.append(Prompt((Wanted(form, colour, SIZES[(k + j + shift) % 2]),)))
    return tuple(out)


def _drawn(seed: int, mix: Mix, count: int) -> tuple[Prompt, ...]:
    """The first `count` different prompts of a mix; of pairs only those whose prompt has a relation."""
    found: dict[str, Prompt] = {}
    for prompt in Scenes(seed=seed, mix=mix, plain=True).prompts(range(2 * count)):
        if prompt.relation is not None or mix is not _PAIRS:
            found.setdefault(prompt.text, prompt)
    return tuple(found.values())[:count]


def _spread(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """n of them, spread evenly."""
    return [prompts[k * len(prompts) // n] for k in range(n)]
