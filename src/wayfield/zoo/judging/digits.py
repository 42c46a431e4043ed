"""Digits: 2,000 samples against all real digits and a support vector machine; classifiers by held-out pictures.

Noise levels run from 10 to 0.02, no guidance, seed 0. Distances are of pixels: 64 numbers in [-1, 1].
"""

from __future__ import annotations

import torch

from wayfield.core import grid as grids
from wayfield.data.digits import digits, svm
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import Classifier
from wayfield.sampling import sample
from wayfield.solve import DPM2M
from wayfield.zoo.judging.distances import frechet, nearest_ratio
from wayfield.zoo.judging.drawing import SAMPLER
from wayfield.zoo.judging.figures import Figure, Judged, Sheet, share

__all__ = ["classifier", "denoiser"]

_SAMPLES, _SHOWN = 2000, 10


def denoiser(model: Denoiser, name: str, *, samples: int = _SAMPLES) -> Judged:
    """Distance, accuracy and novelty of samples whose classes are 0, 1, ..., 9, 0, ... samples: at least 130."""
    real, train, test = (digits(split).x for split in ("all", "train", "test"))
    labels = torch.arange(samples) % 10
    grid = grids.karras(model.path, 20, sigma_min=0.02, sigma_max=10.0)
    x = sample(model, grid, samples=samples, cond={"label": labels}, solver=DPM2M()).x
    figures = {
        "frechet_distance_pixels": Figure(
            frechet(real.flatten(1), x.flatten(1)),
            f"Fréchet distance of the pixels of {samples:,} samples to all {len(real):,} real digits",
        ),
        "frechet_distance_pixels_train_to_test": Figure(
            frechet(train.flatten(1), test.flatten(1)),
            f"the same of the {len(train):,} training digits to the {len(test)} test digits: how far real digits are "
            "from others",
        ),
        "svm_accuracy": share(
            (svm()(x) == labels).tolist(),
            "share of samples that a support vector machine, trained on all real digits, reads as the class asked for",
        ),
        "nearest_training_picture_ratio": Figure(
            nearest_ratio(x, test, train),
            "mean distance of samples to the nearest training digit, over that of test digits; below 1: nearer to the "
            "training set than fresh digits are",
        ),
    }
    shown = x[: 10 * _SHOWN].reshape(-1, 10, *x.shape[1:]).transpose(0, 1).flatten(0, 1)
    sheet = Sheet(shown, min(_SHOWN, samples // 10), tuple(str(k) for k in range(10)), scale=4)
    return Judged(figures, {"sampler": SAMPLER, "guidance": "none"}, sheet=sheet)


def classifier(net: Classifier, name: str) -> Judged:
    """Accuracy on the test pictures."""
    held_out = digits("test")
    with torch.no_grad():
        right = net(held_out.x).argmax(1) == held_out.cond["label"]
    return Judged({"test_accuracy": share(right.tolist(), "share of test pictures whose class is the likeliest")})
