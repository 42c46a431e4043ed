"""Single captioned shapes as the ground of recipes: prompts with real pictures beside them, and readings of samples.

Scenes come from a seed that no model was trained on. A prompt names size, colour and shape; where the thing stands is
left open. Pictures are judged as they would be saved, clamped to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from wayfield import plots
from wayfield.data.scenes import Mix, Prompt, Scenes
from wayfield.data.scenes.judge import verdict
from wayfield.data.scenes.reader import readings
from wayfield.field.nets.detector import Detector
from wayfield.measure.colour import contrast, saturation

__all__ = ["SHAPES", "asked", "judged", "save_sheets"]

SHAPES = Scenes(seed=4, mix=Mix(pair=0, trio=0, twins=0, triplets=0, digit=0, letter=0), plain=True)
"""Scenes of one shape."""


def asked(rows: Sequence[int]) -> list[Prompt]:
    """The prompts of scenes of `SHAPES`."""
    return [Prompt(prompt.things) for prompt in SHAPES.prompts(rows)]


def judged(reader: Detector, prompts: Sequence[Prompt], x: Tensor) -> dict[str, float]:
    """Share of pictures x (B, 3, 32, 32) that are right, mean saturation and contrast. A form that the reader is unsure
    of counts as wrong.
    """
    seen = x.clamp(-1, 1)
    found = zip(prompts, readings(reader, seen), strict=True)
    right = [verdict(prompt, each.things)["all"] and each.least >= 0.5 for prompt, each in found]
    colours = {"saturation": float(saturation(seen).mean()), "contrast": float(contrast(seen).mean())}
    return {"accuracy": sum(right) / len(right)} | colours


def save_sheets(runs: Sequence[dict[str, Any]], out: FilePath) -> tuple[str, ...]:
    """Write a sheet of the first run of each world, "digits" and "shapes", and return the names of the files.

    runs: each with its "world" and "_pictures", name -> samples of the same noise, one row each; they are taken out.
    """
    names = []
    for world, scale in (("digits", 5), ("shapes", 2)):
        kept, *_ = [r.pop("_pictures") for r in runs if r["world"] == world]
        columns = len(next(iter(kept.values())))
        sheet = torch.cat(list(kept.values()))
        plots.save_sheet(out / f"{world}.png", sheet, columns=columns, rows=list(kept), scale=scale)
        names.append(f"{world}.png")
    return tuple(names)
