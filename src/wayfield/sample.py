r"""The one driver: from noise to samples under any solver, guidance and path, counted, recorded, resumable.

Everything that depends on the grid alone (levels, coefficients) is made once in float64 and copied to the device once;
a step then is a pure function of tensors, compiled whole if asked. The loop never reads the device. Sample k gets the
same noise in any batch.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield import files
from wayfield.core.errors import CheckpointError, DTypeError, NonFiniteError, ShapeError, SingularError
from wayfield.core.grid import Grid
from wayfield.core.noise import INITIAL, Address, Noise, SeededNoise
from wayfield.core.predict import Prediction
from wayfield.core.shapes import check_samples, leaves
from wayfield.field.ask import Ask, Binding, Counts
from wayfield.field.batching import Batching
from wayfield.field.denoiser import Denoiser, Level
from wayfield.guide.roles import Guidance, Plain
from wayfield.progress import track
from wayfield.solve.adaptive import Adaptive
from wayfield.solve.ddim import DDIM
from wayfield.solve.roles import Plan, Solver

__all__ = ["Checkpoint", "Result", "StepInfo", "sample"]


class StepInfo(NamedTuple):
    """What a callback sees after step i of n: the time reached, the points (B, *D) and the cost so far."""

    i: int
    n: int
    t: float
    x: Tensor
    counts: Counts


@final
@dataclass(frozen=True)
class Result:
    """x: samples (B, *D) / counts: calls, rows, skipped / steps: steps made (attempts, for an adaptive solver) /
    trajectory: (N + 1, B, *D) or None.
    """

    x: Tensor
    counts: Counts
    steps: int
    trajectory: Tensor | None = None


@final
@dataclass(frozen=True)
class Checkpoint:
    """Keep a run's state in `path` every so many steps; the same call then goes on where the file ends."""

    path: str
    every: int = 10


def sample(
    denoiser: Denoiser,
    grid: Grid,
    *,
    samples: int | Sequence[int] = 1,
    seed: int = 0,
    cond: Mapping[str, Any] | None = None,
    solver: Solver | Adaptive = DDIM(),
    guidance: Guidance = Plain(),
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
) -> Result:
    """Draw samples. The same (seed, sample address) gives the same sample, alone or in any batch.

    denoiser: the main network; it may have been trained on another path than the grid's / grid: the times to visit.
    samples: a count, or the addresses of the samples wanted / seed: of the noise / noise: instead of both.
    cond: the main condition, None for unconditional; one value serves all rows / conds: further named conditions, e.g.
    {"negative": ...}.
    nets: further networks by name / x: start from these points (B, *D) at the grid's first time instead of noise.
    shape: data shape *D, where the denoiser does not know it / dtype: of the state; networks may run in another.
    compile: one graph per plan; True for inductor or a backend's name / checkpoint: save and resume.
    Raises SingularError, ShapeError, DTypeError, ConditionError, UnknownNameError, CheckpointError before the first
    step and
    NonFiniteError, naming the step, at the end.
    """
    device = torch.device(device)
    fields = {"main": denoiser, **(nets or {})}
    noise = noise or SeededNoise(seed, samples)
    x = _start(denoiser, grid, noise, shape, x, dtype, device)
    binding = Binding(fields, {"cond": cond, **(conds or {})}, len(x), device, batching or Batching.default(device))
    binding.prepare(guidance.needs(), x)
    with torch.no_grad():
        if isinstance(solver, Adaptive):
            return _adaptive(binding, solver, guidance, grid, x)
        plan = solver.plan(grid)
        run = _Run(binding, solver, guidance, grid, plan, _levels(fields, grid, plan, x), _rows(plan, grid, x), noise)
        state = _State(0, x, solver.init(x), guidance.init(x), Counts(), [x] if record else [])
        fingerprint = _fingerprint(run, x, record) if checkpoint else ""
        if checkpoint:
            state = _resume(checkpoint, fingerprint, state)
        return _loop(run, state, record, callback, progress, compile, checkpoint, fingerprint)


class _State(NamedTuple):
    """Everything a run carries from step to step."""

    i: int
    x: Tensor
    solver: Any
    guidance: Any
    counts: Counts
    trajectory: list[Tensor]


class _Run(NamedTuple):
    """Everything that stays the same."""

    binding: Binding
    solver: Solver
    guidance: Guidance
    grid: Grid
    plan: Plan
    levels: list[tuple[dict[str, Level], ...]]
    rows: list[Any]
    noise: Noise


def _step(
    run: tuple[Binding, Solver, Guidance],
    x: Tensor,
    row: Any,
    levels: tuple[dict[str, Level], ...],
    noise: tuple[Tensor, ...],
    state: Any,
    gstate: Any,
) -> tuple[Tensor, Any, Any, Tensor, int, int]:
    """One pure step; the unit that is compiled. Guidance state is committed by the step's first evaluation."""
    binding, solver, guidance = run
    asked: list[Ask] = []
    states = [gstate]

    def denoise(x: Tensor, k: int) -> Prediction:
        ask = Ask(binding, x, levels[k])
        pred, new = guidance(ask, gstate)
        asked.append(ask)
        if k == 0:
            states[0] = new
        return pred

    x, state = solver.step(denoise, x, row, state, noise, len(levels))
    return x, state, states[0], x.sum(), sum(a.calls for a in asked), sum(a.rows for a in asked)


@functools.cache
def _compiled(backend: str) -> Callable[..., Any]:
    return torch.compile(_step, fullgraph=True, dynamic=False, backend=backend)


def _loop(
    run: _Run,
    s: _State,
    record: bool,
    callback: Callable[[StepInfo], None] | None,
    progress: bool,
    compile: bool | str,
    checkpoint: Checkpoint | None,
    fingerprint: str,
) -> Result:
    unit = _compiled(compile if isinstance(compile, str) else "inductor") if compile else _step
    fixed = (run.binding, run.solver, run.guidance)
    grid, n, B = run.grid, run.grid.steps, run.binding.batch
    sums: list[Tensor] = []
    first = s.i
    for i in track(range(first, n), "sampling", on=progress):
        noise = tuple(_drawn(run.noise, s.x, Address(i, k, grid.t[i], grid.t[i + 1])) for k in range(run.plan.draws[i]))
        x, sstate, gstate, total, calls, rows = unit(
            fixed, s.x, run.rows[i], run.levels[i], noise, s.solver, s.guidance
        )
        sums.append(total)
        full = B * run.guidance.branches * len(run.levels[i])
        s = _State(i + 1, x, sstate, gstate, s.counts.plus(Counts(calls, rows, full - rows)), s.trajectory)
        if record:
            s.trajectory.append(x)
        if callback is not None:
            callback(StepInfo(i + 1, n, grid.t[i + 1], x, s.counts))
        if checkpoint is not None and (i + 1) % checkpoint.every == 0 and i + 1 < n:
            _save(checkpoint, fingerprint, s)
    _check_finite(sums, first, grid)
    return Result(s.x, s.counts, n, torch.stack(s.trajectory) if record else None)


def _start(
    denoiser: Denoiser,
    grid: Grid,
    noise: Noise,
    shape: Sequence[int] | None,
    x: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The checked points at the grid's first time."""
    if not dtype.is_floating_point:
        raise DTypeError("dtype", got=dtype, expected="a floating-point type", remedy="Use torch.float32.")
    if x is None:
        want = denoiser.shape if shape is None else tuple(shape)
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
    denoiser.check_points(x)
    return x


def _levels(fields: Mapping[str, Denoiser], grid: Grid, plan: Plan, x: Tensor) -> list[tuple[dict[str, Level], ...]]:
    """For every step and evaluation, the level's numbers of every network, as 0-dim tensors on the device."""
    flat = torch.tensor([t for times in plan.times for t in times], dtype=torch.float64)
    per_net: dict[str, list[Level]] = {}
    for name, denoiser in fields.items():
        table = torch.stack(denoiser.level(flat, path=grid.path), 1)
        bad = ~table.isfinite().all(1)
        if bool(bad.any()):
            t = float(flat[bad][0])
            raise SingularError(
                f"{denoiser.output.name!r} prediction of network {name!r}",
                got=f"t = {t:g} on {grid.path!r}",
                expected="a level with signal and noise",
                remedy="Start or end the grid elsewhere, e.g. karras(), or use a model that predicts v, edm or x0.",
            )
        per_net[name] = [Level(*row.unbind()) for row in table.to(device=x.device, dtype=x.dtype).unbind()]
    each = iter(range(len(flat)))
    return [
        tuple({name: rows[k] for name, rows in per_net.items()} for k in [next(each) for _ in times])
        for times in plan.times
    ]


def _rows(plan: Plan, grid: Grid, x: Tensor) -> list[Any]:
    """The solver's coefficients, one NamedTuple of 0-dim tensors per step."""
    table = torch.stack(tuple(plan.rows), 1)
    bad = ~table.isfinite().all(1)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise SingularError(
            "solver coefficients",
            got=f"step {i}, t = {grid.t[i]:g} to {grid.t[i + 1]:g} on {grid.path!r}",
            expected="finite numbers",
            remedy="Choose another end of the grid, or a solver that works in sigma/alpha.",
        )
    make = type(plan.rows)
    return [make(*row.unbind()) for row in table.to(device=x.device, dtype=x.dtype).unbind()]


def _drawn(noise: Noise, x: Tensor, at: Address) -> Tensor:
    return noise.draw(x.shape[1:], at).to(device=x.device, dtype=x.dtype, non_blocking=True)


def _adaptive(binding: Binding, solver: Adaptive, guidance: Guidance, grid: Grid, x: Tensor) -> Result:
    total = Counts()

    def evaluate(x: Tensor, t: Tensor, rows: Tensor) -> Prediction:
        nonlocal total
        some = binding if len(rows) == binding.batch else binding.take(rows)
        levels = {name: d.level(t, path=grid.path, dtype=x.dtype, device=x.device) for name, d in binding.nets.items()}
        ask = Ask(some, x, levels)
        pred, _ = guidance(ask, guidance.init(x))
        total = total.plus(Counts(ask.calls, ask.rows, len(x) * guidance.branches - ask.rows))
        return pred

    x, steps = solver.run(evaluate, x, grid)
    _check_finite([x.sum()], steps - 1, grid)
    return Result(x, total, steps)


def _check_finite(sums: list[Tensor], first: int, grid: Grid) -> None:
    """The one host read of a run: name the first step whose points were not finite."""
    bad = (~torch.stack(sums).isfinite()).nonzero() if sums else []
    if len(bad):
        i = first + int(bad[0])
        raise NonFiniteError(
            "samples",
            got=f"NaN or infinity after step {i + 1} of {grid.steps} (t = {grid.t[min(i + 1, grid.steps)]:g})",
            expected="finite points",
            remedy="Check the network there, lower the guidance scale, or use float32.",
        )


def _fingerprint(run: _Run, x: Tensor, record: bool) -> str:
    """What a saved state belongs to: the whole call but for the networks' weights."""
    given = {
        k: {n: v.tolist() if isinstance(v, Tensor) else v for n, v in (c or {}).items()}
        for k, c in run.binding.given.items()
    }
    text = repr(
        (
            run.grid.path,
            run.grid.t,
            run.solver,
            run.guidance,
            run.noise,
            tuple(x.shape),
            str(x.dtype),
            given,
            sorted(run.binding.nets),
            record,
        )
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _save(checkpoint: Checkpoint, fingerprint: str, s: _State) -> None:
    tensors = dict(leaves({"x": s.x, "solver": s.solver, "guidance": s.guidance, "trajectory": s.trajectory}))
    files.write(
        checkpoint.path,
        tensors,
        {"kind": "sampling", "fingerprint": fingerprint, "step": s.i, "counts": list(s.counts)},
    )


def _resume(checkpoint: Checkpoint, fingerprint: str, s: _State) -> _State:
    """The saved state if there is one; raises CheckpointError if it belongs to another run."""
    try:
        tensors, record = files.read(checkpoint.path)
    except CheckpointError as error:
        if error.got == "no such file":
            return s
        raise
    if record.get("fingerprint") != fingerprint:
        raise CheckpointError(
            f"file {checkpoint.path!r}",
            got="the state of another run",
            expected="the same grid, solver, guidance, seed and conditions",
            remedy="Delete it, or choose another path.",
        )
    tensors = {k: v.to(s.x.device) for k, v in tensors.items()}

    def fill(name: str, like: Any) -> Any:
        return tensors[name] if isinstance(like, Tensor) else tuple(fill(f"{name}.{k}", v) for k, v in enumerate(like))

    n = sum(k.startswith("trajectory.") for k in tensors)
    return _State(
        record["step"],
        tensors["x"],
        fill("solver", s.solver),
        fill("guidance", s.guidance),
        Counts(*record["counts"]),
        [tensors[f"trajectory.{k}"] for k in range(n)],
    )
