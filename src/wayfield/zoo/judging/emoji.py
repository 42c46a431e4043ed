"""Emoji: how much the autoencoder loses, and how near samples of its latents come to what it leaves.

Every distance is to the training pictures and of as many pictures as there are for testing, so that all can be
compared: test pictures themselves (the floor), test pictures after encoding and decoding (about the best that a model
of latents can reach), and decoded samples, whose categories are those of the test pictures. No classifier of emoji is
good enough to judge by, so three plain spaces serve:

    layout     the picture averaged to 4 x 4: where which colours are, 48 numbers
    detail     root mean square of its two finest bands on 4 x 4 places: how sharp it is there, 32 numbers
    features   of "scenes-reader", on the picture averaged to 32 x 32: edges and simple forms, 48 numbers

A band is what is lost by averaging 2 x 2 pixels, at full and at half size. The category of a sample is read as that of
the nearest training picture, both averaged to 8 x 8: a weak judge, whose accuracy on test pictures is given beside. The
guidance scale is the one of {1, 1.5, 2, 3} with the smallest distance of features on samples of seed 1; figures are of
seed 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from wayfield.data.emoji import EMOJI_CLASSES, emoji
from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.field.nets.detector import Detector
from wayfield.measure import Moments
from wayfield.measure.reconstruction import reconstructions
from wayfield.zoo import load_codec, load_detector
from wayfield.zoo.judging.distances import evenly, features_of, frechet, nearest_ratio
from wayfield.zoo.judging.drawing import SAMPLER, best_scale, draw
from wayfield.zoo.judging.figures import Figure, Judged, Sheet, Table, share

__all__ = ["SCALES", "autoencoder", "denoiser", "detail", "psnr"]

SCALES = (1.0, 1.5, 2.0, 3.0)
_SELECTED, _REPORTED = 1, 2  # seeds
_SHEET, _ACROSS = 3, 6


class _Space(NamedTuple):
    """A space of features. title: for people / features: pictures (B, 3, 64, 64) to (B, d)."""

    title: str
    features: Callable[[Tensor], Tensor]


def autoencoder(codec: LatentCodec, name: str, *, reader: Detector | None = None, most: int = 1911) -> Judged:
    """Signal to noise ratio and distance of reconstructions of test pictures. most: pictures of each split."""
    x, known = evenly(emoji("test"), most)[0], evenly(emoji("train"), most)[0]
    y = reconstructions(codec, x, batch=64)
    figures = {
        "psnr": Figure(psnr(x, y), f"peak signal to noise ratio of {len(x)} reconstructed test pictures, in dB, mean"),
        "psnr_training": Figure(
            psnr(known, reconstructions(codec, known, batch=64)), f"the same of the {len(known):,} training pictures"
        ),
    }
    floors: dict[str, float | None] = {}
    for key, space in _spaces(reader).items():
        real = features_of(space.features, x)
        figures[f"rfd_{key}"] = Figure(
            frechet(real, features_of(space.features, y.clamp(-1, 1))),
            f"Fréchet distance of {len(x)} reconstructed test pictures to the originals, in {space.title}",
        )
        floors[key] = frechet(features_of(space.features, known), real)
    about = "Fréchet distance of the test pictures to the training pictures, for comparison"
    tables = (Table("distances", about, tuple(floors), {"test pictures": tuple(floors.values())}),)
    shown = evenly(emoji("test"), 2 * _ACROSS)[0].split(_ACROSS)
    rows = [row for part in shown for row in (part, reconstructions(codec, part))]
    names = ("test pictures", "reconstructed") * 2
    return Judged(figures, tables=tables, sheet=Sheet(torch.cat(rows), _ACROSS, names, scale=1))


def denoiser(
    model: Denoiser,
    name: str,
    *,
    codec: LatentCodec | None = None,
    reader: Detector | None = None,
    most: int = 1911,
) -> Judged:
    """Distances and novelty of decoded samples.

    codec: by default "emoji-autoencoder" of the zoo / reader: by default "scenes-reader" / most: pictures of a split.
    """
    codec, spaces = codec or load_codec("emoji-autoencoder"), _spaces(reader)
    (x, cond), (known, labels) = evenly(emoji("test"), most), evenly(emoji("train"), most)
    space = spaces["features"]
    moments = Moments.of(features_of(space.features, known))

    def drawn(w: float, seed: int, every: int = 1) -> Tensor:
        return _decoded(codec, draw(model, {"label": cond["label"][::every]}, w=w, seed=seed))

    def near(w: float) -> float:
        return -frechet(moments, features_of(space.features, drawn(w, _SELECTED, every=2)))

    w, tried = best_scale(SCALES, near)
    free = drawn(1.0, _REPORTED)
    guided = free if w == 1 else drawn(w, _REPORTED)
    sets = {"samples": guided, "without guidance": free}
    sets |= {"reconstructed test pictures": reconstructions(codec, x, batch=64).clamp(-1, 1), "test pictures": x}
    table = _distances(spaces, known, sets)
    figures = _figures(table, guided, len(known))
    asked, have = cond["label"], labels["label"]
    figures["category"] = _category(guided, asked, known, have, "samples, the category asked for")
    figures["category_of_real"] = _category(x, asked, known, have, "test pictures, their own")
    figures["nearest_training_picture_ratio"] = Figure(
        nearest_ratio(free, x, known),
        "mean distance of samples without guidance to the nearest training picture, over that of test pictures; far "
        "below 1 means pictures learned by heart",
    )
    settings = {"sampler": SAMPLER, "w": w}
    settings["distance_while_choosing_w"] = {f"{k:g}": round(-v, 4) for k, v in tried.items()}
    each = torch.arange(len(EMOJI_CLASSES)).repeat_interleave(_SHEET)
    shown = _decoded(codec, draw(model, {"label": each}, w=w, seed=_REPORTED, first=len(x)))
    return Judged(figures, settings, (table,), Sheet(shown, _SHEET, EMOJI_CLASSES, scale=1))


def psnr(x: Tensor, y: Tensor) -> float:
    """10 log10(4 / mean squared error) of pictures in [-1, 1], y clipped to that, in dB; the mean over pictures."""
    error = (x - y.clamp(-1, 1)).square().flatten(1).mean(1)
    return float((10 * (4 / error).log10()).mean())


def detail(x: Tensor) -> Tensor:
    """Root mean square of the two finest bands of pictures (B, C, H, W) on 4 x 4 places, (B, 32)."""
    half = F.avg_pool2d(x, 2)
    bands = (x - _doubled(half), half - _doubled(F.avg_pool2d(half, 2)))
    energy = [F.adaptive_avg_pool2d(band.square().mean(1, keepdim=True), 4) for band in bands]
    return torch.cat([part.flatten(1) for part in energy], 1).sqrt()


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _decoded(codec: LatentCodec, z: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([codec.decode(part) for part in z.split(64)]).clamp(-1, 1)


def _distances(spaces: Mapping[str, _Space], known: Tensor, sets: Mapping[str, Tensor]) -> Table:
    """Distances of sets of pictures to the training pictures in every space."""
    moments = {key: Moments.of(features_of(space.features, known)) for key, space in spaces.items()}
    rows = {
        title: [frechet(moments[key], features_of(space.features, x)) for key, space in spaces.items()]
        for title, x in sets.items()
    }
    about = f"Fréchet distance to the {len(known):,} training pictures; the last two rows are what to compare with"
    return Table("distances", about, tuple(spaces), rows)


def _figures(table: Table, samples: Tensor, known: int) -> dict[str, Figure]:
    """The first row of the table as figures."""
    what = f"Fréchet distance of {len(samples)} decoded samples to the {known:,} training pictures, in"
    values = dict(zip(table.columns, table.rows["samples"], strict=True))
    return {f"frechet_distance_{key}": Figure(value or 0.0, f"{what} {key}") for key, value in values.items()}


def _category(x: Tensor, asked: Tensor, known: Tensor, labels: Tensor, what: str) -> Figure:
    """How often the nearest training picture has the category asked for."""
    small, others = (F.adaptive_avg_pool2d(part, 8).flatten(1) for part in (x, known))
    right = labels[torch.cdist(small, others).argmin(1)] == asked
    return share(right.tolist(), f"share whose nearest training picture at 8 x 8 has the category: of {what}")


def _spaces(reader: Detector | None) -> dict[str, _Space]:
    net = load_detector("scenes-reader") if reader is None else reader
    return {
        "layout": _Space("layout (colours on 4 x 4 places)", lambda x: F.adaptive_avg_pool2d(x, 4).flatten(1)),
        "detail": _Space("detail (sharpness on 4 x 4 places)", detail),
        "features": _Space(
            "features of scenes-reader at 32 x 32", lambda x: net.features(F.adaptive_avg_pool2d(x, 32))
        ),
    }
