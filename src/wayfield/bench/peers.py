"""Peers for comparison, loaded without what they drag in.

k-diffusion's package imports image libraries at its first line, among them torchvision, which this project keeps out
(its builds break CPU builds of torch). Its samplers need none of them, so `k_diffusion_sampling` loads that one file
with stand-ins for the rest.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType

from torch import Tensor

from wayfield.core.errors import MissingExtraError

__all__ = ["k_diffusion_sampling", "peer"]


def peer(name: str) -> ModuleType:
    """The module `name` of an installed peer. Raises MissingExtraError if the peer is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _missing(name, error) from error


@functools.cache
def k_diffusion_sampling() -> ModuleType:
    """The module `k_diffusion.sampling` alone. Raises MissingExtraError if it or something it needs is not installed.

    A bare package with the real search path and a `utils` holding the one function that the samplers call stand in
    while it loads; both are taken out of `sys.modules` afterwards.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise _missing("k_diffusion", None)
    package, utils = ModuleType("k_diffusion"), ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    utils.append_dims = _append_dims  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "k_diffusion"}
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ImportError as error:
        raise _missing("k_diffusion", error) from error
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "k_diffusion"]:
            del sys.modules[name]
        sys.modules.update(before)


def _append_dims(c: Tensor, ndim: int) -> Tensor:
    """`c` with axes of length 1 appended until it has `ndim` axes."""
    return c.reshape(c.shape + (1,) * (ndim - c.ndim))


def _missing(name: str, error: ImportError | None) -> MissingExtraError:
    return MissingExtraError(
        f"peer {name!r}",
        got=error or "not installed",
        expected="an installed peer",
        remedy="Run `make test`, which installs the peers, or leave this comparison out.",
    )
