"""The rule that makes strategies exchangeable: what is drawn by Reparam may be used smoothly only.

A derivative through x says nothing of the jump of `x < 0`, so a program that branches on such a value would have a
biased gradient and no way to notice. While an objective runs for the first time, every tensor that descends from a
drawn value remembers the sites it came from; a comparison, a rounding or an `if` on one that came from a smooth site
is an error that names it. Later runs pay nothing.

Sites drawn in another way may decide anything. Where a decision is taken in Python (`if`, `range`, `int`) on a value
with several entries, samples would decide differently, and the run must be made by the replay engine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, final

from torch import Tensor
from torch.overrides import TorchFunctionMode

from wayfield.core.errors import UnsupportedError

__all__ = ["NeedsReplayError", "Watch"]

_DECIDES = frozenset(("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "nonzero"))
_JUMPS = frozenset(
    (
        *("lt", "le", "gt", "ge", "eq", "ne", "less", "less_equal", "greater", "greater_equal", "not_equal"),
        *("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "isclose", "argmax", "argmin", "argsort"),
        *("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "bucketize", "searchsorted", "signbit"),
        *("floor_divide", "long", "int", "bool", "round_", "floor_", "ceil_", "trunc_", "sign_", "logical_not"),
    )
)


class NeedsReplayError(UnsupportedError):
    """A program decides in Python by values of which the vectorised engine holds several."""


@final
class Watch(TorchFunctionMode):
    """While active, follows which sites every tensor descends from; see the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self._smooth: dict[int, frozenset[str]] = {}
        self._rough: dict[int, frozenset[str]] = {}
        self._alive: list[Tensor] = []  # an id means its tensor only while that lives

    def mark(self, value: Tensor, name: str, smooth: bool) -> None:
        """This tensor was drawn at site `name`."""
        self._keep(value, *((frozenset((name,)), frozenset()) if smooth else (frozenset(), frozenset((name,)))))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((*args, *kwargs.values())))
        smooth = frozenset().union(*(self._smooth.get(id(x), ()) for x in inputs))
        rough = frozenset().union(*(self._rough.get(id(x), ()) for x in inputs))
        if smooth or rough:
            self._check(func, smooth, rough, inputs)
        out = func(*args, **kwargs)
        if smooth or rough:
            for x in _tensors((out,)):
                self._keep(x, smooth, rough)
        return out

    def _check(self, func: Any, smooth: frozenset[str], rough: frozenset[str], inputs: list[Tensor]) -> None:
        name = getattr(func, "__name__", "")
        if name not in _DECIDES and name not in _JUMPS:
            return
        if _inside_distributions():  # their checks of supports, and bounds of densities
            return
        if smooth:
            site = ", ".join(repr(s) for s in sorted(smooth))
            remedy = "Choose Reinforce(), Enum() or MVD() for the site, or a smooth function of it."
            got = f"{name.strip('_')} of a value drawn by Reparam"
            raise UnsupportedError(f"site {site}", got=got, expected="smooth use only", remedy=remedy)
        if name in _DECIDES and max(x.numel() for x in inputs) > 1:
            site = ", ".join(repr(s) for s in sorted(rough))
            remedy = "Use engine='replay' with one row at a time, or write the decision with masks (torch.where)."
            got = f"{name.strip('_')} of a tensor with several values"
            raise NeedsReplayError(f"site {site}", got=got, expected="one value", remedy=remedy)

    def _keep(self, x: Tensor, smooth: frozenset[str], rough: frozenset[str]) -> None:
        self._alive.append(x)
        self._smooth[id(x)] = smooth
        self._rough[id(x)] = rough


def _tensors(tree: Iterable[Any]) -> Iterable[Tensor]:
    for x in tree:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (tuple, list)):
            yield from _tensors(x)


def _inside_distributions(look: Callable[[int], Any] = sys._getframe) -> bool:
    """Is one of the next few callers torch.distributions, or this library?"""
    frame = look(3)
    for _ in range(4):
        if frame is None:
            return False
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("torch.distributions", "wayfield.vi.")):
            return True
        if not module.startswith("torch"):
            return False
        frame = frame.f_back
    return False
