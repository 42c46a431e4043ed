"""Storchastic, loaded without what its import does to torch.

It replaces four functions of torch by slower ones and turns torch.distributions' checks off for the whole process,
which would slow down or change everyone else in a comparison. The models of suite "vi" need none of the four.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor
from torch.distributions import Distribution

from wayfield.bench.peers import peer

__all__ = ["storchastic"]

_REPLACED = ((torch, "is_tensor"), (Tensor, "to"), (Tensor, "le"), (Tensor, "gt"))


@functools.cache
def storchastic() -> ModuleType:
    """The module `storch`; torch is as it was before. Raises MissingExtraError if it is not installed."""
    before = [getattr(owner, name) for owner, name in _REPLACED]
    checks = Distribution._validate_args
    try:
        return peer("storch")
    finally:
        for (owner, name), was in zip(_REPLACED, before, strict=True):
            setattr(owner, name, was)
        Distribution.set_default_validate_args(checks)
