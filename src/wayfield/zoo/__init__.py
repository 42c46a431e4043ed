"""Small checkpoints that ship inside the package, trained by this project's own `train` command; no network is needed.

Each is NAME.safetensors (weights, and a record from which the model is rebuilt) beside NAME.json, its card: data, command, seed,
figures and the hash of the weights. A file that does not match its card is refused.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from wayfield import files
from wayfield.core.errors import CheckpointError, DTypeError, unknown_name
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import Classifier, build

__all__ = ["card", "load", "load_classifier", "names", "open_model"]


def names() -> tuple[str, ...]:
    """The models of the zoo."""
    return tuple(sorted(p.stem for p in _folder().glob("*.safetensors")))


def card(name: str) -> dict[str, Any]:
    """The card of a model: what it is, the data, the command that made it, its seed, figures and hash."""
    return files.read_json(_path(name).with_suffix(".json"))


def load(name: str, device: torch.device | str = "cpu") -> Denoiser:
    """A denoiser of the zoo by name, or one written by `train` by its path (ending in .safetensors), ready to sample.

    Raises UnknownNameError with the nearest name, CheckpointError for a damaged file, DTypeError for a classifier.
    """
    tensors, record = _read(name)
    return open_model(name, tensors, record).to(device)


def load_classifier(name: str, device: torch.device | str = "cpu") -> Classifier:
    """A classifier of the zoo: called with pictures (B, C, H, W) it answers logits; `.features` are its last hidden layer."""
    tensors, record = _read(name)
    if "classifier" not in record:
        raise DTypeError(f"model {name!r}", got="a denoiser", expected="a classifier", remedy=f"Use load({name!r}).")
    net = build(record["classifier"])
    net.load_state_dict(tensors)
    assert isinstance(net, Classifier)
    return net.to(device).eval().requires_grad_(False)


def open_model(name: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> Denoiser:
    """The denoiser of a file's contents, in evaluation mode, its weights frozen."""
    from wayfield.train.spec import denoiser_from

    if "denoiser" not in record:
        kind = "a classifier" if "classifier" in record else "no model of wayfield's"
        raise DTypeError(f"model {name!r}", got=kind, expected="a denoiser", remedy="Classifiers: load_classifier().")
    denoiser = denoiser_from(record["denoiser"], tensors)
    freeze(denoiser.net)
    return denoiser


def freeze(net: nn.Module) -> None:
    """Evaluation mode, no gradients to the weights."""
    net.eval().requires_grad_(False)


def _folder() -> FilePath:
    return FilePath(str(resources.files(__name__)))


def _path(name: str) -> FilePath:
    if name not in names():
        raise unknown_name("model", name, names())
    return _folder() / f"{name}.safetensors"


def _read(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if name.endswith(".safetensors"):
        return files.read(name)
    path = _path(name)
    tensors, record = files.read(path)
    if files.digest(tensors, "") != card(name)["sha256"]:
        raise CheckpointError(
            f"file {str(path)!r}",
            got="weights that are not those of its card",
            expected=card(name)["sha256"],
            remedy="Install wayfield again.",
        )
    return tensors, record
