"""The judge of emoji: signal to noise and detail in closed form, and codecs whose loss is known."""

from __future__ import annotations

import math

import pytest
import torch

from wayfield.core.errors import NonFiniteError
from wayfield.core.path import EDM
from wayfield.data.pictures import Pictures, label_schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.field.nets import build
from wayfield.zoo.judging import emoji


@pytest.fixture
def data(monkeypatch):
    """60 training and 40 test pictures of noise on a colour that is their class."""
    g = torch.Generator().manual_seed(0)
    label = torch.arange(100) % 10
    pixels = torch.randint(0, 60, (100, 3, 64, 64), generator=g) + 15 * label[:, None, None, None]
    part = {"train": slice(0, 60), "test": slice(60, 100)}

    def read(split="all"):
        rows = part[split]
        return Pictures(pixels[rows].to(torch.uint8), {"label": label[rows]}, label_schema(10))

    monkeypatch.setattr(emoji, "emoji", read)


@pytest.fixture(scope="module")
def reader():
    return build({"net": "Detector", "shape": [3, 32, 32], "width": 8, "fine": 0, "deep": 1}).eval()


def codec(decode):
    """Latents are the pictures themselves, three channels of 64 x 64."""
    return LatentCodec(lambda x: x, decode, torch.zeros(3), torch.ones(3), 1.0)


def test_signal_to_noise_in_closed_form():
    x = torch.zeros(2, 3, 4, 4)
    assert emoji.psnr(x, x + 0.2) == pytest.approx(20.0)
    assert emoji.psnr(x, torch.stack([x[0] + 0.2, x[0] + 0.02])) == pytest.approx(30.0)  # 20 and 40 dB
    assert emoji.psnr(x + 0.9, x + 5.0) == pytest.approx(26.0206, abs=1e-3)  # clipped to 1: an error of 0.1


def test_detail_is_the_size_of_the_two_finest_bands():
    fine = torch.ones(1, 3, 64, 64)
    fine[..., 1::2] = -1.0  # stripes one pixel wide: lost at the first halving
    expected = torch.cat([torch.ones(16), torch.zeros(16)])
    torch.testing.assert_close(emoji.detail(0.5 * fine)[0], 0.5 * expected)
    coarse = torch.ones(1, 3, 64, 64).unflatten(3, (16, 4))
    coarse[..., 2:] = -1.0  # two pixels wide: lost at the second
    torch.testing.assert_close(emoji.detail(coarse.flatten(3))[0], expected.flip(0))
    assert not emoji.detail(torch.full((1, 3, 64, 64), 0.3)).any()


def test_an_autoencoder_that_blurs_loses_detail_and_no_layout(data, reader):
    def blurred(z):
        return emoji._doubled(torch.nn.functional.avg_pool2d(z, 2))

    found = emoji.autoencoder(codec(blurred), "emoji-autoencoder", reader=reader)
    values = {key: figure.value for key, figure in found.figures.items()}
    assert values["rfd_layout"] == pytest.approx(0.0, abs=1e-6)
    assert values["rfd_features"] == pytest.approx(0.0, abs=1e-6)  # it reads them at half size
    assert values["rfd_detail"] > 0.1
    error = 60**2 / 12 / 127.5**2 * 0.75  # of uniform noise, three quarters of which are lost
    assert values["psnr"] == pytest.approx(10 * math.log10(4 / error), abs=0.1)
    assert found.tables[0].columns == ("layout", "detail", "features")
    with pytest.raises(NonFiniteError, match="signal to noise"):
        emoji.autoencoder(codec(lambda z: z), "emoji-autoencoder", reader=reader)  # it loses nothing at all


class Painter(torch.nn.Module):
    """Answers with the mean of a class."""

    def forward(self, x, time, cond):
        level = (30 + 15 * cond["label"].clamp(max=9)) / 127.5 - 1
        return level[:, None, None, None].expand_as(x).float()


def test_samples_of_a_class_are_of_its_category_and_smoother_than_real(data, reader):
    model = Denoiser(Painter(), EDM(40.0), "x0", "t", schema=label_schema(10), shape=(3, 64, 64))
    found = emoji.denoiser(model, "emoji-latent", codec=codec(lambda z: 0.5 * z), reader=reader)
    rows = {name: dict(zip(found.tables[0].columns, row, strict=True)) for name, row in found.tables[0].rows.items()}
    assert list(rows) == ["samples", "without guidance", "reconstructed test pictures", "test pictures"]
    assert rows["test pictures"]["detail"] < rows["reconstructed test pictures"]["detail"] < rows["samples"]["detail"]
    assert found.figures["frechet_distance_detail"].value == rows["samples"]["detail"]
    assert found.figures["category_of_real"].value > 0.9
    same = emoji.denoiser(model, "emoji-latent", codec=codec(lambda z: z), reader=reader, most=20)
    assert same.figures["category"].count == 20
    assert same.sheet is not None
    assert len(same.sheet.rows) == 10
