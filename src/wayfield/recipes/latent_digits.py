"""The latent part of `ddpm-ddim-ldm`: one network in pixels and in the latents of an autoencoder, at equal samples.

Claim: latents cost a fraction of the work and stay readable, but what the autoencoder loses is lost. The distance of
its own reconstructions (rFD) is a level that decoded samples do not get below, and with an autoencoder that was trained
too briefly this alone is farther from the data than a model of pixels.

Data: scikit-learn's 1,797 digits, enlarged to 32x32. Models per seed: a KL autoencoder with f = 4 (1x32x32 to 4x8x8); a
U-Net with EDM preconditioning on its latents; the baseline, the same U-Net on pixels, whose finest map of 16x16 comes
from a 2x2 patch. Both U-Nets have the same settings and see as many samples. Metrics: Frechet distance in the features
of a small classifier trained on four fifths of the digits, to all real digits (floor_fd: of one half of them to the
other); that classifier's accuracy on the class asked for; multiply-adds per sample, counted exactly: all evaluations
and the decoder.

The last part of the claim is how the paper's trouble with its autoencoder can be told apart from trouble with latents:
the same autoencoder after a tenth of its steps. Which of the two models is nearer to the data at equal samples is
reported without a bar; it depends on how far both are trained.

Reference: Shah, Gromis & Pinto 2024, arXiv 2412.14422 (latents, with trouble); Rombach et al. 2022, arXiv 2112.10752.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from wayfield import plots
from wayfield.core import grid as grids
from wayfield.core.path import EDM
from wayfield.core.predict import Kind
from wayfield.data.dataset import Dataset, InMemory
from wayfield.data.digits import SCHEMA, digits
from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.field.nets import Autoencoder, Classifier, build
from wayfield.measure import Moments, SmallSampleWarning, accuracy, frechet_distance
from wayfield.measure.reconstruction import reconstructions
from wayfield.recipes.report import Criterion, at_least, at_most
from wayfield.sampling import sample
from wayfield.solve import DPM2M
from wayfield.train.config import TrainConfig
from wayfield.train.ema import HalfLifeEMA
from wayfield.train.encoding import Encoding
from wayfield.train.latents import Encoded, latent_moments
from wayfield.train.levels import LogNormal, Shifted
from wayfield.train.loop import fit
from wayfield.train.task import Classifying

__all__ = ["evaluate", "pictures", "verdict", "work"]

SHEET = "latents.png"
SHAPE = (1, 32, 32)
EVALUATIONS = 12
UNET = {"net": "UNet", "channels": [16, 32], "blocks": 1, "width": 64, "num_classes": 10}


@dataclass(frozen=True)
class Sizes:
    """How long to train, in steps of 64 samples, how many samples to draw, and how many digits to use."""

    autoencoder: int = 500
    classifier: int = 200
    denoiser: int = 800
    samples: int = 500
    digits: int = 1797


QUICK = Sizes(10, 8, 8, 40, 200)


def enlarged(split: str, most: int) -> InMemory:
    """The first digits of a split at 32x32, by bilinear interpolation."""
    x, cond = (data := digits(split)).batch(range(min(most, len(data))))
    return InMemory(interpolate(x, SHAPE[1:], mode="bilinear", align_corners=False), cond, SCHEMA)


def evaluate(seed: int, quick: bool = False) -> dict[str, Any]:
    """Train everything from one seed and measure; pictures of a few real digits, reconstructions and samples are under
    "_pictures".
    """
    sizes = QUICK if quick else Sizes()
    data = enlarged("all", sizes.digits)
    read = Judge(seed, sizes, data, quick)
    codec, brief = (_codec(seed, steps, data) for steps in (sizes.autoencoder, sizes.autoencoder // 10))
    latent = _denoiser(seed, sizes, Encoded(codec, data), 0.5)
    pixel = _denoiser(seed, sizes, data, float(data.x.std()))
    labels = torch.arange(sizes.samples) % 10
    x, y = codec.decode(_draw(latent, labels)), _draw(pixel, labels)
    left, blurred = (reconstructions(c, data.x) for c in (codec, brief))
    costs = {"latent": work(latent, codec), "pixel": work(pixel)}
    return {
        "classifier_test_accuracy": read.held_out,
        "floor_fd": read.floor,
        "reconstructions": read(left, data.cond["label"]),
        "brief_reconstructions": read(blurred, data.cond["label"]),
        "latent": read(x, labels) | {"multiply_adds": costs["latent"]},
        "pixel": read(y, labels) | {"multiply_adds": costs["pixel"]},
        "_pictures": {
            "real": data.x[:10],
            "reconstructions": left[:10],
            "after a tenth of the steps": blurred[:10],
            "samples through latents": x[:10],
            "samples in pixels": y[:10],
        },
    }


def verdict(runs: list[dict[str, Any]]) -> tuple[Criterion, ...]:
    """The criteria of this part; bars are never adapted to what was measured."""
    above = min(r["latent"]["fd"] - r["reconstructions"]["fd"] for r in runs)
    brief = min(r["brief_reconstructions"]["fd"] / r["pixel"]["fd"] for r in runs)
    cost = _mean(runs, "latent", "multiply_adds") / _mean(runs, "pixel", "multiply_adds")
    return (
        at_least("latents: FD of samples - rFD, smallest of all seeds, at least", above, 0.0),
        at_least("latents: accuracy of decoded samples, at least", _mean(runs, "latent", "accuracy"), 0.9),
        at_most("latents: multiply-adds of a sample, latent / pixel, at most", cost, 0.5),
        at_least("latents: rFD after a tenth of the steps / FD pixel, smallest of all seeds, at least", brief, 1.0),
    )


def pictures(runs: list[dict[str, Any]], out: FilePath) -> str:
    """A sheet of the first run: real digits, what the autoencoder leaves of them, samples of both kinds."""
    kept, *_ = [r.pop("_pictures") for r in runs]
    plots.save_sheet(out / SHEET, torch.cat(list(kept.values())), columns=10, rows=list(kept), scale=2)
    return SHEET


class Judge:
    """A small classifier as a reader and as the space of the distances."""

    def __init__(self, seed: int, sizes: Sizes, data: InMemory, quick: bool) -> None:
        spec = {"net": "Classifier", "shape": list(SHAPE), "classes": 10, "width": 8, "levels": 3}
        train, test = (enlarged(split, sizes.digits) for split in ("train", "test"))
        task = Classifying(build(spec, seed=seed), SCHEMA, SHAPE)
        net = fit(task, train, _settings(seed, sizes.classifier, 2e-3), progress=False).model.net
        assert isinstance(net, Classifier)
        self.net, self.quick = net, quick
        features = net.features(data.x)
        self.moments = Moments.of(features)
        self.floor = self._distance(Moments.of(features[::2]), features[1::2])
        self.held_out = accuracy(net(test.x), test.cond["label"])

    def __call__(self, x: Tensor, labels: Tensor) -> dict[str, float]:
        """Distance to all real digits, and accuracy, of pictures (B, 1, 32, 32)."""
        return {"fd": self._distance(self.moments, self.net.features(x)), "accuracy": accuracy(self.net(x), labels)}

    def _distance(self, real: Moments, features: Tensor) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SmallSampleWarning)
            return frechet_distance(real, features, allow_small=self.quick)


def _settings(seed: int, steps: int, lr: float, **changes: Any) -> TrainConfig:
    base: dict[str, Any] = {"steps": steps, "batch": 64, "lr": lr, "decay": 0.5, "drop": 0.0, "precision": "bf16"}
    return TrainConfig(**(base | {"seed": seed, "ema": HalfLifeEMA(5000.0)} | changes))


def _codec(seed: int, steps: int, data: Dataset) -> LatentCodec:
    net = build({"net": "Autoencoder", "shape": list(SHAPE), "latent": 4, "channels": [16, 32]}, seed=seed)
    assert isinstance(net, Autoencoder)
    task = Encoding(net, net.config.code, SHAPE)
    net = fit(task, data, _settings(seed, steps, 2e-3), progress=False).model.net
    assert isinstance(net, Autoencoder)
    return LatentCodec.of(net, *latent_moments(net, data))


def _denoiser(seed: int, sizes: Sizes, data: Dataset, sigma_data: float) -> Denoiser:
    """The same network and settings for latents and for pixels.

    Noise levels are in units of the data's size. Pixels get four times as much: enlarged by four, as many neighbours
    say the same thing and average the noise away.
    """
    net = build({**UNET, "shape": list(data.shape), "patch": _patch(data.shape)}, seed=seed)
    levels = Shifted(LogNormal(math.log(sigma_data) - 0.3, 1.2), _shift(data.shape))
    model = Denoiser(
        net,
        EDM(20 * sigma_data * _shift(data.shape)),
        Kind("edm", sigma_data),
        "log_sigma/4",
        schema=SCHEMA,
        shape=data.shape,
    )
    settings = _settings(seed, sizes.denoiser, 2e-3, weight="edm", levels=levels, drop=0.1)
    return fit(model, data, settings, progress=False).denoiser


def _draw(model: Denoiser, labels: Tensor) -> Tensor:
    size = model.output.sigma_data
    assert isinstance(model.path, EDM)
    grid = grids.karras(model.path, EVALUATIONS, sigma_min=0.02 * size, sigma_max=model.path.sigma_max)
    return sample(model, grid, samples=len(labels), cond={"label": labels}, solver=DPM2M()).x


def work(model: Denoiser, codec: LatentCodec | None = None) -> int:
    """Multiply-adds of one sample: every evaluation of the network, and the decoder."""
    assert model.shape is not None
    x = torch.zeros(1, *model.shape)
    with FlopCounterMode(display=False) as once:
        model(x, 0.5, {"label": 0})
    with FlopCounterMode(display=False) as last:
        if codec is not None:
            codec.decode(x)
    return (EVALUATIONS * once.get_total_flops() + last.get_total_flops()) // 2


def _patch(shape: tuple[int, ...]) -> int:
    return 2 if shape == SHAPE else 1


def _shift(shape: tuple[int, ...]) -> float:
    return 4.0 if shape == SHAPE else 1.0


def _mean(runs: list[dict[str, Any]], part: str, figure: str) -> float:
    return sum(r[part][figure] for r in runs) / len(runs)
