"""What can be asked of the command line: one frozen dataclass per command, its fields the options, its `run` the
answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, final

import tyro
from tyro.conf import (
    FlagCreatePairsOff,
    OmitArgPrefixes,
    OmitSubcommandPrefixes,
    Positional,
    UseAppendAction,
    arg,
    subcommand,
)

from wayfield import __version__, registry
from wayfield.core.errors import RangeError, unknown_name
from wayfield.doors.console import DONE, REFUTED, asked, console, emit, emit_paths, table

__all__ = ["Bench", "Command", "Demo", "Methods", "RunMethod", "Sample", "Train", "parse"]


@final
@dataclass(frozen=True)
class Demo:
    """Draw pictures from prompts, clothes by class, and digits with many samplers; judge them all, print tables, write
    pictures and an HTML report.
    """

    prompt: Annotated[str | None, arg(metavar="TEXT")] = None
    """a caption of your own, e.g. "the digit 7 in green", instead of the one that is set"""
    negative: Annotated[str | None, arg(metavar="TEXT")] = None
    """what pictures of that caption shall not show"""

    out: FilePath = FilePath("runs/demo")
    """folder of the report"""
    quick: bool = False
    """a quarter of the samples or less, and short runs only"""
    seed: int = 0
    """of the noise"""
    json: bool = False
    """print the figures as JSON on stdout"""

    def run(self) -> int:
        """Draw, judge, write."""
        from wayfield.demo import demo
        from wayfield.demo.scenes import Ask

        with asked():
            ask = Ask.of(self.prompt, self.negative)
        result = demo(self.out, self.quick, self.seed, ask)
        if self.json:
            emit(result.to_json())
        else:
            emit_paths(result.files)
        return DONE


@final
@dataclass(frozen=True)
class Methods:
    """List the published methods of the library."""

    json: bool = False
    """print {name, title, paper, module, recipe} of each as JSON on stdout"""

    def run(self) -> int:
        """Print the registry."""
        lines = [registry.as_json(line) for line in registry.methods().values()]
        if self.json:
            emit(lines)
        else:
            rows = [(f"[bold]{line['name']}[/]", line["title"], line["paper"], line["module"]) for line in lines]
            table(
                "Methods", ("name", "title", "paper", "module"), rows, left=4, note="wayfield run NAME tests its claim"
            )
        return DONE


@final
@dataclass(frozen=True)
class Sample:
    """Draw samples from a model; write them as safetensors and, for pictures, as a PNG sheet."""

    model: str = "digits"
    """name in the zoo, or the file or folder that `wayfield train` wrote"""
    label: str = "none"
    """a class, "each" for all classes in turn, or "none" for unconditional samples"""
    prompt: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT")] = ()
    """what each picture shall show, for models that read words; several, given one by one, take turns"""
    negative: Annotated[str | None, arg(metavar="TEXT")] = None
    """what no picture shall show; takes the place of u below"""
    n: Annotated[int, arg(aliases=["-n"])] = 16
    """how many; write -n under torchrun, which takes --n for itself"""
    first: int = 0
    """address of the first; sample k is the same in any run, batch or number of processes"""
    solver: str = "heun"
    """ddim, ancestral, euler, heun, dpm2m, dpm2m-sde, dpm3m, dpm2s, unipc, churn, pc or adaptive"""
    steps: int = 20
    """of the grid"""
    grid: str = "karras"
    """karras, uniform, log-snr or exponential"""
    sigma_min: float = 0.002
    """last noise level before the clean end; not for uniform"""
    w: Annotated[float | None, arg(metavar="FLOAT")] = None
    """guidance scale of c + (w - 1)(c - u), 1 means no guidance; by default 3 with a prompt, else 1"""
    guidance: Annotated[str | None, arg(metavar="EXPRESSION")] = None
    """instead of --w, an expression such as CFG(3).when(Interval(high=2.0)) + Auto(2)"""
    net: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=MODEL")] = ()
    """a further network that the guidance names, such as weak=digits-weak"""
    seed: int = 0
    """of the noise"""
    out: FilePath = FilePath("runs/sample")
    """folder of samples.safetensors and sheet.png"""
    batch: int = 256
    """samples drawn at a time"""
    checkpoint: Annotated[FilePath | None, arg(metavar="FILE")] = None
    """keep the state of the run in this file and go on from it; removed at the end"""
    compile: bool = False
    """compile the steps; needs a C++ compiler"""
    device: str = "cpu"
    """where to compute; several processes follow their launcher"""
    json: bool = False
    """print counts and paths as JSON on stdout"""

    def run(self) -> int:
        """Draw and write."""
        from wayfield.doors.draw import draw

        return draw(self)


@final
@dataclass(frozen=True)
class Train:
    """Train a model from a JSON config, or on a folder of pictures; interrupt it when you like, the same command goes
    on.
    """

    config: Annotated[Positional[FilePath | None], arg(metavar="[CONFIG.json]")] = None
    """what to train, see `wayfield.train.run`; without it --data is needed, and OUT/config.json is made"""
    data: Annotated[str | None, arg(metavar="FOLDER|NAME")] = None
    """folder of pictures, or name of a dataset, instead of the config's"""
    size: Annotated[int | None, arg(metavar="INT")] = None
    """side of a picture in pixels, by default one that suits the folder"""
    labels: bool = True
    """learn the classes: sub-folders of the folder, or those of the dataset"""
    corrupt: Annotated[str | None, arg(metavar="raise|skip")] = None
    """what to do with damaged files of the folder, by default raise"""
    net: Annotated[str | None, arg(metavar="unet|dit")] = None
    """network, where there is no config; by default unet"""
    steps: Annotated[int | None, arg(metavar="INT")] = None
    """optimiser steps, instead of the config's"""
    batch: Annotated[int | None, arg(metavar="INT")] = None
    """samples in a step over all processes, instead of the config's"""
    seed: Annotated[int | None, arg(metavar="INT")] = None
    """of everything random, instead of the config's"""
    out: FilePath = FilePath("runs/train")
    """folder of model.safetensors, the checkpoint, the log and sheets of samples"""
    resume: bool = True
    """go on from the checkpoint in the folder"""
    tensorboard: bool = False
    """write OUT/tensorboard too; needs the package"""
    device: Annotated[str | None, arg(metavar="STR")] = None
    """where to compute, by default the GPU if there is one"""
    json: bool = False
    """print the outcome as JSON on stdout"""

    def run(self) -> int:
        """Train."""
        from wayfield.doors.train import run

        return run(self)


@final
@dataclass(frozen=True)
class RunMethod:
    """Put a method's claim to the test: run its recipe. Exit code 0 if the claim held, 3 if it did not."""

    method: Annotated[Positional[str], arg(metavar="METHOD")]
    """name of the method, see `wayfield methods`"""
    seeds: int = 3
    """independent repetitions"""
    quick: bool = False
    """a small version that checks the machinery, not the claim"""
    out: Annotated[FilePath | None, arg(metavar="PATH")] = None
    """folder of the report, by default runs/METHOD"""
    json: bool = False
    """print the report as JSON on stdout"""

    def run(self) -> int:
        """Run the recipe and say what came out."""
        with asked():
            line = registry.method(self.method)
            if self.seeds < 1:
                raise RangeError("seeds", got=self.seeds, expected="at least 1", remedy="Try --seeds 3.")
        out = self.out or FilePath("runs") / self.method
        report = registry.recipe(line)(seeds=self.seeds, quick=self.quick, out=out)
        path = report.write(out)
        rows = [
            (c.name, f"{c.value:.4g}", c.bar if isinstance(c.bar, str) else f"{c.bar:.4g}", _verdict(c.passed))
            for c in report.criteria
        ]
        table(line.title, ("criterion", "value", "bar", "passed"), rows)
        say = console()
        say.print(f"claim: {report.claim}", soft_wrap=True, markup=False)
        verdict = "[bold green]held[/]" if report.passed else "[bold red]not reproduced[/]"
        say.print(f"{verdict} in {report.seconds:.1f} s; wrote {path}", soft_wrap=True)
        emit(report.to_json()) if self.json else emit_paths([path])
        return DONE if report.passed else REFUTED


@final
@dataclass(frozen=True)
class Bench:
    """Compare with peers and hand-written loops, side by side: ratios of times, below 1 where wayfield is faster."""

    suite: Annotated[Positional[str], arg(metavar="SUITE")]
    """name of the suite, e.g. steps"""
    quick: bool = False
    """few repetitions"""
    json: bool = False
    """print the rows as JSON on stdout"""

    def run(self) -> int:
        """Run the suite."""
        from wayfield import bench

        with asked():
            if self.suite not in bench.SUITES:
                raise unknown_name("suite", self.suite, bench.SUITES)
        rows = [row._asdict() for row in bench.run(self.suite, quick=self.quick)]
        if self.json:
            emit(rows)
        names, ratios, counts = ("case", "subject", "peer"), ("ratio", "low", "high"), ("calls", "rows")
        cells = [(*(r[k] for k in names), *(f"{r[k]:.3f}" for k in ratios), *(str(r[k]) for k in counts)) for r in rows]
        heads = ("case", "subject", "peer", "ratio", "10 %", "90 %", "calls", "rows")
        table(f"Suite {self.suite}", heads, cells, left=3, note="ratio of times, subject / peer; below 1 is faster")
        return DONE


COMMANDS = {"demo": Demo, "methods": Methods, "sample": Sample, "train": Train, "run": RunMethod, "bench": Bench}

Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Methods, subcommand("methods")]
    | Annotated[Sample, subcommand("sample")]
    | Annotated[Train, subcommand("train")]
    | Annotated[RunMethod, subcommand("run")]
    | Annotated[Bench, subcommand("bench")]
)


def parse(args: list[str]) -> Demo | Methods | Sample | Train | RunMethod | Bench:
    """The command that was asked for. Raises SystemExit where the parser has already answered: help, version,
    misuse.
    """
    if args == ["--version"]:
        print(f"wayfield {__version__}")
        raise SystemExit(DONE)
    if args and not args[0].startswith("-") and args[0] not in COMMANDS:
        with asked():
            raise unknown_name("command", args[0], COMMANDS)
    about = f"wayfield {__version__}: steering generative models. Results go to stdout, words for people to stderr."
    config = (FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes)
    return tyro.cli(Command, args=args or ["--help"], prog="wayfield", description=about, config=config)  # pyright: ignore


def _verdict(passed: bool) -> str:
    return "[green]yes[/]" if passed else "[red]no[/]"
