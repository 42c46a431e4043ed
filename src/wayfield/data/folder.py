"""A folder of image files as a dataset: any number of pictures, in bounded memory, in an order that never changes.

Every file with an ending in `decode.FORMATS`, in sub-folders too, is one sample; hidden ones are left out. Samples are
ordered by relative path, so that sample k is the same on every machine. Each is turned upright, put on white where it
is transparent, cut to its largest centred square and resized: x (C, size, size) in [-1, 1]. With labels="folders" the
first sub-folder of a file is its class: label = rank of that name among the sorted ones, null = number of classes.

When files are found to be damaged:

    without a cache   the header of each is read at construction, a few seconds for 100,000; a batch decodes its own
                      rows, so a file that is broken further in is refused by name when it is reached
    with a cache      the first construction decodes every file once into one memory-mapped file (`data.cache`); what
                      is damaged is refused, or left out and named in `skipped`, before training starts

Decoding costs more than most small networks, every epoch again: use a cache for all but a look.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import CheckpointError, RangeError, unknown_name
from wayfield.data.cache import Facts, open_cache
from wayfield.data.dataset import Dataset, rows_of
from wayfield.data.decode import FORMATS, check_header, open_picture, planes, square
from wayfield.data.pictures import label_schema
from wayfield.field.cond import Cond, Schema

__all__ = ["ImageFolder"]


@final
@dataclass(frozen=True, eq=False)
class ImageFolder(Dataset):
    """The image files below a folder. See the module for order, geometry and damaged files.

    path: the folder / size: side of a sample in pixels / channels: 3 for colour, 1 for grey / labels: "folders", or
    None for no conditions / corrupt: "raise", or "skip" to leave damaged files out / cache: a file to decode into, or
    None / progress: a bar while that is done. Then `files` are the relative paths of the samples, `classes` the names
    of the labels, and `skipped` what was left out.

    Raises RangeError, UnknownNameError for settings; CheckpointError for a folder without pictures, a picture outside
    any class, a damaged file, or a cache of other pictures; MissingExtraError without Pillow.
    """

    path: str | os.PathLike[str]
    _: KW_ONLY
    size: int
    channels: int = 3
    labels: str | None = "folders"
    corrupt: str = "raise"
    cache: str | os.PathLike[str] | None = None
    progress: bool = False
    files: tuple[str, ...] = field(init=False, repr=False)
    classes: tuple[str, ...] = field(init=False, repr=False)
    skipped: tuple[str, ...] = field(init=False)
    schema: Schema = field(init=False, repr=False)
    _label: Tensor | None = field(init=False, repr=False)
    _pixels: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check_settings()
        names, digest = _listed(self.path)
        classes, pixels = self._classes(names), None
        if self.cache is None:
            skipped = self._damaged(names)
        else:
            facts = Facts(digest, (self.channels, self.size, self.size))
            pixels, skipped = open_cache(
                self.cache, facts, names, self._decode, skip=self.corrupt == "skip", progress=self.progress
            )
        left_out = set(skipped)
        names = tuple(name for name in names if name not in left_out)
        if not names:
            raise _bad(self.path, f"{len(skipped)} damaged files", "one that can be read", "Repair them.")
        number = {name: k for k, name in enumerate(classes)}
        label = torch.tensor([number[name.split("/")[0]] for name in names]) if classes else None
        schema = label_schema(len(classes)) if classes else Schema()
        made = {"files": names, "classes": classes, "skipped": skipped, "schema": schema}
        for key, value in (made | {"_label": label, "_pixels": pixels}).items():
            object.__setattr__(self, key, value)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, size, size)."""
        return (self.channels, self.size, self.size)

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """See `Dataset.batch`. Memory is that of the batch. Raises DTypeError, RangeError, CheckpointError for a file
        that is damaged or gone.
        """
        rows = rows_of(indices, len(self))
        cond = {} if self._label is None else {"label": self._label[rows]}
        if self._pixels is not None:
            return self._pixels[rows].float() / 127.5 - 1, cond
        raw = bytearray(b"".join(self._decode(self.files[k]) for k in rows.tolist()))
        pixels = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        return pixels.view(-1, *self.shape).float() / 127.5 - 1, cond

    def _decode(self, name: str) -> bytes:
        return planes(square(open_picture(Path(self.path, name), self.channels), self.size))

    def _check_settings(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise RangeError("size", got=repr(self.size), expected="an integer >= 1", remedy="Pixels of a side.")
        if self.channels not in (1, 3):
            raise RangeError("channels", got=self.channels, expected="3 or 1", remedy="3 is colour, 1 is grey.")
        if self.labels not in ("folders", None):
            raise unknown_name("labels", str(self.labels), ("folders", "None"))
        if self.corrupt not in ("raise", "skip"):
            raise unknown_name("corrupt", self.corrupt, ("raise", "skip"))

    def _classes(self, names: Sequence[str]) -> tuple[str, ...]:
        """Sorted names of the first sub-folders; none without labels."""
        if self.labels is None:
            return ()
        outside = [name for name in names if "/" not in name]
        if outside:
            got = f"{len(outside)} in none, such as {outside[0]!r}"
            raise _bad(self.path, got, "each picture in the sub-folder of its class", "Move them, or set labels=None.")
        return tuple(sorted({name.split("/")[0] for name in names}))

    def _damaged(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names of the files whose header is damaged. Raises CheckpointError for the first, unless they are skipped."""
        out = []
        for name in names:
            try:
                check_header(Path(self.path, name))
            except CheckpointError:
                if self.corrupt == "raise":
                    raise
                out.append(name)
        return tuple(out)


def _listed(path: str | os.PathLike[str]) -> tuple[tuple[str, ...], str]:
    """Relative paths of the pictures below a folder, sorted, and a digest of their paths, sizes and times."""
    root = os.fspath(path)
    if not os.path.isdir(root):
        got = "a file" if os.path.exists(root) else "no such folder"
        raise _bad(root, got, "a folder of pictures", "Check the path.")
    found = sorted(_scan(root, ""))
    if not found:
        raise _bad(root, "no pictures", f"files that end in {', '.join(FORMATS)}", "Check the path.")
    h = hashlib.sha256()
    for name, size, time in found:
        h.update(os.fsencode(f"{name}\n{size} {time}\n"))
    return tuple(name for name, _, _ in found), h.hexdigest()


def _scan(root: str, below: str) -> Iterator[tuple[str, int, int]]:
    """Path relative to the root, size and time of each picture, in no order."""
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):  # a link to a folder may lead in a circle
                yield from _scan(root, f"{below}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in FORMATS and entry.is_file():
                stat = entry.stat()
                yield f"{below}{entry.name}", stat.st_size, stat.st_mtime_ns


def _bad(path: str | os.PathLike[str], got: str, expected: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"folder {os.fspath(path)!r}", got=got, expected=expected, remedy=remedy)
