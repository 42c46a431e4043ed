"""The second world of the recipe gfcg: shapes in colours, told to the model by prompts, judged by readers of scenes.

Classes are the 30 pairs of shape and colour that training shows. The guide is a small convolutional classifier that
learned rendered scenes with noise of 0.1; it is never asked to judge. One reader of the zoo says what is in a picture,
features of the other one give the distance to real scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from wayfield import zoo
from wayfield.data.scenes import Prompt, Scenes, Wanted, tokenize
from wayfield.data.scenes.scene import COLOURS, HELD_OUT, SHAPES as FORMS
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG
from wayfield.guide.gfcg import GFCG
from wayfield.guide.terms import Term
from wayfield.judge import PictureJudge, train_judge
from wayfield.recipes.shapes_world import SHAPES, judged
from wayfield.sampling import sample
from wayfield.solve import DPM2M
from wayfield.zoo.judging.distances import features_of, frechet
from wayfield.zoo.judging.drawing import grid_of

__all__ = ["PLAIN", "SCALES", "ShapesWorld", "setting", "terms_of"]

PLAIN = "no guidance"
SCALES: Mapping[str, tuple[float, ...]] = {
    "CFG": (1.5, 2.0, 3.0, 5.0),
    "GFCG": (5.0, 10.0, 20.0, 40.0),
    "adaptive CFG": (20.0,),
}
"""What the shapes are drawn with, and at which scales."""
PAIRS = tuple((form, colour) for form in FORMS for colour in COLOURS if (form, colour) not in HELD_OUT)
"""The classes."""
ASKED = tuple(Prompt((Wanted(form, colour),)) for form, colour in PAIRS)

_REFERENCE = 2048  # real scenes that samples are compared with
_NOISE = 0.1


def setting(family: str, w: float) -> str:
    """The name of a family at a scale."""
    return f"{family} {w:g}"


def terms_of(
    families: Mapping[str, tuple[float, ...]],
    guide: Callable[..., Tensor],
    lots: Callable[..., Tensor] | None = None,
    classes: Mapping[str, Tensor] | None = None,
) -> dict[str, Term | None]:
    """Setting -> guidance, for each family and scale. lots: a guide that draws the wrong class by lot."""
    make: dict[str, Callable[[float], Term]] = {
        "CFG": lambda w: CFG(w),
        "GFCG": lambda w: GFCG(guide, w, classes=classes),
        "constant": lambda w: GFCG(guide, w, confusion="always", classes=classes),
        "random": lambda w: GFCG(lots or guide, w, classes=classes),
        "adaptive CFG": lambda w: GFCG(guide, w, reference="null", classes=classes),
    }
    named = {setting(name, w): make[name](w) for name, scales in families.items() for w in scales}
    return {PLAIN: None} | named


@final
class _PairReader(nn.Module):
    """Logits of the pairs of shape and colour: the sum of both. net: (B, shapes + colours)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PictureJudge(3, len(FORMS) + len(COLOURS), clean=True)
        self.form = torch.tensor([FORMS.index(form) for form, _ in PAIRS])
        self.colour = len(FORMS) + torch.tensor([COLOURS.index(colour) for _, colour in PAIRS])

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, 32, 32) -> (B, pairs)."""
        each = self.net(x)
        return each[:, self.form] + each[:, self.colour]


def _pair_reader(model: Denoiser, steps: int) -> _PairReader:
    """The guiding classifier of shapes, trained on scenes of its own."""
    scenes = Scenes(seed=5, mix=SHAPES.mix, plain=True)

    def draw(generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(scenes), (n,), generator=generator)
        x, _ = scenes.batch(rows)
        pairs = [PAIRS.index((thing.form, thing.colour)) for (thing,) in scenes.things(rows)]
        return x + _NOISE * torch.randn(x.shape, generator=generator), torch.tensor(pairs)

    judge = _PairReader()
    loss = nn.functional.cross_entropy
    train_judge(judge, draw, loss, path=model.path, steps=steps, batch=64, clean=True)
    return judge


class ShapesWorld:
    """The second world."""

    def __init__(self, quick: bool) -> None:
        self.model, self.steps = zoo.load("scenes"), 4 if quick else 20
        self.reader, self.second = zoo.load_detector("scenes-reader"), zoo.load_detector("scenes-second-reader")
        self.prompts = ASKED[:4] if quick else ASKED * 2
        self.guide = _pair_reader(self.model, 5 if quick else 800)
        known, n = 64 if quick else _REFERENCE, len(self.prompts)
        self.reference = features_of(self.second.features, SHAPES.batch(range(known))[0])
        fresh = range(known, known + n)
        self.real, things = SHAPES.batch(fresh)[0], [thing for (thing,) in SHAPES.things(fresh)]
        said = self.guide(self.real).argmax(1).tolist()
        right = [PAIRS[k] == (thing.form, thing.colour) for k, thing in zip(said, things, strict=True)]
        real = self.figures(self.real, [Prompt((Wanted(thing.form, thing.colour),)) for thing in things])
        self.facts: dict[str, Any] = {"real": real, "guide_accuracy": sum(right) / n}
        self.terms = terms_of(SCALES, self.guide, classes={"tokens": tokenize(ASKED)})

    def __call__(self, seed: int) -> dict[str, Any]:
        """Figures of every setting with one sampling seed."""
        n, out = len(self.prompts), self.facts | {"settings": {}, "_pictures": {"real": self.real[:8]}}
        cond = {"tokens": tokenize(self.prompts)}
        for name, term in self.terms.items():
            given: dict[str, Any] = {"cond": cond, "solver": DPM2M(), "guidance": term}
            result = sample(self.model, grid_of(self.model.path, self.steps), samples=n, seed=seed, **given)
            rows = {"rows_per_sample": result.counts.rows // n}
            out["settings"][name] = self.figures(result.x, self.prompts) | rows
            out["_pictures"][name] = result.x[:8]
        return out

    def figures(self, x: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Of pictures as they would be saved."""
        seen = x.clamp(-1, 1)
        return judged(self.reader, prompts, x) | {
            "fd": frechet(self.reference, features_of(self.second.features, seen))
        }
