r"""Post-hoc averages: the weights that another averaging length would have given, from snapshots of two.

The best averaging length is known only after the training. If a few snapshots of two power averages were kept, the
average of any other width, ending at any time, is close to a linear combination of them: the one whose profile over
training time is nearest in the least-squares sense.

.. math:: p_{n,\gamma}(\tau) = \frac{(\gamma + 1)\, \tau^\gamma}{n^{\gamma + 1}}, \; 0 \le \tau \le n, \qquad
   \langle p_{a,\gamma}, p_{b,\delta} \rangle =
   \frac{(\gamma + 1)(\delta + 1)\, m^{\gamma + \delta + 1}}{(\gamma + \delta + 1)\, a^{\gamma + 1} b^{\delta + 1}},
   \; m = \min(a, b), \qquad A c = b, \; c \leftarrow c / \textstyle\sum c

A: (K, K) products of the snapshots' profiles / b: (K,) products with the wanted one / c: (K,) the combination. It is
exact where the wanted profile is one of the kept, and for weights that did not move.

Reference: Karras et al. 2024 (EDM2), arXiv 2312.02696, section 3 and appendix C.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import NamedTuple

import torch
from torch import Tensor

from wayfield import files
from wayfield.core.errors import CheckpointError, RangeError
from wayfield.train.checks import check_number
from wayfield.train.ema import power_gamma

__all__ = ["Snapshot", "posthoc_weights", "read_snapshots", "synthesise", "write_snapshot"]


class Snapshot(NamedTuple):
    """One power average at one time: samples seen, relative width, tensors by name."""

    seen: int
    width: float
    tensors: Mapping[str, Tensor]


def posthoc_weights(seen: Sequence[float], widths: Sequence[float], *, at: float, width: float) -> Tensor:
    """The combination c (K,), float64, sum 1, of K snapshots (seen_k, width_k) nearest to the average (at, width).

    at: samples seen, at most the latest snapshot / width: relative, in (0, 0.2886]. Raises RangeError.
    """
    if not seen or len(seen) != len(widths):
        got, expected = (len(seen), len(widths)), "equally many, at least 1"
        raise RangeError("snapshots", got=got, expected=expected, remedy="Give a time and a width for each.")
    for n in seen:
        check_number("samples seen of a snapshot", n, 0, open_low=True)
    check_number("wanted samples seen", at, 0, max(seen), open_low=True)
    n, g = torch.tensor(seen, dtype=torch.float64), torch.tensor([power_gamma(w) for w in widths], dtype=torch.float64)
    a, b = _product(n[:, None], g[:, None], n, g), _product(n, g, torch.tensor(at).double(), power_gamma(width))
    scale = a.diagonal().rsqrt()  # unit profiles: the system is ill-conditioned enough without their lengths
    solution = torch.linalg.lstsq(scale[:, None] * a * scale, (scale * b)[:, None], driver="gelsd").solution[:, 0]
    c = scale * solution
    return c / c.sum()


def _product(n: Tensor, g: Tensor, m: Tensor, h: Tensor | float) -> Tensor:
    """The inner product of two profiles, in ratios so that nothing overflows; all float64, broadcast together."""
    least = torch.minimum(n, m)
    return (g + 1) * (h + 1) / (g + h + 1) * (least / n) ** g * (least / m) ** h * least / (n * m)


def synthesise(snapshots: Sequence[Snapshot], width: float, *, at: float | None = None) -> dict[str, Tensor]:
    """The tensors that an average of relative `width` would hold after `at` samples (by default: the latest snapshot).

    Integers are taken from the latest snapshot. Sums are float64, results of the snapshots' types. Raises RangeError.
    """
    seen = [s.seen for s in snapshots]
    c = posthoc_weights(seen, [s.width for s in snapshots], at=max(seen, default=1) if at is None else at, width=width)
    latest, out = snapshots[seen.index(max(seen))], {}
    for name, last in latest.tensors.items():
        total = sum((w * s.tensors[name].double() for w, s in zip(c.tolist(), snapshots, strict=True)), torch.zeros(()))
        out[name] = total.to(last.dtype) if last.is_floating_point() else last.clone()
    return out


def write_snapshot(folder: str | os.PathLike[str], snapshot: Snapshot) -> None:
    """Keep one snapshot as `folder`/SEEN-WIDTH.safetensors, atomically."""
    name = f"{snapshot.seen:012d}-{snapshot.width:g}.safetensors"
    record = {"format": "wayfield.snapshot", "seen": snapshot.seen, "width": snapshot.width}
    files.write(FilePath(folder) / name, snapshot.tensors, record)


def read_snapshots(folder: str | os.PathLike[str]) -> list[Snapshot]:
    """All snapshots of a folder, oldest first. Raises CheckpointError if there is none or one is not a snapshot."""
    found = []
    for path in sorted(FilePath(folder).glob("*.safetensors")):
        tensors, record = files.read(path)
        if record.get("format") != "wayfield.snapshot":
            got, remedy = repr(record.get("format")), "Keep snapshots in a folder of their own."
            raise CheckpointError(f"file {os.fspath(path)!r}", got=got, expected="a snapshot", remedy=remedy)
        found.append(Snapshot(record["seen"], record["width"], tensors))
    if not found:
        remedy = "Train with PowerEMA and snapshot_every > 0."
        raise CheckpointError(f"folder {os.fspath(folder)!r}", got="no snapshots", expected="some", remedy=remedy)
    return found
