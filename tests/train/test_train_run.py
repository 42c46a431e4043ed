"""From a JSON config to a model in one file, and back to a denoiser that samples."""

from __future__ import annotations

import json

import pytest
import torch

import wayfield as wf
from wayfield import files
from wayfield.core.errors import ConditionError, DTypeError, ShapeError, UnknownNameError
from wayfield.data.digits import digits
from wayfield.train import denoiser_from, setup, train

CONFIG = {
    "data": "digits",
    "net": {"net": "ResidualMLP", "width": 24, "blocks": 1},
    "path": {"path": "EDM", "sigma_max": 10.0},
    "kind": "edm",
    "sigma_data": 0.752,
    "time": "log_sigma/4",
    "train": {"steps": 30, "batch": 16, "weight": "edm", "levels": {"levels": "LogNormal", "mean": -0.6, "std": 1.2}},
}


def test_train_writes_a_model_that_can_be_rebuilt(tmp_path):
    result = train(CONFIG, tmp_path, progress=False, device="cpu")
    tensors, record = files.read(tmp_path / "model.safetensors")
    assert (record["format"], record["version"]) == ("wayfield.model", 1)
    assert record["config"]["train"]["lr"] == 1e-3  # defaults are written out
    assert record["config"]["train"]["seed"] == 0
    assert record["figures"]["steps"] == 30
    assert record["figures"]["samples"] == 480
    assert record["figures"]["parameters"] == sum(p.numel() for p in result.raw.net.parameters())
    model = denoiser_from(record, tensors)
    x, cond = torch.zeros(2, 1, 8, 8), {"label": torch.tensor([3, 10])}
    assert torch.equal(model(x, 0.2, cond).x0, result.denoiser(x, 0.2, cond).x0)
    again = setup(record["config"])[2]
    assert again == setup(CONFIG)[2]
    json.dumps(record)


def test_data_decide_what_the_network_leaves_open():
    denoiser, data, settings = setup(CONFIG)
    assert denoiser.net.config.shape == denoiser.shape == data.shape == (1, 8, 8)
    assert denoiser.net.config.num_classes == 10  # eleven values, one of them the null
    assert denoiser.schema.null == {"label": 10}
    assert settings.batch == 16
    plain, _, _ = setup(CONFIG | {"conditions": []})
    assert plain.schema.fields == {}
    assert plain.net.config.num_classes == 0


def test_without_conditions_the_model_is_unconditional(tmp_path):
    small = CONFIG | {"conditions": [], "train": {"steps": 2, "batch": 4, "drop": 0.3}}
    train(small, tmp_path, progress=False, device="cpu")
    model = wf.load(str(tmp_path / "model.safetensors"))
    assert model.schema.fields == {}
    drawn = wf.sample(model, wf.karras(model.path, 2, sigma_max=10.0), samples=3)
    assert drawn.x.shape == (3, 1, 8, 8)
    with pytest.raises(UnknownNameError, match="label"):
        model(drawn.x, 0.5, {"label": 3})


def test_data_given_as_a_mapping_reach_the_loader_and_the_record(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("wayfield.train.prepare.load_dataset", lambda spec: asked.append(spec) or digits("test"))
    spec = {"folder": "pictures", "size": 8, "labels": None}
    train(CONFIG | {"data": spec, "train": {"steps": 2, "batch": 4}}, tmp_path, progress=False, device="cpu")
    assert asked == [spec]
    assert files.read(tmp_path / "model.safetensors")[1]["config"]["data"] == spec


def test_the_seed_of_the_training_is_that_of_the_network():
    first, same, other = (setup(CONFIG | {"train": {"seed": s}})[0].net.stem.weight for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"dat": 1}, UnknownNameError, "data"),
        ({"data": "digit"}, UnknownNameError, "digits"),
        ({"net": {"net": "ResidualMPL"}}, UnknownNameError, "ResidualMLP"),
        ({"net": {"net": "ResidualMLP", "widht": 3}}, UnknownNameError, "width"),
        ({"net": "ResidualMLP"}, DTypeError, "mapping"),
        ({"path": {"path": "EMD"}}, UnknownNameError, "EDM"),
        ({"kind": "epsilon"}, UnknownNameError, "kind"),
        ({"conditions": ["lable"]}, UnknownNameError, "label"),
        ({"train": {"stpes": 3}}, UnknownNameError, "steps"),
        ({"time": "log_sigma"}, UnknownNameError, "log_sigma/4"),
    ],
)
def test_bad_configs_are_refused_by_name(change, error, match, tmp_path):
    with pytest.raises(error, match=match):
        train(CONFIG | change, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["data", "net", "path", "kind"])
def test_missing_keys_are_named(missing, tmp_path):
    with pytest.raises(UnknownNameError, match=missing):
        train({k: v for k, v in CONFIG.items() if k != missing}, tmp_path, progress=False)


@pytest.mark.parametrize(
    ("net", "error"),
    [({"shape": [1, 4, 4]}, ShapeError), ({"num_classes": 3}, ConditionError), ({"num_classes": 0}, ConditionError)],
)
def test_a_network_that_does_not_fit_the_data_is_refused(net, error, tmp_path):
    with pytest.raises(error):
        train(CONFIG | {"net": CONFIG["net"] | net}, tmp_path, progress=False)
