"""Figures and tables: closed forms of their errors, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from wayfield.core.errors import NonFiniteError, RangeError, ShapeError
from wayfield.zoo.judging import Figure, Sheet, Table, share


def test_a_share_has_its_count_and_a_standard_error():
    found = share([True, True, False, True], "m")
    assert found.value == 0.75
    assert found.count == 4
    assert found.error == pytest.approx(math.sqrt((4 / 6) * (2 / 6) / 4))
    assert share([True] * 98, "m").error == pytest.approx(math.sqrt(0.99 * 0.01 / 98))  # not 0


def test_figures_become_plain_rounded_values():
    assert Figure(1 / 3000, "a part").to_json() == {"value": 0.0003333, "meaning": "a part"}
    assert list(share([True], "m").to_json()) == ["value", "error", "count", "meaning"]


def test_tables_keep_gaps():
    table = Table("t", "m", ("a", "b"), {"x": [1 / 3, None]})
    assert table.to_json() == {"title": "t", "meaning": "m", "columns": ["a", "b"], "rows": {"x": [0.3333, None]}}


def test_what_is_wrong_is_refused():
    with pytest.raises(NonFiniteError, match="distance"):
        Figure(math.nan, "distance")
    with pytest.raises(RangeError, match="no samples"):
        share([], "m")
    with pytest.raises(ShapeError, match="'x'"):
        Table("t", "m", ("a", "b"), {"x": [1.0]})
    with pytest.raises(ShapeError, match="5 pictures"):
        Sheet(torch.zeros(5, 1, 2, 2), columns=2)
    with pytest.raises(ShapeError, match="1 names"):
        Sheet(torch.zeros(4, 1, 2, 2), columns=2, rows=("a",))
