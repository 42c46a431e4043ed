"""A network's name: the same for the same weights wherever they are, another one for any change."""

import copy

import torch
from torch import nn

from wayfield.field.identity import weights_digest


def net():
    out = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    for k, v in enumerate(out.state_dict().values()):
        if v.is_floating_point():
            v.copy_(torch.randn(v.shape, generator=torch.Generator().manual_seed(k)))
    return out


def test_equal_weights_have_one_name():
    assert weights_digest(net()) == weights_digest(copy.deepcopy(net())) == weights_digest(torch.compile(net()))
    assert len(weights_digest(net())) == 16


def test_every_change_gives_another_name():
    last_bit, cast, renamed, buffer = net(), net().double(), nn.Sequential(net()), net()
    last_bit[2].weight.data[1, 2] = torch.nextafter(last_bit[2].weight.data[1, 2], torch.tensor(9.0))
    buffer[1].num_batches_tracked += 1
    names = [weights_digest(n) for n in (net(), last_bit, cast, renamed, buffer, net().bfloat16())]
    assert len(set(names)) == len(names)


def test_networks_without_weights_go_by_their_class():
    assert weights_digest(nn.ReLU()) == weights_digest(nn.ReLU()) != weights_digest(nn.GELU())


def test_complex_and_scalar_tensors_count():
    a, b = nn.Module(), nn.Module()
    a.register_buffer("z", torch.tensor([1 + 2j, 3j]))
    b.register_buffer("z", torch.tensor([1 + 2j, 4j]))
    assert weights_digest(a) != weights_digest(b)
