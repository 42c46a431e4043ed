"""Sphinx configuration: pages in MyST Markdown by hand, a reference from docstrings, nothing fetched from elsewhere."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"
sys.path[:0] = [str(HERE), str(SOURCE)]

import docstrings  # noqa: E402
import generate  # noqa: E402
import links  # noqa: E402
import zoo_page  # noqa: E402

import wayfield  # noqa: E402

project = "wayfield"
author = copyright = "The wayfield developers"
version = release = wayfield.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["decisions/README.md"]

html_theme = "furo"
html_title = f"wayfield {release}"
html_static_path = ["_static"]
html_css_files = ["wayfield.css"]
html_copy_source = False
html_math_renderer = "mathml"
pygments_style, pygments_dark_style = "friendly", "monokai"

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"


def parameters(what: str, thing: Any) -> list[str]:
    """The names that a docstring may define: parameters of a function, or of a class's constructor."""
    if what == "module":
        return []
    try:
        return ["self", *inspect.signature(thing).parameters]
    except (TypeError, ValueError):
        return ["self"]


def rewrite(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Autodoc's hook for docstrings. Data without one of their own would show that of their class."""
    if what == "data" and "\n".join(lines).strip() == (inspect.getdoc(type(thing)) or "").strip():
        lines.clear()
    if isinstance(thing, property) or what in ("data", "attribute"):
        lines[:] = docstrings.to_rst(lines, ["self"])
    else:
        lines[:] = docstrings.to_rst(lines, parameters(what, thing))


def sign(app: Sphinx, what: str, name: str, thing: Any, options: Any, args: str | None, result: str | None) -> Any:
    """Autodoc's hook for signatures: without marks that are meant for a parser of command lines.

    Defaults made by a function read `<factory>`, which is no Python and would leave the signature unread.
    """
    if not args:
        return None
    args = args.replace("<factory>", "...")
    while found := re.search(r"~?(?:typing\.)?Annotated\[", args):
        first = _inner(args, found.end(), ",]")
        args = args[: found.start()] + args[found.end() : first] + args[_inner(args, first, "]") + 1 :]
    return args, result


def _inner(text: str, start: int, ends: str) -> int:
    """Where one of `ends` comes next outside of brackets."""
    depth = 0
    for k in range(start, len(text)):
        if depth == 0 and text[k] in ends:
            return k
        depth += (text[k] in "([{") - (text[k] in ")]}")
    return len(text)


def skip(app: Sphinx, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Autodoc's hook for members: fields of tuples and undocumented attributes are in the signature already."""
    if what == "module" or skipped:
        return None
    if type(thing).__name__ in ("_tuplegetter", "member_descriptor"):
        return True
    undocumented = not (inspect.isroutine(thing) or isinstance(thing, property) or inspect.isclass(thing))
    return True if undocumented or not inspect.getdoc(thing) else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    top = {name: f"{getattr(wayfield, name).__module__}.{name}" for name in wayfield.__all__ if name[0] != "_"}
    links.setup(app, SOURCE / "wayfield", top)
    found = links.Links.inventory
    generate.write(HERE, found.members, found.offered)
    zoo_page.write(HERE)
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
