"""Pictures made by hand come back byte by byte; the geometry of squares is that of the docstring; damage is named."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from wayfield.core.errors import CheckpointError, MissingExtraError
from wayfield.data.decode import check_header, open_picture, planes, square, to_tensor


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def image(pixels):
    """A Pillow picture of (H, W) or (H, W, C) bytes."""
    return Image.fromarray(pixels.numpy())


def read(file, channels=3):
    return to_tensor(open_picture(file, channels))


@pytest.mark.parametrize("ending", ["png", "bmp", "PNG"])
def test_colour_is_read_exactly(tmp_path, ending):
    pixels = noise(5, 7, 3)
    image(pixels).save(tmp_path / f"a.{ending}")
    assert torch.equal(read(tmp_path / f"a.{ending}"), pixels.permute(2, 0, 1))


def test_grey_is_read_exactly_as_grey_and_as_colour(tmp_path):
    pixels = noise(5, 7)
    image(pixels).save(tmp_path / "a.png")
    assert torch.equal(read(tmp_path / "a.png", 1), pixels[None])
    assert torch.equal(read(tmp_path / "a.png", 3), pixels.expand(3, 5, 7))


def test_colour_becomes_grey_by_luma(tmp_path):
    pixels = noise(16, 16, 3)
    image(pixels).save(tmp_path / "a.png")
    luma = pixels.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)  # ITU-R 601
    assert float((read(tmp_path / "a.png", 1)[0].double() - luma).abs().max()) <= 0.51  # rounding


def test_transparent_parts_are_white(tmp_path):
    pixels = noise(6, 6, 4)
    image(pixels).save(tmp_path / "a.png")
    p = pixels.double().permute(2, 0, 1)
    expected = (p[:3] * p[3] + 255 * (255 - p[3])) / 255
    assert float((read(tmp_path / "a.png").double() - expected).abs().max()) <= 1
    clear = torch.zeros(2, 2, 4, dtype=torch.uint8)
    image(clear).save(tmp_path / "b.png")
    assert torch.equal(read(tmp_path / "b.png"), torch.full((3, 2, 2), 255, dtype=torch.uint8))


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.png", transparency=0)
    assert read(tmp_path / "a.png").tolist() == [[[255, 40]], [[255, 50]], [[255, 60]]]


def test_sixteen_bits_are_divided_not_clipped(tmp_path):
    values = torch.tensor([[0, 255, 256, 32768, 65535]], dtype=torch.int32)
    Image.fromarray(values.to(torch.uint16).numpy()).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", 1).tolist() == [[[0, 0, 1, 128, 255]]]


@pytest.mark.parametrize(("turn", "order"), [(1, "abcd"), (3, "dcba"), (6, "cadb"), (8, "bdac")])
def test_the_orientation_of_the_camera_is_undone(tmp_path, turn, order):
    letters = dict(zip("abcd", (10, 80, 160, 240), strict=True))
    picture = image(torch.tensor([[10, 80], [160, 240]], dtype=torch.uint8))
    exif = picture.getexif()
    exif[0x0112] = turn
    picture.save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.png", 1).flatten().tolist() == [letters[k] for k in order]


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_lossy_formats_come_close(tmp_path, ending):
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / f"a.{ending}", quality=95)
    got = read(tmp_path / f"a.{ending}").double().mean((1, 2))
    assert float((got - torch.tensor([200.0, 100.0, 50.0])).abs().max()) < 3  # one quantisation step of quality 95


def test_four_inks(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg")[:, 0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(4, 4, (0, 4), (0, 4)), (4, 8, (0, 4), (2, 6)), (9, 4, (2, 6), (0, 4)), (4, 7, (0, 4), (1, 5))],
)
def test_the_centred_square_keeps_its_pixels(height, width, rows, columns):
    pixels = noise(height, width, 3)
    got = to_tensor(square(image(pixels), 4))
    assert torch.equal(got, pixels[slice(*rows), slice(*columns)].permute(2, 0, 1))


@pytest.mark.parametrize(("side", "off"), [(8, 21.5), (16, 10.5), (64, 2.5)])
def test_reduction_is_antialiased(side, off):
    """Black and white columns of one pixel become their mean, 127.5; picking pixels would be off by 127.5."""
    stripes = (torch.arange(side) % 2 * 255).to(torch.uint8).expand(side, side).contiguous()
    got = to_tensor(square(image(stripes), 4)).double()
    assert float((got - 127.5).abs().max()) <= off + 1  # measured, at the borders; 1 for another rounding


def test_only_the_square_is_seen_when_resizing():
    pixels = torch.full((8, 16), 100, dtype=torch.uint8)
    pixels[:, :4] = pixels[:, 12:] = 255
    assert to_tensor(square(image(pixels), 4)).unique().tolist() == [100]
    assert to_tensor(square(image(pixels), 16)).unique().tolist() == [100]


def test_planes_are_channel_after_channel():
    assert planes(image(torch.arange(12, dtype=torch.uint8).view(2, 2, 3))) == bytes(
        [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    )


def damaged(folder, kind):
    file = folder / "a.png"
    image(noise(64, 64, 3)).save(file)
    raw = file.read_bytes()
    bit = raw[:200] + bytes([raw[200] ^ 255]) + raw[201:]
    file.write_bytes({"empty": b"", "text": b"<html>not found</html>", "cut": raw[: len(raw) // 2], "bit": bit}[kind])
    return file


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "bit"])
def test_damage_is_refused_by_name(tmp_path, kind):
    with pytest.raises(CheckpointError, match=r"a\.png"):
        open_picture(damaged(tmp_path, kind))


@pytest.mark.parametrize(("kind", "seen"), [("empty", True), ("text", True), ("cut", False), ("bit", False)])
def test_the_header_shows_only_some_damage(tmp_path, kind, seen):
    file = damaged(tmp_path, kind)
    if not seen:
        return check_header(file)
    with pytest.raises(CheckpointError, match=r"a\.png"):
        check_header(file)
    return None


def test_other_formats_are_refused(tmp_path):
    image(noise(4, 4, 3)).save(tmp_path / "a.tif")
    with pytest.raises(CheckpointError, match=r"a\.tif"):
        open_picture(tmp_path / "a.tif")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="FileNotFoundError"):
        open_picture(tmp_path / "a.png")


def test_without_pillow_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r'pip install "wayfield\[data\]"'):
        open_picture(tmp_path / "a.png")
