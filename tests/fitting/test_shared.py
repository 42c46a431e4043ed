"""Guidance in a folder: it loads equal, and what is damaged, missing or foreign is named."""

import json
import math

import pytest
import torch

from wayfield import files
from wayfield.core.errors import CheckpointError, ConditionError, RangeError, UnknownNameError
from wayfield.fitting.shared import GUIDANCE, load_guidance, save_guidance
from wayfield.guide import AG, APG, CFG, Away, Energy, Guidance, Interval, LinearAG, Schedule, Steps
from wayfield.guide.linear import alternating


def table(n, seed=0):
    """A LinearAG of n steps with numbers that no short decimal holds."""
    gen = torch.Generator().manual_seed(seed)
    true = alternating(n)

    def row(k):
        return tuple(torch.randn(k, generator=gen, dtype=torch.float64).tolist())

    bc = tuple(() if t else row(i + 1) for i, t in enumerate(true))
    bu = tuple(() if t else row(i) for i, t in enumerate(true))
    return LinearAG(true, bc, bu, b0=row(n), fingerprint=(("grid", "abc"),))


CASES = {
    "a term": CFG(4),
    "shaped and gated": (3 * Away("negative").through(APG(r=2.5, beta=-0.5))).when(Interval(high=2.0)).when(AG(0.9)),
    "a short table": Guidance(CFG(3), sources=(table(8),)),
    "a long table": Guidance(CFG(3), sources=(table(90),)),
    "long schedule of pairs": CFG(2).when(Schedule(tuple((float(k), 0.1 * k) for k in range(100)))),
    "long steps, bools and numbers": CFG(2).when(Steps((True, False, 0.5) * 20)),
    "numbers for each of many samples": CFG(tuple(1 + k / 7 for k in range(64))),
}


def numbers(folder):
    return sorted(folder.glob("numbers-*.safetensors"))


@pytest.mark.parametrize("name", CASES)
def test_it_loads_equal(name, tmp_path):
    saved = CASES[name]
    assert save_guidance(tmp_path / "in" / "here", saved) == tmp_path / "in" / "here" / GUIDANCE
    loaded = load_guidance(tmp_path / "in" / "here")
    assert loaded == saved
    assert repr(loaded) == repr(saved)  # types too: 1 and 1.0 are equal


def test_long_rows_are_tensors_and_short_ones_text(tmp_path):
    save_guidance(tmp_path, CASES["a short table"])
    assert numbers(tmp_path) == []
    save_guidance(tmp_path, CASES["a long table"])
    (file,) = numbers(tmp_path)
    assert len(files.read(file)[0]["numbers"]) > 500
    assert len((tmp_path / GUIDANCE).read_text()) < 30_000


def test_saving_again_replaces_and_leaves_nothing(tmp_path):
    save_guidance(tmp_path, Guidance(CFG(3), sources=(table(90, 1),)))
    first = numbers(tmp_path)
    save_guidance(tmp_path, Guidance(CFG(3), sources=(table(90, 2),)))
    assert len(numbers(tmp_path)) == 1
    assert numbers(tmp_path) != first
    assert load_guidance(tmp_path) == Guidance(CFG(3), sources=(table(90, 2),))
    save_guidance(tmp_path, CFG(2))
    assert numbers(tmp_path) == []
    assert load_guidance(tmp_path) == CFG(2)


def test_a_failed_save_leaves_the_old(tmp_path, monkeypatch):
    save_guidance(tmp_path, CASES["a long table"])

    def full(path, value):
        raise CheckpointError("disk", got="full", expected="room", remedy="Free some.")

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(CheckpointError):
        save_guidance(tmp_path, Guidance(CFG(3), sources=(table(90, 5),)))
    assert load_guidance(tmp_path) == CASES["a long table"]


def size(x):
    return x.square().sum((1, 2, 3))


def test_functions_by_name(tmp_path):
    saved = CFG(2) + Energy(size)
    with pytest.raises(ConditionError, match="functions="):
        save_guidance(tmp_path, saved)
    save_guidance(tmp_path, saved, {"size": size})
    assert load_guidance(tmp_path, {"size": size}) == saved
    with pytest.raises(UnknownNameError, match="size"):
        load_guidance(tmp_path)


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["guidance"]["guidance"]["term"].update(w=9.0), "digest"),
        (lambda r: r.update(numbers=None), "digest"),
        (lambda r: r.update(format=7), "format 7"),
        (lambda r: r.pop("sha256"), "fields"),
    ],
)
def test_a_changed_text(change, said, tmp_path):
    path = save_guidance(tmp_path, CASES["a long table"])
    edit(path, change)
    with pytest.raises(CheckpointError, match=said):
        load_guidance(tmp_path)


def test_missing_damaged_and_foreign_files(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_guidance(tmp_path)
    path = save_guidance(tmp_path, CASES["a long table"])
    (file,) = numbers(tmp_path)
    raw = file.read_bytes()
    for bad in (raw[:100], raw[:-8] + bytes(8)):
        file.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load_guidance(tmp_path)
    files.write(file, {"numbers": torch.zeros(5000, dtype=torch.float64)}, {"kind": "numbers of a guidance"})
    with pytest.raises(CheckpointError, match="another file"):
        load_guidance(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_guidance(tmp_path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        load_guidance(tmp_path)
    path.write_text("[1]")
    with pytest.raises(CheckpointError, match="fields"):
        load_guidance(tmp_path)


def test_numbers_outside_of_the_folder_are_not_read(tmp_path):
    path = save_guidance(tmp_path, CASES["a long table"])
    record = json.loads(path.read_text())
    from wayfield.fitting.shared import _digest

    record["numbers"] = "../" + record["numbers"]
    record["sha256"] = _digest(record["guidance"], record["numbers"])
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="same folder"):
        load_guidance(tmp_path)


def test_what_json_does_not_have(tmp_path):
    with pytest.raises(RangeError, match="infinity"):
        save_guidance(tmp_path, Guidance(CFG(2), clip=(-math.inf, 1.0)))
    assert not (tmp_path / GUIDANCE).exists()
