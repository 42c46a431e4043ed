"""Fashion-MNIST: is it the garment asked for, is it as varied as real ones, and is it new?

Classes are read by "fashion-judge", a classifier that guides and trains nothing here; its own accuracy on test pictures
is about the best a model could reach. The guidance scale is the one of {1, 1.5, 2, 3} with the most classes right on
samples of seed 1; figures are of seed 2. Distances are in the judge's features, 64 numbers, to all test pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wayfield.data.fashion import FASHION_CLASSES, fashion_mnist
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import Classifier
from wayfield.zoo import load_classifier
from wayfield.zoo.judging.distances import evenly, features_of, frechet, nearest_ratio
from wayfield.zoo.judging.drawing import SAMPLER, best_scale, draw
from wayfield.zoo.judging.figures import Figure, Judged, Sheet, share

__all__ = ["SCALES", "classifier", "denoiser"]

SCALES = (1.0, 1.5, 2.0, 3.0)
_CLASSES = len(FASHION_CLASSES)
_SELECTED, _REPORTED = 1, 2  # seeds
_CHOOSING, _SAMPLES, _SHEET = 150, 1000, 8


def denoiser(
    model: Denoiser,
    name: str,
    *,
    judge: Classifier | None = None,
    samples: int = _SAMPLES,
    choosing: int = _CHOOSING,
) -> Judged:
    """Accuracy, distances and novelty of samples whose classes are 0, 1, ..., 9, 0, ...

    judge: the classifier, by default "fashion-judge" of the zoo / samples, choosing: numbers of them.
    """
    net = load_classifier("fashion-judge") if judge is None else judge
    w, tried = best_scale(SCALES, lambda w: _accuracy(net, draw(model, _asked(choosing), w=w, seed=_SELECTED)).value)
    free = draw(model, _asked(samples), seed=_REPORTED)
    x = free if w == 1 else draw(model, _asked(samples), w=w, seed=_REPORTED)
    train, test = fashion_mnist("train"), fashion_mnist("test")
    held_out, cond = evenly(test, len(test))
    reference, known = features_of(net.features, held_out), evenly(train, len(train))[0]
    what = f"Fréchet distance, in features of fashion-judge, to the {len(test):,} test pictures"
    figures = {
        "accuracy": _accuracy(net, x),
        "accuracy_unguided": _accuracy(net, free),
        "accuracy_of_judge": _right(net, held_out, cond["label"]),
        "frechet_distance": Figure(frechet(reference, features_of(net.features, x)), f"{what} of {samples:,} samples"),
        "frechet_distance_unguided": Figure(
            frechet(reference, features_of(net.features, free)), f"{what} of {samples:,} samples without guidance"
        ),
        "frechet_distance_of_real": Figure(
            frechet(reference, features_of(net.features, evenly(train, samples)[0])),
            f"{what} of {samples:,} training pictures",
        ),
        "nearest_training_picture_ratio": Figure(
            nearest_ratio(free, evenly(test, samples)[0], known),
            "mean distance of samples without guidance to the nearest training picture, over that of test pictures; "
            "far below 1 would mean pictures learned by heart",
        ),
    }
    shown = x[: _CLASSES * _SHEET].reshape(-1, _CLASSES, *x.shape[1:]).transpose(0, 1)
    sheet = Sheet(shown.flatten(0, 1), shown.shape[1], FASHION_CLASSES)
    settings = {"sampler": SAMPLER, "w": w, "accuracy_while_choosing_w": {f"{k:g}": v for k, v in tried.items()}}
    return Judged(figures, settings | {"samples_while_choosing_w": choosing}, sheet=sheet)


def classifier(net: Classifier, name: str) -> Judged:
    """Accuracy on the test pictures."""
    test = fashion_mnist("test")
    x, cond = evenly(test, len(test))
    return Judged({"test_accuracy": _right(net, x, cond["label"])})


def _asked(n: int) -> dict[str, Tensor]:
    return {"label": torch.arange(n) % _CLASSES}


def _accuracy(net: Classifier, x: Tensor) -> Figure:
    right = features_of(net, x).argmax(1) == _asked(len(x))["label"]
    return share(right.tolist(), "share of samples that fashion-judge reads as the class asked for")


def _right(net: Classifier, x: Tensor, labels: Tensor) -> Figure:
    right = features_of(net, x).argmax(1) == labels
    return share(right.tolist(), f"share of the {len(x):,} test pictures whose class is the likeliest")
