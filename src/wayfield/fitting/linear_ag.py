r"""Fitting LinearAG: least squares over recorded trajectories, one small system for each predicted step.

With F_i the recorded answers that step i may use, flattened over samples and elements into columns,

.. math:: \beta_i = \arg\min_\beta \| u_i - F_i \beta \|^2 + \rho\, \frac{\mathrm{tr}\, G_i}{n_i}\, \| \beta \|^2,
   \qquad G_i = F_i^\top F_i

=======  ==============================================================  ========================
symbol   meaning                                                         shape
=======  ==============================================================  ========================
F_i      c_0 .. c_i, u_0 .. u_{i-1}, and ones if there is an intercept   (samples numel, n_i)
G        products of all columns of all steps; each G_i is a part of it  (2 L + 1, 2 L + 1)
=======  ==============================================================  ========================

Only G is kept, in float64, so any number of samples fits into memory. The ridge is there for the sampling, not for the
regression: without it the scalars grow and amplify the drift that predicted steps cause. A fit is therefore judged by
rolling it out, against holding the last difference.

Reference: Castillo et al. 2023, Adaptive Guidance, arXiv 2312.12487 (LinearAG); the ridge is this library's choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, UnsupportedError, unknown_name
from wayfield.core.grid import Grid
from wayfield.core.predict import Prediction
from wayfield.core.shapes import flatten
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, NULL, Query
from wayfield.field.denoiser import Denoiser
from wayfield.fitting.draws import Draws, check_solver
from wayfield.guide.facts import run_facts
from wayfield.guide.guidance import Guidance, guidance_of
from wayfield.guide.linear import SPACES, LinearAG, alternating, remember
from wayfield.guide.roles import Source, State, Step
from wayfield.guide.terms import Term
from wayfield.solve.ddim import DDIM
from wayfield.solve.roles import Solver

__all__ = ["LinearFit", "RollOut", "fit_linear_ag", "fit_table", "roll_out"]

RIDGE = {"eps": 1e-6, "x0": 1e-4}


@final
@dataclass(frozen=True)
class LinearFit:
    """source: the fitted table / errors: predicted step -> ||u - uhat||^2 / ||c - u||^2 over samples held out."""

    source: LinearAG
    errors: Mapping[int, float]

    @property
    def largest(self) -> float:
        """The largest scalar by magnitude; beyond about 3 roll-outs tend to drift."""
        return max(abs(b) for row in (*self.source.bc, *self.source.bu) for b in row)


class RollOut(NamedTuple):
    """Mean squared differences per element to samples of a reference guidance, at the same noise.

    linear: of the table / hold: of the last difference held / skip: of no guidance at the predicted steps / plain: of
    every u evaluated / rows, plain_rows: network rows per sample of the first three, and of the last.
    """

    linear: float
    hold: float
    skip: float
    plain: float
    rows: float
    plain_rows: float


@final
@dataclass(frozen=True)
class _Recorder(Source):
    """Answers nothing and keeps c and u of the first `length` steps, as LinearAG does."""

    length: int
    space: str
    query: Query = NULL  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    of: Query = COND

    remembers = True

    def init(self, x: Tensor, n: int) -> State:
        empty = x.new_zeros(len(x), self.length, *x.shape[1:])
        return empty, empty

    def open(self, step: Step, state: State) -> bool:
        return False

    def row(self, step: Step) -> Sequence[float]:
        return () if step.i >= self.length else tuple(float(j == step.i) for j in range(self.length))

    def answer(self, ask: Ask, step: Step, state: State, row: Tensor) -> Prediction:
        raise AssertionError("a recorder answers nothing")

    def observe(self, ask: Ask, step: Step, state: State, row: Tensor, answered: bool | Tensor) -> State:
        return remember(self, ask, state, row)


def fit_linear_ag(
    model: Denoiser,
    grid: Grid,
    *,
    guidance: Guidance | Term,
    true: Sequence[bool] | None = None,
    samples: int = 256,
    held_out: float = 0.25,
    seed: int = 0,
    cond: Mapping[str, Any] | None = None,
    conds: Mapping[str, Mapping[str, Any]] | None = None,
    nets: Mapping[str, Denoiser] | None = None,
    shape: Sequence[int] | None = None,
    solver: Solver = DDIM(),
    space: str = "eps",
    ridge: float | None = None,
    intercept: bool = False,
    query: Query = NULL,
    of: Query = COND,
    chunk: int = 64,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> LinearFit:
    """Fit a table to trajectories of a guidance whose every answer is evaluated.

    guidance: as the table will be used with, but without it; it must ask `query` at every step up to the last predicted
    one / true: the steps to evaluate, by default `alternating` / samples, held_out: trajectories, and the share of them
    that only judges / space: "x0" or "eps", where the map is linear / ridge: rho >= 0, by default 1e-6 in eps and 1e-4
    in x0 / intercept: fit b too / chunk: trajectories at a time, whose history is in memory / others: as in `sample`.
    Raises RangeError, UnknownNameError, what `sample` raises, and UnsupportedError for solvers with several evaluations
    a step and for guidance with sources.
    """
    if space not in SPACES:
        raise unknown_name("space", space, SPACES)
    rho = RIDGE[space] if ridge is None else ridge
    if not (rho >= 0 and 0 < held_out < 1 and 1 <= round(held_out * samples) < samples):
        remedy = "Give a ridge >= 0 and at least one sample on either side."
        raise RangeError("fit", got=(rho, held_out, samples), expected="a ridge and a share", remedy=remedy)
    guided = guidance_of(guidance)
    if guided.sources:
        got = [type(s).__name__ for s in guided.sources]
        raise UnsupportedError("guidance to fit", got=got, expected="no sources", remedy="Fit without them.")
    check_solver("LinearAG", solver, grid)
    table = LinearAG.skip(alternating(grid.steps) if true is None else true)  # also checks the pattern
    recorder = _Recorder(table.length + 1, space, query, of)
    draws = Draws(model, grid, samples, seed, cond, conds, nets, shape, solver, dtype, device)
    fitted, judging = _products(draws, replace(guided, sources=(recorder,)), chunk, samples - round(held_out * samples))
    b0, bc, bu = fit_table(fitted, table.true, rho, intercept)
    facts = tuple(sorted(run_facts(draws.networks, grid, solver, guided).items()))
    source = LinearAG(table.true, bc, bu, b0, space, query, of, facts)
    return LinearFit(source, _errors(judging, source))


def fit_table(
    products: Tensor, true: Sequence[bool], rho: float, intercept: bool = False
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """The scalars (b0, bc, bu) of every predicted step; b0 empty without an intercept.

    products: inner products of the columns 1, c_0 .. c_{L-1}, u_0 .. u_{L-1}, float64 (2 L + 1, 2 L + 1), L up to the
    last predicted step included / rho: ridge relative to the mean square of the columns.
    """
    b0, bc, bu = [], [], []
    for i, known in enumerate(true):
        columns, target = _columns(products, i)
        columns = columns if intercept else columns[1:]
        b = torch.zeros(0, dtype=torch.float64)
        if not known:
            G = products[columns][:, columns]
            G = G + rho * G.trace() / len(G) * torch.eye(len(G), dtype=G.dtype)
            b = torch.linalg.lstsq(G, products[columns, target][:, None], driver="gelsd").solution[:, 0]
        b0.append(float(b[0]) if intercept and len(b) else 0.0)
        values = b.tolist()[int(intercept) :]
        bc.append(tuple(values[: i + 1]))
        bu.append(tuple(values[i + 1 :]))
    return tuple(b0) if intercept else (), tuple(bc), tuple(bu)


def roll_out(
    model: Denoiser,
    grid: Grid,
    source: LinearAG,
    *,
    guidance: Guidance | Term,
    reference: Guidance | Term | None = None,
    samples: int = 256,
    seed: int = 1,
    cond: Mapping[str, Any] | None = None,
    conds: Mapping[str, Mapping[str, Any]] | None = None,
    nets: Mapping[str, Denoiser] | None = None,
    shape: Sequence[int] | None = None,
    solver: Solver = DDIM(),
    chunk: int = 256,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> RollOut:
    """Sample with the table, and with its two rivals of equal cost.

    guidance: what the table was fitted to / reference: what samples are compared with, by default that guidance with
    every answer evaluated / seed: of other noise than the fit's / others: as in `sample`. Raises CheckpointError if the
    table was fitted to another run, and what `sample` raises.
    """
    guided = guidance_of(guidance)
    draws = Draws(model, grid, samples, seed, cond, conds, nets, shape, solver, dtype, device)
    source.check(run_facts(draws.networks, grid, solver, guided))
    rivals = [source, *(replace(s, query=source.query, of=source.of) for s in _rivals(source.true))]
    ways = [*(replace(guided, sources=(s,)) for s in rivals), guided]
    squares, rows, numel = [0.0] * 4, [0] * 4, 1
    for part in draws.parts(chunk):
        want = draws(part, guided if reference is None else reference).x
        numel = want[0].numel()
        for k, way in enumerate(ways):
            result = draws(part, way)
            squares[k] += float((result.x - want).double().square().sum())
            rows[k] += result.counts.rows
    linear, hold, skip, plain = (s / (samples * numel) for s in squares)
    return RollOut(linear, hold, skip, plain, rows[0] / samples, rows[3] / samples)


def _rivals(true: tuple[bool, ...]) -> tuple[LinearAG, LinearAG]:
    return LinearAG.hold(true), LinearAG.skip(true)


def _products(draws: Draws, guidance: Guidance, chunk: int, fit: int) -> tuple[Tensor, Tensor]:
    """Inner products of all columns, (2 L + 1, 2 L + 1), over the first `fit` samples and over the others."""
    totals: list[Tensor | float] = [0.0, 0.0]
    for part in draws.parts(chunk):
        _, history = guidance.remembered(draws(part, guidance).state)[-1]
        cut = max(0, min(fit - part.start, len(part)))
        for k, rows in enumerate((slice(0, cut), slice(cut, None))):
            columns = [flatten(h[rows].transpose(0, 1)) for h in history]
            H = torch.cat([torch.ones_like(columns[0][:1]), *columns]).double()
            totals[k] = totals[k] + (H @ H.mT).cpu()
    return totals[0], totals[1]  # pyright: ignore[reportReturnType]


def _columns(products: Tensor, i: int) -> tuple[list[int], int]:
    """Where 1, c_0 .. c_i and u_0 .. u_{i-1} stand among the columns, and where u_i."""
    u = 1 + len(products) // 2
    return [0, *range(1, i + 2), *range(u, u + i)], u + i


def _errors(products: Tensor, source: LinearAG) -> dict[int, float]:
    """Error of each predicted step relative to the energy of c - u, from the products of samples held out."""
    out = {}
    for i, known in enumerate(source.true):
        if not known:
            columns, u = _columns(products, i)
            b = torch.zeros(len(products), dtype=torch.float64)
            b[columns] = torch.tensor([*(source.b0[i : i + 1] or (0.0,)), *source.bc[i], *source.bu[i]], dtype=b.dtype)
            b[u] = -1.0
            gap = torch.zeros_like(b)
            gap[[1 + i, u]] = torch.tensor([1.0, -1.0], dtype=b.dtype)
            out[i] = max(0.0, float(b @ products @ b)) / float(gap @ products @ gap)
    return out
