r"""Training a reader of pictures with several objects: what its maps should say, and how far they are from it.

The truth of a picture is a short table of objects. A reader that learnt from clean pictures alone would misjudge
generated ones, so half of the pictures it learns from are noisy and half are blurred, each by a strength of its own.

.. math:: \ell = \frac1K [ \sum_{ij} f(y_{ij}, p_{ij}) + \sum_k ( -\log q^{form}_k - \log q^{colour}_k
   - \log q^{size}_k + |o_k - o^*_k|_1 ) ], \quad
   f = \begin{cases} -(1 - p)^2 \log p & y = 1 \\ -(1 - y)^4 p^2 \log(1 - p) & y < 1 \end{cases}

y is 1 in the cell of each centre and falls off around it like a Gaussian of one cell; p is the sigmoid of the heat, q_k
and o_k are read at the cell of object k. The worn picture is blur_b(x0) + s eps with [b, 1 - 2 b, b] along both axes,

    s = 0.3 max(0, 2 u - 1),   b = max(0, 2 v - 1) / 4,   u = t,   v = fractional part of 1024 t

so that everything random comes from the batch. Columns of the table are (form, colour, size, x, y), x and y in pixels
from the left and top edges; form -1 marks a row without an object.

=======  ===================================================  ==============
things   the truth, cond "things" of the data                 (B, K, 5)
heat     y                                                    (B, h, w)
cell     number of the cell that holds each centre            (B, K)
offset   o*: centre minus middle of its cell, in cells        (B, K, 2)
=======  ===================================================  ==============

Reference: Zhou et al. 2019, arXiv 1904.07850 (eq. 1 with alpha = 2, beta = 4; eq. 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import ConditionError, DTypeError
from wayfield.core.path import Path, Straight
from wayfield.core.shapes import expand
from wayfield.data.dataset import Dataset, load_dataset
from wayfield.field.cond import Schema
from wayfield.field.nets import build, spec_of
from wayfield.field.nets.detector import STRIDE, DetectorConfig, split
from wayfield.train.batches import Batch
from wayfield.train.config import TrainConfig
from wayfield.train.prepare import chosen, clean_settings
from wayfield.train.spec import check_keys
from wayfield.train.task import Task

__all__ = ["Detecting", "Targets", "setup_detector", "targets", "worn"]

_NOISE, _BLUR = 0.3, 0.25  # the strongest: a noise of 0.3 leaves large things readable, a quarter is the binomial blur


class Targets(NamedTuple):
    """What the maps should say. heat (B, h, w) in 0..1 / cell (B, K) in 0..h w - 1 / there (B, K) bool: whether the row
    holds an object / offset (B, K, 2), in cells; cell and offset of an absent one mean nothing.
    """

    heat: Tensor
    cell: Tensor
    there: Tensor
    offset: Tensor


def targets(things: Tensor, height: int, width: int) -> Targets:
    """The truth as maps. things: (B, K, 5) / height, width: of the grid, in cells.

    A centre on a border belongs to the cell right of it or below; on the rim of the picture, to the last cell.
    """
    there = things[..., 0] >= 0
    centre = things[..., 3:] / STRIDE
    last = torch.tensor([width - 1, height - 1], device=things.device)
    corner = torch.minimum(centre.floor().long().clamp(min=0), last)
    column, row = corner.unbind(-1)
    axes = torch.arange(height, device=things.device), torch.arange(width, device=things.device)
    away = (axes[0] - row[..., None])[..., None].square() + (axes[1] - column[..., None])[..., None, :].square()
    heat = torch.where(there[..., None, None], torch.exp(-0.5 * away), 0.0).amax(1)
    return Targets(heat, row * width + column, there, centre - corner - 0.5)


def worn(x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Pictures blurred and made noisy as the module says. x0, eps: (B, C, H, W) / t: (B,), float64, uniform in 0..1."""
    v = (1024 * t).frac()
    s, b = (_NOISE * (2 * t - 1).clamp(min=0), _BLUR * (2 * v - 1).clamp(min=0))
    s, b = (expand(c.to(x0.device, x0.dtype), x0) for c in (s, b))
    x = F.pad(x0, (1, 1, 1, 1), mode="replicate")
    x = torch.lerp(x[..., 1:-1], (x[..., :-2] + x[..., 2:]) / 2, 2 * b)
    x = torch.lerp(x[..., 1:-1, :], (x[..., :-2, :] + x[..., 2:, :]) / 2, 2 * b)
    return torch.addcmul(x, s, eps)


@final
@dataclass(frozen=True, eq=False)
class Detecting(Task):
    """Train a detector on worn pictures. The truth is the data's "things" condition, (K, 5), never dropped.

    detector: the network / config: its config, kept because a wrapped network hides it / things: schema of the truth.
    Raises ConditionError for another schema, DTypeError for a config of another network.
    """

    detector: nn.Module
    config: DetectorConfig
    things: Schema

    def __post_init__(self) -> None:
        if not isinstance(self.config, DetectorConfig):
            got, remedy = type(self.config).__name__, "Give detector.config."
            raise DTypeError("config of a detector", got=got, expected="DetectorConfig", remedy=remedy)
        fields = self.things.fields
        known = fields["things"] if set(fields) == {"things"} else None
        if known is None or known.dtype != "float32" or len(known.shape) != 2 or known.shape[1] != 5:
            got, expected = dict(fields), '{"things": Field((K, 5), "float32")}'
            remedy = "Use data that say what is where."
            raise ConditionError("conditions of a detector", got=got, expected=expected, remedy=remedy)

    @property
    def net(self) -> nn.Module:
        """The detector."""
        return self.detector

    @property
    def path(self) -> Path:
        """Where the numbers t are drawn from which wear the pictures."""
        return Straight()

    @property
    def schema(self) -> Schema:
        """The things alone."""
        return self.things

    @property
    def shape(self) -> tuple[int, ...]:
        """The detector's."""
        return self.config.shape

    def losses(self, batch: Batch, config: TrainConfig) -> Tensor:
        """The loss of the module, (B,)."""
        things = batch.cond["things"]
        maps = split(self.detector(worn(batch.x0, batch.t, batch.eps)), self.config)
        aim = targets(things, *maps.heat.shape[1:])
        found = _focal(maps.heat, aim.heat).sum((1, 2))
        what = (_at(maps.offset, aim.cell) - aim.offset.mT).abs().sum(1)
        for k, logits in enumerate((maps.form, maps.colour, maps.size)):
            truth = torch.where(aim.there, things[..., k], 0.0).long()
            what = what + F.cross_entropy(_at(logits, aim.cell), truth, reduction="none")
        return (found + torch.where(aim.there, what, 0.0).sum(1)) / things.shape[1]

    def around(self, net: nn.Module) -> Detecting:
        """See `Task`."""
        return replace(self, detector=net)

    def identity(self) -> dict[str, str]:
        """See `Task`."""
        return {"task": "detect", "schema": repr(self.things)}

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {"detector": spec_of(self.detector)}


def setup_detector(config: Mapping[str, Any]) -> tuple[Detecting, Dataset, TrainConfig]:
    """The untrained task, the data and the settings of {"data": ..., "detector": {...}, "train": {...}}.

    detector: fields of `DetectorConfig`; the data decide `shape` / train: those of `TrainConfig` that need no levels.
    Raises UnknownNameError for unknown or missing keys, ConditionError for data that do not say what is where.
    """
    check_keys("config", config, ("data", "detector", "train"), required=("data", "detector"))
    settings = clean_settings("detector", config.get("train", {}))
    dataset = load_dataset(config["data"])
    spec = {"net": "Detector", "shape": list(dataset.shape), **config["detector"]}
    net: Any = build(spec, seed=settings.seed)
    return Detecting(net, net.config, chosen(dataset.schema, ["things"])), dataset, settings


def _at(maps: Tensor, cell: Tensor) -> Tensor:
    """Maps (B, n, h, w) read at cells (B, K): (B, n, K)."""
    return maps.flatten(2).gather(2, cell[:, None].expand(-1, maps.shape[1], -1))


def _focal(logits: Tensor, y: Tensor) -> Tensor:
    """f(y, sigmoid(logits)), elementwise."""
    p = logits.sigmoid()
    here, away = -(1 - p).square() * F.logsigmoid(logits), -p.square() * F.logsigmoid(-logits)
    return torch.where(y == 1, here, (1 - y) ** 4 * away)
