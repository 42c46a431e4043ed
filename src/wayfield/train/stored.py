"""Trained models as files: those that ship with the package, by name, and those that `train` wrote, by path.

A file holds weights and a record from which its model is rebuilt; a shipped one lies beside its card, NAME.json, and is
refused if its weights are not those that the card remembers. Weights may be stored in 16 bits: a rebuilt network has
those of its spec, float32.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from wayfield import files
from wayfield.core.errors import CheckpointError, DTypeError, unknown_name
from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.field.nets import Autoencoder, build
from wayfield.train.kinds import KINDS, recorded_kind
from wayfield.train.spec import denoiser_from

__all__ = ["card", "codec", "denoiser", "names", "network", "open_model", "read_model"]

SUFFIX = ".safetensors"


def names() -> tuple[str, ...]:
    """The models that ship with the package."""
    return tuple(sorted(p.stem for p in _folder().glob(f"*{SUFFIX}")))


def card(name: str) -> dict[str, Any]:
    """The card of a shipped model: what it is, the data, the command that made it, its seed, figures and hash."""
    return files.read_json(_path(name).with_suffix(".json"))


def read_model(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and record of a shipped model by name, or of a file by its path, which ends in .safetensors.

    Raises UnknownNameError with the nearest name, CheckpointError for a missing or damaged file.
    """
    if name.endswith(SUFFIX):
        return files.read(name)
    path = _path(name)
    tensors, record = files.read(path)
    expected = card(name)["sha256"]
    if files.digest(tensors, "") != expected:
        got, remedy = "weights that are not those of its card", "Install wayfield again."
        raise CheckpointError(f"file {os.fspath(path)!r}", got=got, expected=expected, remedy=remedy)
    return tensors, record


def open_model(name: str, key: str | None = None) -> Any:
    """The model of that name or path, in evaluation mode, its weights frozen.

    key: the kind it must be, from `kinds.KINDS`, None for any. Raises as `read_model`, and DTypeError for a file that
    holds no model or one of another kind.
    """
    tensors, record = read_model(name)
    kind = recorded_kind(name, record)
    if key not in (None, kind.key):
        remedy = f"Use {kind.opener}({name!r})."
        raise DTypeError(f"model {name!r}", got=kind.title, expected=KINDS[key].title, remedy=remedy)
    return kind.rebuild(record, tensors)


def network(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a file that holds one and nothing else."""
    return _trained(record[recorded_kind("", record).key], tensors)


def denoiser(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Denoiser:
    """The denoiser of a file."""
    return denoiser_from(record, tensors)


def codec(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LatentCodec:
    """The codec of an autoencoder's file."""
    net, latents = _trained(record["autoencoder"], tensors), record["latents"]
    assert isinstance(net, Autoencoder)
    mean, std = (torch.tensor(latents[k], dtype=torch.float64) for k in ("mean", "std"))
    return LatentCodec.of(net, mean, std, latents["sigma_data"])


def _trained(spec: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a spec with these weights, in evaluation mode, frozen."""
    net = build(spec)
    net.load_state_dict(dict(tensors))
    return net.eval().requires_grad_(False)


def _folder() -> FilePath:
    return FilePath(str(resources.files("wayfield"))) / "zoo"


def _path(name: str) -> FilePath:
    if name not in names():
        raise unknown_name("model", name, names())
    return _folder() / f"{name}{SUFFIX}"
