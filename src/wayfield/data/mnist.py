"""MNIST: 10,000 of the real handwritten digits, 28 x 28, that everybody knows; the part that a small package carries.

    mnist("all" | "train" | "test") -> pictures (1, 28, 28), label 0..9, null 10

The package stores p / 255 rounded to three decimals, which is one to one: the bytes here are the original ones. They
come sorted by digit, and which of the official parts they are from is not recorded, so the split is our own: every
fifth of a digit is for testing (8,004 and 1,996 pictures). Figures are not comparable with those of the official test.

Reference: LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning applied to document recognition.
"""

from __future__ import annotations

import json
import os
from array import array
from pathlib import Path

import torch

from wayfield.data.pictures import Pictures, check_split, label_schema, rows_of_split
from wayfield.data.sources import find

__all__ = ["mnist", "test", "train"]


def mnist(split: str = "all", path: str | os.PathLike[str] | None = None) -> Pictures:
    """The digits as a dataset. split: "all", "train" or "test" / path: the unpacked package, see `find`.

    Raises UnknownNameError for another split, MissingExtraError if the files are nowhere, CheckpointError if they are
    not the right ones.
    """
    check_split(split)
    folder = find("mnist", path) / "src" / "digits"
    parts = [torch.frombuffer(array("f", _values(folder / f"{k}.json")), dtype=torch.float32) for k in range(10)]
    pixels = torch.cat(parts).mul(255).round().to(torch.uint8).view(-1, 1, 28, 28)
    label = torch.cat([torch.full((len(part) // 784,), k) for k, part in enumerate(parts)])
    rows = rows_of_split(label, split)
    return Pictures(pixels[rows], {"label": label[rows]}, label_schema(10))


def _values(file: Path) -> list[float]:
    return json.loads(file.read_text())["data"]


def train() -> Pictures:
    """Four fifths of each digit."""
    return mnist("train")


def test() -> Pictures:
    """One fifth of each digit."""
    return mnist("test")
