"""Links from `code` to the page of what it names, and formulas as MathML, which browsers show without any script.

A literal such as ``wf.DDIM``, ``Grid.reversed`` or ``core.predict`` becomes a link if it names one public object or
module of the library. A bare lower-case word links only inside the page of its own module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

__all__ = ["Inventory", "Links", "setup"]

PACKAGE = "wayfield"


class Inventory:
    """The public names of a package, found without importing it.

    offered: module -> its `__all__` / members: module -> those defined there, in their order, with the directive that
    shows each / home: short name -> full names / top: name offered at the top -> full name.
    """

    def __init__(self, package: Path, top: Mapping[str, str]) -> None:
        self.top = top
        self.offered: dict[str, list[str]] = {}
        self.members: dict[str, dict[str, str]] = {}
        self.home: dict[str, set[str]] = {}
        for path in sorted(package.rglob("*.py")):
            module = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.offered[module], self.members[module] = _all_of(tree), {}
            for node in tree.body:
                for name, directive in _defined(node):
                    if name in self.offered[module]:
                        self.members[module][name] = directive
                        self._add(module, name, node)
        for module in self.members:
            tail = module.removeprefix(f"{PACKAGE}.")
            self.home.setdefault(module, set()).add(module)
            if "." in tail:
                self.home.setdefault(tail, set()).add(module)

    def _add(self, module: str, name: str, node: ast.stmt) -> None:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        methods = [item.name for item in inner if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]
        for full in (name, *(f"{name}.{method}" for method in methods)):
            self.home.setdefault(full, set()).add(f"{module}.{full}")

    def find(self, text: str, module: str | None) -> str | None:
        """The full name that `text` stands for on the page of `module`, or None if it is none or not the only one."""
        name = re.sub(r"\(.*\)$", "", text)
        if name in self.members:
            return name
        public = re.fullmatch(r"(?:wf|wayfield)\.(\w+)", name)
        if public:
            return self.top.get(public[1])
        name = name.removeprefix("wayfield.")
        if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
            return None
        found = self.home.get(name, set())
        if not found and "." in name:
            found = {full for names in self.home.values() for full in names if full.endswith(f".{name}")}
            package, _, last = f"{PACKAGE}.{name}".rpartition(".")
            if last in self.offered.get(package, ()):  # re-exported by a package from one of its modules
                found = found or {full for full in self.home.get(last, ()) if full.startswith(f"{package}.")}
        here = {full for full in found if module is not None and full.startswith(f"{module}.")}
        if len(here) == 1:
            return here.pop()
        plain = "." not in name and name == name.lower()
        return next(iter(found)) if len(found) == 1 and not plain else None


def _all_of(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if "__all__" in _targets(node) and isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            return [str(item.value) for item in node.value.elts if isinstance(item, ast.Constant)]
    return []


def _defined(node: ast.stmt) -> list[tuple[str, str]]:
    """The names that a statement defines, each with its directive."""
    if isinstance(node, ast.ClassDef):
        error = any(
            isinstance(base, ast.Name) and base.id.endswith(("Error", "Exception", "Warning")) for base in node.bases
        )
        return [(node.name, "autoexception" if error else "autoclass")]
    if isinstance(node, ast.FunctionDef):
        return [(node.name, "autofunction")]
    return [(name, "autodata") for name in _targets(node) if name != "__all__"]


def _targets(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


class Links(SphinxTransform):
    """Turns literals that name public objects into references."""

    default_priority = 5  # before references are resolved
    inventory: ClassVar[Inventory]

    def apply(self, **_: object) -> None:
        """See `SphinxTransform.apply`."""
        page = self.env.current_document.docname
        module = page.removeprefix("api/") if page.startswith("api/") else None
        for node in list(self.document.findall(nodes.literal)):
            if isinstance(node.parent, nodes.reference | addnodes.pending_xref):
                continue
            full = self.inventory.find(node.astext(), module)
            if full is None:
                continue
            kind = "mod" if full in self.inventory.members else "obj"
            target = addnodes.pending_xref("", refdomain="py", reftype=kind, reftarget=full, refexplicit=True)
            target["refdoc"], target["py:module"], target["py:class"] = page, None, None
            node.replace_self(target)
            target += node


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_mathml(self, node, node.astext(), block=False))
    raise nodes.SkipNode


def _display(self: HTML5Translator, node: nodes.math_block) -> None:
    pieces = "".join(_mathml(self, node, piece, block=True) for piece in _pieces(node.astext()))
    self.body.append(f'<div class="formula">{pieces}</div>')
    raise nodes.SkipNode


def _mathml(self: HTML5Translator, node: nodes.math | nodes.math_block, text: str, *, block: bool) -> str:
    r"""MathML of a formula. The converter has no \textstyle, and puts the label of a brace beside it, not under it."""
    text = re.sub(
        r"(\\underbrace\{.*\})_(\{\\text\{\w+\}\})", r"\\underset\2{\1}", text.replace(r"\textstyle", "").strip()
    )
    try:
        return tex2mathml(text, as_block=block)
    except MathError as error:
        logging.getLogger(__name__).warning("formula %r: %s", text, error, location=node)
        return f"<code>{self.encode(text)}</code>"


def _pieces(text: str) -> list[str]:
    """The parts of a wide formula that may go on lines of their own; all of it if it is aligned or cut in a group."""
    pieces = [p.strip() for p in re.split(r"\\qquad|(?=\\Longrightarrow)", text)]
    whole = "&" in text or any(p.count("{") != p.count("}") or not p for p in pieces)
    return [text] if whole else pieces


def setup(app: Sphinx, package: Path, top: Mapping[str, str]) -> None:
    """Register links and formulas with an application. package, top: see `Inventory`."""
    Links.inventory = Inventory(package, top)
    app.add_transform(Links)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
