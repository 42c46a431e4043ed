"""The kinds of models that can be trained: how the config of each is set up, and how its file is opened again.

A config that has the key of a kind, such as "classifier", is of that kind, and so is a model file whose record has it;
a config with none of the keys is a denoiser's. A further kind is one more line here: a function that sets it up, and
one that rebuilds it where the file holds more than the weights of one network. Both are imported when they are needed.

    setup(config)             -> (task, dataset, settings)        `train.run`
    rebuild(record, tensors)  -> the model, in evaluation mode    `train.stored`
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from torch import Tensor

from wayfield.core.errors import DTypeError, UnsupportedError

if TYPE_CHECKING:
    from wayfield.data.dataset import Dataset
    from wayfield.train.config import TrainConfig
    from wayfield.train.task import Task

__all__ = ["DENOISER", "KINDS", "Trainable", "kind_of", "recorded_kind"]


@final
@dataclass(frozen=True)
class Trainable:
    """One kind. key: of its configs and records / title: with its article / opener: the function of the zoo that opens
    it / setting_up, rebuilding: "module:function".
    """

    key: str
    title: str
    opener: str
    setting_up: str
    rebuilding: str = "wayfield.train.stored:network"

    def setup(self, config: Mapping[str, Any]) -> tuple[Task, Dataset, TrainConfig]:
        """The untrained task, the data and the settings of a config."""
        return _resolve(self.setting_up)(config)

    def rebuild(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
        """The model of a file, in evaluation mode, its weights frozen."""
        return _resolve(self.rebuilding)(record, tensors)


KINDS: Mapping[str, Trainable] = {
    kind.key: kind
    for kind in (
        Trainable(
            "denoiser",
            "a denoiser",
            "load",
            "wayfield.train.prepare:setup_denoiser",
            "wayfield.train.stored:denoiser",
        ),
        Trainable(
            "autoencoder",
            "an autoencoder",
            "load_codec",
            "wayfield.train.encoding:setup_autoencoder",
            "wayfield.train.stored:codec",
        ),
        Trainable("classifier", "a classifier", "load_classifier", "wayfield.train.prepare:setup_classifier"),
        Trainable("detector", "a detector", "load_detector", "wayfield.train.detecting:setup_detector"),
    )
}
"""The kinds by their keys."""

DENOISER = KINDS["denoiser"]


def kind_of(config: Any) -> Trainable:
    """The kind that a config is of. Raises DTypeError for what is no mapping, UnsupportedError for two kinds in one."""
    if not isinstance(config, Mapping):
        raise DTypeError("config", got=repr(config), expected="a mapping", remedy="Write {...}; see train.run.")
    found = [kind for key, kind in KINDS.items() if key in config and kind is not DENOISER]
    if len(found) > 1:
        remedy = "Train one after the other, each from a config of its own."
        raise UnsupportedError("config", got=[kind.key for kind in found], expected="one kind of model", remedy=remedy)
    return found[0] if found else DENOISER


def recorded_kind(name: str, record: Mapping[str, Any]) -> Trainable:
    """The kind of model file `name` by its record. Raises DTypeError for a file that holds no model."""
    for key, kind in KINDS.items():
        if key in record:
            return kind
    got, expected = f"a file with {sorted(record)}", "a model written by `wayfield train`"
    raise DTypeError(f"model {name!r}", got=got, expected=expected, remedy="Give the model, not its checkpoint.")


def _resolve(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
