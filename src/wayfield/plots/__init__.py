"""Pictures of samples and of figures, in one look: sheets of small pictures (Pillow) and plots (matplotlib, no pyplot).

A drawing is made on request and written as PNG; no global state of either library is touched. Each takes a `Theme`,
light or dark, so that a page can show the one its reader prefers.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from torch import Tensor

from wayfield import files
from wayfield.plots.figures import Curves, curves_plot, paths_plot, quality_plot
from wayfield.plots.sheets import DARK, LIGHT, Labels, Theme, sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = [
    "DARK",
    "LIGHT",
    "Curves",
    "Labels",
    "Theme",
    "curves_plot",
    "paths_plot",
    "png",
    "quality_plot",
    "save",
    "save_curves",
    "save_sheet",
    "sheet",
]


def png(drawing: Image | Figure) -> bytes:
    """The bytes of a PNG file; the same drawing gives the same bytes."""
    out, any_drawing = io.BytesIO(), drawing
    if hasattr(any_drawing, "savefig"):
        any_drawing.savefig(out, format="png", dpi=160, metadata={"Software": None})  # pyright: ignore
    else:
        any_drawing.save(out, format="PNG", optimize=True)  # pyright: ignore
    return out.getvalue()


def save(path: str | os.PathLike[str], drawing: Image | Figure) -> FilePath:
    """Write a drawing as PNG, atomically, and return its path."""
    files.write_bytes(path, png(drawing))
    return FilePath(path)


def save_sheet(
    path: str | os.PathLike[str],
    pictures: Tensor,
    *,
    columns: int,
    rows: Sequence[str] = (),
    scale: int = 5,
    frame: int = 0,
) -> FilePath:
    """Write a sheet of pictures (N, C, H, W) with a name for each row, and return its path. Arguments as of `sheet`."""
    labels = Labels(rows=[(name, "") for name in rows])
    return save(path, sheet(pictures, columns=columns, scale=scale, frame=frame, labels=labels))


def save_curves(
    path: str | os.PathLike[str],
    curves: Curves,
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    floor: float | None = None,
) -> FilePath:
    """Write a plot of named series and return its path.

    x, y: names of the axes / log_x, log_y: logarithmic axes / floor: a value of y, drawn as a dashed line.
    """
    return save(path, curves_plot(curves, x=x, y=y, log_x=log_x, log_y=log_y, floor=floor))
