"""CIFAR from files of twenty pictures in the authors' format, written byte by byte."""

from __future__ import annotations

import pytest
import torch
from test_decode import noise

from wayfield.core.errors import CheckpointError, UnknownNameError
from wayfield.data.cifar import cifar


def write(file, labels, seed=0):
    """Records of label bytes and 3,072 random ones; returns the pictures (N, 3, 32, 32)."""
    pixels = noise(len(labels), 3, 32, 32, seed=seed)
    heads = [bytes(label) for label in labels]
    file.write_bytes(b"".join(h + bytes(p.flatten().tolist()) for h, p in zip(heads, pixels, strict=True)))
    return pixels


@pytest.fixture
def ten(tmp_path):
    first = write(tmp_path / "data_batch_1.bin", [[k % 10] for k in range(20)], seed=1)
    second = write(tmp_path / "data_batch_2.bin", [[9 - k] for k in range(10)], seed=2)
    test = write(tmp_path / "test_batch.bin", [[3], [4]], seed=3)
    return tmp_path, torch.cat([first, second]), test


@pytest.fixture
def hundred(tmp_path):
    train = write(tmp_path / "train.bin", [[k, 5 * k] for k in range(20)])
    test = write(tmp_path / "test.bin", [[19, 99]], seed=1)
    return tmp_path, train, test


def test_ten_classes(ten):
    folder, train, test = ten
    data = cifar(folder)
    assert torch.equal(data.pixels, train)
    assert data.cond["label"].tolist() == [*(k % 10 for k in range(20)), *range(9, -1, -1)]
    assert (data.shape, data.schema.null, data.classes) == ((3, 32, 32), {"label": 10}, ())
    assert torch.equal(cifar(folder, "test").pixels, test)
    assert cifar(folder, "test").cond["label"].tolist() == [3, 4]
    assert torch.equal(cifar(folder, "all").pixels, torch.cat([train, test]))


def test_one_picture_by_hand(tmp_path):
    """Red 0, green 1, blue 2 everywhere but the end of the first row of green."""
    record = bytearray([7] + [0] * 1024 + [1] * 1024 + [2] * 1024)
    record[1 + 1024 + 31] = 255
    (tmp_path / "test_batch.bin").write_bytes(record)
    x0, cond = cifar(tmp_path, "test").batch([0])
    assert cond["label"].tolist() == [7]
    assert float(x0[0, 1, 0, 31]) == 1.0
    x0[0, 1, 0, 31] = 1 / 127.5 - 1
    assert torch.equal(x0, (torch.arange(3.0) / 127.5 - 1).view(1, 3, 1, 1).expand(1, 3, 32, 32))


def test_hundred_classes(hundred):
    folder, train, test = hundred
    data = cifar(folder)
    assert torch.equal(data.pixels, train)
    assert data.cond["label"].tolist() == [5 * k for k in range(20)]
    assert data.schema.null == {"label": 100}
    coarse = cifar(folder, "all", labels="coarse")
    assert torch.equal(coarse.pixels, torch.cat([train, test]))
    assert coarse.cond["label"].tolist() == [*range(20), 19]
    assert coarse.schema.null == {"label": 20}


def test_names(ten):
    folder = ten[0]
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    assert cifar(folder).classes == tuple("abcdefghij")
    (folder / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match="2 names"):
        cifar(folder)


@pytest.mark.parametrize("size", [0, 3072, 3073 * 2 - 1, 3074])
def test_wrong_sizes_are_refused(tmp_path, size):
    (tmp_path / "test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=f"{size} bytes.*3073"):
        cifar(tmp_path, "test")


@pytest.mark.parametrize(("file", "head"), [("test_batch.bin", [10]), ("test.bin", [0, 100])])
def test_wrong_labels_are_refused(tmp_path, file, head):
    write(tmp_path / file, [head])
    with pytest.raises(CheckpointError, match="label"):
        cifar(tmp_path, "test")


def test_missing_files_are_named(ten, tmp_path):
    folder = ten[0]
    (folder / "test_batch.bin").unlink()
    for split in ("test", "all"):
        with pytest.raises(CheckpointError, match=r"no test_batch\.bin"):
            cifar(folder, split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="none of them"):
        cifar(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no such folder"):
        cifar(tmp_path / "nowhere")


def test_bad_choices_are_refused(ten):
    with pytest.raises(UnknownNameError, match="train"):
        cifar(ten[0], "training")
    with pytest.raises(UnknownNameError, match="coarse"):
        cifar(ten[0], labels="coarsest")
    with pytest.raises(CheckpointError, match="CIFAR-100"):
        cifar(ten[0], labels="coarse")


def test_the_file_is_not_changed_by_who_writes_into_the_pictures(ten):
    folder = ten[0]
    before = (folder / "test_batch.bin").read_bytes()
    cifar(folder, "test").pixels.zero_()
    assert (folder / "test_batch.bin").read_bytes() == before
