"""The table of contents of the library: methods, solvers and grids by name. Strings only; nothing is imported until
asked for.

A method is one line of `METHODS`: its name on the command line, what it is called, the paper, the module that holds it
and the recipe that puts its claim to the test. Other packages add lines through entry points:

    [project.entry-points."wayfield.methods"]
    my-method = "my_package.card:METHOD"            # a `Method`

Every look-up of an unknown name raises `UnknownNameError` with the nearest known one.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, final

from wayfield.core.errors import MissingExtraError, UnknownNameError, WayfieldError, unknown_name

if TYPE_CHECKING:
    from wayfield.core.grid import Grid
    from wayfield.core.path import Path
    from wayfield.solve import Adaptive, Solver

__all__ = [
    "GRIDS",
    "METHODS",
    "SOLVERS",
    "Method",
    "Part",
    "as_json",
    "grid",
    "method",
    "methods",
    "recipe",
    "require",
    "solver",
]

GROUP = "wayfield.methods"


@final
@dataclass(frozen=True)
class Method:
    """One line of the table. name: on the command line / title, paper: for people / module: where the code is /
    recipe: "module:function" of ``run(seeds, quick, out) -> Report``.
    """

    name: str
    title: str
    paper: str
    module: str
    recipe: str


METHODS: Mapping[str, Method] = {
    line.name: line
    for line in (
        Method(
            "ddpm-ddim-ldm",
            "DDPM, DDIM and latent diffusion: the shared core",
            "Shah, Gromis, Pinto 2024, arXiv 2412.14422",
            "wayfield.core",
            "wayfield.recipes.ddpm_ddim_ldm:run",
        ),
        Method(
            "apg",
            "Adaptive projected guidance: high scales without burnt colours",
            "Sadat, Hilliges, Weber 2024, arXiv 2410.02416",
            "wayfield.guide.apg",
            "wayfield.recipes.apg:run",
        ),
        Method(
            "adaptive-guidance",
            "Adaptive guidance: the second evaluation only while it matters",
            "Castillo, Kohler, Perez et al. 2023, arXiv 2312.12487",
            "wayfield.guide.adaptive",
            "wayfield.recipes.adaptive_guidance:run",
        ),
        Method(
            "elucd",
            "EluCD: off-the-shelf classifiers as guides",
            "Ma, Hu, Wang, Sun 2023, arXiv 2310.11311",
            "wayfield.guide.elucd",
            "wayfield.recipes.elucd:run",
        ),
        Method(
            "gfcg",
            "GFCG: away from the class a sample is confused with",
            "Shenoy, Pan, Balakrishnan et al. 2024, arXiv 2411.15393",
            "wayfield.guide.gfcg",
            "wayfield.recipes.gfcg:run",
        ),
        Method(
            "ppap",
            "PPAP: noise-aware experts of any clean network",
            "Go, Lee, Kim et al. 2022, arXiv 2212.05973",
            "wayfield.guide.ppap",
            "wayfield.recipes.ppap:run",
        ),
        Method(
            "dynamic-cfg",
            "Dynamic CFG: each sample's scale at each step, by online feedback",
            "Papalampidi, Wiles, Ktena et al. 2025, arXiv 2509.16131",
            "wayfield.guide.dynamic",
            "wayfield.recipes.dynamic_cfg:run",
        ),
        Method(
            "rlg",
            "RLG: a dial between a model and its fine-tuned copy",
            "Jin et al. 2025, arXiv 2508.21016",
            "wayfield.guide.rlg",
            "wayfield.recipes.rlg:run",
        ),
        Method(
            "nasa",
            "NASA: a negative prompt inside the network",
            "Nguyen et al. 2024, arXiv 2412.02687",
            "wayfield.guide.nasa",
            "wayfield.recipes.nasa:run",
        ),
        Method(
            "programmable-vi",
            "Programmable variational inference: objectives as programs, a gradient estimator per site",
            "Becker et al. 2024, arXiv 2406.15742",
            "wayfield.vi",
            "wayfield.recipes.programmable_vi:run",
        ),
    )
}
"""The methods of this package, by name."""


@final
@dataclass(frozen=True)
class Part:
    """A class by name, with fields that differ from its defaults. target: "module:object" / note: what it is."""

    target: str
    note: str
    fields: Mapping[str, Any] = field(default_factory=dict)


SOLVERS: Mapping[str, Part] = {
    "ddim": Part("wayfield.solve:DDIM", "DDIM, deterministic, 1 evaluation a step"),
    "ancestral": Part("wayfield.solve:Ancestral", "DDPM's ancestral steps, stochastic, 1 evaluation a step"),
    "euler": Part("wayfield.solve:Euler", "Euler on the velocity, 1 evaluation a step"),
    "heun": Part("wayfield.solve:Heun", "Heun in the EDM state, order 2, 2 evaluations a step"),
    "dpm2m": Part("wayfield.solve:DPM2M", "DPM-Solver++(2M), order 2, 1 evaluation a step"),
    "dpm2m-sde": Part("wayfield.solve:DPM2M", "SDE-DPM-Solver++(2M), stochastic, 1 evaluation a step", {"eta": 1.0}),
    "dpm3m": Part("wayfield.solve:DPM3M", "DPM-Solver++(3M), order 3, 1 evaluation a step"),
    "dpm2s": Part("wayfield.solve:DPM2S", "DPM-Solver++(2S), order 2, 2 evaluations a step"),
    "unipc": Part("wayfield.solve:UniPC", "UniPC, order 3, 1 evaluation a step"),
    "churn": Part("wayfield.solve:Churn", "EDM's stochastic sampler, 2 evaluations a step"),
    "pc": Part("wayfield.solve:PredictorCorrector", "predictor-corrector, stochastic, 2 evaluations a step"),
    "adaptive": Part("wayfield.solve:Adaptive", "step sizes of each sample's own; the grid gives the ends"),
}
"""Solvers by their names on the command line."""

GRIDS: Mapping[str, str] = {
    "karras": "equal steps in sigma^(1/7)",
    "uniform": "equal steps in t",
    "log-snr": "equal steps in log-SNR",
    "exponential": "noise levels in geometric progression, the same as log-snr",
}
"""Grids by their names on the command line, and what they are."""


def methods() -> dict[str, Method]:
    """All methods: this package's, then those of entry points. A broken or clashing entry point is left out, with a
    warning.
    """
    out = dict(METHODS)
    for point in entry_points(group=GROUP):
        try:
            out.setdefault(point.name, _plugin(point))
        except WayfieldError as error:
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)
    return out


def method(name: str) -> Method:
    """The method of that name. Raises UnknownNameError; other packages are imported only if it is one of theirs."""
    if name in METHODS:
        return METHODS[name]
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name in points:
        return _plugin(points[name])
    raise unknown_name("method", name, [*METHODS, *points])


def as_json(line: Method) -> dict[str, str]:
    """A line as plain values under the keys that scripts may count on: name, title, paper, module, recipe."""
    return asdict(line)


def recipe(line: Method) -> Callable[..., Any]:
    """The recipe of a method, imported now: ``run(seeds, quick, out) -> Report``."""
    return _resolve(line.recipe)


def solver(name: str, path: Path | None = None) -> Solver | Adaptive:
    """The solver of that name. path: what it will run on; churn then stays below the path's highest noise level."""
    if name not in SOLVERS:
        raise unknown_name("solver", name, SOLVERS)
    part = SOLVERS[name]
    fields = dict(part.fields)
    if name == "churn" and path is not None:
        # a churned level is up to sqrt(2) times the step's own
        fields["s_max"] = min(50.0, 0.999 * _levels(path)[1] / math.sqrt(2))
    return _resolve(part.target)(**fields)


def grid(name: str, path: Path, steps: int, *, sigma_min: float = 0.002, sigma_max: float | None = None) -> Grid:
    """The grid of that name over the levels of `path`, from its noisiest (80 where that is infinite) to its clean end.

    sigma_min, sigma_max: the last level before the clean end and the first, as sigma/alpha; "uniform" has no use for
    them.
    Raises UnknownNameError, RangeError for steps < 1 and GridError for levels that the path does not have.
    """
    from wayfield.core import grid as grids

    if name not in GRIDS:
        raise unknown_name("grid", name, GRIDS)
    if name == "uniform":
        return grids.uniform(path, steps)
    low, high = _levels(path)
    low, high = max(low, sigma_min), sigma_max or high
    if name == "log-snr":
        return grids.log_snr(path, steps, start=-2 * math.log(high), end=-2 * math.log(low))
    make = grids.karras if name == "karras" else grids.exponential
    return make(path, steps, sigma_min=low, sigma_max=high)


def require(module: str) -> Any:
    """An optional module of the command line, imported now. Raises MissingExtraError with the command that installs
    it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"PIL": "pillow"}.get(module.split(".")[0], module.split(".")[0])
        remedy = 'Run: pip install "wayfield[cli]".'
        raise MissingExtraError(
            package, got="not installed", expected=f"an importable {package}", remedy=remedy
        ) from error


def _levels(path: Path) -> tuple[float, float]:
    """The lowest and the highest noise level of a path that a grid of the command line visits."""
    import torch

    ends = (-0.5 * path.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))).exp().tolist()
    # a path that ends above zero is left by a hair, so that its last noisy level and its end stay apart
    return ends[0] * 1.001, ends[1] if math.isfinite(ends[1]) else 80.0


def _plugin(point: EntryPoint) -> Method:
    """The line behind an entry point. Raises UnknownNameError if it cannot be imported or is no line of the table."""
    what = f"entry point {point.name!r} = {point.value!r}"
    remedy = "Ask the package that installs it, or uninstall it."
    try:
        line = point.load()
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise UnknownNameError(what, got=got, expected="an importable object", remedy=remedy) from error
    if not isinstance(line, Method) or line.name != point.name:
        raise UnknownNameError(what, got=repr(line), expected=f"a Method named {point.name!r}", remedy=remedy)
    if point.name in METHODS:
        raise UnknownNameError(what, got="a name that wayfield has", expected="a new name", remedy=remedy)
    return line


def _resolve(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)
