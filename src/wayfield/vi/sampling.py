"""Programs outside of an objective: draw from one, and weigh given values. Nothing here estimates a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from wayfield.vi.program import Program, Trace
from wayfield.vi.run import Run
from wayfield.vi.seeding import seeded

__all__ = ["log_density", "simulate"]


def simulate(program: Program, *args: Any, seed: int, samples: int = 1, batch: tuple[int, ...] = ()) -> Trace:
    """Draw values [S, *batch, *event] from a program or a stochastic density (S is absent for one sample).

    seed: a whole number of at least 0 / samples: independent draws / batch: rows, independent at every site.
    """
    with seeded(seed):
        return Run(samples, batch).simulate(program, *args)


def log_density(
    program: Program,
    values: Mapping[str, Tensor],
    *args: Any,
    samples: int = 1,
    batch: tuple[int, ...] = (),
    seed: int = 0,
) -> Tensor:
    """log density of a program at given values, observations included, [S, *batch]; its graph is kept.

    samples, batch: of the values, as in `simulate` / seed: used by stochastic densities alone, whose density is an
    estimate. Raises UnknownNameError for a site without a value, UnsupportedError for a value without a site.
    """
    with seeded(seed):
        return Run(samples, batch).log_density(program, values, *args)
