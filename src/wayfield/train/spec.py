"""Denoisers and training settings as plain JSON, and back: what a config file says and what a checkpoint remembers.

A part is written as its role, its class and its fields, with defaults left out or written out as one likes:

    {"path": "EDM", "sigma_max": 10.0}          {"path": "Tabulated", "schedule": "cosine", "T": 1000}
    {"levels": "LogNormal", "mean": -0.6}       {"levels": "Shifted", "shift": 3.0, "base": {"levels": "Uniform"}}
    {"ema": "PowerEMA", "widths": [0.05, 0.1]}  {"weight": "min_snr", "gamma": 5.0} or just "min_snr"

Every unknown name and every unknown key is refused with the nearest known one. `X_from(X_spec(x))` is x.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, UnknownNameError, unknown_name
from wayfield.core.path import EDM, VE, VP, Cosine, Path, Straight, Trig
from wayfield.core.predict import Kind
from wayfield.core.schedule import Tabulated, tabulated
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import build, spec_of
from wayfield.train.config import TrainConfig
from wayfield.train.ema import EMA, HalfLifeEMA, PowerEMA
from wayfield.train.levels import LogitNormal, LogNormal, Shifted, Uniform
from wayfield.train.losses import Weight

__all__ = [
    "check_keys",
    "config_from",
    "config_spec",
    "denoiser_from",
    "denoiser_spec",
    "path_from",
    "path_spec",
    "schema_from",
    "schema_spec",
]

_PATHS = {c.__name__: c for c in (Cosine, EDM, Straight, Tabulated, Trig, VE, VP)}
_LEVELS = {c.__name__: c for c in (LogNormal, LogitNormal, Shifted, Uniform)}
_EMAS = {c.__name__: c for c in (EMA, HalfLifeEMA, PowerEMA)}
_TABLE = ("schedule", "T", "zero_terminal_snr")


def path_spec(path: Path) -> dict[str, Any]:
    """The spec of a path of the library; a table is written out. Raises UnknownNameError for a class of your own."""
    return _spec("path", path, _PATHS)


def path_from(spec: Any) -> Path:
    """The path of a spec; "Tabulated" takes a table `abar`, or `schedule`, `T` and `zero_terminal_snr`."""
    if isinstance(spec, Mapping) and spec.get("path") == "Tabulated" and "abar" not in spec:
        check_keys("Tabulated", spec, ("path", *_TABLE))
        return tabulated(
            spec.get("schedule", "linear"), spec.get("T", 1000), zero_terminal_snr=spec.get("zero_terminal_snr", False)
        )
    return _part("path", spec, _PATHS)


def schema_spec(schema: Schema) -> dict[str, Any]:
    """The spec of a schema: {"fields": {name: {"shape", "dtype", "values"}}, "null": {...} or None}."""
    described = {n: {"shape": list(f.shape), "dtype": f.dtype, "values": f.values} for n, f in schema.fields.items()}
    null = schema.null
    if null is not None:
        null = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in null.items()}
    return {"fields": described, "null": null}


def schema_from(spec: Any) -> Schema:
    """The schema of a spec."""
    check_keys("schema", spec, ("fields", "null"))
    described = {}
    for name, field in spec.get("fields", {}).items():
        check_keys(f"condition {name!r}", field, ("shape", "dtype", "values"))
        described[name] = Field(**{**field, "shape": tuple(field.get("shape", ()))})
    null = spec.get("null")
    if null is not None:
        null = {k: torch.tensor(v) if isinstance(v, list) else v for k, v in null.items()}
    return Schema(described, null)


def denoiser_spec(denoiser: Denoiser) -> dict[str, Any]:
    """Everything of a denoiser but its weights, JSON types only. UnknownNameError for parts not of the library."""
    if denoiser.call is not None:
        remedy = "Keep the network in a class whose forward is called as net(x, time, cond)."
        raise DTypeError("denoiser to describe", got="call = a function", expected="call = None", remedy=remedy)
    return {
        "net": spec_of(denoiser.net),
        "path": path_spec(denoiser.path),
        "kind": denoiser.output.name,
        "sigma_data": denoiser.output.sigma_data,
        "time": denoiser.time,
        "scale_input": denoiser.scale_input,
        "schema": schema_spec(denoiser.schema),
        "shape": None if denoiser.shape is None else list(denoiser.shape),
        "dtype": None if denoiser.dtype is None else str(denoiser.dtype).removeprefix("torch."),
    }


def denoiser_from(spec: Any, tensors: Mapping[str, Tensor] | None = None, *, seed: int = 0) -> Denoiser:
    """The denoiser of a spec. tensors: its network's state_dict; None leaves the weights drawn from `seed`.

    spec: as `denoiser_spec` writes it, or a record with such a spec under "denoiser", as `train` writes it.
    """
    if isinstance(spec, Mapping) and "denoiser" in spec:
        spec = spec["denoiser"]
    optional = ("sigma_data", "time", "scale_input", "schema", "shape", "dtype")
    check_keys("denoiser", spec, ("net", "path", "kind", *optional), required=("net", "path", "kind"))
    net = build(spec["net"], seed=seed)
    if tensors is not None:
        net.load_state_dict(dict(tensors))
        net.eval().requires_grad_(False)
    kind, shape = Kind(spec["kind"], spec.get("sigma_data", 0.5)), spec.get("shape")
    dtype = None if spec.get("dtype") is None else getattr(torch, spec["dtype"])
    return Denoiser(
        net,
        path_from(spec["path"]),
        kind,
        spec.get("time", "t"),
        spec.get("scale_input", False),
        schema_from(spec.get("schema", {})),
        None if shape is None else tuple(shape),
        dtype=dtype,
    )


def config_spec(config: TrainConfig) -> dict[str, Any]:
    """The settings of a training as JSON types, every field written out."""
    out = {f.name: _plain(getattr(config, f.name)) for f in fields(config)}
    out["levels"] = _spec("levels", config.levels, _LEVELS)
    out["ema"] = None if config.ema is None else _spec("ema", config.ema, _EMAS)
    if isinstance(w := config.weight, Weight):
        out["weight"] = {"weight": w.name, "gamma": w.gamma, "k": w.k, "sigma_data": w.sigma_data}
    return out


def config_from(spec: Any) -> TrainConfig:
    """The settings that a mapping of TrainConfig's fields describes."""
    check_keys("train", spec, [f.name for f in fields(TrainConfig)])
    values = dict(spec)
    if "levels" in values:
        values["levels"] = _part("levels", values["levels"], _LEVELS)
    if values.get("ema") is not None:
        values["ema"] = _part("ema", values["ema"], _EMAS)
    if isinstance(w := values.get("weight"), Mapping):
        check_keys("weight", w, ("weight", "gamma", "k", "sigma_data"), required=("weight",))
        values["weight"] = Weight(w["weight"], **{k: v for k, v in w.items() if k != "weight"})
    return TrainConfig(**values)


def check_keys(what: str, spec: Any, known: Any, *, required: Any = ()) -> None:
    """Refuse what is no mapping (DTypeError), an unknown key or a missing one (UnknownNameError)."""
    if not isinstance(spec, Mapping):
        raise DTypeError(what, got=repr(spec), expected="a mapping", remedy="Write {...}; see train.spec.")
    for key in spec:
        if key not in known:
            raise unknown_name(f"{what} setting", key, known)
    for key in required:
        if key not in spec:
            remedy = f"Add {key!r}."
            raise UnknownNameError(f"{what} setting {key!r}", got="nothing", expected="a value", remedy=remedy)


def _part(role: str, spec: Any, table: Mapping[str, type]) -> Any:
    """The object behind {role: class name, field: value, ...}; a `base` is a part of the same role."""
    if isinstance(spec, str):
        spec = {role: spec}
    if not isinstance(spec, Mapping):
        raise DTypeError(role, got=repr(spec), expected="a name or a mapping", remedy="See train.spec.")
    name = spec.get(role, "")
    if name not in table:
        raise unknown_name(role, name, table)
    described = fields(table[name])
    required = [f.name for f in described if f.default is MISSING and f.default_factory is MISSING]
    check_keys(name, spec, (role, *(f.name for f in described)), required=required)
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items() if k != role}
    if "base" in values:
        values["base"] = _part(role, values["base"], table)
    return table[name](**values)


def _spec(role: str, part: Any, table: Mapping[str, type]) -> dict[str, Any]:
    name = type(part).__name__
    if table.get(name) is not type(part):
        raise unknown_name(role, name, table)
    values = {f.name: getattr(part, f.name) for f in fields(part)}
    return {role: name} | {k: _spec(role, v, table) if k == "base" else _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
