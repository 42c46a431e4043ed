"""From one JSON config to a trained model in one file: what `wayfield train` does.

    {"data": "digits",
     "net": {"net": "ResidualMLP", "width": 160, "blocks": 2},
     "path": {"path": "EDM", "sigma_max": 10.0}, "kind": "edm", "sigma_data": 0.752, "time": "log_sigma/4",
     "train": {"steps": 1500, "weight": "edm", "levels": {"levels": "LogNormal", "mean": -0.6, "std": 1.2}}}

data: a name from `data.DATASETS` / net: see `field.nets.build`; `shape` and the sizes of its conditions come from the
data where they are left out / conditions: those of the data's to use, all by default / train: fields of `TrainConfig`.
A classifier of clean samples is trained from

    {"data": "digits", "classifier": {"width": 32}, "train": {"steps": 600}}

The network starts from train.seed. The result is OUT/model.safetensors: the averaged weights under their own names,
and a record {"format", "version", "denoiser" or "classifier", "config", "figures"} from which the model is rebuilt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path as FilePath
from typing import Any

import torch

from wayfield import files
from wayfield.core.errors import ConditionError, ShapeError, unknown_name
from wayfield.data.dataset import Dataset, load_dataset
from wayfield.field.cond import Field, Schema
from wayfield.field.nets import NETS, build, spec_of
from wayfield.train.config import TrainConfig
from wayfield.train.loop import Fit, fit
from wayfield.train.spec import check_keys, config_from, config_spec, denoiser_from, denoiser_spec, schema_spec
from wayfield.train.task import Classifying, Denoising, Task

__all__ = ["MODEL", "setup", "train"]

MODEL = "model.safetensors"
_REQUIRED = ("data", "net", "path", "kind")
_DENOISING = ("weight", "levels", "drop")  # settings that mean nothing to a classifier
_OPTIONAL = ("sigma_data", "time", "scale_input", "conditions", "train")


def train(
    config: Mapping[str, Any],
    out: str | os.PathLike[str],
    *,
    resume: bool = True,
    progress: bool = True,
    device: str | None = None,
    log: Callable[[Mapping[str, float]], None] | None = None,
) -> Fit:
    """Train as `config` says and write OUT/model.safetensors.

    config: see the module / out: folder of the model, checkpoint and log / device: by default the GPU if there is one /
    resume, progress, log: as in `loop.fit`. Raises UnknownNameError for unknown or missing keys, and what `fit` raises.
    """
    task, dataset, settings = setup(config)
    task.net.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    result = fit(task, dataset, settings, out=out, resume=resume, progress=progress, log=log)
    if os.environ.get("RANK", "0") == "0":
        described = {k: v for k, v in config.items() if k != "train"} | {"train": config_spec(settings)}
        figures = {
            "steps": result.step,
            "samples": result.step * settings.batch,
            "loss": result.loss,
            "seconds": round(result.seconds, 1),
            "parameters": sum(p.numel() for p in result.model.net.parameters()),
        }
        record: dict[str, Any] = {"format": "wayfield.model", "version": 1}
        if isinstance(result.model, Denoising):
            record["denoiser"] = denoiser_spec(result.model.denoiser)
        else:
            record["classifier"] = spec_of(result.model.net)
        record |= {"config": described, "figures": figures}
        files.write(FilePath(out) / MODEL, result.model.net.state_dict(), record)
    return result


def setup(config: Mapping[str, Any]) -> tuple[Task, Dataset, TrainConfig]:
    """The untrained task, the data and the settings of a config; every part checked before any work is done."""
    if "classifier" in config:
        return _classifier(config)
    check_keys("config", config, (*_REQUIRED, *_OPTIONAL), required=_REQUIRED)
    settings = config_from(config.get("train", {}))
    dataset = load_dataset(config["data"])
    schema = _chosen(dataset.schema, config.get("conditions"))
    spec = {k: config[k] for k in ("path", "kind", "sigma_data", "time", "scale_input") if k in config}
    spec |= {"net": _complete(config["net"], dataset.shape, schema), "schema": schema_spec(schema)}
    return Denoising(denoiser_from(spec | {"shape": list(dataset.shape)}, seed=settings.seed)), dataset, settings


def _classifier(config: Mapping[str, Any]) -> tuple[Task, Dataset, TrainConfig]:
    check_keys("config", config, ("data", "classifier", "train"), required=("data", "classifier"))
    given = config.get("train", {})
    check_keys("train of a classifier", given, [f.name for f in fields(TrainConfig) if f.name not in _DENOISING])
    settings = config_from({**given, "drop": 0.0})
    dataset = load_dataset(config["data"])
    labels = _chosen(dataset.schema, ["label"])
    spec = {"net": "Classifier", "shape": list(dataset.shape), **config["classifier"]}
    values = labels.fields["label"].values or 0
    net = build({"classes": values - (labels.null is not None), **spec}, seed=settings.seed)
    return Classifying(net, labels, dataset.shape), dataset, settings


def _chosen(schema: Schema, names: list[str] | None) -> Schema:
    """The part of a schema with these names; all of it for None."""
    if names is None:
        return schema
    for name in names:
        if name not in schema.fields:
            raise unknown_name("condition", name, schema.fields or ("(this data has none)",))
    null = None if schema.null is None else {name: schema.null[name] for name in names}
    return Schema({name: schema.fields[name] for name in names}, null)


def _complete(net: Any, shape: tuple[int, ...], schema: Schema) -> Any:
    """A network spec with what the data decide filled in, or compared: shape, classes without the null, vocabulary."""
    known = NETS.get(net.get("net", "")) if isinstance(net, Mapping) else None
    if known is None:
        return net  # `build` says what is wrong with it
    label, tokens = schema.fields.get("label", Field(values=0)), schema.fields.get("tokens", Field(values=0))
    null = "label" in schema.fields and schema.null is not None
    decided: dict[str, Any] = {"shape": list(shape), "num_classes": (label.values or 0) - null}
    decided |= {"vocab": tokens.values or 0} | ({"max_tokens": tokens.shape[0]} if tokens.shape else {})
    decided = {k: v for k, v in decided.items() if k in {f.name for f in fields(known[1])}}
    for key, value in decided.items():
        if key in net and (list(net[key]) if key == "shape" else net[key]) != value:
            error = ShapeError if key == "shape" else ConditionError
            remedy = "Leave it out; for a network without conditions set conditions = []."
            raise error(f"network setting {key!r}", got=net[key], expected=f"{value}, as the data", remedy=remedy)
    return decided | dict(net)
