r"""What a pipeline's network is told in a run of `steer`: the conditions that guidance names, by the pipeline's texts.

=============  =============================================================================================
condition      is
=============  =============================================================================================
the main one   the prompts; with NASA, the negative prompt beside each of them
"null"         the negative prompt, or the empty text if there is none, or if it is needed elsewhere
"negative"     the negative prompt, where guidance names it so
a text's own   another text, by the name that guidance gives it
a patch's own  the prompts, with that patch on: PAG asks "perturbed", SLG "skipped", SEG "smoothed"
"steered"      the prompts with NASA, where guidance names it so; the main one is then without
=============  =============================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, DTypeError, RangeError, UnsupportedError
from wayfield.field.denoiser import Denoiser
from wayfield.field.hf import from_diffusers
from wayfield.field.patch import Patch, install
from wayfield.guide.guidance import Guidance
from wayfield.guide.nasa import NegativeAttention, negative
from wayfield.sampling.pipes import Pipe, Size, encode, nothing

__all__ = ["Conditions", "Wish", "check_wish", "conditions", "many", "mapping"]

_SCALE, _NASA = 3.5, "nasa"
_RESERVED = ("cond", "null", "negative", "steered", _NASA)
_TEXT = ("encoder_hidden_states", "encoder_attention_mask")


class Wish(NamedTuple):
    """What the user of `steer` asks for, see there. negative: texts, none if there is no negative prompt."""

    prompts: Sequence[Any]
    negative: Sequence[Any]
    distilled: float | None
    true_cfg: bool
    patches: Mapping[str, Patch]
    nasa: float | Sequence[float] | None
    texts: Mapping[str, Sequence[Any]]


class Conditions(NamedTuple):
    """model: the network with its "null" / cond, conds: the main condition and others by name / undos: take the patches
    out again, in this order.
    """

    model: Denoiser
    cond: dict[str, Any]
    conds: dict[str, dict[str, Any]]
    undos: tuple[Callable[[], None], ...]


def many(what: str, x: Any) -> list[Any]:
    """One or several, as a list. Raises ConditionError for none."""
    if isinstance(x, (str, int)):
        return [x]
    if not hasattr(x, "__len__") or not len(x):
        remedy = "Give one for each picture, or a single one for all."
        raise ConditionError(what, got=repr(x), expected="one, or a sequence of some", remedy=remedy)
    return list(x)


def mapping(what: str, x: Any) -> Mapping[str, Any]:
    """What is given by name, {} for None. Raises DTypeError."""
    if x is not None and not isinstance(x, Mapping):
        remedy = "Pass e.g. patches={'perturbed': PerturbedAttention(layers)}, texts={'bad': 'a sketch'}."
        raise DTypeError(what, got=type(x).__name__, expected="a mapping", remedy=remedy)
    return x or {}


def check_wish(p: Pipe, rule: Guidance, wish: Wish) -> None:
    """Raise UnsupportedError for guidance that the model cannot serve, ConditionError for what nobody would ask and for
    prompts that do not fit each other.
    """
    asked = _asked(rule)
    against = asked & {"null", "negative"}
    _check_distilled(p, against, wish)
    _check_names(asked, wish)
    given, n = len(wish.negative), len(wish.prompts)
    if given and not against and wish.nasa is None:
        remedy = "Pass guidance=CFG(w) or nasa=alpha, or leave the negative prompt out."
        raise ConditionError("negative prompt", got="guidance that never asks it", expected="CFG(w)", remedy=remedy)
    if not given and ("negative" in against or wish.nasa is not None):
        remedy = "Pass negative_prompt=..., or use 'null'."
        said = "'negative'" if "negative" in against else "nasa"
        raise ConditionError("negative prompt", got=None, expected=f"text for {said}", remedy=remedy)
    for what, texts in {"negative prompts": wish.negative, **wish.texts}.items():
        if len(texts) not in (0, 1, n):
            remedy = "Give one text, or one for each prompt."
            raise ConditionError(what, got=len(texts), expected=f"1 or {n}", remedy=remedy)
    if wish.nasa is None and "negative" not in asked and len(set(wish.negative)) > 1:
        remedy = "Say CFG(w, away='negative'): that may differ from row to row."
        expected = "one text for all as 'null'"
        raise UnsupportedError("negative prompts", got=f"{given} texts", expected=expected, remedy=remedy)


def conditions(p: Pipe, rule: Guidance, wish: Wish, size: Size) -> Conditions:
    """Texts encoded and patches installed; if that fails, nothing is left behind."""
    asked = _asked(rule)
    distilled = _SCALE if wish.distilled is None else wish.distilled
    said = encode(p, wish.prompts, size)
    away = _told(p, encode(p, wish.negative, size), distilled) if wish.negative else {}
    cond, null = _told(p, said, distilled), None
    if "null" in asked:
        own = wish.nasa is None and "negative" not in asked
        rows = away if away and own else _told(p, nothing(p, size, said), distilled)
        null = {name: v[0] for name, v in rows.items()}
    conds = {"negative": _single(away)} if "negative" in asked else {}
    conds |= {name: _single(_told(p, encode(p, texts, size), distilled)) for name, texts in wish.texts.items()}
    text = cond.get(_TEXT[0])
    model = from_diffusers(p.net, p.pipe.scheduler, null=null, tokens=1 if text is None else text.shape[1])
    main, undos = _single(cond), []
    try:
        for name, patch in wish.patches.items():
            model, undo = install(model, name, patch)
            undos.insert(0, undo)
            conds[name] = main | {name: True}
        if wish.nasa is not None:
            of = tuple(name for name in _TEXT if name in cond) or _TEXT[:1]
            model, undo = install(model, _NASA, NegativeAttention(of))
            undos.insert(0, undo)
            steered = negative(main, {name: _single(away)[name] for name in of}, wish.nasa, name=_NASA)
            main, conds = (main, conds | {"steered": steered}) if "steered" in asked else (steered, conds)
    except Exception:
        for undo in undos:
            undo()
        raise
    return Conditions(model, main, conds, tuple(undos))


def _asked(rule: Guidance) -> set[str]:
    """Names of conditions that guidance may ask, even where its scale happens to ask nothing."""
    return {q.cond for part in rule.parts for q in (*part.needs, *part.told)} | {q.cond for q in rule.told}


def _check_distilled(p: Pipe, against: set[str], wish: Wish) -> None:
    scale = wish.distilled
    if scale is not None and not (isinstance(scale, (int, float)) and math.isfinite(scale)):
        raise RangeError("distilled", got=repr(scale), expected="a finite number", remedy="Flux is mostly told 3.5.")
    if not p.family.distilled(p.net):
        if wish.distilled is not None:
            remedy = "Leave distilled out; this model is guided by guidance=CFG(w)."
            got, expected = f"{wish.distilled} for {p.family.name}", "a model with distilled guidance"
            raise UnsupportedError("distilled", got=got, expected=expected, remedy=remedy)
    elif against and not wish.true_cfg:
        remedy = "Use distilled=w for the scale it is told; true_cfg=True adds a second branch on top of it."
        got, expected = f"guidance by {sorted(against)}", "none: the model's answer is already guided"
        raise UnsupportedError("model with distilled guidance", got=got, expected=expected, remedy=remedy)


def _check_names(asked: set[str], wish: Wish) -> None:
    """Whether guidance asks just the conditions that are there."""
    own = (*wish.patches, *wish.texts)
    known = {"cond", "null", "negative", *own} | ({"steered"} if wish.nasa is not None else set())
    if missing := sorted(asked - known):
        remedy = (
            "Pass e.g. patches={'perturbed': PerturbedAttention(layers)}, for NASA nasa=alpha, or texts={name: text}."
        )
        got, expected = f"guidance by {missing[0]!r}", f"one of {sorted(known)}"
        raise ConditionError("condition of a term", got=got, expected=expected, remedy=remedy)
    for name in own:
        if name not in asked or name in _RESERVED or own.count(name) > 1:
            remedy = "Name it as the condition that a term asks: PAG asks 'perturbed'."
            got = "guidance that never asks it" if name not in asked else "a name in use"
            expected = f"one of {sorted(asked - set(_RESERVED))}"
            raise ConditionError(f"condition {name!r}", got=got, expected=expected, remedy=remedy)
    for name, patch in wish.patches.items():
        if isinstance(patch, NegativeAttention):
            got, remedy = type(patch).__name__, "Pass nasa=alpha and a negative prompt."
            raise UnsupportedError(f"patch {name!r}", got=got, expected="one that is on or off", remedy=remedy)


def _told(p: Pipe, cond: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The conditions with the scale that a model with distilled guidance is told."""
    if not p.family.distilled(p.net):
        return cond
    rows = next(iter(cond.values()))
    return cond | {"guidance": torch.full((len(rows),), scale, device=rows.device)}


def _single(cond: dict[str, Tensor]) -> dict[str, Any]:
    """Of one row, the values without the batch axis, which serve every row."""
    return {name: v[0] if len(v) == 1 else v for name, v in cond.items()}
