r"""Perturbed-attention guidance (PAG): away from what the network says when its places no longer see each other.

A denoiser can serve as its own bad example: with the self-attention maps of a few layers replaced by the identity, what
each place looks like is kept and how places fit together is lost. Pushing away from that needs no training, no second
network and no condition.

.. math:: \hat{x}_0 = x_0 + s\,(x_0 - x_0'), \qquad Z' = V \;\text{in place of}\; \text{softmax}(Q K^T / \sqrt{c})\, V

In use:

    model, undo = install(model, "pag", PerturbedAttention(("middle",)))
    sample(model, grid, cond={}, conds={"perturbed": {"pag": True}}, guidance=PAG(3.0))

x0, x0': (B, *D), plain and perturbed / Q, K, V: (B, heads, N, c). The two are rows of one call. Where keys of a text
stand beside those of the picture in one softmax, only the map from place to place becomes the identity: each place
still sees the text and itself.

Defaults: s = 3 and the middle block of Stable Diffusion, as in diffusers' pipelines. What is good depends on the
layers, so the only default of `layers` is all of them, which is more than is usually meant.

Reference: Ahn et al. 2024, arXiv 2403.17377.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from wayfield.field.attention import Heads, Layer, attention_layers, full_mask
from wayfield.field.binding import COND, Query
from wayfield.field.patch import Patch, Told, check_layers, gated
from wayfield.guide.contrast import Contrast
from wayfield.guide.terms import Factor, check_factor

__all__ = ["PAG", "PerturbedAttention"]


@final
@dataclass(frozen=True)
class PAG(Contrast):
    """Away from the answer with perturbed attention, x0 + s (x0 - x0').

    s: finite, 0 means none; a tuple gives every sample its own / away: name of the condition whose gate is on, among
    the `conds` given to `sample`. Raises RangeError.
    """

    s: Factor = 3.0
    away: str = "perturbed"

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", check_factor("scale s of PAG", self.s))
        for name, value in (("plus", COND), ("minus", Query(self.away)), ("gain", self.s)):
            object.__setattr__(self, name, value)


@final
@dataclass(frozen=True)
class PerturbedAttention(Patch):
    """The identity for the self-attention maps of some layers, at rows whose gate is on.

    layers: dotted names of attention layers, or of modules that hold them; () means all. Raises DTypeError.
    """

    layers: tuple[str, ...] = ()
    what: ClassVar[str] = "self-attention layer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers(self.layers))

    def candidates(self, net: nn.Module) -> Mapping[str, Layer | nn.Module]:
        """See `Patch.candidates`: all but layers that look at a text alone."""
        return {name: layer for name, layer in attention_layers(net).items() if layer.kind != "cross"}

    def attend(self, heads: Heads, rows: Told) -> Tensor:
        """See `Patch.attend`."""
        count = heads.places.stop - heads.places.start
        if count == heads.k.shape[2] == heads.q.shape[2]:
            return gated(rows[""], heads.v, heads.plain())
        return gated(rows[""], heads.attend(heads.q, heads.k, heads.v, _alone(heads)), heads.plain())


def _alone(heads: Heads) -> Tensor:
    """The mask under which a place sees, of all places, only itself, (B or 1, heads or 1, N, M)."""
    mask, here = full_mask(heads.mask, heads.q, heads.k), heads.places
    others = torch.zeros(heads.q.shape[2], heads.k.shape[2], dtype=torch.bool, device=mask.device)
    others[here, here] = ~torch.eye(here.stop - here.start, dtype=torch.bool, device=mask.device)
    if mask.dtype == torch.bool:
        return mask & ~others
    return mask.masked_fill(others, -torch.inf)
