"""Sheets and plots: sizes, pixels and the same bytes for the same drawing."""

import io

import pytest
import torch
from PIL import Image

from wayfield import plots
from wayfield.core.errors import RangeError, ShapeError


def opened(data):
    return Image.open(io.BytesIO(data))


def test_a_sheet_shows_every_pixel_where_it_belongs():
    x = torch.tensor([[-1.0, 1.0], [0.0, 5.0]]).reshape(1, 1, 2, 2).repeat(4, 1, 1, 1)
    x[3] = -1
    image = plots.sheet(x, columns=3, scale=4, theme=plots.LIGHT)
    gap, margin = 2, 4
    assert image.size == (3 * 8 + 2 * gap + 2 * margin, 2 * 8 + gap + 2 * margin)
    low, high = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (plots.LIGHT.low, plots.LIGHT.high))
    assert image.getpixel((margin, margin)) == low
    assert image.getpixel((margin + 7, margin)) == high
    assert image.getpixel((margin + 7, margin + 7)) == high
    assert image.getpixel((margin + 7, margin + 8 + gap)) == low
    assert image.getpixel((margin + 8 + gap, margin + 8 + gap)) == (255, 255, 255)


def test_colours_are_shown_as_they_are():
    x = torch.tensor([1.0, -1.0, 0.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    image = plots.sheet(x, columns=1, scale=1)
    assert image.getpixel((5, 5)) == (255, 0, 128)


def test_a_frame_and_words_make_room():
    x = torch.zeros(4, 1, 8, 8)
    plain = plots.sheet(x, columns=2)
    framed = plots.sheet(x, columns=2, frame=1)
    assert framed.size > plain.size
    labels = plots.Labels("title", "about", "ab", [("a", "1"), ("b", "2")], ["head"], [["*1"], ["2"]], [1])
    assert plots.sheet(x, columns=2, labels=labels).size > framed.size


def test_the_same_sheet_has_the_same_bytes(tmp_path):
    x = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)
    one = plots.save_sheet(tmp_path / "a.png", x, columns=2, rows=["first", "second"])
    two = plots.save_sheet(tmp_path / "b.png", x, columns=2, rows=["first", "second"])
    assert one.read_bytes() == two.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("shape", [(4, 2, 8, 8), (4, 8, 8), (0, 1, 8, 8)])
def test_what_is_no_set_of_pictures_is_refused(shape):
    with pytest.raises(ShapeError):
        plots.sheet(torch.zeros(shape), columns=2)


def ink(image, box):
    """The colours in a box but the paper's, most frequent first."""
    colours = sorted(image.crop(box).getcolors(100_000), reverse=True)
    return [colour for _, colour in colours if colour != (255, 255, 255)]


def test_captions_stand_under_their_pictures_and_never_leave_them():
    x = torch.zeros(4, 3, 32, 32)
    captions = ["a", "*words that need several lines under a picture of this width", "b", ""]
    image = plots.sheet(x, columns=2, scale=4, font=15, labels=plots.Labels(captions=captions))
    gap, margin, line = 8, 16, round(1.3 * 15)
    lines = (image.size[1] - 2 * margin - 2 * 128 - gap - 2 * 15) / line
    assert lines == int(lines) >= 4  # one in the second row, at least three in the first
    mark = tuple(int(plots.LIGHT.mark[i : i + 2], 16) for i in (1, 3, 5))
    text = tuple(int(plots.LIGHT.text[i : i + 2], 16) for i in (1, 3, 5))
    below, middle = margin + 128, margin + 128 + gap // 2
    assert ink(image, (margin, below, middle, below + line))[0] == text
    assert mark in ink(image, (margin + 128 + gap, below, margin + 2 * 128 + gap, below + 3 * line))
    assert ink(image, (middle, below, margin + 128 + gap, below + 3 * line)) == []
    assert ink(image, (margin + 2 * 128 + gap, 0, *image.size)) == []


def test_words_above_groups_are_broken_into_lines():
    x = torch.zeros(4, 3, 32, 32)
    one, two = (
        plots.sheet(x, columns=2, scale=4, font=15, labels=plots.Labels(columns=["short", words]))
        for words in ("short", "a small red ring left of a large blue square")
    )
    assert one.size[0] == two.size[0]
    assert two.size[1] - one.size[1] in (2 * 20, 3 * 20, 4 * 20)
    low = two.size[1] - one.size[1]
    assert ink(two, (0, low, *two.size)) != []
    assert two.crop((16, low + 16, 140, two.size[1])).tobytes() == one.crop((16, 16, 140, one.size[1])).tobytes()


def test_details_of_rows_stand_below_the_names_where_there_are_captions():
    x = torch.zeros(2, 3, 32, 32)
    words = {"rows": [("w = 3", "without something red in the picture")] * 2}
    beside = plots.sheet(x, columns=1, scale=4, font=15, labels=plots.Labels(**words))
    below = plots.sheet(x, columns=1, scale=4, font=15, labels=plots.Labels(**words, captions=["a", "b"]))
    assert below.size[0] < beside.size[0] - 100


def test_captions_that_are_not_one_per_picture_are_refused():
    with pytest.raises(ShapeError):
        plots.sheet(torch.zeros(4, 1, 8, 8), columns=2, labels=plots.Labels(captions=["one"]))


@pytest.mark.parametrize(
    "numbers", [{"columns": 0}, {"columns": 2, "scale": 0}, {"columns": 2, "frame": -1}, {"columns": 2, "font": 0}]
)
def test_numbers_that_make_no_sheet_are_refused(numbers):
    with pytest.raises(RangeError):
        plots.sheet(torch.zeros(4, 1, 8, 8), **numbers)


def test_curves(tmp_path):
    curves = {"one": [(10.0, 0.5), (20.0, 0.3)], "two": [(10.0, 0.7), (100.0, 0.2)]}
    path = plots.save_curves(tmp_path / "c.png", curves, x="cost", y="distance", log_x=True, log_y=True, floor=0.1)
    assert opened(path.read_bytes()).size == (1024, 672)
    again = plots.save_curves(tmp_path / "d.png", curves, x="cost", y="distance", log_x=True, log_y=True, floor=0.1)
    assert again.read_bytes() == path.read_bytes()


def test_plots_of_the_report_in_both_themes():
    curves = {"one": [(10.0, 0.5), (20.0, 0.3)]}
    real = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 10
    for theme in (plots.LIGHT, plots.DARK):
        quality = plots.quality_plot(curves, 0.2, [(1.0, 0.3, 97.0), (2.0, 0.4, 99.0)], theme)
        paths = plots.paths_plot(real, {"a": torch.zeros(3, 2, 2), "b": torch.ones(4, 2, 2)}, [3, 4], theme)
        for figure in (quality, paths):
            image = opened(plots.png(figure)).convert("RGB")
            assert min(image.size) > 300
            paper = tuple(int(theme.paper[i : i + 2], 16) for i in (1, 3, 5))
            assert image.getpixel((0, 0)) == paper


def test_matplotlib_is_left_alone():
    import subprocess
    import sys

    code = (
        "import sys; from wayfield import plots; plots.png(plots.curves_plot({'a': [(1, 2), (2, 3)]}, x='x', y='y'));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
