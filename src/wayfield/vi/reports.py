r"""What diagnostics answer: the gradient of every parameter, a test for bias, the fit of a guide; printed as tables.

Shapes: mean, variance and z those of the parameter. The formulas are in `vi.diagnose`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from wayfield.core.errors import unknown_name
from wayfield.vi.weights import pareto_limit

__all__ = ["BiasTest", "GradientReport", "GradientRow", "GuideReport"]


@final
@dataclass(frozen=True, eq=False)
class GradientRow:
    """One parameter's gradient over independent draws, each (*shape), float64; variance: of one draw, per entry."""

    name: str
    mean: Tensor = field(repr=False)
    variance: Tensor = field(repr=False)
    draws: int
    reached: bool = True

    @property
    def norm(self) -> float:
        """Of the expected gradient, without what noise adds to it."""
        square = float(self.mean.square().sum() - self.variance.sum() / self.draws)
        return math.sqrt(max(square, 0.0))

    @property
    def noise(self) -> float:
        """Standard deviation of one draw, over all entries."""
        return math.sqrt(float(self.variance.sum()))

    @property
    def snr(self) -> float:
        """Signal to noise of one draw; NaN where there is neither. Below 1 / sqrt(draws) it cannot be told from 0."""
        return self.norm / self.noise if self.noise else (math.inf if self.norm else math.nan)

    @property
    def error(self) -> Tensor:
        """Standard error of the mean, per entry."""
        return (self.variance / self.draws).sqrt()


@final
@dataclass(frozen=True, eq=False)
class GradientReport:
    """The gradient of every parameter, and the objective's value, over independent draws; printed as a table.

    value, value_std: mean and standard deviation of one draw of the objective.
    """

    rows: tuple[GradientRow, ...]
    value: float
    value_std: float
    draws: int

    def __getitem__(self, name: str) -> GradientRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise unknown_name("parameter", name, [row.name for row in self.rows])

    def __str__(self) -> str:
        head = ("parameter", "shape", "mean", "std", "signal/noise")
        body = [
            (r.name, str(tuple(r.mean.shape)), f"{r.norm:.4g}", f"{r.noise:.4g}", f"{r.snr:.3g}")
            if r.reached
            else (r.name, str(tuple(r.mean.shape)), "no gradient", "", "")
            for r in self.rows
        ]
        said = f"value {self.value:.5g} (std {self.value_std:.3g} a draw), {self.draws} draws; norms over all entries"
        return f"{_table(head, body)}\n{said}"


@final
@dataclass(frozen=True, eq=False)
class BiasTest:
    """Is the mean gradient that of the reference? False alarms have at most the probability `false_alarm`.

    z: differences in standard errors, by parameter / limit: the largest |z| that passes / value_z: of the objective's
    values, not part of the verdict; None for a reference without one.
    """

    z: Mapping[str, Tensor] = field(repr=False)
    limit: float
    false_alarm: float
    draws: int
    value_z: float | None = None

    @property
    def entries(self) -> int:
        """How many numbers were compared."""
        return sum(z.numel() for z in self.z.values())

    @property
    def largest(self) -> float:
        """The largest |z|."""
        return max((float(z.abs().max()) for z in self.z.values() if z.numel()), default=0.0)

    @property
    def p_value(self) -> float:
        """At most this often is the largest |z| as large without a bias."""
        return min(1.0, self.entries * math.erfc(self.largest / math.sqrt(2)))

    @property
    def passed(self) -> bool:
        """No bias was seen."""
        return self.largest <= self.limit

    def __str__(self) -> str:
        body = [(k, str(tuple(z.shape)), f"{float(z.abs().max()) if z.numel() else 0:.2f}") for k, z in self.z.items()]
        verdict = "no bias seen" if self.passed else "BIASED"
        said = f"{verdict}: largest |z| {self.largest:.2f} of {self.entries}, limit {self.limit:.2f} "
        said += f"(false alarms {self.false_alarm:g}), p <= {self.p_value:.2g}, {self.draws} draws"
        return f"{_table(('parameter', 'shape', 'max |z|'), body)}\n{said}"


@final
@dataclass(frozen=True, eq=False)
class GuideReport:
    """How well a guide covers a model, by its importance weights; each (*batch), () without rows.

    elbo: mean log weight / elbo_error: its standard error / evidence: log of the mean weight, an estimate of log P(y)
    from below / ess: effective sample size, of `draws` / k: Pareto shape of the tail; above `limit` neither the
    evidence nor ESS can be trusted.
    """

    elbo: Tensor
    elbo_error: Tensor
    evidence: Tensor
    ess: Tensor
    k: Tensor
    draws: int

    @property
    def limit(self) -> float:
        """See `pareto_limit`."""
        return pareto_limit(self.draws)

    @property
    def trusted(self) -> Tensor:
        """Rows whose tail is light enough, boolean."""
        return self.k < self.limit

    def __str__(self) -> str:
        rows = self.k.numel()
        head = ("", "value") if rows == 1 else ("", "median", "worst row")
        worst = {"elbo": -1, "log evidence": -1, "ESS": -1, "Pareto k": 1}
        values = {"elbo": self.elbo, "log evidence": self.evidence, "ESS": self.ess, "Pareto k": self.k}
        body = [
            (
                name,
                f"{float(v.median()):.4g}",
                *([f"{float(v.max() if worst[name] > 0 else v.min()):.4g}"] * (rows > 1)),
            )
            for name, v in values.items()
        ]
        bad = rows - int(self.trusted.sum())
        said = f"{self.draws} draws; Pareto k is "
        if bad:
            where = f" in {bad} of {rows} rows" if rows > 1 else ""
            said += f"above {self.limit:.2f}{where}: the guide misses mass, trust neither evidence nor ESS there"
        else:
            said += f"below {self.limit:.2f}, as it should be"
        return f"{_table(head, body)}\n{said}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        [c.ljust(w) if k == 0 else c.rjust(w) for k, (c, w) in enumerate(zip(r, widths, strict=True))]
        for r in (head, *body)
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)
