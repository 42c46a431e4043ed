"""The few shape operations everything shares: time over batch, norms over non-batch axes, maps over nested tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from wayfield.core.errors import DeviceError, DTypeError, ShapeError

__all__ = ["check_like", "check_samples", "dot", "expand", "flatten", "leaves", "norm", "tree_map", "tree_zip"]


def expand(c: Tensor, x: Tensor) -> Tensor:
    """Lay a coefficient `c`, shape () or (B,), over points `x`, shape (B, *D): result () or (B, 1, ..., 1)."""
    return c if c.ndim == 0 else c.reshape(c.shape + (1,) * (x.ndim - 1))


def flatten(x: Tensor) -> Tensor:
    """Each sample as one row: (B, *D) -> (B, prod D)."""
    return x.reshape(x.shape[0], -1)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product per sample: (B, *D), (B, *D) -> (B,)."""
    return (flatten(x) * flatten(y)).sum(1)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm per sample: (B, *D) -> (B,)."""
    return torch.linalg.vector_norm(flatten(x), dim=1)


def tree_map(f: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply `f` to every tensor of nested tuples, lists and mappings; anything else is passed through."""
    if isinstance(tree, Tensor):
        return f(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(tree_map(f, v) for v in tree))
    if isinstance(tree, (tuple, list)):
        return type(tree)(tree_map(f, v) for v in tree)
    if isinstance(tree, Mapping):
        return {k: tree_map(f, v) for k, v in tree.items()}
    return tree


def tree_zip(f: Callable[[Tensor, Tensor], Tensor], a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """`f` of the tensors that stand at the same place of two equal nests of tuples."""
    return tuple([f(x, y) if isinstance(x, Tensor) else tree_zip(f, x, y) for x, y in zip(a, b, strict=True)])


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a nested structure with its path, such as ("0.1.mean", tensor)."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, (tuple, list, Mapping)):
        for k, v in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from leaves(v, f"{name}.{k}" if name else str(k))


def check_samples(what: str, x: Tensor) -> Tensor:
    """Refuse anything but a floating-point batch (B, *D) with B >= 1 and at least one data axis."""
    if not isinstance(x, Tensor):
        raise DTypeError(
            what, got=type(x).__name__, expected="a torch.Tensor", remedy="Convert it with torch.as_tensor."
        )
    if not x.is_floating_point():
        raise DTypeError(what, got=x.dtype, expected="a floating-point tensor", remedy="Scale and cast it first.")
    if x.ndim < 2 or x.numel() == 0:
        raise ShapeError(
            what, got=tuple(x.shape), expected="(B, *D), nothing empty", remedy="Add the batch axis first."
        )
    return x


def check_like(what: str, y: Tensor, x: Tensor) -> Tensor:
    """Refuse a `y` whose shape, device or floating type differs from those of `x`."""
    if y.shape != x.shape:
        raise ShapeError(what, got=tuple(y.shape), expected=tuple(x.shape), remedy="Give both the same shape.")
    if y.device != x.device:
        raise DeviceError(what, got=y.device, expected=x.device, remedy="Move one of them with .to(device).")
    if y.is_floating_point() != x.is_floating_point():
        raise DTypeError(what, got=y.dtype, expected=x.dtype, remedy="Cast one of them.")
    return y
