r"""What a diffusers scheduler says of a model: its path, what its network answers and is told, and the times of a run.

A scheduler is read, never run. Its table of cumulative products is the path, in float64; where its levels lie between
rows they are met in log-SNR. Which times it visits it is asked itself, on a copy, so that every spacing and shift of
its options is as it says.

=====================  ===================================  ========================  ==================================
scheduler              path                                 network is told           answers
=====================  ===================================  ========================  ==================================
with `alphas_cumprod`  `Tabulated`, variance preserving     row 0..T-1                its `prediction_type`
EDM                    `EDM(sigma_max)`                     log(sigma)/4              the preconditioned answer, with
                                                                                      either sign
flow matching          `Straight`                           1000 t                    velocity, noise minus data
=====================  ===================================  ========================  ==================================

Schedulers that keep their points at x0 + sigma eps (Euler's, Heun's) are the same path in another unit: the point here
is theirs over sqrt(1 + sigma^2), which is what their network sees.

Where levels of DPM-Solver and UniPC lie between rows, diffusers tells the network whole rows: for Karras' levels the
nearest, and so it is done here; for exponential, beta and flow levels the one below, by a cut that rounding decides
wherever a level is a row, and there the network is told the level itself.

References: Song et al. 2021; Karras et al. 2022; Lipman et al. 2023; Esser et al. 2024 (the shift of flow times).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wayfield.core.errors import RangeError, UnsupportedError, unknown_name
from wayfield.core.grid import Grid
from wayfield.core.path import EDM, Path, Straight
from wayfield.core.predict import Kind
from wayfield.core.schedule import Tabulated

__all__ = ["Told", "flow_shift", "scheduler_grid", "start_scale", "told"]

_KINDS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_INFLATED = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler")
"""Those whose points are x0 + sigma eps."""
_WHOLE = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Those that tell their network whole rows."""
_GRIDS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    *_WHOLE,
    *_INFLATED,
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)


class Told(NamedTuple):
    """path, kind, time: as a `Denoiser` has them / sign: the network's answer times this is the kind's answer / whole:
    whether the scheduler tells the nearest whole row, wherever its level lies.
    """

    path: Path
    kind: Kind
    time: str
    sign: float = 1.0
    whole: bool = False


def told(scheduler: Any) -> Told:
    """How a scheduler has a network read. Raises UnsupportedError for one without a table or with another meaning."""
    config, name = scheduler.config, type(scheduler).__name__
    kind = config.get("prediction_type", "epsilon")
    if config.get("timestep_type") == "continuous":
        raise _unsupported(name, "timestep_type='continuous'", "network times that are rows of the table")
    if name.startswith("FlowMatch") or config.get("use_flow_sigmas"):
        if config.num_train_timesteps != 1000 or config.get("invert_sigmas"):
            got = f"num_train_timesteps={config.num_train_timesteps}, invert_sigmas={config.get('invert_sigmas')}"
            raise _unsupported(name, got, "1000 and False")
        return Told(Straight(), Kind("velocity"), "1000t")
    if config.get("sigma_data") is not None:
        if kind not in ("epsilon", "v_prediction"):
            raise _unsupported(name, f"prediction_type={kind!r}", "'epsilon' or 'v_prediction'")
        edm = Kind("edm", float(config.sigma_data))
        return Told(EDM(float(config.sigma_max)), edm, "log_sigma/4", 1.0 if kind == "epsilon" else -1.0)
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise _unsupported(name, "no alphas_cumprod", "a scheduler with a table, of the EDM or of the flow family")
    if kind not in _KINDS:
        raise unknown_name("prediction type", kind, _KINDS)
    path = Tabulated(tuple(scheduler.alphas_cumprod.double().tolist()))
    between = config.get("use_karras_sigmas") or config.get("use_lu_lambdas")
    whole = bool(between) and name in _WHOLE and config.beta_schedule != "squaredcos_cap_v2"
    return Told(path, Kind(_KINDS[kind]), "index", whole=whole)


def scheduler_grid(
    scheduler: Any, steps: int, *, mu: float | None = None, sigmas: Sequence[float] | None = None
) -> Grid:
    """The levels that a scheduler visits in a run of so many steps, and the one it ends at.

    mu: the shift of schedulers that ask for one, see `flow_shift` / sigmas: levels given to a flow scheduler, before
    its shift. A last step that would stay where it is has no place in a grid and is left out.
    Raises UnsupportedError, RangeError, GridError.
    """
    name, path = type(scheduler).__name__, told(scheduler).path
    if name not in _GRIDS:
        remedy = "Make a grid on the path of its denoiser, e.g. karras(model.path, 20) or spaced(model.path, 20)."
        known = ", ".join(_GRIDS)
        raise UnsupportedError("times of a scheduler", got=name, expected=f"one of {known}", remedy=remedy)
    if not isinstance(steps, int) or steps < 1:
        raise RangeError("steps", got=steps, expected="an integer >= 1", remedy="Ask for at least one step.")
    given = _asked(scheduler, steps, mu, sigmas)
    times = _times(given, path).tolist()
    return Grid(path, tuple(t for k, t in enumerate(times) if k == 0 or t != times[k - 1]))


def start_scale(scheduler: Any, grid: Grid) -> float:
    """What standard normal noise is multiplied by to be the first point of a run, as the scheduler has it.

    `sample` itself starts at sigma times noise; most schedulers ignore the signal left at their first level.
    """
    if isinstance(grid.path, EDM):
        return float(scheduler.init_noise_sigma)
    inflated = type(scheduler).__name__ in _INFLATED
    if inflated and scheduler.config.get("timestep_spacing") in ("linspace", "trailing"):
        return float(grid.scales.sigma[0])
    return 1.0


def flow_shift(scheduler: Any, tokens: int) -> float | None:
    """The shift mu of a flow scheduler for pictures of so many tokens, linear in them; None if it asks for none."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return None
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    share = (tokens - low) / (high - low)
    return config.base_shift + share * (config.max_shift - config.base_shift)


def _asked(scheduler: Any, steps: int, mu: float | None, sigmas: Sequence[float] | None) -> Any:
    """A copy that has laid out its run: `set_timesteps` would change the user's."""
    config, name = scheduler.config, type(scheduler).__name__
    shifted, flow = config.get("use_dynamic_shifting"), name.startswith("FlowMatch")
    if shifted != (mu is not None) and (shifted or mu is not None):
        raise _unsupported(name, f"mu={mu}", "mu=flow_shift(scheduler, tokens), which is None if none is needed")
    if sigmas is not None and not flow:
        raise _unsupported(name, "sigmas", "a flow scheduler for these")
    if sigmas is not None and len(sigmas) != steps:
        raise RangeError("sigmas", got=f"{len(sigmas)} levels", expected=f"{steps}", remedy="Give one for each step.")
    if hasattr(scheduler, "alphas_cumprod") and steps > config.num_train_timesteps:
        expected = f"1..{config.num_train_timesteps}"
        raise RangeError("steps", got=steps, expected=expected, remedy="The table has no more rows.")
    out, shift = copy.deepcopy(scheduler), {} if mu is None else {"mu": mu}
    out.set_timesteps(**({"num_inference_steps": steps} if sigmas is None else {"sigmas": list(sigmas)}), **shift)
    return out


def _times(given: Any, path: Path) -> Tensor:
    """Times on the path of a scheduler's levels, (N + 1,), float64."""
    steps, levels = given.timesteps.double().cpu(), getattr(given, "sigmas", None)
    if type(given).__name__ == "HeunDiscreteScheduler":  # lists inner levels twice, once for each evaluation
        steps, levels = (torch.cat([v[:1], v[1::2]]) for v in (steps, given.sigmas))
    if isinstance(path, Straight | EDM):
        return given.sigmas.double().cpu() / (path.sigma_max if isinstance(path, EDM) else 1.0)
    assert isinstance(path, Tabulated)
    rows = (steps + 1) / path.T
    if levels is None:
        last = torch.as_tensor(getattr(given, "final_alpha_cumprod", 1.0)).double().reshape(1)
        end = path.time(last.log() - torch.log1p(-last))
        return torch.cat([rows, end])
    # a time told is the level's own, except where it was rounded to a row
    t = path.time(-2 * levels.double().cpu().log())
    exact = (t[:-1] - rows).abs() * path.T < 0.01
    return torch.cat([torch.where(exact, rows, t[:-1]).clamp(max=1.0), t[-1:]])


def _unsupported(name: str, got: str, expected: str) -> UnsupportedError:
    remedy = "Use another scheduler of the model, or make the Denoiser by hand; see diffusers.md."
    return UnsupportedError(f"scheduler {name}", got=got, expected=expected, remedy=remedy)
