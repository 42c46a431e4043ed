"""From one JSON config to a trained model in one file: what `wayfield train` does.

    {"data": "digits",
     "net": {"net": "ResidualMLP", "width": 160, "blocks": 2},
     "path": {"path": "EDM", "sigma_max": 10.0}, "kind": "edm", "sigma_data": 0.752, "time": "log_sigma/4",
     "train": {"steps": 1500, "weight": "edm", "levels": {"levels": "LogNormal", "mean": -0.6, "std": 1.2}}}

data: a name from `data.DATASETS`, or what else `data.load_dataset` takes / net: see `field.nets.build`; `shape` and the
sizes of its conditions come from the data where they are left out / conditions: those of the data's to use, all by
default, [] for none / codec: train in the latents of this autoencoder, a name of the zoo or a path / train: fields of
`TrainConfig`. Other kinds of models have a key of their own, see `train.kinds`:

    {"data": "digits", "classifier": {"width": 32}, "train": {"steps": 600}}
    {"data": "digits", "autoencoder": {"channels": [16, 32]}, "loss": {"kl": 1e-6}, "train": {"steps": 600}}

The network starts from train.seed, or from the weights of the model that `start` names: one of the zoo, or a path, with
the same network. The result is OUT/model.safetensors: the averaged weights under their own names,
and a record {"format", "version", the kind's key, "config", "figures"} from which the model is rebuilt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any

import torch

from wayfield import files
from wayfield.data.dataset import Dataset
from wayfield.train.config import TrainConfig
from wayfield.train.kinds import kind_of
from wayfield.train.loop import Fit, fit
from wayfield.train.prepare import NOISE_SETTINGS
from wayfield.train.spec import config_spec
from wayfield.train.task import Denoising, Task
from wayfield.train.watch import Watch

__all__ = ["MODEL", "setup", "train"]

MODEL = "model.safetensors"


def train(
    config: Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    resume: bool = True,
    progress: bool = True,
    device: str | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
    watch: Watch | None = None,
) -> Fit:
    """Train as `config` says and write OUT/model.safetensors.

    config: see the module / out: folder of the model, checkpoint and log / device: by default the GPU if there is one /
    resume, progress, log, watch: as in `loop.fit`. Raises UnknownNameError for unknown or missing keys, and what `fit`
    raises.
    """
    task, dataset, settings = setup(config)
    task.net.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    result = fit(task, dataset, settings, out=out, resume=resume, progress=progress, log=log, watch=watch)
    if os.environ.get("RANK", "0") == "0":
        model, folder = result.model, FilePath(out)
        record: dict[str, Any] = {"format": "wayfield.model", "version": 1}
        record |= model.describe() | model.finish(dataset, folder)
        record |= {"config": _described(config, task, settings), "figures": _figures(result, settings)}
        files.write(folder / MODEL, model.net.state_dict(), record)
    return result


def setup(config: Mapping[str, Any]) -> tuple[Task, Dataset, TrainConfig]:
    """The untrained task, the data and the settings of a config; every part checked before any work is done."""
    return kind_of(config).setup(config)


def _described(config: Mapping[str, Any], task: Task, settings: TrainConfig) -> dict[str, Any]:
    """The config with the defaults of its training written out; `setup` takes it again."""
    given = config.get("train", {})
    unused = () if isinstance(task, Denoising) else [name for name in NOISE_SETTINGS if name not in given]
    return {**config, "train": {k: v for k, v in config_spec(settings).items() if k not in unused}}


def _figures(result: Fit, settings: TrainConfig) -> dict[str, Any]:
    return {
        "steps": result.step,
        "samples": result.step * settings.batch,
        "loss": result.loss,
        "seconds": round(result.seconds, 1),
        "parameters": sum(p.numel() for p in result.model.net.parameters()),
    }
