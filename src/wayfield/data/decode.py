"""From the file of a picture to its bytes: one way of reading for every loader, so that equal files give equal pixels.

    open_picture(file, channels)   first frame, turned as the camera says, transparent parts on white, RGB or grey
    square(image, size)            the largest centred square, then LANCZOS (with antialiasing) to size x size
    planes(image), to_tensor       (C, H, W) uint8

Pictures that are square and of the right size already keep their pixels exactly. PNG, BMP and GIF decode to the same
bytes everywhere; JPEG and WebP may differ by a level between versions of their decoders.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wayfield.core.errors import CheckpointError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "check_header", "open_picture", "planes", "square", "to_tensor"]

FORMATS = {
    ".bmp": "BMP",
    ".gif": "GIF",
    ".jpeg": "JPEG",
    ".jpg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
}
"""Endings of files that are read, in lower case, and the names of their formats in Pillow."""


def check_header(file: str | os.PathLike[str]) -> None:
    """Refuse a file that does not begin like a picture. Reads the header only. Raises CheckpointError."""
    image = _pillow("Image")
    try:
        with image.open(file, formats=_FORMATS):
            pass
    except Exception as error:  # Pillow lets through whatever a damaged file provokes
        raise _damaged(file, error) from error


def open_picture(file: str | os.PathLike[str], channels: int = 3) -> Image:
    """The first frame of a file, mode RGB for 3 channels or L for 1.

    Raises CheckpointError, with the name of the file, if it cannot be decoded to the end; MissingExtraError without
    Pillow.
    """
    image, ops = _pillow("Image"), _pillow("ImageOps")
    try:
        with image.open(file, formats=_FORMATS) as opened:
            upright = ops.exif_transpose(opened)
            if upright.mode.startswith("I"):  # 16 bits: converting would clip at 255 where it should divide
                upright = upright.convert("I").point(lambda value: value * (1 / 256)).convert("L")
            over = upright.convert("RGBA")
        return image.alpha_composite(image.new("RGBA", over.size, "white"), over).convert(
            "RGB" if channels == 3 else "L"
        )
    except Exception as error:
        raise _damaged(file, error) from error


def square(picture: Image, size: int) -> Image:
    """The largest centred square, resized to `size` x `size`; an odd pixel is lost on the right or below."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    middle = picture.crop((left, top, left + side, top + side))  # first: with a box, pixels around it would mix in
    return middle if side == size else middle.resize((size, size), _pillow("Image").Resampling.LANCZOS)


def planes(picture: Image) -> bytes:
    """The C * H * W bytes of a picture, channel after channel."""
    return b"".join(band.tobytes() for band in picture.split())


def to_tensor(picture: Image) -> Tensor:
    """(C, H, W) uint8."""
    width, height = picture.size
    return torch.frombuffer(bytearray(planes(picture)), dtype=torch.uint8).view(-1, height, width)


_FORMATS = sorted(set(FORMATS.values()))


def _damaged(file: str | os.PathLike[str], error: Exception) -> CheckpointError:
    return CheckpointError(
        f"picture {os.fspath(file)!r}",
        got=f"{type(error).__name__}: {error}",
        expected=f"a whole {', '.join(_FORMATS)} file",
        remedy='Repair or remove it; corrupt="skip" with a cache leaves such files out and names them.',
    )


def _pillow(module: str) -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise MissingExtraError(
            "reading pictures", got="no Pillow", expected="pillow >= 10.1", remedy='Run: pip install "wayfield[data]".'
        ) from error
    return getattr(PIL, module)
