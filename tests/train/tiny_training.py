"""A training of a second, for tests that interrupt or spread one; as a program: tiny_training.py OUT [slow | muon]."""

from __future__ import annotations

import os
import sys
import time

import torch

from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import EDM
from wayfield.core.predict import Kind
from wayfield.data import InMemory
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import build
from wayfield.train import HalfLifeEMA, LogNormal, TrainConfig, fit

SCHEMA = Schema({"label": Field(values=4)}, {"label": 3})
SPEC = {"net": "ResidualMLP", "shape": [2], "width": 16, "blocks": 1, "num_classes": 3}


def points(size: int = 50) -> InMemory:
    """Three clusters in the plane, labelled."""
    label = torch.arange(size) % 3
    centres = torch.tensor([[0.0, 1.0], [0.9, -0.5], [-0.9, -0.5]])
    return InMemory(centres[label] + 0.1 * SeededNoise(7, size).draw((2,), Address(0)), {"label": label}, SCHEMA)


def denoiser(seed: int = 0) -> Denoiser:
    """A small labelled EDM denoiser."""
    return Denoiser(build(SPEC, seed=seed), EDM(10.0), Kind("edm", 0.7), "log_sigma/4", schema=SCHEMA, shape=(2,))


def config(**changes) -> TrainConfig:
    """Sixty steps on an odd batch, so that nothing divides evenly."""
    values = {"steps": 60, "batch": 9, "lr": 3e-3, "warmup": 5, "weight": "edm", "levels": LogNormal(-0.6, 1.2)}
    return TrainConfig(**(values | {"ema": HalfLifeEMA(200.0), "log_every": 8, "save_every": 10} | changes))


LONG = {"steps": 300, "save_every": 4}
MUON = {"optimizer": "muon", "weight_decay": 0.1}


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in conftest.py: matrix products round differently under other settings of threads
    how = sys.argv[2] if len(sys.argv) > 2 else ""
    if how == "slow":  # every save takes a while, so that a kill can fall into one
        fsync = os.fsync
        os.fsync = lambda fd: (fsync(fd), time.sleep(0.02))[0]
    settings = {"slow": LONG, "muon": MUON, "": {}}[how]
    fit(denoiser(), points(), config(**settings), out=sys.argv[1], progress=False)
