"""Every kind of model goes the whole way: from a config to a file, and back through the function made for it."""

from __future__ import annotations

import json

import pytest
import torch

from wayfield import files, zoo
from wayfield.core.errors import CheckpointError, DTypeError, UnknownNameError, UnsupportedError
from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.field.nets import Classifier
from wayfield.train import setup, train
from wayfield.train.kinds import KINDS, kind_of, recorded_kind
from wayfield.train.stored import open_model, read_model

TRAIN = {"steps": 3, "batch": 4}
CONFIGS = {
    "denoiser": {
        "data": "digits",
        "net": {"net": "ResidualMLP", "width": 16, "blocks": 1},
        "path": "Straight",
        "kind": "velocity",
        "train": TRAIN,
    },
    "classifier": {"data": "digits", "classifier": {"width": 8}, "train": TRAIN},
    "autoencoder": {"data": "digits", "autoencoder": {"channels": [8, 8], "patch": 1}, "train": TRAIN},
}
OPENS = {
    "denoiser": (zoo.load, Denoiser),
    "classifier": (zoo.load_classifier, Classifier),
    "autoencoder": (zoo.load_codec, LatentCodec),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model file of each kind."""
    out = {}
    for key, config in CONFIGS.items():
        folder = tmp_path_factory.mktemp(key)
        train(config, folder, progress=False, device="cpu")
        out[key] = str(folder / "model.safetensors")
    return out


@pytest.mark.parametrize("key", CONFIGS)
def test_a_trained_model_is_opened_by_its_own_function_and_by_no_other(key, models):
    tensors, record = files.read(models[key])
    assert kind_of(CONFIGS[key]) is recorded_kind("", record) is KINDS[key]
    assert KINDS[key].opener in zoo.__all__
    for other, (opens, made) in OPENS.items():
        if other == key:
            assert isinstance(opens(models[key]), made)
        else:
            with pytest.raises(DTypeError, match=KINDS[key].opener):
                opens(models[key])
    with pytest.raises(DTypeError, match=KINDS[key].opener):
        zoo.load_detector(models[key])
    model = zoo.load_file(models[key])
    net = model if isinstance(model, Classifier) else model.net
    assert all(torch.equal(v, tensors[k]) for k, v in net.state_dict().items())
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("key", CONFIGS)
def test_the_config_of_a_record_can_be_used_again(key, models):
    record = json.loads(json.dumps(read_model(models[key])[1]))
    task, dataset, settings = setup(record["config"])
    assert type(task) is type(setup(CONFIGS[key])[0])
    assert settings == setup(CONFIGS[key])[2]
    assert len(dataset) == 1797


@pytest.mark.parametrize("key", CONFIGS)
def test_weights_stored_in_half_become_float32(key, models, tmp_path):
    tensors, record = files.read(models[key])
    half = str(tmp_path / "half.safetensors")
    files.write(half, {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}, record)
    model = zoo.load_file(half)
    net = model if isinstance(model, Classifier) else model.net
    for k, v in net.state_dict().items():
        assert v.dtype == tensors[k].dtype
        torch.testing.assert_close(v, tensors[k], rtol=1e-3, atol=1e-4)


def test_the_zoo_holds_more_than_one_kind():
    assert isinstance(open_model("digits"), Denoiser)
    assert isinstance(open_model("digits-classifier", "classifier"), Classifier)
    with pytest.raises(DTypeError, match=r"load_classifier\('digits-classifier'\)"):
        zoo.load("digits-classifier")
    with pytest.raises(UnknownNameError, match="digits"):
        zoo.load_codec("digit")


def test_a_shipped_file_that_is_not_that_of_its_card_is_refused(monkeypatch, tmp_path):
    tensors, record = read_model("digits-weak")
    files.write(tmp_path / "digits-weak.safetensors", {k: v + 1 for k, v in tensors.items()}, record)
    files.write_json(tmp_path / "digits-weak.json", zoo.card("digits-weak"))
    monkeypatch.setattr("wayfield.train.stored._folder", lambda: tmp_path)
    assert zoo.names() == ("digits-weak",)
    with pytest.raises(CheckpointError, match="card"):
        zoo.load("digits-weak")


def test_a_file_without_a_model_is_refused(tmp_path):
    files.write(tmp_path / "x.safetensors", {}, {"format": "wayfield.checkpoint"})
    with pytest.raises(DTypeError, match="not its checkpoint"):
        zoo.load_file(str(tmp_path / "x.safetensors"))


def test_a_config_is_of_one_kind():
    with pytest.raises(UnsupportedError, match="one kind"):
        kind_of(CONFIGS["classifier"] | CONFIGS["autoencoder"])
    with pytest.raises(DTypeError, match="mapping"):
        kind_of(["data"])
    with pytest.raises(UnknownNameError, match="levels"):
        setup(CONFIGS["classifier"] | {"train": {"levels": "Uniform"}})
    with pytest.raises(UnknownNameError, match="net"):
        setup(CONFIGS["classifier"] | {"net": {}})
