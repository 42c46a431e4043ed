"""What is trained: tensors by name, gathered from tensors and modules, with the buffers that move along."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from wayfield.core.errors import DTypeError, RangeError

__all__ = ["Named", "Parameters", "named"]

Parameters = Tensor | nn.Module | Iterable[Tensor | nn.Module] | Mapping[str, Tensor | nn.Module]
"""What may be trained: a tensor, a module, or several; a mapping gives them names, else they are counted from 0."""


@final
@dataclass(frozen=True, eq=False)
class Named:
    """tensors: trained leaves by name, no tensor twice / buffers: of their modules, such as running means."""

    tensors: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    def copy(self) -> dict[str, Tensor]:
        """Copies of all of them, by name."""
        return {k: v.detach().clone() for k, v in (*self.tensors.items(), *self.buffers.items())}

    @torch.no_grad()
    def fill(self, values: Mapping[str, Tensor]) -> None:
        """Take the values of a copy, in place."""
        for k, v in (*self.tensors.items(), *self.buffers.items()):
            v.copy_(values[k])

    @contextmanager
    def still(self) -> Iterator[None]:
        """Runs inside do not move the buffers."""
        kept = {k: b.detach().clone() for k, b in self.buffers.items()}
        try:
            yield
        finally:
            for k, b in kept.items():
                self.buffers[k].copy_(b)

    def __str__(self) -> str:
        return ", ".join(f"{k} {tuple(v.shape)} {str(v.dtype).removeprefix('torch.')}" for k, v in self.tensors.items())


def named(parameters: Parameters) -> Named:
    """Every trainable tensor by name: "0", "1.weight"; those of a mapping by its names, of one module by its own.

    Raises RangeError if there is none, DTypeError for what is no tensor or module, asks for no gradient or is computed
    from other tensors.
    """
    tensors: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    for name, part in _parts(parameters):
        if isinstance(part, nn.Module):
            dot = f"{name}." if name else ""
            tensors |= {dot + k: p for k, p in part.named_parameters() if p.requires_grad}
            buffers |= {f"{dot}{k} (buffer)": b for k, b in part.named_buffers()}
        else:
            tensors[name or "0"] = _leaf(name or "0", part)
    if not tensors:
        remedy = "Give what should learn: [model, guide], or requires_grad_(True) on it."
        raise RangeError("parameters", got="none that can be trained", expected="at least one", remedy=remedy)
    return Named(_once(tensors), _once(buffers))


def _parts(parameters: Parameters) -> Iterator[tuple[str, Tensor | nn.Module]]:
    if isinstance(parameters, (Tensor, nn.Module)):
        yield "", parameters
    elif isinstance(parameters, Mapping):
        for name, part in parameters.items():
            yield str(name), part  # type: ignore[misc]
    elif isinstance(parameters, Iterable):
        yield from ((str(k), p) for k, p in enumerate(parameters))
    else:
        got = type(parameters).__name__
        remedy = "Give [model, guide], guide.parameters() or a dict of tensors."
        raise DTypeError("parameters", got=got, expected="tensors or modules", remedy=remedy)


def _leaf(name: str, x: object) -> Tensor:
    what = f"parameter {name!r}"
    if not isinstance(x, Tensor):
        remedy = "Give [model, guide], guide.parameters() or a dict of tensors."
        raise DTypeError(what, got=type(x).__name__, expected="a tensor or a module", remedy=remedy)
    if not x.requires_grad:
        remedy = "Call requires_grad_(True) on it, or leave it out."
        raise DTypeError(what, got="a tensor without gradient", expected="requires_grad=True", remedy=remedy)
    if not x.is_leaf:
        remedy = "Give the tensor it is computed from, and compute it inside the program."
        raise DTypeError(what, got="a computed tensor", expected="a leaf", remedy=remedy)
    return x


def _once(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without those that have come under another name: tied weights take one step, not two."""
    seen: set[int] = set()
    return {k: v for k, v in tensors.items() if not (id(v) in seen or seen.add(id(v)))}
