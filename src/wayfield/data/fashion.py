"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28, ten classes; as small as MNIST and harder.

    fashion_mnist("all" | "train" | "test") -> (70,000 | 60,000 | 10,000) pictures (1, 28, 28), label 0..9, null 10

The split is the authors' own; "all" is train, then test. Each class has 6,000 + 1,000 pictures.

Reference: Xiao, Rasul & Vollgraf 2017, Fashion-MNIST: a novel image dataset for benchmarking machine learning.
"""

from __future__ import annotations

import gzip
import os

import torch
from torch import Tensor

from wayfield.data.pictures import Pictures, check_split, label_schema
from wayfield.data.sources import find

__all__ = ["FASHION_CLASSES", "fashion_mnist", "test", "train"]

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the labels 0..9."""

_PARTS = {"all": ("train", "t10k"), "train": ("train",), "test": ("t10k",)}


def fashion_mnist(split: str = "all", path: str | os.PathLike[str] | None = None) -> Pictures:
    """The pictures as a dataset. split: "all", "train" or "test" / path: the folder with the four files, see `find`.

    Raises UnknownNameError for another split, MissingExtraError if the files are nowhere, CheckpointError if they are
    not the right ones.
    """
    check_split(split)
    folder = find("fashion-mnist", path)

    def read(kind: str, header: int) -> Tensor:
        raw = [gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes())[header:] for part in _PARTS[split]]
        return torch.frombuffer(bytearray(b"".join(raw)), dtype=torch.uint8)

    labels = read("labels-idx1", header=8).long()
    return Pictures(
        read("images-idx3", header=16).view(-1, 1, 28, 28), {"label": labels}, label_schema(10), FASHION_CLASSES
    )


def train() -> Pictures:
    """The 60,000 training pictures."""
    return fashion_mnist("train")


def test() -> Pictures:
    """The 10,000 test pictures."""
    return fashion_mnist("test")
