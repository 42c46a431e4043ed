"""The contract of the command line: JSON on stdout with exactly the promised keys, people on stderr, exit codes."""

import json
import sys
from types import ModuleType

import pytest
from doorkit import fresh

from wayfield import __version__, bench, registry
from wayfield.bench import Row
from wayfield.cli import main
from wayfield.core.errors import CheckpointError, RangeError
from wayfield.recipes.report import Report, at_least, at_most
from wayfield.registry import Method


@pytest.fixture
def recipes(monkeypatch):
    """Three registered methods: one whose claim holds, one whose claim does not, and two that break."""
    module = ModuleType("fake_recipes")

    def report(name, value):
        return Report(name, "small", [at_most("size", value, 1.0)], [{"seed": 0, "size": value}], 0.1, ["size.png"])

    def broken(seeds, quick, out):
        raise RangeError("steps", got=0, expected="1", remedy="A mistake of the recipe's own.")

    def bug(seeds, quick, out):
        raise ZeroDivisionError("division by zero")

    asked = []

    def holds(seeds, quick, out):
        asked.append((seeds, quick, out))
        return report("holds", 0.5)

    module.holds, module.asked, module.broken, module.bug = holds, asked, broken, bug
    module.fails = lambda seeds, quick, out: report("fails", float("nan"))
    monkeypatch.setitem(sys.modules, "fake_recipes", module)
    lines = {
        n: Method(n, f"The {n}", "nobody", "fake", f"fake_recipes:{n}") for n in ("holds", "fails", "broken", "bug")
    }
    monkeypatch.setattr(registry, "METHODS", lines)
    return module


def test_methods_json_has_exactly_the_promised_keys(capsys):
    assert main(["methods", "--json"]) == 0
    out, err = capsys.readouterr()
    lines = json.loads(out)
    assert [list(line) for line in lines] == [["name", "title", "paper", "module", "recipe"]] * len(lines)
    assert "ddpm-ddim-ldm" in [line["name"] for line in lines]
    assert err == ""


def test_methods_table_is_for_people(capsys):
    assert main(["methods"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "ddpm-ddim-ldm" in err


def test_run_prints_one_report_and_keeps_it(recipes, capsys, tmp_path):
    assert main(["run", "holds", "--seeds", "2", "--quick", "--out", str(tmp_path), "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert list(report) == ["method", "claim", "passed", "criteria", "per_seed", "seconds", "pictures"]
    assert report["criteria"] == [{"name": "size", "value": 0.5, "bar": 1.0, "passed": True}]
    assert report["passed"] is True
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert recipes.asked == [(2, True, tmp_path)]
    assert "held" in err


def test_a_claim_that_does_not_hold_is_exit_code_3(recipes, capsys, tmp_path):
    assert main(["run", "fails", "--out", str(tmp_path), "--json"]) == 3
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["passed"] is False
    assert report["criteria"][0]["value"] is None
    assert "not reproduced" in err


def test_run_without_json_prints_the_path_of_the_report(recipes, capsys, tmp_path):
    assert main(["run", "holds", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.json'}\n"


@pytest.mark.parametrize(("name", "words"), [("broken", "own"), ("bug", "ZeroDivisionError: division by zero")])
def test_what_breaks_inside_a_recipe_is_not_the_users_mistake(recipes, capsys, tmp_path, name, words):
    assert main(["run", name, "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_debug_keeps_the_traceback_and_the_code(recipes, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("WAYFIELD_DEBUG", "1")
    assert main(["run", "bug", "--out", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main(["run", "hold"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "ddpm-ddim-lmd"], "Did you mean 'ddpm-ddim-ldm'?"),
        (["run", "ddpm-ddim-ldm", "--seeds", "0"], "at least 1"),
        (["bench", "stepps"], "Did you mean 'steps'?"),
        (["demonstrate"], "Did you mean 'demo'?"),
        (["sample", "--solver", "huen"], "Did you mean 'heun'?"),
        (["sample", "--grid", "karas"], "Did you mean 'karras'?"),
        (["sample", "--model", "digit"], "Did you mean 'digits'?"),
        (["sample", "--device", "gpu"], "unknown device"),
        (["demo", "--prompt", "a purple ring"], "unknown word"),
        (["demo", "--negative", "red"], "caption"),
        (["sample", "--n", "0"], "--n"),
        (["sample", "--batch", "-1"], "--batch"),
        (["sample", "--steps", "0"], "--steps"),
        (["sample", "--first", "-1"], "--first"),
        (["sample", "--n", "several"], "several"),
        (["sample", "--stepps", "3"], "--steps"),
        (["run"], "METHOD"),
        (["methods", "now"], "now"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_one_message(args, words, capsys):
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err


def test_errors_say_what_came_what_was_expected_and_what_to_do(capsys):
    main(["sample", "--n", "0", "--model", "digits"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: --n"
    assert [line.split()[0] for line in lines[1:]] == ["got", "expected", "remedy"]


def test_bench_rows_have_exactly_the_promised_keys(monkeypatch, capsys):
    rows = [Row("ddim", "wayfield", "by hand", 1.2, 1.1, 1.3, 50, 200)]
    monkeypatch.setattr(bench, "run", lambda suite, quick: rows)
    assert main(["bench", "steps", "--quick", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [
        {"case": "ddim", "subject": "wayfield", "peer": "by hand", "ratio": 1.2, "low": 1.1, "high": 1.3}
        | {"calls": 50, "rows": 200}
    ]
    assert "by hand" in err


def test_a_damaged_file_is_exit_code_1(monkeypatch, capsys):
    def damaged(suite, quick):
        raise CheckpointError("file 'x'", got="garbage", expected="a file", remedy="Restore it.")

    monkeypatch.setattr(bench, "run", damaged)
    assert main(["bench", "steps"]) == 1
    assert "garbage" in capsys.readouterr().err


def test_help_and_version(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for command in ("demo", "methods", "sample", "train", "run", "bench"):
        assert command in out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"wayfield {__version__}\n"
    assert main(["sample", "--help"]) == 0
    assert "--solver" in capsys.readouterr().out


def test_interruption_is_told(monkeypatch, capsys):
    def interrupted(suite, quick):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run", interrupted)
    assert main(["bench", "steps"]) == 1
    assert capsys.readouterr().err.strip() == "interrupted"


def test_in_a_process_of_its_own():
    done = fresh("methods", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["name"]
    done = fresh("run", "nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown method" in done.stderr


def test_listing_methods_does_not_import_torch():
    code = "import sys; from wayfield.cli import main; main(['methods', '--json']); sys.exit('torch' in sys.modules)"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("package", ["tyro", "rich.table"])
def test_a_missing_package_is_named_with_its_remedy(package):
    code = f"import sys; sys.modules[{package!r}] = None; from wayfield.cli import main; sys.exit(main(['methods']))"
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert 'pip install "wayfield[cli]"' in done.stderr
    assert package.split(".")[0] in done.stderr


def test_criteria_compare_as_they_say():
    assert at_least("x", 2.0, 2.0).passed
    assert not at_least("x", float("nan"), 2.0).passed
