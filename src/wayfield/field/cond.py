"""Conditions: what a model may be told, checked once at the border and then carried as named batch-first tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from wayfield.core.errors import ConditionError, unknown_name

__all__ = ["Cond", "Field", "Schema", "concat"]

Cond = Mapping[str, Tensor]


@final
@dataclass(frozen=True)
class Field:
    """One named input: shape per sample, dtype name, and for integers the number of allowed values."""

    shape: tuple[int, ...] = ()
    dtype: str = "int64"
    values: int | None = None

    def spread(self, x: Any, batch: int, device: torch.device | str) -> Tensor:
        """One value for all rows: (batch, *shape) on `device`."""
        if not self.shape and isinstance(x, (int, float)):
            return torch.full((batch,), x, dtype=getattr(torch, self.dtype), device=device)
        one = torch.as_tensor(x, dtype=getattr(torch, self.dtype), device=device)
        return one.reshape(self.shape).expand(batch, *self.shape)

    def check(self, name: str, x: Any, batch: int, device: torch.device) -> Tensor:
        """The tensor (batch, *shape) on `device`; one value serves all rows. Raises ConditionError on a misfit."""
        dtype = getattr(torch, self.dtype)
        x = torch.as_tensor(x)
        if x.is_floating_point() != dtype.is_floating_point:
            raise ConditionError(f"condition {name!r}", got=x.dtype, expected=self.dtype, remedy="Cast it.")
        if tuple(x.shape) == self.shape:
            x = x.expand(batch, *self.shape)
        if tuple(x.shape) != (batch, *self.shape):
            raise ConditionError(
                f"condition {name!r}", got=tuple(x.shape), expected=(batch, *self.shape), remedy="One row per sample."
            )
        if self.values is not None and x.numel():
            low, high = (int(v) for v in x.aminmax())
            if low < 0 or high >= self.values:
                raise ConditionError(
                    f"condition {name!r}",
                    got=f"{low}..{high}",
                    expected=f"0..{self.values - 1}",
                    remedy="Use a value the model knows.",
                )
        return x.to(device=device, dtype=dtype)


@final
@dataclass(frozen=True)
class Schema:
    """The conditions of a model. fields: by name / null: the value of each field that means "no condition", or None if
    there is none / optional: fields that may be left out, and what they then are.
    """

    fields: Mapping[str, Field] = field(default_factory=dict)
    null: Mapping[str, Any] | None = None
    optional: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.null is not None and set(self.null) != set(self.fields):
            raise ConditionError(
                "null condition",
                got=sorted(self.null),
                expected=sorted(self.fields),
                remedy="Give a null value for every field.",
            )
        if self.null is not None:  # checked once here, trusted by bind_null
            self.bind(self.null, 1, torch.device("cpu"))

    def bind(self, cond: Mapping[str, Any] | None, batch: int, device: torch.device | str) -> Cond:
        """A checked condition for `batch` rows. None means the null condition. Raises ConditionError or
        UnknownNameError.
        """
        device = torch.device(device)
        if cond is None:
            return self.bind_null(batch, device)
        for name in cond:
            if name not in self.fields:
                raise unknown_name("condition", name, self.fields or ("(this model takes none)",))
        missing = sorted(set(self.fields) - set(cond) - set(self.optional))
        if missing:
            raise ConditionError("condition", got=sorted(cond), expected=sorted(self.fields), remedy=f"Add {missing}.")
        given = {**self.optional, **cond}
        return {name: f.check(name, given[name], batch, device) for name, f in self.fields.items()}

    def bind_null(self, batch: int, device: torch.device | str) -> Cond:
        """The null condition for `batch` rows. Raises ConditionError if the model has none."""
        if not self.fields:
            return {}
        if self.null is None:
            raise ConditionError(
                "null condition",
                got="a model without one",
                expected="a model trained with label dropping",
                remedy="Give a condition, use w = 1, pass null= (diffusers models), or train with drop > 0.",
            )
        return {name: f.spread(self.null[name], batch, device) for name, f in self.fields.items()}


def concat(conds: list[Cond]) -> Cond:
    """Rows of several conditions with the same fields, one after another; of one, that one."""
    if len(conds) == 1:
        return conds[0]
    return {name: torch.cat([c[name] for c in conds]) for name in conds[0]}
