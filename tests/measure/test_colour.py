import colorsys
import math

import pytest
import torch

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, ShapeError
from wayfield.measure import contrast, overshoot, saturation


def pictures(b, c=3, h=5, w=4, seed=0):
    return 2 * torch.rand(b, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def flat(r, g, b):
    """One plain picture of a colour given in [0, 1]."""
    return (2 * torch.tensor([r, g, b]).double() - 1).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)


def test_saturation_agrees_with_colorsys():
    x = pictures(3)
    pixels = ((x + 1) / 2).permute(0, 2, 3, 1).flatten(1, 2).tolist()
    expected = [sum(colorsys.rgb_to_hsv(*p)[1] for p in picture) / len(picture) for picture in pixels]
    assert saturation(x).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((1, 0, 0), 1),
        ((1, 0.5, 0.5), 0.5),
        ((0.2, 0.2, 0.2), 0),
        ((0, 0, 0), 0),
        ((1, 1, 1), 0),
        ((0.4, 0.1, 0.2), 0.75),
    ],
)
def test_saturation_by_hand(colour, expected):
    assert float(saturation(flat(*colour))) == pytest.approx(expected, abs=1e-7)


def test_grey_pictures():
    grey = pictures(4, c=1)
    assert torch.equal(saturation(grey), torch.zeros(4, dtype=torch.float64))
    assert torch.equal(saturation(grey.expand(4, 3, 5, 4)), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(contrast(grey), contrast(grey.expand(4, 3, 5, 4)), rtol=1e-12, atol=1e-12)


def test_contrast_by_hand():
    half = torch.ones(1, 1, 4, 4)
    half[..., :2] = -1
    assert float(contrast(half)) == 0.5
    assert float(contrast(flat(0.3, 0.6, 0.1))) == pytest.approx(0, abs=1e-12)
    red_black = torch.cat([flat(1, 0, 0), flat(0, 0, 0)], dim=3)
    assert float(contrast(red_black)) == pytest.approx(0.299 / 2, rel=1e-12)
    x = pictures(1)
    r, g, b = (x[0] + 1) / 2
    luma = (0.299 * r + 0.587 * g + 0.114 * b).flatten()
    expected = math.sqrt(float((luma - luma.mean()).square().mean()))
    assert float(contrast(x)) == pytest.approx(expected, rel=1e-12)


def test_contrast_scales_about_the_middle():
    x = pictures(3)
    torch.testing.assert_close(contrast(0.4 * x), 0.4 * contrast(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(contrast(-x), contrast(x), rtol=1e-12, atol=1e-12)


def test_overshoot():
    x = torch.tensor([[0.0, 1.0, -1.0, 1.04], [1.06, -2.0, 0.5, 0.0]])
    assert overshoot(x).tolist() == [0, 0.5]
    assert overshoot(x, margin=0).tolist() == [0.25, 0.5]
    assert overshoot(x.reshape(2, 1, 2, 2)).tolist() == [0, 0.5]
    with pytest.raises(RangeError, match="margin"):
        overshoot(x, margin=-0.1)
    with pytest.raises(NonFiniteError):
        overshoot(x / 0)


@pytest.mark.parametrize("measure", [saturation, contrast])
def test_each_picture_alone(measure):
    x = pictures(5)
    together = measure(x)
    assert together.shape == (5,)
    assert together.dtype == torch.float64
    torch.testing.assert_close(together, torch.cat([measure(p[None]) for p in x]), rtol=1e-13, atol=0)
    torch.testing.assert_close(measure(x.flip(0)), together.flip(0), rtol=1e-13, atol=0)
    torch.testing.assert_close(measure(x.half()), together, rtol=0, atol=2e-3)


@pytest.mark.parametrize("measure", [saturation, contrast])
def test_bad_input(measure):
    x = pictures(2)
    with pytest.raises(RangeError, match=r"127\.5"):
        measure((x + 1) * 127.5)
    with pytest.raises(RangeError, match="clamp"):
        measure(1.01 * x / x.abs().max())
    measure(1.0005 * x / x.abs().max())
    with pytest.raises(ShapeError):
        measure(x.permute(0, 2, 3, 1))
    with pytest.raises(ShapeError):
        measure(x[0])
    with pytest.raises(DTypeError):
        measure((255 * x).to(torch.uint8))
    with pytest.raises(NonFiniteError):
        measure(x * math.nan)
