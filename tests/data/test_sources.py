"""Where files are searched for, in which order, and that other contents are never read."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace

import pytest

from wayfield.core.errors import CheckpointError, MissingExtraError, UnknownNameError
from wayfield.data import sources
from wayfield.data.sources import SOURCES, Source, find, home

CONTENT = {"a.txt": b"alpha", "many/1.png": b"one", "many/2.png": b"two"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


MANY = sha(f"{sha(b'one')}  1.png\n{sha(b'two')}  2.png\n".encode())  # what `sha256sum *.png | sha256sum` prints
TINY = Source("npm tiny 1.0.0", "MIT", {"a.txt": sha(b"alpha"), "many/*.png": MANY}, 1, npm="tiny@1.0.0")


def fill(folder, content=CONTENT):
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine with an empty home, no WAYFIELD_DATA, and one known set."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WAYFIELD_DATA", raising=False)
    monkeypatch.setitem(SOURCES, "tiny", replace(TINY, folders=(str(tmp_path / "system"),)))
    return tmp_path


def test_order_is_path_then_variable_then_cache_then_the_packages_folder(machine, monkeypatch):
    system, cache = fill(machine / "system"), machine / "home" / ".cache" / "wayfield" / "tiny"
    assert find("tiny") == system
    fill(cache)
    assert find("tiny") == cache
    monkeypatch.setenv("WAYFIELD_DATA", str(machine / "own"))
    assert find("tiny") == cache  # the variable's folder does not have it
    fill(machine / "own" / "tiny")
    assert find("tiny") == machine / "own" / "tiny"
    assert home() == machine / "own"
    assert find("tiny", fill(machine / "given")) == machine / "given"


def test_a_path_that_is_given_is_the_only_one(machine):
    fill(machine / "system")
    with pytest.raises(CheckpointError, match=r"elsewhere.*no such file"):
        find("tiny", machine / "elsewhere")


def test_nowhere_names_package_licence_size_and_command():
    with pytest.raises(MissingExtraError) as caught:
        find("tiny")
    for said in ("npm tiny 1.0.0", "MIT", "1 MB", "make data", "python -m wayfield.data.get", "npm pack tiny@1.0.0"):
        assert said in str(caught.value)


def test_commands_of_the_other_registries(monkeypatch):
    monkeypatch.setitem(SOURCES, "tiny", replace(TINY, npm=None, debian="tiny-data"))
    with pytest.raises(MissingExtraError, match="apt-get install tiny-data"):
        find("tiny")
    monkeypatch.setitem(SOURCES, "tiny", replace(TINY, npm=None, module="no_such_package/data"))
    with pytest.raises(MissingExtraError, match=r'pip install "wayfield\[data\]"'):
        find("tiny")


def test_unknown_source():
    with pytest.raises(UnknownNameError, match="emoji"):
        find("emojis")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"alphb", "a.txt"),
        ("a.txt", None, "no such file"),
        ("many/1.png", b"on3", r"many/\*.png"),
        ("many/2.png", None, r"many/\*.png"),
        ("many/3.png", b"three", r"many/\*.png"),
    ],
    ids=["changed", "missing", "one of many changed", "one of many missing", "one too many"],
)
def test_other_contents_are_refused_even_after_a_good_check(machine, name, data, said):
    folder = fill(machine / "given")
    find("tiny", folder)
    if data is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=said):
        find("tiny", folder)
    with pytest.raises(CheckpointError):  # the failure is not remembered as a success
        find("tiny", folder)


def test_what_was_checked_is_not_hashed_again(machine, monkeypatch):
    folder, calls, digest = fill(machine / "given"), [], sources._digest
    monkeypatch.setattr(sources, "_digest", lambda *a: calls.append(a) or digest(*a))
    find("tiny", folder)
    assert len(calls) == 2
    find("tiny", folder)
    assert len(calls) == 2
    fill(folder)  # the same bytes, written again: new times
    find("tiny", folder)
    assert len(calls) == 4


def test_a_stamp_does_not_serve_another_record(machine, monkeypatch):
    folder = fill(machine / "given")
    find("tiny", folder)
    monkeypatch.setitem(SOURCES, "tiny", replace(TINY, files={"a.txt": sha(b"beta"), "many/*.png": MANY}))
    with pytest.raises(CheckpointError, match=r"a\.txt"):
        find("tiny", folder)


def test_a_python_package_is_found_without_import_and_left_as_it_is(machine, monkeypatch):
    package = machine / "site" / "wayfield_tiny_package"
    fill(package / "data")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(machine / "site")
    monkeypatch.setitem(SOURCES, "tiny", replace(TINY, npm=None, module="wayfield_tiny_package/data"))
    assert find("tiny") == package / "data"
    assert "wayfield_tiny_package" not in sys.modules
    assert sorted(p.name for p in (package / "data").iterdir()) == ["a.txt", "many"]


def test_every_source_can_be_had_in_one_way_and_says_its_licence():
    for source in SOURCES.values():
        assert sum(way is not None for way in (source.npm, source.debian, source.module)) == 1
        assert source.licence
        assert source.files
        assert all(len(value) == 64 for value in source.files.values())
