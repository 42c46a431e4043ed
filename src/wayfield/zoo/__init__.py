"""Small checkpoints that ship inside the package, trained by this project's own `train` command; no network is needed.

Each is NAME.safetensors (weights, and a record from which the model is rebuilt) beside NAME.json, its card: data,
command, seed, figures and the hash of the weights. A file that does not match its card is refused. Every function here
also takes the path of a file that `train` wrote, if it ends in .safetensors. There is one function for each kind of
model; a model of another kind is refused with the name of the right one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.field.nets import Classifier
from wayfield.train.latents import codec_of
from wayfield.train.stored import card, names, open_model

if TYPE_CHECKING:
    from wayfield.field.nets.detector import Detector

__all__ = ["card", "codec_of", "load", "load_classifier", "load_codec", "load_detector", "load_file", "names"]


def load(name: str, device: torch.device | str = "cpu") -> Denoiser:
    """A denoiser of the zoo by name, or one written by `train` by its path (ending in .safetensors), ready to sample.

    Raises UnknownNameError with the nearest name, CheckpointError for a damaged file, DTypeError for another kind.
    """
    return open_model(name, "denoiser").to(device)


def load_classifier(name: str, device: torch.device | str = "cpu") -> Classifier:
    """A classifier of the zoo, or a file's, ready to use: pictures (B, C, H, W) to logits; `.features` is its last
    layer. Raises as `load` does.
    """
    return open_model(name, "classifier").to(device)


def load_codec(name: str, device: torch.device | str = "cpu") -> LatentCodec:
    """An autoencoder of the zoo, or a file's, as the codec between pictures and standardised latents. Raises as `load`
    does.
    """
    return open_model(name, "autoencoder").to(device)


def load_detector(name: str, device: torch.device | str = "cpu") -> Detector:
    """A detector of the zoo, or a file's, ready to read pictures (B, C, H, W). Raises as `load` does."""
    return open_model(name, "detector").to(device)


def load_file(path: str) -> Any:
    """The model in a file written by `train`, of any kind, in evaluation mode, its weights frozen."""
    return open_model(path)
