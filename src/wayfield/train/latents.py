"""Training in latents: the codec a config names, the data it encodes, and how a model file remembers which it was.

A denoiser of latents is only half a model: its samples are pictures through one codec and noise through any other. So
its record keeps the codec's name, or the file that `train` puts beside it, with a hash of weights and statistics.

    record["codec"] = {"name" or "file", "sha256"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, final

import torch
from torch import Tensor

from wayfield import files
from wayfield.core.errors import CheckpointError, RangeError
from wayfield.data.dataset import Dataset, InMemory
from wayfield.field.cond import Cond, concat
from wayfield.field.latent import LatentCodec
from wayfield.field.nets import Autoencoder
from wayfield.train.stored import SUFFIX, open_model, read_model

__all__ = ["CODEC", "Encoded", "StoredCodec", "codec_of", "find_codec", "latent_moments"]

CODEC = f"codec{SUFFIX}"
_BATCH, _MOST_SAMPLES, _MOST_BYTES = 256, 65_536, 8 * 2**30


@final
@dataclass(frozen=True, eq=False)
class StoredCodec:
    """A codec and where it is from. name: in the zoo, or the path of a model file / sha256: of what decides its
    latents and pictures.
    """

    name: str
    codec: LatentCodec
    sha256: str

    def keep(self, folder: FilePath) -> dict[str, str]:
        """What a record says of it; a codec that is a file is copied into `folder`, so that the folder is complete."""
        if not self.name.endswith(SUFFIX):
            return {"name": self.name, "sha256": self.sha256}
        files.write(folder / CODEC, *read_model(self.name))
        return {"file": CODEC, "sha256": self.sha256}


@final
class Encoded(Dataset):
    """The latents of a dataset with its conditions, encoded once and held in memory: the mean of each picture.

    Raises RangeError if they would take more than 8 GiB, ShapeError if the codec was made for another shape.
    """

    def __init__(self, codec: LatentCodec, dataset: Dataset) -> None:
        self.codec, self.schema = codec, dataset.schema
        latents: list[Tensor] = []
        conds: list[Cond] = []
        for x, cond in _batches(dataset, len(dataset)):
            latents.append(_mean(codec, x))
            conds.append(cond)
            if (size := latents[0][0].nbytes * len(dataset)) > _MOST_BYTES:
                got, remedy = f"{size / 2**30:.1f} GiB", "Train on a part of the data, or in pixels."
                raise RangeError("latents in memory", got=got, expected="at most 8 GiB", remedy=remedy)
        self._latents = InMemory(torch.cat(latents), concat(conds), dataset.schema)

    @property
    def shape(self) -> tuple[int, ...]:
        """(c, *), the shape of one latent."""
        return self._latents.shape

    def __len__(self) -> int:
        return len(self._latents)

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Cond]:
        """See `Dataset.batch`."""
        return self._latents.batch(indices)


def find_codec(name: str) -> StoredCodec:
    """The codec of that name in the zoo, or of a file's path. Raises as `stored.open_model`."""
    return StoredCodec(name, open_model(name, "autoencoder"), _digest(*read_model(name)))


def codec_of(name: str) -> LatentCodec | None:
    """The codec that decodes the samples of a model, None for a model of the data themselves.

    name: of the zoo, or a file's path. Raises UnknownNameError, or CheckpointError if the codec is missing or is not
    the one of the training.
    """
    kept = read_model(name)[1].get("codec")
    if kept is None:
        return None
    found = find_codec(kept["name"] if "name" in kept else str(FilePath(name).parent / kept["file"]))
    if found.sha256 != kept["sha256"]:
        remedy = "Put back the codec that the model was trained with: to any other its samples are noise."
        raise CheckpointError(f"codec {found.name!r}", got=found.sha256, expected=kept["sha256"], remedy=remedy)
    return found.codec


def latent_moments(net: Autoencoder, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of the raw latents over a dataset, (c,) float64.

    Measured over samples and places, on the means of the encoder, from at most 65,536 samples spread evenly.
    """
    device = next(net.parameters()).device
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for x, _ in _batches(dataset, _MOST_SAMPLES):
        with torch.no_grad():
            raw = net.encode(x.to(device)).mean.cpu().double().transpose(0, 1).flatten(1)
        count += raw.shape[1]
        total, squares = total + raw.sum(1), squares + raw.square().sum(1)
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0).sqrt()


def _batches(dataset: Dataset, most: int) -> Iterator[tuple[Tensor, Cond]]:
    """All samples in order, or `most` of them spread evenly, by the batch."""
    count = min(len(dataset), most)
    rows = torch.arange(count) * len(dataset) // count
    for part in rows.split(_BATCH):
        yield dataset.batch(part)


def _mean(codec: LatentCodec, x: Tensor) -> Tensor:
    with torch.no_grad():
        return codec.encode(x).float().cpu()


def _digest(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    """Of everything that decides latents and pictures: weights, network and statistics."""
    decides = {key: record.get(key) for key in ("autoencoder", "latents")}
    return files.digest(tensors, json.dumps(decides, sort_keys=True))
