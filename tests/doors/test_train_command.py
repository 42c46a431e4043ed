"""`wayfield train`: from a config to a model, resumed by the same command, mistakes named."""

import json

import pytest
from doorkit import CONFIG, write_config

from wayfield.cli import main


def test_it_trains_and_goes_on(tmp_path, capsys):
    config, out = write_config(tmp_path), tmp_path / "out"
    assert main(["train", config, "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out / 'model.safetensors'}\n"
    assert "step      2  loss" in told.err
    before = (out / "model.safetensors").read_bytes()
    assert main(["train", config, "--out", str(out), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert list(outcome) == ["model", "step", "loss", "seconds"]
    assert outcome["step"] == 6
    # the seconds of a training are in its record, so only the size is the same
    assert abs(len((out / "model.safetensors").read_bytes()) - len(before)) < 16


def test_another_config_does_not_overwrite_a_run(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["train", write_config(tmp_path), *out]) == 0
    other = write_config(tmp_path, train={**CONFIG["train"], "lr": 0.5})
    assert main(["train", other, *out]) == 1
    assert "lr = 0.5" in capsys.readouterr().err
    assert main(["train", other, *out, "--no-resume"]) == 0


def test_the_data_can_be_named(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["train", write_config(tmp_path, data="nothing"), "--data", "digits-test", *out]) == 0
    assert main(["train", write_config(tmp_path), "--data", "digit", *out]) == 2
    assert "Did you mean 'digits'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nett": {}}, "Did you mean 'net'?"),
        ({"net": {"net": "ResidualMLP", "widht": 8}}, "Did you mean 'width'?"),
        ({"net": {"net": "UNett"}}, "Did you mean 'UNet'?"),
        ({"path": "EMD"}, "Did you mean 'EDM'?"),
        ({"train": {"stepps": 3}}, "Did you mean 'steps'?"),
        ({"train": {"steps": 0}}, "steps"),
        ({"train": {"lr": -1.0}}, "lr"),
    ],
)
def test_mistakes_in_a_config_are_wrong_usage(tmp_path, capsys, changes, words):
    assert main(["train", write_config(tmp_path, **changes), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_or_broken_config_is_exit_code_1(tmp_path, capsys):
    assert main(["train", str(tmp_path / "none.json")]) == 1
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text("{")
    assert main(["train", str(tmp_path / "broken.json")]) == 1
    assert "not readable as JSON" in capsys.readouterr().err


def test_a_config_that_is_no_mapping_is_wrong_usage(tmp_path, capsys):
    (tmp_path / "list.json").write_text("[1]")
    assert main(["train", str(tmp_path / "list.json")]) == 2
    assert "a mapping" in capsys.readouterr().err
