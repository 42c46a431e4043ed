"""`wayfield sample`: draw the samples of a range of addresses, in batches and, under a launcher, in several processes.

Sample k is a function of the model, the settings, the seed and k alone. So process r of W draws the r-th of W slices
of the addresses, and process 0 gathers them and writes one file, the same (up to rounding) for any W and any batch.

    samples.safetensors    x (n, *D), address (n,), label (n,) if there is one; record: how they were drawn
    sheet.png              if samples are pictures
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from wayfield import files, registry, zoo
from wayfield.core.errors import ConditionError, DeviceError, RangeError, unknown_name
from wayfield.core.grid import Grid
from wayfield.doors.console import DONE, asked, console, emit, emit_paths, interactive
from wayfield.field.ask import Counts
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Guidance, Plain
from wayfield.sampling import Checkpoint, sample
from wayfield.solve import Adaptive, Solver
from wayfield.train.engine import Engine, processes, start_engine
from wayfield.train.run import MODEL

if TYPE_CHECKING:
    from wayfield.doors.commands import Sample

__all__ = ["draw", "find_device", "main_process", "prepare_launch"]


@final
@dataclass(frozen=True, eq=False)
class _Order:
    """What was asked for, checked. labels: one per address, or None for unconditional samples."""

    model: Denoiser
    grid: Grid
    solver: Solver | Adaptive
    guidance: Guidance
    addresses: range
    labels: Tensor | None


def main_process() -> bool:
    """Whether this process is the one that speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def prepare_launch(device: str | None) -> None:
    """Tell accelerate to spread CPU work over processes; unasked, it lets each of them do everything."""
    if processes() > 1 and (device == "cpu" or not torch.cuda.is_available()):
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def draw(asks: Sample) -> int:
    """Run the command and return its exit code."""
    begin = time.perf_counter()
    with asked():
        device = find_device(asks.device)
    prepare_launch(asks.device)
    engine = start_engine(device)
    try:
        with asked():
            order = _order(asks, engine)
            x, counts, states = _slice(asks, order, engine)
        x, counts = _gathered(x, counts, engine)
        if engine.main:
            _finish(asks, order, x, counts, time.perf_counter() - begin)
        engine.wait()
        for state in states:
            state.unlink(missing_ok=True)
    finally:
        if engine.accelerator is not None:
            engine.accelerator.end_training()
    return DONE


def _order(asks: Sample, engine: Engine) -> _Order:
    """Look up every name and check every number."""
    for name in ("n", "batch", "steps"):
        if getattr(asks, name) < 1:
            raise RangeError(f"--{name}", got=getattr(asks, name), expected="at least 1", remedy="Ask for some.")
    if asks.first < 0:
        raise RangeError("--first", got=asks.first, expected="at least 0", remedy="Addresses count from 0.")
    for kind, name, known in (("solver", asks.solver, registry.SOLVERS), ("grid", asks.grid, registry.GRIDS)):
        if name not in known:  # before a large model is loaded
            raise unknown_name(kind, name, known)
    folder = FilePath(asks.model)
    model = zoo.load(str(folder / MODEL) if folder.is_dir() else asks.model, engine.device)
    grid = registry.grid(asks.grid, model.path, asks.steps, sigma_min=asks.sigma_min)
    addresses = range(asks.first, asks.first + asks.n)
    labels = _labels(model, asks.label, addresses)
    if labels is None and asks.w != 1:
        remedy = "Add --label, or leave --w at 1."
        raise ConditionError("guidance", got=f"w = {asks.w:g} without a label", expected="a label", remedy=remedy)
    guidance = Plain() if asks.w == 1 else CFG(asks.w)
    return _Order(model, grid, registry.solver(asks.solver, model.path), guidance, addresses, labels)


def _labels(model: Denoiser, label: str, addresses: range) -> Tensor | None:
    """The label of every address; for "each" it depends on the address alone."""
    if label == "none":
        return None
    field = model.schema.fields.get("label")
    if field is None or field.values is None:
        got, remedy = f"{label!r} for a model without labels", "Use --label none."
        raise ConditionError("label", got=got, expected="none", remedy=remedy)
    null = (model.schema.null or {}).get("label")
    classes = [k for k in range(field.values) if k != null]
    if label == "each":
        return torch.tensor([classes[k % len(classes)] for k in addresses])
    if not label.isdecimal() or int(label) not in classes:
        expected = f"{classes[0]}..{classes[-1]}, each or none"
        raise ConditionError("label", got=repr(label), expected=expected, remedy="Choose one of them.")
    return torch.full((len(addresses),), int(label))


def _slice(asks: Sample, order: _Order, engine: Engine) -> tuple[Tensor, Counts, list[FilePath]]:
    """This process's share of the samples, batch by batch, what it cost, and the files of interrupted runs it kept."""
    addresses, n = order.addresses, len(order.addresses)
    mine = range(n * engine.rank // engine.world, n * (engine.rank + 1) // engine.world)
    parts, total, states = [], Counts(), []
    several = engine.world > 1 or len(mine) > asks.batch
    for start in range(mine.start, mine.stop, asks.batch):
        rows = slice(start, min(start + asks.batch, mine.stop))
        state = asks.checkpoint
        if state is not None and several:
            state = state.with_name(f"{state.name}.{addresses[start]}")
        result = sample(
            order.model,
            order.grid,
            samples=addresses[rows],
            seed=asks.seed,
            cond=None if order.labels is None else {"label": order.labels[rows]},
            solver=order.solver,
            guidance=order.guidance,
            device=engine.device,
            progress=interactive() and engine.main,
            compile=asks.compile,
            checkpoint=None if state is None else Checkpoint(str(state)),
        )
        parts.append(result.x.cpu())
        total = total.plus(result.counts)
        states += [] if state is None else [state]
    return torch.cat(parts) if parts else torch.empty(0), total, states


def _gathered(x: Tensor, counts: Counts, engine: Engine) -> tuple[Tensor, Counts]:
    """The samples and the cost of all processes, in the order of addresses."""
    if engine.accelerator is None:
        return x, counts
    from accelerate.utils import gather_object

    shares = gather_object([(x, tuple(counts))])
    total = Counts()
    for _, cost in shares:
        total = total.plus(Counts(*cost))
    return torch.cat([x for x, _ in shares if len(x)]), total


def _finish(asks: Sample, order: _Order, x: Tensor, counts: Counts, seconds: float) -> None:
    """Write the files and say so."""
    tensors = {"x": x, "address": torch.tensor(order.addresses)}
    if order.labels is not None:
        tensors["label"] = order.labels
    files.write(asks.out / "samples.safetensors", tensors, _record(asks, order, counts))
    written = [asks.out / "samples.safetensors"]
    if x.ndim == 4 and x.shape[1] in (1, 3):
        from wayfield import plots

        small = x.shape[-1] <= 16
        scale = max(1, 64 // x.shape[-1])
        columns = 10 if asks.label == "each" else min(len(x), max(4, round(len(x) ** 0.5)))
        written.append(plots.save_sheet(asks.out / "sheet.png", x, columns=columns, scale=scale, frame=int(small)))
    say = console()
    cost = f"{counts.calls} calls, {counts.rows} rows, {counts.skipped} skipped"
    say.print(f"{len(x)} samples in {seconds:.1f} s: {cost}", soft_wrap=True)
    if asks.json:
        emit({**counts._asdict(), "samples": len(x), "seconds": round(seconds, 3), "files": [str(p) for p in written]})
    else:
        emit_paths(written)


def _record(asks: Sample, order: _Order, counts: Counts) -> dict[str, Any]:
    """How the samples were drawn, enough to draw them again."""
    return {
        "format": "wayfield.samples",
        "version": 1,
        "model": asks.model,
        "label": asks.label,
        "seed": asks.seed,
        "first": asks.first,
        "samples": asks.n,
        "solver": repr(order.solver),
        "guidance": repr(order.guidance),
        "path": repr(order.grid.path),
        "times": list(order.grid.t),
        "counts": counts._asdict(),
    }


def find_device(name: str) -> torch.device:
    """The device of that name. Raises UnknownNameError for no such kind, DeviceError for one that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise unknown_name("device", name, ("cpu", "cuda", "mps", "xpu")) from error
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        got, remedy = repr(name), "Use cpu, or a torch that has it."
        raise DeviceError("device", got=got, expected="one that is there", remedy=remedy) from error
    return device
