"""Some rows of a batch, known to the host, so that the others need not be evaluated.

A network's cost is its rows. Whoever wants an answer for part of the batch names that part by its indices in the whole
batch; unions and differences are taken on the host, and the device only ever gathers and scatters. None, wherever
`Rows` may stand, means the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

__all__ = ["Rows"]


@final
@dataclass(frozen=True)
class Rows:
    """index: rising positions in the whole batch / tensor: the same on the device, (b,) int64. Equal by index."""

    index: tuple[int, ...]
    tensor: Tensor = field(compare=False, repr=False)

    @staticmethod
    def of(index: Iterable[int], device: torch.device) -> Rows:
        """The rows at these positions, in rising order."""
        known = tuple(sorted(index))
        return Rows(known, torch.tensor(known, dtype=torch.int64, device=device))

    def within(self, outer: Rows | None) -> Tensor:
        """Where these rows stand among `outer`, which holds them all: (b,) int64 on the device."""
        if outer is None:
            return self.tensor
        place = {k: i for i, k in enumerate(outer.index)}
        return torch.tensor([place[k] for k in self.index], dtype=torch.int64, device=self.tensor.device)
