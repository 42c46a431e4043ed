"""The second world of `ppap`: a model of captioned shapes, told nothing in words, is guided to wanted masks of colours.

The task is dense: for each of 1,024 pixels, which of six colours or the ground. The guide is a small segmenter of
clean pictures, trained on rendered ones; its experts learn from pictures that the zoo's "scenes" draws unconditionally.
Wanted are the masks of single shapes that no model has seen. How far a sample obeys needs no network: colours are
corners of the cube of red, green and blue, and grounds are grey and dark; so a pixel is covered by half or more where
its largest and smallest value differ by 1, and its colour is the channels above their middle.

    overlap = |pixels coloured as wanted| / |pixels coloured, or wanted so|            1 for the real picture

Scales are chosen for each guide alone, by the overlap on masks set aside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wayfield import zoo
from wayfield.data.scenes import training
from wayfield.field.binding import NULL
from wayfield.field.nets.layers import initialise
from wayfield.guide import Guidance
from wayfield.guide.ppap import JudgeGuidance
from wayfield.judge import train_judge
from wayfield.judge.experts import Experts, NoiseRanges
from wayfield.judge.lora import LoRA
from wayfield.judge.transfer import kt_segmentation, stored, transfer
from wayfield.measure.colour import contrast, saturation
from wayfield.progress import track
from wayfield.recipes.shapes_world import SHAPES
from wayfield.sampling import sample
from wayfield.solve import DPM2M
from wayfield.zoo.judging.drawing import grid_of

__all__ = ["MaskWorld", "Segmenter", "colours_of", "mean_overlap", "overlap"]

CLASSES = 7
RANK = 1
SCALES = (300.0, 1000.0, 3000.0, 10_000.0)
UNGUIDED, NAIVE = "unguided", "naive"
_BATCH = 64


@final
class Segmenter(nn.Module):
    """Pictures (B, 3, 32, 32) -> logits (B, 7, 32, 32): two sizes of map, of 16 x 16 and 8 x 8 places."""

    def __init__(self, *, width: int = 32, deep: int = 64, seed: int = 0) -> None:
        super().__init__()
        with torch.device("meta"):
            self.stem, self.down = _layer(12, width), _layer(width, deep, stride=2)
            self.middle = nn.Sequential(_layer(deep, deep), _layer(deep, deep))
            self.up, self.head = _layer(deep + width, width), nn.Conv2d(width, 4 * CLASSES, 1)
        initialise(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        fine = self.stem(F.pixel_unshuffle(x, 2))
        coarse = self.middle(self.down(fine))
        both = torch.cat([fine, F.interpolate(coarse, scale_factor=2, mode="nearest")], 1)
        return F.pixel_shuffle(self.head(self.up(both)), 2)


def colours_of(x: Tensor) -> Tensor:
    """The colour of every pixel of pictures (B, 3, H, W): 0 ground, red + 2 green + 4 blue, 7 bright without colour."""
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    bits = (x > (high + low) / 2).long()
    code = bits[:, 0] + 2 * bits[:, 1] + 4 * bits[:, 2]
    return torch.where((high - low)[:, 0] > 1, code, CLASSES * (high[:, 0] > 0.5).long())


def overlap(x: Tensor, wanted: Tensor) -> Tensor:
    """How far pictures (B, 3, H, W) have the wanted colours (B, H, W), see the module: (B,)."""
    seen = colours_of(x)
    right = (seen == wanted) & (wanted > 0)
    return right.flatten(1).sum(1) / ((seen > 0) | (wanted > 0)).flatten(1).sum(1)


@final
class MaskWorld:
    """Segmenter, drawn pictures and experts, made once. quick: small versions of all of them."""

    def __init__(self, quick: bool) -> None:
        self.model, self.quick = zoo.load("scenes"), quick
        self.grid = grid_of(self.model.path, 6 if quick else 20)
        self.teacher = Segmenter(width=8, deep=8) if quick else Segmenter()
        losses = train_judge(
            self.teacher,
            _rendered,
            F.cross_entropy,
            path=self.model.path,
            steps=4 if quick else 400,
            batch=8 if quick else 32,
            lr=2e-3,
            clean=True,
        )
        drawn = self._drawn(8 if quick else 320)
        options = {"path": self.model.path, "steps": 5 if quick else 1000, "batch": 4 if quick else 32}
        self.guides: dict[str, Experts] = {NAIVE: self._experts(1)}
        for count in (1, 5):
            experts = self.guides[f"KT-{count}"] = self._experts(count)
            transfer(experts, self.teacher, drawn, partial(kt_segmentation, tau=1.0), lr=3e-3, flip=True, **options)
        self.facts = {
            "segmenter_loss": losses[-1],
            "segmenter_right": self._right(),
            "drawn": len(drawn),
            "share_per_expert": self.guides["KT-1"].share,
        }

    def run(self, draws: Sequence[int], n: int) -> list[dict[str, Any]]:
        """Figures of every sampling seed, n masks each."""
        aside = range(10_000, 10_000 + max(2, n // 2))
        chosen = {name: self._best(name, aside) for name in self.guides}
        runs = []
        for seed in track(draws, "ppap: masks"):
            rows = range(seed * n, (seed + 1) * n)
            real = SHAPES.batch(rows)[0]
            ways = {UNGUIDED: 0.0} | {name: scales["best"] for name, scales in chosen.items()}
            drawn = {name: self._draw(name, scale, rows, seed) for name, scale in ways.items()}
            figures = {name: self._figures(x, rows) for name, x in drawn.items()}
            pictures = {"real": real[:8]} | {name: x[:8] for name, x in drawn.items()}
            facts = {"sampling_seed": seed, "scales": chosen, "real": self._figures(real, rows)}
            runs.append(self.facts | facts | {"settings": figures, "_pictures": pictures})
        return runs

    def _experts(self, count: int) -> Experts:
        ranges = NoiseRanges.from_count(count, self.model.path)
        return Experts(self.teacher, ranges, LoRA(RANK, float(RANK)))

    def _drawn(self, n: int) -> Tensor:
        """Pictures that the model draws when told nothing, in 8 bits."""
        parts = [
            sample(self.model, self.grid, samples=rows.tolist(), seed=900, solver=DPM2M(), guidance=Guidance(base=NULL))
            for rows in torch.arange(n).split(_BATCH)
        ]
        return stored(torch.cat([part.x for part in parts]))

    def _draw(self, name: str, scale: float, rows: Sequence[int], seed: int) -> Tensor:
        """One sample for each wanted mask."""
        wanted = colours_of(SHAPES.batch(rows)[0])
        term = JudgeGuidance(self.guides.get(name, self.guides[NAIVE]), "labels", wanted, scale)
        guidance = Guidance(term, base=NULL, clip=(-1.0, 1.0))
        return sample(self.model, self.grid, samples=rows, seed=seed, solver=DPM2M(), guidance=guidance).x

    def _best(self, name: str, rows: Sequence[int]) -> dict[str, Any]:
        """The scale with the largest overlap on these rows, and the overlaps of all."""
        wanted = colours_of(SHAPES.batch(rows)[0])
        scales = SCALES[1:2] if self.quick else SCALES
        tried = {s: float(overlap(self._draw(name, s, rows, 901), wanted).mean()) for s in scales}
        return {"best": max(tried, key=lambda s: tried[s]), "tried": {f"{s:g}": v for s, v in tried.items()}}

    def _figures(self, x: Tensor, rows: Sequence[int]) -> dict[str, float]:
        """Of pictures as they would be saved."""
        seen, wanted = x.clamp(-1, 1), colours_of(SHAPES.batch(rows)[0])
        colours = {"saturation": float(saturation(seen).mean()), "contrast": float(contrast(seen).mean())}
        return {"overlap": float(overlap(seen, wanted).mean()), **colours}

    def _right(self) -> float:
        """Share of coloured pixels of clean pictures that the segmenter names right."""
        x = SHAPES.batch(range(20_000, 20_064))[0]
        wanted = colours_of(x)
        with torch.no_grad():
            seen = self.teacher(x).argmax(1)
        return float((seen == wanted)[wanted > 0].float().mean())


def mean_overlap(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean overlap of a setting."""
    return sum(r["settings"][name]["overlap"] for r in runs) / len(runs)


def _layer(have: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(have, out, 3, stride=stride, padding=1), nn.GroupNorm(8, out), nn.ReLU())


def _rendered(generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Pictures of the training scenes, and their true masks."""
    scenes = training()
    x = scenes.batch(torch.randint(len(scenes), (n,), generator=generator))[0]
    return x, colours_of(x) % CLASSES  # where two things touch, few pixels are bright without colour
