"""Tensors and facts on disk: one safetensors file, written atomically, with a JSON record and a hash of both. Never
pickle.

A reader gets exactly what was written or a `CheckpointError` that says what is wrong: missing, truncated, tampered
with, or of another kind. A writer whose disk is full gets one too, and the old file stays.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from wayfield.core.errors import CheckpointError, MissingExtraError

__all__ = ["digest", "read", "read_json", "write", "write_bytes", "write_json"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able record to `path` in one atomic step: whoever reads sees the old file or the new
    one, whole.
    """
    st = _safetensors()
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    text = json.dumps(record, sort_keys=True)
    write_bytes(path, st.save(plain, {"record": text, "sha256": digest(plain, text)}))


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a file made by `write`. Raises CheckpointError if it is missing, damaged or not ours."""
    st = _safetensors()
    try:
        raw = FilePath(path).read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        tensors = st.load(raw)
        text, sha = header["__metadata__"]["record"], header["__metadata__"]["sha256"]
        record = json.loads(text)
    except FileNotFoundError:
        raise _bad(path, "no such file", "Check the path.") from None
    except Exception as error:
        raise _bad(
            path, f"an unreadable or truncated file ({type(error).__name__})", "Restore it from a copy, or train again."
        ) from error
    if digest(tensors, text) != sha:
        raise _bad(
            path, "contents that do not match their hash", "The file was changed after it was written; do not trust it."
        )
    return tensors, record


def digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors, and over a text."""
    h = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        v = tensors[name].detach().cpu().contiguous()
        h.update(f"{name}|{v.dtype}|{tuple(v.shape)}|".encode())
        raw = v.reshape(-1).view(torch.uint8)
        h.update(ctypes.string_at(raw.data_ptr(), raw.numel()))
    return h.hexdigest()


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically: to a temporary name beside it, flushed to disk, then renamed.

    Raises CheckpointError if there is no room for it; a file that was there before is then untouched.
    """
    try:
        _replace(FilePath(path), data)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        got = f"{error.strerror} ({len(data):,} bytes to write)"
        remedy = "Free some space, then run the same again; a previous version of the file is untouched."
        raise _bad(path, got, remedy, "room for the new file beside the old one") from error


def _replace(path: FilePath, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        FilePath(name).unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically, readable by people."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Any:
    """JSON from a file. Raises CheckpointError if it is missing or broken."""
    try:
        return json.loads(FilePath(path).read_text())
    except FileNotFoundError:
        raise _bad(path, "no such file", "Check the path.", "a JSON file") from None
    except (OSError, ValueError) as error:
        raise _bad(path, f"not readable as JSON ({error})", "Correct it, or restore a copy.", "a JSON file") from error


def _bad(
    path: str | os.PathLike[str], got: str, remedy: str, expected: str = "a file written by wayfield"
) -> CheckpointError:
    return CheckpointError(f"file {os.fspath(path)!r}", got=got, expected=expected, remedy=remedy)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise MissingExtraError(
            "safetensors",
            got="not installed",
            expected="safetensors >= 0.5",
            remedy='Run: pip install "wayfield[zoo]".',
        ) from error
    return safetensors.torch
