r"""Acting inside a network: what is changed in its layers is data of each row, like any other condition.

Steering that disturbs a network's inside usually swaps its layers for one branch and back. Here layers are changed
once, by `install`, and what they do then is said row by row: the condition gains a field named like the patch, and
where it is off or left out the row is what the untouched network answers, to the bit. So steered and plain rows share
one call, and the network still compiles as one graph.

    model, undo = install(model, "pag", PerturbedAttention(("middle",)))
    sample(model, grid, cond={"label": 3}, conds={"perturbed": {"label": 3, "pag": True}}, guidance=CFG(4) + PAG(3))
    undo()                                 the network is what it was; last installed, first undone

Patches stack; in a layer that has several, the last installed acts on what the others made of it. Weights, buffers and
names of the network are never touched. Whoever calls it without a `Denoiser` of `install` gets the plain answer.

=======  ================================================  =======================
symbol   meaning                                           shape
=======  ================================================  =======================
gate     whether a row is steered                          (B,)
rows     what a patch is told, by field; "" is its gate    (B, ...)
=======  ================================================  =======================
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import DTypeError, ShapeError, UnsupportedError, unknown_name
from wayfield.core.shapes import expand
from wayfield.field.attention import Core, Heads, Layer
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Call, Denoiser
from wayfield.field.hf import Elsewhere

__all__ = ["Installed", "Patch", "Told", "check_layers", "gated", "install"]

Forward = Callable[..., Any]
Told = dict[str, Tensor]
"""What a patch is told of the rows of one call, by field."""

_HERE = "_wayfield_patches"


class Patch(ABC):
    """What is to happen in some layers, a frozen description.

    layers: dotted names of layers, or of modules that hold them; () means all that can be changed so.
    what: the kind of layer, for messages.
    """

    layers: tuple[str, ...]
    what: ClassVar[str] = "attention layer"

    @abstractmethod
    def candidates(self, net: nn.Module) -> Mapping[str, Layer | nn.Module]:
        """What can be changed so, by name: attention layers, for which `attend` is asked, or modules, for `block`."""

    def fields(self, schema: Schema) -> Mapping[str, tuple[Field, Any]]:
        """What it is told for each row, and the value that means off; "" is the gate, others are named after it."""
        return {"": (Field(dtype="bool"), False)}

    def begin(self, net: nn.Module, rows: Told) -> Told:
        """What layers are told, from what the condition says; once a call."""
        return rows

    def attend(self, heads: Heads, rows: Told) -> Tensor:
        """What an attention layer attends to, (B, heads, N, c); rows that are off as `heads.plain()`."""
        return heads.plain()

    def block(
        self, module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any], rows: Told
    ) -> Any:
        """What a module answers; rows that are off as `forward(*args, **kwargs)`, its answer otherwise."""
        return forward(*args, **kwargs)


class Installed(NamedTuple):
    """model: the same network, with the patch's fields among its conditions / undo: takes the patch out again."""

    model: Denoiser
    undo: Callable[[], None]


def install(model: Denoiser, name: str, patch: Patch) -> Installed:
    """Patch a denoiser's network, in place. name: of the patch, and of its gate among the conditions.

    The denoiser that comes back steers the rows whose gate is on; the old one is as it was. Raises DTypeError for
    anything but a `Patch`, UnknownNameError for layers that are not there, and UnsupportedError for a network without
    such layers, a compiled network, or a name in use. `undo` raises UnsupportedError unless it is the last one's turn.
    """
    if not isinstance(patch, Patch):
        remedy = "Pass e.g. PerturbedAttention() or SkipLayers(('blocks.2',))."
        raise DTypeError("patch", got=type(patch).__name__, expected="a Patch", remedy=remedy)
    net = _itself(model.net)
    known = getattr(net, _HERE, None)
    if hasattr(net, "_orig_mod"):
        remedy = "Install first and compile then, or pass compile=True to sample."
        raise UnsupportedError("patch", got="a compiled network", expected="the network itself", remedy=remedy)
    if known is not None and name in known.names:
        remedy = "Undo that one first, or choose another name."
        raise UnsupportedError(f"patch {name!r}", got="a name installed already", expected="a new one", remedy=remedy)
    told = _told(model, name, patch)
    inside = known if known is not None else _Inside()
    chosen = _chosen(net, patch)
    for layer in chosen:
        module, attends = _module(layer), isinstance(layer, Layer)
        site = module.__dict__.get("forward")
        if not (isinstance(site, _Site) and isinstance(site.layer, Layer) == attends):
            site = _Site(layer, module.forward, site, inside)
            module.forward = site
        site.patches = (*site.patches, (name, patch))
    inside.names = (*inside.names, name)
    setattr(net, _HERE, inside)
    return Installed(told, functools.partial(_undo, net, name, tuple(_module(layer) for layer in chosen)))


def gated(gate: Tensor, other: Tensor, plain: Tensor) -> Tensor:
    """`other` (B, ...) where the gate (B,) is on, `plain` to the bit elsewhere. Raises ShapeError where they differ."""
    if other.shape != plain.shape or len(gate) != len(plain):
        remedy = "Choose layers that answer in the shape they are given, one row for each row of the network."
        got = f"{tuple(other.shape)} for {len(gate)} gates"
        raise ShapeError("what a patch puts in place", got=got, expected=tuple(plain.shape), remedy=remedy)
    return torch.where(expand(gate, plain), other, plain)


def check_layers(layers: Any) -> tuple[str, ...]:
    """Names of layers, from a tuple, a list or one name. Raises DTypeError."""
    names = (layers,) if isinstance(layers, str) else layers
    if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) for n in names):
        remedy = "Write e.g. ('mid_block', 'blocks.2'); () means all."
        raise DTypeError("layers of a patch", got=repr(layers), expected="names", remedy=remedy)
    return tuple(names)


# ------------------------------------------------------------------------------------------------ what sits in the net
@final
class _Inside:
    """What a network's sites share. names: patches, in the order of installing / told: of the call under way, by patch
    / size: (H, W) of its points.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.told: dict[str, Told] = {}
        self.size: tuple[int, int] | None = None


@final
class _Site:
    """Stands in for the `forward` of one module. own: what its instance had there before, None for its class's."""

    def __init__(self, layer: Layer | nn.Module, forward: Forward, own: Forward | None, inside: _Inside) -> None:
        self.layer, self.forward, self.own, self.inside = layer, forward, own, inside
        self.patches: tuple[tuple[str, Patch], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        told = self.inside.told
        live = [(patch, told[name]) for name, patch in self.patches if name in told]
        if not live:
            return self.forward(*args, **kwargs)
        layer = self.layer
        if isinstance(layer, Layer):
            return layer.run(lambda usual: self._rule(layer, usual, live, args, kwargs), self.forward, args, kwargs)
        forward = self.forward
        for patch, rows in live:
            forward = _around(layer, forward, patch, rows)
        return forward(*args, **kwargs)

    def _rule(
        self, layer: Layer, usual: Core, live: list[tuple[Patch, Told]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Core:
        def rule(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            core, places = usual, layer.places(q, args, kwargs)
            for patch, rows in live:
                core = _core(patch, rows, layer, places, self.inside.size, core)
            return core(q, k, v, mask)

        return rule


def _core(patch: Patch, rows: Told, layer: Layer, places: slice, size: tuple[int, int] | None, usual: Core) -> Core:
    def core(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return patch.attend(Heads(layer, q, k, v, mask, places, size, usual), rows)

    return core


def _around(module: nn.Module, forward: Forward, patch: Patch, rows: Told) -> Forward:
    return lambda *args, **kwargs: patch.block(module, forward, args, kwargs, rows)


@final
@dataclass(frozen=True)
class _Telling:
    """How a patched network is called: the fields of the patch go to its sites, the others to the network. keys: their
    names among the conditions, and the patch's own.
    """

    name: str
    patch: Patch
    keys: tuple[tuple[str, str], ...]
    inner: Call | None

    def __call__(self, net: nn.Module, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        itself = _itself(net)
        inside: _Inside | None = getattr(itself, _HERE, None)
        if inside is None or self.name not in inside.names:
            remedy = "Use the denoiser from before it was installed, or install it again."
            raise UnsupportedError(f"patch {self.name!r}", got="undone", expected="installed", remedy=remedy)
        if torch.is_grad_enabled() and getattr(itself, "is_gradient_checkpointing", False):
            remedy = "Switch it off: layers run a second time would no longer know what they were told."
            raise UnsupportedError("patch", got="gradient checkpointing", expected="none", remedy=remedy)
        mine = {key for key, _ in self.keys}
        rest = {key: c for key, c in cond.items() if key not in mine}
        rows = self.patch.begin(itself, {field: cond[key] for key, field in self.keys})
        before, inside.told = inside.told, {**inside.told, self.name: rows}
        inside.size = (x.shape[-2], x.shape[-1]) if x.ndim == 4 else None
        try:
            return net(x, time, rest) if self.inner is None else self.inner(net, x, time, rest)
        finally:
            inside.told = before


def _told(model: Denoiser, name: str, patch: Patch) -> Denoiser:
    """The denoiser whose conditions have the patch's fields."""
    schema, new, off, keys = model.schema, {}, {}, []
    for field, (kind, value) in patch.fields(schema).items():
        key = f"{name}_{field}" if field else name
        if key in schema.fields:
            remedy = "Choose another name for the patch."
            raise UnsupportedError(f"patch {name!r}", got=f"the condition {key!r}", expected="a new one", remedy=remedy)
        new[key], off[key] = kind, value
        keys.append((key, field))
    null = None if schema.null is None and schema.fields else {**(schema.null or {}), **off}
    telling = _Telling(name, patch, tuple(keys), model.call)
    return replace(model, schema=Schema({**schema.fields, **new}, null, {**schema.optional, **off}), call=telling)


def _chosen(net: nn.Module, patch: Patch) -> list[Layer | nn.Module]:
    known = patch.candidates(net)
    if not known:
        remedy = "Steer a network that has some, e.g. a DiT, or a UNet with attention=(...)."
        got = f"{type(net).__name__} without one"
        raise UnsupportedError(type(patch).__name__, got=got, expected=f"a network with a {patch.what}", remedy=remedy)
    out: dict[str, Layer | nn.Module] = {} if patch.layers else dict(known)
    for asked in patch.layers:
        hits = {name: layer for name, layer in known.items() if f"{name}.".startswith(f"{asked}.")}
        if not hits:
            parts = [name.split(".") for name in known]
            raise unknown_name(patch.what, asked, {".".join(p[:k]) for p in parts for k in range(1, len(p) + 1)})
        out.update(hits)
    for name, layer in out.items():
        if isinstance(layer, Layer) and layer.replaced and not isinstance(vars(layer.module)["forward"], _Site):
            remedy = "Install first; what replaces a layer whole would be passed over."
            raise UnsupportedError(f"layer {name!r}", got="a forward of its own", expected="its class's", remedy=remedy)
    return list(out.values())


def _itself(net: nn.Module) -> nn.Module:
    """The network that has the layers."""
    return net.held[0] if isinstance(net, Elsewhere) else net


def _module(layer: Layer | nn.Module) -> nn.Module:
    return layer.module if isinstance(layer, Layer) else layer


def _undo(net: nn.Module, name: str, modules: tuple[nn.Module, ...]) -> None:
    inside: _Inside | None = getattr(net, _HERE, None)
    last = "nothing" if inside is None else inside.names[-1]
    sites = [module.__dict__.get("forward") for module in modules]
    if inside is None or last != name or not all(isinstance(s, _Site) and s.patches[-1][0] == name for s in sites):
        got = f"{last!r} installed later" if last != name else "layers that somebody else has wrapped since"
        remedy = "Take off first what was put on last."
        raise UnsupportedError(f"undo of patch {name!r}", got=got, expected="this one on top", remedy=remedy)
    for module, site in zip(modules, sites, strict=True):
        assert isinstance(site, _Site)
        site.patches = site.patches[:-1]
        if not site.patches:
            del module.forward
            if site.own is not None:
                module.forward = site.own
    inside.names = inside.names[:-1]
    if not inside.names:
        delattr(net, _HERE)
