"""Which class a sample is confused with, how much, and what a class is to the model: the parts that GFCG is made of.

Everything takes log-probabilities log_q (b, K) of a classifier and the samples' own classes y (b,), and works row by
row on the device. A class becomes a condition of the model by its number, or by its row in a table of conditions, such
as the tokens of one prompt for each class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import isfinite, log
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, RangeError, ShapeError, unknown_name
from wayfield.field.ask import Ask
from wayfield.field.binding import COND, Query
from wayfield.guide.judged import labels_of

__all__ = [
    "CONFUSIONS",
    "Classes",
    "Table",
    "Temperature",
    "conditions",
    "confusion",
    "frozen_table",
    "points_of",
    "tempered",
    "top_wrong",
]

CONFUSIONS = ("p", "ratio", "gate", "always")
Table = tuple[tuple[str, tuple[Any, ...]], ...]
"""(name of a field, its value for each class), for each field that tells the class."""
Temperature = float | tuple[tuple[float, float], ...]
"""One for all levels, or (log-SNR, T) with log-SNR rising."""


def top_wrong(log_q: Tensor, y: Tensor, m: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """log q of y (b,), of the m likeliest other classes (b, m), falling, and these classes (b, m), never y."""
    log_q = log_q.clamp(min=torch.finfo(log_q.dtype).min)  # so that y, at -inf, is below what has no probability
    top, rho = log_q.scatter(1, y[:, None], -torch.inf).topk(m, 1)
    return log_q.gather(1, y[:, None])[:, 0], top, rho


def confusion(mine: Tensor, top: Tensor, rule: str | float) -> Tensor:
    """kappa in [0, 1], (b,), from log q of the class and of the likeliest wrong one, (b,) both; NaN where they are.

    rule: "p", 1 - q_y / "ratio", q_rho / (q_y + q_rho) / "gate", whether q_rho > q_y / a number, whether q_y is below
    it / "always", 1.
    """
    if rule == "p":
        return -torch.expm1(mine)
    if rule == "ratio":
        return torch.sigmoid(top - mine)
    if rule == "always":
        kappa = torch.ones_like(mine)
    else:
        kappa = (top > mine if isinstance(rule, str) else mine < log(rule)).to(mine.dtype)
    return torch.where(mine.isnan(), mine, kappa)  # a comparison would hide it


@final
class Classes(NamedTuple):
    """What each class is to the model. field: of the integer that numbers it / table: or of each field its values by
    class, tensors (K, ...) on the host / bounds: their least and largest.
    """

    field: str
    table: Mapping[str, Tensor]
    bounds: Mapping[str, tuple[float, float]]

    @staticmethod
    def of(field: str, table: Table | None) -> Classes:
        """From what a part keeps. Raises ShapeError for rows that are no numbers, or of several sizes."""
        try:
            made = {name: torch.tensor(rows) for name, rows in table or ()}
        except (TypeError, ValueError) as error:
            remedy = "Give every class as many numbers, e.g. a tensor (K, ...)."
            raise ShapeError(
                "classes of GFCG", got=str(error), expected="(K, ...) of each field", remedy=remedy
            ) from error
        return Classes(field, made, {name: (float(r.min()), float(r.max())) for name, r in made.items()})

    def own(self, ask: Ask, K: int) -> tuple[Tensor, Tensor]:
        """The class of each sample (b,), and whether it has one (b,). K: classes of the classifier.

        Raises ConditionError, ShapeError, RangeError or UnknownNameError where classifier, table and model do not fit.
        """
        if not self.table:
            return self._numbered(ask, K)
        self._check(ask, K)
        cond, same = conditions(ask, COND), []
        for name, rows in self.table.items():
            mine, table = cond[name], rows.to(device=cond[name].device, dtype=cond[name].dtype)
            same.append((mine[:, None] == table).reshape(len(mine), K, -1).all(2))
        equal = torch.stack(same).all(0)
        return equal.to(torch.uint8).argmax(1), equal.any(1)

    def told(self, ask: Ask, k: Tensor) -> dict[str, Tensor]:
        """The conditions of these samples with classes k (b,) instead of their own."""
        cond = conditions(ask, COND)
        if not self.table:
            return cond | {self.field: k.to(cond[self.field].dtype)}
        rows = {name: rows.to(device=k.device, dtype=cond[name].dtype) for name, rows in self.table.items()}
        return cond | {name: each.index_select(0, k) for name, each in rows.items()}

    def _numbered(self, ask: Ask, K: int) -> tuple[Tensor, Tensor]:
        label, null = labels_of(ask, self.field, K)
        values = ask.binding.nets["main"].schema.fields[self.field].values
        assert values is not None
        classes = values - (null == values - 1)
        if classes < K:
            remedy = "Use a classifier of the same labels, in the same order: the model is asked for every class."
            raise RangeError("classes of the classifier", got=K, expected=f"{classes}, as the model has", remedy=remedy)
        known = torch.ones_like(label, dtype=torch.bool) if null is None else label != null
        return torch.where(known, label, 0), known

    def _check(self, ask: Ask, K: int) -> None:
        """From facts of the host."""
        schema = ask.binding.nets["main"].schema
        if ask.binding.given.get("cond") is None:
            remedy = "Pass cond=... to sample, for each sample one of the classes."
            raise ConditionError("condition of GFCG", got="none", expected="one of the classes", remedy=remedy)
        for name, rows in self.table.items():
            if name not in schema.fields:
                raise unknown_name("condition field", name, schema.fields)
            field, (low, high) = schema.fields[name], self.bounds[name]
            got, want = tuple(rows.shape), (K, *field.shape)
            if got != want:
                remedy = "Give one row for each logit of the classifier, in its order."
                raise ShapeError(f"classes, field {name!r}", got=got, expected=want, remedy=remedy)
            if field.values is not None and not 0 <= low <= high < field.values:
                got, expected = f"{low:g}..{high:g}", f"0..{field.values - 1}"
                remedy = "Use values that the model knows."
                raise RangeError(f"classes, field {name!r}", got=got, expected=expected, remedy=remedy)


def conditions(ask: Ask, query: Query) -> dict[str, Tensor]:
    """The condition of a query at the rows of `ask`."""
    cond = ask.binding.cond(query)
    if ask.rows is None:
        return dict(cond)
    return {name: value.index_select(0, ask.rows.tensor) for name, value in cond.items()}


def frozen_table(given: Mapping[str, Any] | Table | None) -> Table | None:
    """A table as nested tuples of numbers, which can be compared and kept. given: name -> (K, ...).

    Raises RangeError for fewer than two classes, or two that are equal.
    """
    if given is None:
        return None
    pairs = given.items() if isinstance(given, Mapping) else given
    table = tuple((str(name), _nested(rows)) for name, rows in pairs)
    counts = {len(rows) for _, rows in table}
    if len(counts) != 1 or min(counts) < 2:
        got = {name: len(rows) for name, rows in table}
        remedy = "Give every field one value for each class."
        raise RangeError("classes of GFCG", got=got, expected="as many of each field, 2 at least", remedy=remedy)
    if len(set(zip(*(rows for _, rows in table), strict=True))) < min(counts):
        remedy = "A sample could not be told which class it is of."
        raise RangeError("classes of GFCG", got="two that are equal", expected="different ones", remedy=remedy)
    return table


def points_of(given: float | Sequence[Sequence[float]]) -> Temperature:
    """A temperature as a number or as nested tuples. Raises RangeError for values that are not > 0 and finite, or
    levels that do not rise.
    """
    if isinstance(given, (int, float)):
        points, values = (), (given,)
    else:
        points = tuple((float(at), float(T)) for at, T in given)
        values = tuple(T for _, T in points)
    rising = all(a < b for (a, _), (b, _) in pairwise(points)) and all(isfinite(at) for at, _ in points)
    if not values or not rising or not all(T > 0 and isfinite(T) for T in values):
        expected = "> 0 and finite, or points (log-SNR, T) with log-SNR rising"
        remedy = "1 leaves the logits as they are, more makes them less sure."
        raise RangeError("temperature", got=given, expected=expected, remedy=remedy)
    return points or values[0]


def tempered(logits: Tensor, temperature: Temperature, ask: Ask) -> Tensor:
    """logits (b, K) divided by the temperature of the level, linear in log-SNR between points."""
    if not isinstance(temperature, tuple):
        return logits / temperature
    level, (_, first) = ask.level, temperature[0]
    at = 2 * (level.alpha.to(logits.dtype).log() - level.sigma.to(logits.dtype).log())
    T = torch.full_like(at, first)
    for (a, u), (b, v) in pairwise(temperature):
        T = T + (v - u) / (b - a) * (at - a).clamp(0, b - a)
    return logits / (T if T.ndim == 0 else T.reshape(-1, 1))


def _nested(rows: Any) -> tuple[Any, ...]:
    rows = rows.tolist() if isinstance(rows, Tensor) else rows
    return tuple(_nested(row) if isinstance(row, (list, tuple, Tensor)) else row for row in rows)
