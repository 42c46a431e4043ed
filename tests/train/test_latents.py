"""Training in latents: statistics are exact, the model remembers its codec, and samples decode to pictures."""

from __future__ import annotations

import pytest
import torch

import wayfield as wf
from wayfield import files, zoo
from wayfield.core.errors import CheckpointError, DTypeError, RangeError, ShapeError, UnknownNameError
from wayfield.data.digits import digits
from wayfield.train import setup, train
from wayfield.train.latents import Encoded, find_codec

AUTOENCODER = {
    "data": "digits",
    "autoencoder": {"channels": [16, 16], "patch": 1, "latent": 2},
    "train": {"steps": 40, "batch": 32, "lr": 3e-3},
}
LATENT = {
    "data": "digits",
    "net": {"net": "ResidualMLP", "width": 24, "blocks": 1},
    "path": {"path": "EDM", "sigma_max": 10.0},
    "kind": "edm",
    "time": "log_sigma/4",
    "train": {"steps": 20, "batch": 16, "weight": "edm", "levels": {"levels": "LogNormal", "mean": -1.2}},
}


@pytest.fixture(scope="module")
def codec_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    train(AUTOENCODER, folder, progress=False, device="cpu")
    return str(folder / "model.safetensors")


@pytest.fixture(scope="module")
def latent_file(codec_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent")
    train(LATENT | {"codec": codec_file}, folder, progress=False, device="cpu")
    return folder / "model.safetensors"


def test_encoded_data_have_mean_zero_and_the_promised_deviation(codec_file):
    data = Encoded(zoo.load_codec(codec_file), digits())
    z, cond = data.batch(range(len(data)))
    assert z.dtype == torch.float32
    assert (data.shape, len(data), data.schema) == ((2, 4, 4), 1797, digits().schema)
    channels = z.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(channels.mean(1), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(channels.std(1, correction=0), torch.full((2,), 0.5).double(), rtol=1e-5, atol=0)
    assert torch.equal(cond["label"], digits().cond["label"])
    some, _ = data.batch([5, 1700])
    torch.testing.assert_close(some, zoo.load_codec(codec_file).encode(digits().x[[5, 1700]]), rtol=1e-4, atol=1e-5)


def test_other_sizes_of_latents(codec_file, tmp_path):
    train(AUTOENCODER | {"sigma_data": 1.0}, tmp_path, progress=False, device="cpu")
    unit, half = zoo.load_codec(str(tmp_path / "model.safetensors")), zoo.load_codec(codec_file)
    torch.testing.assert_close(unit.encode(digits().x[:8]), 2 * half.encode(digits().x[:8]))


def test_the_denoiser_takes_shape_and_size_from_the_codec(codec_file):
    task, data, _ = setup(LATENT | {"codec": codec_file})
    assert task.denoiser.shape == task.net.config.shape == data.shape == (2, 4, 4)
    assert task.denoiser.output.sigma_data == 0.5
    assert setup(LATENT | {"codec": codec_file, "sigma_data": 0.7})[0].denoiser.output.sigma_data == 0.7


def test_the_folder_of_a_latent_model_is_complete(codec_file, latent_file):
    record = files.read(latent_file)[1]
    assert record["codec"] == {"file": "codec.safetensors", "sha256": find_codec(codec_file).sha256}
    codec = zoo.codec_of(str(latent_file))
    x = digits().x[:4]
    assert torch.equal(codec.encode(x), zoo.load_codec(codec_file).encode(x))
    assert zoo.codec_of("digits") is None


def test_a_codec_of_the_zoo_is_kept_by_name(codec_file, monkeypatch, tmp_path):
    tensors, record = files.read(codec_file)
    files.write(tmp_path / "small.safetensors", tensors, record)
    files.write_json(tmp_path / "small.json", {"sha256": files.digest(tensors, "")})
    monkeypatch.setattr("wayfield.train.stored._folder", lambda: tmp_path)
    train(LATENT | {"codec": "small"}, tmp_path / "out", progress=False, device="cpu")
    kept = files.read(tmp_path / "out" / "model.safetensors")[1]["codec"]
    assert kept == {"name": "small", "sha256": find_codec("small").sha256}
    assert not (tmp_path / "out" / "codec.safetensors").exists()
    assert zoo.codec_of(str(tmp_path / "out" / "model.safetensors")).code == (2, 4, 4)


def test_latent_samples_decode_to_pictures(latent_file):
    model, codec = zoo.load(str(latent_file)), zoo.codec_of(str(latent_file))
    grid = wf.karras(model.path, 8, sigma_min=0.02, sigma_max=10.0)
    x = codec.decode(wf.sample(model, grid, samples=20, cond={"label": 3}).x)
    assert x.shape == (20, 1, 8, 8)
    assert float(x.abs().max()) < 2.5  # a network of twenty steps; pictures are in [-1, 1]


def test_guidance_can_reach_a_latent_through_its_picture(latent_file):
    codec = zoo.codec_of(str(latent_file))
    z = codec.encode(digits().x[:2]).requires_grad_()
    codec.decode(z).mean().backward()
    assert bool(z.grad.flatten(1).any(1).all())


@pytest.mark.parametrize("damage", ["missing", "statistics", "weights", "torn", "kind"])
def test_a_model_without_its_codec_is_refused(damage, latent_file, tmp_path):
    for name in ("model.safetensors", "codec.safetensors"):
        (tmp_path / name).write_bytes((latent_file.parent / name).read_bytes())
    path = tmp_path / "codec.safetensors"
    tensors, record = files.read(path)
    if damage == "missing":
        path.unlink()
    elif damage == "statistics":
        files.write(path, tensors, record | {"latents": record["latents"] | {"mean": [0.0, 0.0]}})
    elif damage == "weights":
        files.write(path, tensors | {"out.bias": tensors["out.bias"] + 1}, record)
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        path.write_bytes((tmp_path / "model.safetensors").read_bytes())
    with pytest.raises(DTypeError if damage == "kind" else CheckpointError, match="codec"):
        zoo.codec_of(str(tmp_path / "model.safetensors"))
    assert zoo.load(str(tmp_path / "model.safetensors")).shape == (2, 4, 4)


@pytest.mark.parametrize(
    ("codec", "error"), [("digits", DTypeError), ("digit", UnknownNameError), ("none.safetensors", CheckpointError)]
)
def test_bad_codecs_are_refused(codec, error, tmp_path):
    with pytest.raises(error):
        train(LATENT | {"codec": codec}, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_data_of_another_shape_are_refused(codec_file, tmp_path):
    with pytest.raises(ShapeError, match="pictures"):
        train(LATENT | {"codec": codec_file, "data": "shapes-240"}, tmp_path / "out", progress=False)


def test_latents_that_do_not_fit_in_memory_are_refused(codec_file, monkeypatch):
    monkeypatch.setattr("wayfield.train.latents._MOST_BYTES", 1000)
    with pytest.raises(RangeError, match="memory"):
        Encoded(zoo.load_codec(codec_file), digits())
