"""The digits of the demonstration on its page: the table of samplers, their sheet, quality against cost, and paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wayfield import html, plots
from wayfield.demo.chapter import Chapter, Pair, both, shown
from wayfield.demo.digits import DigitsRun, Drawn, Line, Walk
from wayfield.doors.console import table
from wayfield.plots import Labels, Theme

__all__ = ["cells", "digits_chapter", "show_digits"]

HEADS = ("sampler", "steps", "w", "FD pixels", "FD features", "accuracy %", "calls", "rows", "seconds")

_ON_SHEET = (
    ("ancestral", 10, 1.0),
    ("ancestral", 20, 1.0),
    ("ancestral", 100, 1.0),
    ("ddim", 5, 1.0),
    ("ddim", 10, 1.0),
    ("ddim", 20, 1.0),
    ("heun", 5, 1.0),
    ("dpm2m", 5, 1.0),
    ("dpm2m", 10, 1.0),
    ("unipc", 5, 1.0),
    ("ddim", 20, 2.0),
    ("ddim", 20, 4.0),
)
_SAMPLE = 5  # the one whose way is shown

_ABOUT = (
    "FD pixels and FD features: Fréchet distances between the samples and one half of the real digits, in pixels and "
    "in the penultimate features of an independent classifier. Accuracy: the share of samples which that classifier "
    "reads as the class that was asked for. Calls and rows: network calls, and samples times evaluations in them. The "
    "last line is the other half of the real digits, in the same number, judged alike (its accuracy is on held-out "
    "digits): a perfect sampler would score like it, and one that remembers its training data can score better."
)
_SHEET = (
    "Each row is one setting, each column one class. Column by column all rows start from the same noise, so that what "
    "differs is the sampler alone. The last row is real. Best figures of the whole table are marked."
)
_STRIP = (
    "One sample on its way, at eleven stations, scaled to the contrast of data. All three start from the same noise."
)
_PATHS = (
    "Ten samples, one of each class, seen in the plane of the data's two first principal components (points scaled to "
    "the variance of data). Rings are noise, discs are where they arrive, numbered by the class asked for; the cloud "
    "is real data."
)
_LEAD = (
    "{settings} ways to draw handwritten digits from one small network: what each costs and what it gives. {samples} "
    "samples for each, all from the same noise."
)


def cells(lines: Sequence[Line], real: Line) -> list[tuple[str, ...]]:
    """The table's cells, the real data last; the best figure of each column begins with "*"."""
    columns = [
        _column([line.pixels for line in lines], "{:.3f}"),
        _column([line.features for line in lines], "{:.3f}"),
        _column([100 * line.accuracy for line in lines], "{:.1f}", best=max),
        _column([line.calls or 0 for line in lines], "{:d}"),
        _column([line.rows or 0 for line in lines], "{:,d}"),
        _column([line.seconds or 0.0 for line in lines], "{:.2f}"),
    ]
    figures = zip(*columns, strict=True)
    rows = [(line.title, str(line.steps), f"{line.w:g}", *row) for line, row in zip(lines, figures, strict=True)]
    floor = (f"{real.pixels:.3f}", f"{real.features:.3f}", f"{100 * real.accuracy:.1f}", "", "", "")
    return [*rows, (real.title, "", "", *floor)]


def show_digits(run: DigitsRun) -> None:
    """The table, on stderr."""
    rows = [
        tuple(f"[bold green]{c[1:]}[/]" if c.startswith("*") else c for c in row)
        for row in cells([d.line for d in run.drawn], run.real)
    ]
    rows[-1] = tuple(f"[dim]{c}[/]" for c in rows[-1])
    heads = [head.replace(" ", "\n") for head in HEADS]
    note = "FD: Fréchet distance to real digits; best of each column in bold"
    table(f"{run.samples} digits for each setting", heads, rows, note=note)


def digits_chapter(run: DigitsRun) -> Chapter:
    """Everything about them."""
    drawings, rows = _drawings(run), cells([d.line for d in run.drawn], run.real)
    settings = f"{run.samples} for each of {len(run.drawn)} settings, classes 0 to 9 in equal shares"
    section = html.section(
        "Digits: many samplers, one network",
        html.paragraph(_LEAD.format(settings=len(run.drawn), samples=run.samples)),
        html.part("Figures", html.table(HEADS, rows, floor=len(rows) - 1), html.paragraph(_ABOUT)),
        html.part("Quality against cost", shown(drawings["quality"], "distance to real digits against evaluations")),
        html.part("The sheet", html.paragraph(_SHEET), shown(drawings["sheet"], "samples of every setting")),
        html.part(
            "From noise to data",
            html.paragraph(_STRIP),
            shown(drawings["strip"], "one sample at eleven stations"),
            html.paragraph(_PATHS),
            shown(drawings["paths"], "paths in the plane of two principal components"),
        ),
    )
    facts = (("digits", settings), ("noise levels", "Karras grids over each model's path, last level 0.02"))
    return Chapter("digits", (section,), drawings, run.to_json(), facts)


def _drawings(run: DigitsRun) -> dict[str, Pair]:
    """All pictures by name."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for d in run.drawn:
        if d.setting.w == 1:
            curves.setdefault(d.setting.title, []).append((float(d.line.evaluations or 0), d.line.pixels))
    guided = [
        (d.setting.w, d.line.pixels, 100 * d.line.accuracy)
        for d in run.drawn
        if (d.setting.solver, d.setting.steps) == ("ddim", 20)
    ]
    plane = _plane(run.cloud[0])
    cloud = (run.cloud[0].flatten(1) @ plane, run.cloud[1])
    paths = {f"{w.setting.title}, {w.setting.detail}": w.x.flatten(2) @ plane for w in run.walks}
    return {
        "sheet": both(lambda theme: _sheet(run.drawn, run.real, run.digits, theme)),
        "quality": both(lambda theme: plots.quality_plot(curves, run.real.pixels, guided, theme)),
        "paths": both(lambda theme: plots.paths_plot(cloud, paths, range(10), theme)),
        "strip": both(lambda theme: _strip(run.walks, theme)),
    }


def _column(values: Sequence[float], form: str, best: Any = min) -> list[str]:
    """Cells of one column; those that print like the best are marked."""
    texts = [form.format(v) for v in values]
    top = form.format(best(values))
    return ["*" * (text == top) + text for text in texts]


def _plane(x: Tensor) -> Tensor:
    """The two first principal components of data (N, *D), as columns; signs fixed."""
    flat = x.flatten(1)
    _, _, rows = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    plane = rows[:2].T
    return plane * plane.gather(0, plane.abs().argmax(0, keepdim=True)).sign()


def _sheet(drawn: Sequence[Drawn], real: Line, digits: Tensor, theme: Theme) -> Any:
    """Rows are settings, columns are classes; the same noise in every row."""
    table = cells([d.line for d in drawn], real)
    chosen = [k for k, d in enumerate(drawn) if (d.setting.solver, d.setting.steps, d.setting.w) in _ON_SHEET]
    rows = [(drawn[k].setting.title, drawn[k].setting.detail) for k in chosen]
    notes = [(str(drawn[k].line.evaluations), table[k][3], table[k][5]) for k in chosen]
    labels = Labels(
        title="The same network, the same noise, different samplers",
        about="Each column is the class asked for and starts from the same noise. Figures are over all samples.",
        columns=[str(k) for k in range(10)],
        rows=[*rows, (real.title, "")],
        heads=("evaluations", "FD pixels", "accuracy %"),
        notes=[*notes, ("", table[-1][3], table[-1][5])],
        breaks=[k for k in range(1, len(rows)) if rows[k][0] != rows[k - 1][0]] + [len(rows)],
    )
    pictures = torch.cat([*(drawn[k].first for k in chosen), digits])
    return plots.sheet(pictures, columns=10, scale=10, frame=1, labels=labels, theme=theme)


def _strip(walks: Sequence[Walk], theme: Theme) -> Any:
    """One sample's way, eleven stations, one row per solver."""
    rows = []
    for walk in walks:
        stations = torch.linspace(0, len(walk.x) - 1, 11).round().long()
        rows.append(walk.x[stations, _SAMPLE])
    words = Labels(columns=["noise", *[""] * 9, "digit"], rows=[(w.setting.title, w.setting.detail) for w in walks])
    return plots.sheet(torch.cat(rows), columns=11, scale=10, frame=1, labels=words, theme=theme)
