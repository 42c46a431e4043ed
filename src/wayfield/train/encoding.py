r"""Training an autoencoder: near to every picture, with latents that are weakly pulled towards N(0, I).

.. math:: \ell = \overline{|x - D(z)|} + \lambda_{kl}\, \overline{\mathrm{KL}(q(z|x) \,\|\, N(0, I))}
   + \lambda_p \sum_l \overline{|\hat\phi_l(x) - \hat\phi_l(D(z))|^2}, \qquad z = m(x) + e^{l(x)/2} \varepsilon

Overlines are means over the elements of a sample (for the features: over places). phi_l are the maps of a frozen
classifier after its l-th block, each place scaled to unit length: a distance that sees edges where pixels see averages.
The noise of the latents is that of the batch, addressed by seed, step and position.

    {"data": "digits", "autoencoder": {"channels": [16, 32], "latent": 4},
     "loss": {"pixels": "l1", "kl": 1e-6, "perceptual": {"model": "digits-classifier", "weight": 0.1}},
     "sigma_data": 0.5, "train": {"steps": 600}}

pixels: "l1", or "l2" for the squared difference / kl, weight: the lambdas / model: a classifier of the zoo or a file's
path / sigma_data: of the standardised latents, see `field.latent`. There is no adversarial term.

References: Rombach et al. 2022, arXiv 2112.10752 (app. G); Zhang et al. 2018, arXiv 1801.03924 (eq. 1, w_l = 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, final

import torch
from torch import Tensor, nn

from wayfield import files
from wayfield.core.errors import DTypeError, ShapeError, UnsupportedError, unknown_name
from wayfield.core.path import Path, Straight
from wayfield.core.shapes import flatten
from wayfield.data.dataset import Dataset, load_dataset
from wayfield.field.cond import Schema
from wayfield.field.nets import Autoencoder, Classifier, build, spec_of
from wayfield.train.batches import Batch
from wayfield.train.checks import check_number
from wayfield.train.config import TrainConfig
from wayfield.train.latents import latent_moments
from wayfield.train.prepare import clean_settings
from wayfield.train.spec import check_keys
from wayfield.train.stored import open_model
from wayfield.train.task import Task

__all__ = ["Encoding", "Terms", "feature_distance", "setup_autoencoder"]

_PIXELS = ("l1", "l2")


@final
@dataclass(frozen=True)
class Terms:
    """The parts of the loss. pixels: "l1" or "l2" / kl, perceptual: weights, at least 0.

    Raises UnknownNameError, DTypeError or RangeError.
    """

    pixels: str = "l1"
    kl: float = 1e-6
    perceptual: float = 0.0

    def __post_init__(self) -> None:
        if self.pixels not in _PIXELS:
            raise unknown_name("pixel loss", self.pixels, _PIXELS)
        check_number("kl", self.kl, 0)
        check_number("weight of the perceptual loss", self.perceptual, 0)


@final
@dataclass(frozen=True, eq=False)
class Encoding(Task):
    """Train an autoencoder on clean samples.

    autoencoder: its network / code: shape of its latents / sample_shape: of its pictures / terms: of the loss / judge:
    the classifier behind the perceptual term, if any / sigma_data: what the codec scales latents to.
    Raises ShapeError or UnsupportedError for a classifier that cannot judge these pictures.
    """

    autoencoder: nn.Module
    code: tuple[int, ...]
    sample_shape: tuple[int, ...]
    terms: Terms = Terms()
    judge: Classifier | None = None
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        check_number("sigma_data", self.sigma_data, 0, open_low=True)
        if self.terms.perceptual and self.judge is None:
            remedy = 'Name one: "perceptual": {"model": ..., "weight": 0.1}.'
            raise UnsupportedError("perceptual loss", got="no classifier", expected="one", remedy=remedy)
        if self.judge is not None:
            shape, remedy = self.judge.config.shape, "Train one on these pictures."
            if shape != self.sample_shape:
                raise ShapeError("pictures of the classifier", got=shape, expected=self.sample_shape, remedy=remedy)
            if self.judge.config.noise_aware:
                got, expected = "one that is told the noise level", "one of clean pictures"
                raise UnsupportedError("perceptual classifier", got=got, expected=expected, remedy=remedy)

    @property
    def net(self) -> nn.Module:
        """The autoencoder."""
        return self.autoencoder

    @property
    def path(self) -> Path:
        """Not used: samples are clean."""
        return Straight()

    @property
    def schema(self) -> Schema:
        """None."""
        return Schema()

    @property
    def shape(self) -> tuple[int, ...]:
        """The pictures'."""
        return self.sample_shape

    def losses(self, batch: Batch, config: TrainConfig) -> Tensor:
        """The loss above, (B,)."""
        # a code has no more numbers than the picture, so the batch's noise suffices
        noise = flatten(batch.eps)[:, : math.prod(self.code)].reshape(-1, *self.code)
        y, posterior = self.autoencoder(batch.x0, noise)
        apart = flatten(y.float() - batch.x0)
        out = (apart.abs() if self.terms.pixels == "l1" else apart.square()).mean(1)
        out = out + self.terms.kl * flatten(posterior.kl().float()).mean(1)
        if self.judge is not None and self.terms.perceptual:
            out = out + self.terms.perceptual * feature_distance(self.judge.to(y.device), batch.x0, y)
        return out

    def around(self, net: nn.Module) -> Encoding:
        """See `Task`."""
        return replace(self, autoencoder=net)

    def identity(self) -> dict[str, str]:
        """See `Task`."""
        judge = "none" if self.judge is None else files.digest(self.judge.state_dict(), "")[:16]
        return {"task": "encode", "loss": repr(self.terms), "perceptual": judge}

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {"autoencoder": spec_of(self.autoencoder)}

    def finish(self, dataset: Dataset, folder: FilePath) -> dict[str, Any]:
        """Mean and deviation of each latent channel over the data, for the codec."""
        assert isinstance(self.autoencoder, Autoencoder)
        mean, std = latent_moments(self.autoencoder, dataset)
        return {"latents": {"mean": mean.tolist(), "std": std.tolist(), "sigma_data": self.sigma_data}}


def feature_distance(judge: Classifier, x: Tensor, y: Tensor) -> Tensor:
    """Squared distance of unit-length features of pictures x and y (B, C, H, W), summed over blocks: (B,).

    Differentiable in y; x is a fixed target.
    """
    total = torch.zeros(len(x), device=x.device)
    with torch.no_grad():
        targets = list(_maps(judge, x))
    for a, b in zip(targets, _maps(judge, y), strict=True):
        total = total + (a - b).square().sum(1).mean((1, 2))
    return total


def setup_autoencoder(config: Mapping[str, Any]) -> tuple[Encoding, Dataset, TrainConfig]:
    """An autoencoder of the data's pictures; see the module."""
    known = ("data", "autoencoder", "loss", "sigma_data", "train")
    check_keys("config", config, known, required=("data", "autoencoder"))
    settings = clean_settings("autoencoder", config.get("train", {}))
    loss = config.get("loss", {})
    check_keys("loss", loss, ("pixels", "kl", "perceptual"))
    perceptual, judge, weight = loss.get("perceptual"), None, 0.0
    if perceptual is not None:
        check_keys("perceptual", perceptual, ("model", "weight"), required=("model",))
        judge, weight = open_model(perceptual["model"], "classifier"), perceptual.get("weight", 0.1)
    terms = Terms(loss.get("pixels", "l1"), loss.get("kl", 1e-6), weight)
    dataset = load_dataset(config["data"])
    if not isinstance(config["autoencoder"], Mapping):
        got, remedy = repr(config["autoencoder"]), "Write {} for the defaults."
        raise DTypeError("autoencoder", got=got, expected="a mapping", remedy=remedy)
    net = build({"net": "Autoencoder", "shape": list(dataset.shape), **config["autoencoder"]}, seed=settings.seed)
    assert isinstance(net, Autoencoder)
    sigma_data = config.get("sigma_data", 0.5)
    return Encoding(net, net.config.code, net.config.shape, terms, judge, sigma_data), dataset, settings


def _maps(judge: Classifier, x: Tensor) -> Iterator[Tensor]:
    """The maps after each residual block, (B, C_l, H_l, W_l), every place of unit length."""
    h = judge.stem(x)
    for block in judge.blocks:
        if isinstance(block, nn.Conv2d):
            h = block(h)
        else:
            h = block(h, None)
            yield (h / (h.float().square().sum(1, keepdim=True) + 1e-8).sqrt()).float()
