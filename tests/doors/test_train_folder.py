"""`wayfield train --data FOLDER`: pictures to a model, a written config, sheets on the way; resumed, and spread."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from doorkit import CONFIG, write_config
from PIL import Image

from wayfield import files, zoo
from wayfield.cli import main
from wayfield.core.noise import uniforms

FAST = ["--steps", "4", "--batch", "4"]


def paint(folder, classes=("cat", "dog", "owl"), each=4, side=8):
    """Pictures of noise in the folders of their classes."""
    numbers = iter((uniforms(3, len(classes) * each * side * side * 3, 0) * 256).to(torch.uint8).split(side * side * 3))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for k in range(each):
            Image.frombytes("RGB", (side, side), bytes(next(numbers).tolist())).save(folder / name / f"{k}.png")
    return str(folder)


@pytest.fixture
def pictures(tmp_path):
    return paint(tmp_path / "pictures")


def tensors(out):
    return files.read(out / "checkpoint.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_folder_alone_makes_a_model_a_config_and_a_sheet(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", "--data", pictures, "--out", str(out), *FAST]) == 0
    told = capsys.readouterr()
    assert told.out == f"{out / 'model.safetensors'}\n"
    words = " ".join(told.err.split())
    assert "12 samples of 3 x 8 x 8 in 3 classes; UNet of" in words
    assert "4 steps of 4" in words
    config = files.read_json(out / "config.json")
    assert config["data"] == {
        "folder": pictures,
        "size": 8,
        "channels": 3,
        "labels": "folders",
        "corrupt": "raise",
        "cache": str(out / "pictures.cache"),
    }
    assert (config["train"]["steps"], config["train"]["batch"]) == (4, 4)
    model = zoo.load(str(out / "model.safetensors"))
    assert (model.shape, model.schema.null) == ((3, 8, 8), {"label": 3})
    with Image.open(out / "samples" / "step-000004.png") as sheet:
        assert sheet.size[1] > sheet.size[0]  # three classes in columns, four rows
    assert main(["train", str(out / "config.json"), "--out", str(tmp_path / "again")]) == 0
    assert same(tensors(out), tensors(tmp_path / "again"))


def test_the_same_command_goes_on_and_another_one_does_not(pictures, tmp_path, capsys):
    command = ["train", "--data", pictures, "--out", str(tmp_path / "out"), "--json"]
    assert main([*command, *FAST]) == 0
    assert main([*command, *FAST]) == 0
    assert json.loads(capsys.readouterr().out.split("}\n")[-2] + "}")["step"] == 4
    assert main([*command, *FAST, "--seed", "1"]) == 1
    told = capsys.readouterr().err
    assert "other settings: train" in told
    assert f"wayfield train {tmp_path / 'out' / 'config.json'}" in told
    assert files.read_json(tmp_path / "out" / "config.json")["train"]["seed"] == 0
    assert main([*command, *FAST, "--seed", "1", "--no-resume"]) == 0
    assert files.read_json(tmp_path / "out" / "config.json")["train"]["seed"] == 1


def test_options_of_a_folder(pictures, tmp_path, capsys):
    (tmp_path / "pictures" / "owl" / "bad.png").write_bytes(b"no picture")
    out, options = tmp_path / "out", ["--no-labels", "--size", "12", "--net", "dit", *FAST]
    assert main(["train", "--data", pictures, "--out", str(out), *options]) == 1
    assert "bad.png" in capsys.readouterr().err
    assert main(["train", "--data", pictures, "--out", str(out), *options, "--corrupt", "skip"]) == 0
    assert "left out 1 damaged files: owl/bad.png" in " ".join(capsys.readouterr().err.split())
    model = zoo.load(str(out / "model.safetensors"))
    assert (model.shape, model.schema.fields, type(model.net).__name__) == ((3, 12, 12), {}, "DiT")


def test_a_folder_takes_the_place_of_a_configs_data(pictures, tmp_path):
    config = write_config(tmp_path, train={**CONFIG["train"], "sample_every": 3})
    assert main(["train", config, "--data", pictures, "--out", str(tmp_path / "out"), *FAST]) == 0
    record = files.read(tmp_path / "out" / "model.safetensors")[1]
    assert record["denoiser"]["net"]["net"] == "ResidualMLP"
    assert record["config"]["train"]["steps"] == 4
    assert sorted(p.name for p in (tmp_path / "out" / "samples").iterdir()) == ["step-000003.png", "step-000004.png"]
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_named_dataset_needs_no_config_either(tmp_path):
    assert main(["train", "--data", "digits-test", "--out", str(tmp_path), *FAST]) == 0
    assert zoo.load(str(tmp_path / "model.safetensors")).schema.null == {"label": 10}


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ([], 2, "no config, no --data"),
        (["--data", "digts"], 2, "Did you mean 'digits'?"),
        (["--data", "no/such/folder"], 1, "no such folder"),
        (["--data", "digits", "--size", "8"], 2, "folder"),
        (["--data", "digits", "--net", "unett"], 2, "Did you mean 'unet'?"),
        (["--data", "scenes"], 2, "Write a config"),
        (["CONFIG", "--net", "dit"], 2, "--net"),
        (["CONFIG", "--size", "8"], 2, "--data"),
        (["CONFIG", "--steps", "0"], 2, "steps"),
        (["--data", "digits", "--batch", "0"], 2, "batch"),
    ],
)
def test_what_cannot_be_trained_is_said_clearly(tmp_path, capsys, command, code, words):
    command = [write_config(tmp_path) if word == "CONFIG" else word for word in command]
    assert main(["train", *command, "--out", str(tmp_path / "out")]) == code
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "checkpoint.safetensors").exists()


def test_samples_of_what_draws_no_pictures_are_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps({"data": "digits", "classifier": {"width": 8}, "train": {"steps": 2, "sample_every": 1}})
    )
    assert main(["train", str(tmp_path / "config.json"), "--out", str(tmp_path / "out")]) == 2
    assert "Set sample_every = 0." in capsys.readouterr().err


def test_a_run_inside_its_own_pictures_is_refused(pictures, capsys):
    assert main(["train", "--data", pictures, "--out", f"{pictures}/owl/out", *FAST]) == 2
    assert "would be taken for pictures" in " ".join(capsys.readouterr().err.split())


SLOW = """
import os, sys, time
from wayfield.cli import main
fsync = os.fsync
os.fsync = lambda fd: (fsync(fd), time.sleep(0.05))
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_training_on_a_folder_ends_as_an_uninterrupted_one(pictures, tmp_path):
    train = {**CONFIG["train"], "steps": 120, "batch": 4, "save_every": 6, "sample_every": 50}
    command, out = ["train", write_config(tmp_path, train=train), "--data", pictures, "--out"], tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *command, str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    while not (out / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < files.read(out / "checkpoint.safetensors")[1]["step"] < 120
    assert main([*command, str(out)]) == 0
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert same(tensors(out), tensors(tmp_path / "whole"))
    sheets = [(folder / "samples" / "step-000100.png").read_bytes() for folder in (out, tmp_path / "whole")]
    assert sheets[0] == sheets[1]


@pytest.mark.slow
def test_two_processes_by_accelerate_launch_equal_one(pictures, tmp_path):
    train = {**CONFIG["train"], "batch": 5}
    command = ["train", write_config(tmp_path, train=train), "--data", pictures, "--device", "cpu", "--out"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    quiet = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, *quiet, "-m", "wayfield.cli", *command, str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two' / 'model.safetensors'}\n"  # one of the two speaks
    assert done.stderr.count("12 samples of 3 x 8 x 8") == 1
    assert main([*command, str(tmp_path / "one")]) == 0
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert 0 < max(float((one[k] - two[k]).abs().max()) for k in one) < 1e-5


def test_a_launcher_that_starts_a_single_process_is_not_silent(monkeypatch):
    from wayfield.train.engine import start_engine

    for name, value in (("ACCELERATE_MIXED_PRECISION", "no"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.warns(RuntimeWarning, match="starts a single process"):
        assert start_engine(torch.device("cpu")).world == 1
