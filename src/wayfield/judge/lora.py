r"""Low-rank adapters: a network with a few own parameters beside its frozen ones.

An expert differs from the network that it is made of by little. So a weight gets a correction of low rank, biases and
the gains and shifts of norms are learned freely, and everything else is shared; the head keeps its bias.

.. math:: \text{Linear:}\; W + \tfrac{a}{r} B A, \qquad
   \text{Conv2d:}\; W + \tfrac{a}{r}\, \text{reshape}(B A,\, (out, in, k, k))

=======  =============================================================  =============================================
layer    factors                                                        parameters
=======  =============================================================  =============================================
Linear   A (r, in), B (out, r)                                          r (in + out)
Conv2d   A (r k, in k), B (out k, r k)                                  r k^2 (in + out)
=======  =============================================================  =============================================

A is uniform within 1/sqrt(columns) and B is 0, so an adapter starts as the network itself, to the bit. Corrections are
added to weights where a network is called, never stored in it: there is no merged state to forget about.

Reference: Hu et al. 2021, arXiv 2106.09685; the layout of convolutions and the free biases and norms are those of Go et
al. 2022, arXiv 2212.05973, whose scale a/r is used for both kinds of layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from wayfield.core.errors import DTypeError, RangeError, UnsupportedError, unknown_name

__all__ = ["Adapter", "LoRA", "adapted"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)
_A, _B = ":A", ":B"


@final
@dataclass(frozen=True)
class LoRA:
    """What of a network an adapter changes. rank: r >= 1 / alpha: a > 0, the scale is a/r / layers: names of the Linear
    and Conv2d layers that get factors, None for all but the head / head: name of the module whose parameters stay as
    they are, None for the last Linear or Conv2d.

    Raises RangeError.
    """

    rank: int = 16
    alpha: float = 8.0
    layers: tuple[str, ...] | None = None
    head: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise RangeError(
                "rank of an adapter", got=self.rank, expected="an integer >= 1", remedy="4 to 16 are usual."
            )
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise RangeError(
                "alpha of an adapter", got=self.alpha, expected="finite, > 0", remedy="Half the rank is usual."
            )

    @property
    def scale(self) -> float:
        """a / r."""
        return self.alpha / self.rank


@final
class Adapter(nn.Module):
    """The own parameters of one expert of `net`. settings: what is adapted / seed: of the factors A.

    Raises UnknownNameError for layers that `net` does not have, DTypeError for layers of another kind, UnsupportedError
    for grouped or oblong convolutions, or if there is nothing to adapt.
    """

    def __init__(self, net: nn.Module, settings: LoRA, *, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.own = nn.ParameterDict()
        head, generator = _head(net, settings), torch.Generator().manual_seed(seed)
        for name, layer in _layers(net, settings, head):
            a, b = _factors(layer, settings.rank, generator)
            self.own[_key(f"{name}.weight") + _A], self.own[_key(f"{name}.weight") + _B] = a, b
        for name, value in _free(net, head):
            self.own[_key(name)] = nn.Parameter(value.detach().clone())
        if not self.own:
            remedy = "Name its layers; only Linear, Conv2d, biases and norms can be adapted."
            raise UnsupportedError("network", got=type(net).__name__, expected="something to adapt", remedy=remedy)

    @property
    def size(self) -> int:
        """Number of own parameters."""
        return sum(p.numel() for p in self.parameters())

    def weights(self, net: nn.Module) -> dict[str, Tensor]:
        """The parameters of `net` that differ, as the expert has them."""
        return adapted(net, dict(self.own.items()), self.settings.scale)


def adapted(net: nn.Module, own: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The parameters of `net` that differ, from an adapter's own. Differentiable in these."""
    known, out = dict(net.named_parameters()), {}
    for key, value in own.items():
        if key.endswith(_A):
            name = _name(key[: -len(_A)])
            change = own[key[: -len(_A)] + _B] @ value
            out[name] = known[name] + scale * change.reshape(known[name].shape)
        elif not key.endswith(_B):
            out[_name(key)] = value
    return out


def _key(name: str) -> str:
    return name.replace(".", "/")  # a parameter's name has no dots


def _name(key: str) -> str:
    return key.replace("/", ".")


def _head(net: nn.Module, settings: LoRA) -> str:
    known = {name for name, _ in net.named_modules() if name}
    if settings.head is not None:
        if settings.head not in known:
            raise unknown_name("head of the network", settings.head, known)
        return settings.head
    weighty = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return weighty[-1] if weighty else ""


def _layers(net: nn.Module, settings: LoRA, head: str) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    known = dict(net.named_modules())
    names = settings.layers
    if names is None:
        fits = (name for name, layer in known.items() if isinstance(layer, nn.Linear | nn.Conv2d))
        names = tuple(name for name in fits if not _inside(name, head))
    for name in names:
        if name not in known:
            raise unknown_name("layer to adapt", name, known)
        layer = known[name]
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            remedy = "Name layers of these kinds; biases and norms are adapted without being named."
            raise DTypeError(f"layer {name!r}", got=type(layer).__name__, expected="Linear or Conv2d", remedy=remedy)
        if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.kernel_size[0] != layer.kernel_size[1]):
            got = f"groups={layer.groups}, kernel {layer.kernel_size}"
            remedy = "Leave it out: name the layers to adapt."
            raise UnsupportedError(f"layer {name!r}", got=got, expected="one group and a square kernel", remedy=remedy)
        yield name, layer


def _factors(layer: nn.Linear | nn.Conv2d, rank: int, generator: torch.Generator) -> tuple[nn.Parameter, nn.Parameter]:
    weight = layer.weight
    k = layer.kernel_size[0] if isinstance(layer, nn.Conv2d) else 1
    rows, columns, r = weight.shape[0] * k, weight.shape[1] * k, rank * k
    a = (2 * torch.rand((r, columns), generator=generator) - 1) / math.sqrt(columns)
    return nn.Parameter(a.to(weight)), nn.Parameter(weight.new_zeros(rows, r))


def _free(net: nn.Module, head: str) -> Iterator[tuple[str, Tensor]]:
    """Biases, and all parameters of norms, outside of the head."""
    for name, part in net.named_modules():
        if not _inside(name, head):
            for own, value in part.named_parameters(recurse=False):
                if own == "bias" or isinstance(part, _NORMS):
                    yield (f"{name}.{own}" if name else own), value


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
