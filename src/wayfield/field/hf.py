r"""A network and a scheduler of diffusers as a `Denoiser`.

.. math:: \text{path, kind, time} \leftarrow \text{scheduler}, \qquad \text{conditions, call} \leftarrow \text{network}

The network is called as it is, in its own type, through its own `__call__`, so that hooks of offloading, adapters and
caches work. The state of a run stays in the type of the run, and so do times: with weights in half precision, pass
nothing and the run is in float32 outside of the network.

    model = from_diffusers(pipe.unet, pipe.scheduler, null={"encoder_hidden_states": empty[0]})
    grid = scheduler_grid(pipe.scheduler, 30)
    sample(model, grid, shape=(4, 64, 64), cond={"encoder_hidden_states": text}, guidance=CFG(7))

What a scheduler says is read in `hf_path`, the families of networks stand in `hf_families`. Models with *distilled
guidance* (Flux with its embedded scale) are told the scale as a condition, "guidance"; they have no unconditional
answer, unless the user gives them one with `null=`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import DTypeError, RangeError
from wayfield.field.cond import Schema
from wayfield.field.denoiser import Call, Denoiser
from wayfield.field.hf_families import Family, family_of
from wayfield.field.hf_path import told

__all__ = ["from_diffusers"]


@final
class Elsewhere(nn.Module):
    """A network whose weights are elsewhere until it is called, or not all of one type: it shows no parameters."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.held = (net,)  # in a tuple, so that moving this module does not move what hooks place

    def state_dict(self) -> Mapping[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """That of the network, by which it is told from others."""
        return self.held[0].state_dict()


def from_diffusers(
    net: nn.Module,
    scheduler: Any,
    *,
    null: Mapping[str, Any] | None = None,
    tokens: int = 77,
    family: Family | None = None,
) -> Denoiser:
    """The denoiser of a diffusers network under the path of a diffusers scheduler.

    null: for every condition the value, without a batch axis, that means "none" / tokens: length of text conditions,
    where `null` does not tell it / family: of the network, if it is none of those known.
    Raises UnsupportedError for unknown networks and schedulers and for options they cannot serve, ConditionError for a
    null that does not fit.
    """
    if not isinstance(net, nn.Module):
        remedy = "Pass pipe.unet or pipe.transformer."
        raise DTypeError("network", got=type(net).__name__, expected="a torch module", remedy=remedy)
    if not isinstance(tokens, int) or tokens < 1:
        raise RangeError("tokens", got=tokens, expected="an integer >= 1", remedy="Text encoders give 77, 120, ...")
    path, kind, time, sign, whole = told(scheduler)
    found, inner = family or family_of(net), getattr(net, "_orig_mod", net)
    text = None if null is None else null.get("encoder_hidden_states")
    if text is not None:
        tokens = len(torch.as_tensor(text))
    schema = Schema(found.fields(inner, tokens), found.null(inner) if null is None else null)
    call = found.call if sign == 1 else _negated(found.call)
    call = _in_rows(call) if whole else call
    weights = next((p for p in inner.parameters() if p.is_floating_point()), None)
    dtype = None if weights is None else getattr(inner, "dtype", weights.dtype)
    if _offloaded(inner) or (weights is not None and weights.dtype != dtype):
        return Denoiser(Elsewhere(net), path, kind, time=time, schema=schema, call=_reaching(call), dtype=dtype)
    return Denoiser(net, path, kind, time=time, schema=schema, call=call, dtype=dtype)


def _offloaded(net: nn.Module) -> bool:
    """Whether hooks bring the weights when the network, or a part of it, is called."""
    return any(hasattr(module, "_hf_hook") for module in net.modules())


def _negated(call: Call) -> Call:
    return lambda net, x, time, cond: -call(net, x, time, cond)


def _in_rows(call: Call) -> Call:
    return lambda net, x, time, cond: call(net, x, time.round(), cond)


def _reaching(call: Call) -> Call:
    def reach(net: nn.Module, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        assert isinstance(net, Elsewhere)
        return call(net.held[0], x, time, cond)

    return reach
