"""What a person sees of a training: what begins, how long it takes, and sheets that differ only by the network."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from wayfield import plots
from wayfield.core.errors import UnsupportedError
from wayfield.core.grid import karras
from wayfield.core.path import EDM
from wayfield.core.predict import Kind
from wayfield.data import InMemory
from wayfield.doors import watching
from wayfield.doors.watching import Watching
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.field.nets import build
from wayfield.sampling import sample
from wayfield.solve import DPM2M
from wayfield.train import Denoising, TrainConfig
from wayfield.train.latents import StoredCodec


def task(shape=(1, 8, 8), schema=Schema(), latents=None, **spec):
    net = build({"net": "ResidualMLP", "shape": list(shape), "width": 8, "blocks": 1, **spec}, seed=3)
    torch.nn.init.normal_(net.out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    model = Denoiser(net.requires_grad_(False), EDM(10.0), Kind("edm", 0.5), "log_sigma/4", schema=schema, shape=shape)
    return Denoising(model, latents)


def labelled(classes):
    return Schema({"label": Field(values=classes + 1)}, {"label": classes})


def data(shape=(1, 8, 8), schema=Schema(), cond=None, number=40):
    return InMemory(torch.zeros(number, *shape), cond or {}, schema)


def follow(tmp_path, model, dataset, step=0, **settings):
    said = []
    watch = Watching(tmp_path, said.append, lines=True)
    watch.begin(model, dataset, TrainConfig(steps=1000, batch=10, sample_every=5, **settings), step)
    return watch, said


@pytest.fixture
def drawn(monkeypatch):
    """The pictures and columns of the sheets that were made."""
    seen, real = [], plots.sheet

    def sheet(pictures, *, columns, **options):
        seen.append((pictures, columns))
        return real(pictures, columns=columns, **options)

    monkeypatch.setattr(watching.plots, "sheet", sheet)
    return seen


@pytest.mark.parametrize(("classes", "columns"), [(3, 3), (10, 8)])
def test_a_sheet_is_what_sampling_gives_for_each_class_in_turn(tmp_path, drawn, classes, columns):
    schema, label = labelled(classes), torch.arange(40) % classes
    model = task(schema=schema, num_classes=classes)
    watch, _ = follow(tmp_path, model, data(schema=schema, cond={"label": label}))
    for step in (5, 10):
        watch.sample(model, step)
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step-000005.png", "step-000010.png"]
    (x, wide), (again, _) = drawn
    assert wide == columns
    assert torch.equal(x, again)
    cond = {"label": torch.arange(columns).repeat(4)}
    grid = karras(model.path, 16, sigma_min=0.002, sigma_max=10.0)
    expected = sample(model.denoiser, grid, samples=4 * columns, cond=cond, solver=DPM2M()).x
    assert torch.equal(x, expected.expand(-1, 3, -1, -1))  # grey as it is
    with Image.open(tmp_path / "samples" / "step-000005.png") as image:
        assert image.mode == "RGB"


def test_other_conditions_are_those_of_samples_spread_over_the_data(tmp_path, drawn):
    schema = Schema({"tokens": Field((2,), values=70)}, {"tokens": torch.zeros(2, dtype=torch.int64)})
    model = task(schema=schema, vocab=70, max_tokens=2)
    tokens = torch.arange(1, 65)[:, None].expand(-1, 2).contiguous()
    watch, _ = follow(tmp_path, model, data(schema=schema, cond={"tokens": tokens}, number=64))
    watch.sample(model, 5)
    grid = karras(model.path, 16, sigma_min=0.002, sigma_max=10.0)
    expected = sample(model.denoiser, grid, samples=32, cond={"tokens": tokens[::2]}, solver=DPM2M()).x
    assert torch.equal(drawn[0][0][:, :1], expected)


def test_latents_are_shown_through_their_codec(tmp_path, drawn):
    def decoder(z):
        return z[:, :1].repeat_interleave(4, 2).repeat_interleave(4, 3)

    codec = LatentCodec(lambda x: x, decoder, torch.zeros(4), torch.full((4,), 0.5), shape=(1, 8, 8), code=(4, 2, 2))
    model = task((4, 2, 2), latents=StoredCodec("mine.safetensors", codec, ""))
    watch, _ = follow(tmp_path, model, data((4, 2, 2)))
    watch.sample(model, 5)
    x = drawn[0][0]
    assert x.shape == (32, 3, 8, 8)
    assert torch.equal(x[:, :, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), x)
    assert float(x.std()) > 0.1


@pytest.mark.parametrize("shape", [(2,), (2, 8, 8)], ids=str)
def test_what_is_no_picture_is_refused_before_the_first_step(tmp_path, shape):
    with pytest.raises(UnsupportedError, match="sample_every = 0"):
        follow(tmp_path, task(shape), data(shape))
    watch = Watching(tmp_path, lambda text: None, lines=True)
    watch.begin(task(shape), data(shape), TrainConfig(), 0)  # without sheets anything may be trained


def line(step, rate):
    return {"step": step, "loss": 0.5, "grad_norm": 1.0, "lr": 1e-3, "samples_per_second": rate}


@pytest.mark.parametrize(
    ("rate", "words"),
    [(200.0, "about 48 s"), (9.9, "about 16 min"), (1.0, "about 2 h 40 min"), (0.1, "about 26 h 40 min")],
)
def test_the_time_that_is_left_is_said_once(tmp_path, rate, words):
    watch, said = follow(tmp_path, task(), data())
    watch.line(line(40, rate))
    watch.line(line(80, rate))
    assert [text for text in said if text.startswith("about")] == [f"{words} to go"]
    assert said.index(f"{words} to go") == 2


def test_what_begins_is_said(tmp_path):
    schema = labelled(3)
    model = task(schema=schema, num_classes=3)
    _, said = follow(tmp_path, model, data(schema=schema, cond={"label": torch.arange(40) % 3}), step=120)
    size = sum(p.numel() for p in model.net.parameters())
    about = f"ResidualMLP of {size:,} parameters; 120 done of 1,000 steps of 10 in fp32"
    assert said == [f"40 samples of 1 x 8 x 8 in 3 classes; {about}"]
    assert " classes" not in follow(tmp_path, task(), data())[1][0]
