"""What to train on somebody's own pictures when nothing else is said: a folder is looked at, and a config comes out.

The choices are those of a small UNet that learns v on the cosine path in minutes to hours on a processor. They are
written down as an ordinary config, to be read, edited and repeated.

    size       the short side of the middle picture to the nearest multiple of 8, from 8 to 64
    channels   1 if all pictures are grey, else 3
    labels     the first sub-folders, if every picture lies in one and there are at least two
    net        UNet on a grid of at most 16 x 16 (32 x 32 on a GPU): larger pictures are patched; channels by their
               number; or a DiT of at most 8 x 8 patches
    levels     ln(sigma/alpha) ~ N(-0.4, 1.4), shifted by size / 32 for larger pictures, whose pixels are more alike
    optimizer  Muon, with a long fall of the rate
    steps      2,000, or 4,000 from 1,000 pictures on, or 8,000 from 10,000 on
    precision  bf16 where the processor multiplies such matrices itself, else fp32

References: Hoogeboom et al. 2023, arXiv 2301.11093 (levels shifted by size).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from statistics import median_low
from typing import Any, final

import torch

from wayfield.core.errors import RangeError, UnsupportedError, unknown_name
from wayfield.data.dataset import Dataset
from wayfield.data.folder import ImageFolder

__all__ = ["NETS", "Survey", "default_config", "folder_spec", "survey"]

NETS = ("dit", "unet")
_LOOKED_AT = 64
_SMALLEST, _LARGEST, _MULTIPLE = 8, 64, 8


@final
@dataclass(frozen=True)
class Survey:
    """What a folder holds. pictures: how many / size: a side that suits them / channels: 1 or 3 / classes: first
    sub-folders, 0 if not every picture is in one.
    """

    pictures: int
    size: int
    channels: int
    classes: int


def survey(folder: str | os.PathLike[str], *, corrupt: str = "raise") -> Survey:
    """Look at the pictures below a folder: their number, and size and colour of up to 64 of them.

    corrupt: "raise", or "skip" for damaged files. Raises as `data.folder.ImageFolder`.
    """
    names = ImageFolder(folder, size=_SMALLEST, labels=None, corrupt=corrupt).files
    from PIL import Image

    sides, grey = [], True
    for name in names[:: -(-len(names) // _LOOKED_AT)]:
        with Image.open(FilePath(folder, name)) as picture:
            sides.append(min(picture.size))
            grey = grey and picture.mode in ("1", "L", "LA", "I", "I;16")
    size = _MULTIPLE * int(median_low(sides) / _MULTIPLE + 0.5)
    inside = all("/" in name for name in names)
    classes = len({name.split("/")[0] for name in names}) if inside else 0
    return Survey(len(names), min(max(size, _SMALLEST), _LARGEST), 1 if grey else 3, classes)


def folder_spec(
    folder: str | os.PathLike[str],
    found: Survey,
    *,
    size: int | None = None,
    labels: bool = True,
    corrupt: str = "raise",
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """The `data` of a config for a folder that was looked at.

    size: side of a sample, a multiple of 4, None for the survey's / labels: use sub-folders as classes if there are at
    least two / corrupt, cache: as of `data.folder.ImageFolder`. Raises RangeError.
    """
    if size is not None and (size < 4 or size % 4):
        raise RangeError("size", got=size, expected="a multiple of 4", remedy=f"Try {found.size}.")
    return {
        "folder": os.fspath(folder),
        "size": size or found.size,
        "channels": found.channels,
        "labels": "folders" if labels and found.classes > 1 else None,
        "corrupt": corrupt,
        "cache": None if cache is None else os.fspath(cache),
    }


def default_config(
    data: str | Mapping[str, Any], dataset: Dataset, *, net: str = "unet", labels: bool = True, gpu: bool = False
) -> dict[str, Any]:
    """A config for a dataset of pictures, as `train.run` takes it.

    data: what loads the dataset / net: "unet" or "dit" / labels: learn its classes, if it has any / gpu: for one,
    networks are finer. Raises UnsupportedError for data that are no pictures, UnknownNameError for another net.
    """
    if net not in NETS:
        raise unknown_name("net", net, NETS)
    if len(dataset.shape) != 3 or not {"label"} >= set(dataset.schema.fields):
        got = f"samples {dataset.shape}, conditions {sorted(dataset.schema.fields)}"
        remedy = "Write a config, see the page on training."
        raise UnsupportedError("data without a config", got=got, expected="pictures, at most labelled", remedy=remedy)
    number, side = len(dataset), max(dataset.shape[1:])
    levels: dict[str, Any] = {"levels": "LogNormal", "mean": -0.4, "std": 1.4}
    if side > 32:
        levels = {"levels": "Shifted", "base": levels, "shift": side / 32}
    learned = labels and "label" in dataset.schema.fields
    return {
        "data": data,
        "net": _unet(dataset.shape, number, gpu) if net == "unet" else _dit(dataset.shape),
        "path": "Cosine",
        "kind": "v",
        "time": "log_snr",
        "conditions": ["label"] if learned else [],
        "train": {
            "steps": 2000 if number < 1000 else 4000 if number < 10_000 else 8000,
            "batch": 32 if number < 1000 else 64,
            "optimizer": "muon",
            "lr": 1e-3,
            "muon_lr": 0.02,
            "warmup": 50,
            "decay": 0.6,
            "weight": "v",
            "levels": levels,
            "drop": 0.1 if learned else 0.0,
            "ema": {"ema": "HalfLifeEMA"},
            "precision": "bf16" if _fast_bf16(gpu) else "fp32",
            "seed": 0,
            "log_every": 25,
            "save_every": 250,
            "sample_every": 500,
        },
    }


def _unet(shape: tuple[int, ...], number: int, gpu: bool) -> dict[str, Any]:
    patch, (high, wide) = _patch(shape, 32 if gpu else 16), shape[1:]
    high, wide, levels = high // patch, wide // patch, 1
    while levels < 3 and high % 2 == wide % 2 == 0 and max(high, wide) > 8:
        high, wide, levels = high // 2, wide // 2, levels + 1
    base = 32 if number < 1000 else 48 if number < 10_000 else 64
    channels = [base, *[2 * base] * (levels - 1)]
    attention = [levels - 1] if max(high, wide) <= 16 else []
    return {"net": "UNet", "channels": channels, "blocks": 2, "attention": attention, "patch": patch, "width": 4 * base}


def _dit(shape: tuple[int, ...]) -> dict[str, Any]:
    return {"net": "DiT", "patch": _patch(shape, 8), "width": 192, "depth": 6, "heads": 4}


def _patch(shape: tuple[int, ...], places: int) -> int:
    """The smallest patch that tiles pictures of this shape with at most so many places along a side; 1 if none does."""
    high, wide = shape[1:]
    fits = (p for p in range(1, min(high, wide) + 1) if high % p == wide % p == 0 and max(high, wide) <= places * p)
    return next(fits, 1)


def _fast_bf16(gpu: bool) -> bool:
    """Whether matrices in bfloat16 are multiplied by the hardware."""
    if gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    facts = FilePath("/proc/cpuinfo")
    return facts.exists() and "amx_bf16" in facts.read_text()
