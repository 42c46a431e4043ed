"""Captioned shapes: pictures from prompts, each read back by a detector and held against what was asked for.

Three experiments, each with every model given: the user's prompt at several guidance scales and with a negative prompt;
a fixed set of prompts for show; and the share of prompts that come out right, attribute by attribute, over prompts of
test scenes. The same share on the real pictures of those scenes says how far the reader itself can be trusted. Where it
is less than half sure of some form, the picture counts as wrong in form: malformed things are no things.

Pictures are drawn by the stochastic DPM-Solver++ 2M; picture k of an experiment has the same noise in all its settings.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from torch import Tensor

from wayfield import registry, zoo
from wayfield.data.scenes import Prompt, Thing, Wanted, parse, testing, tokenize
from wayfield.data.scenes.judge import relation_of, verdict
from wayfield.data.scenes.reader import Sighting, readings
from wayfield.doors.console import console
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets.detector import Detector
from wayfield.guide import CFG
from wayfield.sampling import sample

__all__ = ["NEGATIVE", "PROMPT", "SHOWCASE", "Ask", "Row", "ScenesRun", "Score", "Seen", "Size", "draw_scenes"]

PROMPT = "a yellow ring"
NEGATIVE = "something small"
"""What is asked for unless the user asks for something else; the size is left open for the negative prompt."""

SHOWCASE = (
    "a large green triangle",
    "the digit 7 in cyan",
    "the letter K in yellow",
    "a small red ring left of a large blue square",
    "three small cyan crosses",
    "a magenta circle, a yellow triangle and a blue square",
    "a large yellow cross",
)
"""A shape, a digit, a letter, two things, three alike, three things, and a pair that no training picture shows."""

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
SCALE, SIGMA_MIN, SOLVER = 3.0, 0.02, "dpm2m-sde"


@final
@dataclass(frozen=True)
class Ask:
    """What the user wants to see, and what not; None for no negative prompt."""

    prompt: Prompt
    negative: Prompt | None

    @staticmethod
    def of(prompt: str | None, negative: str | None) -> Ask:
        """From captions; None means the ones above, an empty negative none. Raises as `parse`."""
        if negative is None and prompt is None:
            negative = NEGATIVE
        return Ask(parse(PROMPT if prompt is None else prompt), parse(negative) if negative else None)


@final
@dataclass(frozen=True)
class Size:
    """How much is drawn. steps: of the solver / scales: guidance scales / copies: pictures of the user's prompt per
    setting / show: pictures of each prompt of the showcase / prompts: of the table.
    """

    steps: int = 16
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 5.0)
    copies: int = 3
    show: int = 2
    prompts: int = 20


class Seen(NamedTuple):
    """A picture (3, 32, 32), what was asked, and what the reader saw in it."""

    x: Tensor
    prompt: Prompt
    negative: Prompt | None
    reading: Sighting

    @property
    def flags(self) -> Mapping[str, bool]:
        """What of the prompt is right, as `verdict`."""
        flags = verdict(self.prompt, self.reading.things)
        unclear = {"form", "all"} & set(flags) if self.reading.least < 0.5 else set()
        return {**flags, **dict.fromkeys(unclear, False)}

    @property
    def right(self) -> bool:
        """Whether everything asked for is there, and nothing else."""
        return self.flags["all"] and not self.unwanted

    @property
    def unwanted(self) -> bool:
        """Whether anything that the negative prompt names is there."""
        named = () if self.negative is None else self.negative.things
        return any(_fit(wanted, thing)["all"] for wanted in named for thing in self.reading.things)

    @property
    def words(self) -> str:
        """What the reader saw, in the words of prompts, with "?" where it is not sure of a form."""
        things = self.reading.things
        wanted = [Wanted(t.form, t.colour, t.size) for t in things]
        doubts = ["?" if p < 0.5 else "" for p in self.reading.certainty]
        if self.prompt.relation and len(things) == 2:
            order = max(((0, 1), (1, 0)), key=lambda ks: self._hits([things[k] for k in ks]))
            return f" {relation_of(*(things[k] for k in order))} ".join(wanted[k].text() + doubts[k] for k in order)
        groups = Counter(zip(wanted, doubts, strict=True)).items()
        said = [f"{_NUMBERS.get(n, n)} {w.text(many=True)}" if n > 1 else w.text() for (w, _), n in groups]
        return ", ".join(text + doubt for text, ((_, doubt), _) in zip(said, groups, strict=True)) or "nothing"

    def _hits(self, things: Sequence[Thing]) -> int:
        """How many attributes are right if things come in this order."""
        return sum(sum(_fit(w, t).values()) for w, t in zip(self.prompt.things, things, strict=True))


class Row(NamedTuple):
    """Pictures of one setting. model: its name / w: guidance scale."""

    model: str
    w: float
    negative: Prompt | None
    seen: tuple[Seen, ...]


class Score(NamedTuple):
    """One line of the table. figures: attribute -> share that is right; seconds, rows: of sampling, None for real
    pictures.
    """

    model: str
    w: float | None
    figures: dict[str, float]
    rows: int | None = None
    seconds: float | None = None


@final
@dataclass(frozen=True, eq=False)
class ScenesRun:
    """names, titles: of the models / user, show: one row per setting / scores, real: of the test prompts."""

    names: tuple[str, ...]
    titles: tuple[str, ...]
    size: Size
    ask: Ask
    user: tuple[Row, ...]
    show: tuple[Row, ...]
    scores: tuple[Score, ...]
    real: Score

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "models": dict(zip(self.names, self.titles, strict=True)),
            "steps": self.size.steps,
            "prompt": self.ask.prompt.text,
            "negative": None if self.ask.negative is None else self.ask.negative.text,
            "user": list(_pictures(self.user)),
            "showcase": list(_pictures(self.show)),
            "prompts": self.size.prompts,
            "accuracy": [score._asdict() for score in self.scores],
            "real": self.real._asdict(),
        }


@final
@dataclass(frozen=True, eq=False)
class Studio:
    """A model that draws and a reader that looks. title: of the model, for people."""

    name: str
    model: Denoiser
    net: Detector
    steps: int
    seed: int

    @property
    def title(self) -> str:
        """The network and what it predicts."""
        return f"{type(self.model.net).__name__}, {self.model.output.name}"

    def draw(self, prompts: Sequence[Prompt], w: float, negative: Prompt | None = None) -> tuple[list[Seen], int]:
        """One picture per prompt, and the rows of network calls it took."""
        result = sample(
            self.model,
            registry.grid("karras", self.model.path, self.steps, sigma_min=SIGMA_MIN),
            samples=len(prompts),
            seed=self.seed,
            cond={"tokens": tokenize(prompts)},
            conds={} if negative is None else {"negative": {"tokens": negative.tokens}},
            solver=registry.solver(SOLVER, self.model.path),
            guidance=CFG(w, "null" if negative is None else "negative"),
        )
        return _seen(self.net, result.x, prompts, negative), result.counts.rows

    def user(self, ask: Ask, size: Size) -> Iterator[Row]:
        """The user's prompt at every scale, and with the negative prompt."""
        settings = [(w, None) for w in size.scales] + ([(SCALE, ask.negative)] if ask.negative else [])
        for w, negative in settings:
            seen, _ = self.draw([ask.prompt] * size.copies, w, negative)
            yield Row(self.name, w, negative, tuple(seen))

    def show(self, size: Size) -> Row:
        """The prompts for show, `size.show` times in turn."""
        seen, _ = self.draw([parse(text) for text in SHOWCASE] * size.show, SCALE)
        return Row(self.name, SCALE, None, tuple(seen))

    def scores(self, prompts: Sequence[Prompt], size: Size) -> Iterator[Score]:
        """The shares that come out right at every scale."""
        for w in size.scales:
            begin = time.perf_counter()
            seen, rows = self.draw(prompts, w)
            seconds = time.perf_counter() - begin
            yield Score(self.name, w, _shares(seen), rows, round(seconds, 2))


def draw_scenes(names: Sequence[str], reader: str, ask: Ask, size: Size, seed: int) -> ScenesRun:
    """Draw and read everything, and tell stderr how it goes. names, reader: models and detector, see `zoo`."""
    net, say = zoo.load_detector(reader), console()
    studios = [Studio(name, zoo.load(name), net, size.steps, seed) for name in names]
    scenes, some = testing(), range(size.prompts)
    prompts = scenes.prompts(some)
    real = Score("real pictures", None, _shares(_seen(net, scenes.batch(some)[0], prompts)))
    user: list[Row] = []
    show: list[Row] = []
    scores: list[Score] = []
    for studio in studios:
        begin = time.perf_counter()
        user += studio.user(ask, size)
        show.append(studio.show(size))
        scores += studio.scores(prompts, size)
        say.print(f"[dim]prompts[/]  {studio.title:<24} {time.perf_counter() - begin:6.2f} s")
    titles = tuple(studio.title for studio in studios)
    return ScenesRun(tuple(names), titles, size, ask, tuple(user), tuple(show), tuple(scores), real)


def _seen(net: Detector, x: Tensor, prompts: Sequence[Prompt], negative: Prompt | None = None) -> list[Seen]:
    """Pictures (N, 3, 32, 32), read."""
    read = readings(net, x.clamp(-1, 1))
    return [Seen(x, prompt, negative, reading) for x, prompt, reading in zip(x, prompts, read, strict=True)]


def _fit(wanted: Wanted, thing: Thing) -> Mapping[str, bool]:
    """What of one thing is right."""
    return verdict(Prompt((wanted,)), (thing,))


def _shares(seen: Sequence[Seen]) -> dict[str, float]:
    """The share of pictures right in each respect, over those whose prompt asks for it."""
    flags = [s.flags for s in seen]
    names = dict.fromkeys(name for f in flags for name in f)
    return {n: sum(f[n] for f in flags if n in f) / sum(n in f for f in flags) for n in names}


def _pictures(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    for row in rows:
        for seen in row.seen:
            asked = {"model": row.model, "w": row.w, "prompt": seen.prompt.text, "negative": row.negative is not None}
            yield {**asked, "seen": seen.words, "right": seen.right}
