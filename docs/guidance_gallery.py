"""The pictures and the table of costs of the page about guidance: the same noise under one term after another.

    python docs/guidance_gallery.py [name ...]    all sheets, or those named; about ten minutes on one core

writes images/guidance/NAME.png and prints the table. Every row of a sheet has the same prompts, noise, solver and grid
(DPM-Solver++(2M), 20 steps unless a row says otherwise); only the guidance differs. Seed 0, nothing is picked. Where
the table says "right", 60 further pictures were drawn and read by a network that took no part in drawing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import torch
from torch import Tensor

import wayfield as wf
from wayfield import fitting, plots, zoo
from wayfield.data.fashion import FASHION_CLASSES
from wayfield.data.scenes import Mix, Prompt, Scenes, parse, tokenize
from wayfield.data.scenes.judge import verdict
from wayfield.data.scenes.reader import readings
from wayfield.guide.linear import alternating
from wayfield.guide.terms import Term
from wayfield.sampling import Result
from wayfield.zoo.judging.drawing import grid_of

__all__ = ["SHEETS", "Row", "Sheet", "Test", "main"]

FOLDER = FilePath(__file__).parent / "images" / "guidance"
STEPS, W, TESTS = 20, 5.0, 60
PROMPTS = (
    "a large green triangle",
    "the digit 7 in cyan",
    "a small red ring left of a large blue square",
    "three small cyan crosses",
    "the letter T in yellow",
    "a large yellow cross",
    "a blue diamond above a red circle",
    "two large red rings",
)
COLOURLESS = ("a large ring", "a large triangle", "a large cross", "a large circle", "a large square", "a diamond")
SHAPES = Scenes(seed=4, mix=Mix(pair=0, trio=0, twins=0, triplets=0, digit=0, letter=0), plain=True)
"""Single shapes from a seed that no model was trained on, for fitting and for the shares that are right."""


class Row(NamedTuple):
    """One row of a sheet. name: on the picture / spelled: as in the table / steps: of the run."""

    name: str
    spelled: str
    guidance: wf.Guidance | Term
    steps: int = STEPS


class Test(NamedTuple):
    """Conditions, and who says of pictures drawn to them which are right, bool (n,)."""

    cond: Mapping[str, Tensor]
    right: Callable[[Tensor], Tensor]


class Sheet(NamedTuple):
    """Rows with a common model. about: above the pictures / columns: one above each picture."""

    about: str
    model: str
    columns: tuple[str, ...]
    cond: Mapping[str, Tensor]
    rows: tuple[Row, ...]
    nets: Mapping[str, str] = {}
    conds: Mapping[str, Mapping[str, Any]] = {}
    test: Test | None = None

    def draw(self, row: Row, cond: Mapping[str, Tensor]) -> Result:
        """One sample for each row of the condition."""
        return wf.sample(
            zoo.load(self.model),
            _grid(self.model, row.steps),
            samples=len(next(iter(cond.values()))),
            cond=cond,
            conds=self.conds,
            nets={name: zoo.load(other) for name, other in self.nets.items()},
            solver=wf.DPM2M(),
            guidance=row.guidance,
        )


def spelled(*pairs: tuple[str, str]) -> tuple[Row, ...]:
    """Rows from names and texts that `parse_guidance` reads."""
    return tuple(Row(name, text, wf.parse_guidance(text)) for name, text in pairs)


def contrasts() -> Sheet:
    """What is pushed away from."""
    rows = spelled(
        ("no guidance", "CFG(1)"),
        ("CFG 3", "CFG(3)"),
        ("CFG 5", "CFG(5)"),
        ("CFG 10", "CFG(10)"),
        ("Auto 2", "Auto(2)"),
        ("Auto 3", "Auto(3)"),
        ("CFG 3 + Auto 2", "CFG(3) + Auto(2)"),
        ("CFG 3 versus", "CFG(3).versus('weak', 2)"),
    )
    about = "Away from no prompt (CFG), from a weaker network (Auto), from both, from the weaker one guided (versus)"
    return Sheet(about, "scenes", PROMPTS, _asked(PROMPTS), rows, nets={"weak": "scenes-weak"}, test=_prompts())


def shapers() -> Sheet:
    """What is done to a push that is too long."""
    model, grid = zoo.load("scenes"), _grid("scenes")
    r = fitting.calibrate_r(model, grid, 10.0, cond=_fitting(16), solver=wf.DPM2M(), seed=100)
    rows = spelled(
        ("CFG 3", "CFG(3)"),
        ("CFG 10", "CFG(10)"),
        ("rescaled", "CFG(10).through(Rescale(0.7))"),
        ("clipped", "Guidance(CFG(10), clip=(-1, 1))"),
        ("APG, eta 0", "apg(10)"),
        ("APG, and r", f"apg(10, r={r:.2g})"),
        ("APG, and beta", f"apg(10, r={r:.2g}, beta=-0.5)"),
        ("CFG++ 0.6", "Guidance(CFG(0.6), noise=NULL)"),
    )
    about = "CFG at the far too high scale 10, and what is said to help; the first row is CFG at its best scale"
    return Sheet(about, "scenes", PROMPTS, _asked(PROMPTS), rows, test=_prompts())


def gates() -> Sheet:
    """Where and when guidance acts."""
    rows = spelled(
        ("everywhere", "CFG(5)"),
        ("high noise", "CFG(5).when(Interval.sigma(1, 80))"),
        ("middle", "CFG(5).when(Interval.sigma(0.3, 5))"),
        ("low noise", "CFG(5).when(Interval.sigma(0, 1))"),
        ("rising", "CFG(5).when(Schedule(((-6, 0), (2, 1))))"),
        ("falling", "CFG(5).when(Schedule(((-6, 1), (2, 0))))"),
        ("even steps", f"CFG(5).when(Steps({(True, False) * (STEPS // 2)}))"),
    )
    about = "CFG at scale 5 on intervals of the noise level, on schedules, at every other step"
    return Sheet(about, "scenes", PROMPTS, _asked(PROMPTS), rows)


def cheaper() -> Sheet:
    """Fewer evaluations."""
    model, grid, n = zoo.load("scenes"), _grid("scenes"), 32
    full, early = wf.CFG(W), wf.CFG(W).when(wf.Steps(tuple(i < STEPS // 2 for i in range(STEPS))))
    given: dict[str, Any] = {"cond": _fitting(n), "samples": n, "seed": 100, "solver": wf.DPM2M()}
    bar = fitting.calibrate(fitting.record_gammas(model, grid, full, **given), 0.25)
    table = fitting.fit_linear_ag(model, grid, guidance=early, **given).source
    true, stop = alternating(STEPS), wf.AG(bar)
    rows = (
        Row("CFG 5", "CFG(5)", full),
        Row("AG", f"CFG(5).when(AG({bar:.4f}))", full.when(stop)),
        Row("AG, held", f"Guidance(CFG(5), sources=(Hold(AG({bar:.4f}), space='eps'),))", _with(full, stop)),
        Row("first half", "CFG(5).when(Steps(first half))", early),
        Row("LinearAG", "the same, sources=(LinearAG,)", wf.Guidance(early, sources=(table,))),
        Row("hold", "the same, sources=(Hold(every other step),)", wf.Guidance(early, sources=(_odd(true),))),
        Row("policy", "policy((1, 9) * 5 + (1,) * 10)", wf.policy((1.0, 9.0) * 5 + (1.0,) * 10)),
        Row("15 steps", "CFG(5), 15 steps", full, 15),
    )
    about = "CFG at scale 5 with evaluations left out, held or predicted; last, simply fewer steps"
    return Sheet(about, "scenes", PROMPTS, _asked(PROMPTS), rows)


def conditions() -> Sheet:
    """More than one condition."""
    rows = (
        *spelled(("CFG 3", "CFG(3)"), ("not red", "CFG(3, 'red')"), ("both", "CFG(3) + 2 * Away('red')")),
        Row("AND cyan", "compose({'cond': 3, 'cyan': 3})", wf.compose({"cond": 3.0, "cyan": 3.0})),
        Row("NOT red", "compose({'cond': 3, 'red': -1})", wf.compose({"cond": 3.0, "red": -1.0})),
    )
    conds = {name: {"tokens": parse(f"something {name}").tokens} for name in ("red", "cyan")}
    about = "Prompts without a colour; beside them 'something red' to be avoided, or 'something cyan' to hold as well"
    return Sheet(about, "scenes", COLOURLESS, _asked(COLOURLESS), rows, conds=conds)


def bluish(x0: Tensor) -> Tensor:
    """An energy: by how much red and green exceed blue, summed over pixels."""
    return (x0[:, :2] - x0[:, 2:]).clamp(min=0).flatten(1).sum(1)


def energies() -> Sheet:
    """Pushes by gradients."""
    cfg, network, gaussian = wf.CFG(3.0), wf.Energy(bluish, 0.3), wf.Energy(bluish, 1.0, "gaussian", std=0.5)
    rows = (
        Row("CFG 3", "CFG(3)", cfg),
        Row("+ blue", "CFG(3) + Energy(bluish, 0.3)", cfg + network),
        Row("+ blue, free", "CFG(3) + Energy(bluish, 1, 'gaussian', std=0.5)", cfg + gaussian),
    )
    about = "An energy that is high where red or green exceeds blue; its gradient through the network, and without it"
    return Sheet(about, "scenes", COLOURLESS, _asked(COLOURLESS), rows)


def classifier() -> Sheet:
    """Clothes by a classifier that the model does not know."""
    net, judge, asked = zoo.load_classifier("fashion-classifier"), zoo.load_classifier("fashion-judge"), range(TESTS)
    one = wf.ClassifierGuidance(net, 1.0, "clean")
    three, ten = (_alone(wf.ClassifierGuidance(net, s, "clean", of=wf.NULL)) for s in (3.0, 10.0))
    rows = (
        Row("no label", "Guidance(base=NULL)", wf.Guidance(base=wf.NULL)),
        Row("classifier 3", "Guidance(ClassifierGuidance(net, 3, 'clean', of=NULL), base=NULL)", three),
        Row("classifier 10", "the same, scale 10", ten),
        Row("label", "CFG(1)", wf.CFG(1.0)),
        Row("CFG 3", "CFG(3)", wf.CFG(3.0)),
        Row("both", "CFG(2) + ClassifierGuidance(net, 1, 'clean')", wf.CFG(2.0) + one),
    )
    about = "Clothes: a model without labels and a classifier of clean pictures, against the model that knows labels"
    label = torch.tensor(asked) % 10
    test = Test({"label": label}, lambda x: judge(x.clamp(-1, 1)).argmax(1) == label)
    return Sheet(about, "fashion", tuple(FASHION_CLASSES[:8]), {"label": torch.arange(8)}, rows, test=test)


SHEETS = {make.__name__: make for make in (contrasts, shapers, gates, cheaper, conditions, energies, classifier)}
"""Name of the picture -> what makes it."""


def main(names: list[str]) -> None:
    """Draw the sheets of these names, or all, and print their costs."""
    print("| sheet | row | guidance | rows per sample and step | calls per step | right |")
    print("|---|---|---|---:|---:|---:|")
    for name in names or SHEETS:
        sheet, pictures, notes = SHEETS[name](), [], []
        for row in sheet.rows:
            result, share = sheet.draw(row, sheet.cond), ""
            if sheet.test is not None:
                right = sheet.test.right(sheet.draw(row, sheet.test.cond).x)
                share = f"{right.double().mean():.2f}"
            rows, calls = result.counts.rows / len(result.x), result.counts.calls
            pictures.append(result.x)
            notes.append((f"{rows:.3g}", share) if share else (f"{rows:.3g}",))
            cells = (name, row.name, f"`{row.spelled}`", f"{rows / row.steps:.3g}", f"{calls / row.steps:.3g}", share)
            print("| " + " | ".join(cells) + " |", flush=True)
        heads = ("rows", "right")[: len(notes[0])]
        labels = [(row.name, "") for row in sheet.rows]
        words = plots.Labels(about=sheet.about, columns=sheet.columns, rows=labels, heads=heads, notes=notes)
        drawn = ((torch.cat(pictures).clamp(-1, 1) + 1) * 7.5).round() / 7.5 - 1  # 16 levels: a third of the bytes
        picture = plots.sheet(drawn, columns=len(sheet.columns), scale=2, frame=1, font=12, labels=words)
        plots.save(FOLDER / f"{name}.png", picture)


def _prompts() -> Test:
    """Single shapes of scenes that no model has seen, and the reader that judges the zoo."""
    reader, prompts = zoo.load_detector("scenes-reader"), _single(range(1000, 1000 + TESTS))

    def right(x: Tensor) -> Tensor:
        found = zip(prompts, readings(reader, x.clamp(-1, 1)), strict=True)
        # a form that the reader is unsure of counts as wrong
        return torch.tensor([verdict(prompt, each.things)["all"] and each.least >= 0.5 for prompt, each in found])

    return Test({"tokens": tokenize(prompts)}, right)


def _asked(prompts: tuple[str, ...]) -> Mapping[str, Tensor]:
    return {"tokens": tokenize([parse(text) for text in prompts])}


def _fitting(n: int) -> Mapping[str, Tensor]:
    return {"tokens": tokenize(_single(range(n)))}


def _single(rows: range) -> list[Prompt]:
    """Size, colour and shape of each scene; where it stands is left open."""
    return [Prompt(prompt.things) for prompt in SHAPES.prompts(rows)]


def _grid(model: str, steps: int = STEPS) -> wf.Grid:
    return grid_of(zoo.load(model).path, steps)


def _with(term: Term, stop: wf.AG) -> wf.Guidance:
    return wf.Guidance(term, sources=(wf.Hold(stop, space="eps"),))


def _odd(true: tuple[bool, ...]) -> wf.Hold:
    return wf.Hold(wf.Steps(true))


def _alone(term: Term) -> wf.Guidance:
    return wf.Guidance(term, base=wf.NULL)


if __name__ == "__main__":
    main(sys.argv[1:])
