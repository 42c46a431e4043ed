"""The demonstration: what it prints, what it writes, and that it is the same every time."""

import json
import re

import pytest
from PIL import Image

from wayfield.cli import main
from wayfield.demo import SETTINGS

PICTURES = ("sheet", "quality", "paths", "strip")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    assert main(["demo", "--quick", "--out", str(folder)]) == 0
    return folder


def test_it_writes_what_it_promises(out):
    names = {f"{name}{tail}.png" for name in PICTURES for tail in ("", "-dark")}
    assert {p.name for p in out.iterdir()} == names | {"report.html", "report.json"}
    for name in names:
        with Image.open(out / name) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300


def test_the_sheet_has_a_row_per_setting_and_a_column_per_class(out):
    with Image.open(out / "sheet.png") as image:
        width, height = image.size
    assert 1800 < width < 2400
    assert 1200 < height < 2400


def test_the_page_needs_nothing_else(out):
    page = (out / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert page.count("data:image/png;base64,") == 2 * len(PICTURES)
    assert "prefers-color-scheme: dark" in page
    for words in ("What ran", "Figures", "Quality against cost", "The sheet", "From noise to data", "wayfield demo"):
        assert words in page


def test_its_figures_make_sense(out):
    report = json.loads((out / "report.json").read_text())
    quick = [s for s in SETTINGS if s.steps <= 20]
    assert len(report["settings"]) == len(quick)
    for line, setting in zip(report["settings"], quick, strict=True):
        assert (line["title"], line["steps"], line["w"]) == (setting.title, setting.steps, setting.w)
        assert line["rows"] == line["evaluations"] * report["samples"]
        assert 0 < line["pixels"] < 20
        assert line["accuracy"] > 0.8
    by = {(line["title"], line["steps"], line["w"]): line for line in report["settings"]}
    assert by["DDIM", 20, 1.0]["evaluations"] == 20
    assert by["Heun", 10, 1.0]["evaluations"] == 19
    assert by["DDIM", 20, 2.0]["evaluations"] == 40
    assert by["DDIM", 20, 1.0]["pixels"] < by["DDIM", 5, 1.0]["pixels"]
    assert by["DPM++ 2M", 5, 1.0]["pixels"] < by["DDIM", 5, 1.0]["pixels"]
    assert report["real"]["accuracy"] > 0.95
    assert report["real"]["rows"] is None


def test_the_same_seed_gives_the_same_pixels(out, tmp_path, capsys):
    assert main(["demo", "--quick", "--out", str(tmp_path), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["files"][0] == str(tmp_path / "report.html")
    assert "FD" in told.err
    for name in PICTURES:
        assert (tmp_path / f"{name}.png").read_bytes() == (out / f"{name}.png").read_bytes()
