"""The open world as a dataset: picture k of a seed with its prompt and its record, made when asked for.

    batch(k) -> x0 (B, 3, 32, 32), {"tokens": (B, 12), "things": (B, 3, 5)}

What a prompt says of its scene is drawn too: the size is left out of 15 % of the things, the colour of 8 %, the form
becomes a sort ("a red shape") or open ("something red") in 3 % each; a single thing is placed in 30 % where its place
is clear, and a pair related in 80 % where one difference of centres is at least 1.3 times the other.

tokens: see `scenes.words` / things: rows (form, colour, size, x, y), form -1 where there is none, see `scenes.scene`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError
from wayfield.data.dataset import Dataset, rows_of
from wayfield.data.scenes.judge import place_of, relation_of
from wayfield.data.scenes.paint import paint
from wayfield.data.scenes.scene import DIGITS, LETTERS, SIDE, Draft, Mix, Thing, draft, lots, things_of
from wayfield.data.scenes.words import SCHEMA, Prompt, Wanted
from wayfield.field.cond import Cond, Field, Schema

__all__ = ["Scenes"]

_CLEAR, _EDGE = 1.3, 5.0  # how much one difference must exceed the other, and how far off the centre a place is clear


@final
@dataclass(frozen=True)
class Scenes(Dataset):
    """Scenes 0 .. count - 1 of a seed. mix: how often each kind is drawn / plain: prompts name every attribute of each
    thing, and always the relation or place where it is clear, as prompts that test a model should.

    Raises RangeError for count < 1.
    """

    seed: int = 0
    count: int = 1 << 20
    mix: Mix = Mix()
    plain: bool = False

    schema = Schema(
        {"tokens": SCHEMA.fields["tokens"], "things": Field((3, 5), "float32")},
        null={"tokens": [0] * 12, "things": [[-1.0, 0.0, 0.0, 0.0, 0.0]] * 3},
    )

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RangeError("count", got=self.count, expected="at least 1", remedy="Ask for some scenes.")

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, 32, 32)."""
        return (3, SIDE, SIDE)

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """See `Dataset.batch`."""
        scenes = self._draft(indices)
        tokens = torch.stack([p.tokens for p in self._said(scenes)])
        return paint(scenes, self.mix.texture), {"tokens": tokens, "things": scenes.things.float()}

    def prompts(self, indices: Sequence[int] | Tensor) -> list[Prompt]:
        """The prompts of scenes."""
        return self._said(self._draft(indices))

    def things(self, indices: Sequence[int] | Tensor) -> list[tuple[Thing, ...]]:
        """The records of scenes: what is in each picture, and where."""
        return [things_of(rows) for rows in self._draft(indices).things]

    def _draft(self, indices: Sequence[int] | Tensor) -> Draft:
        rows = rows_of(indices, len(self)).tolist()
        return draft(lots(self.seed, rows), self.mix)

    def _said(self, scenes: Draft) -> list[Prompt]:
        words = scenes.words.tolist()
        return [
            _say(things_of(rows), kind, [0.5] * len(u) if self.plain else u)
            for rows, kind, u in zip(scenes.things, scenes.kind.tolist(), words, strict=True)
        ]


def _say(things: tuple[Thing, ...], kind: int, u: list[float]) -> Prompt:
    """The prompt of a scene, from its things, its kind and uniform numbers u; 0.5 everywhere says all there is."""
    if u[9] < 0.5 and kind == 1:  # either thing of a pair may be named first
        things = things[::-1]
    wanted = tuple(_want(thing, u[3 * k : 3 * k + 3]) for k, thing in enumerate(things))
    if kind >= 3:
        return Prompt(wanted[:1], count=len(things))
    prompt = Prompt(wanted)
    if kind == 0 and 0.3 <= u[10] < 0.6 and _placed(things[0]):
        return replace(prompt, place=place_of(things[0]))
    if kind == 1 and u[10] < 0.8 and _related(*things):
        return replace(prompt, relation=relation_of(*things))
    return prompt


def _want(thing: Thing, u: list[float]) -> Wanted:
    """What is said of a thing."""
    sort = "digit" if thing.form in DIGITS else "letter" if thing.form in LETTERS else "shape"
    form = sort if u[0] < 0.03 else None if u[0] > 0.97 else thing.form
    return Wanted(form, None if u[1] < 0.08 else thing.colour, None if u[2] < 0.15 else thing.size)


def _placed(thing: Thing) -> bool:
    """Whether nobody would dispute where a thing stands."""
    dx, dy = abs(thing.x - SIDE / 2), abs(thing.y - SIDE / 2)
    return max(dx, dy) < 3 or (max(dx, dy) >= _EDGE and max(dx, dy) >= _CLEAR * min(dx, dy))


def _related(first: Thing, second: Thing) -> bool:
    dx, dy = abs(first.x - second.x), abs(first.y - second.y)
    return max(dx, dy) >= _CLEAR * min(dx, dy)
