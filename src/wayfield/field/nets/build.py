"""Networks from plain data and back, so that a checkpoint can say in JSON which network its weights belong to.

    build({"net": "UNet", "shape": [1, 8, 8], "channels": [32, 64]}, seed=3)  ->  the network, seeded
    spec_of(network)  ->  {"net": "UNet", "shape": [1, 8, 8], ...}, every field, JSON types only

`spec_of(build(spec))` is `spec` with its defaults written out, and `build(spec_of(net), seed=s)` has the weights that
`net` had if it was built with seed s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from torch import nn

from wayfield.core.errors import DTypeError, UnknownNameError, unknown_name
from wayfield.field.nets.autoencoder import Autoencoder, AutoencoderConfig
from wayfield.field.nets.classifier import Classifier, ClassifierConfig
from wayfield.field.nets.detector import Detector, DetectorConfig
from wayfield.field.nets.dit import DiT, DiTConfig
from wayfield.field.nets.mlp import ResidualMLP, ResidualMLPConfig
from wayfield.field.nets.unet import UNet, UNetConfig

__all__ = ["NETS", "build", "spec_of"]

NETS: dict[str, tuple[type, type]] = {
    "Autoencoder": (Autoencoder, AutoencoderConfig),
    "Classifier": (Classifier, ClassifierConfig),
    "Detector": (Detector, DetectorConfig),
    "DiT": (DiT, DiTConfig),
    "ResidualMLP": (ResidualMLP, ResidualMLPConfig),
    "UNet": (UNet, UNetConfig),
}


def build(spec: Mapping[str, Any], *, seed: int = 0) -> nn.Module:
    """The network that `spec` describes, on the CPU, in the default dtype, weights drawn from `seed` alone.

    spec: {"net": name in NETS, ...fields of its config}; lists stand for tuples. The global generator is not touched.
    """
    if not isinstance(spec, Mapping):
        remedy = "Load the JSON text first."
        raise DTypeError("network spec", got=type(spec).__name__, expected="a mapping", remedy=remedy)
    name = spec.get("net", "")
    if name not in NETS:
        raise unknown_name("network", name, NETS)
    net, config = NETS[name]
    known = {field.name: field for field in fields(config)}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items() if key != "net"}
    for key in given:
        if key not in known:
            raise unknown_name(f"{name} field", key, known)
    for key, field in known.items():
        if key not in given and field.default is MISSING:
            remedy = f"Add {key!r} to the spec."
            raise UnknownNameError(f"{name} field {key!r}", got="nothing", expected="a value", remedy=remedy)
    return net(config(**given), seed=seed)


def spec_of(net: nn.Module) -> dict[str, Any]:
    """The spec of a network of this folder, also of a compiled one: JSON types only, every field written out."""
    config = getattr(net, "config", None)
    for name, (_, kind) in NETS.items():
        if type(config) is kind:
            values = {field.name: getattr(config, field.name) for field in fields(kind)}
            return {"net": name} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    raise unknown_name("network", type(net).__name__, NETS)
