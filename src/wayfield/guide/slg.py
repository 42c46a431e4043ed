r"""Skip-layer guidance (SLG): away from what the network says without some of its blocks.

A denoiser that skips a few of its middle blocks still sees what the picture is about, and loses anatomy and structure.
Pushing away from that repairs them, as a weaker network does in autoguidance, with no second network.

.. math:: \hat{x}_0 = x_0 + s\,(x_0 - x_0'), \qquad h' = h \;\text{in place of}\; \text{block}(h)

In use:

    model, undo = install(model, "slg", SkipLayers(("transformer_blocks.7", "transformer_blocks.8")))
    sample(model, grid, cond={...}, conds={"skipped": {..., "slg": True}},
           guidance=CFG(4.5) + SLG(2.8).when(Interval(high=-5.0)))

x0, x0': (B, *D), plain and skipping / h: every stream of tokens that the block carries, text included. The two are rows
of one call. A block whose answer has another shape than what it is given cannot be skipped.

Defaults: s = 2.8, blocks 7, 8 and 9 of Stable Diffusion 3.5 Medium, from 1 % to 20 % of the steps, as its makers
recommend; gates (`Interval`, `Steps`) say when. On a flow's grid shifted by 3, log-SNR below -5 is the first fifth.

References: Stability AI 2024, github.com/Stability-AI/sd3.5 (images); Hyung et al. 2024, arXiv 2411.18664 (video).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from wayfield.core.errors import UnsupportedError
from wayfield.field.attention import Layer, blocks
from wayfield.field.binding import COND, Query
from wayfield.field.patch import Patch, Told, check_layers, gated
from wayfield.guide.contrast import Contrast
from wayfield.guide.terms import Factor, check_factor

__all__ = ["SLG", "SkipLayers"]


@final
@dataclass(frozen=True)
class SLG(Contrast):
    """Away from the answer of a network that skips blocks, x0 + s (x0 - x0').

    s: finite, 0 means none; a tuple gives every sample its own / away: name of the condition whose gate is on, among
    the `conds` given to `sample`. Raises RangeError.
    """

    s: Factor = 2.8
    away: str = "skipped"

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", check_factor("scale s of SLG", self.s))
        for name, value in (("plus", COND), ("minus", Query(self.away)), ("gain", self.s)):
            object.__setattr__(self, name, value)


@final
@dataclass(frozen=True)
class SkipLayers(Patch):
    """Blocks that are left out at rows whose gate is on.

    layers: dotted names of blocks, modules that hold attention, or of what holds those; never empty, for a network
    without any block says nothing. Raises DTypeError or UnsupportedError.
    """

    layers: tuple[str, ...]
    what: ClassVar[str] = "block with attention"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers(self.layers))
        if not self.layers:
            remedy = "Name some in the middle, e.g. ('transformer_blocks.7',)."
            raise UnsupportedError("layers to skip", got="()", expected="names of blocks", remedy=remedy)

    def candidates(self, net: nn.Module) -> Mapping[str, Layer | nn.Module]:
        """See `Patch.candidates`."""
        return blocks(net)

    def block(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        rows: Told,
    ) -> Any:
        """See `Patch.block`."""
        out, given = forward(*args, **kwargs), args[0] if args else kwargs["hidden_states"]
        if not isinstance(out, tuple):
            return gated(rows[""], given, out)
        text, hidden = out  # as all of diffusers' blocks with two streams answer; the last has no text
        kept = None if text is None else gated(rows[""], kwargs["encoder_hidden_states"], text)
        return kept, gated(rows[""], given, hidden)
