"""Floor 2: how good are the samples? Distances, precision and recall, two-sample tests, calibration, colour.

Everything takes plain tensors and returns plain numbers. A distance is named after the features it was taken in
("pixel FD"); it is never called FID, and distances in different features are never compared.
"""

from wayfield.measure.agreement import class_precision
from wayfield.measure.classify import InceptionScore, accuracy, c2st, ece, inception_score, sliced_wasserstein
from wayfield.measure.colour import contrast, overshoot, saturation
from wayfield.measure.frechet import FrechetFit, Moments, SmallSampleWarning, frechet_distance, frechet_infinity
from wayfield.measure.kernel import KID, kid, mmd2
from wayfield.measure.manifold import PRDC, neighbour_radii, prdc

__all__ = [
    "KID",
    "PRDC",
    "FrechetFit",
    "InceptionScore",
    "Moments",
    "SmallSampleWarning",
    "accuracy",
    "c2st",
    "contrast",
    "class_precision",
    "ece",
    "frechet_distance",
    "frechet_infinity",
    "inception_score",
    "kid",
    "mmd2",
    "neighbour_radii",
    "overshoot",
    "prdc",
    "saturation",
    "sliced_wasserstein",
]
