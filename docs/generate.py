"""Pages that follow from the code: one for each module, their index, and the table of methods.

Nothing that is written here is committed: conf.py calls `write` at the start of a build.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from wayfield import registry

__all__ = ["write"]

PACKAGE = "wayfield"
PARTS = (
    ("Core", ("core",)),
    ("Networks", ("field",)),
    ("Guidance", ("guide", "fitting")),
    ("Solvers", ("solve",)),
    ("Sampling", ("sampling",)),
    ("Training", ("train",)),
    ("Variational inference", ("vi",)),
    ("Data and models", ("data", "zoo")),
    ("Measures", ("measure",)),
    ("Methods, recipes and comparisons", ("registry", "recipes", "bench")),
    ("Files, pictures and the command line", ("files", "progress", "plots", "demo", "html", "cli", "doors")),
)


Members = Mapping[str, Mapping[str, str]]


def write(docs: Path, members: Members, offered: Mapping[str, list[str]]) -> None:
    """Write all pages into `docs` and remove those of modules that are gone.

    members, offered: see `links.Inventory`.
    """
    folder = docs / "api"
    folder.mkdir(exist_ok=True)
    pages = {f"{m}.rst": "\n".join(_page(m, members, offered[m])) for m in members if m != PACKAGE}
    pages["index.rst"] = "\n".join(_index(members, offered[PACKAGE]))
    for old in folder.glob("*.rst"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        _keep(folder / name, text)
    _keep(docs / "methods.md", "\n".join(_methods(docs)))


def _keep(path: Path, text: str) -> None:
    """Write only what has changed, so that a second build reads again only what it must."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _title(text: str, line: str = "=") -> list[str]:
    return [text, line * len(text), ""]


def _tree(pages: list[str], *options: str) -> list[str]:
    return [".. toctree::", *(f"    {option}" for option in options), "", *(f"    {page}" for page in pages), ""]


def _page(module: str, members: Members, offered: list[str]) -> list[str]:
    """A module: its docstring, then its public objects. A package: its docstring, then links to its modules."""
    short = module.removeprefix(f"{PACKAGE}.")
    out = [*_title(short), f".. automodule:: {module}", "    :no-members:", ""]
    children = [name for name in members if name.rpartition(".")[0] == module]
    if children:
        names = ", ".join(f"``{name}``" for name in offered)
        out += [f"``from {module} import ...`` offers {names}.", ""] if names else []
        return [*out, *_tree(children, ":maxdepth: 1")]
    for name, directive in members[module].items():
        out += [f".. {directive}:: {module}.{name}", *_options(module, name, directive), ""]
    return out


def _options(module: str, name: str, directive: str) -> list[str]:
    thing = getattr(importlib.import_module(module), name)
    if directive == "autoclass":
        return ["    :members:", *(["    :special-members: __call__"] if "__call__" in vars(thing) else [])]
    return ["    :no-value:"] if directive == "autodata" and len(repr(thing)) > 200 else []


def _index(members: Members, top: list[str]) -> list[str]:
    out = [*_title("Reference"), "One page for each module, made from its docstrings.", ""]
    listed = {name for _, parts in PARTS for name in parts}
    rest = [m for m in members if m.count(".") == 1 and m.partition(".")[2] not in listed]
    for title, names in (*PARTS, ("Others", tuple(m.partition(".")[2] for m in rest))):
        tops = [f"{PACKAGE}.{name}" for name in names if f"{PACKAGE}.{name}" in members]
        if tops:
            out += [*_title(title, "-"), *_tree(tops, ":maxdepth: 2")]
    offered = ", ".join(f"``wf.{name}``" for name in top if not name.startswith("_"))
    return [*out, *_title("Names at the top", "-"), f"``import wayfield as wf`` offers {offered}.", ""]


def _methods(docs: Path) -> list[str]:
    """The registry as a page, with the picture that each recipe made."""
    out = [
        "# Methods",
        "",
        "Published methods that this version has, as `wayfield methods` lists them. Each has a recipe, the small",
        "experiment that puts the method's claim to the test: `wayfield run NAME` runs it. A claim that does not hold",
        "at that scale is reported as not reproduced.",
        "",
        "| name | method | paper | module | recipe |",
        "|---|---|---|---|---|",
    ]
    for line in registry.METHODS.values():
        recipe = line.recipe.partition(":")[0]
        cells = (f"`{line.name}`", line.title, line.paper, f"`{line.module}`", f"`{recipe}`")
        out.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    for line in registry.METHODS.values():
        picture = f"images/{line.name}.png"
        if (docs / picture).exists():
            out += ["", f"![what `wayfield run {line.name}` measured]({picture})", "", f"*`wayfield run {line.name}`*"]
    out += ["", "## Solvers by name", "", "| name | what it is |", "|---|---|"]
    out += [f"| `{name}` | {part.note} |" for name, part in registry.SOLVERS.items()]
    out += ["", "## Grids by name", "", "| name | what it is |", "|---|---|"]
    out += [f"| `{name}` | {note} |" for name, note in registry.GRIDS.items()]
    return [*out, ""]
