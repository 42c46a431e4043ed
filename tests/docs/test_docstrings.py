"""Docstrings of the house as reStructuredText: habits become lists, tables and code, all else stands for itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "docs" / "docstrings.py"
spec = importlib.util.spec_from_file_location("docstrings", FILE)
docstrings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docstrings)


def rst(text, *names):
    return "\n".join(docstrings.to_rst(text.splitlines(), names)).strip()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("points (B, *D) and E[x0 | x]", r"points (B, \*D) and E[x0 \| x]"),
        ("theta_ and c_in", r"theta\_ and c\_in"),
        ("see `Noise.draw` or ``x_``", "see ``Noise.draw`` or ``x_``"),
        ("it is **never so**, not *below* (y - y*)", r"it is **never so**, not *below* (y - y\*)"),
        (r"with :math:`m_i` (d,)", r"with :math:`m_i` (d,)"),
        ("1.", r"1\."),
        ("- eps / sigma over\nlines", "- eps / sigma over lines"),
        ("-log(x), accurate", r"\-log(x), accurate"),
        ("a \\ b", r"a \\ b"),
        ("either (x,\n- y), joined", "either (x, - y), joined"),
    ],
)
def test_text_stands_for_itself(text, shown):
    assert rst(text) == shown


def test_definitions_of_known_names():
    text = "Draw. Not w: yet.\n\nx: points / w, v: scales; a / b: kept\nlong: over\n  two lines.\nRaises RangeError."
    assert rst(text, "x", "w", "v", "long") == (
        "Draw. Not w: yet.\n\n.. rst-class:: names\n\n**x**\n    points\n**w, v**\n    scales; a / b: kept\n"
        "**long**\n    over two lines.\n\nRaises RangeError."
    )


def test_definitions_in_a_module_need_company_and_end_with_a_sentence():
    assert rst("Shapes: x (B,).") == "Shapes: x (B,)."
    assert rst("n: samples / rho: ramp-up.\nThe rest is text.") == (
        ".. rst-class:: names\n\n**n**\n    samples\n**rho**\n    ramp-up.\n\nThe rest is text."
    )


def test_tables_keep_their_cells():
    text = "===  ======\na    b\n===  ======\n`x`  (K, *D)\n     more\n===  ======"
    assert rst(text) == (
        ".. list-table::\n    :widths: auto\n    :header-rows: 1\n\n"
        "    * - a\n      - b\n    * - ``x``\n      - (K, \\*D) more"
    )
    assert ":header-rows: 0" in rst("=  =\nx  y\n=  =")


def test_code_directives_and_references():
    assert rst("Text.\n\n    a * b") == "Text.\n\n.. code-block:: text\n\n    a * b"
    assert rst("Text\n\n.. math:: a * b\n   c\n\nText") == "Text\n\n.. math:: a * b\n   c\n\n\nText"
    assert rst("References:\n    One, a\n    title, 2020.\n    Two, 2021.") == (
        "References:\n\n- One, a title, 2020.\n- Two, 2021."
    )
