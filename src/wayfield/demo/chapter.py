"""What a part of the demonstration hands to the report: sections of the page, pictures as files, figures as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, final

from wayfield import html, plots
from wayfield.plots import DARK, LIGHT, Theme

__all__ = ["Chapter", "Pair", "both", "shown", "title_of"]

Pair = tuple[bytes, bytes]
"""A drawing as PNG, for light pages and for dark ones."""


@final
@dataclass(frozen=True)
class Chapter:
    """name: of its figures in report.json / sections: of the page / drawings: name of the file -> PNGs / figures: plain
    JSON values / facts: what ran, for the top of the page.
    """

    name: str
    sections: tuple[str, ...]
    drawings: Mapping[str, Pair]
    figures: Mapping[str, Any]
    facts: tuple[tuple[str, str], ...]


def both(make: Callable[[Theme], Any]) -> Pair:
    """A drawing in both themes."""
    return plots.png(make(LIGHT)), plots.png(make(DARK))


def shown(pair: Pair, alt: str) -> str:
    """A drawing inside the page. alt: what it shows."""
    return html.picture(pair[0], alt, pair[1])


def title_of(model: str) -> str:
    """A model's name for people: that of the zoo, or that of the folder in which `train` wrote it."""
    path = FilePath(model)
    return path.parent.name or path.stem if path.suffix else model
