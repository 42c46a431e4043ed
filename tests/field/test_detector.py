"""The detector network: its examination as a network, and the order of its maps."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from wayfield.core.errors import RangeError, ShapeError
from wayfield.field.nets import build, spec_of
from wayfield.field.nets.detector import STRIDE, Detector, DetectorConfig, split

SPEC = {"net": "Detector", "shape": [3, 12, 8], "forms": 5, "colours": 3, "sizes": 2, "width": 8, "groups": 4}
CHANNELS = 1 + 5 + 3 + 2 + 2


def nudged(**changes) -> Detector:
    """A detector a little away from its start, where zeroed layers would hide everything."""
    net, g = build(SPEC | changes, seed=1), torch.Generator().manual_seed(99)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return net


def pictures(rows: int = 4, shape: tuple[int, ...] = (3, 12, 8)) -> torch.Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("fine", [0, 1, 2])
def test_it_answers_on_a_grid_of_half_the_resolution(fine):
    net, x = nudged(fine=fine), pictures()
    out = net(x)
    assert out.shape == (4, CHANNELS, 6, 4)
    assert net.features(x).shape == (4, 16)
    torch.testing.assert_close(net.out(net.features(x)[..., None, None])[..., 0, 0], out.mean((2, 3)))
    out.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_row_does_not_depend_on_its_batch_or_on_training_mode():
    net, x = nudged(), pictures()
    whole = net(x)
    torch.testing.assert_close(net(x[2:3]), whole[2:3], rtol=1e-5, atol=1e-5)
    assert torch.equal(net.train()(x), net.eval()(x))


def test_equal_seeds_give_equal_weights_and_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    first, again, other = (build(SPEC, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_it_survives_json_bf16_and_float64():
    net, x = nudged(), pictures()
    spec = json.loads(json.dumps(spec_of(net)))
    assert SPEC.items() <= spec.items()
    twin = build(spec)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), net(x))
    torch.testing.assert_close(copy.deepcopy(net).double()(x.double()).float(), net(x), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, net(x), rtol=0.1, atol=0.1)


def test_what_it_says_moves_with_the_picture():
    """A shift by one cell shifts the maps by one cell, far from the rim and without norms, which see all there is."""
    net = nudged(shape=[3, 64, 64], deep=1)
    for name, part in list(net.named_modules()):
        if isinstance(part, nn.GroupNorm):
            net.set_submodule(name, nn.Identity())
    x = torch.zeros(1, 3, 64, 64)
    x[..., 28:36, 26:35] = pictures(1, (3, 8, 9))
    moved, inner = net(x.roll((2 * STRIDE, -STRIDE), (2, 3))), (..., slice(8, 24), slice(8, 24))
    assert moved[inner].std((2, 3)).min() > 1e-3
    torch.testing.assert_close(moved[inner], net(x).roll((2, -1), (2, 3))[inner], rtol=1e-4, atol=1e-5)


def test_split_names_the_maps_in_order():
    config = DetectorConfig((3, 12, 8), forms=5, colours=3, sizes=2, width=8)
    out = torch.arange(float(CHANNELS)).reshape(1, -1, 1, 1).expand(2, -1, 6, 4)
    maps = split(out, config)
    assert maps.heat.shape == (2, 6, 4)
    channels = [[0], [1, 2, 3, 4, 5], [6, 7, 8], [9, 10], [11, 12]]
    assert [m.reshape(2, -1, 6, 4)[1, :, 2, 3].tolist() for m in maps] == channels
    for wrong in (out[:, :-1], out[..., :-1], out[0]):
        with pytest.raises(ShapeError, match="output of a Detector"):
            split(wrong, config)


@pytest.mark.parametrize(
    ("error", "match", "fields"),
    [
        (ShapeError, "side of a picture", {"shape": (3, 9, 8)}),
        (ShapeError, "side of a picture", {"shape": (3, 8, 9)}),
        (ShapeError, "shape", {"shape": (8, 8)}),
        (ShapeError, "groups", {"width": 12}),
        (RangeError, "forms", {"forms": 0}),
        (RangeError, "deep", {"deep": 0}),
        (RangeError, "fine", {"fine": -1}),
    ],
)
def test_construction_errors(error, match, fields):
    with pytest.raises(error, match=match):
        DetectorConfig(**({"shape": (3, 8, 8)} | fields))


def test_a_wrong_picture_is_named():
    with pytest.raises(ShapeError, match="Detector input"):
        nudged()(pictures(shape=(3, 8, 8)))
    with pytest.raises(ShapeError, match="Detector input"):
        nudged().features(pictures(shape=(1, 12, 8)))
