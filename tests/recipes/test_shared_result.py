"""A recipe's result in a folder: it loads as it was, and what is missing, changed or foreign is named."""

import json
import math

import pytest

from wayfield.core.errors import CheckpointError, UnknownNameError
from wayfield.fitting.shared import GUIDANCE
from wayfield.guide import CFG, Energy, Guidance, LinearAG
from wayfield.recipes.report import REPORT, Report, at_least, at_most
from wayfield.recipes.shared import RESULT, load_result, save_result

FITTED = Guidance(CFG(3), sources=(LinearAG.hold((True, False) * 30),))


def report(**changes):
    criteria = (at_most("ratio", 0.4, 0.5), at_least("gain", 2.0, 1.0))
    given = {"criteria": criteria, "per_seed": ({"seed": 1, "kid": 0.25},), "pictures": ("a.png", "b.png")}
    return Report(method="m", claim="It halves.", seconds=1.5, **{**given, **changes})


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.mark.parametrize("guidance", [None, CFG(2), FITTED], ids=["none", "a term", "fitted"])
def test_it_loads_as_it_was(guidance, folder):
    assert save_result(folder, report(), guidance) == folder / RESULT
    loaded = load_result(folder)
    assert loaded.report.to_json() == report().to_json()
    assert loaded.report.criteria == report().criteria
    assert loaded.guidance == guidance


def test_not_reproduced_and_not_finite(folder):
    save_result(folder, report(criteria=(at_most("ratio", math.nan, 0.5),)))
    loaded = load_result(folder).report
    assert not loaded.passed
    assert math.isnan(loaded.criteria[0].value)


def test_functions_by_name(folder):
    def size(x):
        return x.square().sum((1, 2, 3))

    save_result(folder, report(), CFG(2) + Energy(size), {"size": size})
    assert load_result(folder, {"size": size}).guidance == CFG(2) + Energy(size)
    with pytest.raises(UnknownNameError, match="size"):
        load_result(folder)


@pytest.mark.parametrize("name", [REPORT, "a.png", GUIDANCE])
def test_changed_and_missing_files(name, folder):
    save_result(folder, report(), FITTED)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="digest"):
        load_result(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="not readable"):
        load_result(folder)


def test_a_result_without_its_parts(folder):
    with pytest.raises(CheckpointError, match="no such file"):
        load_result(folder)
    with pytest.raises(CheckpointError, match=r"c\.png"):
        save_result(folder, report(pictures=("c.png",)))
    with pytest.raises(CheckpointError, match="folder itself"):
        save_result(folder, report(pictures=("../c.png",)))
    assert not (folder / RESULT).exists()
    (folder / RESULT).write_text("{}")
    with pytest.raises(CheckpointError, match="no list"):
        load_result(folder)


def test_a_verdict_written_by_hand(folder):
    import hashlib

    path = save_result(folder, report(criteria=(at_most("ratio", 0.9, 0.5),)))
    changed = json.loads((folder / REPORT).read_text()) | {"passed": True}
    (folder / REPORT).write_text(json.dumps(changed))
    listed = json.loads(path.read_text())
    listed["sha256"][REPORT] = hashlib.sha256((folder / REPORT).read_bytes()).hexdigest()
    path.write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="deny"):
        load_result(folder)
