"""Pages that need nothing but themselves: one HTML file, style and pictures inside, no request to anywhere.

    page("Title", "What it is.", [section("Table", table(...)), section("Picture", picture(png, "what it shows"))])

Colours follow the reader's preference for light or dark. Text is escaped; only what these functions make is markup.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

__all__ = ["code", "facts", "page", "paragraph", "part", "picture", "section", "table"]

_STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --text: #16202e; --faint: #68737f; --line: #dde3ea; --soft: #f4f6f9;
  --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #10151f; --text: #e8ecf2; --faint: #8e99a9; --line: #2a3342; --soft: #171e2a;
    --mark: #ffb733; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--text);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 3rem 0 .75rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; margin: .75rem 0 1rem; }
.lead { font-size: 1.1rem; color: var(--faint); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th { color: var(--faint); font-weight: 600; vertical-align: bottom; line-height: 1.3; }
th, td { text-align: right; padding: .36rem .7rem; border-bottom: 1px solid var(--line); }
th.left, td.left { text-align: left; }
tbody tr:hover { background: var(--soft); }
tr.floor td { color: var(--faint); }
td b { color: var(--mark); }
img { display: block; max-width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dt { color: var(--faint); } dd { margin: 0; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: .4rem;
  padding: .8rem 1rem; overflow-x: auto; }
code { font: .9rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
"""


def page(title: str, lead: str, sections: Sequence[str]) -> str:
    """A whole page. lead: one paragraph under the title / sections: made by `section`."""
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"<head>{meta}<title>{_(title)}</title><style>{_STYLE}</style></head>"
    body = f'<main><h1>{_(title)}</h1><p class="lead">{_(lead)}</p>{"".join(sections)}</main>'
    return f'<!doctype html>\n<html lang="en">{head}<body>{body}</body></html>\n'


def section(title: str, *parts: str) -> str:
    """A heading and what belongs under it."""
    return f"<section><h2>{_(title)}</h2>{''.join(parts)}</section>\n"


def part(title: str, *parts: str) -> str:
    """A smaller heading inside a section, and what belongs under it."""
    return f"<h3>{_(title)}</h3>{''.join(parts)}"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{_(text)}</p>"


def code(text: str) -> str:
    """Commands to type, each on its line."""
    return f"<pre><code>{_(text)}</code></pre>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    return "<dl>" + "".join(f"<dt>{_(name)}</dt><dd>{_(value)}</dd>" for name, value in pairs) + "</dl>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, floor: int | None = None) -> str:
    """A table. rows: cells as text; one that begins with "*" is the best of its column / left: so many columns are
    words / floor: number of the row that is a reference, not a contestant.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        marked = [f"<b>{_(c[1:])}</b>" if c.startswith("*") else _(c) for c in row]
        return "".join(f"<{tag}{' class=left' * (k < left)}>{c}</{tag}>" for k, c in enumerate(marked))

    body = "".join(f"<tr{' class=floor' * (k == floor)}>{cells('td', row)}</tr>" for k, row in enumerate(rows))
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", columns)}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def picture(light: bytes, alt: str, dark: bytes | None = None, *, pixels: bool = False) -> str:
    """A PNG inside the page. dark: what readers of dark pages see instead / pixels: never smooth it when it is
    enlarged.
    """
    kind = ' class="pixels"' if pixels else ""
    image = f'<img{kind} alt="{_(alt)}" src="{_data(light)}">'
    if dark is None:
        return image
    return f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">{image}</picture>'


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _(text: str) -> str:
    return html.escape(text, quote=True)
