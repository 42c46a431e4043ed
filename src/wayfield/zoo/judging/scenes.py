"""Scenes: is what was asked for in the picture? Prompts, a reader that tells what it sees, and a distance.

For each prompt a picture is drawn, the reader says which things it sees and where, and `data.scenes.judge` compares. A
picture in which the reader is less than half sure of some form counts as wrong in form: malformed things are no things.
For single shapes there is a stricter bar too, 0.9; below it are 0.3 % of well-made things and half of malformed ones.

Prompts are drawn with the stochastic form of the solver, in 30 steps: the deterministic one leaves twice too many
things in about one picture of ten, and the noise of later steps mends most of them. What it gives for single shapes, in
20 steps, is reported too.

The guidance scale is the one of {1, 2, 3, 5} with the largest share of respects right (count, form, colour, ...; mean
over pictures) on prompts of `prompts.selection`, seed 1; figures are of `prompts.report`, seed 2. The distance is
of deterministic samples without guidance, seed 3, with prompts of real test scenes: guidance makes pictures clearer and
less varied, which a distance counts against them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from wayfield.data.scenes import Prompt, Thing, held_out, testing, tokenize
from wayfield.data.scenes.judge import verdict
from wayfield.data.scenes.reader import read, reading_accuracy, readings
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets.detector import Detector
from wayfield.solve import DPM2M
from wayfield.zoo import load, load_detector, names
from wayfield.zoo.judging.distances import features_of, frechet
from wayfield.zoo.judging.drawing import SAMPLER, best_scale, draw
from wayfield.zoo.judging.figures import Figure, Judged, Sheet, Table, rate, share
from wayfield.zoo.judging.prompts import report, selection

__all__ = ["SCALES", "denoiser", "reader"]

SCALES = (1.0, 2.0, 3.0, 5.0)
_REPEATS = {"single": 2, "held-out": 4}  # pictures per prompt, where not one
_ASKED = {
    "single": "one shape, every combination of size, colour and shape that training shows",
    "place": "one shape at one of five places",
    "held-out": "one shape in a pair of colour and shape that training never shows",
    "digit": "one digit 0..9",
    "letter": "one letter A..Z",
    "relation": "two things, one left of, right of, above or below the other",
    "trio": "three different things",
    "count": "two or three things alike",
}
_RESPECTS = ("count", "form", "colour", "size", "relation", "place", "all")
_REFERENCE, _DRAWN, _SHEET = 4096, 384, 5
_SELECTED, _REPORTED, _FREE = 1, 2, 3  # seeds
_SURE = 0.9
_NOISES = (0.0, 0.1, 0.2)
_STEPS, _SOLVER = 30, DPM2M(eta=1.0)


def denoiser(
    model: Denoiser,
    name: str,
    *,
    judge: Detector | None = None,
    most: int | None = None,
    drawn: int = _DRAWN,
    reference: int = _REFERENCE,
) -> Judged:
    """Prompts right by set and respect, and the distance to real scenes.

    judge: the reader, by default "scenes-reader" of the zoo / most: prompts of each set, None for all / drawn: samples
    for the distance, and real scenes for its floor / reference: real scenes that both are compared with.
    """
    net = load_detector("scenes-reader") if judge is None else judge
    chosen = selection() if most is None else selection(most)
    w, tried = best_scale(SCALES, lambda w: _respects(_verdicts(model, net, chosen, w)))
    figures: dict[str, Figure] = {}
    rows: dict[str, list[float | None]] = {}
    everything: list[bool] = []
    for key, prompts in report().items():
        asked = prompts[:most] * _REPEATS.get(key, 1)
        x = _drawn(model, asked, w, _REPORTED, first=len(everything))
        found = _judged(net, asked, x)
        right = [flags["all"] for flags in found]
        everything += right
        figures[f"prompts_{key.replace('-', '_')}"] = share(right, f"share of pictures that are right: {_ASKED[key]}")
        if key == "single":
            sure = [ok and reading.least >= _SURE for ok, reading in zip(right, readings(net, x), strict=True)]
            about = f"the same as prompts_single, and the reader at least {_SURE:.0%} sure of the form"
            figures["prompts_single_sure"] = share(sure, about)
        rows[key] = [_mean(found, respect) for respect in _RESPECTS]
    about = "share of pictures with everything right that the prompt asks for, over all sets of prompts below"
    figures = {"prompts": share(everything, about)} | figures | _distance(model, net, drawn, reference)
    single = report()["single"][:most]
    plain = _judged(net, single, draw(model, {"tokens": tokenize(single)}, w=w, seed=_REPORTED))
    about = f"the same as prompts_single, by the deterministic solver: {SAMPLER}"
    figures["prompts_single_deterministic"] = share([flags["all"] for flags in plain], about)
    settings = {
        "sampler": f"stochastic DPM-Solver++(2M), {_STEPS} steps",
        "w": w,
        "respects_right_while_choosing_w": {f"{k:g}": round(v, 4) for k, v in tried.items()},
    }
    settings["prompts_while_choosing_w"] = len(chosen)
    about = "share of pictures right in each respect, over those whose prompt asks for it; all: in every one"
    tables = (Table("prompts", about, _RESPECTS, rows),)
    return Judged(figures, settings, tables, _sheet(model, [prompts[-1] for prompts in report().values()], w))


def reader(net: Detector, name: str, *, pictures: int = 1024) -> Judged:
    """Readings of test scenes with and without noise, of held-out pairs, and of pictures that "scenes" drew."""
    respects = ("count", "form", "shape", "digit", "letter", "colour", "size", "all", "position")
    rows: dict[str, list[float | None]] = {}
    for noise in _NOISES:
        found = reading_accuracy(net, testing(), pictures, noise=noise)
        rows[f"test scenes, noise {noise:g}" if noise else "test scenes"] = [found.get(key) for key in respects]
    found = reading_accuracy(net, held_out(), pictures)
    rows["held-out pairs"] = [found.get(key) for key in respects]
    exact = "without any error: number, form, colour and size of all things, and centres within 2 pixels"
    rare = "the same of shapes in the pairs that generators never see"
    figures = {
        "read_right": rate(rows["test scenes"][-2] or 0.0, pictures, f"share of test scenes read {exact}"),
        "read_right_held_out": rate(rows["held-out pairs"][-2] or 0.0, pictures, rare),
    }
    other = {"scenes-reader": "scenes-second-reader", "scenes-second-reader": "scenes-reader"}.get(name)
    if other in names() and "scenes" in names():
        figures["agreement_on_generated"] = _agreement(net, load_detector(other), other)
    about = "share of things or pictures read right, and the mean error of a centre in pixels"
    return Judged(figures, tables=(Table("readings", about, respects, rows),))


def _agreement(net: Detector, other: Detector, name: str) -> Figure:
    """How often two readers say the same of pictures that "scenes" drew; there is no truth to compare them with."""
    prompts = selection()
    x = _drawn(load("scenes"), prompts, 3.0, _FREE)
    mine, others = ([_said(things) for things in read(each, x)] for each in (net, other))
    meaning = f"share of pictures that the model scenes drew at w = 3 in which {name} reads the same things"
    return share([a == b for a, b in zip(mine, others, strict=True)], meaning)


def _said(things: Sequence[Thing]) -> list[tuple[str, str, str]]:
    return sorted((thing.form, thing.colour, thing.size) for thing in things)


def _verdicts(model: Denoiser, net: Detector, prompts: Sequence[Prompt], w: float) -> list[Mapping[str, bool]]:
    return _judged(net, prompts, _drawn(model, prompts, w, _SELECTED))


def _drawn(model: Denoiser, prompts: Sequence[Prompt], w: float, seed: int, *, first: int = 0) -> Tensor:
    """One picture of each prompt, as this judge draws them."""
    return draw(model, {"tokens": tokenize(prompts)}, w=w, seed=seed, first=first, steps=_STEPS, solver=_SOLVER)


def _judged(net: Detector, prompts: Sequence[Prompt], x: Tensor) -> list[Mapping[str, bool]]:
    """What is right in each picture."""
    out: list[Mapping[str, bool]] = []
    for prompt, reading in zip(prompts, readings(net, x), strict=True):
        flags = verdict(prompt, reading.things)
        unclear = {"form", "all"} & set(flags) if reading.least < 0.5 else ()
        out.append({**flags, **dict.fromkeys(unclear, False)})
    return out


def _mean(flags: Sequence[Mapping[str, bool]], key: str) -> float | None:
    values = [each[key] for each in flags if key in each]
    return sum(values) / len(values) if values else None


def _respects(flags: Sequence[Mapping[str, bool]]) -> float:
    """Mean over pictures of the share of respects that are right: finer than whether everything is."""
    each = [[right for name, right in found.items() if name != "all"] for found in flags]
    return sum(sum(one) / len(one) for one in each) / len(each)


def _distance(model: Denoiser, net: Detector, n: int, known: int) -> dict[str, Figure]:
    """The distance of samples without guidance to real scenes, and its floor."""
    scenes, rows = testing(), range(known, known + n)
    reference = features_of(net.features, scenes.batch(range(known))[0])
    real, cond = scenes.batch(rows)
    x = draw(model, {"tokens": cond["tokens"]}, seed=_FREE)
    what = f"Fréchet distance, in features of scenes-reader, to {known:,} real test scenes"
    return {
        "frechet_distance": Figure(
            frechet(reference, features_of(net.features, x)), f"{what} of {n} samples without guidance"
        ),
        "frechet_distance_of_real": Figure(
            frechet(reference, features_of(net.features, real)),
            f"{what} of {n} others with the same prompts",
        ),
    }


def _sheet(model: Denoiser, prompts: Sequence[Prompt], w: float) -> Sheet:
    asked = [prompt for prompt in prompts for _ in range(_SHEET)]
    x = _drawn(model, asked, w, _FREE, first=_REFERENCE)
    return Sheet(x, _SHEET, tuple(prompt.text for prompt in prompts))
