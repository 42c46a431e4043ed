"""wayfield: steering generative models.

    import wayfield as wf

    model = wf.load("digits")
    grid = wf.karras(model.path, 20, sigma_min=0.02, sigma_max=10.0)
    result = wf.sample(model, grid, samples=16, cond={"label": 3}, solver=wf.DPM2M(), guidance=wf.CFG(1.5))

Public names load on first use, so that importing the package costs little beyond torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wayfield.core.errors import WayfieldError as WayfieldError
    from wayfield.core.grid import (
        Grid as Grid,
        exponential as exponential,
        given as given,
        karras as karras,
        log_snr as log_snr,
        spaced as spaced,
        uniform as uniform,
    )
    from wayfield.core.noise import (
        BrownianNoise as BrownianNoise,
        Noise as Noise,
        RecordingNoise as RecordingNoise,
        ReplayNoise as ReplayNoise,
        SeededNoise as SeededNoise,
    )
    from wayfield.core.path import (
        EDM as EDM,
        VE as VE,
        VP as VP,
        Cosine as Cosine,
        Path as Path,
        Straight as Straight,
        Trig as Trig,
    )
    from wayfield.core.predict import (
        Kind as Kind,
        Prediction as Prediction,
        convert as convert,
        score as score,
        velocity as velocity,
    )
    from wayfield.core.schedule import Tabulated as Tabulated, from_betas as from_betas, tabulated as tabulated
    from wayfield.field.batching import Batching as Batching
    from wayfield.field.cond import Field as Field, Schema as Schema
    from wayfield.field.denoiser import Denoiser as Denoiser
    from wayfield.field.hf import from_diffusers as from_diffusers
    from wayfield.field.hf_path import scheduler_grid as scheduler_grid, start_scale as start_scale
    from wayfield.field.patch import install as install
    from wayfield.fitting.shared import load_guidance as load_guidance, save_guidance as save_guidance
    from wayfield.guide import (
        AG as AG,
        APG as APG,
        CFG as CFG,
        COND as COND,
        GFCG as GFCG,
        NASA as NASA,
        NULL as NULL,
        PAG as PAG,
        PLAIN as PLAIN,
        RLG as RLG,
        SEG as SEG,
        SLG as SLG,
        Auto as Auto,
        Away as Away,
        Bands as Bands,
        ClassifierGuidance as ClassifierGuidance,
        EluCD as EluCD,
        Energy as Energy,
        Greedy as Greedy,
        Guidance as Guidance,
        Hold as Hold,
        Interval as Interval,
        JudgeGuidance as JudgeGuidance,
        LinearAG as LinearAG,
        MagnitudeAware as MagnitudeAware,
        NegativeAttention as NegativeAttention,
        Nudge as Nudge,
        OptimalScale as OptimalScale,
        PerturbedAttention as PerturbedAttention,
        Query as Query,
        Rescale as Rescale,
        Schedule as Schedule,
        SkipLayers as SkipLayers,
        SmoothedAttention as SmoothedAttention,
        Stage as Stage,
        Steps as Steps,
        Still as Still,
        Tangential as Tangential,
        Window as Window,
        apg as apg,
        apg_preset as apg_preset,
        compose as compose,
        dynamic_cfg as dynamic_cfg,
        elucd as elucd,
        fdg as fdg,
        handover as handover,
        mambo as mambo,
        negative as negative,
        parse_guidance as parse_guidance,
        policy as policy,
        rlg as rlg,
        tcfg as tcfg,
        zero_star as zero_star,
    )
    from wayfield.sampling import Checkpoint as Checkpoint, Result as Result, StepInfo as StepInfo, sample as sample
    from wayfield.sampling.guider import as_guider as as_guider
    from wayfield.sampling.steer import Steered as Steered, steer as steer
    from wayfield.solve import (
        DDIM as DDIM,
        DPM2M as DPM2M,
        DPM2S as DPM2S,
        DPM3M as DPM3M,
        Adaptive as Adaptive,
        Ancestral as Ancestral,
        Churn as Churn,
        Euler as Euler,
        Heun as Heun,
        HeunTime as HeunTime,
        PredictorCorrector as PredictorCorrector,
        Solver as Solver,
        UniPC as UniPC,
    )
    from wayfield.solve.likelihood import bits_per_dim as bits_per_dim, log_likelihood as log_likelihood
    from wayfield.zoo import card as card, load as load, load_classifier as load_classifier

__version__ = "0.1.0"

_PUBLIC = {
    "wayfield.core.path": ("EDM", "VE", "VP", "Cosine", "Path", "Straight", "Trig"),
    "wayfield.core.schedule": ("Tabulated", "from_betas", "tabulated"),
    "wayfield.core.predict": ("Kind", "Prediction", "convert", "score", "velocity"),
    "wayfield.core.grid": ("Grid", "exponential", "given", "karras", "log_snr", "spaced", "uniform"),
    "wayfield.core.noise": ("BrownianNoise", "Noise", "RecordingNoise", "ReplayNoise", "SeededNoise"),
    "wayfield.core.errors": ("WayfieldError",),
    "wayfield.field.cond": ("Field", "Schema"),
    "wayfield.field.denoiser": ("Denoiser",),
    "wayfield.field.batching": ("Batching",),
    "wayfield.guide": (
        "Bands",
        "fdg",
        "handover",
        "MagnitudeAware",
        "mambo",
        "Tangential",
        "tcfg",
        "Window",
        "OptimalScale",
        "Still",
        "zero_star",
        "NASA",
        "NegativeAttention",
        "negative",
        "PAG",
        "PerturbedAttention",
        "SEG",
        "SmoothedAttention",
        "SLG",
        "SkipLayers",
        "AG",
        "APG",
        "CFG",
        "COND",
        "NULL",
        "PLAIN",
        "Auto",
        "Away",
        "ClassifierGuidance",
        "Energy",
        "Guidance",
        "Hold",
        "Interval",
        "LinearAG",
        "Query",
        "Rescale",
        "Schedule",
        "Stage",
        "Steps",
        "apg",
        "apg_preset",
        "compose",
        "parse_guidance",
        "policy",
        "Greedy",
        "dynamic_cfg",
        "EluCD",
        "Nudge",
        "elucd",
        "GFCG",
        "JudgeGuidance",
        "RLG",
        "rlg",
    ),
    "wayfield.solve": (
        "DDIM",
        "DPM2M",
        "DPM2S",
        "DPM3M",
        "Adaptive",
        "Ancestral",
        "Churn",
        "Euler",
        "Heun",
        "HeunTime",
        "PredictorCorrector",
        "Solver",
        "UniPC",
    ),
    "wayfield.solve.likelihood": ("bits_per_dim", "log_likelihood"),
    "wayfield.field.hf": ("from_diffusers",),
    "wayfield.field.hf_path": ("scheduler_grid", "start_scale"),
    "wayfield.field.patch": ("install",),
    "wayfield.fitting.shared": ("load_guidance", "save_guidance"),
    "wayfield.sampling.guider": ("as_guider",),
    "wayfield.sampling.steer": ("Steered", "steer"),
    "wayfield.sampling": ("Checkpoint", "Result", "StepInfo", "sample"),
    "wayfield.zoo": ("card", "load", "load_classifier"),
}
_HOME = {name: module for module, public in _PUBLIC.items() for name in public}

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'wayfield' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
