"""What guidance is told of the level that a step goes to."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import pytest
import torch

from wayfield.core.errors import UnknownNameError
from wayfield.core.grid import uniform
from wayfield.core.path import VE, Straight, Trig
from wayfield.guide.gates import Interval
from wayfield.guide.roles import Gate
from wayfield.guide.terms import Direction
from wayfield.sampling import sample
from wayfield.solve import DDIM, Heun


@final
@dataclass(frozen=True)
class Looking(Direction):
    """Pushes nothing; notes where it is and where the step goes."""

    seen: list
    net: str = "main"

    @property
    def extra(self):
        return (self.net,)

    def push(self, ask, step, state):
        told = ask.told(self.net, {"label": torch.zeros(len(ask.x), dtype=torch.int64)}).x0
        self.seen.append((ask.level.alpha, ask.landing.alpha, ask.landing.sigma, step.next, told))
        return None, state


@final
@dataclass(frozen=True)
class Ahead(Gate):
    """Open where the next level is not clean."""

    remembers: ClassVar[bool] = False

    def open(self, step, state):
        return math.isfinite(step.next)


@pytest.mark.parametrize("path", [Straight(), VE(0.02, 20.0), Trig()])
@pytest.mark.parametrize("solver", [DDIM(), Heun()])
def test_the_landing_is_the_next_level_of_the_grid(mixture, randn64, path, solver):
    grid, den, seen = uniform(path, 4, start=0.98), mixture(path, d=2), []
    x = randn64(3, 2)
    result = sample(den, grid, x=x, samples=3, cond={"label": 1}, solver=solver, guidance=Looking(seen), dtype=x.dtype)
    times = solver.plan(grid).times
    expected = [(t, i) for i, each in enumerate(times) for t in each]
    assert len(seen) == len(expected)
    for (alpha, a, s, ahead, _), (t, i) in zip(seen, expected, strict=True):
        assert float(alpha) == float(path.scales(torch.tensor(t, dtype=torch.float64)).alpha)
        assert (float(a), float(s)) == tuple(float(c[i + 1]) for c in grid.scales[:2])
        assert ahead == 2 * float(grid.lam[i + 1])
    assert result.counts.rows == 2 * 3 * len(expected)  # the condition, and what was told on the way
    assert result.counts.skipped == 0


def test_a_gate_that_looks_ahead(mixture, randn64):
    grid, seen, x = uniform(Straight(), 4), [], randn64(3, 2)
    gated = Looking(seen).when(Ahead()).when(Interval())
    sample(mixture(Straight(), d=2), grid, x=x, samples=3, cond={"label": 1}, guidance=gated, dtype=x.dtype)
    assert len(seen) == 3


def test_an_unknown_network_is_named_before_the_first_step(mixture, randn64):
    with pytest.raises(UnknownNameError, match="strange"):
        sample(
            mixture(Straight(), d=2),
            uniform(Straight(), 2),
            x=randn64(3, 2),
            samples=3,
            guidance=Looking([], "strange"),
        )
