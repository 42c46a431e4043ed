"""What is trained: a network together with its loss. The loop knows no more of it.

    Denoising(denoiser)        loss_k = `denoising_loss` of row k at its level           any output kind and path
    Classifying(net)           loss_k = -log softmax(net(x0_k))[label_k]                 clean samples

Another kind of training (a distilled student, an adapter) is one more class here or beside its method; if it makes a
model that `wayfield train` can be asked for, it also has a line in `train.kinds`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import ConditionError, DTypeError
from wayfield.core.path import Path, Straight
from wayfield.data.dataset import Dataset
from wayfield.field.cond import Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import Classifier, spec_of
from wayfield.train.batches import Batch
from wayfield.train.config import TrainConfig
from wayfield.train.latents import StoredCodec
from wayfield.train.losses import denoising_loss
from wayfield.train.spec import denoiser_spec

__all__ = ["Classifying", "Denoising", "Task", "as_task", "with_weights"]


class Task(ABC):
    """A network to train and the loss of its rows."""

    @property
    @abstractmethod
    def net(self) -> nn.Module:
        """The network, trained in place."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """Where training levels live."""

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """The conditions it wants from the data."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...] | None:
        """The data shape *D it wants, None for any."""

    @abstractmethod
    def losses(self, batch: Batch, config: TrainConfig) -> Tensor:
        """The loss of each row, (B,), differentiable in the network's parameters. All of the batch is on the device."""

    @abstractmethod
    def around(self, net: nn.Module) -> Task:
        """The same task around another module with the same interface."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """What a resumed run must agree on, apart from settings, data and the network's shapes."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What rebuilds the model around its weights, JSON types under the key of its kind, see `train.kinds`."""

    def finish(self, dataset: Dataset, folder: FilePath) -> dict[str, Any]:
        """What the record keeps besides: figures measured on the data after training, names of files put in `folder`.

        Nothing for most.
        """
        return {}


@final
@dataclass(frozen=True, eq=False)
class Denoising(Task):
    """Train a denoiser on the loss that its kind, weight and levels define. latents: the codec of its data, if any."""

    denoiser: Denoiser
    latents: StoredCodec | None = None

    @property
    def net(self) -> nn.Module:
        """The denoiser's."""
        return self.denoiser.net

    @property
    def path(self) -> Path:
        """The denoiser's."""
        return self.denoiser.path

    @property
    def schema(self) -> Schema:
        """The denoiser's."""
        return self.denoiser.schema

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The denoiser's."""
        return self.denoiser.shape

    def losses(self, batch: Batch, config: TrainConfig) -> Tensor:
        """See `losses.denoising_loss`."""
        return denoising_loss(self.denoiser, batch.x0, batch.cond, batch.t, batch.eps, weight=config.weight)

    def around(self, net: nn.Module) -> Denoising:
        """See `Task`."""
        return replace(self, denoiser=replace(self.denoiser, net=net))

    def identity(self) -> dict[str, str]:
        """See `Task`."""
        return {k: repr(getattr(self.denoiser, k)) for k in ("path", "kind", "time", "scale_input", "schema")}

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {"denoiser": denoiser_spec(self.denoiser)}

    def finish(self, dataset: Dataset, folder: FilePath) -> dict[str, Any]:
        """The codec, if any; see `latents`."""
        return {} if self.latents is None else {"codec": self.latents.keep(folder)}


@final
@dataclass(frozen=True, eq=False)
class Classifying(Task):
    """Train a classifier on clean samples by cross entropy. Labels are the data's "label" condition, never dropped."""

    classifier: nn.Module
    labels: Schema
    sample_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.classifier, Classifier) and self.classifier.config.noise_aware:
            remedy = "Set noise_aware = False."
            raise DTypeError("classifier", got="a noise-aware one", expected="one for clean samples", remedy=remedy)
        if set(self.labels.fields) != {"label"}:
            got, remedy = sorted(self.labels.fields), "Use data with labels."
            raise ConditionError("conditions of a classifier", got=got, expected=["label"], remedy=remedy)

    @property
    def net(self) -> nn.Module:
        """The classifier."""
        return self.classifier

    @property
    def path(self) -> Path:
        """Not used: samples are clean."""
        return Straight()

    @property
    def schema(self) -> Schema:
        """The label alone."""
        return self.labels

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The classifier's."""
        return self.sample_shape

    def losses(self, batch: Batch, config: TrainConfig) -> Tensor:
        """Cross entropy, (B,)."""
        return torch.nn.functional.cross_entropy(self.classifier(batch.x0), batch.cond["label"], reduction="none")

    def around(self, net: nn.Module) -> Classifying:
        """See `Task`."""
        return replace(self, classifier=net)

    def identity(self) -> dict[str, str]:
        """See `Task`."""
        return {"task": "classify", "schema": repr(self.labels)}

    def describe(self) -> dict[str, Any]:
        """See `Task`."""
        return {"classifier": spec_of(self.classifier)}


def as_task(model: Denoiser | Task) -> Task:
    """A denoiser's usual task, or the task given."""
    return model if isinstance(model, Task) else Denoising(model)


def with_weights(task: Task, tensors: Mapping[str, Tensor]) -> Task:
    """The same task around a copy of its network that holds `tensors`, a state_dict; in evaluation mode, frozen."""
    net = copy.deepcopy(task.net)
    net.load_state_dict(dict(tensors))
    return task.around(net.eval().requires_grad_(False))
