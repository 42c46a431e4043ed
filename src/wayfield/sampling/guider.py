r"""Guidance of this library as a guider of diffusers' modular pipelines, as far as their interface allows.

Their loop asks a guider which branches it wants, runs the network once for each, and hands back the answers. Here the
same plan that `sample` follows names the branches, and the same terms are called, on answers that are already there.

.. math:: y_c, y_u \;\rightarrow\; \hat{x}_0 = \text{base} + \text{push}(\text{term}) \;\rightarrow\; \hat{y}

    pipe.update_components(guider=as_guider(apg(7, r=15), pipe.scheduler))

y: (B, *D), what the network answers with / x0: at the noisy points, which a guider is not told: they are read off the
network's input while it runs, and the noise level off the scheduler. Guidance that is a weighted sum of answers needs
neither.

======================================  ================================================================================
as in `sample`                          gates (also AG), schedules, shapers in x0 (APG, rescaling), memory over steps,
                                        held and predicted answers, clipping, a negative prompt
costs more here                         every branch is a call of its own; a branch runs for all samples or for none, so
                                        that a sample whose gate has closed is spared only once all have
refused by `as_guider`                  gradients of the network, second networks, more conditions than a prompt and a
                                        negative one, patches, a noise of its own (CFG++), looking ahead, tables fitted
                                        to a run of `sample`, what varies by step under schedulers of second order
not to be had                           solvers, correctors, seeds by sample, compiled steps: the loop is theirs
======================================  ================================================================================

"null" and "negative" both mean their second branch, whatever prompt they encode for it. The time of each step is read
from the device, up to three numbers. Their `start` and `stop` are gates here. Guiders are marked experimental in
diffusers; this was tried with 0.40 to 0.42.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wayfield.core.errors import ConditionError, MissingExtraError, ShapeError, UnsupportedError
from wayfield.core.path import EDM, Straight
from wayfield.core.schedule import Tabulated
from wayfield.field.binding import COND, Query
from wayfield.field.hf_path import told
from wayfield.guide.dynamic import Greedy
from wayfield.guide.elucd import EluCD
from wayfield.guide.guidance import Guidance, guidance_of
from wayfield.guide.nasa import NASA
from wayfield.guide.pag import PAG
from wayfield.guide.seg import SEG
from wayfield.guide.slg import SLG
from wayfield.guide.terms import Term
from wayfield.sampling.stepwise import Planned, Stepwise, wide

__all__ = ["as_guider"]

_NAMES = ("pred_cond", "pred_uncond")
_INPUTS = ("sample", "hidden_states")
"""What networks of diffusers call their noisy points."""
_SECOND = ("null", "negative")
"""Names of the condition that is their second branch."""


def as_guider(guidance: Guidance | Term | None, scheduler: Any) -> Any:
    """A guider for modular pipelines of diffusers that steers as `guidance` does in `sample`.

    scheduler: the pipeline's own, the very object that makes its steps; the noise level of a step is read from it.
    Raises MissingExtraError without diffusers, UnsupportedError for guidance that a guider cannot give and for
    schedulers that `from_diffusers` does not read; while it runs, ConditionError where the loop has no negative prompt,
    ShapeError where the network's input is more than its noisy points, UnsupportedError for another scheduler's steps.
    """
    rule, read = guidance_of(guidance), told(scheduler)
    _check(rule, scheduler)
    made = _made()()
    made.scheduler, made.sign, made.run = scheduler, read.sign, Stepwise(rule, read.path, read.kind)
    made.register_to_config(guidance=repr(guidance))
    return made


class _Guider:
    """What is ours in a guider; `_made` joins it with diffusers' base class."""

    _input_predictions: ClassVar[list[str]] = list(_NAMES)
    scheduler: Any
    sign: float
    run: Stepwise
    _enabled: bool
    _step: int
    _num_inference_steps: int
    _timestep: Any
    _count_prepared: int
    _now: Planned | None = None
    _points: Tensor | None = None
    _hook: Any = None

    @property
    def num_conditions(self) -> int:
        """Branches of the step that is running; between steps, all there may be."""
        return len(self._asked)

    @property
    def is_conditional(self) -> bool:
        """Whether the branch that runs is the prompt's."""
        return self._asked[max(self._count_prepared, 1) - 1] == COND

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Begin step `step`; step 0 begins a run."""
        self._base.set_state(self, step, num_inference_steps, timestep)
        self._now = self._points = None
        self._unwatch()  # the step before may have failed on its way
        if step == 0:
            self.run.reset()

    def prepare_inputs(self, data: Mapping[str, Any]) -> list[Any]:
        """The inputs of each branch. data: name -> (prompt's, negative's), or one tensor for both."""
        return self._prepared(data, lambda k, name: self._base._prepare_batch(data, k, name))

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        """The inputs of each branch. input_fields: name -> names in `data`, as of `prepare_inputs`."""

        def given(names: Any) -> Any:
            return tuple(map(given, names)) if isinstance(names, tuple) else getattr(data, str(names), None)

        values = {key: given(names) for key, names in input_fields.items()}
        make = self._base._prepare_batch_from_block_state
        return self._prepared(values, lambda k, name: make(input_fields, data, k, name))

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Before a branch runs: watch for the noisy points."""
        self._base.prepare_models(self, denoiser)
        if self._points is None:
            self._hook = denoiser.register_forward_pre_hook(self._watch, with_kwargs=True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """After a branch: the network is as it was."""
        self._unwatch()

    def forward(self, pred_cond: Tensor | None = None, pred_uncond: Tensor | None = None) -> Any:
        """The guided answer, in the type of the answers."""
        made = importlib.import_module("diffusers.guiders.guider_utils").GuiderOutput
        now, self._now = self._now, None
        if now is None:  # disabled
            return made(pred=pred_cond, pred_cond=pred_cond, pred_uncond=None)
        answers = [self.sign * y for y in (pred_cond, pred_uncond) if y is not None]
        pred = self.sign * self.run.finish(now, answers, self._seen(now, answers[0]))
        return made(pred=pred.to(answers[0].dtype), pred_cond=pred_cond, pred_uncond=pred_uncond)

    def new(self) -> Any:
        """Another guider of the same guidance, as at the beginning."""
        return as_guider(self.run.rule, self.scheduler)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False) -> None:
        """Raises UnsupportedError: diffusers could not read it back."""
        raise _unsupported("save_pretrained", "save_guidance", "Save the guidance itself, with save_guidance.")

    @property
    def _base(self) -> Any:
        return _base()

    @property
    def _asked(self) -> tuple[Query, ...]:
        if not self._enabled:
            return (COND,)
        return self.run.order if self._now is None else self._now.asked

    def _prepared(self, values: Mapping[str, Any], make: Callable[[int, str], Any]) -> list[Any]:
        if self._enabled:
            rows, like = _batch(values)
            self._now = self.run.decide(self._step, self._num_inference_steps, self._time(), rows, like)
        pairs = [v for v in values.values() if isinstance(v, tuple)]
        if self._asked != (COND,) and not any(v[0] is not None and v[1] is not None for v in pairs):
            remedy = "Give the pipeline a negative prompt (it may be empty), or guidance that needs none."
            got = "a loop without a negative branch"
            raise ConditionError("guider", got=got, expected="a prompt and a negative prompt", remedy=remedy)
        return [make(int(q != COND), _NAMES[q != COND]) for q in self._asked]

    def _seen(self, now: Planned, y: Tensor) -> Tensor:
        """The points that the network was given, in the type to compute in; zeros where they cancel."""
        if now.linear:
            return torch.zeros_like(y, dtype=wide(y.dtype))
        x, level = self._points, self.run.level(now, y)
        if x is None or x.shape != y.shape:
            got, remedy = None if x is None else tuple(x.shape), "Here use CFG, or another weighted sum of answers."
            raise ShapeError("network input", got=got, expected=f"points {tuple(y.shape)}", remedy=remedy)
        x = x.to(wide(y.dtype))
        return x if level.c_in is None else x / level.c_in

    def _watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = next((kwargs[name] for name in _INPUTS if name in kwargs), args[0] if args else None)
        self._points = x if isinstance(x, Tensor) else None

    def _unwatch(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _time(self) -> Tensor:
        """The time on the path of this step, (), from where the scheduler stands."""
        path, sigmas, now = self.run.model.path, getattr(self.scheduler, "sigmas", None), float(self._timestep)
        if sigmas is None:
            assert isinstance(path, Tabulated)
            return torch.tensor((now + 1) / path.T, dtype=torch.float64)
        k = self.scheduler.step_index
        k = self.scheduler.begin_index if k is None else k
        k = self.scheduler.index_for_timestep(self._timestep) if k is None else k
        here = float(self.scheduler.timesteps[k])
        if abs(here - now) > 1e-3 * max(1.0, abs(now)):
            remedy = "Pass the scheduler of the pipeline that runs, and let it make every step."
            raise _unsupported(f"time {now:g}", f"{here:g}, where the scheduler stands", remedy)
        sigma = sigmas[k].double().cpu()
        if isinstance(path, Straight):
            return sigma
        return sigma / path.sigma_max if isinstance(path, EDM) else path.time(-2 * sigma.log())


def _check(rule: Guidance, scheduler: Any) -> None:
    """Raise UnsupportedError for what the interface has no place for."""
    here = "Use `sample` or `steer` for it."
    if rule.extra or any(q.net != "main" for q in rule.told):
        raise _unsupported("a second network", "one network", here)
    if any(q.grad for q in rule.told):
        raise _unsupported("gradients of the network", "answers without gradients", here)
    others = {q.cond for q in rule.told if q != COND}
    if len(others) > 1 or not others <= set(_SECOND):
        expected = "'cond' and one of 'null' and 'negative': a loop has a prompt and a negative prompt"
        raise _unsupported(f"conditions {sorted(others)}", expected, here)
    if rule.noise is not None:
        raise _unsupported("a noise of its own", "a pair (x0, eps) of one point, which one answer can tell", here)
    for part in rule.parts:
        if isinstance(part, Greedy | EluCD):
            raise _unsupported(f"{type(part).__name__}, which looks ahead", "this step's level alone", here)
        if isinstance(part, NASA | PAG | SEG | SLG):
            raise _unsupported(f"{type(part).__name__}, which acts inside the network", "a guider of their own", here)
        if getattr(part, "fingerprint", ()):
            remedy = "Use `sample`, or dataclasses.replace(it, fingerprint=()) if you know that it fits."
            raise _unsupported("a table fitted to a run", "one that fits any run", remedy)
    name = type(scheduler).__name__
    if (getattr(scheduler, "order", 1) > 1 or name == "PNDMScheduler") and not rule.timeless:
        raise _unsupported(f"{name}, with two evaluations in a step", "one", here)


def _batch(values: Mapping[str, Any]) -> tuple[int, Tensor]:
    """How many samples there are, and a tensor of their type; from the prompt's inputs, in pairs before single ones."""
    pairs = [v for v in values.values() if isinstance(v, tuple)]
    for v in (*[pair[0] for pair in pairs], *[pair[1] for pair in pairs], *values.values()):
        like = v[0] if isinstance(v, list) and v else v
        if isinstance(like, Tensor) and like.ndim and like.is_floating_point():
            return len(v), like
    got, remedy = sorted(values), "Embeddings of the prompt tell the batch."
    raise ConditionError("guider", got=got, expected="a floating-point tensor among them", remedy=remedy)


def _unsupported(got: str, expected: str, remedy: str) -> UnsupportedError:
    return UnsupportedError("guidance as a guider", got=got, expected=expected, remedy=remedy)


@functools.cache
def _base() -> Any:
    try:
        return importlib.import_module("diffusers.guiders").BaseGuidance
    except (ImportError, AttributeError) as error:
        remedy = 'Run: pip install "wayfield[diffusers]".'
        raise MissingExtraError("guider", got="no guiders", expected="diffusers >= 0.40", remedy=remedy) from error


@functools.cache
def _made() -> Any:
    return type("WayfieldGuider", (_Guider, _base()), {"__doc__": _Guider.__doc__})
