"""Training that starts from a trained model: its weights, and no others."""

from __future__ import annotations

import pytest
import torch

from wayfield.core.errors import DTypeError, ShapeError, UnknownNameError
from wayfield.train import setup, train

NET = {"net": "ResidualMLP", "width": 24, "blocks": 1}
CONFIG = {
    "data": "digits",
    "net": NET,
    "path": {"path": "EDM", "sigma_max": 10.0},
    "kind": "edm",
    "sigma_data": 0.752,
    "train": {"steps": 3, "batch": 8, "weight": "edm"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("first")
    train(CONFIG, out, progress=False, device="cpu")
    return str(out / "model.safetensors")


def test_training_starts_from_the_averaged_weights_of_the_model(trained, tmp_path):
    first = train(CONFIG, tmp_path / "again", progress=False, device="cpu").denoiser.net.state_dict()
    task, _, _ = setup(CONFIG | {"start": trained, "train": {**CONFIG["train"], "seed": 9}})
    for name, value in task.net.state_dict().items():
        assert torch.equal(value, first[name])
    assert all(p.requires_grad for p in task.net.parameters())
    fresh, _, _ = setup(CONFIG)
    assert any(not torch.equal(v, first[k]) for k, v in fresh.net.state_dict().items())


def test_another_path_and_kind_may_start_from_it(trained):
    task, _, _ = setup({**CONFIG, "path": "Cosine", "kind": "v", "start": trained, "train": {"steps": 1}})
    assert task.denoiser.output.name == "v"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"net": NET | {"width": 32}}, ShapeError, "another network"),
        ({"start": "digitz"}, UnknownNameError, "digits"),
        ({"start": "digits-classifier"}, DTypeError, "load_classifier"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, match, trained):
    with pytest.raises(error, match=match):
        setup({**CONFIG, "start": trained, **change})
