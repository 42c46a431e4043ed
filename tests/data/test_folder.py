"""A folder of hand-made pictures comes back exactly, in order, with its classes; damage and misuse are named."""

from __future__ import annotations

import os
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from test_decode import image, noise

from wayfield.core.errors import CheckpointError, DTypeError, MissingExtraError, RangeError, UnknownNameError
from wayfield.data.folder import ImageFolder

FILES = ("b/2.png", "b/10.png", "a/x/1.PNG", "a/0.bmp", "c/5.png")
ORDER = ("a/0.bmp", "a/x/1.PNG", "b/10.png", "b/2.png", "c/5.png")


def fill(folder: Path, files=FILES, size=8) -> dict[str, torch.Tensor]:
    """Write one random picture per name and return its bytes (3, size, size)."""
    out = {}
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = noise(size, size, 3, seed=sum(map(ord, name)))
        image(pixels).save(folder / name)
        out[name] = pixels.permute(2, 0, 1)
    return out


def as_bytes(x0: torch.Tensor) -> torch.Tensor:
    return ((x0 + 1) * 127.5).round().to(torch.uint8)


@pytest.mark.parametrize("cached", [False, True])
def test_pictures_come_back_exactly_and_in_order(tmp_path, cached):
    made = fill(tmp_path / "set")
    data = ImageFolder(tmp_path / "set", size=8, cache=tmp_path / "set.cache" if cached else None)
    assert data.files == ORDER
    assert (len(data), data.shape, data.skipped) == (5, (3, 8, 8), ())
    x0, cond = data.batch([4, 0, 2, 0])
    assert x0.dtype == torch.float32
    assert torch.equal(as_bytes(x0), torch.stack([made[ORDER[k]] for k in (4, 0, 2, 0)]))
    assert (float(x0.min()) >= -1, float(x0.max()) <= 1) == (True, True)
    assert cond["label"].tolist() == [2, 0, 1, 0]


def test_classes_are_the_first_folders_sorted(tmp_path):
    fill(tmp_path)
    data = ImageFolder(tmp_path, size=8)
    assert data.classes == ("a", "b", "c")
    assert data.schema.null == {"label": 3}
    assert data.batch(range(5))[1]["label"].tolist() == [0, 0, 1, 1, 2]


def test_without_labels(tmp_path):
    fill(tmp_path, ("1.png", "a/2.png"))
    data = ImageFolder(tmp_path, size=8, labels=None)
    assert (data.files, data.classes, dict(data.schema.fields)) == (("1.png", "a/2.png"), (), {})
    assert data.batch([0])[1] == {}
    with pytest.raises(CheckpointError, match=r"1 in none, such as '1\.png'.*labels=None"):
        ImageFolder(tmp_path, size=8)


def test_what_is_hidden_or_no_picture_is_not_a_sample(tmp_path):
    fill(tmp_path, ("a/1.png", "a/.2.png", ".b/3.png"))
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert ImageFolder(tmp_path, size=8).files == ("a/1.png",)


def test_pictures_are_cut_to_the_middle_and_resized(tmp_path):
    pixels = torch.full((8, 20), 200, dtype=torch.uint8)
    pixels[:, :6] = pixels[:, 14:] = 0
    (tmp_path / "a").mkdir()
    image(pixels).save(tmp_path / "a" / "wide.png")
    for size in (4, 8, 16):
        x0, _ = ImageFolder(tmp_path, size=size, channels=1).batch([0])
        assert x0.shape == (1, 1, size, size)
        assert as_bytes(x0).unique().tolist() == [200]


@pytest.mark.parametrize("name", ["empty", "text only", "nowhere", "file"])
def test_folders_without_pictures_are_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text only").mkdir()
    (tmp_path / "text only" / "a.txt").write_text("a")
    (tmp_path / "file").write_text("a")
    said = {"nowhere": "no such folder", "file": "a file"}.get(name, "no pictures")
    with pytest.raises(CheckpointError, match=f"{name}.*{said}"):
        ImageFolder(tmp_path / name, size=8)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"size": 0}, RangeError),
        ({"size": 8.0}, RangeError),
        ({"channels": 4}, RangeError),
        ({"labels": "folder"}, UnknownNameError),
        ({"corrupt": "ignore"}, UnknownNameError),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, error):
    fill(tmp_path)
    with pytest.raises(error):
        ImageFolder(tmp_path, **{"size": 8} | settings)


@pytest.mark.parametrize(("rows", "error"), [([5], RangeError), ([-1], RangeError), ([0.5], DTypeError)])
def test_bad_indices_are_refused(tmp_path, rows, error):
    fill(tmp_path)
    with pytest.raises(error):
        ImageFolder(tmp_path, size=8).batch(rows)


def test_a_batch_of_nothing(tmp_path):
    fill(tmp_path)
    assert ImageFolder(tmp_path, size=8).batch(torch.tensor([], dtype=torch.int64))[0].shape == (0, 3, 8, 8)


def spoil(folder: Path, *, whole: str, cut: str) -> None:
    """Replace one file by text, and cut another in half."""
    (folder / whole).write_text("not a picture")
    (folder / cut).write_bytes((folder / cut).read_bytes()[:-40])


def test_a_damaged_header_is_refused_at_construction_or_skipped(tmp_path):
    made = fill(tmp_path)
    (tmp_path / "b/10.png").write_text("not a picture")
    with pytest.raises(CheckpointError, match=r"b/10\.png"):
        ImageFolder(tmp_path, size=8)
    data = ImageFolder(tmp_path, size=8, corrupt="skip")
    assert data.skipped == ("b/10.png",)
    assert data.files == tuple(name for name in ORDER if name != "b/10.png")
    x0, cond = data.batch([2])
    assert torch.equal(as_bytes(x0)[0], made["b/2.png"])
    assert cond["label"].tolist() == [1]


def test_a_class_whose_pictures_are_all_skipped_keeps_its_number(tmp_path):
    fill(tmp_path)
    for name in ("b/10.png", "b/2.png"):
        (tmp_path / name).write_text("not a picture")
    data = ImageFolder(tmp_path, size=8, corrupt="skip")
    assert data.classes == ("a", "b", "c")
    assert data.batch(range(3))[1]["label"].tolist() == [0, 0, 2]


def test_deeper_damage_is_named_when_it_is_reached(tmp_path):
    fill(tmp_path)
    spoil(tmp_path, whole="a/0.bmp", cut="b/2.png")
    data = ImageFolder(tmp_path, size=8, corrupt="skip")
    assert data.skipped == ("a/0.bmp",)
    data.batch([0, 1, 3])
    with pytest.raises(CheckpointError, match=r"b/2\.png.*cache"):
        data.batch([2])


def test_a_cache_finds_deeper_damage_before_training(tmp_path):
    made = fill(tmp_path / "set")
    spoil(tmp_path / "set", whole="a/0.bmp", cut="b/2.png")
    with pytest.raises(CheckpointError, match=r"a/0\.bmp"):
        ImageFolder(tmp_path / "set", size=8, cache=tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["set"]  # nothing is left of it
    data = ImageFolder(tmp_path / "set", size=8, cache=tmp_path / "c", corrupt="skip")
    assert data.skipped == ("a/0.bmp", "b/2.png")
    assert torch.equal(as_bytes(data.batch(range(3))[0]), torch.stack([made[name] for name in data.files]))
    with pytest.raises(CheckpointError, match=r"without 2 damaged.*a/0\.bmp"):
        ImageFolder(tmp_path / "set", size=8, cache=tmp_path / "c")


@pytest.mark.parametrize("cached", [False, True])
def test_all_damaged_is_refused(tmp_path, cached):
    fill(tmp_path / "set", ("a/1.png", "a/2.png"))
    for name in ("a/1.png", "a/2.png"):
        (tmp_path / "set" / name).write_text("not a picture")
    with pytest.raises(CheckpointError, match="2 damaged"):
        ImageFolder(tmp_path / "set", size=8, corrupt="skip", cache=tmp_path / "c" if cached else None)


def test_a_cached_folder_is_decoded_once(tmp_path, monkeypatch):
    fill(tmp_path / "set")
    first = ImageFolder(tmp_path / "set", size=8, cache=tmp_path / "c")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)  # whatever decodes now, fails
    again = ImageFolder(tmp_path / "set", size=8, cache=tmp_path / "c")
    assert torch.equal(again.batch(range(5))[0], first.batch(range(5))[0])
    with pytest.raises(MissingExtraError):
        ImageFolder(tmp_path / "set", size=8)


@pytest.mark.parametrize("change", ["added", "removed", "touched", "renamed"])
def test_a_cache_of_a_folder_that_changed_is_refused(tmp_path, change):
    fill(tmp_path / "set")
    ImageFolder(tmp_path / "set", size=8, cache=tmp_path / "c")
    file = tmp_path / "set" / "b" / "2.png"
    if change == "added":
        fill(tmp_path / "set", ("b/3.png",))
    elif change == "removed":
        file.unlink()
    elif change == "touched":
        os.utime(file, ns=(0, 12345))
    else:
        file.rename(file.with_name("3.png"))
    with pytest.raises(CheckpointError, match=r"cache of 5 other files.*Remove it and c\.json"):
        ImageFolder(tmp_path / "set", size=8, cache=tmp_path / "c")


def test_memory_of_a_batch_does_not_depend_on_the_folder(tmp_path):
    """Ten times the pictures, the same peak: what Python allocates in a batch is the bytes of that batch."""
    peaks = {}
    for count in (30, 300):
        fill(tmp_path / str(count), [f"a/{k:03d}.png" for k in range(count)], size=16)
        data = ImageFolder(tmp_path / str(count), size=16)
        data.batch(range(10))  # imports and tables of Pillow
        tracemalloc.start()
        data.batch(range(10))
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[300] < 1.2 * peaks[30]
    assert peaks[300] < 20 * 10 * 768  # the compressed file, its bytes joined and unjoined: a few copies of 10 pictures


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list what is mapped")
def test_a_cache_is_mapped_and_not_read(tmp_path):
    fill(tmp_path / "set")
    data = ImageFolder(tmp_path / "set", size=8, cache=tmp_path / "wayfield-mapped")
    assert "wayfield-mapped" in Path("/proc/self/maps").read_text()
    assert len(data) == 5
