"""What the demonstration shows: its table in the terminal, its pictures, and the page that holds everything
together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wayfield import __version__, files, html, plots
from wayfield.doors.console import console, table
from wayfield.plots import DARK, LIGHT, Labels, Theme

if TYPE_CHECKING:
    from wayfield.data.dataset import InMemory
    from wayfield.demo import DemoResult, Drawn, Line, Walk

__all__ = ["cells", "draw", "show", "write"]

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
_AGAIN = "The same seed gives the same samples, alone or in any batch; times depend on the machine."


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


def show(result: DemoResult) -> None:
    """The table and where the report is, on stderr."""
    rows = [
        tuple(f"[bold green]{c[1:]}[/]" if c.startswith("*") else c for c in row)
        for row in cells(result.lines, result.real)
    ]
    rows[-1] = tuple(f"[dim]{c}[/]" for c in rows[-1])
    title = f"{result.samples} digits for each setting, seed {result.seed}"
    table(
        title,
        [head.replace(" ", "\n") for head in HEADS],
        rows,
        note="FD: Fréchet distance to real digits; best of each column in bold",
    )
    say = console()
    say.print(f"{result.seconds:.1f} s in all; the report is {result.files[0]}", soft_wrap=True)


def draw(
    drawn: Sequence[Drawn], real: Line, digits: Tensor, walks: Sequence[Walk], data: InMemory
) -> dict[str, tuple[bytes, bytes]]:
    """All pictures by name, as PNG in light and dark. digits: real ones, two of each class / data: all of them."""

    def both(make: Any) -> tuple[bytes, bytes]:
        return plots.png(make(LIGHT)), plots.png(make(DARK))

    curves: dict[str, list[tuple[float, float]]] = {}
    for d in drawn:
        if d.setting.w == 1:
            curves.setdefault(d.setting.title, []).append((float(d.line.evaluations or 0), d.line.pixels))
    guided = [
        (d.setting.w, d.line.pixels, 100 * d.line.accuracy)
        for d in drawn
        if (d.setting.solver, d.setting.steps) == ("ddim", 20)
    ]
    plane = _plane(data.x)
    cloud = (data.x.flatten(1) @ plane, data.cond["label"])
    paths = {f"{w.setting.title}, {w.setting.detail}": w.x.flatten(2) @ plane for w in walks}
    return {
        "sheet": both(lambda theme: _sheet(drawn, real, digits, theme)),
        "quality": both(lambda theme: plots.quality_plot(curves, real.pixels, guided, theme)),
        "paths": both(lambda theme: plots.paths_plot(cloud, paths, range(10), theme)),
        "strip": both(lambda theme: _strip(walks, theme)),
    }


def write(out: FilePath, result: DemoResult, drawings: Mapping[str, tuple[bytes, bytes]], quick: bool) -> None:
    """Write the pictures, report.html and report.json into the folder `out`."""
    for name, (light, dark) in drawings.items():
        files.write_bytes(out / f"{name}.png", light)
        files.write_bytes(out / f"{name}-dark.png", dark)
    files.write_bytes(out / "report.html", _page(result, drawings, quick).encode())
    files.write_json(out / "report.json", result.to_json())


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


def _page(result: DemoResult, drawings: Mapping[str, tuple[bytes, bytes]], quick: bool) -> str:
    """The report as one file."""
    settings = len(result.lines)
    lead = (
        f"One small network, {settings} ways to draw handwritten digits from it: what each costs and what it gives. "
        f"{result.samples} samples for each, all from the same noise, on {result.machine}."
    )
    rows = cells(result.lines, result.real)
    command = f"wayfield demo --seed {result.seed}{' --quick' * quick} --out runs/demo"
    ran = [
        ("version", f"wayfield {__version__}, torch {torch.__version__}"),
        ("model", "digits, shipped inside the package"),
        ("seed", str(result.seed)),
        ("samples", f"{result.samples} for each of {settings} settings, classes 0 to 9 in equal shares"),
        ("noise levels", "Karras grids over the model's path, last level 0.02"),
        ("took", f"{result.seconds:.1f} s in all"),
    ]
    return html.page(
        "wayfield: the demonstration",
        lead,
        [
            html.section("What ran", html.facts(ran)),
            html.section("Figures", html.table(HEADS, rows, floor=len(rows) - 1), html.paragraph(_ABOUT)),
            html.section(
                "Quality against cost", _picture(drawings["quality"], "distance to real digits against evaluations")
            ),
            html.section("The sheet", html.paragraph(_SHEET), _picture(drawings["sheet"], "samples of every setting")),
            html.section(
                "From noise to data",
                html.paragraph(_STRIP),
                _picture(drawings["strip"], "one sample at eleven stations"),
                html.paragraph(_PATHS),
                _picture(drawings["paths"], "paths in the plane of two principal components"),
            ),
            html.section("Reproduce it", html.paragraph(_AGAIN), html.code(f'pip install "wayfield[cli]"\n{command}')),
        ],
    )


def _picture(pair: tuple[bytes, bytes], alt: str) -> str:
    return html.picture(pair[0], alt, pair[1])
