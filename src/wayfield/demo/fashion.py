"""Clothes by class: samples of a class-conditional model of Fashion-MNIST, judged by a classifier of their own.

The same noise is sampled at several guidance scales. Accuracy is the share of samples that the judge, which took no
part in any training but its own, reads as the class that was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield import html, plots, registry, zoo
from wayfield.data.fashion import FASHION_CLASSES
from wayfield.demo.chapter import Chapter, both, shown, title_of
from wayfield.doors.console import console, table
from wayfield.guide import CFG
from wayfield.plots import Labels, Theme
from wayfield.sampling import sample

__all__ = ["FashionRun", "Scaled", "draw_fashion", "fashion_chapter", "show_fashion"]

SCALES = (1.0, 2.0, 4.0)
STEPS, SIGMA_MIN, COLUMNS = 12, 0.02, 5
HEADS = ("class", *(f"w = {w:g}, %" for w in SCALES))

_CLASSES = len(FASHION_CLASSES)
_LEAD = (
    "A small network that draws clothes by class, learned from Fashion-MNIST. Guidance makes samples more typical of "
    "their class, and less varied; each column starts from the same noise at every scale."
)
_ABOUT = (
    "Accuracy: the share of {n} samples of each class that an independent classifier reads as that class. Shirts, "
    "coats and pullovers are hard to tell apart in the real pictures, too."
)


class Scaled(NamedTuple):
    """What came out at one guidance scale. first: samples by class, (10, COLUMNS, 1, 28, 28) / shares: accuracy of each
    class, 0..1.
    """

    w: float
    first: Tensor
    shares: tuple[float, ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        """Over all classes."""
        return sum(self.shares) / len(self.shares)


@final
@dataclass(frozen=True, eq=False)
class FashionRun:
    """model: its name / each: samples per class and scale."""

    model: str
    each: int
    scaled: tuple[Scaled, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lines = [
            {
                "w": s.w,
                "accuracy": s.accuracy,
                "classes": dict(zip(FASHION_CLASSES, s.shares, strict=True)),
                "seconds": s.seconds,
            }
            for s in self.scaled
        ]
        return {"model": self.model, "steps": STEPS, "samples": self.each * _CLASSES, "scales": lines}


def draw_fashion(name: str, judge: str, each: int, seed: int) -> FashionRun:
    """Draw `each` samples of every class at every scale; tell stderr how it goes. name, judge: see `zoo`."""
    model, net, say = zoo.load(name), zoo.load_classifier(judge), console()
    label = torch.arange(each * _CLASSES) % _CLASSES
    out = []
    for w in SCALES:
        begin = time.perf_counter()
        result = sample(
            model,
            registry.grid("karras", model.path, STEPS, sigma_min=SIGMA_MIN),
            samples=len(label),
            seed=seed,
            cond={"label": label},
            solver=registry.solver("dpm2m", model.path),
            guidance=CFG(w),
        )
        seconds = round(time.perf_counter() - begin, 2)
        right = (net(result.x.clamp(-1, 1)).argmax(1) == label).double().view(each, _CLASSES).mean(0)
        first = result.x[: _CLASSES * COLUMNS].unflatten(0, (-1, _CLASSES)).transpose(0, 1)
        out.append(Scaled(w, first, tuple(right.tolist()), seconds))
        say.print(f"[dim]clothes[/]  {f'w = {w:g}':<24} {seconds:6.2f} s")
    return FashionRun(name, each, tuple(out))


def show_fashion(run: FashionRun) -> None:
    """The accuracies, on stderr."""
    rows = [tuple(cell.replace("*", "") for cell in row) for row in _cells(run)]
    rows[-1] = tuple(f"[bold]{cell}[/]" for cell in rows[-1])
    table(f"{run.each} clothes for each class", HEADS, rows, note="% that an independent classifier reads as asked")


def fashion_chapter(run: FashionRun) -> Chapter:
    """Everything about them."""
    drawings = {"fashion": both(lambda theme: _sheet(run, theme))}
    section = html.section(
        "Clothes by class",
        html.paragraph(_LEAD),
        shown(drawings["fashion"], "ten classes of clothes at several guidance scales"),
        html.paragraph(_ABOUT.format(n=run.each)),
    )
    facts = (("clothes", f"{title_of(run.model)}; {run.each} of each class, DPM-Solver++ 2M, {STEPS} steps"),)
    return Chapter("fashion", (section,), drawings, run.to_json(), facts)


def _cells(run: FashionRun) -> list[tuple[str, ...]]:
    """Rows of the table, all classes together last; the best of each row begins with "*"."""
    names = [*FASHION_CLASSES, "all"]
    return [(name, *_marked([[*s.shares, s.accuracy][k] for s in run.scaled])) for k, name in enumerate(names)]


def _marked(shares: Sequence[float]) -> list[str]:
    texts = [f"{100 * share:.0f}" for share in shares]
    top = f"{100 * max(shares):.0f}"
    return ["*" * (text == top) + text for text in texts]


def _sheet(run: FashionRun, theme: Theme) -> Any:
    """Rows are classes, groups of columns are scales."""
    columns = run.scaled[0].first.shape[1]
    cells = _cells(run)[:-1]
    labels = Labels(
        columns=[f"w = {s.w:g}: {100 * s.accuracy:.0f} % as asked" for s in run.scaled],
        rows=[(name, "") for name in FASHION_CLASSES],
        heads=[f"w = {s.w:g}, %" for s in run.scaled],
        notes=[row[1:] for row in cells],
    )
    pictures = torch.stack([s.first for s in run.scaled], 1).flatten(0, 2)
    return plots.sheet(
        pictures, columns=columns * len(run.scaled), scale=2, group=columns, font=15, labels=labels, theme=theme
    )
