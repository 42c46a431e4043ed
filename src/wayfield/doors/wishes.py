"""What the samples of `wayfield sample` shall be: a class or a prompt for each address, and how hard to insist on it.

Several classes or prompts take turns over the addresses, so that what sample k shall be depends on k alone. A negative
prompt takes the place of the null condition: x0 = n + w (c - n), c with the prompt and n with the negative one. Only
models whose condition is that of `wayfield.data.scenes` read prompts, and only in its language.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError
from wayfield.data.scenes.words import SCHEMA, Prompt, parse, tokenize
from wayfield.field.cond import Cond
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Guidance
from wayfield.guide.expression import parse_guidance
from wayfield.guide.guidance import guidance_of
from wayfield.guide.terms import Term

if TYPE_CHECKING:
    from wayfield.doors.commands import Sample

__all__ = ["PROMPT_W", "Wishes", "wishes_of"]

PROMPT_W = 3.0
"""The guidance scale of prompts, unless another is asked for."""


@final
@dataclass(frozen=True, eq=False)
class Wishes:
    """Checked. cond: one row per address, None for unconditional samples / conds: the negative condition, the same for
    all / texts: the prompts by address, as they were understood.
    """

    cond: Cond | None
    conds: Mapping[str, Cond]
    guidance: Guidance | Term
    texts: tuple[str, ...] = ()

    def rows(self, part: slice) -> Cond | None:
        """The condition of some of the addresses."""
        return None if self.cond is None else {name: value[part] for name, value in self.cond.items()}


def wishes_of(asks: Sample, model: Denoiser, addresses: range) -> Wishes:
    """What was asked of a model. Raises ConditionError for what it cannot be asked, or for wishes that contradict each
    other, and what `parse` raises for a prompt.
    """
    w = asks.w if asks.w is not None else PROMPT_W if asks.prompt else 1.0
    steered = _steered(asks)
    if asks.prompt:
        prompts = [_prompt(text, model) for text in asks.prompt]
        if asks.label != "none":
            got, remedy = "a prompt and a label", "Leave one of them out."
            raise ConditionError("wishes", got=got, expected="one of them", remedy=remedy)
        turns = [prompts[k % len(prompts)] for k in addresses]
        negative = _negative(asks.negative, w, model)
        guidance = steered or CFG(w, "negative" if negative else "null")
        return Wishes({"tokens": tokenize(turns)}, negative, guidance, tuple(p.text for p in turns))
    if asks.negative is not None:
        got, remedy = f"{asks.negative!r} without a prompt", "Add --prompt."
        raise ConditionError("--negative", got=got, expected="a prompt", remedy=remedy)
    labels = _labels(model, asks.label, addresses)
    if labels is None and (w != 1 or steered is not None):
        got, remedy = f"{asks.guidance or f'w = {w:g}'} without a label", "Add --label or --prompt, or leave --w at 1."
        raise ConditionError("guidance", got=got, expected="a label or a prompt", remedy=remedy)
    return Wishes(None if labels is None else {"label": labels}, {}, steered or CFG(w))


def _steered(asks: Sample) -> Guidance | Term | None:
    """The guidance that was spelled out, if one was."""
    if asks.guidance is None:
        return None
    if asks.w is not None:
        got, remedy = "--guidance and --w", "Write the scale into the expression."
        raise ConditionError("guidance", got=got, expected="one of them", remedy=remedy)
    made = parse_guidance(asks.guidance)
    if asks.negative is not None and all(q.cond != "negative" for q in guidance_of(made).queries):
        got, remedy = f"{asks.guidance} with --negative", "Push away from it: Away('negative') or CFG(3, 'negative')."
        raise ConditionError("guidance", got=got, expected="one that uses the negative prompt", remedy=remedy)
    return made


def _prompt(text: str, model: Denoiser) -> Prompt:
    """The prompt of a caption, for a model that understands it."""
    if dict(model.schema.fields) != dict(SCHEMA.fields):
        got, remedy = f"{text!r} for a model without words", "Leave it out, or use --model scenes."
        raise ConditionError("prompt", got=got, expected="none", remedy=remedy)
    return parse(text)


def _negative(text: str | None, w: float, model: Denoiser) -> Mapping[str, Cond]:
    """The condition to be pushed away from, by its name."""
    if text is None:
        return {}
    tokens = _prompt(text, model).tokens
    if w == 1:
        got, remedy = f"{text!r} with w = 1", "Leave --w out, or raise it: at 1 nothing is pushed away from."
        raise ConditionError("--negative", got=got, expected="another guidance scale", remedy=remedy)
    return {"negative": {"tokens": tokens}}


def _labels(model: Denoiser, label: str, addresses: range) -> Tensor | None:
    """The label of every address; for "each" it depends on the address alone."""
    if label == "none":
        return None
    field = model.schema.fields.get("label")
    if field is None or field.values is None:
        got, remedy = f"{label!r} for a model without labels", "Use --label none."
        raise ConditionError("label", got=got, expected="none", remedy=remedy)
    null = (model.schema.null or {}).get("label")
    classes = [k for k in range(field.values) if k != null]
    if label == "each":
        return torch.tensor([classes[k % len(classes)] for k in addresses])
    if not label.isdecimal() or int(label) not in classes:
        expected = f"{classes[0]}..{classes[-1]}, each or none"
        raise ConditionError("label", got=repr(label), expected=expected, remedy="Choose one of them.")
    return torch.full((len(addresses),), int(label))
