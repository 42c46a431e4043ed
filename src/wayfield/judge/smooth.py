r"""Smooth activations: a trained ReLU network with Softplus in their place, whose gradient is worth following.

The gradient of a ReLU network jumps where a unit switches. At guidance time alone, with the weights as they are,

.. math:: \max(z, 0) \;\longrightarrow\; \mathrm{softplus}_\beta(z) = \tfrac{1}{\beta} \log(1 + e^{\beta z}), \qquad
   0 \le \mathrm{softplus}_\beta(z) - \max(z, 0) \le \tfrac{\log 2}{\beta}

whose derivative is sigmoid(beta z); beta = infinity is ReLU. Each swap lifts activations by up to log(2)/beta, and deep
networks add that up, so `accuracy_drop` asks what the swap costs. Reference: Ma et al. 2024 (EluCD), arXiv 2310.11311:
beta = 3 for a ResNet at 128 pixels, 5 at 64.
"""

from __future__ import annotations

import copy
import math
import warnings

import torch
from torch import Tensor, nn

from wayfield.core.errors import DTypeError, RangeError, UnsupportedError
from wayfield.measure.classify import accuracy

__all__ = ["accuracy_drop", "smooth_activations"]

_LINEAR = 40.0  # beta z from which softplus is z, to the last bit of float64
_MOST = 0.2


def smooth_activations(net: nn.Module, beta: float) -> nn.Module:
    """A copy of `net` with Softplus for every nn.ReLU; the very same module for beta = infinity. beta: > 0.

    Only modules can be swapped: a network that calls a function for its ReLUs keeps those, and is refused if it has no
    nn.ReLU at all (UnsupportedError). Raises DTypeError if it is no module, RangeError for beta.
    """
    if not isinstance(net, nn.Module):
        remedy = "Wrap the function in an nn.Module."
        raise DTypeError("network to smooth", got=type(net).__name__, expected="an nn.Module", remedy=remedy)
    if not beta > 0:
        remedy = "3 to 5 are the paper's; infinity changes nothing."
        raise RangeError("beta of softplus", got=beta, expected="> 0", remedy=remedy)
    if math.isinf(beta):
        return net
    if not any(isinstance(part, nn.ReLU) for part in net.modules()):
        remedy = "Use nn.ReLU modules instead of functions, or beta = infinity."
        raise UnsupportedError("network to smooth", got="no nn.ReLU in it", expected="some", remedy=remedy)
    # wrapped, so that a network which is itself a ReLU has a place to be swapped at
    out = nn.ModuleList([copy.deepcopy(net)])
    for part in list(out.modules()):
        for name, child in part._modules.items():
            if isinstance(child, nn.ReLU):
                part._modules[name] = nn.Softplus(beta, threshold=_LINEAR).train(child.training)
    return out[0]


@torch.no_grad()
def accuracy_drop(net: nn.Module, smoothed: nn.Module, x: Tensor, labels: Tensor) -> float:
    """How much accuracy the swap costs on clean data x (n, *D) with labels (n,): before - after, in -1..1.

    Warns with a UserWarning if it is more than 0.2: the smoothed classifier then hardly knows the classes any more.
    """
    drop = accuracy(net(x), labels) - accuracy(smoothed(x), labels)
    if drop > _MOST:
        said = f"smoothing costs {100 * drop:.0f} points of accuracy; raise beta"
        warnings.warn(said, UserWarning, stacklevel=3)
    return drop
