"""A cache holds exactly the bytes it was given, and is refused when it, its record or its source are others."""

from __future__ import annotations

import json
import os

import pytest
import torch

from wayfield.core.errors import CheckpointError
from wayfield.data.cache import Facts, open_cache

FACTS = Facts("digest of the list", (1, 2, 2))
NAMES = ("a", "b", "c")


def decode(name: str) -> bytes:
    return bytes(ord(name) + k for k in range(4))


def damaged(name: str) -> bytes:
    if name == "b":
        raise CheckpointError("picture 'b'", got="damage", expected="none", remedy="Repair it.")
    return decode(name)


def make(path, **changes):
    return open_cache(path, **{"facts": FACTS, "names": NAMES, "decode": decode} | changes)


def fail(name: str) -> bytes:
    raise AssertionError(f"{name} is decoded again")


def test_the_bytes_are_those_given_and_nothing_else(tmp_path):
    pixels, skipped = make(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"abcdbcdecdef"
    assert pixels.tolist() == [[[[ord(name), ord(name) + 1], [ord(name) + 2, ord(name) + 3]]] for name in NAMES]
    assert (pixels.dtype, skipped) == (torch.uint8, ())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "c.json"]


def test_it_is_made_once(tmp_path):
    first, _ = make(tmp_path / "deep" / "c")
    assert torch.equal(make(tmp_path / "deep" / "c", decode=fail)[0], first)


def test_what_is_skipped_is_remembered(tmp_path):
    with pytest.raises(CheckpointError, match="'b'"):
        make(tmp_path / "c", decode=damaged)
    assert list(tmp_path.iterdir()) == []
    pixels, skipped = make(tmp_path / "c", decode=damaged, skip=True)
    assert (pixels.shape, skipped) == ((2, 1, 2, 2), ("b",))
    assert make(tmp_path / "c", decode=fail, skip=True)[1] == ("b",)
    with pytest.raises(CheckpointError, match="damaged"):
        make(tmp_path / "c", decode=fail)


def test_an_interrupted_writing_leaves_nothing(tmp_path):
    def interrupted(name: str) -> bytes:
        if name == "c":
            raise KeyboardInterrupt
        return decode(name)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "c", decode=interrupted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"facts": Facts("another", (1, 2, 2))}, "3 other files"),
        ({"facts": Facts(FACTS.list, (1, 4, 4))}, r"shape \[1, 2, 2\]"),
    ],
)
def test_a_cache_of_something_else_is_refused(tmp_path, change, said):
    make(tmp_path / "c")
    with pytest.raises(CheckpointError, match=said):
        make(tmp_path / "c", decode=fail, **change)


def test_changed_bytes_are_refused(tmp_path):
    make(tmp_path / "c")
    with (tmp_path / "c").open("r+b") as file:
        file.write(b"A")
    os.utime(tmp_path / "c", ns=(0, 1))
    with pytest.raises(CheckpointError, match="SHA-256"):
        make(tmp_path / "c", decode=fail)


def test_a_copy_is_hashed_once_and_accepted(tmp_path):
    make(tmp_path / "c")
    os.utime(tmp_path / "c", ns=(0, 1))
    make(tmp_path / "c", decode=fail)
    assert json.loads((tmp_path / "c.json").read_text())["mtime_ns"] == 1


@pytest.mark.parametrize("size", [None, 0, 8, 16])
def test_a_cache_of_another_length_is_refused(tmp_path, size):
    make(tmp_path / "c")
    if size is None:
        (tmp_path / "c").unlink()
    else:
        (tmp_path / "c").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match="12 bytes"):
        make(tmp_path / "c", decode=fail)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "other"}'])
def test_a_record_of_another_kind_is_refused(tmp_path, text):
    make(tmp_path / "c")
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CheckpointError):
        make(tmp_path / "c", decode=fail)


def test_a_file_of_the_users_is_not_overwritten(tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(CheckpointError, match="without its record"):
        make(tmp_path / "c")
    assert (tmp_path / "c").read_text() == "mine"
