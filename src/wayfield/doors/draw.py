"""`wayfield sample`: draw the samples of a range of addresses, in batches and, under a launcher, in several processes.

Sample k is a function of the model, the settings, the seed and k alone. So process r of W draws the r-th of W slices
of the addresses, and process 0 gathers them and writes one file, the same (up to rounding) for any W and any batch.

    samples.safetensors    x (n, *D) and address (n,); label (n,) or tokens (n, L) where they were asked for; latent
                           (n, c, *) if x was decoded from it; record: how they were drawn, and the prompts
    sheet.png              if samples are pictures
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from wayfield import files, registry, zoo
from wayfield.core.errors import ConditionError, DeviceError, RangeError, unknown_name
from wayfield.core.grid import Grid
from wayfield.doors.console import DONE, asked, console, emit, emit_paths, interactive
from wayfield.doors.wishes import Wishes, wishes_of
from wayfield.field.binding import Counts
from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.sampling import Checkpoint, sample
from wayfield.solve import Adaptive, Solver
from wayfield.train.engine import Engine, processes, start_engine
from wayfield.train.run import MODEL

if TYPE_CHECKING:
    from wayfield.doors.commands import Sample

__all__ = ["draw", "find_device", "main_process", "prepare_launch"]

Tensors = Mapping[str, Tensor]


@final
@dataclass(frozen=True, eq=False)
class _Order:
    """What was asked for, checked. nets: further networks by name / codec: decodes what the model draws, None if that
    is the data themselves.
    """

    model: Denoiser
    nets: Mapping[str, Denoiser]
    codec: LatentCodec | None
    grid: Grid
    solver: Solver | Adaptive
    addresses: range
    wishes: Wishes


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
            drawn, counts, states = _slice(asks, order, engine)
        drawn, counts = _gathered(drawn, counts, engine)
        if engine.main:
            _finish(asks, order, drawn, counts, time.perf_counter() - begin)
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
    name = str(folder / MODEL) if folder.is_dir() else asks.model
    model, codec = zoo.load(name, engine.device), zoo.codec_of(name)
    codec = None if codec is None else codec.to(engine.device)
    grid = registry.grid(asks.grid, model.path, asks.steps, sigma_min=asks.sigma_min)
    addresses = range(asks.first, asks.first + asks.n)
    wishes = wishes_of(asks, model, addresses)
    return _Order(model, _nets(asks, engine), codec, grid, registry.solver(asks.solver, model.path), addresses, wishes)


def _nets(asks: Sample, engine: Engine) -> Mapping[str, Denoiser]:
    """The further networks that were named. Raises ConditionError for anything but NAME=MODEL."""
    nets: dict[str, Denoiser] = {}
    for text in asks.net:
        name, _, model = text.partition("=")
        if not name or not model or name == "main" or name in nets:
            remedy = "Write e.g. --net weak=digits-weak, each name once; 'main' is the model itself."
            raise ConditionError("--net", got=text, expected="NAME=MODEL", remedy=remedy)
        folder = FilePath(model)
        nets[name] = zoo.load(str(folder / MODEL) if folder.is_dir() else model, engine.device)
    return nets


def _slice(asks: Sample, order: _Order, engine: Engine) -> tuple[Tensors, Counts, list[FilePath]]:
    """This process's share of the samples, batch by batch, what it cost, and the files of interrupted runs it kept."""
    addresses, n = order.addresses, len(order.addresses)
    mine = range(n * engine.rank // engine.world, n * (engine.rank + 1) // engine.world)
    parts: list[Tensors] = []
    total, states = Counts(), []
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
            cond=order.wishes.rows(rows),
            conds=order.wishes.conds,
            solver=order.solver,
            guidance=order.wishes.guidance,
            nets=order.nets,
            device=engine.device,
            progress=interactive() and engine.main,
            compile=asks.compile,
            checkpoint=None if state is None else Checkpoint(str(state)),
        )
        parts.append(_decoded(order.codec, result.x))
        total = total.plus(result.counts)
        states += [] if state is None else [state]
    return _joined(parts), total, states


def _decoded(codec: LatentCodec | None, x: Tensor) -> Tensors:
    """What is written of samples: themselves, or the pictures that they stand for and they."""
    if codec is None:
        return {"x": x.cpu()}
    with torch.no_grad():
        return {"x": codec.decode(x).cpu(), "latent": x.cpu()}


def _joined(parts: Sequence[Tensors]) -> Tensors:
    """Batches or shares, one after another; those without rows hold nothing."""
    some = [part for part in parts if part]
    return {name: torch.cat([part[name] for part in some]) for name in some[0]} if some else {}


def _gathered(drawn: Tensors, counts: Counts, engine: Engine) -> tuple[Tensors, Counts]:
    """The samples and the cost of all processes, in the order of addresses."""
    if engine.accelerator is None:
        return drawn, counts
    from accelerate.utils import gather_object

    shares = gather_object([(drawn, tuple(counts))])
    total = Counts()
    for _, cost in shares:
        total = total.plus(Counts(*cost))
    return _joined([share for share, _ in shares]), total


def _finish(asks: Sample, order: _Order, drawn: Tensors, counts: Counts, seconds: float) -> None:
    """Write the files and say so."""
    x, tensors = drawn["x"], {**drawn, "address": torch.tensor(order.addresses), **(order.wishes.cond or {})}
    files.write(asks.out / "samples.safetensors", tensors, _record(asks, order, counts))
    written = [asks.out / "samples.safetensors"]
    if x.ndim == 4 and x.shape[1] in (1, 3):
        written.append(_sheet(asks.out / "sheet.png", x, order.wishes))
    say = console()
    cost = f"{counts.calls} calls, {counts.rows} rows, {counts.skipped} skipped"
    say.print(f"{len(x)} samples in {seconds:.1f} s: {cost}", soft_wrap=True)
    if asks.json:
        emit({**counts._asdict(), "samples": len(x), "seconds": round(seconds, 3), "files": [str(p) for p in written]})
    else:
        emit_paths(written)


def _sheet(path: FilePath, x: Tensor, wishes: Wishes) -> FilePath:
    """Write the pictures, a column per class if there are several, with their prompts."""
    from wayfield import plots

    side, texts = max(x.shape[2:]), wishes.texts
    labels = (wishes.cond or {}).get("label")
    classes = 1 if labels is None else len(labels.unique())
    columns = classes if classes > 1 else min(len(x), max(4, round(len(x) ** 0.5)))
    several = len(set(texts)) > 1
    words = plots.Labels(title="" if several else "".join(texts[:1]), captions=texts if several else ())
    scale, frame = max(1, (128 if side > 16 else 64) // side), int(side <= 16)
    font = 14 if texts else None
    return plots.save(path, plots.sheet(x, columns=columns, scale=scale, frame=frame, font=font, labels=words))


def _record(asks: Sample, order: _Order, counts: Counts) -> dict[str, Any]:
    """How the samples were drawn, enough to draw them again."""
    return {
        "format": "wayfield.samples",
        "version": 1,
        "model": asks.model,
        "label": asks.label,
        "prompts": list(asks.prompt),
        "negative": asks.negative,
        "seed": asks.seed,
        "first": asks.first,
        "samples": asks.n,
        "solver": repr(order.solver),
        "guidance": repr(order.wishes.guidance),
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
