"""The page of the models that ship with the package, made from their cards and the sheets that `publish` drew.

Nothing that is written here is committed: conf.py calls `write` at the start of a build.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wayfield import zoo
from wayfield.train.kinds import recorded_kind
from wayfield.train.stored import read_model
from wayfield.zoo.entries import ENTRIES

__all__ = ["page", "write"]

INTRODUCTION = """\
# Models

Small models ship inside the package, so that everything here can be tried without a network connection. Each was
trained by this library's own command on one CPU core, in seconds to an hour; the command is given, and the same command
with another seed gives other weights with figures like these. `wf.load("digits")` opens a denoiser by name, `wf.card`
returns what this page shows, and `zoo` has a function for each other kind.

Figures are of the file that ships, whose weights are rounded to float16; "change" says how much that changes what the
network answers. A share stands with its standard error. Fréchet distances are only to be compared with others in the
same features and of the same number of samples: so a floor, the distance of real pictures, stands beside each.
Guidance scales were chosen on other prompts or seeds than those that are reported.
"""


def write(docs: Path) -> None:
    """Write zoo.md into `docs`, if it has changed."""
    path, text = docs / "zoo.md", page(docs)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def page(docs: Path) -> str:
    """The page: an overview, then a section for each model, in the order of `zoo.entries`."""
    names = [name for name in ENTRIES if name in zoo.names()]
    out = [INTRODUCTION, *_row("name", "what it is", "opened by", "parameters"), "|---|---|---|---:|"]
    cards = {name: zoo.card(name) for name in names}
    for name in names:
        opener = recorded_kind(name, read_model(name)[1]).opener
        count = f"{cards[name]['training']['parameters']:,}"
        out += _row(f"[{name}](#{name})", cards[name]["about"], f"`zoo.{opener}`", count)
    for name in names:
        out += _section(docs, cards[name])
    return "\n".join([*out, ""])


def _section(docs: Path, card: Mapping[str, Any]) -> list[str]:
    name, picture = card["name"], f"images/zoo/{card['name']}.png"
    out = ["", f"## {name}", "", card["about"], ""]
    if (docs / picture).exists():
        out += [f"![samples of {name}]({picture})", ""]
    out += _figures(card)
    for table in card["tables"]:
        out += ["", f"{table['title'].capitalize()}: {table['meaning']}.", "", *_row("", *table["columns"])]
        out += ["|---|" + "---:|" * len(table["columns"])]
        for row, values in table["rows"].items():
            out += _row(row, *("" if value is None else _number(value) for value in values))
    out += ["", f"**Limits.** {card['limits']}", "", f"**How it was made.** {_made(card)}", ""]
    return [*out, "```sh", card["command"], "```"]


def _figures(card: Mapping[str, Any]) -> list[str]:
    other = card.get("other_seed")
    head = ("figure", "value", *([f"seed {other['seed']}"] if other else []), "what it is")
    out = [*_row(*head), "|---|---:|" + "---:|" * bool(other) + "---|"]
    for key, figure in card["figures"].items():
        sure = "error" in figure
        value = f"{figure['value']:.3f} ± {figure['error']:.3f}" if sure else _number(figure["value"])
        again = [f"{other['figures'][key]:.3f}" if sure else _number(other["figures"][key])] if other else []
        meaning = figure["meaning"] + (f" (of {figure['count']:,})" if sure else "")
        out += _row(key.replace("_", " "), value, *again, meaning)
    return out


def _made(card: Mapping[str, Any]) -> str:
    """Data, training, storage and settings in a few sentences."""
    training, stored, settings = card["training"], card["stored"], card["settings"]
    out = f"Data: {card['data']}. Trained for "
    for stage in (*card.get("earlier", ()), training):
        then = "; then for " if stage is not training else f", seed {card['seed']}. "
        out += f"{stage['steps']:,} steps, {stage['samples']:,} samples, in {stage['seconds']:,.0f} seconds{then}"
    if stored["change"] is not None:
        out += f"Stored in {stored['dtype']}, change {stored['change']:.1g}. "
    if settings:
        guidance = f"w = {settings['w']:g}" if "w" in settings else "no guidance"
        out += f"Sampled with {settings['sampler']}, {guidance}. "
    return out + f"Licence of the weights: {card['licence']}."


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"]
