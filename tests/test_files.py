import errno
import io
import json
import os
import shutil
import subprocess
import tempfile

import pytest
import torch

from wayfield import files
from wayfield.core.errors import CheckpointError, MissingExtraError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.tensor(3), "d": torch.zeros(2, dtype=torch.bfloat16)}


def test_round_trip(tmp_path):
    path = tmp_path / "deep" / "x.safetensors"
    files.write(path, TENSORS, {"step": 3, "name": "ü"})
    tensors, record = files.read(path)
    assert record == {"step": 3, "name": "ü"}
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in TENSORS.items())
    assert os.listdir(path.parent) == ["x.safetensors"]


def test_views_and_transposes_are_written_as_they_look(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    files.write(tmp_path / "x", {"t": base.T, "row": base[1], "whole": base}, {})
    tensors, _ = files.read(tmp_path / "x")
    assert torch.equal(tensors["t"], base.T)
    assert torch.equal(tensors["row"], base[1])


@pytest.mark.parametrize("cut", [0, 4, 40, -1, -20])
def test_truncated(tmp_path, cut):
    path = tmp_path / "x"
    files.write(path, TENSORS, {"step": 3})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="truncated"):
        files.read(path)


def test_every_flipped_byte_of_the_contents_is_noticed(tmp_path):
    path = tmp_path / "x"
    files.write(path, TENSORS, {"step": 3})
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    for k in range(start, len(raw)):
        path.write_bytes(raw[:k] + bytes([raw[k] ^ 1]) + raw[k + 1 :])
        with pytest.raises(CheckpointError, match="do not match their hash"):
            files.read(path)


def test_a_changed_record_is_noticed(tmp_path):
    path = tmp_path / "x"
    files.write(path, TENSORS, {"step": 3})
    path.write_bytes(path.read_bytes().replace(b'\\"step\\": 3', b'\\"step\\": 4'))
    with pytest.raises(CheckpointError, match="do not match their hash"):
        files.read(path)


def test_foreign_files(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    (tmp_path / "text").write_text("hello")
    for name in ("foreign", "text"):
        with pytest.raises(CheckpointError, match="unreadable"):
            files.read(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        files.read(tmp_path / "missing")


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class FullDisk(io.FileIO):
    """A file on a disk with room for ten more bytes."""

    def write(self, data):
        super().write(bytes(data)[:10])
        full()


@pytest.mark.parametrize("stage", ["create", "write", "flush"])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, stage):
    path = tmp_path / "x"
    files.write(path, TENSORS, {"step": 1})
    before = path.read_bytes()
    target, name, fails = {
        "create": (tempfile, "mkstemp", full),
        "write": (os, "fdopen", lambda fd, mode: FullDisk(fd, mode)),
        "flush": (os, "fsync", full),
    }[stage]
    monkeypatch.setattr(target, name, lambda *args, **_: fails(*args))
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        files.write(path, TENSORS, {"step": 2})
    assert str(path) in str(caught.value)
    assert "Free some space" in caught.value.remedy
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x"]


def test_other_failures_of_a_write_keep_their_names(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError):
        files.write_bytes(tmp_path / "x", b"1")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path):
    """A folder with room for 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    if not done or done.returncode:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_really_is_full(tiny_disk):
    path = tiny_disk / "x"
    files.write_bytes(path, bytes(40_000))
    with pytest.raises(CheckpointError, match="No space"):
        files.write_bytes(path, bytes(range(200)) * 200)
    assert path.read_bytes() == bytes(40_000)
    assert os.listdir(tiny_disk) == ["x"]
    path.unlink()
    files.write_bytes(path, bytes(range(200)) * 200)


def test_json(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": [1, 2]})
    assert files.read_json(tmp_path / "x.json") == {"a": [1, 2]}
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, 2]}
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        files.read_json(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="no such file"):
        files.read_json(tmp_path / "y.json")


def test_missing_extra(monkeypatch, tmp_path):
    import builtins

    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingExtraError, match=r"wayfield\[zoo\]"):
        files.write(tmp_path / "x", {}, {})


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "x"
    files.write(path, TENSORS, {"step": 1})
    before, real, seen = path.read_bytes(), os.replace, []

    def replace(source, target):
        seen.append(path.read_bytes() == before and files.read(source)[1] == {"step": 2})
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    files.write(path, TENSORS, {"step": 2})
    assert seen == [True]
    assert files.read(path)[1] == {"step": 2}
