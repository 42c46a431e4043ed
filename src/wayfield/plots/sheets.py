"""A sheet: small pictures side by side, enlarged without smoothing, with words around them. Drawn with Pillow.

The words sit above groups of columns, left of each row, as figures right of it, and under each picture. What stands
above or under pictures is broken into lines as wide as they are. The font is DejaVu Sans, which matplotlib carries
along, so that a sheet looks the same on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, ShapeError
from wayfield.core.shapes import check_samples
from wayfield.registry import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DARK", "LIGHT", "Labels", "Theme", "sheet"]

Point = tuple[int, int]


@final
@dataclass(frozen=True)
class Theme:
    """Colours of a drawing. paper, text, faint, mark: background, words, less important words and lines, best figures /
    low, high: the ends of the scale on which one-channel pictures are shown.
    """

    paper: str
    text: str
    faint: str
    mark: str
    low: str
    high: str


LIGHT = Theme("#ffffff", "#16202e", "#68737f", "#0072b2", "#edf1f6", "#0e1a30")
DARK = Theme("#10151f", "#e8ecf2", "#8e99a9", "#ffb733", "#1b2331", "#fdf5e4")


@final
@dataclass(frozen=True)
class Labels:
    """Words around a sheet.

    title, about: above all, in large and in small letters / columns: one above each group of columns / rows: (name,
    detail) left of each row, the detail below the name where there are captions / heads, notes: headings and cells of
    the figures right of each row; a cell that begins with "*" is marked / breaks: numbers of the rows that keep a
    distance from the one above / captions: one under each picture; one that begins with "*" is marked.
    """

    title: str = ""
    about: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[tuple[str, str]] = ()
    heads: Sequence[str] = ()
    notes: Sequence[Sequence[str]] = ()
    breaks: Sequence[int] = ()
    captions: Sequence[str] = ()


def sheet(
    pictures: Tensor,
    *,
    columns: int,
    scale: int = 5,
    group: int = 1,
    frame: int = 0,
    font: int | None = None,
    labels: Labels = Labels(),
    theme: Theme = LIGHT,
) -> Image:
    """Pictures in a grid, row by row, enlarged without smoothing.

    pictures: (N, C, H, W) in [-1, 1], C = 1 or 3; values outside are clipped / columns: pictures in a row / scale:
    screen pixels per pixel / group: so many columns stand close together under one column label / frame: pixels of the
    lowest value around each / font: height of the words in screen pixels, by default from that of a picture. Raises
    ShapeError for anything that is not a set of such pictures, RangeError for numbers that make no sheet.
    """
    if columns < 1 or scale < 1 or group < 1 or frame < 0 or (font is not None and font < 1):
        got = f"columns = {columns}, scale = {scale}, group = {group}, frame = {frame}, font = {font}"
        remedy = "Give the number of pictures in a row."
        raise RangeError("sheet", got=got, expected="at least 1, 1, 1, 0 and 1", remedy=remedy)
    pixels = _pixels(pictures, frame, theme)
    n, height, width, _ = pixels.shape
    if labels.captions and len(labels.captions) != n:
        remedy = "Give one per picture, or none."
        raise ShapeError("captions", got=len(labels.captions), expected=n, remedy=remedy)
    layout = _Layout(columns, -(-n // columns), (width * scale, height * scale), group, labels, font)
    pil = require("PIL.Image")
    image = pil.new("RGB", layout.size, theme.paper)
    for k in range(n):
        tile = pil.fromarray(pixels[k].numpy()).resize(layout.cell, pil.Resampling.NEAREST)
        image.paste(tile, layout.corner(k // columns, k % columns))
    _write(image, layout, theme)
    return image


@final
@dataclass(frozen=True)
class _Layout:
    """Where everything goes, in screen pixels. cell: size of a picture / group: columns that stand close together /
    asked: height of the words, None for one that suits the pictures.
    """

    columns: int
    rows: int
    cell: Point
    group: int
    labels: Labels
    asked: int | None

    @cached_property
    def font(self) -> int:
        """The height of the words."""
        return self.asked or max(11, round(0.29 * self.cell[1]))

    @cached_property
    def line(self) -> int:
        """From one line of words to the next."""
        return round(1.3 * self.font)

    @property
    def large(self) -> int:
        """The height of the title."""
        return round(1.35 * self.font)

    @cached_property
    def gap(self) -> int:
        """Between pictures of a group."""
        return max(2, self.cell[0] // 16)

    @cached_property
    def wide(self) -> int:
        """Between groups."""
        return self.gap if self.group == 1 else 4 * self.gap

    @cached_property
    def margin(self) -> int:
        """Around everything."""
        return 2 * self.font if self.labels.rows else 2 * self.gap

    @cached_property
    def left(self) -> int:
        """Where the pictures begin."""
        lengths = [_length(name, self.font, True) for name, _ in self.labels.rows]
        if self.captions:
            lengths += [_length(line, self.font) for lines in self.details for line in lines]
        else:
            lengths = [n + _length(more, self.font) for n, (_, more) in zip(lengths, self.labels.rows, strict=True)]
        return self.margin + (max(lengths) + 2 * self.font if lengths else 0)

    @cached_property
    def details(self) -> list[list[str]]:
        """The lines below the name of each row."""
        return [_lines(more, self.font, self.cell[0]) if self.captions else [] for _, more in self.labels.rows]

    @cached_property
    def top(self) -> int:
        """Where the pictures begin."""
        words, heads = self.labels, bool(self.labels.columns or self.labels.heads)
        more = self.line * max([0, *(len(lines) - 1 for lines in self.heads)])
        return self.margin + self.font * (2 * bool(words.title) + 2 * bool(words.about) + 2 * heads) + more

    @cached_property
    def heads(self) -> list[list[str]]:
        """The lines above each group of columns."""
        width = self.group * (self.cell[0] + self.gap) - self.gap
        return [_lines(text, self.font, width, True) for text in self.labels.columns]

    @cached_property
    def captions(self) -> list[list[str]]:
        """The lines under each picture."""
        width = self.cell[0] - self.gap  # so that neighbours do not read as one line
        return [_lines(text.lstrip("*"), self.font, width) for text in self.labels.captions]

    @cached_property
    def depths(self) -> list[int]:
        """How much room the words under each row take, all rows above included."""
        rows = [self.captions[k * self.columns : (k + 1) * self.columns] for k in range(self.rows)]
        return list(accumulate([self.line * max(map(len, row)) + self.font if row else 0 for row in rows], initial=0))

    @cached_property
    def right(self) -> int:
        """Where the pictures end."""
        return self.corner(0, self.columns - 1)[0] + self.cell[0]

    @cached_property
    def notes(self) -> list[int]:
        """Where each column of figures ends."""
        out, end = [], self.right + self.font // 2
        for k, head in enumerate(self.labels.heads):
            cells = [row[k].lstrip("*") for row in self.labels.notes]
            end += max([_length(head, self.font), *(_length(cell, self.font, True) for cell in cells)]) + self.font
            out.append(end)
        return out

    @cached_property
    def size(self) -> Point:
        """Of the whole sheet."""
        end = self.notes[-1] if self.notes else self.right
        title = self.margin + _length(self.labels.title, self.large, True)
        about = self.margin + _length(self.labels.about, self.font)
        bottom = self.corner(self.rows - 1, 0)[1] + self.cell[1] + self.depths[-1] - self.depths[-2]
        return max(end, title, about) + self.margin, bottom + self.margin

    def corner(self, row: int, column: int) -> Point:
        """The upper left corner of a picture."""
        x = self.left + column * (self.cell[0] + self.gap) + column // self.group * (self.wide - self.gap)
        breaks = sum(k <= row for k in self.labels.breaks)
        return x, self.top + row * (self.cell[1] + self.gap) + breaks * self.font + self.depths[row]


def _write(image: Image, layout: _Layout, theme: Theme) -> None:
    """All the words."""
    labels, draw = layout.labels, require("PIL.ImageDraw").Draw(image)

    def put(x: int, y: int, text: str, fill: str, anchor: str, bold: bool = False, size: int = layout.font) -> None:
        draw.text((x, y), text, fill=fill, anchor=anchor, font=_font(size, bold))

    put(layout.margin, layout.margin, labels.title, theme.text, "lt", True, layout.large)
    put(layout.margin, layout.margin + 2 * layout.font * bool(labels.title), labels.about, theme.faint, "lt")
    head = layout.top - layout.font
    for k, lines in enumerate(layout.heads):
        first, last = (layout.corner(0, k * layout.group + j)[0] for j in (0, layout.group - 1))
        for up, text in enumerate(reversed(lines)):
            put((first + last + layout.cell[0]) // 2, head - up * layout.line, text, theme.faint, "mm", True)
    for end, text in zip(layout.notes, labels.heads, strict=True):
        put(end, head, text, theme.faint, "rm")
    for k, (name, more) in enumerate(labels.rows):
        y = layout.corner(k, 0)[1] + layout.cell[1] // 2
        put(layout.margin, y, name, theme.text, "lm", True)
        for down, text in enumerate(layout.details[k], 1):
            put(layout.margin, y + down * layout.line, text, theme.faint, "lm")
        if not layout.captions:
            put(layout.margin + _length(name + " ", layout.font, True), y, more, theme.faint, "lm")
    for k, row in enumerate(labels.notes):
        y = layout.corner(k, 0)[1] + layout.cell[1] // 2
        for end, cell in zip(layout.notes, row, strict=True):
            best = cell.startswith("*")
            put(end, y, cell.lstrip("*"), theme.mark if best else theme.text, "rm", best)
    for k, lines in enumerate(layout.captions):
        x, y = layout.corner(*divmod(k, layout.columns))
        fill = theme.mark if labels.captions[k].startswith("*") else theme.text
        for down, text in enumerate(lines):
            put(x, y + layout.cell[1] + (layout.font + layout.line) // 2 + down * layout.line, text, fill, "lm")


def _lines(text: str, size: int, width: int, bold: bool = False) -> list[str]:
    """Text in lines of at most that width; a word that is longer stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _length(longer, size, bold) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _pixels(pictures: Tensor, frame: int, theme: Theme) -> Tensor:
    """Bytes (N, H, W, 3). One channel is shown on the theme's scale, three as they are; `frame` pixels of -1 around."""
    x = check_samples("pictures", pictures).detach().cpu().float()
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        remedy = "Pictures have 1 or 3 channels in front."
        raise ShapeError("pictures", got=tuple(x.shape), expected="(N, 1 or 3, H, W)", remedy=remedy)
    x = torch.nn.functional.pad(x, (frame,) * 4, value=-1.0)
    level = ((x.permute(0, 2, 3, 1) + 1) / 2).nan_to_num(0.0).clamp(0, 1)
    if x.shape[1] == 1:
        low, high = (torch.tensor(require("PIL.ImageColor").getrgb(c)) / 255 for c in (theme.low, theme.high))
        level = torch.lerp(low, high, level)
    return (255 * level).round().to(torch.uint8)


@functools.cache
def _font(size: int, bold: bool = False) -> Any:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    folder = f"{require('matplotlib').get_data_path()}/fonts/ttf"
    return require("PIL.ImageFont").truetype(f"{folder}/{name}", size)


def _length(text: str, size: int, bold: bool = False) -> int:
    return round(_font(size, bold).getlength(text)) if text else 0
