"""The rule that makes strategies exchangeable: what is drawn by Reparam may be used smoothly only.

A derivative through x says nothing of the jump of `x < 0`, so a program that branches on such a value would have a
biased gradient and no way to notice. While an objective runs for the first time, every tensor that descends from a
drawn value remembers the sites it came from, through networks, indexing and `detach`; a comparison, a rounding, an `if`
on one that came from a smooth site, or any other function of it whose values are whole numbers, is an error that names
the site. Densities may compare: their supports and bounds. Later runs pay nothing.

Sites drawn in another way may decide anything. Where a decision is taken in Python (`if`, `range`, `int`) by a site of
which the run holds several values, these would decide differently, and the run must be made by the replay engine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, final

from torch import Tensor
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode

from wayfield.core.errors import UnsupportedError

__all__ = ["NeedsReplayError", "Provenance"]

_DECIDES = frozenset(
    (
        *("__bool__", "__int__", "__float__", "__index__", "__complex__", "item", "tolist", "numpy", "__array__"),
        *("is_nonzero", "equal", "allclose"),
    )
)
_JUMPS = frozenset(  # without whole numbers as their values
    (
        *("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "frac", "remainder", "fmod"),
        *("round_", "floor_", "ceil_", "trunc_", "fix_", "sign_", "sgn_", "heaviside_", "frac_", "remainder_"),
        *("floor_divide", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__", "fmod_", "_threshold"),
        *("hardshrink", "bernoulli", "bernoulli_", "poisson"),
    )
)
_CHECKS = frozenset(("isnan", "isinf", "isfinite", "isneginf", "isposinf", "isreal"))
_ORDERS = frozenset(("max", "min", "sort", "topk", "median", "nanmedian", "mode", "kthvalue", "cummax", "cummin"))
_SHAPES = ("_like", "new_")  # of whose result the values are new

Sites = frozenset[str]
_NONE: Sites = frozenset()


class NeedsReplayError(UnsupportedError):
    """A program decides in Python by values of which the vectorised engine holds several."""


@final
class Provenance(TorchFunctionMode):
    """While active, follows which sites every tensor descends from; see the module's text.

    decided: whether Python took a decision by a drawn value, so that other runs may have other sites.
    """

    def __init__(self) -> None:
        super().__init__()
        self.decided = False
        self._from: dict[int, tuple[Sites, Sites]] = {}  # by id: smooth sites, others
        self._several: set[str] = set()
        self._alive: list[Tensor] = []  # an id means its tensor only while that lives

    def mark(self, value: Tensor, name: str, smooth: bool, event_dims: int = 0) -> None:
        """This tensor was drawn at site `name`."""
        sites = frozenset((name,))
        self._keep(value, (sites, _NONE) if smooth else (_NONE, sites))
        if value.shape[: value.ndim - event_dims].numel() > 1:
            self._several.add(name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(_tensors((*args, *kwargs.values())))
        known = [(x, self._from[id(x)]) for x in inputs if id(x) in self._from]
        if not known:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        smooth, rough = (_NONE.union(*(sites[k] for _, sites in known)) for k in (0, 1))
        if smooth and (name in _DECIDES or name in _JUMPS or kwargs.get("rounding_mode") is not None):
            self._refuse(name, smooth)
        if rough and name in _DECIDES:
            self._decide(name, rough)
        out = func(*args, **kwargs)
        if name.endswith(_SHAPES[0]) or name.startswith(_SHAPES[1]):
            return out
        found = list(_tensors((out,)))
        if smooth and name not in _CHECKS and name not in _ORDERS and any(map(_whole, found)):
            self._refuse(name, smooth)
        if smooth and any(_whole(x) and sites[0] for x, sites in known):  # an order of smooth values, now used
            self._refuse("the order", smooth)
        if name == "broadcast_tensors":
            for x, y in zip(inputs, found, strict=True):
                self._keep(y, self._from.get(id(x), (_NONE, _NONE)))
            return out
        for x in found if name != "__setitem__" else args[:1]:
            if name.endswith("_") or not any(x is y for y in inputs):  # what is handed back unchanged stays what it was
                self._keep(x, (_NONE, rough) if name in _CHECKS else (smooth, rough))
        return out

    def _refuse(self, name: str, smooth: Sites) -> None:
        if _inside_distributions():  # their checks of supports, and bounds of densities
            return
        site = ", ".join(repr(s) for s in sorted(smooth))
        remedy = "Choose Reinforce(), Enum() or MVD() for the site, or a smooth function of it."
        got = f"{name.strip('_')} of a value drawn by Reparam"
        raise UnsupportedError(f"site {site}", got=got, expected="smooth use only", remedy=remedy)

    def _decide(self, name: str, rough: Sites) -> None:
        if _inside_distributions():
            return
        self.decided = True
        if several := rough & self._several:
            site = ", ".join(repr(s) for s in sorted(several))
            remedy = "Use engine='replay', one row and no particles at a time, or masks: torch.where(decision, a, b)."
            got = f"{name.strip('_')} of a tensor with several values"
            raise NeedsReplayError(f"site {site}", got=got, expected="one value", remedy=remedy)

    def _keep(self, x: Tensor, sites: tuple[Sites, Sites]) -> None:
        self._alive.append(x)
        self._from[id(x)] = sites


def _whole(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex())


def _tensors(tree: Iterable[Any]) -> Iterator[Tensor]:
    for x in tree:
        if isinstance(x, Tensor):
            yield x
        elif isinstance(x, (tuple, list)):
            yield from _tensors(x)


def _inside_distributions(look: Callable[[int], Any] = sys._getframe) -> bool:
    """Is one of the next few callers a distribution, torch's or the user's, or this library?"""
    frame = look(3)
    for _ in range(8):
        if frame is None:
            return False
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("torch.distributions", "wayfield.vi.")):
            return True
        if isinstance(frame.f_locals.get("self"), Distribution):
            return True
        if not module.startswith("torch"):
            return False
        frame = frame.f_back
    return False
