"""Decoded pictures on disk: bytes that are mapped into memory, so that a set may be larger than it.

    FILE        N x C x H x W bytes, nothing else
    FILE.json   {"format", "version", "list", "shape": [N, C, H, W], "skipped", "sha256", "mtime_ns"}

Both are written under other names and renamed, the record last: without it there is no cache. On opening, the list of
the source files (their digest), the shape and the length must be the ones recorded. The bytes are hashed when the time
of the file is not the recorded one, as after copying or tampering; otherwise that is not repeated, since it takes a
second per gigabyte. A cache that does not fit is refused, never remade: it may be the work of hours.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wayfield import files
from wayfield.core.errors import CheckpointError
from wayfield.progress import track

__all__ = ["Facts", "open_cache"]

_FORMAT, _VERSION = "wayfield.pictures", 1
_KEYS = {"format", "version", "list", "shape", "skipped", "sha256", "mtime_ns"}


class Facts(NamedTuple):
    """What a cache must be of: the digest of its source files, and the shape (C, H, W) of one picture."""

    list: str
    shape: tuple[int, int, int]


def open_cache(
    path: str | os.PathLike[str],
    facts: Facts,
    names: Sequence[str],
    decode: Callable[[str], bytes],
    *,
    skip: bool = False,
    progress: bool = False,
) -> tuple[Tensor, tuple[str, ...]]:
    """The mapped pictures (N, C, H, W) uint8 and the names that were left out; decoded now if there is no cache yet.

    names: of the pictures, in order / decode: a name to C H W bytes, or CheckpointError / skip: leave out what cannot
    be decoded / progress: a bar while decoding. Raises CheckpointError for a cache that does not fit or was changed,
    and what `decode` raises.
    """
    file, record_file = Path(path), Path(f"{os.fspath(path)}.json")
    if not record_file.exists():
        if file.exists():
            remedy = "Choose another name; if it is a cache whose writing was interrupted, remove it."
            raise _bad(file, "a file without its record", "no file, or a cache", remedy)
        files.write_json(record_file, _write(file, facts, names, decode, skip, progress))
    record = files.read_json(record_file)
    _check(file, record, facts, len(names))
    if record["skipped"] and not skip:
        got = f"one without {len(record['skipped'])} damaged pictures, such as {record['skipped'][0]!r}"
        raise _bad(file, got, "all pictures", 'Allow it with corrupt="skip", or repair them and remove the cache.')
    if file.stat().st_mtime_ns != record["mtime_ns"]:
        _check_bytes(file, record, record_file)
    pixels = torch.from_file(os.fspath(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
    return pixels.view(record["shape"]), tuple(record["skipped"])


def _write(
    file: Path, facts: Facts, names: Sequence[str], decode: Callable[[str], bytes], skip: bool, progress: bool
) -> dict[str, Any]:
    """Decode every picture into the file, one at a time, and return the record."""
    file.parent.mkdir(parents=True, exist_ok=True)
    h, skipped = hashlib.sha256(), []
    handle, scratch = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as out:
            for name in track(names, "decoding pictures", on=progress):
                try:
                    raw = decode(name)
                except CheckpointError:
                    if not skip:
                        raise
                    skipped.append(name)
                    continue
                h.update(raw)
                out.write(raw)
            out.flush()
            os.fsync(out.fileno())
        if len(skipped) == len(names):
            raise _bad(file, f"{len(names)} damaged pictures", "one that can be read", "Repair them.")
        os.chmod(scratch, 0o644)
        time = os.stat(scratch).st_mtime_ns
        os.replace(scratch, file)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    made = {"format": _FORMAT, "version": _VERSION, "list": facts.list}
    shape = [len(names) - len(skipped), *facts.shape]
    return made | {"shape": shape, "skipped": skipped, "sha256": h.hexdigest(), "mtime_ns": time}


def _check(file: Path, record: Any, facts: Facts, count: int) -> None:
    again = f"Remove it and {file.name}.json to decode again, or use another name."
    if (
        not isinstance(record, dict)
        or _KEYS - set(record)
        or record["format"] != _FORMAT
        or record["version"] != _VERSION
    ):
        raise _bad(file, "a record of another kind", f"{_FORMAT}, version {_VERSION}", again)
    if record["shape"][1:] != list(facts.shape):
        raise _bad(file, f"pictures of shape {record['shape'][1:]}", f"shape {list(facts.shape)}", again)
    if record["list"] != facts.list:
        made = record["shape"][0] + len(record["skipped"])
        raise _bad(file, f"a cache of {made} other files", f"one of the {count} that the folder has now", again)
    size, wanted = file.stat().st_size if file.exists() else None, math.prod(record["shape"])
    if size != wanted:
        raise _bad(file, "no such file" if size is None else f"{size} bytes", f"{wanted} bytes", again)


def _check_bytes(file: Path, record: dict[str, Any], record_file: Path) -> None:
    """Hash the bytes, and remember the time of the file if they are right."""
    with file.open("rb") as opened:
        got = hashlib.file_digest(opened, "sha256").hexdigest()
    if got != record["sha256"]:
        remedy = f"It was changed after it was written. Remove it and {record_file.name} to decode again."
        raise _bad(file, f"SHA-256 {got[:16]}...", f"{record['sha256'][:16]}...", remedy)
    if os.access(record_file.parent, os.W_OK):
        files.write_json(record_file, record | {"mtime_ns": file.stat().st_mtime_ns})


def _bad(file: Path, got: str, expected: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"cache {os.fspath(file)!r}", got=got, expected=expected, remedy=remedy)
