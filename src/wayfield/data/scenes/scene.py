r"""The open world of captioned shapes: which scenes there are, and how scene k of a seed is drawn by lot.

A finite world has exact answers but can be learned by heart. Here one to three things of many forms stand anywhere on a
textured ground, so that a model must compose; what is in a picture is still known exactly, because it was drawn from a
record.

    one    a thing                                   pair    two different things
    trio   three different things, all small         twins, triplets    two or three equal things (three: small)

A thing has a form (6 shapes, 10 digits, 26 letters), a colour, a size and a centre. The discs of things are at least
one pixel apart and lie inside the picture; corners may reach beyond a disc, by a quarter of its radius at most. Placing
by rejection would take an unknown number of draws; so each scene has `_TRIES` candidate placements and takes the first
that fits, or a fixed one (opposite corners).

Some pairs of shape and colour, `HELD_OUT`, are kept out of training scenes: what a model draws for them it composed.

=======  ==========================================================================  ==============
symbol   meaning                                                                     shape
=======  ==========================================================================  ==============
u        uniform numbers of a scene, `NUMBERS` of them, addressed by (seed, k)       (B, NUMBERS)
things   rows (form, colour, size, x, y), x and y in pixels; form -1 where none is   (B, 3, 5)
r        radius of the disc around each thing, in pixels                             (B, 3)
=======  ==========================================================================  ==============

The scenes are ours; the idea of a captioned synthetic world with held-out pairs is that of Johnson et al. 2017 (CLEVR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, RangeError, unknown_name
from wayfield.core.noise import Address, SeededNoise
from wayfield.data.captions import ATTRIBUTES

__all__ = [
    "COLOURS",
    "DIGITS",
    "FORMS",
    "HELD_OUT",
    "LETTERS",
    "SHAPES",
    "SIDE",
    "SIZES",
    "Draft",
    "Mix",
    "Thing",
    "draft",
    "lots",
    "things_of",
]

SIDE = 32
"""Pixels along each edge of a picture."""

SHAPES = ("circle", "square", "triangle", "ring", "cross", "diamond")
DIGITS = tuple("0123456789")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
FORMS: tuple[str, ...] = (*SHAPES, *DIGITS, *LETTERS)
"""Every form, in the order of its number."""
COLOURS = ATTRIBUTES["colour"]
SIZES = ATTRIBUTES["size"]
HELD_OUT: tuple[tuple[str, str], ...] = tuple((shape, COLOURS[(2 * k + 1) % 6]) for k, shape in enumerate(SHAPES))
"""The pairs (shape, colour) that no training scene holds."""

_RADII = ((4.0, 4.6), (6.4, 7.2))  # of small and of large things
_GAP, _RIM = 1.0, 0.5  # pixels between discs, and between a disc and the rim
_TRIES, _STEP = 24, 2.0**-20
_OF_THING, _GROUND, _WORDS = 4, 12, 12
_PLACES = 3 * _OF_THING + 1
_FIRST = torch.tensor([0, len(SHAPES), len(SHAPES) + len(DIGITS)])  # number of the first shape, digit and letter
_MANY = torch.tensor([len(SHAPES), len(DIGITS), len(LETTERS)])
NUMBERS = _PLACES + 6 * _TRIES + _GROUND + _WORDS
"""Uniform numbers per scene."""


@final
@dataclass(frozen=True)
class Thing:
    """One thing in a picture. form, colour, size: values of FORMS, COLOURS, SIZES / x, y: its centre in pixels from the
    left and top edges. Raises UnknownNameError for another value.
    """

    form: str
    colour: str
    size: str
    x: float
    y: float

    def __post_init__(self) -> None:
        for name, known in (("form", FORMS), ("colour", COLOURS), ("size", SIZES)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)


@final
@dataclass(frozen=True)
class Mix:
    """How often each kind of scene is drawn. one, pair, trio, twins, triplets: shares, scaled to sum to 1 / shape,
    digit, letter: shares of the forms, likewise / texture: share of textured grounds / held_out: whether only scenes
    with a pair of `HELD_OUT` are drawn (True), or none with one (False).

    Raises DTypeError or RangeError for shares that are no numbers >= 0 or sum to 0.
    """

    one: float = 0.5
    pair: float = 0.25
    trio: float = 0.08
    twins: float = 0.1
    triplets: float = 0.07
    shape: float = 0.75
    digit: float = 0.13
    letter: float = 0.12
    texture: float = 0.35
    held_out: bool = False

    def __post_init__(self) -> None:
        for field in fields(self)[:-1]:
            value = getattr(self, field.name)
            if not isinstance(value, (int, float)):
                raise DTypeError(field.name, got=repr(value), expected="a number", remedy="Write 0.5.")
            if not 0 <= value < float("inf"):
                raise RangeError(field.name, got=value, expected="at least 0", remedy="Shares are not negative.")
        if not self.kinds.sum() > 0 or not self.forms.sum() > 0:
            raise RangeError("shares of a mix", got="all 0", expected="a positive sum", remedy="Raise one of them.")

    @property
    def kinds(self) -> Tensor:
        """Shares of one, pair, trio, twins, triplets, (5,) float64."""
        return torch.tensor([self.one, self.pair, self.trio, self.twins, self.triplets], dtype=torch.float64)

    @property
    def forms(self) -> Tensor:
        """Shares of shapes, digits and letters, (3,) float64."""
        return torch.tensor([self.shape, self.digit, self.letter], dtype=torch.float64)


class Draft(NamedTuple):
    """A batch of scenes. kind (B,): 0..4 as in `Mix.kinds` / things (B, 3, 5) and r (B, 3): see the module, float64 /
    ground (B, 12) and words (B, 12): uniform numbers for the painter and for the choice of words.
    """

    kind: Tensor
    things: Tensor
    r: Tensor
    ground: Tensor
    words: Tensor


def lots(seed: int, indices: Sequence[int]) -> Tensor:
    """The uniform numbers u of scenes `indices`, (B, NUMBERS) float64 in (0, 1), a function of seed and index alone."""
    normal = SeededNoise(seed ^ 0x5CE0E5, indices).draw((NUMBERS,), Address(0)).double()
    # in steps, so that a last bit in which two machines differ does not move a pixel
    return (torch.special.ndtr(normal) / _STEP).floor().add(0.5) * _STEP


def draft(u: Tensor, mix: Mix) -> Draft:
    """The scenes that uniform numbers u (B, NUMBERS) stand for."""
    kind = _pick(u[:, 0], mix.kinds)
    count = torch.tensor([1, 2, 3, 2, 3])[kind]
    own = u[:, 1:_PLACES].reshape(-1, 3, _OF_THING)
    form, colour = _form(own[..., 0], own[..., 1], mix)
    size = (own[..., 2] >= 0.5).long()
    equal = kind >= 3
    form, colour, size = (torch.where(equal[:, None], a[:, :1], a) for a in (form, colour, size))
    size = torch.where((count == 3)[:, None], 0, size)
    form = _distinct(form, colour, size, equal)
    low, high = torch.tensor(_RADII, dtype=torch.float64).unbind(1)
    r = low[size] + (high - low)[size] * own[..., 3]
    r = torch.where(equal[:, None], r[:, :1], r)
    tries = u[:, _PLACES : _PLACES + 6 * _TRIES].reshape(-1, _TRIES, 3, 2)
    there = torch.arange(3) < count[:, None]
    centres = _place(tries, r, there)
    things = torch.cat([torch.stack([form, colour, size], -1).double(), centres], -1)
    blank = torch.tensor([-1.0, 0, 0, 0, 0], dtype=torch.float64)
    things = torch.where(there[..., None], things, blank)
    rest = u[:, _PLACES + 6 * _TRIES :]
    return Draft(kind, things, r, rest[:, :_GROUND], rest[:, _GROUND:])


def things_of(rows: Tensor) -> tuple[Thing, ...]:
    """The things of one scene, rows (3, 5)."""
    named = ((int(f), int(c), int(s), x, y) for f, c, s, x, y in rows.tolist() if f >= 0)
    return tuple(Thing(FORMS[f], COLOURS[c], SIZES[s], x, y) for f, c, s, x, y in named)


def _pick(u: Tensor, shares: Tensor) -> Tensor:
    """The category that u falls into, int64 with the shape of u."""
    return torch.searchsorted((shares / shares.sum()).cumsum(0)[:-1].contiguous(), u.contiguous(), right=True)


def _form(u: Tensor, v: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """Form and colour of each thing, (B, 3) int64 each, from two uniform numbers."""
    if mix.held_out:
        form = (u * 6).floor().long()
        return form, _held(form)
    bounds = torch.cat([torch.zeros(1, dtype=torch.float64), (mix.forms / mix.forms.sum()).cumsum(0)])
    sort = _pick(u, mix.forms)
    inside = ((u - bounds[sort]) / (bounds[1:] - bounds[:-1])[sort]).clamp(0, 1 - _STEP)  # uniform again
    form = _FIRST[sort] + (inside * _MANY[sort]).floor().long()
    # of the six colours, or of the five that this shape may have
    shape, held = form < 6, _held(form)
    colour = (v * torch.where(shape, 5, 6)).floor().long()
    return form, torch.where(shape, (held + 1 + colour) % 6, colour)


def _held(form: Tensor) -> Tensor:
    """The held-out colour of every form as a shape."""
    return torch.tensor([COLOURS.index(colour) for _, colour in HELD_OUT])[form % 6]


def _distinct(form: Tensor, colour: Tensor, size: Tensor, equal: Tensor) -> Tensor:
    """Forms, changed where two things of a pair or trio would be alike in form, colour and size."""
    form = form.clone()
    for k in (1, 2):
        for _ in range(k):  # moving away from one may meet the other
            for j in range(k):
                same = (form[:, k] == form[:, j]) & (colour[:, k] == colour[:, j]) & (size[:, k] == size[:, j]) & ~equal
                form[:, k] = torch.where(same, _next_form(form[:, k], colour[:, k]), form[:, k])
    return form


def _next_form(form: Tensor, colour: Tensor) -> Tensor:
    """Another form of the same sort that may have this colour."""
    sort = (form >= _FIRST[1]).long() + (form >= _FIRST[2])
    first, many = _FIRST[sort], _MANY[sort]
    out = first + (form - first + 1) % many
    return torch.where((sort == 0) & (_held(out) == colour), first + (out - first + 1) % many, out)


def _place(tries: Tensor, r: Tensor, there: Tensor) -> Tensor:
    """The first placement that fits, (B, 3, 2) in pixels; tries (B, T, 3, 2) uniform, r and there (B, 3)."""
    low = (r + _RIM)[:, None, :, None]
    centres = low + tries * (SIDE - 2 * low)
    fits = torch.ones(tries.shape[:2], dtype=torch.bool)
    for j, k in ((0, 1), (0, 2), (1, 2)):
        apart = (centres[:, :, j] - centres[:, :, k]).square().sum(-1).sqrt() >= (r[:, j] + r[:, k] + _GAP)[:, None]
        fits &= apart | ~(there[:, j] & there[:, k])[:, None]
    corner = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    spare = low[:, 0] + corner * (SIDE - 2 * low[:, 0])
    chosen = centres[torch.arange(len(tries)), fits.long().argmax(1)]
    return torch.where(fits.any(1)[:, None, None], chosen, spare)
