"""Emoji: names, categories and pictures belong together, white ground, variants stay on their side of the split."""

from __future__ import annotations

import json

import pytest
import torch
from real_sets import need

from wayfield.core.errors import CheckpointError, UnknownNameError
from wayfield.data.emoji import EMOJI_CLASSES, emoji, emoji_names
from wayfield.data.sources import find

COUNTS = [85, 159, 5, 270, 131, 264, 386, 169, 224, 218]


@pytest.fixture(scope="module")
def everything():
    need("emoji")
    return emoji()


def test_facts(everything):
    assert (len(everything), everything.shape) == (1911, (3, 64, 64))
    assert everything.cond["label"].bincount().tolist() == COUNTS
    assert everything.schema.null == {"label": 10}
    assert everything.classes == EMOJI_CLASSES == tuple(sorted(EMOJI_CLASSES))


@pytest.mark.parametrize(
    ("name", "category", "channel"),
    [("red apple", "Food & Drink", 0), ("green heart", "Smileys & Emotion", 1), ("blue heart", "Smileys & Emotion", 2)],
)
def test_a_picture_looks_like_its_name(everything, name, category, channel):
    k = emoji_names().index(name)
    assert EMOJI_CLASSES[everything.cond["label"][k]] == category
    mean = everything.pixels[k].float().mean((1, 2))
    assert int(mean.argmax()) == channel
    assert float(mean.max() - mean.min()) > 30  # a third of the picture is of that colour
    assert everything.pixels[k][:, 0, 0].tolist() == [255, 255, 255]


def test_every_picture_is_composited_on_white(everything):
    from PIL import Image

    folder = find("emoji")
    row = next(row for row in json.loads((folder / "emoji.json").read_text()) if row["name"] == "CAT FACE")
    with Image.open(folder / "img" / "google" / "64" / row["image"]) as opened:
        rgba = torch.frombuffer(bytearray(opened.convert("RGBA").tobytes()), dtype=torch.uint8).view(64, 64, 4).double()
    alpha = rgba[..., 3:] / 255
    expected = (rgba[..., :3] * alpha + 255 * (1 - alpha)).permute(2, 0, 1)
    assert 0 < float(alpha.mean()) < 1
    got = everything.pixels[emoji_names().index("cat face")].double()
    assert float((got - expected).abs().max()) <= 1


def test_split_is_disjoint_and_complete():
    need("emoji")
    names = {split: emoji_names(split) for split in ("all", "train", "test")}
    assert [len(names[split]) for split in ("all", "train", "test")] == [1911, 1533, 378]
    assert sorted(names["train"] + names["test"]) == sorted(names["all"])
    assert sum(count // 5 for count in COUNTS) == 378


def test_skin_tones_stay_with_their_emoji():
    need("emoji")
    plain = {split: set(emoji_names(split)) for split in ("train", "test")}
    toned = {split: emoji_names(split, skin_tones=True) for split in ("train", "test")}
    assert len(toned["train"]) + len(toned["test"]) == 3786
    for split, names in toned.items():
        variants = [name for name in names if "skin tone" in name and ": " in name]
        assert {name.rsplit(": ", 1)[0] for name in variants} <= plain[split]
    k = toned["train"].index("waving hand sign: dark skin tone")
    assert toned["train"][k - 5 : k - 3] == ("waving hand sign", "waving hand sign: light skin tone")


def test_pictures_with_skin_tones_follow_the_names():
    need("emoji")
    names, data = emoji_names("test", skin_tones=True), emoji("test", skin_tones=True)
    assert len(names) == len(data) == 728
    plain, k = emoji("test"), emoji_names("test")
    for name in ("man running", "keycap 2"):
        assert torch.equal(data.pixels[names.index(name)], plain.pixels[k.index(name)])
    light, dark = (
        data.pixels[names.index(f"man running: {tone} skin tone")].float().mean() for tone in ("light", "dark")
    )
    assert light > dark


def test_unknown_split_and_folder(tmp_path):
    need("emoji")
    with pytest.raises(UnknownNameError, match="train"):
        emoji("training")
    with pytest.raises(CheckpointError, match=r"emoji\.json"):
        emoji(path=tmp_path)
