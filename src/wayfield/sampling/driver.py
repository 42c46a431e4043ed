r"""The one driver: from noise to samples under any solver, guidance and path, counted, recorded, resumable.

Everything that depends on the grid alone (levels, coefficients) is made once in float64 and copied to the device once;
a step then is a pure function of tensors, compiled whole if asked. The loop never reads the device. Sample k gets the
same noise in any batch.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import NonFiniteError, UnsupportedError
from wayfield.core.grid import Grid
from wayfield.core.noise import Address, Noise, SeededNoise
from wayfield.core.predict import Prediction
from wayfield.field.batching import Batching
from wayfield.field.binding import Binding, Counts
from wayfield.field.denoiser import Denoiser
from wayfield.guide.guidance import ANYWHERE, At, Guidance, Steering, guidance_of
from wayfield.guide.planner import Planner
from wayfield.guide.roles import State, Step
from wayfield.guide.terms import Term
from wayfield.progress import track
from wayfield.sampling.begin import check_run, starting_points
from wayfield.sampling.resume import Checkpoint, RunSpec, RunState, fingerprint, restore, save
from wayfield.sampling.tables import tables
from wayfield.solve.adaptive import Adaptive
from wayfield.solve.ddim import DDIM
from wayfield.solve.roles import Solver

__all__ = ["Result", "StepInfo", "sample"]

_GRAPHS = 512
_Plans = tuple[Steering, ...]


class StepInfo(NamedTuple):
    """What a callback sees after step i of n: the time reached, the points (B, *D), the cost so far, and what guidance
    remembers, to be read with `Guidance.remembered`.
    """

    i: int
    n: int
    t: float
    x: Tensor
    counts: Counts
    state: State = ()


@final
@dataclass(frozen=True)
class Result:
    """x: samples (B, *D) / counts: calls, rows, skipped / steps: steps made (attempts, for an adaptive solver) /
    trajectory: (N + 1, B, *D) or None / state: what guidance remembers at the end.
    """

    x: Tensor
    counts: Counts
    steps: int
    trajectory: Tensor | None = None
    state: State = ()


def sample(
    denoiser: Denoiser,
    grid: Grid,
    *,
    samples: int | Sequence[int] = 1,
    seed: int = 0,
    cond: Mapping[str, Any] | None = None,
    solver: Solver | Adaptive = DDIM(),
    guidance: Guidance | Term | None = None,
    shape: Sequence[int] | None = None,
    x: Tensor | None = None,
    noise: Noise | None = None,
    nets: Mapping[str, Denoiser] | None = None,
    conds: Mapping[str, Mapping[str, Any]] | None = None,
    batching: Batching | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    record: bool = False,
    callback: Callable[[StepInfo], None] | None = None,
    progress: bool = False,
    compile: bool | str = False,
    checkpoint: Checkpoint | None = None,
    grad: bool = False,
) -> Result:
    """Draw samples. The same (seed, sample address) gives the same sample, alone or in any batch.

    denoiser: the main network; it may have been trained on another path than the grid's / grid: the times to visit.
    samples: a count, or the addresses of the samples wanted / seed: of the noise / noise: instead of both.
    cond: the main condition, None for unconditional; one value serves all rows.
    guidance: a term such as CFG(3), a `Guidance`, or None for none.
    conds: further named conditions, e.g. {"negative": ...} / nets: further networks by name / x: start from these
    points (B, *D) at the grid's first time instead of noise.
    shape: data shape *D, where the denoiser does not know it / dtype: of the state; networks may run in another.
    compile: one graph per plan; True for inductor or a backend's name / checkpoint: save and resume / grad: record
    gradients through the whole run, for those who differentiate samples.
    Raises SingularError, ShapeError, DTypeError, DeviceError, ConditionError, UnknownNameError, UnsupportedError or
    CheckpointError before the first step, and NonFiniteError, naming the step, at the end.
    """
    device = torch.device(device)
    fields = {"main": denoiser, **(nets or {})}
    noise = noise or SeededNoise(seed, samples)
    x = starting_points(fields, grid, noise, shape, x, dtype, device)
    binding = Binding(fields, {"cond": cond, **(conds or {})}, len(x), device, batching or Batching.default(device))
    rule = guidance_of(guidance)
    check_run(binding, solver, rule, grid, compile)
    with torch.set_grad_enabled(grad):
        if isinstance(solver, Adaptive):
            asked = {"record": record, "callback": callback, "compile": compile, "checkpoint": checkpoint}
            if any(asked.values()):
                got = [k for k, v in asked.items() if v]
                remedy = "Its steps belong to each sample; use a solver with a fixed grid for that."
                raise UnsupportedError("adaptive solver", got=got, expected="none of these options", remedy=remedy)
            return _adaptive(binding, solver, rule, grid, x)
        run = RunSpec(binding, solver, rule, grid, tables(fields, solver, grid, x), noise)
        state = RunState(0, x, solver.init(x), rule.init(x, grid.steps), Counts(), [x] if record else [])
        if checkpoint is not None:
            run = run._replace(checkpoint=checkpoint, fingerprint=fingerprint(run, x, record))
            state = restore(run, state)
        unit = _compiled(compile if isinstance(compile, str) else "inductor") if compile else _step
        return _loop(run, state, unit, record, callback, progress)


def _step(
    run: tuple[Binding, Solver, Guidance],
    x: Tensor,
    row: Any,
    at: tuple[At, ...],
    steps: tuple[Step, ...],
    plans: tuple[Steering, ...],
    noise: tuple[Tensor, ...],
    state: Any,
    gstate: Any,
) -> tuple[Tensor, Any, Any, int, int]:
    """One pure step; the unit that is compiled. Guidance state is committed by the step's first evaluation."""
    binding, solver, guidance = run
    calls = rows = 0
    first = reads = gstate

    def denoise(x: Tensor, k: int) -> Prediction:
        nonlocal calls, rows, first, reads
        pred, new, c, r = guidance(binding, x, at[k], steps[k], reads, plans[k])
        calls, rows = calls + c, rows + r
        if k == 0:
            first = new
            reads = guidance.held(gstate, new) if len(at) > 1 else reads
        return pred

    x, state = solver.step(denoise, x, row, state, noise, len(at))
    return x, state, first, calls, rows


@functools.cache
def _compiled(backend: str) -> Callable[..., Any]:
    step = torch.compile(_step, fullgraph=True, dynamic=False, backend=backend)

    # energies and classifiers differentiate inside; every new guidance, solver and shape is one more graph
    settings = {"trace_autograd_ops": True, "recompile_limit": _GRAPHS, "accumulated_recompile_limit": _GRAPHS}

    def unit(*args: Any) -> Any:
        with torch._dynamo.config.patch(settings):
            return step(*args)

    return unit


def _loop(
    run: RunSpec,
    s: RunState,
    unit: Callable[..., Any],
    record: bool,
    callback: Callable[[StepInfo], None] | None,
    progress: bool,
) -> Result:
    fixed, grid, n, every = (run.binding, run.solver, run.guidance), run.grid, run.grid.steps, None
    if run.checkpoint is not None:
        every = run.checkpoint.every
    branches = run.binding.batch * run.guidance.branches
    first, x, state, gstate, counts, trajectory = s
    calls, rows, skipped = counts
    (ahead, plan), each = _planning(run, x, gstate), run.tables
    todo = list(zip(range(n), each.rows, each.at, each.steps, ahead, each.plan.draws, strict=True))[first:]
    for i, row, at, steps, plans, draws in track(todo, "sampling", on=progress):
        noise = _draws(run, i, x) if draws else ()
        x, state, gstate, c, r = unit(fixed, x, row, at, steps, plans or plan(i, gstate), noise, state, gstate)
        calls, rows, skipped = calls + c, rows + r, skipped + branches * len(at) - r
        if record:
            trajectory.append(x)
        if callback is not None:
            callback(StepInfo(i + 1, n, grid.t[i + 1], x, Counts(calls, rows, skipped), gstate))
        if every and (i + 1) % every == 0 and i + 1 < n:
            save(run, RunState(i + 1, x, state, gstate, Counts(calls, rows, skipped), trajectory))
    if not _finite(x):
        raise _not_finite(grid, _first_bad_step(run, s, unit))
    return Result(x, Counts(calls, rows, skipped), n, torch.stack(trajectory) if record else None, gstate)


def _planning(run: RunSpec, x: Tensor, start: State) -> tuple[list[_Plans], Callable[[int, State], _Plans]]:
    """What guidance decides for the evaluations of every step, on the host: all that is foreseen (else empty), and how
    to decide for step i from the state before it. start: any state of the run.
    """
    guidance, steps = run.guidance, run.tables.steps
    planner = Planner(guidance.rows, guidance.base, x)

    def plan(step: Step, state: State) -> Steering:
        return guidance.plan(planner, step, state, run.binding, x)  # here, not in compiled code

    def now(i: int, state: State) -> _Plans:
        return tuple([plan(step, state) for step in steps[i]])

    if not guidance.foreseen:
        return [()] * len(steps), now
    if not guidance.decides:
        only = plan(steps[0][0], start)
        return [(only,) * max(map(len, steps))] * len(steps), now
    known = {}
    said = [[guidance.said(step) for step in each] for each in steps]
    for step, what in zip(itertools.chain.from_iterable(steps), itertools.chain.from_iterable(said), strict=True):
        if what not in known:
            known[what] = plan(step, start)
    return [tuple([known[what] for what in each]) for each in said], now


def _draws(run: RunSpec, i: int, x: Tensor) -> tuple[Tensor, ...]:
    """The noises of step i, (B, *D) each."""
    t, s = run.grid.t[i], run.grid.t[i + 1]
    drawn = [run.noise.draw(x.shape[1:], Address(i, k, t, s)) for k in range(run.tables.plan.draws[i])]
    return tuple(z.to(device=x.device, dtype=x.dtype, non_blocking=True) for z in drawn)


def _adaptive(binding: Binding, solver: Adaptive, guidance: Guidance, grid: Grid, x: Tensor) -> Result:
    total = Counts()

    def evaluate(x: Tensor, t: Tensor, rows: Tensor) -> Prediction:
        nonlocal total
        some = binding if len(rows) == binding.batch else binding.take(rows)
        levels = {name: d.level(t, path=grid.path, dtype=x.dtype, device=x.device) for name, d in binding.nets.items()}
        plan = guidance.anywhere(some, x, "an adaptive solver")
        pred, _, calls, rows_in = guidance(some, x, At(levels), ANYWHERE, guidance.init(x, 1), plan)
        total = total.plus(Counts(calls, rows_in, len(x) * guidance.branches - rows_in))
        return pred

    x, steps = solver.run(evaluate, x, grid)
    if not _finite(x):
        raise _not_finite(grid, grid.steps - 1)
    return Result(x, total, steps)


def _finite(x: Tensor) -> bool:
    """The one host read of a run: of the largest number. NaN and infinity stay to the end: 0 times infinity is NaN."""
    return math.isfinite(torch.linalg.vector_norm(x, math.inf).item())


def _first_bad_step(run: RunSpec, s: RunState, unit: Callable[..., Any]) -> int:
    """Make the failed run once more, now reading every step: a run that succeeds should not pay for the search."""
    fixed = (run.binding, run.solver, run.guidance)
    first, x, state, gstate, _, _ = s
    ahead, plan = _planning(run, x, gstate)
    for i in range(first, run.grid.steps):
        noise = _draws(run, i, x)
        row, at, steps = run.tables.rows[i], run.tables.at[i], run.tables.steps[i]
        x, state, gstate, _, _ = unit(fixed, x, row, at, steps, ahead[i] or plan(i, gstate), noise, state, gstate)
        if not _finite(x):
            return i
    return run.grid.steps - 1


def _not_finite(grid: Grid, i: int) -> NonFiniteError:
    return NonFiniteError(
        "samples",
        got=f"NaN or infinity after step {i + 1} of {grid.steps} (t = {grid.t[i + 1]:g})",
        expected="finite points",
        remedy="Check the network there, lower the guidance scale, or use float32.",
    )
