"""A run becomes a model of the zoo: what is stored, judged, written down and refused."""

from __future__ import annotations

import pytest
import torch

from wayfield import files, zoo
from wayfield.core.errors import CheckpointError, RangeError, UnknownNameError, UnsupportedError
from wayfield.train import train
from wayfield.zoo import publish as publishing
from wayfield.zoo.judging import Figure, Judged, digits
from wayfield.zoo.publish import publish, retell, rounding

CONFIGS = {
    "digits-weak": {
        "data": "digits-train",
        "net": {"net": "ResidualMLP", "width": 16, "blocks": 1},
        "path": {"path": "EDM", "sigma_max": 20.0},
        "kind": "edm",
        "train": {"steps": 20, "batch": 16},
    },
    "digits-classifier": {"data": "digits-train", "classifier": {"width": 8}, "train": {"steps": 5, "batch": 8}},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with configs of two models, and runs of them: NAME and NAME-1, with seeds 0 and 1."""
    home = tmp_path_factory.mktemp("home")
    for name, config in CONFIGS.items():
        files.write_json(home / "zoo" / "configs" / f"{name}.json", config)
        for seed, run in ((0, name), (1, f"{name}-1")):
            settings = config["train"] | ({"seed": seed} if seed else {})
            train({**config, "train": settings}, home / run, progress=False, device="cpu")
    return home


@pytest.fixture(autouse=True)
def _here(home, monkeypatch):
    monkeypatch.setattr(publishing, "ZOO", home / "zoo")


def put(home, name, run, again=None):
    return publish(
        name,
        home / run,
        again=None if again is None else home / again,
        folder=home / "zoo",
        images=home / "images",
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_what_was_judged(home, name):
    card = put(home, name, name, f"{name}-1")
    tensors, record = files.read(home / "zoo" / f"{name}.safetensors")
    before, _ = files.read(home / name / "model.safetensors")
    assert files.read_json(home / "zoo" / f"{name}.json") == card
    assert all(torch.equal(tensors[k], v.half()) for k, v in before.items())
    assert card["sha256"] == files.digest(tensors, "")
    assert card["stored"]["dtype"] == "float16"
    assert 0 < card["stored"]["change"] < 0.01
    assert card["training"] == record["figures"]
    assert (card["seed"], card["other_seed"]["seed"]) == (0, 1)
    assert set(card["other_seed"]["figures"]) == set(card["figures"])
    module = publishing.entry(name).judge
    judge = getattr(__import__("wayfield.zoo.judging.digits", fromlist=["x"]), module.partition(":")[2])
    judged = judge(zoo.load_file(str(home / "zoo" / f"{name}.safetensors")), name)
    assert {k: f.to_json() for k, f in judged.figures.items()} == card["figures"]
    assert (home / "images" / f"{name}.png").exists() == (judged.sheet is not None)


def test_the_judge_sees_the_weights_that_are_stored(home, monkeypatch):
    seen = []

    def judge(net, name):
        seen.append(net.state_dict())
        return Judged({"figure": Figure(1.0, "nothing in particular")})

    monkeypatch.setattr(digits, "classifier", judge)
    put(home, "digits-classifier", "digits-classifier")
    stored, _ = files.read(home / "zoo" / "digits-classifier.safetensors")
    before, _ = files.read(home / "digits-classifier" / "model.safetensors")
    assert all(torch.equal(value, stored[key].float()) for key, value in seen[0].items())
    assert not all(torch.equal(value, before[key]) for key, value in seen[0].items())


def test_publishing_twice_gives_the_same(home):
    def made():
        tensors, record = files.read(home / "zoo" / "digits-weak.safetensors")
        others = [home / "zoo" / "digits-weak.json", home / "images" / "digits-weak.png"]
        return files.digest(tensors, str(record)), *(path.read_bytes() for path in others)

    put(home, "digits-weak", "digits-weak")
    first = made()
    put(home, "digits-weak", "digits-weak")
    assert made() == first


def test_the_words_of_a_card_can_be_renewed_alone(home):
    card = put(home, "digits-weak", "digits-weak")
    files.write_json(home / "zoo" / "digits-weak.json", card | {"about": "old", "limits": "old", "data": "; split a"})
    assert retell("digits-weak", folder=home / "zoo") == card | {"data": card["data"].rsplit(" ", 1)[0] + " a"}
    with pytest.raises(CheckpointError, match="no such file"):
        retell("scenes", folder=home / "zoo")


def test_a_run_of_another_config_is_refused(home):
    with pytest.raises(CheckpointError, match="another config"):
        put(home, "digits-weak", "digits-classifier")
    files.write_json(home / "zoo" / "configs" / "digits.json", CONFIGS["digits-weak"] | {"time": "log_sigma/4"})
    with pytest.raises(CheckpointError, match="another config"):
        put(home, "digits", "digits-weak")
    with pytest.raises(UnknownNameError, match="digits-weak"):
        put(home, "digits-week", "digits-weak")


def test_settings_that_do_not_touch_the_numbers_may_differ(home):
    config = CONFIGS["digits-weak"]
    shown = {**config["train"], "log_every": 7, "save_every": 9, "seed": 5, "lr": 1e-3}
    assert publishing._plain({**config, "train": shown}) == publishing._plain(config)
    assert publishing._plain({**config, "train": {**shown, "lr": 2e-3}}) != publishing._plain(config)
    assert publishing._plain({**config, "train": {**shown, "drop": 0.2}}) != publishing._plain(config)


def test_a_second_run_with_the_same_seed_is_refused(home):
    with pytest.raises(UnsupportedError, match="another seed"):
        put(home, "digits-weak", "digits-weak", "digits-weak")


def test_weights_that_float16_cannot_hold_are_refused(home):
    tensors, record = files.read(home / "digits-classifier" / "model.safetensors")
    files.write(home / "large" / "model.safetensors", {k: v * 1e6 for k, v in tensors.items()}, record)
    with pytest.raises(RangeError, match="float32"):
        put(home, "digits-classifier", "large")
    card = publish("digits-classifier", home / "large", folder=home / "zoo", images=home / "images", half=False)
    assert card["stored"] == {"dtype": "float32", "change": None}


def test_the_change_by_rounding_in_closed_form(home):
    """The last layer's weights times 1.001 change every logit by a thousandth."""
    tensors, record = files.read(home / "digits-classifier" / "model.safetensors")
    more = {k: v * 1.001 if k.startswith("out.") else v for k, v in tensors.items()}
    assert rounding("digits-classifier", record, tensors, more) == pytest.approx(0.001, rel=1e-2)
    assert rounding("digits-classifier", record, tensors, tensors) == 0.0


def test_a_run_that_started_from_another_tells_of_both(home):
    config = CONFIGS["digits-weak"] | {"start": "runs/digits-first/model.safetensors"}
    tensors, record = files.read(home / "digits-weak" / "model.safetensors")
    files.write_json(home / "zoo" / "configs" / "digits-first.json", CONFIGS["digits-weak"])
    files.write_json(home / "zoo" / "configs" / "digits.json", config)
    later = record | {"config": {**record["config"], "start": config["start"]}}
    files.write(home / "runs" / "digits" / "model.safetensors", tensors, later)
    with pytest.raises(CheckpointError, match="digits-first"):
        put(home, "digits", "runs/digits")
    files.write(home / "runs" / "digits-first" / "model.safetensors", tensors, record)
    card = put(home, "digits", "runs/digits")
    assert card["earlier"] == [{"config": "digits-first", **record["figures"]}]
    first = "wayfield train src/wayfield/zoo/configs/digits-first.json --out runs/digits-first"
    assert card["command"] == f"{first} && wayfield train src/wayfield/zoo/configs/digits.json"


def test_latents_need_a_codec_that_ships(home):
    tensors, record = files.read(home / "digits-weak" / "model.safetensors")
    own = record | {"codec": {"file": "codec.safetensors", "sha256": "0"}}
    files.write(home / "latent" / "model.safetensors", tensors, own)
    with pytest.raises(CheckpointError, match="Publish the autoencoder"):
        put(home, "digits-weak", "latent")
