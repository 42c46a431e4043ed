"""Small checkpoints that ship inside the package, trained by this project's own `train` command; no network is needed.

Each is NAME.safetensors (weights, and a record from which the model is rebuilt) beside NAME.json, its card: data,
command, seed, figures and the hash of the weights. A file that does not match its card is refused.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from wayfield import files
from wayfield.core.errors import CheckpointError, DTypeError, unknown_name
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import Classifier, build
from wayfield.train.spec import denoiser_from

__all__ = ["card", "load", "load_classifier", "load_file", "names"]


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
    model = _open(name)
    if not isinstance(model, Denoiser):
        remedy = f"Use load_classifier({name!r})."
        raise DTypeError(f"model {name!r}", got="a classifier", expected="a denoiser", remedy=remedy)
    return model.to(device)


def load_classifier(name: str, device: torch.device | str = "cpu") -> Classifier:
    """A classifier of the zoo, or a file's, ready to use: pictures (B, C, H, W) to logits; `.features` is its last
    layer.

    Raises as `load` does, and DTypeError for a denoiser.
    """
    model = _open(name)
    if not isinstance(model, Classifier):
        raise DTypeError(f"model {name!r}", got="a denoiser", expected="a classifier", remedy=f"Use load({name!r}).")
    return model.to(device)


def load_file(path: str) -> Denoiser | Classifier:
    """The model in a file written by `train`, in evaluation mode, its weights frozen."""
    tensors, record = files.read(path)
    return _rebuild(path, tensors, record)


def _open(name: str) -> Denoiser | Classifier:
    if name.endswith(".safetensors"):
        return load_file(name)
    path = _path(name)
    tensors, record = files.read(path)
    if files.digest(tensors, "") != card(name)["sha256"]:
        raise CheckpointError(
            f"file {str(path)!r}",
            got="weights that are not those of its card",
            expected=card(name)["sha256"],
            remedy="Install wayfield again.",
        )
    return _rebuild(name, tensors, record)


def _rebuild(name: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> Denoiser | Classifier:
    if "classifier" in record:
        net = build(record["classifier"])
        net.load_state_dict(tensors)
        assert isinstance(net, Classifier)
        return net.eval().requires_grad_(False)
    if "denoiser" not in record:
        got, expected = f"a file with {sorted(record)}", "a model written by `wayfield train`"
        raise DTypeError(f"model {name!r}", got=got, expected=expected, remedy="Give the model, not its checkpoint.")
    denoiser = denoiser_from(record["denoiser"], tensors)
    denoiser.net.eval().requires_grad_(False)
    return denoiser


def _folder() -> FilePath:
    return FilePath(str(resources.files(__name__)))


def _path(name: str) -> FilePath:
    if name not in names():
        raise unknown_name("model", name, names())
    return _folder() / f"{name}.safetensors"
