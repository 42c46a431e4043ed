"""Plots of figures, made with matplotlib but without pyplot: curves, quality against cost, paths in a plane.

Series are told apart by the colours of Okabe and Ito, which stay distinct in all common kinds of colour blindness, and
by their markers. Each plot is a figure of its own in the colours of a `Theme`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from wayfield.plots.sheets import LIGHT, Theme
from wayfield.registry import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curves", "curves_plot", "paths_plot", "quality_plot"]

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""Series by name, each a sequence of points (x, y)."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def curves_plot(
    curves: Curves,
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    floor: float | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Named series over one axis; see `save_curves`."""
    figure, (axis,) = _figure(theme, (6.4, 4.2))
    _draw_curves(axis, curves, floor, theme)
    axis.set(xlabel=x, ylabel=y)
    _scales(axis, log_x, log_y)
    return figure


def quality_plot(
    curves: Curves, floor: float, guided: Sequence[tuple[float, float, float]], theme: Theme = LIGHT
) -> Figure:
    """Left: distance against cost, both logarithmic, one curve per solver, and the floor set by real data. Right: what
    a guidance scale does to it. guided: (w, distance, accuracy in percent).
    """
    figure, (left, right) = _figure(theme, (10.6, 4.4), ratios=(1.6, 1))
    _draw_curves(left, curves, floor, theme)
    left.set(xlabel="network evaluations per sample", ylabel="Fréchet distance, pixels")
    _title(left, "Quality against cost", theme)
    _scales(left, True, True)
    w, distance, _ = zip(*guided, strict=True)
    right.plot(w, distance, color=COLOURS[0], marker="o", lw=1.8, ms=6.5, mec=theme.paper, mew=0.8)
    for x, y, accuracy in guided:
        right.annotate(f"{accuracy:.1f}", (x, y), (8, -13), textcoords="offset points", color=theme.text, fontsize=9)
    right.set(xlabel="guidance scale w", ylabel="Fréchet distance, pixels")
    _title(right, "Guidance: distance, and accuracy in %", theme)
    right.margins(x=0.12, y=0.18)
    _scales(right, True, True)
    right.set_xticks(w, [f"{v:g}" for v in w])
    return figure


def paths_plot(
    real: tuple[Tensor, Tensor], runs: Mapping[str, Tensor], classes: Sequence[int], theme: Theme = LIGHT
) -> Figure:
    """Paths of samples from noise (rings) to data (numbered discs) in a plane, over a cloud of real data.

    real: points (N, 2) and their classes (N,) / runs: name -> paths (steps + 1, B, 2) / classes: of the B samples.
    """
    figure, axes = _figure(theme, (10.6, 10.6 / len(runs) + 0.3), ratios=(1,) * len(runs), share=True)
    palette = require("matplotlib").colormaps["tab10"].colors
    points, labels = real
    for axis, (name, paths) in zip(axes, runs.items(), strict=True):
        axis.scatter(points[:, 0], points[:, 1], c=[palette[k % 10] for k in labels.tolist()], s=6, alpha=0.2, lw=0)
        for b, k in enumerate(classes):
            line, colour = paths[:, b].tolist(), palette[k % 10]
            axis.plot([p[0] for p in line], [p[1] for p in line], color=colour, lw=1.2, marker=".", ms=4, mew=0)
            axis.plot(*line[0], color=theme.paper, marker="o", ms=5, mec=colour, mew=1.4)
            axis.plot(*line[-1], color=colour, marker="o", ms=12, mec=theme.paper, mew=0.9)
            words = {"color": "#ffffff", "fontsize": 8, "fontweight": "bold", "clip_on": True}
            axis.text(line[-1][0], line[-1][1], str(k), ha="center", va="center_baseline", **words)
        _title(axis, name, theme)
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    return figure


def _figure(
    theme: Theme, size: tuple[float, float], ratios: Sequence[float] = (1,), share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of its own, with one row of axes in the theme's colours."""
    figure = require("matplotlib.figure").Figure(figsize=size, layout="constrained", facecolor=theme.paper)
    axes = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios, sharex=share, sharey=share)[0].tolist()
    for axis in axes:
        axis.set_facecolor(theme.paper)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(theme.faint)
        axis.tick_params(which="both", colors=theme.faint, labelsize=9)
        axis.grid(True, color=theme.faint, alpha=0.18, lw=0.7)
        axis.set_axisbelow(True)
        axis.xaxis.label.set_color(theme.text)
        axis.yaxis.label.set_color(theme.text)
    return figure, axes


def _title(axis: Axes, text: str, theme: Theme) -> None:
    axis.set_title(text, loc="left", fontweight="bold", fontsize=11, color=theme.text)


def _draw_curves(axis: Axes, curves: Curves, floor: float | None, theme: Theme) -> None:
    for k, (name, points) in enumerate(curves.items()):
        x, y = [p[0] for p in points], [p[1] for p in points]
        style: dict[str, Any] = {"color": COLOURS[k % 7], "marker": MARKERS[k % 7], "lw": 1.8, "ms": 6.5}
        axis.plot(x, y, label=name, mec=theme.paper, mew=0.8, **style)
    if floor is not None:
        axis.axhline(floor, color=theme.faint, ls=(0, (4, 3)), lw=1.2)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": "right"}
        axis.annotate("real against real", (1, floor), (-4, 5), color=theme.faint, fontsize=9, **place)
    axis.legend(frameon=False, labelcolor=theme.text, fontsize=9.5)


def _scales(axis: Axes, log_x: bool, log_y: bool) -> None:
    """Logarithmic axes with plain numbers on them."""
    ticker = require("matplotlib.ticker")
    for log, name, one in ((log_x, "x", axis.xaxis), (log_y, "y", axis.yaxis)):
        if log:
            axis.set(**{f"{name}scale": "log"})
            one.set_major_locator(
                ticker.LogLocator(subs=(1.0, 2.0, 5.0) if name == "x" else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
            )
            one.set_major_formatter(ticker.FormatStrFormatter("%g"))
            one.set_minor_locator(ticker.NullLocator())
