"""Docstrings of the house as reStructuredText.

Docstrings are plain text with a few habits. `to_rst` turns each habit into the directive that shows it:

    name: text / name: text       a definition list; names are known ones, or at least two in a row
    indented after a blank line   a block of code
    ===== columns =====           a table; a row whose first cell is empty continues the row above
    References: and lines below   a list, one item for each line that ends a sentence
    .. directive::                as it is
    `name`                        code, linked by `links.py` where the name is one of ours

All other characters stand for themselves, also ``*``, ``|`` and ``_``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

__all__ = ["escape", "to_rst"]

_KEEP = re.compile(r"(:[a-z:]+:`[^`]+`|``.+?``|`[^`]+`|\*\*[^*\s](?:[^*]*[^*\s])?\*\*|(?<![\w*])\*[a-z]+\*(?![\w*]))")
_BORDER = re.compile(r"=+(?: +=+)*$")
_NAMES = r"[A-Za-z_]\w*'?(?:, [A-Za-z_]\w*'?)*"
_START = re.compile(rf"(?:^| / |(?<=\.) )({_NAMES}): ")
_ENUMERATOR = re.compile(r"(\(?(?:\d+|[A-Za-z#]|[ivxlcdm]+))([.)])(?=\s|$)")


def to_rst(lines: Sequence[str], names: Iterable[str] = ()) -> list[str]:
    """The lines of a dedented docstring as reStructuredText. names: parameters of the object, none for a module."""
    out: list[str] = []
    i, known = 0, frozenset(names)
    while i < len(lines):
        j = _end(lines, i)
        if j > i:
            out += [*_block(list(lines[i:j]), known), ""]
        i = max(j, i + 1)
    return out


def escape(text: str) -> str:
    """Text that shows literally; roles, ``literals``, **bold** and `names` are kept, the last as literals."""
    parts = _KEEP.split(text)
    for k, part in enumerate(parts):
        if k % 2 == 0:
            parts[k] = re.sub(r"([\\*|_`])", r"\\\1", part)
        elif part.startswith("`") and not part.startswith("``"):
            parts[k] = f"`{part}`"
    out = "".join(parts).replace("::", r":\:")
    out = _ENUMERATOR.sub(r"\1\\\2", out, count=1) if _ENUMERATOR.match(out) else out
    return "\\" + out if re.match(r"[-+:.=]", out) and not _KEEP.match(out) else out


def _end(lines: Sequence[str], i: int) -> int:
    """Where the block that starts at line i ends: i itself for a blank line."""
    j = i
    if _BORDER.match(lines[i]):
        borders = [k for k in range(i, len(lines)) if _BORDER.match(lines[k])]
        closing = [k for k in borders[1:] if k + 1 == len(lines) or not lines[k + 1].strip()]
        return closing[0] + 1 if closing else len(lines)
    if lines[i].startswith((".. ", "    ")):
        j += 1
        while j < len(lines) and (not lines[j].strip() or lines[j].startswith("  ")):
            j += 1
        return j
    while j < len(lines) and lines[j].strip() and not (j > i and lines[j].startswith(".. ")):
        j += 1
    return j


def _block(lines: list[str], known: frozenset[str]) -> list[str]:
    first = lines[0]
    if first.startswith(".. "):
        return lines
    if first.startswith("    "):
        return [".. code-block:: text", "", *lines]
    if _BORDER.match(first):
        return _table(lines)
    if re.fullmatch(r"References?:", first) and len(lines) > 1:
        return [first, "", *_items(lines[1:])]
    if first.startswith("- "):
        return _items([line.removeprefix("- ") if line.startswith("- ") else line for line in lines])
    return _paragraph(lines, known)


def _items(lines: Sequence[str]) -> list[str]:
    """A list whose items end where a line ends with a full stop."""
    items, text = [], ""
    for line in lines:
        text = f"{text} {line.strip()}".strip()
        if text.endswith("."):
            items, text = [*items, text], ""
    return [f"- {escape(item)}" for item in [*items, text] if item]


def _paragraph(lines: Sequence[str], known: frozenset[str]) -> list[str]:
    """A paragraph, cut where a line starts with "Raises" and where the definitions in it end, those laid out."""
    cuts = [0]
    for k, line in enumerate(lines[1:], 1):
        told = re.match(r"(Raises|Warns|Source:) ?", line)
        after = _START.search(lines[k - 1]) or (len(cuts) == 1 and _START.match(lines[0]))
        sentence = lines[k - 1].rstrip().endswith(".") and re.match(r"[A-Z][a-z]", line)
        if told or (after and sentence and not _found(line, known)):
            cuts.append(k)
    out: list[str] = []
    for a, b in pairwise([*cuts, len(lines)]):
        out += [*_definitions([line.strip() for line in lines[a:b]], known), ""]
    return out[:-1]


def _found(text: str, known: frozenset[str]) -> list[re.Match[str]]:
    """Where definitions start. Without known names, a capitalised word such as "Reference" or "Claim" is none."""

    def fits(name: str) -> bool:
        return name in known if known else len(name) < 3 or name[0].islower()

    return [m for m in _START.finditer(text) if all(fits(name) for name in m[1].split(", "))]


def _definitions(lines: Sequence[str], known: frozenset[str]) -> list[str]:
    """Text, then a list of definitions, if any: they start at a line's start, after " / " or after a full stop."""
    marked = [f" / {line}" if (m := _START.match(line)) and _found(m[0], known) else line for line in lines]
    text = " ".join(line.removesuffix(" /") for line in marked).strip().removeprefix("/ ")
    found = _found(text, known)
    if not found or (not known and len(found) < 2):
        return [escape(" ".join(lines))]
    head = text[: found[0].start()].strip()
    out = [*([escape(head), ""] if head else []), ".. rst-class:: names", ""]
    ends = [*(m.start() for m in found[1:]), len(text)]
    tail = ""
    for m, end in zip(found, ends, strict=True):
        body, raises, tail = text[m.end() : end].strip().partition(" Raises ")
        tail = f"{raises.strip()} {tail}".strip()
        out += [f"**{escape(m[1])}**", f"    {escape(body)}"]
    return [*out, "", escape(tail)] if tail else out


def _table(lines: Sequence[str]) -> list[str]:
    """A simple table as a list-table, in which cells need no padding."""
    columns = [m.span() for m in re.finditer(r"=+", lines[0])]
    spans = [(a, b) for (a, _), (b, _) in pairwise([*columns, (10_000, 0)])]
    heads = 1 if sum(bool(_BORDER.match(line)) for line in lines) > 2 else 0
    rows: list[list[str]] = []
    for line in lines:
        if _BORDER.match(line) or not line.strip():
            continue
        cells = [line[a:b].strip() for a, b in spans]
        if rows and not cells[0]:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    out = [".. list-table::", "    :widths: auto", f"    :header-rows: {heads}", ""]
    for row in rows:
        out += [f"    {'*' if k == 0 else ' '} - {escape(cell)}".rstrip() for k, cell in enumerate(row)]
    return out
