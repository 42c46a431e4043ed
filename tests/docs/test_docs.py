"""The hand-written pages: their code runs and prints what they show, links and names exist, tables are true."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import wayfield as wf
from wayfield import guide, measure, solve, vi
from wayfield.core import errors
from wayfield.core.path import EDM
from wayfield.train import TrainConfig, setup

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GENERATED = {"methods.md", "zoo.md", "api/index.rst"}  # by docs/generate.py
PAGES = [page for page in sorted(DOCS.glob("*.md")) if page.name not in GENERATED]
PROSE = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, text, and the line of the page on which its text starts."""

    language: str
    text: str
    line: int


def blocks(text: str) -> list[Block]:
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(text)]


def run(text: str, name: str) -> None:
    """Execute the python blocks of a page in one namespace; an output block after one holds what it must print."""
    namespace, found = {"__name__": "page"}, blocks(text)
    for block, after in pairwise([*found, None]):
        if block is None or block.language != "python":
            continue
        code, out = "\n" * (block.line - 1) + block.text, io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, name, "exec", dont_inherit=True), namespace)
        if after is not None and after.language == "output":
            assert out.getvalue() == after.text, f"{name}:{after.line}: {out.getvalue()}"
        else:
            assert out.getvalue() == "", f"{name}:{block.line}: prints, but the page does not show what"


def ids(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in page.read_text()], ids=ids)
def test_code_runs_and_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        run(page.read_text(), str(page))


def test_a_wrong_page_fails():
    """Wrong output, unshown output and code that raises are all seen."""
    run("```python\nx = 1\n```\n```python\nprint(x)\n```\n\n```output\n1\n```\n", "good")
    for wrong in (
        "```python\nprint(1)\n```\n```output\n2\n```\n",
        "```python\nprint(1)\n```\n",
        "```python\nassert False\n```\n",
    ):
        with pytest.raises(AssertionError):
            run(wrong, "wrong")


def test_configs_that_are_shown_are_accepted():
    shown = [block.text for block in blocks((DOCS / "training.md").read_text()) if block.language == "json"]
    assert [setup(json.loads(text))[1].shape for text in shown] == [(1, 8, 8)]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def links(text: str) -> list[str]:
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", plain)


def broken(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page if not name else (page.parent / name).resolve()
    if target.is_relative_to(DOCS) and str(target.relative_to(DOCS)) in GENERATED:
        return False
    if not target.exists():
        return True
    headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
    return bool(anchor) and anchor not in map(slug, headings)


@pytest.mark.parametrize("page", PROSE, ids=ids)
def test_relative_links_lead_somewhere(page):
    found = [link for link in links(page.read_text()) if not re.match(r"[a-z]+:", link)]
    assert [link for link in found if broken(page, link)] == []


def test_a_broken_link_is_seen():
    assert broken(DOCS / "index.md", "nowhere.md")
    assert broken(DOCS / "index.md", "solvers.md#nothing")
    assert not broken(DOCS / "index.md", "solvers.md#grids")


PARTS = "core|field|guide|judge|tune|solve|sampling|train|data|measure|vi|zoo|recipes|bench|registry|files"


def resolves(name: str) -> bool:
    """Whether a dotted name of the package is a module, or something that can be reached from one."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for part in parts[k:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


@pytest.mark.parametrize("page", PROSE, ids=ids)
def test_names_exist(page):
    text = page.read_text()
    assert [name for name in re.findall(r"\bwf\.([A-Za-z]\w*)", text) if not hasattr(wf, name)] == []
    code = re.findall(r"`([^`\n]+)`", text)
    dotted = [f"wayfield.{m[0]}" for c in code if (m := re.match(rf"(?:{PARTS})\.[A-Za-z][\w.]*(?=\(|$)", c))]
    dotted += [m[0] for c in code if (m := re.match(r"wayfield(?:\.[A-Za-z]\w*)+(?=\(|$)", c))]
    ends = (".safetensors", ".json", ".methods", ".py", ".toml", ".md")  # files and entry points
    assert [name for name in dotted if not name.endswith(ends) and not resolves(name)] == []


@pytest.mark.parametrize("page", PROSE, ids=ids)
def test_tests_that_are_named_exist(page):
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        text = (ROOT / file).read_text()
        assert not name or re.search(rf"\b(?:def|class) {name}\b", text), f"{file}::{name}"


def test_names_that_do_not_exist_are_seen():
    assert resolves("wayfield.train.fit")
    assert resolves("wayfield.core.grid.Grid.reversed")
    assert not resolves("wayfield.train.fitt")
    assert not resolves("wayfield.nothing")


def rows(page: str, first: str, columns: int) -> list[list[str]]:
    """The cells of those rows of a page's tables that have so many and whose first starts with `first`."""
    lines = re.findall(r"^\| (.*) \|$", (DOCS / page).read_text(), re.MULTILINE)
    found = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return [cells for cells in found if len(cells) == columns and cells[0].startswith(first)]


def test_the_table_of_solvers_is_true():
    """Evaluations on a grid of ten steps to the clean end, order and noise, as the solvers themselves say."""
    grid = wf.karras(EDM(80.0), 10)
    counts = {"N": 10, "2N - 1": 19, "2N": 20}
    seen = set()
    for call, order, evaluations, noise, _ in rows("solvers.md", "`wf.", columns=5):
        solver = eval(call.strip("`"), {"wf": wf})
        seen.add(type(solver))
        if not isinstance(solver, wf.Adaptive):
            assert float(order) == pytest.approx(solver.order, abs=0.15) if order != "-" else solver.stochastic, call
            assert counts[evaluations] == sum(map(len, solver.plan(grid).times)), call
            assert noise == ("yes" if solver.stochastic else "no"), call
    classes = {getattr(solve, name) for name in solve.__all__} - {solve.Ancestral, solve.Plan, solve.Solver}
    assert seen == classes


def test_the_table_of_estimators_is_true(monkeypatch):
    """Each objective has a row; a cell says "refused" where, and only where, the tested product of both is refused."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "vi"))
    product = importlib.import_module("test_product")
    strategies = ("Reinforce", "Reinforce(LeaveOneOut)", "Reinforce(Learned)", "Enum", "MVD")
    tested = {"normalize", "forward_kl", *product.WAKES, *(name.partition("(")[0] for name in product.HELPED)}
    found = set()
    for first, reparam, *cells in rows("which-estimator.md", "`vi.", columns=9):
        names = re.findall(r"`(?:vi\.)?([^`]+)`", first)
        found.add(names[0])
        pairs = [name for name in product.OBJECTIVES if name.split("(")[0].split(",")[0] == names[0]]
        form = re.findall(r'form="(\w+)"', first)
        pairs = [name for name in pairs if name.partition("form ")[2] == "".join(form)]
        assert reparam != "refused"
        if names[-1] in tested:
            assert "refused" not in cells, first
            continue
        assert pairs, first
        for strategy, cell in zip(strategies, cells, strict=False):
            assert {product.PAIRS[strategy, name] != "unbiased" for name in pairs} == {cell == "refused"}, (first, cell)
    made = {
        n
        for n in vi.__all__
        if getattr(inspect.unwrap(getattr(vi, n)), "__annotations__", {}).get("return") == "Objective"
    }
    assert found == made


def mentioned(page: str) -> set[str]:
    """The words in code, in a line or in a block, on a page."""
    text = (DOCS / page).read_text()
    code = [block.text for block in blocks(text) if block.language == "python"]
    return set(re.findall(r"\w+", " ".join([*code, *re.findall(r"`([^`\n]+)`", text)])))


def test_nothing_public_is_forgotten():
    """Every error, metric, path, noise, guidance and setting of a training is named on the page that is about it."""
    wanted = {
        "your-own-model.md": set(errors.__all__) - {"unknown_name"},
        "measure.md": set(measure.__all__),
        "guidance.md": set(guide.__all__) - mentioned("judges.md") - mentioned("diffusers.md"),
        "paths-and-kinds.md": {"EDM", "VE", "VP", "Cosine", "Straight", "Trig", "tabulated", "from_betas"},
        "noise.md": {"SeededNoise", "BrownianNoise", "RecordingNoise", "ReplayNoise"},
        "training.md": {field.name for field in dataclasses.fields(TrainConfig)},
        "vi.md": set(vi.__all__) - mentioned("which-estimator.md"),
        "solvers.md": {"karras", "exponential", "log_snr", "uniform", "spaced", "given"},
    }
    for page, names in wanted.items():
        assert names - mentioned(page) == set(), page
