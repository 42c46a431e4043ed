"""The demonstration: pictures from prompts, clothes by class, and one network of digits under many samplers.

Everything is drawn from models that ship inside the package and is judged by networks that took no part in drawing. It
writes one page, its pictures (each for light and for dark pages) and every figure:

    report.html   report.json   prompt.png   showcase.png   fashion.png
    sheet.png     quality.png   paths.png    strip.png
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, final

import torch

from wayfield import __version__, files, html
from wayfield.demo.chapter import Chapter
from wayfield.demo.digits import draw_digits
from wayfield.demo.digits_page import digits_chapter, show_digits
from wayfield.demo.fashion import draw_fashion, fashion_chapter, show_fashion
from wayfield.demo.scenes import Ask, Size, draw_scenes
from wayfield.demo.scenes_page import scenes_chapter, show_scenes
from wayfield.doors.console import console

__all__ = ["Cast", "DemoResult", "demo"]

_LEAD = (
    "Pictures from prompts, clothes by class, digits under many samplers: what small networks draw, what it costs, and "
    "how much of it is what was asked for. Drawn on {machine}."
)
_AGAIN = "The same seed gives the same samples, alone or in any batch; times depend on the machine."
_QUICK = Size(steps=8, scales=(1.0, 3.0), copies=2, show=1, prompts=8)


@final
@dataclass(frozen=True)
class Cast:
    """Which models play: names in the zoo, or files that `train` wrote. scenes: drawn side by side / reader, judge:
    what the pictures of scenes and of clothes are judged by / digits: the denoiser and its judge.
    """

    scenes: tuple[str, ...] = ("scenes", "scenes-flow")
    reader: str = "scenes-reader"
    fashion: str = "fashion"
    judge: str = "fashion-judge"
    digits: tuple[str, str] = ("digits", "digits-classifier")


@final
@dataclass(frozen=True, eq=False)
class DemoResult:
    """figures: of each part, by its name / seconds: of everything / machine: what ran it / files: written."""

    figures: dict[str, Any]
    seed: int
    seconds: float
    machine: str
    files: tuple[FilePath, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "version": __version__,
            "seed": self.seed,
            "seconds": round(self.seconds, 2),
            "machine": self.machine,
            **self.figures,
            "files": [str(path) for path in self.files],
        }


def demo(
    out: str | os.PathLike[str], quick: bool = False, seed: int = 0, ask: Ask | None = None, cast: Cast = Cast()
) -> DemoResult:
    """Run it, tell stderr how it goes, and write the report into the folder `out`.

    quick: a quarter of the samples or less, and no run of more than 20 steps / seed: of the noise / ask: the prompts,
    None for `Ask.of(None, None)`.
    """
    start, folder, say = time.perf_counter(), FilePath(out), console()
    ask = ask or Ask.of(None, None)
    with torch.no_grad(), _one_thread():
        machine = f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() > 1)}"
        scenes = draw_scenes(cast.scenes, cast.reader, ask, _QUICK if quick else Size(), seed)
        fashion = draw_fashion(cast.fashion, cast.judge, 2 if quick else 10, seed)
        digits = draw_digits(cast.digits, quick, seed)
    chapters = [scenes_chapter(scenes), fashion_chapter(fashion), digits_chapter(digits)]
    names = [f"{name}{tail}.png" for c in chapters for name in c.drawings for tail in ("", "-dark")]
    written = tuple(folder / name for name in ("report.html", "report.json", *names))
    seconds = time.perf_counter() - start
    result = DemoResult({c.name: dict(c.figures) for c in chapters}, seed, seconds, machine, written)
    for chapter in chapters:
        for name, (light, dark) in chapter.drawings.items():
            files.write_bytes(folder / f"{name}.png", light)
            files.write_bytes(folder / f"{name}-dark.png", dark)
    files.write_bytes(folder / "report.html", _page(chapters, result, _command(ask, quick, seed)).encode())
    files.write_json(folder / "report.json", result.to_json())
    show_scenes(scenes)
    show_fashion(fashion)
    show_digits(digits)
    say.print(f"{seconds:.1f} s in all; the report is {written[0]}", soft_wrap=True)
    return result


def _page(chapters: list[Chapter], result: DemoResult, command: str) -> str:
    """The report as one file."""
    ran = [
        ("version", f"wayfield {__version__}, torch {torch.__version__}"),
        ("seed", str(result.seed)),
        *(fact for chapter in chapters for fact in chapter.facts),
        ("took", f"{result.seconds:.1f} s in all"),
    ]
    return html.page(
        "wayfield: the demonstration",
        _LEAD.format(machine=result.machine),
        [
            *(section for chapter in chapters for section in chapter.sections),
            html.section("What ran", html.facts(ran)),
            html.section("Reproduce it", html.paragraph(_AGAIN), html.code(f'pip install "wayfield[cli]"\n{command}')),
        ],
    )


def _command(ask: Ask, quick: bool, seed: int) -> str:
    """What to type for the same report."""
    command = f"wayfield demo --seed {seed}{' --quick' * quick}"
    if ask != Ask.of(None, None):
        command += f' --prompt "{ask.prompt.text}"'
        command += f' --negative "{ask.negative.text}"' if ask.negative else ""
    return f"{command} --out runs/demo"


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread inside the block, unless OMP_NUM_THREADS asks for more.

    Calls this small lose a lot with a second one where it has to share its core with other work: 150 s against 24 s, in
    one measurement on two busy cores. And a fixed number keeps the order of sums, whatever the number of cores.
    """
    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
