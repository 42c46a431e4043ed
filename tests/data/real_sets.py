"""Shared by the tests of real sets: skip where a package is absent, fail where its files are wrong."""

from __future__ import annotations

import pytest

from wayfield.core.errors import MissingExtraError
from wayfield.data.sources import find


def need(*names: str) -> None:
    """Skip the test unless the files of these sources are on this machine."""
    for name in names:
        try:
            find(name)
        except MissingExtraError:
            pytest.skip(f"the files of {name} are absent; run: make data")
