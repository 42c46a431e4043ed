"""Emoji: 1,911 named colour pictures, 64 x 64, in ten categories; small, clean, and each with a few words of text.

    emoji("all" | "train" | "test") -> pictures (3, 64, 64) on white, label = category 0..9, null 10
    emoji_names(...) -> one lower-case name per picture, in the same order

Order is that of the package's table. Every fifth emoji of a category is for testing; with skin tones (3,786 pictures)
the variants of an emoji stay on its side of the split, right after it, because they are nearly the same picture.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch

from wayfield.data.decode import open_picture, to_tensor
from wayfield.data.pictures import Pictures, label_schema, rows_of_split
from wayfield.data.sources import find

__all__ = ["EMOJI_CLASSES", "emoji", "emoji_names", "test", "train"]

EMOJI_CLASSES = (
    "Activities",
    "Animals & Nature",
    "Component",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
"""Names of the labels 0..9."""

_TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}


class _Entry(NamedTuple):
    file: str
    name: str
    label: int


def emoji(split: str = "all", skin_tones: bool = False, path: str | os.PathLike[str] | None = None) -> Pictures:
    """The pictures as a dataset, transparent parts on white.

    split: "all", "train" or "test" / skin_tones: with the variants of people / path: the unpacked package, see `find`.
    Raises UnknownNameError for another split, MissingExtraError without the files or Pillow, CheckpointError if the
    files are not the right ones.
    """
    folder = find("emoji", path)
    entries = _entries(folder, split, skin_tones)
    pixels = torch.empty(len(entries), 3, 64, 64, dtype=torch.uint8)
    for k, entry in enumerate(entries):
        pixels[k] = to_tensor(open_picture(folder / "img" / "google" / "64" / entry.file))
    return Pictures(
        pixels, {"label": torch.tensor([entry.label for entry in entries])}, label_schema(10), EMOJI_CLASSES
    )


def emoji_names(
    split: str = "all", skin_tones: bool = False, path: str | os.PathLike[str] | None = None
) -> tuple[str, ...]:
    """The names of the pictures that `emoji` gives for the same arguments, such as "cat face"; not all are unique."""
    return tuple(entry.name for entry in _entries(find("emoji", path), split, skin_tones))


def train() -> Pictures:
    """Four fifths of each category, 1,533 pictures."""
    return emoji("train")


def test() -> Pictures:
    """One fifth of each category, 378 pictures."""
    return emoji("test")


def _entries(folder: Path, split: str, skin_tones: bool) -> list[_Entry]:
    table = json.loads((folder / "emoji.json").read_text())
    labels = torch.tensor([EMOJI_CLASSES.index(row["category"]) for row in table])
    out: list[_Entry] = []
    for k in rows_of_split(labels, split).tolist():
        name, label = table[k]["name"].lower(), int(labels[k])
        out.append(_Entry(table[k]["image"], name, label))
        for code, variant in table[k].get("skin_variations", {}).items() if skin_tones else ():
            tones = ", ".join(f"{_TONES[part]} skin tone" for part in code.split("-"))
            out.append(_Entry(variant["image"], f"{name}: {tones}", label))
    return out
