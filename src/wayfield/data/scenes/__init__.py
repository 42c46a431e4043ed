"""The open world of captioned shapes: scenes with their records, prompts, pictures and judges.

training()   the scenes that models learn from          testing()    others, described in full
held_out()   single shapes in pairs of shape and colour that training never shows
single()     training scenes of one thing, the first lesson of a curriculum
"""

from wayfield.data.scenes.scene import Mix, Thing
from wayfield.data.scenes.sets import Scenes
from wayfield.data.scenes.words import Prompt, Wanted, parse, tokenize

__all__ = [
    "Mix",
    "Prompt",
    "Scenes",
    "Thing",
    "Wanted",
    "held_out",
    "parse",
    "single",
    "testing",
    "tokenize",
    "training",
]


def training() -> Scenes:
    """A million scenes to learn from."""
    return Scenes()


def testing() -> Scenes:
    """Scenes that no model has seen, with prompts that name every attribute."""
    return Scenes(seed=1, count=1 << 16, plain=True)


def held_out() -> Scenes:
    """Single shapes whose pair of shape and colour training never shows."""
    mix = Mix(pair=0, trio=0, twins=0, triplets=0, digit=0, letter=0, held_out=True)
    return Scenes(seed=2, count=1 << 16, mix=mix, plain=True)


def single() -> Scenes:
    """Scenes of one thing."""
    return Scenes(seed=3, mix=Mix(pair=0, trio=0, twins=0, triplets=0))
