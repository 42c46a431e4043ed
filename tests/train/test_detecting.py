"""The detector's task: maps of a hand-made scene, the loss written out, wear, and a training from a config."""

from __future__ import annotations

import json
import math

import pytest
import torch

from wayfield import files
from wayfield.core.errors import ConditionError, DTypeError, UnknownNameError
from wayfield.core.noise import Address, SeededNoise
from wayfield.data import InMemory
from wayfield.field.cond import Field, Schema
from wayfield.field.nets import build
from wayfield.field.nets.detector import Detector, DetectorConfig, split
from wayfield.train import TrainConfig, fit, train
from wayfield.train.batches import Batch, draw
from wayfield.train.detecting import Detecting, setup_detector, targets, worn

SCHEMA = Schema({"things": Field((3, 5), "float32")})
CONFIG = DetectorConfig((3, 12, 8), forms=4, colours=3, sizes=2, width=8, deep=1)
NOTHING = [-1.0, 0.0, 0.0, 0.0, 0.0]
#                form, colour, size, x, y: inside a cell, on the border of two, on the far rim
SCENES = torch.tensor(
    [
        [[2.0, 1.0, 0.0, 2.5, 1.25], [0.0, 0.0, 1.0, 6.0, 10.0], [3.0, 2.0, 1.0, 8.0, 12.0]],
        [[1.0, 2.0, 0.0, 0.0, 0.0], NOTHING, NOTHING],
        [NOTHING, NOTHING, NOTHING],
    ]
)


def squares(size: int = 64) -> InMemory:
    """One or two bright squares of three colours and two sizes, on black."""
    u = SeededNoise(3, size).draw((8,), Address(0)).sigmoid()
    x, things = -torch.ones(size, 3, 12, 8), torch.tensor([NOTHING] * 3).repeat(size, 1, 1)
    for k in range(size):
        for place in range(1 + int(u[k, 0] > 0.5)):
            colour, big = int(3 * u[k, 1 + place] % 3), int(u[k, 3 + place] > 0.5)
            column, row = 1 + int(5 * u[k, 5 + place]), 1 + 6 * place + int(2 * u[k, 7])
            x[k, colour, row : row + 2 + big, column : column + 2 + big] = 1.0
            things[k, place] = torch.tensor([big, colour, big, column + 1 + big / 2, row + 1 + big / 2])
    return InMemory(x, {"things": things}, SCHEMA)


def task(seed: int = 0, **changes) -> Detecting:
    net = Detector(DetectorConfig(**{**vars(CONFIG), **changes}), seed=seed)
    return Detecting(net, net.config, SCHEMA)


def batch(rows: int = 3, t: float = 0.25) -> Batch:
    """A batch that is not worn where t is 0.25: u = 1/4, v = 0."""
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(rows, 3, 12, 8, generator=g) for _ in range(2))
    return Batch(x0, {"things": SCENES[:rows]}, torch.full((rows,), t, dtype=torch.float64), eps)


# ---------------------------------------------------------------------------------------------------------- targets
def test_targets_of_a_hand_made_scene():
    heat, cell, there, offset = targets(SCENES, 6, 4)
    assert heat.shape == (3, 6, 4)
    assert there.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    # cells are (row, column) = floor((y, x) / 2); the far rim belongs to the last cell
    assert cell[0].tolist() == [0 * 4 + 1, 5 * 4 + 3, 5 * 4 + 3]
    assert cell[1, 0] == 0
    assert offset[0].tolist() == [[-0.25, 0.125], [-0.5, -0.5], [0.5, 0.5]]
    assert offset[1, 0].tolist() == [-0.5, -0.5]
    assert (heat[0] == 1).nonzero().tolist() == [[0, 1], [5, 3]]
    assert not heat[2].any()
    away = (torch.arange(6)[:, None] ** 2 + torch.arange(4) ** 2) / 2
    torch.testing.assert_close(heat[1], torch.exp(-away.float()))
    assert float(heat[0, 3, 2]) == pytest.approx(math.exp(-(2**2 + 1) / 2))  # the nearer of two


def test_the_loss_is_that_of_the_module_docstring():
    given, one = batch(), task()
    maps = [m.detach().double() for m in split(one.detector(given.x0), CONFIG)]
    expected = []
    for row, things in enumerate(SCENES.tolist()):
        heat, loss = targets(SCENES, 6, 4).heat[row].double(), 0.0
        for i in range(6):
            for j in range(4):
                p, y = float(maps[0][row, i, j].sigmoid()), float(heat[i, j])
                loss -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
        for *what, x, y in things:
            i, j = min(int(y // 2), 5), min(int(x // 2), 3)
            if what[0] >= 0:
                loss -= sum(float(m[row, :, i, j].log_softmax(0)[int(k)]) for m, k in zip(maps[1:4], what, strict=True))
                o = maps[4][row, :, i, j].tolist()
                loss += abs(o[0] - (x / 2 - j - 0.5)) + abs(o[1] - (y / 2 - i - 0.5))
        expected.append(loss / 3)
    got = one.losses(given, TrainConfig(drop=0.0))
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_row_does_not_depend_on_its_batch_and_reaches_every_parameter():
    one, given, config = task(), batch(t=0.9), TrainConfig(drop=0.0)
    whole = one.losses(given, config)
    alone = one.losses(Batch(given.x0[:1], {"things": SCENES[:1]}, given.t[:1], given.eps[:1]), config)
    torch.testing.assert_close(alone, whole[:1], rtol=1e-5, atol=1e-5)
    with torch.no_grad():  # layers that start at zero hide those below
        for p in one.net.parameters():
            p.add_(0.05)
    one.losses(given, config).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in one.net.parameters())


# ------------------------------------------------------------------------------------------------------------- wear
def test_wear_has_the_stated_noise_and_blur():
    rows, side = 4, 16
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(rows, 3, side, side, generator=g) for _ in range(2))
    #           neither     noise alone      blur alone            both, at their strongest but one step
    v = 1023 / 1024
    t = torch.tensor([0.25, 0.75, 255 / 1024 + v / 1024, 1 - 2.0**-20], dtype=torch.float64)
    x = worn(x0, t, eps)
    assert torch.equal(x[0], x0[0])
    torch.testing.assert_close(x[1], x0[1] + 0.15 * eps[1])
    b = (2 * v - 1) / 4
    kernel = torch.tensor([b, 1 - 2 * b, b])
    inner = torch.nn.functional.conv2d(x0[2][:, None], torch.outer(kernel, kernel)[None, None])[:, 0]
    torch.testing.assert_close(x[2][:, 1:-1, 1:-1], inner)
    binomial = torch.tensor([0.25, 0.5, 0.25])
    inner = torch.nn.functional.conv2d(x0[3][:, None], torch.outer(binomial, binomial)[None, None])[:, 0]
    torch.testing.assert_close((x[3] - 0.3 * eps[3])[:, 1:-1, 1:-1], inner, rtol=0, atol=0.01)  # v = 1 - 1/1024
    flat = worn(torch.full_like(x0, 0.7), t, torch.zeros_like(eps))
    torch.testing.assert_close(flat, torch.full_like(x0, 0.7))  # also on the rim


# --------------------------------------------------------------------------------------------------------- training
def test_it_learns_squares():
    result = fit(task(), squares(), TrainConfig(steps=60, batch=32, lr=1e-2, drop=0.0, ema=None), progress=False)
    data, settings = squares(), TrainConfig(batch=64, drop=0.0)
    held = draw(data, SCHEMA, task().path, settings, 0, range(64))
    before, after = (float(t.losses(held, settings).mean().detach()) for t in (task(), result.model))
    assert after < before / 4


def test_a_config_trains_a_detector_that_its_file_rebuilds(tmp_path, monkeypatch):
    monkeypatch.setattr("wayfield.train.detecting.load_dataset", lambda name: squares())
    detector = {"forms": 2, "colours": 3, "sizes": 2, "width": 8, "deep": 1}
    config = {"data": "squares", "detector": detector, "train": {"steps": 3, "batch": 4, "seed": 5}}
    first, data, settings = setup_detector(config)
    assert first.shape == data.shape == (3, 12, 8)
    assert settings.drop == 0.0
    assert first.describe() == {"detector": {"net": "Detector", "shape": [3, 12, 8], "fine": 1, "groups": 8} | detector}
    same = setup_detector(config)[0]
    assert torch.equal(first.net.stem.weight, same.net.stem.weight)
    other = setup_detector(config | {"train": {"seed": 6}})[0]
    assert not torch.equal(first.net.stem.weight, other.net.stem.weight)
    result = train(config, tmp_path, progress=False, device="cpu")
    tensors, record = files.read(tmp_path / "model.safetensors")
    assert record["detector"] == first.describe()["detector"]
    net = build(record["detector"])
    net.load_state_dict(tensors)
    x = data.x[:2]
    assert torch.equal(net(x), result.model.net(x))
    json.dumps(record)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"detecter": {}}, UnknownNameError, "detector"),
        ({"detector": {"widht": 3}}, UnknownNameError, "width"),
        ({"train": {"weight": "v"}}, UnknownNameError, "weight"),
        ({"train": {"stpes": 3}}, UnknownNameError, "steps"),
        ({"data": "shapes-240"}, UnknownNameError, "things"),
    ],
)
def test_bad_configs_are_refused_by_name(change, error, match):
    with pytest.raises(error, match=match):
        setup_detector({"data": "scenes", "detector": {"width": 8}} | change)


def test_a_task_without_a_truth_is_refused():
    net = Detector(CONFIG)
    for fields in ({}, {"things": Field((3, 4), "float32")}, {"things": Field((3, 5))}, {"label": Field(values=3)}):
        with pytest.raises(ConditionError, match="detector"):
            Detecting(net, CONFIG, Schema(fields))
    with pytest.raises(DTypeError, match="config"):
        Detecting(net, net, SCHEMA)
