"""Photographs and faces that ship inside scikit-image and scikit-learn: few, real, and always there.

Six colour photographs are enough to restore pictures (deblur, inpaint, enlarge) and to learn their small-scale
statistics, and far too few to learn what photographs are. Crops are placed by addressed noise: crop k of a picture is
the same in any process and however many are asked for, so that a result can name the crop it shows.

    photographs(size, crops) -> (6 crops) pictures (3, size, size), label = which photograph, null 6
    faces("all" | "train" | "test") -> (200 | 160 | 40) pictures (1, 25, 25), label 0 face or 1 not, null 2

Corner of crop k of photograph j:  floor(u (H - size + 1)), floor(v (W - size + 1)),  u, v uniform at (seed, k, j).

Reference for the faces: Huang et al. 2007, Labeled Faces in the Wild (a sample of it, cut out and made grey).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, unknown_name
from wayfield.core.noise import uniforms
from wayfield.data.dataset import InMemory
from wayfield.data.decode import open_picture, to_tensor
from wayfield.data.pictures import Pictures, label_schema, rows_of_split
from wayfield.data.sources import find

__all__ = ["FACE_CLASSES", "PHOTOGRAPHS", "faces", "photograph", "photographs"]

_FILES = {
    "astronaut": ("scikit-image", "astronaut.png"),
    "cat": ("scikit-image", "chelsea.png"),
    "coffee": ("scikit-image", "coffee.png"),
    "rocket": ("scikit-image", "rocket.jpg"),
    "temple": ("scikit-learn", "china.jpg"),
    "flower": ("scikit-learn", "flower.jpg"),
}
PHOTOGRAPHS = tuple(_FILES)
"""Names of the photographs, in the order of their labels."""

FACE_CLASSES = ("face", "not a face")
"""Names of the labels 0 and 1 of `faces`."""


def photographs(
    size: int = 64, crops: int = 64, *, names: Sequence[str] = PHOTOGRAPHS, shrink: int = 1, seed: int = 0
) -> Pictures:
    """Random square crops, those of one photograph after those of another.

    size: side of a crop in pixels / crops: of each photograph / names: which of `PHOTOGRAPHS`, say four for training
    and two for testing / shrink, seed: as in `photograph` and in the module. Raises UnknownNameError, RangeError for a
    crop larger than a photograph, and what `photograph` raises.
    """
    if size < 1 or crops < 1 or not names:
        got = f"size {size}, crops {crops}, {len(names)} names"
        raise RangeError("crops of photographs", got=got, expected="at least 1 of each", remedy="Ask for some.")
    pixels, label = [], []
    for name in names:
        whole = _read(name, shrink)
        height, width = whole.shape[1] - size + 1, whole.shape[2] - size + 1
        if min(height, width) < 1:
            remedy = f"Take a smaller size, or shrink less than {shrink}."
            raise RangeError("size", got=size, expected=f"<= {min(whole.shape[1:])} for {name!r}", remedy=remedy)
        picture = PHOTOGRAPHS.index(name)
        rows = (uniforms(seed, crops, picture, 0) * height).long().tolist()
        columns = (uniforms(seed, crops, picture, 1) * width).long().tolist()
        pixels += [whole[:, r : r + size, c : c + size] for r, c in zip(rows, columns, strict=True)]
        label += [picture] * crops
    return Pictures(torch.stack(pixels), {"label": torch.tensor(label)}, label_schema(len(PHOTOGRAPHS)), PHOTOGRAPHS)


def photograph(name: str, shrink: int = 1) -> Tensor:
    """A whole photograph, (3, H, W) float32 in [-1, 1]. shrink: integer factor; each pixel is the mean of a square.

    Raises UnknownNameError, RangeError, MissingExtraError without the package, CheckpointError for another file.
    """
    return _read(name, shrink).float() / 127.5 - 1


def faces(split: str = "all", path: str | os.PathLike[str] | None = None) -> InMemory:
    """100 faces and 100 other cut-outs. split: "all", "train" or "test" / path: the folder with lfw_subset.npy.

    Raises UnknownNameError for another split, MissingExtraError without scikit-image, CheckpointError for another file.
    """
    label = torch.arange(200) // 100
    rows = rows_of_split(label, split)
    folder = find("scikit-image", path)
    import numpy as np

    values = torch.from_numpy(np.load(folder / "lfw_subset.npy", allow_pickle=False))
    x = values[:, None].float() * 2 - 1
    return InMemory(x[rows], {"label": label[rows]}, label_schema(2))


def _read(name: str, shrink: int) -> Tensor:
    if name not in _FILES:
        raise unknown_name("photograph", name, _FILES)
    source, file = _FILES[name]
    picture = open_picture(Path(find(source)) / file)
    if not 1 <= shrink <= min(picture.size):
        raise RangeError("shrink", got=shrink, expected=f"1..{min(picture.size)}", remedy="1 keeps every pixel.")
    return to_tensor(picture.reduce(shrink) if shrink > 1 else picture)
