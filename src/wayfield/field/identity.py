"""Which network is this: a short name for a set of weights, cheap enough to be taken before every run.

What was fitted to one network must not be used with another. The bits of every tensor are summed as integers, which is
exact, in any order and on any device; names, types, shapes and sums are then hashed. One host read in all.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["weights_digest"]

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_digest(net: nn.Module) -> str:
    """16 hexadecimal digits of a network's parameters and buffers; those of its class too if it has none.

    The same for a compiled network as for the network itself; another one after any cast.
    """
    net = getattr(net, "_orig_mod", net)
    tensors = {k.replace("_orig_mod.", ""): v for k, v in net.state_dict().items() if isinstance(v, Tensor)}
    facts = [f"{name}|{v.dtype}|{tuple(v.shape)}" for name, v in tensors.items()] or [type(net).__qualname__]
    sums = [_words(v).sum(dtype=torch.int64) for v in tensors.values()]
    values = torch.stack([s.to(sums[0].device) for s in sums]).tolist() if sums else []
    return hashlib.sha256(repr((facts, values)).encode()).hexdigest()[:16]


def _words(v: Tensor) -> Tensor:
    """The bits of a tensor as signed integers."""
    v = v.detach().contiguous()
    return (torch.view_as_real(v) if v.is_complex() else v).view(_WORDS[v.element_size() // (1 + v.is_complex())])
