"""Models of the zoo's kinds in a moment: small networks with random weights, stored as `train` stores them."""

from pathlib import Path

import torch

from wayfield import files
from wayfield.core.path import Cosine, Path as NoisePath, Straight
from wayfield.core.predict import Kind
from wayfield.data.scenes.words import LENGTH, SCHEMA, TOKENS
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import build, spec_of
from wayfield.train.spec import denoiser_spec

LABELS = Schema({"label": Field(values=11)}, null={"label": 10})


def store(folder: Path, name: str, net, described: dict) -> str:
    """The path of a model file. The weights are normal numbers, so that no output is zero and all inputs matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    path = folder / name / "model.safetensors"
    files.write(path, net.state_dict(), {"format": "wayfield.model", "version": 1, **described})
    return str(path)


def denoiser(
    folder: Path, name: str, schema: Schema, shape: tuple[int, ...], path: NoisePath = Cosine(), kind: str = "v"
) -> str:
    """A denoiser of pictures that reads the conditions of a schema."""
    spec = {"net": "UNet", "shape": list(shape), "channels": [8, 8], "blocks": 1, "patch": 2, "width": 16}
    spec |= {"num_classes": 10} if schema is LABELS else {"vocab": len(TOKENS), "max_tokens": LENGTH}
    net = build(spec)
    model = Denoiser(net, path, Kind(kind, 0.5), "log_snr", schema=schema, shape=shape)
    return store(folder, name, net, {"denoiser": denoiser_spec(model)})


def words(folder: Path, name: str = "words", path: NoisePath = Cosine(), kind: str = "v") -> str:
    """A denoiser of scenes that reads prompts."""
    return denoiser(folder, name, SCHEMA, (3, 32, 32), path, kind)


def clothes(folder: Path) -> str:
    """A denoiser of pictures 1 x 28 x 28 by class."""
    return denoiser(folder, "clothes", LABELS, (1, 28, 28))


def flow(folder: Path) -> str:
    """Another denoiser of scenes, on the straight path."""
    return words(folder, "flow", Straight(), "velocity")


def detector(folder: Path) -> str:
    """A reader of scenes that has learned nothing."""
    net = build({"net": "Detector", "shape": [3, 32, 32], "width": 8})
    return store(folder, "reader", net, {"detector": spec_of(net)})


def classifier(folder: Path) -> str:
    """A classifier of pictures 1 x 28 x 28 that has learned nothing."""
    net = build({"net": "Classifier", "shape": [1, 28, 28], "classes": 10, "width": 8, "levels": 2})
    return store(folder, "judge", net, {"classifier": spec_of(net)})
