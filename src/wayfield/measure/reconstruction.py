r"""What an autoencoder costs: the distance between pictures and what is left of them after encoding and decoding.

A model of latents can be no better than its decoder. Even samples that have exactly the distribution of the encoded
data come out as reconstructions, and these are this far from the pictures in a given feature space:

.. math:: rFD = FD\bigl(\phi(x), \phi(D(E(x)))\bigr)

Report it beside every distance of decoded samples, in the same features: it is the level that a better latent model can
approach, not a proven bound for samples of other distributions.

Reference: Rombach et al. 2022, arXiv 2112.10752 (table 8: reconstruction FID of each autoencoder).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wayfield.core.shapes import check_samples
from wayfield.field.latent import LatentCodec
from wayfield.measure.frechet import frechet_distance

__all__ = ["reconstruction_fd", "reconstructions"]


def reconstructions(codec: LatentCodec, x: Tensor, *, batch: int = 256) -> Tensor:
    """decode(encode(x)) of pictures x (B, *D), `batch` at a time, without gradients."""
    with torch.no_grad():
        return torch.cat([codec.decode(codec.encode(part)) for part in check_samples("pictures", x).split(batch)])


def reconstruction_fd(
    codec: LatentCodec,
    x: Tensor,
    features: Callable[[Tensor], Tensor],
    *,
    batch: int = 256,
    allow_small: bool = False,
) -> float:
    """Fréchet distance between the features of pictures and of their reconstructions.

    x: pictures (B, *D), best not those of the codec's training / features: pictures to (B, d), such as
    `Classifier.features` / allow_small: as in `frechet_distance`, whose errors and warning this has.
    """
    with torch.no_grad():
        real = torch.cat([features(part) for part in check_samples("pictures", x).split(batch)])
        left = torch.cat([features(part) for part in reconstructions(codec, x, batch=batch).split(batch)])
    return frechet_distance(real, left, allow_small=allow_small)
