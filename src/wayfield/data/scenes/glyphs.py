"""Digits and letters as strokes: straight segments on a grid 4 wide and 6 high, y downwards.

A glyph is written as polylines, each a run of points "xy"; "|" lifts the pen. Zero carries a stroke that the letter O
lacks, so that all 36 differ.

    segments()  (36, 16, 4)  ends (x0, y0, x1, y1) of each stroke, centred, height 2; short glyphs repeat their first
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from wayfield.data.scenes.scene import DIGITS, LETTERS

__all__ = ["STROKES", "segments"]

_OVAL = "10 30 41 45 36 16 05 01 10"
_BOWL = "06 00 30 41 42 33 03"
STROKES: dict[str, str] = {
    "0": _OVAL + "|14 32",
    "1": "02 20 26|06 46",
    "2": "01 10 30 41 42 06 46",
    "3": "01 10 30 41 42 33 44 45 36 16 05|13 33",
    "4": "36 30 04 44",
    "5": "40 00 02 32 43 45 36 06",
    "6": "40 20 02 05 16 36 45 44 33 03",
    "7": "00 40 16",
    "8": "10 30 41 42 33 13 02 01 10|13 04 05 16 36 45 44 33",
    "9": "06 26 44 41 30 10 01 02 13 43",
    "A": "06 03 20 43 46|04 44",
    "B": "00 30 41 42 33 44 45 36 06 00|03 33",
    "C": "41 30 10 01 05 16 36 45",
    "D": "00 20 42 44 26 06 00",
    "E": "40 00 06 46|03 33",
    "F": "40 00 06|03 33",
    "G": "41 30 10 01 05 16 36 45 43 23",
    "H": "00 06|40 46|03 43",
    "I": "10 30|20 26|16 36",
    "J": "20 40|40 45 36 16 05",
    "K": "00 06|40 03 46",
    "L": "00 06 46",
    "M": "06 00 23 40 46",
    "N": "06 00 46 40",
    "O": _OVAL,
    "P": _BOWL,
    "Q": _OVAL + "|24 46",
    "R": _BOWL + "|23 46",
    "S": "41 30 10 01 02 13 33 44 45 36 16 05",
    "T": "00 40|20 26",
    "U": "00 05 16 36 45 40",
    "V": "00 26 40",
    "W": "00 16 23 36 40",
    "X": "00 46|40 06",
    "Y": "00 23 40|23 26",
    "Z": "00 40 06 46",
}
"""The strokes of every digit and letter."""

_MOST = 16


@functools.cache
def segments() -> Tensor:
    """The strokes of `DIGITS` and `LETTERS` in their order, (36, 16, 4) float64. Shared: copy before writing."""
    return torch.stack([_glyph(STROKES[name]) for name in (*DIGITS, *LETTERS)])


def _glyph(strokes: str) -> Tensor:
    lines = [[(int(p[0]), int(p[1])) for p in line.split()] for line in strokes.split("|")]
    ends = [(*a, *b) for line in lines for a, b in itertools.pairwise(line)]
    ends += [ends[0]] * (_MOST - len(ends))
    return (torch.tensor(ends, dtype=torch.float64) - torch.tensor([2, 3, 2, 3])) / 3
