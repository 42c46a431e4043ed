"""The facts of a run that fitted parts of guidance depend on, in words that can be kept and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from wayfield.core.grid import Grid
from wayfield.field.denoiser import Denoiser
from wayfield.field.identity import weights_digest
from wayfield.guide.guidance import Guidance

__all__ = ["run_facts"]


def run_facts(nets: Mapping[str, Denoiser], grid: Grid, solver: object, guidance: Guidance) -> dict[str, str]:
    """What fitted parts belong to: times, path, solver, guidance without its tables, and every network's weights."""
    sources = tuple(s for s in guidance.sources if not s.fitted)
    return {
        "times": ", ".join(f"{t:.9g}" for t in grid.t),  # the last digits differ between machines
        "path": repr(grid.path),
        "solver": repr(solver),
        "guidance": repr(replace(guidance, sources=sources, rows="exact")),
        **{f"network {name!r}": f"{d.reading!r}, weights {weights_digest(d.net)}" for name, d in nets.items()},
    }
