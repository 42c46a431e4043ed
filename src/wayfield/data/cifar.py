"""CIFAR-10 and CIFAR-100 from your own copy, in the authors' binary version; the pickled one is never opened.

    CIFAR-10    data_batch_1.bin .. data_batch_5.bin, test_batch.bin     records of 1 label byte + 3,072
    CIFAR-100   train.bin, test.bin                                      records of 2 label bytes (coarse, fine) + 3,072

A record's 3,072 bytes are red, green, blue planes of 32 x 32, row by row: x (3, 32, 32), label 0..K - 1, null K. All
files that are there are used, so the number of samples tells whether any is missing.

Reference: Krizhevsky 2009, Learning multiple layers of features from tiny images.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from wayfield.core.errors import CheckpointError, unknown_name
from wayfield.data.pictures import Pictures, check_split, label_schema

__all__ = ["cifar"]

_PIXELS = 3 * 32 * 32
_PATTERNS = {
    10: {"train": ("data_batch_*.bin",), "test": ("test_batch.bin",)},
    100: {"train": ("train.bin",), "test": ("test.bin",)},
}
_NAMES = {10: "batches.meta.txt", 100: "fine_label_names.txt", 20: "coarse_label_names.txt"}


def cifar(path: str | os.PathLike[str], split: str = "train", labels: str = "fine") -> Pictures:
    """One split as a dataset, its `classes` from the names file if that is there.

    path: folder with the files / split: "train", "test" or "all" / labels: "fine", or the 20 "coarse" of CIFAR-100.
    A single file is mapped, several are joined in memory (154 MB for CIFAR-10). Raises UnknownNameError, and
    CheckpointError for missing files, or files of another size or with other labels than the format has.
    """
    check_split(split)
    if labels not in ("fine", "coarse"):
        raise unknown_name("labels", labels, ("fine", "coarse"))
    folder = Path(path)
    kind, found = _files(folder, split)
    if kind == 10 and labels == "coarse":
        raise _bad(folder, "CIFAR-10", "CIFAR-100, for coarse labels", 'Take labels="fine".')
    heads = 2 if kind == 100 else 1
    classes = 20 if labels == "coarse" else kind
    parts = [_records(file, heads, 0 if labels == "coarse" else heads - 1, classes) for file in found]
    records = parts[0] if len(parts) == 1 else torch.cat(parts)
    label = records[:, 0 if labels == "coarse" else heads - 1].long()
    pixels = records[:, heads:].unflatten(1, (3, 32, 32))
    return Pictures(pixels, {"label": label}, label_schema(classes), _names(folder, classes))


def _files(folder: Path, split: str) -> tuple[int, list[Path]]:
    """10 or 100, and the files of a split in their order."""
    for kind, patterns in _PATTERNS.items():
        there = {part: [f for p in patterns[part] for f in sorted(folder.glob(p))] for part in patterns}
        if any(there.values()):
            wanted = ("train", "test") if split == "all" else (split,)
            for part in wanted:
                if not there[part]:
                    raise _bad(folder, f"no {patterns[part][0]}", f"the {part} part of CIFAR-{kind}", "Add it.")
            return kind, [file for part in wanted for file in there[part]]
    expected = "data_batch_1.bin ... test_batch.bin (CIFAR-10) or train.bin, test.bin (CIFAR-100)"
    got = "none of them" if folder.is_dir() else "no such folder"
    raise _bad(folder, got, expected, "Unpack the binary version, not the Python or Matlab one.")


def _records(file: Path, heads: int, column: int, classes: int) -> Tensor:
    """The mapped records of one file, (N, heads + 3072) uint8."""
    size, record = file.stat().st_size, heads + _PIXELS
    if size == 0 or size % record:
        raise _bad(file, f"{size} bytes", f"a multiple of {record}", "It is truncated, or not the binary version.")
    out = torch.from_file(os.fspath(file), shared=False, size=size, dtype=torch.uint8).view(-1, record)
    largest = int(out[:, column].max())
    if largest >= classes:
        raise _bad(file, f"a label {largest}", f"0..{classes - 1}", "It is not the binary version of this set.")
    return out


def _names(folder: Path, classes: int) -> tuple[str, ...]:
    """One name per line, without the blank ones at the end; none if there is no such file."""
    file = folder / _NAMES[classes]
    names = tuple(file.read_text().split()) if file.exists() else ()
    if names and len(names) != classes:
        raise _bad(file, f"{len(names)} names", f"{classes}, or no such file", "Restore or remove it.")
    return names


def _bad(path: Path, got: str, expected: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"CIFAR at {os.fspath(path)!r}", got=got, expected=expected, remedy=remedy)
