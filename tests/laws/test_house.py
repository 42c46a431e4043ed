"""Rules of the house that a reader cannot see in one file: floors, global randomness, sizes, lazy import, forbidden
reads.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src" / "wayfield"
FILES = sorted(SRC.rglob("*.py"))
FLOORS = [  # a file imports from its own floor's folder and from lower floors only
    {"core"},
    {"files", "progress"},
    {"field"},
    {"guide", "solve", "train", "measure", "data", "judge", "vi"},
    {"sampling"},
    {"zoo", "plots", "registry", "fitting", "tune"},
    {"recipes", "bench"},
    {"demo", "html", "cli", "doors"},
]
SHARED = (
    "roles",
    "terms",
    "nodes",
    "planner",
    "contrast",
    "gates",
    "guidance",
    "facts",
    "codec",
    "judged",
    "references",
    "spaces",
    "window",
)  # what methods stand on
FLOOR = {name: k for k, names in enumerate(FLOORS) for name in names}


def part(path):
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from ((a.name, []) for a in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_floors(path):
    me = part(path)
    if me == "__init__":
        return
    for module, names in imports(path):
        if module.split(".")[0] != "wayfield":
            continue
        others = [module.split(".")[1]] if "." in module else [n for n in names if n in FLOOR]
        for other in others:
            assert FLOOR[other] <= FLOOR[me], f"{me} may not import {module}"


@pytest.mark.parametrize("folder", ["guide", "solve"])
def test_methods_do_not_import_each_other(folder):
    for path in sorted((SRC / folder).glob("*.py")):
        if path.stem not in ("__init__", *SHARED):
            for module, _ in imports(path):
                mine = module.startswith(f"wayfield.{folder}.")
                assert not mine or module.split(".")[-1] in SHARED, f"{path.name} imports {module}"


def test_core_stands_on_torch_alone():
    allowed = {"torch", "wayfield", *sys.stdlib_module_names}
    for path in FILES:
        if part(path) in ("core", "field", "solve", "guide", "sampling", "vi"):
            for module, _ in imports(path):
                assert module.split(".")[0] in allowed, (path, module)


def test_no_global_randomness():
    banned = re.compile(r"torch\.(manual_seed|seed|rand|randn|randint|randperm|rand_like|randn_like)\((?!.*generator)")
    numpy = re.compile(r"np\.random\.(?!default_rng|Generator)|random\.(seed|random|shuffle|choice)\(")
    for path in FILES:
        for k, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("#")[0]
            assert not banned.search(code), f"{path}:{k}: {line}"
            assert not numpy.search(code), f"{path}:{k}: {line}"


def test_nothing_is_unpickled():
    for path in FILES:
        text = path.read_text()
        assert "import pickle" not in text, path
        assert "torch.load(" not in text, path
        assert "torch.save(" not in text, path


def test_torchvision_is_absent():
    for path in FILES:
        assert all(module.split(".")[0] != "torchvision" for module, _ in imports(path)), path
    import importlib.util

    assert importlib.util.find_spec("torchvision") is None, "its PyPI build breaks CPU builds of torch"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_sizes(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            doc = ast.get_docstring(node, clean=False)
            body = node.body[1:] if doc is not None else node.body
            if body:
                lines = body[-1].end_lineno - body[0].lineno + 1
                assert lines <= 40, f"{path.name}: {node.name} has {lines} lines"
            public = not node.name.startswith("_")
            assert not (public and node.args.kwarg), f"{path.name}: {node.name} takes **kwargs"


def test_import_is_lazy():
    """`import wayfield` loads none of its optional dependencies, and none of its own modules."""
    code = (
        "import sys, wayfield; heavy = {'sklearn', 'matplotlib', 'rich', 'tyro', 'PIL', 'accelerate', 'safetensors'};"
        "print(sorted(heavy & set(sys.modules)), sorted(m for m in sys.modules if m.startswith('wayfield.')))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[] []"


def test_public_names_resolve():
    import wayfield

    for name in wayfield.__all__:
        assert getattr(wayfield, name) is not None
    assert callable(wayfield.sample)
    with pytest.raises(AttributeError):
        _ = wayfield.nonsense
