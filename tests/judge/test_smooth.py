"""Softplus for ReLU: the closed form, what is swapped and what is left alone, and what the swap costs."""

import math

import pytest
import torch
from torch import nn

from wayfield.core.errors import DTypeError, RangeError, UnsupportedError
from wayfield.judge import MLPJudge, PictureJudge, accuracy_drop, smooth_activations

Z = torch.linspace(-30, 30, 4001, dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.5, 3.0, 20.0])
def test_largest_gap_is_log_2_over_beta_at_zero(beta):
    soft = smooth_activations(nn.ReLU(), beta)
    gap = soft(Z) - Z.relu()
    assert float(gap.min()) >= -1e-14
    assert float(gap.max()) == pytest.approx(math.log(2) / beta, abs=1e-15)
    assert float(Z[gap.argmax()]) == pytest.approx(0, abs=1e-12)


def test_the_papers_figure():
    assert float(smooth_activations(nn.ReLU(), 3.0)(torch.zeros(1))) == pytest.approx(0.231049, abs=1e-6)


def test_derivative_is_a_sigmoid():
    z = Z.clone().requires_grad_()
    (grad,) = torch.autograd.grad(smooth_activations(nn.ReLU(), 3.0)(z).sum(), z)
    torch.testing.assert_close(grad, torch.sigmoid(3 * Z), rtol=1e-14, atol=1e-15)


def test_infinity_is_the_very_same_module():
    net = nn.Sequential(nn.Linear(2, 2))
    assert smooth_activations(net, math.inf) is net


@pytest.mark.parametrize("net", [MLPJudge(4, 2, clean=True), PictureJudge(1, 2, width=8, levels=2, clean=True)])
def test_every_relu_goes_and_the_original_stays(net, randn64):
    x = randn64(3, 1, 2, 2).float()
    before, soft = net(x), smooth_activations(net, 4.0)
    assert not any(isinstance(part, nn.ReLU) for part in soft.modules())
    assert any(isinstance(part, nn.ReLU) for part in net.modules())
    assert torch.equal(net(x), before)
    assert not torch.equal(soft(x), before)
    torch.testing.assert_close(smooth_activations(net, 1e6)(x), before, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        soft.head.bias += 1
    assert torch.equal(net(x), before)


def test_one_module_in_several_places():
    """As in a bottleneck block whose one ReLU serves three activations, and one under two names."""
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    net.again = relu
    soft = smooth_activations(net, 2.0)
    assert all(isinstance(part, nn.Softplus) for part in (soft[1], soft[3], soft.again))


def test_accuracy_drop():
    """By hand: logits (relu(z) - 0.1, 0); softplus lifts 0 to log 2 / beta, so class 1 is lost at z < 0."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[0].bias.zero_()
        net[2].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        net[2].bias.copy_(torch.tensor([-0.1, 0.0]))
    x, labels = torch.tensor([[1.0], [2.0], [-0.1], [-0.2]]), torch.tensor([0, 0, 1, 1])
    assert accuracy_drop(net, smooth_activations(net, 100.0), x, labels) == 0
    with pytest.warns(UserWarning, match="50 points"):
        assert accuracy_drop(net, smooth_activations(net, 1.0), x, labels) == 0.5


def test_what_cannot_be_smoothed():
    with pytest.raises(UnsupportedError, match=r"no nn\.ReLU"):
        smooth_activations(nn.Sequential(nn.Linear(2, 2), nn.SiLU()), 3.0)
    with pytest.raises(DTypeError, match=r"nn\.Module"):
        smooth_activations(torch.relu, 3.0)
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(RangeError, match="beta"):
            smooth_activations(nn.ReLU(), beta)
