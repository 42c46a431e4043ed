"""Specs are JSON and round-trip; unknown keys and names are refused with the nearest known one."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_training import SCHEMA, denoiser

from wayfield.core.errors import DTypeError, RangeError, UnknownNameError
from wayfield.core.path import EDM, VE, VP, Cosine, Path, Straight, Trig
from wayfield.core.predict import Kind
from wayfield.core.schedule import Tabulated, tabulated
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets import build
from wayfield.train import EMA, HalfLifeEMA, LogitNormal, LogNormal, PowerEMA, Shifted, TrainConfig, Uniform, Weight
from wayfield.train.spec import (
    config_from,
    config_spec,
    denoiser_from,
    denoiser_spec,
    path_from,
    path_spec,
    schema_from,
    schema_spec,
)


def through_json(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "path",
    [
        Straight(),
        Trig(),
        VP(0.2, 15.0),
        Cosine(0.01),
        VE(0.1, 50.0),
        EDM(10.0),
        tabulated("cosine", 20),
        Tabulated((0.5, 0.1)),
    ],
    ids=repr,
)
def test_paths(path):
    assert path_from(through_json(path_spec(path))) == path


def test_paths_by_schedule_and_by_name_alone():
    spec = {"path": "Tabulated", "schedule": "cosine", "T": 50, "zero_terminal_snr": True}
    assert path_from(spec) == tabulated("cosine", 50, zero_terminal_snr=True)
    assert path_from({"path": "Tabulated"}) == tabulated()
    assert path_from("Straight") == Straight()


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(levels=Shifted(LogNormal(-0.6), 3.0), ema=PowerEMA((0.1, 0.05)), weight=Weight("p2", gamma=0.5)),
        TrainConfig(levels=LogitNormal(), ema=None, clip=None, betas=(0.8, 0.95)),
        TrainConfig(levels=Uniform(0.1), ema=EMA(0.99), weight="min_snr"),
        TrainConfig(ema=HalfLifeEMA(1000.0, None)),
    ],
    ids=range(5),
)
def test_settings(config):
    assert config_from(through_json(config_spec(config))) == config


def test_schemas():
    wide = Schema(
        {"label": Field(values=4), "box": Field((2,), "float32")}, {"label": 3, "box": torch.tensor([0.0, -1.0])}
    )
    for schema in (Schema(), SCHEMA, Schema(SCHEMA.fields), wide):
        back = schema_from(through_json(schema_spec(schema)))
        assert back.fields == schema.fields
        assert (back.null is None) == (schema.null is None)
        if schema.null is not None:
            a, b = back.bind_null(2, "cpu"), schema.bind_null(2, "cpu")
            assert all(torch.equal(a[k], b[k]) for k in b)


def test_denoisers_answer_alike_after_the_round_trip():
    model = denoiser(seed=4)
    with torch.no_grad():
        for p in model.net.parameters():
            p += 0.1
    back = denoiser_from(through_json(denoiser_spec(model)), model.net.state_dict())
    x, cond = torch.linspace(-1, 1, 6).reshape(3, 2), {"label": torch.tensor([0, 1, 3])}
    assert torch.equal(back(x, 0.3, cond).x0, model(x, 0.3, cond).x0)
    assert (back.path, back.kind, back.time, back.shape, back.schema) == (
        EDM(10.0),
        Kind("edm", 0.7),
        "log_sigma/4",
        (2,),
        SCHEMA,
    )
    assert not any(p.requires_grad for p in back.net.parameters())
    assert torch.equal(denoiser_from(denoiser_spec(model), seed=4).net.stem.weight + 0.1, model.net.stem.weight)


class Mine(Path):
    """A path that is not the library's."""

    def scales(self, t):
        return Straight().scales(t)

    def log_snr(self, t):
        return Straight().log_snr(t)

    def time(self, log_snr):
        return Straight().time(log_snr)


NET = {"net": "ResidualMLP", "shape": [2], "width": 8, "blocks": 1}
PLAIN = {"net": NET, "path": "Straight", "kind": "velocity"}


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: path_from({"path": "EMD"}), UnknownNameError, "EDM"),
        (lambda: path_from({"path": "EDM", "sigma_mx": 10.0}), UnknownNameError, "sigma_max"),
        (lambda: path_from({"path": "EDM", "sigma_max": -1.0}), RangeError, "sigma"),
        (lambda: path_from({"path": "Tabulated", "schedul": "linear"}), UnknownNameError, "schedule"),
        (lambda: path_from({"path": "Tabulated", "schedule": "linaer"}), UnknownNameError, "linear"),
        (lambda: path_from(3), DTypeError, "path"),
        (lambda: path_spec(Mine()), UnknownNameError, "Mine"),
        (lambda: config_from({"step": 5}), UnknownNameError, "steps"),
        (lambda: config_from({"levels": {"levels": "LogNormal", "sd": 1.0}}), UnknownNameError, "std"),
        (lambda: config_from({"levels": {"levels": "Shifted", "shift": 2.0}}), UnknownNameError, "base"),
        (
            lambda: config_from({"levels": {"levels": "Shifted", "shift": 2.0, "base": "Unifrom"}}),
            UnknownNameError,
            "Uniform",
        ),
        (lambda: config_from({"ema": {"ema": "PowerEMA", "width": [0.1]}}), UnknownNameError, "widths"),
        (lambda: config_from({"ema": {"ema": "EMA", "decay": "0.9"}}), DTypeError, "decay"),
        (lambda: config_from({"weight": {"gamma": 5.0}}), UnknownNameError, "weight"),
        (lambda: config_from({"weight": "min-snr"}), UnknownNameError, "min_snr"),
        (lambda: config_from([1]), DTypeError, "train"),
        (lambda: denoiser_from({"net": NET, "path": "Straight"}), UnknownNameError, "kind"),
        (lambda: denoiser_from(PLAIN | {"knd": 1}), UnknownNameError, "kind"),
        (lambda: denoiser_from(PLAIN | {"kind": "velocty"}), UnknownNameError, "velocity"),
        (lambda: denoiser_from(PLAIN | {"time": "1000"}), UnknownNameError, "1000t"),
        (lambda: denoiser_from(PLAIN | {"schema": {"field": {}}}), UnknownNameError, "fields"),
        (lambda: schema_from({"fields": {"label": {"value": 3}}}), UnknownNameError, "values"),
        (lambda: denoiser_spec(Denoiser(build(NET), Straight(), "v", call=lambda n, x, t, c: x)), DTypeError, "call"),
        (lambda: denoiser_spec(Denoiser(torch.nn.Identity(), Straight(), "v")), UnknownNameError, "Identity"),
    ],
)
def test_bad_specs_are_refused_by_name(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_the_networks_own_type_is_kept():
    net = build({"net": "ResidualMLP", "shape": [2], "width": 8, "blocks": 1})
    den = Denoiser(net.bfloat16(), EDM(5.0), "edm", "log_sigma/4", shape=(2,), dtype=torch.bfloat16)
    spec = through_json(denoiser_spec(den))
    assert spec["dtype"] == "bfloat16"
    assert denoiser_from(spec).dtype == torch.bfloat16
