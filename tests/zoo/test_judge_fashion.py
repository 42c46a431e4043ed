"""The judge of Fashion-MNIST: oracles in place of networks give figures known in advance."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from wayfield.core.errors import MissingExtraError
from wayfield.core.path import Straight
from wayfield.data.fashion import fashion_mnist
from wayfield.data.pictures import Pictures, label_schema
from wayfield.field.denoiser import Denoiser
from wayfield.zoo.judging import fashion


class Painter(nn.Module):
    """Says that every picture of class k is grey everywhere, as bright as k; without a class, or one wrong, it is 9."""

    def __init__(self, wrong: int = 10) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x, time, cond):
        label = cond["label"]
        level = torch.where(label >= min(self.wrong, 10), 9, label) / 10
        return level[:, None, None, None].expand_as(x)


class Reader(nn.Module):
    """Reads the brightness of a picture as its class; its features are two means, a little apart."""

    def forward(self, x):
        return -(x.mean((1, 2, 3))[:, None] * 10 - torch.arange(10)).abs()

    def features(self, x):
        return torch.stack([x[..., :14].mean((1, 2, 3)), x[..., 14:].mean((1, 2, 3))], 1)


@pytest.fixture
def data(monkeypatch):
    """200 training and 100 test pictures that are one brightness each, in ten classes."""
    level = torch.cat([torch.arange(200) // 20, torch.arange(100) // 10])
    pixels = ((level / 10 + 1) * 127.5).round().to(torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28).clone()
    pixels[200:, :, 0, 0] += 100  # what is new about test pictures
    part = {"train": slice(0, 200), "test": slice(200, 300)}

    def read(split):
        return Pictures(pixels[part[split]], {"label": level[part[split]]}, label_schema(10))

    monkeypatch.setattr(fashion, "fashion_mnist", read)
    return SimpleNamespace(pixels=pixels, level=level)


def model(wrong=10):
    return Denoiser(Painter(wrong), Straight(), "x0", "t", schema=label_schema(10), shape=(1, 28, 28))


def test_a_model_that_paints_the_class_has_the_figures_of_real_pictures(data):
    found = fashion.denoiser(model(), "fashion", judge=Reader(), samples=40, choosing=20)
    values = {key: figure.value for key, figure in found.figures.items()}
    assert values["accuracy"] == values["accuracy_unguided"] == values["accuracy_of_judge"] == 1.0
    assert found.settings["w"] == 1.0
    assert values["frechet_distance"] == pytest.approx(values["frechet_distance_of_real"], abs=2e-3)
    assert values["nearest_training_picture_ratio"] < 0.15  # it has learned the training pictures by heart
    assert found.figures["accuracy"].count == 40
    assert found.sheet is not None
    assert [round(float(x.mean() * 10)) for x in found.sheet.pictures[::4]] == list(range(10))  # a row for each class


def test_the_best_scale_is_chosen_by_other_samples(data):
    found = fashion.denoiser(model(wrong=5), "fashion", judge=Reader(), samples=40, choosing=20)
    assert found.figures["accuracy_unguided"].value == 0.6  # classes 0..4, and 9
    tried = found.settings["accuracy_while_choosing_w"]
    assert tried["1"] == 0.6
    assert found.settings["w"] == min((float(w) for w, v in tried.items() if v == max(tried.values())))
    assert fashion._SELECTED != fashion._REPORTED


def test_a_classifier_is_judged_on_the_test_pictures(data):
    found = fashion.classifier(Reader(), "fashion-judge").figures["test_accuracy"]
    assert (found.value, found.count) == (1.0, 100)


def test_the_real_data_fit():
    try:
        data = fashion_mnist("test")
    except MissingExtraError as error:
        pytest.skip(f"run `make data`: {error}")
    found = fashion.classifier(Reader(), "fashion-judge").figures["test_accuracy"]
    assert found.count == len(data) == 10_000
    assert 0.02 < found.value < 0.3  # brightness says little
