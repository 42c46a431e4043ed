"""What a tensor's gradient would reach."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["leaves"]


def leaves(x: Tensor | None) -> set[int]:
    """Ids of the tensors at which a graph ends: parameters, and whatever else asks for a gradient."""
    if x is None or not x.requires_grad:
        return set()
    if x.grad_fn is None:
        return {id(x)}
    found: set[int] = set()
    seen: set[Any] = set()
    todo: list[Any] = [x.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo.extend(n for n, _ in node.next_functions)
    return found
