"""Captioned shapes on the page of the demonstration: the user's prompt, the showcase, and the table of shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wayfield import html, plots
from wayfield.demo.chapter import Chapter, both, shown, title_of
from wayfield.demo.scenes import SCALE, SHOWCASE, ScenesRun, Score, Seen
from wayfield.doors.console import table
from wayfield.plots import Labels, Theme

__all__ = ["scenes_cells", "scenes_chapter", "show_scenes"]

_NAMES = ("count", "form", "colour", "size", "relation", "place", "all")
HEADS = ("model", "w", *(f"{name} %" for name in _NAMES), "rows", "seconds")

_LEAD = (
    "Networks that draw 32 x 32 pictures of shapes, digits and letters from a prompt. Another network, a detector that "
    "was trained on real scenes alone, reads each picture; what it saw is written below, with a tick if it is all that "
    "was asked for and nothing else, and a question mark where it is less than half sure of a form."
)
_USER = (
    "The prompt: {prompt}. From row to row the guidance scale w grows; column by column the noise is the same, for "
    "both models."
)
_NEGATIVE = " In the last row the prediction is pushed away from another prompt instead of from none: {negative}."
_SHOW = "Prompts of all kinds at w = {w:g}. The last pair of shape and colour is in no training picture."
_ABOUT = (
    "Shares of pictures that are right in each respect, over {n} prompts of test scenes that ask for it (one standard "
    "error is up to {error:.0f} points), and in all that was asked. Rows: samples times evaluations of the network. "
    "The last line is the reader on the real pictures of the same scenes: no model can be seen to do better."
)


def scenes_cells(scores: Sequence[Score], real: Score) -> list[tuple[str, ...]]:
    """The table's cells, real pictures last; the best figure of each column begins with "*"."""
    columns = []
    for name in _NAMES:
        best = max(round(100 * s.figures.get(name, 0.0)) for s in scores)
        columns.append([_share(s, name, best) for s in scores])
    rows = []
    for k, s in enumerate(scores):
        cost = (f"{s.rows or 0:,d}", f"{s.seconds or 0.0:.1f}")
        rows.append((title_of(s.model), f"{s.w:g}", *(column[k] for column in columns), *cost))
    return [*rows, (real.model, "", *(_share(real, name, None) for name in _NAMES), "", "")]


def show_scenes(run: ScenesRun) -> None:
    """The table, on stderr."""
    rows = [
        tuple(f"[bold green]{c[1:]}[/]" if c.startswith("*") else c for c in row)
        for row in scenes_cells(run.scores, run.real)
    ]
    rows[-1] = tuple(f"[dim]{c}[/]" for c in rows[-1])
    heads = [head.replace(" ", "\n") for head in HEADS]
    table(f"{run.size.prompts} prompts for each setting", heads, rows, note="% right, as a detector reads the pictures")


def scenes_chapter(run: ScenesRun) -> Chapter:
    """Everything about them."""
    drawings = {"prompt": both(lambda theme: _user(run, theme)), "showcase": both(lambda theme: _show(run, theme))}
    ask, size, rows = run.ask, run.size, scenes_cells(run.scores, run.real)
    words = _USER.format(prompt=ask.prompt.text or "(empty)")
    words += _NEGATIVE.format(negative=ask.negative.text) if ask.negative else ""
    about = _ABOUT.format(n=size.prompts, error=50 / size.prompts**0.5)
    section = html.section(
        "Pictures from prompts",
        html.paragraph(_LEAD),
        html.part("Your prompt", html.paragraph(words), shown(drawings["prompt"], "the prompt at several scales")),
        html.part("Showcase", html.paragraph(_SHOW.format(w=SCALE)), shown(drawings["showcase"], "other prompts")),
        html.part("What comes out right", html.table(HEADS, rows, floor=len(rows) - 1), html.paragraph(about)),
    )
    models = ", ".join(f"{name} ({title})" for name, title in zip(map(title_of, run.names), run.titles, strict=True))
    facts = (("prompts", f"{models}; stochastic DPM-Solver++ 2M, {size.steps} steps"),)
    return Chapter("scenes", (section,), drawings, run.to_json(), facts)


def _share(score: Score, name: str, best: int | None) -> str:
    """A share in percent, marked if it prints like the best; empty where nothing was asked."""
    if name not in score.figures:
        return ""
    value = round(100 * score.figures[name])
    return "*" * (value == best) + str(value)


def _user(run: ScenesRun, theme: Theme) -> Any:
    """Rows are settings; the models side by side."""
    settings = list(dict.fromkeys((row.w, row.negative) for row in run.user))
    by = {(row.model, row.w, row.negative): row.seen for row in run.user}
    seen = [s for setting in settings for name in run.names for s in by[name, *setting]]
    without = {k: f"without {n.text}" for k, (_, n) in enumerate(settings) if n is not None}
    labels = Labels(
        columns=[f"{title_of(name)} ({title})" for name, title in zip(run.names, run.titles, strict=True)],
        rows=[(f"w = {w:g}", without.get(k, "")) for k, (w, _) in enumerate(settings)],
        breaks=list(without),
        captions=[_caption(s) for s in seen],
    )
    columns = len(run.names) * run.size.copies
    return _sheet(seen, columns, labels, theme, group=run.size.copies)


def _show(run: ScenesRun, theme: Theme) -> Any:
    """Columns are prompts, rows are models."""
    seen = [s for row in run.show for s in row.seen]
    each = run.size.show
    labels = Labels(
        columns=SHOWCASE,
        rows=[(title_of(name) if k == 0 else "", "") for name in run.names for k in range(each)],
        breaks=[k * each for k in range(1, len(run.titles))],
        captions=[_caption(s) for s in seen],
    )
    return _sheet(seen, len(SHOWCASE), labels, theme)


def _sheet(seen: Sequence[Seen], columns: int, labels: Labels, theme: Theme, group: int = 1) -> Any:
    pictures = torch.stack([s.x for s in seen])
    return plots.sheet(pictures, columns=columns, scale=4, group=group, font=15, labels=labels, theme=theme)


def _caption(seen: Seen) -> str:
    return f"*✓ {seen.words}" if seen.right else f"✗ {seen.words}"
