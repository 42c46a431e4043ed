r"""Rewards: numbers that say how much a clean sample is liked, for fine-tuning and for measuring what it did.

A reward is any callable reward(x0, cond) -> (b,): clean samples (b, *D), and the condition they were drawn for, field
-> (b, ...). It sees each sample alone and need not be differentiable.

===================  ==============================================================================  ================
reward               R                                                                               unit
===================  ==============================================================================  ================
`Linear`             c . x, whose optimum on Gaussian mixtures is known, see `tilted`                any
`Compressibility`    - bytes of the picture as JPEG, by a real encoder                               kB
`Faithful`           share of the prompt that a reader finds in the picture, times its certainty     0..1
`Legible`            the same, of the digits and letters asked for and of no others                  0..1
===================  ==============================================================================  ================

A reader that rewards must not be the judge of the outcome: models learn its mistakes. Rewards are called through
`rewards_of`, which refuses numbers that are not finite by name of the sample.

Compressibility is that of Black et al. 2023, arXiv 2305.13301 (at quality 95); the tilt of a mixture is textbook.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import (
    ConditionError,
    DeviceError,
    DTypeError,
    MissingExtraError,
    NonFiniteError,
    RangeError,
    ShapeError,
)
from wayfield.core.exact import Mixture
from wayfield.core.shapes import flatten
from wayfield.data.scenes.judge import verdict
from wayfield.data.scenes.reader import Sighting, readings
from wayfield.data.scenes.scene import COLOURS, DIGITS, LETTERS, SIZES
from wayfield.data.scenes.words import PLACES, RELATIONS, TOKENS, Prompt, Wanted
from wayfield.field.nets.detector import Detector

__all__ = ["Compressibility", "Faithful", "Legible", "Linear", "Reward", "prompts_of", "rewards_of", "tilted"]

Reward = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""reward(x0 (b, *D), cond) -> (b,)."""

_COUNTS = {"two": 2, "three": 3}


def rewards_of(reward: Reward, x0: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """The rewards (b,) of samples (b, *D), detached and checked.

    Raises DTypeError, ShapeError or DeviceError for an answer that is not one number per sample beside them, and
    NonFiniteError naming the first sample whose number is not finite.
    """
    with torch.no_grad():
        r = reward(x0, cond)
    name = getattr(reward, "__qualname__", type(reward).__name__)
    if not isinstance(r, Tensor) or not r.is_floating_point():
        got = r.dtype if isinstance(r, Tensor) else type(r).__name__
        raise DTypeError(f"reward {name}", got=got, expected="a floating-point tensor", remedy="Return torch numbers.")
    if r.shape != x0.shape[:1]:
        remedy = "Return one number for each sample, in their order."
        raise ShapeError(f"reward {name}", got=tuple(r.shape), expected=(len(x0),), remedy=remedy)
    if r.device != x0.device:
        remedy = f"Return it with .to({str(x0.device)!r})."
        raise DeviceError(f"reward {name}", got=r.device, expected=f"{x0.device}, like the samples", remedy=remedy)
    bad = (~r.isfinite()).nonzero()
    if len(bad):
        k = int(bad[0])
        remedy = "Look at that sample; a reward must have a number for every one that can be drawn."
        raise NonFiniteError(f"reward {name}", got=f"{float(r[k])} for sample {k}", expected="finite", remedy=remedy)
    return r


@final
@dataclass(frozen=True, eq=False)
class Linear:
    """R = c . x. direction: c, of the shape *D of a sample."""

    direction: Tensor

    def __call__(self, x0: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(b,). Raises ShapeError for samples of another shape."""
        if x0.shape[1:] != self.direction.shape:
            expected, remedy = ("b", *self.direction.shape), "Give the direction in the shape of a sample."
            raise ShapeError("samples of a linear reward", got=tuple(x0.shape), expected=expected, remedy=remedy)
        return flatten(x0) @ self.direction.to(x0).reshape(-1)


def tilted(mixture: Mixture, direction: Tensor, beta: float) -> Mixture:
    """p(x) exp(c . x / beta) / Z of a Gaussian mixture: the exact optimum of fine-tuning with a linear reward.

    Components keep their covariance C_j and move to m_j + C_j c / beta; weights change by exp(c . m_j / beta + c . C_j
    c / (2 beta^2)). direction: c, as the shape of a mean / beta: KL coefficient, not 0; negative turns away from the
    reward. Raises RangeError or ShapeError.
    """
    if not math.isfinite(beta) or beta == 0:
        raise RangeError("beta of a tilt", got=beta, expected="finite, not 0", remedy="Infinity is the mixture itself.")
    if tuple(direction.shape) != mixture.shape:
        remedy = "Give one number per axis of the data."
        raise ShapeError("direction of a tilt", got=tuple(direction.shape), expected=mixture.shape, remedy=remedy)
    c, C = direction.to(mixture.means).reshape(-1) / beta, mixture.covs
    shift = C @ c
    log_w = mixture.weights.log() + mixture.means @ c + 0.5 * shift @ c
    means = (mixture.means + shift).reshape(-1, *mixture.shape)
    weights = log_w.softmax(0).clamp(min=torch.finfo(log_w.dtype).tiny)
    return Mixture(mixture.path, weights, means, C, mixture.labels)


@final
@dataclass(frozen=True)
class Compressibility:
    """Minus the kilobytes of a picture (1 or 3, H, W) in [-1, 1] as a JPEG file; larger is plainer.

    quality: 1..95 of the encoder. Raises RangeError, MissingExtraError if Pillow is not installed, ShapeError for what
    is no picture, NonFiniteError for NaN in one.
    """

    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise RangeError("quality of a JPEG", got=self.quality, expected="1..95", remedy="95 is the usual one.")

    def __call__(self, x0: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(b,), in kB."""
        if x0.ndim != 4 or x0.shape[1] not in (1, 3):
            remedy = "Decode latents first."
            raise ShapeError("pictures to compress", got=tuple(x0.shape), expected="(b, 1 or 3, H, W)", remedy=remedy)
        bad = (~x0.isfinite()).flatten(1).any(1).nonzero()
        if len(bad):
            got, remedy = f"NaN or infinity in picture {int(bad[0])}", "Find out which step made it."
            raise NonFiniteError("pictures to compress", got=got, expected="finite", remedy=remedy)
        pixels = ((x0.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu()
        return -torch.tensor([self._bytes(p) for p in pixels], dtype=x0.dtype, device=x0.device) / 1000

    def _bytes(self, pixels: Tensor) -> int:
        image, file = _pillow(), io.BytesIO()
        rows = pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels
        image.fromarray(rows.numpy()).save(file, "JPEG", quality=self.quality)
        return file.tell()


@final
@dataclass(frozen=True, eq=False)
class Faithful:
    """How much of the prompt a reader of scenes finds: the share of what was asked for that is right (count, form,
    colour, size, relation, place), times the reader's least certainty of a form.

    reader: a detector of this world, another than the one that judges / field: of the condition, holding tokens.
    """

    reader: Detector
    field: str = "tokens"

    def __call__(self, x0: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(b,), in 0..1. Raises ConditionError for a condition without tokens, and as `readings` does."""
        found = zip(_prompts(cond, self.field), readings(self.reader, x0.clamp(-1, 1)), strict=True)
        return x0.new_tensor([_share(prompt, seen) * seen.least for prompt, seen in found])


@final
@dataclass(frozen=True, eq=False)
class Legible:
    """Text read back: the certainty of the digits and letters asked for, over the greater of their number and that of
    those in the picture.

    reader, field: as of `Faithful`. Colours and places do not matter.
    """

    reader: Detector
    field: str = "tokens"

    def __call__(self, x0: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """(b,), in 0..1. Raises ConditionError for prompts that ask for no digit or letter, and as `readings` does."""
        found = zip(_prompts(cond, self.field), readings(self.reader, x0.clamp(-1, 1)), strict=True)
        return x0.new_tensor([_legibility(prompt, seen) for prompt, seen in found])


def prompts_of(tokens: Tensor) -> list[Prompt]:
    """The prompts behind tokens (b, LENGTH), the inverse of `tokenize`. Raises ConditionError for other numbers."""
    out = []
    for row in tokens.tolist():
        words = [TOKENS[k] for k in row if k]
        count = _COUNTS.get(words[0], 1) if words else 1
        place = words.pop().removeprefix("at ") if words and words[-1].removeprefix("at ") in PLACES else None
        relation = next((word for word in words if word in RELATIONS), None)
        parts: list[list[str]] = [[]]
        for word in words[count > 1 :]:
            if word == "and" or word in RELATIONS:
                parts.append([])
            else:
                parts[-1].append(word)
        prompt = Prompt(tuple(_wanted(part) for part in parts if part), relation, place, count)
        if prompt.tokens.tolist() != row:
            remedy = "Give what `tokenize` made."
            raise ConditionError("tokens of a prompt", got=row, expected=prompt.tokens.tolist(), remedy=remedy)
        out.append(prompt)
    return out


def _wanted(words: Sequence[str]) -> Wanted:
    size, colour = (next((w for w in words if w in known), None) for known in (SIZES, COLOURS))
    form = next((w for w in words if w not in (size, colour, "thing")), None)
    return Wanted(form, colour, size)


def _prompts(cond: Mapping[str, Tensor], field: str) -> list[Prompt]:
    if field not in cond:
        remedy = "Reward samples that were drawn for prompts, or name the field of their tokens."
        raise ConditionError("condition of a reader's reward", got=sorted(cond), expected=field, remedy=remedy)
    return prompts_of(cond[field])


def _share(prompt: Prompt, seen: Sighting) -> float:
    right = dict(verdict(prompt, seen.things))
    whole = right.pop("all")
    return sum(right.values()) / len(right) if right else float(whole)


def _legibility(prompt: Prompt, seen: Sighting) -> float:
    kinds = {"digit": DIGITS, "letter": LETTERS} | {glyph: (glyph,) for glyph in (*DIGITS, *LETTERS)}
    asked = [kinds[w.form] for w in prompt.things * prompt.count if w.form in kinds]
    if not asked:
        remedy = "Ask for digits or letters, or use Faithful."
        raise ConditionError("prompt of Legible", got=str(prompt), expected="something to read", remedy=remedy)
    glyphs = [(t.form, c) for t, c in zip(seen.things, seen.certainty, strict=True) if t.form in kinds]
    left, score = list(glyphs), 0.0
    for known in sorted(asked, key=len):  # the most definite first, so that "a digit" takes what is left
        best = max((g for g in left if g[0] in known), key=lambda g: g[1], default=None)
        if best is not None:
            left.remove(best)
            score += best[1]
    return score / max(len(asked), len(glyphs))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        remedy = 'Run: pip install "wayfield[data]".'
        raise MissingExtraError(
            "JPEG", got="Pillow is not installed", expected="pillow >= 10", remedy=remedy
        ) from error
    return Image
