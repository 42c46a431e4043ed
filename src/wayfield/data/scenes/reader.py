"""From a picture back to the things in it, by a trained detector: what generated pictures of scenes are judged by.

The detector answers in maps over cells of two pixels (`field.nets.detector`). A thing is read wherever the heat is
highest around and above one half, nearly; form, colour and size are the likeliest there.

    peak     heat(i, j) > 0.45, and no greater heat within 2 cells, corners of that 5 x 5 window left out
    centre   (x, y) = 2 ((j, i) + 1/2 + offset), in pixels

Without its corners the window never hides one of two centres that are more than sqrt(52) = 7.2 pixels apart; things of
a scene are at least 9 apart. A detector names the nearest form even where a blob has none, so a reading also says how
sure it is of each form. That is a filter, not a proof: of random blobs that "scenes-reader" took for things, one in ten
had a certainty below 0.5 and one in two below 0.9, which 0.3 % of well-made things have too.

A reader must not learn what is rare. If it never saw a green circle it would rather see another colour than admit one,
and generated pictures of held-out pairs would be misjudged; so readers learn from `Lessons`, where every pair of shape
and colour is about as frequent as every other, and letters and digits are more so than in the scenes of generators.

=========  ===============================================================  ==============
pictures   in [-1, 1]                                                       (B, 3, 32, 32)
there      sigmoid of the heat at each thing, in 0.45..1                    a tuple
certainty  probability of the form named, for each thing, in 0..1           a tuple
=========  ===============================================================  ==============
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from wayfield.core.errors import ConditionError, NonFiniteError, RangeError, UnsupportedError
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.shapes import check_samples
from wayfield.data.dataset import Dataset, rows_of
from wayfield.data.scenes.scene import COLOURS, DIGITS, FORMS, SHAPES, SIZES, Mix, Thing, things_of
from wayfield.data.scenes.sets import Scenes
from wayfield.field.cond import Cond
from wayfield.field.nets.detector import STRIDE, Detector, Maps, split

__all__ = [
    "THRESHOLD",
    "Lessons",
    "Sighting",
    "assign",
    "decode",
    "first_lessons",
    "read",
    "reading_accuracy",
    "readings",
    "second_lessons",
]

THRESHOLD = 0.45
"""The heat above which a peak is a thing."""

_BATCH = 256
_NEAR = 2.0  # pixels: a centre read farther off is wrong
_PERIOD = 12  # one of so many lessons shows held-out pairs: then they come 1.1 times as often as the others
_FORMS = Mix(shape=0.4, digit=0.2, letter=0.4)
_HELD = Mix(held_out=True)


@final
@dataclass(frozen=True)
class Sighting:
    """What was read in one picture, the surest thing first. there: confidence that each is there / certainty:
    probability of the form of each, both in 0..1.
    """

    things: tuple[Thing, ...]
    there: tuple[float, ...]
    certainty: tuple[float, ...]

    @property
    def least(self) -> float:
        """The least certainty of a form, 1 where nothing was read: a low one suggests that some thing is malformed."""
        return min(self.certainty, default=1.0)


@final
@dataclass(frozen=True)
class Lessons(Dataset):
    """Scenes for readers, every twelfth of them with held-out pairs only. seed: of the scenes, which are not those of
    the same seed of `Scenes` / count: at least 1. Raises RangeError.
    """

    seed: int = 0
    count: int = 1 << 20

    schema = Scenes.schema

    def __post_init__(self) -> None:
        Scenes(self.seed, self.count)  # which says what a count must be

    @property
    def shape(self) -> tuple[int, ...]:
        """(3, 32, 32)."""
        return Scenes().shape

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """See `Dataset.batch`."""
        rows = rows_of(indices, len(self))
        held = rows % _PERIOD == 0
        x, cond = Scenes(self._seed, self.count, _FORMS).batch(rows)
        if bool(held.any()):
            rare, named = Scenes(self._seed, self.count, _HELD).batch(rows[held])
            x[held] = rare
            for name, value in named.items():
                cond[name][held] = value
        return x, cond

    @property
    def _seed(self) -> int:
        return self.seed ^ 0x4C4553


def first_lessons() -> Lessons:
    """A million scenes for the first reader."""
    return Lessons(0)


def second_lessons() -> Lessons:
    """Others, for the second reader."""
    return Lessons(1)


def decode(maps: Maps) -> list[Sighting]:
    """The readings that maps stand for, one per row. maps: see `field.nets.detector`, any device."""
    heat = maps.heat.float()
    wide = F.max_pool2d(heat[:, None], (3, 5), 1, (1, 2))[:, 0]
    high = F.max_pool2d(heat[:, None], (5, 3), 1, (2, 1))[:, 0]
    peaks = (heat >= torch.maximum(wide, high)) & (heat.sigmoid() > THRESHOLD)
    rows, i, j = peaks.nonzero(as_tuple=True)
    order = heat[rows, i, j].argsort(descending=True, stable=True)
    rows, i, j = rows[order], i[order], j[order]
    there = heat[rows, i, j].sigmoid()
    certainty, form = maps.form[rows, :, i, j].float().softmax(1).max(1)
    colour, size = (m[rows, :, i, j].argmax(1) for m in (maps.colour, maps.size))
    centre = STRIDE * (torch.stack([j, i], 1) + 0.5 + maps.offset[rows, :, i, j].float())
    sides = torch.tensor([heat.shape[2], heat.shape[1]], device=heat.device) * float(STRIDE)
    centre = torch.minimum(centre.clamp(min=0), sides)
    found: list[list[tuple[Thing, float, float]]] = [[] for _ in heat]
    columns = (c.tolist() for c in (rows, form, colour, size, centre, there, certainty))
    for row, f, c, s, (x, y), h, p in zip(*columns, strict=True):
        found[row].append((Thing(FORMS[f], COLOURS[c], SIZES[s], x, y), h, p))
    return [_reading(things) for things in found]


def readings(net: Detector, pictures: Tensor) -> list[Sighting]:
    """What is read in each picture, with the confidence of it.

    net: a detector of this world / pictures: (B, 3, 32, 32) in [-1, 1], any device and floating type; read 256 at once.
    Raises ShapeError or DTypeError for pictures, NonFiniteError for NaN in them, UnsupportedError for another detector.
    """
    _check(net)
    check_samples("pictures", pictures)
    if not bool(pictures.isfinite().all()):
        bad = int((~pictures.isfinite()).flatten(1).any(1).nonzero()[0])
        remedy = "Count such pictures apart: nothing can be read in them."
        raise NonFiniteError("pictures", got=f"NaN or inf in picture {bad}", expected="finite", remedy=remedy)
    weight = next(net.parameters())
    out: list[Sighting] = []
    with torch.no_grad():
        for part in pictures.split(_BATCH):
            out += decode(split(net(part.to(weight.device, weight.dtype)), net.config))
    return out


def read(net: Detector, pictures: Tensor) -> list[tuple[Thing, ...]]:
    """The things in each picture, the surest first. Arguments and errors as in `readings`."""
    return [reading.things for reading in readings(net, pictures)]


def assign(found: Sequence[Thing], truth: Sequence[Thing]) -> list[tuple[Thing, Thing]]:
    """Pairs (found, true) of the least total distance between centres, as many as both have.

    found: surest first; those beyond the number of true ones stay without a partner. At most n! ways are compared.
    """
    found = found[: len(truth)]

    def length(chosen: tuple[Thing, ...]) -> float:
        return sum(map(_distance, found, chosen))

    return list(zip(found, min(permutations(truth, len(found)), key=length), strict=True))


def reading_accuracy(
    net: Detector, dataset: Dataset, n: int, first: int = 0, *, noise: float = 0.0
) -> dict[str, float]:
    """How well samples first .. first + n - 1 of a dataset with the condition "things" are read.

    noise: standard deviation of normal noise added to the pictures, addressed by the number of the sample.
    "count" is the share of pictures with the right number of things, "all" of those with everything right: count, form,
    colour, size, and each centre within 2 pixels. "form", "colour" and "size" are shares of the true things, those that
    were missed included; "shape", "digit" and "letter" the share of right forms among true things of that sort, left
    out where there are none; "position" the mean distance in pixels between centres, over pairs of `assign`.
    Raises ConditionError for data that do not say what is where, RangeError for n < 1 or noise < 0.
    """
    if "things" not in dataset.schema.fields:
        got, remedy = sorted(dataset.schema.fields), 'Use "scenes", or one of its relatives.'
        raise ConditionError("conditions of the dataset", got=got, expected="things", remedy=remedy)
    if n < 1 or not 0 <= noise < math.inf:
        expected = "n >= 1, 0 <= noise < inf"
        raise RangeError("pictures to read", got=f"n={n}, noise={noise}", expected=expected, remedy="Try n=1024.")
    tally: dict[str, list[float]] = {}
    for low in range(first, first + n, _BATCH):
        indices = range(low, min(low + _BATCH, first + n))
        x, cond = dataset.batch(indices)
        if noise:
            x = x + noise * SeededNoise(0, indices).draw(x.shape[1:], Address(0))
        for found, rows in zip(read(net, x), cond["things"], strict=True):
            for name, value in _verdicts(found, things_of(rows)):
                tally.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in tally.items()}


def _verdicts(found: tuple[Thing, ...], truth: tuple[Thing, ...]) -> Iterator[tuple[str, float]]:
    """What one picture adds to each figure: the names and values."""
    pairs = assign(found, truth)
    partner = {id(true): thing for thing, true in pairs}
    right = len(found) == len(truth)
    yield "count", float(right)
    for true in truth:
        thing = partner.get(id(true))
        agree = {name: thing is not None and getattr(thing, name) == getattr(true, name) for name in _NAMES}
        yield from ((name, float(value)) for name, value in agree.items())
        yield _sort(true.form), float(agree["form"])
        right &= all(agree.values())
    for thing, true in pairs:
        yield "position", _distance(thing, true)
        right &= _distance(thing, true) <= _NEAR
    yield "all", float(right)


_NAMES = ("form", "colour", "size")


def _sort(form: str) -> str:
    return "shape" if form in SHAPES else "digit" if form in DIGITS else "letter"


def _distance(a: Thing, b: Thing) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)


def _reading(found: list[tuple[Thing, float, float]]) -> Sighting:
    things, there, certainty = zip(*found, strict=True) if found else ((), (), ())
    return Sighting(things, there, certainty)


def _check(net: Detector) -> None:
    config = net.config
    got, expected = (config.forms, config.colours, config.sizes), (len(FORMS), len(COLOURS), len(SIZES))
    if got != expected:
        remedy = "Use a detector that was trained on scenes."
        raise UnsupportedError("forms, colours and sizes of a detector", got=got, expected=expected, remedy=remedy)
