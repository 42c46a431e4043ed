"""From a config to the untrained task, its data and its settings; every part is checked before any work is done.

What the data decide (shape, sizes of the conditions) is filled into the network's spec where it is left out, and
compared where it is not. Kinds other than denoisers have no noise levels, so the settings of those are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from wayfield.core.errors import ConditionError, ShapeError, unknown_name
from wayfield.data.dataset import Dataset, load_dataset
from wayfield.field.cond import Field, Schema
from wayfield.field.nets import NETS, build
from wayfield.train.config import TrainConfig
from wayfield.train.latents import Encoded, find_codec
from wayfield.train.spec import check_keys, config_from, denoiser_from, schema_spec
from wayfield.train.stored import open_model
from wayfield.train.task import Classifying, Denoising

__all__ = ["NOISE_SETTINGS", "chosen", "clean_settings", "setup_classifier", "setup_denoiser"]

_REQUIRED = ("data", "net", "path", "kind")
_OPTIONAL = ("sigma_data", "time", "scale_input", "conditions", "codec", "start", "train")
NOISE_SETTINGS = ("weight", "levels", "drop")
"""Settings of a training that mean nothing without noise levels."""


def setup_denoiser(config: Mapping[str, Any]) -> tuple[Denoising, Dataset, TrainConfig]:
    """A denoiser of the data, or of their latents, told the chosen conditions."""
    check_keys("config", config, (*_REQUIRED, *_OPTIONAL), required=_REQUIRED)
    settings = config_from(config.get("train", {}))
    dataset, latents = load_dataset(config["data"]), None
    spec = {k: config[k] for k in ("path", "kind", "sigma_data", "time", "scale_input") if k in config}
    if config.get("codec") is not None:
        latents = find_codec(config["codec"])
        dataset = Encoded(latents.codec, dataset)
        spec = {"sigma_data": latents.codec.sigma_data} | spec
    schema = chosen(dataset.schema, config.get("conditions"))
    spec |= {"net": _complete(config["net"], dataset.shape, schema), "schema": schema_spec(schema)}
    denoiser = denoiser_from(spec | {"shape": list(dataset.shape)}, seed=settings.seed)
    if config.get("start") is not None:
        _start(denoiser.net, config["start"])
    return Denoising(denoiser, latents), dataset, settings


def setup_classifier(config: Mapping[str, Any]) -> tuple[Classifying, Dataset, TrainConfig]:
    """A classifier of clean samples by the data's "label"."""
    check_keys("config", config, ("data", "classifier", "train"), required=("data", "classifier"))
    settings = clean_settings("classifier", config.get("train", {}))
    dataset = load_dataset(config["data"])
    labels = chosen(dataset.schema, ["label"])
    spec = {"net": "Classifier", "shape": list(dataset.shape), **config["classifier"]}
    values = labels.fields["label"].values or 0
    net = build({"classes": values - (labels.null is not None), **spec}, seed=settings.seed)
    return Classifying(net, labels, dataset.shape), dataset, settings


def clean_settings(key: str, given: Any) -> TrainConfig:
    """The settings of a kind of model that has no noise levels. Raises UnknownNameError for those that need them."""
    known = [f.name for f in fields(TrainConfig) if f.name not in NOISE_SETTINGS]
    check_keys(f"train of a {key}", given, known)
    return config_from({**given, "drop": 0.0})


def chosen(schema: Schema, names: list[str] | None) -> Schema:
    """The part of a schema with these names; all of it for None. Raises UnknownNameError."""
    if names is None:
        return schema
    for name in names:
        if name not in schema.fields:
            raise unknown_name("condition", name, schema.fields or ("(this data has none)",))
    null = None if schema.null is None else {name: schema.null[name] for name in names}
    return Schema({name: schema.fields[name] for name in names}, null)


def _start(net: nn.Module, name: str) -> None:
    """Give a network the weights of a trained denoiser, of the zoo or a file, of the same architecture."""
    trained = open_model(name, "denoiser").net
    had, wanted = ({k: tuple(v.shape) for k, v in n.state_dict().items()} for n in (trained, net))
    if had != wanted:
        differ = sorted(k for k in had.keys() | wanted.keys() if had.get(k) != wanted.get(k))
        got, remedy = f"another network: {differ[0]} is {had.get(differ[0])}", "Copy `net` and the data of its config."
        raise ShapeError(f"start {name!r}", got=got, expected=f"{wanted.get(differ[0])}", remedy=remedy)
    net.load_state_dict(trained.state_dict())


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
