"""`wayfield sample`: samples that depend on their address alone, files that say how they were made."""

import json
import os
import subprocess
import sys

import pytest
import standins
import torch
from doorkit import tiny_model
from PIL import Image

from wayfield import files, zoo
from wayfield.cli import main
from wayfield.data.scenes.words import tokenize
from wayfield.field.binding import NULL
from wayfield.guide import Away
from wayfield.guide.expression import parse_guidance


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def draw(model, tmp_path, capsys):
    """Samples, record and stdout of `wayfield sample` with options."""

    def run(*options, name="out"):
        out = tmp_path / name
        assert main(["sample", "--model", model, "--steps", "5", "--out", str(out), *options]) == 0
        tensors, record = files.read(out / "samples.safetensors")
        return tensors, record, capsys.readouterr().out

    return run


def same(a, b):
    # batches of another size are summed in another order
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_twice_is_equal(draw):
    for solver in ("heun", "ancestral"):
        one, _, _ = draw("--label", "3", "--n", "4", "--solver", solver)
        two, _, _ = draw("--label", "3", "--n", "4", "--solver", solver)
        assert torch.equal(one["x"], two["x"])
        other, _, _ = draw("--label", "3", "--n", "4", "--solver", solver, "--seed", "1")
        assert not torch.equal(one["x"], other["x"])


@pytest.mark.parametrize("options", [["--label", "each", "--w", "2"], ["--solver", "ancestral"]])
def test_a_sample_depends_on_its_address_alone(draw, options):
    whole, _, _ = draw(*options, "--n", "16")
    half, _, _ = draw(*options, "--n", "8", "--first", "8")
    assert half["address"].tolist() == list(range(8, 16))
    same(half["x"], whole["x"][8:])
    small, _, _ = draw(*options, "--n", "16", "--batch", "5")
    same(small["x"], whole["x"])


def test_labels(draw):
    assert "label" not in draw("--n", "3")[0]
    assert draw("--n", "3", "--label", "7")[0]["label"].tolist() == [7, 7, 7]
    assert draw("--n", "4", "--first", "8", "--label", "each")[0]["label"].tolist() == [8, 9, 0, 1]


def test_files_and_json(draw, tmp_path):
    tensors, record, out = draw("--label", "each", "--n", "20", "--json", "--solver", "ddim")
    told = json.loads(out)
    assert list(told) == ["calls", "rows", "skipped", "samples", "seconds", "files"]
    assert (told["calls"], told["rows"], told["samples"]) == (5, 100, 20)
    assert told["files"] == [str(tmp_path / "out" / name) for name in ("samples.safetensors", "sheet.png")]
    assert tensors["x"].shape == (20, 1, 8, 8)
    assert record["format"] == "wayfield.samples"
    assert record["solver"] == "DDIM(eta=0.0)"
    assert len(record["times"]) == 6
    scale, gap, margin = 8, 5, 10
    width = 10 * 10 * scale + 9 * gap + 2 * margin
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        assert image.size == (width, 2 * 10 * scale + gap + 2 * margin)


def test_paths_on_stdout_and_words_on_stderr(model, tmp_path, capsys):
    assert main(["sample", "--model", model, "--n", "2", "--steps", "2", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(tmp_path / "samples.safetensors"), str(tmp_path / "sheet.png")]
    assert "2 samples" in err


def test_a_kept_state_is_used_up(draw, tmp_path):
    state = tmp_path / "state.safetensors"
    plain, _, _ = draw("--n", "4", "--steps", "30")
    kept, _, _ = draw("--n", "4", "--steps", "30", "--checkpoint", str(state))
    assert torch.equal(plain["x"], kept["x"])
    assert not state.exists()
    draw("--n", "4", "--steps", "30", "--batch", "2", "--checkpoint", str(state))
    assert not list(tmp_path.glob("state*"))


def test_damaged_and_missing_files_are_exit_code_1(model, tmp_path, capsys):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"garbage")
    assert main(["sample", "--model", str(bad)]) == 1
    assert "unreadable" in capsys.readouterr().err
    assert main(["sample", "--model", str(tmp_path / "none.safetensors")]) == 1
    assert "no such file" in capsys.readouterr().err
    weights = tmp_path / "changed.safetensors"
    with open(os.path.join(model, "model.safetensors"), "rb") as file:
        data = bytearray(file.read())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert main(["sample", "--model", str(weights)]) == 1
    assert "hash" in capsys.readouterr().err
    assert main(["sample", "--model", model, "--checkpoint", str(bad), "--out", str(tmp_path)]) == 1
    assert "unreadable" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label", "10"], "0..9, each or none"),
        (["--label", "-1"], "0..9, each or none"),
        (["--label", "seven"], "0..9, each or none"),
        (["--w", "2"], "a label"),
        (["--prompt", "a red ring"], "a model without words"),
        (["--negative", "a red ring"], "without a prompt"),
        (["--w", "nan", "--label", "3"], "guidance scale"),
        (["--sigma-min", "90"], "sigma range"),
    ],
)
def test_what_the_model_cannot_do_is_wrong_usage(model, capsys, options, words):
    assert main(["sample", "--model", model, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


def test_two_processes_draw_what_one_draws(draw, model, tmp_path):
    one, _, _ = draw("--n", "9", "--label", "each", "--solver", "ancestral")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command = ["sample", "--model", model, "-n", "9", "--label", "each", "--solver", "ancestral", "--steps", "5"]
    done = subprocess.run(
        [*launch, "-m", "wayfield.cli", *command, "--json", "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["samples"], told["calls"], told["rows"]) == (9, 10, 45)
    two, _ = files.read(tmp_path / "two" / "samples.safetensors")
    same(two["x"], one["x"])
    assert torch.equal(two["label"], one["label"])


def test_the_model_of_the_zoo(tmp_path):
    command = ["sample", "--model", "digits", "--label", "3", "--n", "4", "--steps", "4", "--out", str(tmp_path)]
    assert main(command) == 0
    assert files.read(tmp_path / "samples.safetensors")[0]["x"].shape == (4, 1, 8, 8)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return standins.words(tmp_path_factory.mktemp("words"))


@pytest.fixture
def say(words, tmp_path, capsys):
    """Samples and record of `wayfield sample` with prompts."""

    def run(*options, name="out"):
        command = ["sample", "--model", words, "--steps", "3", "--solver", "dpm2m", "--out", str(tmp_path / name)]
        assert main([*command, *options]) == 0
        capsys.readouterr()
        return files.read(tmp_path / name / "samples.safetensors")

    return run


RING, SEVEN = "a small red ring left of a large blue square", "the digit 7 in green"


def test_a_prompt_is_what_the_network_reads(say, tmp_path):
    tensors, record = say("--prompt", RING, "-n", "3")
    assert torch.equal(tensors["tokens"], tokenize([RING] * 3))
    assert tensors["x"].shape == (3, 3, 32, 32)
    assert (record["prompts"], record["negative"]) == ([RING], None)
    assert record["guidance"] == "CFG(w=3.0, away='null')"  # unless another scale is asked for
    with Image.open(tmp_path / "out" / "sheet.png") as image:
        assert image.size[0] > 3 * 128
    other, _ = say("--prompt", SEVEN, "-n", "3")
    assert not torch.equal(other["x"], tensors["x"])


def test_several_prompts_take_turns_over_the_addresses(say):
    both = ("--prompt", RING, "--prompt", SEVEN)
    tensors, record = say(*both, "-n", "5")
    assert torch.equal(tensors["tokens"], tokenize([RING, SEVEN, RING, SEVEN, RING]))
    assert record["prompts"] == [RING, SEVEN]
    part, _ = say(*both, "-n", "2", "--first", "3")
    assert torch.equal(part["tokens"], tokenize([SEVEN, RING]))
    same(part["x"], tensors["x"][3:])


def test_a_negative_prompt_takes_the_place_of_none(say):
    plain, _ = say("--prompt", RING, "-n", "2", "--w", "2")
    empty, record = say("--prompt", RING, "-n", "2", "--w", "2", "--negative", "")
    same(empty["x"], plain["x"])  # the empty prompt is the null condition
    assert record["guidance"] == "CFG(w=2.0, away='negative')"
    alike, _ = say("--prompt", RING, "-n", "2", "--w", "2", "--negative", RING)
    unguided, _ = say("--prompt", RING, "-n", "2", "--w", "1")
    same(alike["x"], unguided["x"])  # c + (w - 1)(c - c)
    away, record = say("--prompt", RING, "-n", "2", "--w", "2", "--negative", SEVEN)
    assert record["negative"] == SEVEN
    assert float((away["x"] - plain["x"]).abs().max()) > 1e-3
    small, _ = say("--prompt", RING, "-n", "2", "--w", "2", "--negative", SEVEN, "--batch", "1")
    same(small["x"], away["x"])


@pytest.mark.parametrize(
    ("options", "words_of_error"),
    [
        (["--prompt", "a small red rign"], "Did you mean 'ring'?"),
        (["--prompt", "a ring", "--negative", "a gren ring"], "Did you mean 'green'?"),
        (["--prompt", "ring red a"], "caption"),
        (["--prompt", "a ring", "--negative", "a red ring", "--w", "1"], "with w = 1"),
        (["--prompt", "a ring", "--label", "3"], "a prompt and a label"),
        (["--label", "3"], "a model without labels"),
        (["--w", "2"], "a label or a prompt"),
    ],
)
def test_wishes_that_make_no_sense_are_wrong_usage(words, capsys, options, words_of_error):
    assert main(["sample", "--model", words, *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words_of_error in err


def test_latents_are_decoded_by_the_codec_of_the_training(tmp_path, capsys):
    encoder = {"data": "digits", "autoencoder": {"channels": [8, 8]}, "train": {"steps": 1, "batch": 8}}
    (tmp_path / "encoder.json").write_text(json.dumps(encoder))
    assert main(["train", str(tmp_path / "encoder.json"), "--out", str(tmp_path / "encoder")]) == 0
    codec = str(tmp_path / "encoder" / "model.safetensors")
    latent = {"data": "digits", "codec": codec, "net": {"net": "ResidualMLP", "width": 16, "blocks": 1}}
    latent |= {"path": {"path": "EDM", "sigma_max": 10.0}, "kind": "edm", "train": {"steps": 1, "batch": 8}}
    (tmp_path / "latent.json").write_text(json.dumps(latent))
    assert main(["train", str(tmp_path / "latent.json"), "--out", str(tmp_path / "latent")]) == 0
    command = ["sample", "--model", str(tmp_path / "latent"), "-n", "5", "--steps", "2", "--batch", "3"]
    assert main([*command, "--label", "each", "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    tensors, _ = files.read(tmp_path / "out" / "samples.safetensors")
    assert tensors["x"].shape == (5, 1, 8, 8)
    with torch.no_grad():
        decoded = zoo.load_codec(codec).decode(tensors["latent"])
    torch.testing.assert_close(tensors["x"], decoded, rtol=0, atol=1e-5)
    assert (tmp_path / "out" / "sheet.png").exists()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64)])
def test_sheets_of_larger_pictures(tmp_path, capsys, shape):
    model = standins.denoiser(tmp_path, "model", standins.LABELS, shape)
    command = ["sample", "--model", model, "--label", "each", "-n", "20", "--steps", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    scale, gap = 128 // shape[-1], 128 // shape[-1] * shape[-1] // 16
    with Image.open(tmp_path / "sheet.png") as image:
        side = scale * shape[-1]
        assert image.size == (10 * side + 9 * gap + 4 * gap, 2 * side + gap + 4 * gap)


class TestGuidance:
    """--guidance and --net: expressions instead of a scale."""

    def test_an_expression_equals_its_scale(self, draw):
        scale, _, _ = draw("--label", "3", "-n", "2", "--w", "3")
        spelled, record, _ = draw("--label", "3", "-n", "2", "--guidance", "2 * Away(NULL)")
        same(spelled["x"], scale["x"])
        assert parse_guidance(record["guidance"]) == 2 * Away(NULL)

    def test_a_further_network(self, draw, model):
        options = ("--label", "3", "-n", "2", "--guidance", "CFG(3).versus('base', 2)")
        versus, _, _ = draw(*options, "--net", f"base={model}")
        same(versus["x"], draw("--label", "3", "-n", "2", "--w", "3")[0]["x"])

    @pytest.mark.parametrize(
        ("options", "words_of_error"),
        [
            (["--label", "3", "--guidance", "CFG(2)", "--w", "2"], "--guidance and --w"),
            (["--guidance", "CFG(2)"], "CFG(2) without a label"),
            (["--label", "3", "--guidance", "CFG(2"], "was never closed"),
            (["--label", "3", "--guidance", "Auto(2)"], "unknown network"),
            (["--label", "3", "--guidance", "Auto(2)", "--net", "tiny"], "NAME=MODEL"),
            (["--label", "3", "--guidance", "Auto(2)", "--net", "main=digits-weak"], "NAME=MODEL"),
            (["--label", "3", "--guidance", "CFG(2, 'negative')"], "unknown condition"),
        ],
    )
    def test_bad_guidance_is_wrong_usage(self, model, capsys, tmp_path, options, words_of_error):
        out = tmp_path / "out"
        assert main(["sample", "--model", model, *options, "-n", "2", "--steps", "2", "--out", str(out)]) == 2
        assert words_of_error in capsys.readouterr().err
        assert not out.exists()
