"""A training in TensorBoard: losses and rates as curves, sheets of samples as pictures.

    tensorboard --logdir RUN         shows what lies in RUN/tensorboard

A run that goes on from a checkpoint repeats the steps after it. The first entry of each start tells TensorBoard to
forget what earlier files said of that step and later ones, so that nothing appears twice. The package `tensorboard` is
imported when a board is made; it writes from a thread of its own, and no number of the training depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, final

import torch

from wayfield.core.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BOARD", "Board"]

BOARD = "tensorboard"


@final
class Board:
    """Writes event files into a folder, from the first entry on. Raises MissingExtraError without tensorboard."""

    def __init__(self, folder: FilePath) -> None:
        self._folder, self._made = folder, None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            remedy = 'Run: pip install "wayfield[tensorboard]".'
            got, expected = "no tensorboard", "tensorboard >= 2.18"
            raise MissingExtraError("--tensorboard", got=got, expected=expected, remedy=remedy) from error
        self._make = SummaryWriter

    def line(self, entry: Mapping[str, float]) -> None:
        """Add a line of the log."""
        step = int(entry["step"])
        writer = self._writer(step)
        for name, value in entry.items():
            if name != "step":
                writer.add_scalar(name, value, step)
        writer.flush()  # a training can be killed at any moment

    def picture(self, image: Image, step: int) -> None:
        """Add a sheet of samples."""
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
        writer = self._writer(step)
        writer.add_image("samples", pixels, step, dataformats="HWC")
        writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._made is not None:
            self._made.close()

    def _writer(self, step: int) -> Any:
        if self._made is None:
            self._made = self._make(str(self._folder), purge_step=step)
        return self._made
