"""What a person sees of a training: what begins, how it goes, how long it will take, and sheets of samples on the way.

    OUT/samples/step-000500.png     the same noise and the same conditions each time, drawn from the averaged weights

A sheet has up to eight columns, one per class, and four rows; DPM-Solver++ 2M needs sixteen network calls for it. A
network of latents is drawn through its codec. What cannot be written is left out with a warning (`train.watch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import final

import torch

from wayfield import plots, registry
from wayfield.core.errors import UnsupportedError
from wayfield.data.dataset import Dataset
from wayfield.doors.board import Board
from wayfield.field.cond import Cond
from wayfield.sampling import sample
from wayfield.solve import DPM2M
from wayfield.train.config import TrainConfig
from wayfield.train.task import Denoising, Task
from wayfield.train.watch import Watch, not_written

__all__ = ["SAMPLES", "Watching"]

SAMPLES = "samples"
_COLUMNS, _ROWS, _STEPS = 8, 4, 16


@final
class Watching(Watch):
    """Follows one training.

    out: folder of the run / say: prints a line for people / lines: whether each line of the log is printed too, for
    where no progress bar is / board: TensorBoard's, None for none.
    """

    def __init__(self, out: FilePath, say: Callable[[str], None], *, lines: bool, board: Board | None = None) -> None:
        self._out, self._say, self._lines, self._board = out, say, lines, board
        self._config, self._cond, self._columns, self._told = TrainConfig(), None, _COLUMNS, False

    def begin(self, task: Task, dataset: Dataset, config: TrainConfig, step: int) -> None:
        """Say what begins. Raises UnsupportedError if samples are asked for of what draws no pictures."""
        self._config = config
        if config.sample_every:
            shape = _pictures(task, dataset)
            if shape is None:
                got, remedy = f"a training of {type(task.net).__name__} on {dataset.shape}", "Set sample_every = 0."
                raise UnsupportedError("samples on the way", got=got, expected="a model of pictures", remedy=remedy)
            self._cond, self._columns = _wishes(task, dataset)
        if skipped := getattr(dataset, "skipped", ()):
            more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
            self._say(f"left out {len(skipped):,} damaged files: {', '.join(skipped[:3])}{more}")
        size = sum(p.numel() for p in task.net.parameters())
        self._say(
            f"{len(dataset):,} samples of {' x '.join(map(str, dataset.shape))}{_classes(task)}; "
            f"{type(task.net).__name__} of {size:,} parameters; {_start(step)}{config.steps:,} steps of {config.batch} "
            f"in {config.precision}"
        )

    def line(self, entry: Mapping[str, float]) -> None:
        """Say how it goes and, once, how long it will take."""
        if self._lines:
            self._say(
                f"step {entry['step']:>6}  loss {entry['loss']:.4f}  gradient {entry['grad_norm']:.3f}  "
                f"{entry['samples_per_second']:,.0f} samples/s"
            )
        left = (self._config.steps - entry["step"]) * self._config.batch / entry["samples_per_second"]
        if not self._told and left:
            self._say(f"about {_duration(left)} to go")
        self._told = True
        self._show(lambda board: board.line(entry))

    def sample(self, task: Task, step: int) -> None:
        """Draw the sheet and write it."""
        assert isinstance(task, Denoising)  # `begin` has refused the others
        model, codec = task.denoiser, task.latents
        device = next(model.net.parameters()).device
        x = sample(
            model,
            registry.grid("karras", model.path, _STEPS),
            samples=self._columns * _ROWS,
            cond=self._cond,
            solver=DPM2M(),
            device=device,
        ).x
        if codec is not None:
            with torch.no_grad():
                x = codec.codec.to(device).decode(x)
        scale = max(1, 64 // x.shape[-1])
        colours = x.expand(-1, 3, -1, -1)  # the theme's scale for one channel would show photographs as negatives
        image = plots.sheet(colours, columns=self._columns, scale=scale, frame=int(x.shape[-1] <= 16))
        plots.save(self._out / SAMPLES / f"step-{step:06d}.png", image)
        self._show(lambda board: board.picture(image, step))

    def close(self) -> None:
        """Write what TensorBoard has not yet got."""
        self._show(Board.close)

    def _show(self, use: Callable[[Board], None]) -> None:
        """Use the board, if there is one; a disk that is full ends it, not the training."""
        if self._board is not None:
            try:
                use(self._board)
            except OSError as error:
                self._board = None
                not_written("what TensorBoard shows from here on", error)


def _pictures(task: Task, dataset: Dataset) -> tuple[int, ...] | None:
    """The shape of what can be drawn from the task, None if that is no picture."""
    if not isinstance(task, Denoising):
        return None
    shape = dataset.shape if task.latents is None else task.latents.codec.shape
    return shape if shape is not None and len(shape) == 3 and shape[0] in (1, 3) else None


def _wishes(task: Task, dataset: Dataset) -> tuple[Cond | None, int]:
    """The conditions of a sheet, and its columns: classes in turn, or else those of samples spread over the data."""
    schema = task.schema
    if not schema.fields:
        return None, _COLUMNS
    label = schema.fields.get("label")
    if set(schema.fields) == {"label"} and label is not None and label.values is not None:
        null = (schema.null or {}).get("label")
        classes = [k for k in range(label.values) if k != null][:_COLUMNS]
        return {"label": torch.tensor(classes * _ROWS)}, len(classes)
    count = _COLUMNS * _ROWS
    _, cond = dataset.batch([k * len(dataset) // count for k in range(count)])
    return {name: cond[name] for name in schema.fields}, _COLUMNS


def _classes(task: Task) -> str:
    label = task.schema.fields.get("label")
    if label is None or label.values is None:
        return ""
    return f" in {label.values - ('label' in (task.schema.null or {}))} classes"


def _start(step: int) -> str:
    return f"{step:,} done of " if step else ""


def _duration(seconds: float) -> str:
    """A time that a person can use: 40 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
