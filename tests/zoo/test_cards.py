"""Laws of the zoo: every model that ships has a true card, a place in the table, a sheet, and fits into the wheel."""

from __future__ import annotations

import re
import sys
import zlib
from pathlib import Path

import pytest

from wayfield import files, zoo
from wayfield.train.kinds import KINDS, kind_of, recorded_kind
from wayfield.train.stored import read_model
from wayfield.zoo.entries import ENTRIES, entry
from wayfield.zoo.judging import digits
from wayfield.zoo.publish import LARGEST_CHANGE, ZOO, _plain

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
KEYS = ["name", "about", "data", "command", "seed", "training", "stored", "settings", "figures", "tables", "limits"]
KEYS += ["licence", "sha256"]
LARGEST_WHEEL, REST = 30e6, 1.5e6  # bytes; what is not weights


@pytest.mark.parametrize("name", zoo.names())
def test_every_card_says_what_a_card_must(name):
    card = zoo.card(name)
    assert [key for key in card if key not in ("earlier", "other_seed")] == KEYS
    about = entry(name)
    assert card["name"] == name
    assert card["about"] == about.about
    assert card["limits"] == about.limits
    assert card["data"].startswith(about.data)
    assert set(card["training"]) == {"loss", "parameters", "samples", "seconds", "steps"}
    assert card["figures"]
    for figure in card["figures"].values():
        assert set(figure) <= {"value", "meaning", "count", "error"}
        assert len(figure["meaning"]) > 20
        assert ("error" in figure) == ("count" in figure)
    for table in card["tables"]:
        assert all(len(row) == len(table["columns"]) for row in table["rows"].values())
    if "other_seed" in card:
        assert card["other_seed"]["seed"] != card["seed"]
        assert set(card["other_seed"]["figures"]) == set(card["figures"])


@pytest.mark.parametrize("name", zoo.names())
def test_every_file_is_what_its_card_says(name):
    tensors, record = read_model(name)  # which compares the hash
    card = zoo.card(name)
    types = {str(value.dtype).removeprefix("torch.") for value in tensors.values() if value.is_floating_point()}
    assert types == {card["stored"]["dtype"]}
    assert card["stored"]["dtype"] == "float32" or card["stored"]["change"] <= LARGEST_CHANGE
    assert sum(value.numel() for value in tensors.values()) == card["training"]["parameters"]
    assert record["config"]["train"].get("seed", 0) == card["seed"]
    assert record["figures"] == card["training"]


@pytest.mark.parametrize("name", zoo.names())
def test_the_command_of_a_card_trains_that_model(name):
    *before, last = zoo.card(name)["command"].split(" && ")
    stages = [re.fullmatch(r"wayfield train (\S+/(\S+)\.json) --out (\S+)", line) for line in before]
    config = re.fullmatch(r"wayfield train (\S+)", last)
    assert config is not None
    assert [stage and stage[2] for stage in stages] == [each["config"] for each in zoo.card(name).get("earlier", [])]
    assert all(stage is not None and (ROOT / stage[1]).exists() for stage in stages)
    given = files.read_json(ROOT / config[1])
    record = read_model(name)[1]
    assert _plain(given) == _plain(record["config"])
    assert kind_of(given) is recorded_kind(name, record)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_has_a_judge_and_a_place_for_its_config(name):
    module, _, function = ENTRIES[name].judge.partition(":")
    found = __import__(f"wayfield.zoo.judging.{module}", fromlist=[function])
    assert callable(getattr(found, function))
    assert name in {path.stem for path in (ZOO / "configs").glob("*.json")} or name not in zoo.names()


def test_models_and_entries_and_configs_agree():
    assert set(zoo.names()) <= set(ENTRIES)
    configs = {path.stem: files.read_json(path) for path in (ZOO / "configs").glob("*.json")}
    stages = {Path(config["start"]).parent.name for config in configs.values() if "start" in config}
    assert set(configs) - stages <= set(ENTRIES)
    assert stages <= set(configs)
    assert {"digits", "digits-weak", "digits-classifier"} <= set(zoo.names())
    assert KINDS.keys() >= {recorded_kind(name, read_model(name)[1]).key for name in zoo.names()}


def test_models_of_latents_have_the_codec_that_they_were_trained_with():
    for name in zoo.names():
        record = read_model(name)[1]
        codec = zoo.codec_of(name)  # which compares the hash
        assert (codec is None) == ("codec" not in record)


@pytest.mark.parametrize("name", [name for name in zoo.names() if read_model(name)[1].keys() & {"denoiser"}])
def test_every_denoiser_has_a_sheet_of_modest_size(name):
    picture = DOCS / "images" / "zoo" / f"{name}.png"
    assert picture.exists()
    assert picture.stat().st_size < 250_000


def test_the_wheel_stays_below_30_megabytes():
    """A wheel deflates its files; weights in float16 become 7 % smaller."""
    packed = sum(len(zlib.compress(path.read_bytes(), 6)) for path in ZOO.glob("*.safetensors"))
    assert packed < LARGEST_WHEEL - REST


@pytest.mark.parametrize("name", ["digits-weak", "digits-classifier"])
def test_the_figures_of_a_card_are_found_again(name):
    """On another machine samples differ by rounding: a few of 2,000 shares, and 2 % of a distance."""
    judge = getattr(digits, ENTRIES[name].judge.partition(":")[2])
    found = judge(zoo.load_file(str(ZOO / f"{name}.safetensors")), name).figures
    card = zoo.card(name)["figures"]
    assert set(found) == set(card)
    for key, figure in found.items():
        assert figure.value == pytest.approx(card[key]["value"], rel=0.02, abs=0.003), key


def test_the_page_shows_every_model_with_all_its_figures(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    import zoo_page

    text = zoo_page.page(DOCS)
    _, *parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(sections) == [name for name in ENTRIES if name in zoo.names()]
    for name, section in sections.items():
        card = zoo.card(name)
        assert card["command"] in section
        assert card["limits"] in section
        assert all(figure["meaning"] in section for figure in card["figures"].values())
        for link in re.findall(r"\]\((images/[^)]*)\)", section):
            assert (DOCS / link).exists()
