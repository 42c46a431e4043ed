"""Adapters: nothing at the start, low rank in the stated layout, counted exactly, and what cannot be adapted."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wayfield.core.errors import DTypeError, RangeError, UnknownNameError, UnsupportedError
from wayfield.field.nets.layers import initialise
from wayfield.judge.lora import Adapter, LoRA, adapted


def net(*layers):
    made = nn.Sequential(*layers).double()
    initialise(made, 3)
    return made.eval()


def small():
    return net(nn.Conv2d(2, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4))


def moved(adapter, seed=1):
    """The same adapter with parameters unlike the base's."""
    g = torch.Generator().manual_seed(seed)
    for p in adapter.parameters():
        p.data += 0.3 * torch.randn(p.shape, dtype=p.dtype, generator=g)
    return adapter


def test_at_the_start_weights_are_the_networks_to_the_bit():
    base = small()
    weights = Adapter(base, LoRA(rank=2, layers=("0", "4"))).weights(base)
    known = dict(base.named_parameters())
    assert set(weights) == {"0.weight", "0.bias", "1.weight", "1.bias", "4.weight"}
    assert all(torch.equal(weights[name], known[name]) for name in weights)


@pytest.mark.parametrize(("rank", "alpha"), [(2, 1.0), (4, 8.0), (1, 0.5)])
def test_convolution_with_the_correction_is_a_sum_of_two(rank, alpha, randn64):
    """conv(x, W + c dW) = conv(x, W) + c conv(x, dW), with dW = reshape(B A) made here."""
    base, x = net(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(80, 2)), randn64(4, 3, 6, 6)
    adapter = moved(Adapter(base, LoRA(rank, alpha, layers=("0",))))
    a, b = adapter.own["0/weight:A"], adapter.own["0/weight:B"]
    assert a.shape == (3 * rank, 9)
    assert b.shape == (15, 3 * rank)
    change = (b @ a).reshape(5, 3, 3, 3)
    want = F.conv2d(x, base[0].weight) + alpha / rank * F.conv2d(x, change)
    torch.testing.assert_close(F.conv2d(x, adapter.weights(base)["0.weight"]), want, rtol=1e-12, atol=1e-12)
    assert torch.linalg.matrix_rank(change.reshape(15, 9)) <= 3 * rank


@pytest.mark.parametrize(("rank", "alpha"), [(2, 1.0), (3, 8.0)])
def test_linear_layers_have_the_same_scale(rank, alpha, randn64):
    """a/r in both kinds of layer: Wx + (a/r) B(Ax)."""
    base, x = net(nn.Linear(7, 5), nn.Linear(5, 2)), randn64(4, 7)
    adapter = moved(Adapter(base, LoRA(rank, alpha)))
    a, b = adapter.own["0/weight:A"], adapter.own["0/weight:B"]
    want = x @ base[0].weight.T + alpha / rank * (x @ a.T) @ b.T
    torch.testing.assert_close(x @ adapter.weights(base)["0.weight"].T, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("k", [1, 3])
def test_number_of_parameters(rank, k):
    """r k^2 (in + out) for a convolution, r (in + out) for a linear layer; biases and norms outside of the head."""
    base = net(nn.Conv2d(4, 8, k), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 3))
    want = rank * k**2 * (4 + 8) + 8 + 16 + rank * (8 + 6) + 6
    assert Adapter(base, LoRA(rank)).size == want


def test_the_head_and_what_is_not_named_stay_as_they_are():
    base = small()
    assert set(Adapter(base, LoRA(2)).weights(base)) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert set(Adapter(base, LoRA(2, layers=())).weights(base)) == {"0.bias", "1.weight", "1.bias"}
    assert set(Adapter(base, LoRA(2, layers=("4",), head="0")).weights(base)) == {
        "1.weight",
        "1.bias",
        "4.weight",
        "4.bias",
    }


def test_equal_seeds_are_equal_and_the_global_generator_is_left_alone():
    base, before = small(), torch.get_rng_state()
    a, b, c = (Adapter(base, LoRA(2), seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert 0.8 * 6**-0.5 < a["own.0/weight:A"].abs().max() <= 6**-0.5  # uniform within 1/sqrt(columns): 2 * 3
    assert not torch.equal(a["own.0/weight:A"], c["own.0/weight:A"])
    assert torch.equal(before, torch.get_rng_state())


def test_the_start_learns_through_b_alone():
    """B = 0 stops the gradient of A, not that of B and of the free parameters."""
    base = small().requires_grad_(False)
    adapter = Adapter(base, LoRA(2))
    x = torch.ones(2, 2, 4, 4, dtype=torch.float64)
    torch.func.functional_call(base, adapter.weights(base), (x,)).square().sum().backward()
    assert adapter.own["0/weight:A"].grad.abs().max() == 0
    for key in ("0/weight:B", "1/weight", "1/bias"):
        assert adapter.own[key].grad.abs().max() > 0


def test_corrections_of_a_stack_taken_by_number_are_the_same():
    base = small()
    each = [dict(moved(Adapter(base, LoRA(2)), k).own.items()) for k in range(3)]
    taken = {key: torch.stack([own[key] for own in each])[torch.tensor(1)] for key in each[0]}
    one, other = adapted(base, each[1], 4.0), adapted(base, taken, 4.0)
    assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_bad_rank(rank):
    with pytest.raises(RangeError, match="rank"):
        LoRA(rank)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_alpha(alpha):
    with pytest.raises(RangeError, match="alpha"):
        LoRA(4, alpha)


def test_what_cannot_be_adapted():
    with pytest.raises(UnsupportedError, match="one group"):
        Adapter(net(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 1)), LoRA(2))
    with pytest.raises(UnsupportedError, match="square kernel"):
        Adapter(net(nn.Conv2d(4, 4, (1, 3)), nn.Conv2d(4, 2, 1)), LoRA(2))
    with pytest.raises(UnknownNameError, match="layer to adapt"):
        Adapter(small(), LoRA(2, layers=("7",)))
    with pytest.raises(UnknownNameError, match="head"):
        Adapter(small(), LoRA(2, head="end"))
    with pytest.raises(DTypeError, match="GroupNorm"):
        Adapter(small(), LoRA(2, layers=("1",)))
    with pytest.raises(UnsupportedError, match="something to adapt"):
        Adapter(nn.Sequential(nn.ReLU()), LoRA(2))
