"""The beginning of a run: what is checked before the first step, and the points it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from wayfield.core.errors import DTypeError, ShapeError, UnsupportedError, unknown_name
from wayfield.core.grid import Grid
from wayfield.core.noise import INITIAL, Address, Noise
from wayfield.core.shapes import check_samples
from wayfield.field.binding import Binding
from wayfield.field.denoiser import Denoiser
from wayfield.guide.facts import run_facts
from wayfield.guide.guidance import Guidance
from wayfield.solve.adaptive import Adaptive
from wayfield.solve.roles import Solver

__all__ = ["check_run", "starting_points"]


def check_run(binding: Binding, solver: Solver | Adaptive, guidance: Guidance, grid: Grid, compile: bool | str) -> None:
    """Raise before the first step what would otherwise go wrong on the way: unknown or unfit conditions, a fitted
    source on another run (CheckpointError), compiling with a varying number of rows (UnsupportedError).
    """
    for query in guidance.told:
        binding.cond(query)
    for net in guidance.extra:
        if net not in binding.nets:
            raise unknown_name("network", net, binding.nets)
    if any(source.fitted for source in guidance.sources):
        facts = run_facts(binding.nets, grid, solver, guidance)
        for source in guidance.sources:
            source.check(facts)
    if compile and guidance.masked and guidance.rows != "fixed":
        remedy = "Pass guidance=Guidance(term, rows='fixed'): all rows are evaluated, masks decide."
        raise UnsupportedError(
            "compile", got=f"rows={guidance.rows!r}", expected="a fixed number of rows", remedy=remedy
        )


def starting_points(
    fields: Mapping[str, Denoiser],
    grid: Grid,
    noise: Noise,
    shape: Sequence[int] | None,
    x: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The points (B, *D) at the grid's first time, given or drawn. Raises DTypeError, ShapeError or DeviceError."""
    if not dtype.is_floating_point:
        raise DTypeError("dtype", got=dtype, expected="a floating-point type", remedy="Use torch.float32.")
    if x is None:
        want = fields["main"].shape if shape is None else tuple(shape)
        if want is None:
            raise ShapeError(
                "data shape", got=None, expected="(*D)", remedy="Pass shape=..., or make the Denoiser with shape=..."
            )
        sigma = float(grid.scales.sigma[0])
        x = sigma * noise.draw(want, Address(INITIAL, 0, grid.t[0], grid.t[0])).to(device=device, dtype=dtype)
    x = check_samples("starting points", x).to(device=device, dtype=dtype)
    if len(x) != len(noise.samples):
        raise ShapeError(
            "starting points",
            got=f"{len(x)} rows",
            expected=f"{len(noise.samples)}, the number of samples",
            remedy="Pass samples=len(x).",
        )
    for each in fields.values():
        each.check_points(x)
    return x
