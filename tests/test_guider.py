"""Our guidance as a guider, driven by the denoising blocks of diffusers' modular pipelines: samples as ours."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent / "field"))
from hfworld import B, built, conditions, normal, scheduler

from wayfield import sample
from wayfield.core.errors import ConditionError, ShapeError, UnsupportedError
from wayfield.field.hf import from_diffusers
from wayfield.field.hf_path import scheduler_grid, start_scale
from wayfield.guide import (
    AG,
    APG,
    CFG,
    NULL,
    PAG,
    Auto,
    Away,
    Guidance,
    Hold,
    Interval,
    LinearAG,
    Query,
    Rescale,
    Schedule,
    Steps,
    apg,
    dynamic_cfg,
)
from wayfield.sampling.guider import as_guider
from wayfield.sampling.pipes import solver_of

guiders = pytest.importorskip("diffusers.guiders", reason="pip install diffusers>=0.40")
BlockState = __import__("diffusers.modular_pipelines.modular_pipeline", fromlist=["BlockState"]).BlockState
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
HOW = {
    "ddim": ("sdxl", "DDIMScheduler", {**SCALED, "clip_sample": False, "set_alpha_to_one": False}),
    "ddim-v": ("sdxl", "DDIMScheduler", {**SCALED, "clip_sample": False, "prediction_type": "v_prediction"}),
    "euler": ("sdxl", "EulerDiscreteScheduler", {**SCALED, "timestep_spacing": "leading"}),
    "dpm": ("sdxl", "DPMSolverMultistepScheduler", {**SCALED, "use_karras_sigmas": True}),
    "edm": ("sdxl", "EDMDPMSolverMultistepScheduler", {}),
    "flow": ("sd3", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}
N = 5
TABLE = LinearAG((True, False, True, False, True), ((), (-0.9, 1.0), (), (0.1, 0.2, -0.3, 0.9), ()),
                 ((), (0.95,), (), (0.1, -0.2, 0.3), ()))  # fmt: skip
AWAY = Away("negative")
GUIDANCES = {
    "none": None,
    "cfg": CFG(5, "negative"),
    "null": CFG(5),
    "other side": CFG(0.0),
    "both": CFG(3, "negative") + 0.5 * AWAY.when(Interval(low=-2.0)),
    "by sample": CFG((2.0, 6.0), "negative"),
    "apg": apg(6, r=3.0, beta=-0.5),
    "apg, negative": 5 * AWAY.through(APG(eta=0.2, r=2.0, beta=-0.3)),
    "rescale": CFG(7).through(Rescale(0.7)),
    "interval": apg(6, r=3.0, beta=-0.5).when(Interval(high=1.0)),
    "schedule": CFG(4).when(Schedule(((-4.0, 0.0), (2.0, 1.5)))),
    "steps": CFG(4).when(Steps((True, False, 0.5, True, False))),
    "adaptive": CFG(3).when(AG(0.9)),
    "clip": Guidance(CFG(5), clip=(-1.0, 1.0)),
    "hold": Guidance(CFG(4), sources=(Hold(Steps((True, False, True, True, False))),)),
    "predicted": Guidance(CFG(4), sources=(TABLE,)),
}


class Counted(nn.Module):
    """A network that counts its calls; diffusers' blocks see nothing else of it."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls, self.config = net, 0, net.config

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.net(*args, **kwargs)


def block(family):
    if family == "sd3":
        from diffusers.modular_pipelines.stable_diffusion_3.denoise import StableDiffusion3LoopDenoiser as kind
    else:
        from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLLoopDenoiser as kind
    return kind()


def state_of(family, cond, away, x, steps):
    out = BlockState(num_inference_steps=steps, latents=x, timestep_cond=None, cross_attention_kwargs=None)
    out.joint_attention_kwargs = None
    names = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}
    names |= {"time_ids": "add_time_ids", "pooled_projections": "pooled_prompt_embeds"}
    for key, value in cond.items():
        setattr(out, names[key], value)
        setattr(out, f"negative_{names[key]}", None if away is None else away[key])
    return out


@torch.no_grad()
def drive(family, net, made, guider, noise, cond, away, steps=N):
    """The last sample of the loop whose denoising block is theirs, and its network calls."""
    made.set_timesteps(steps)
    net, x = Counted(net), noise * getattr(made, "init_noise_sigma", 1.0)
    parts, theirs = SimpleNamespace(guider=guider, unet=net, transformer=net, scheduler=made), block(family)
    state = state_of(family, cond, away, x, steps)
    for i, t in enumerate(made.timesteps):
        scale = getattr(made, "scale_model_input", lambda x, t: x)
        state.scaled_latents = scale(state.latents, t)
        theirs(parts, state, i, t)
        state.latents = made.step(state.noise_pred, t, state.latents, return_dict=False)[0]
    assert not net._forward_pre_hooks
    return state.latents, net.calls


def world(how):
    family, name, config = HOW[how]
    net, made = built(family), scheduler(name, **config)
    fields = from_diffusers(net, made, tokens=5).schema.fields
    cond = conditions(fields, 1)
    away = {k: v[:1].expand_as(v) for k, v in conditions(fields, 2).items()}  # one for all, so that it may be "null"
    model = from_diffusers(net, made, null={k: v[0] for k, v in away.items()})
    return family, net, made, model, cond, away


def ours(made, model, cond, away, guidance, noise, steps=N):
    grid = scheduler_grid(made, steps)
    start, solver = start_scale(made, grid) * noise, solver_of(made)
    return sample(
        model, grid, samples=B, x=start, cond=cond, conds={"negative": away}, guidance=guidance, solver=solver
    )


def close(a, b, to=2e-5):
    return float((a - b).abs().max()) <= to * float(b.abs().max())


CHECKED = [("ddim", name) for name in GUIDANCES] + [
    (how, name) for how in HOW for name in ("cfg", "apg", "interval") if how != "ddim"
]


@pytest.mark.parametrize(("how", "name"), CHECKED)
def test_their_loop_with_our_guider_and_ours(how, name):
    family, net, made, model, cond, away = world(how)
    guidance, noise = GUIDANCES[name], normal(3, B, 4, 8, 8)
    got, _ = drive(family, net, made, as_guider(guidance, made), noise, cond, away)
    want = ours(made, model, cond, away, guidance, noise)
    assert close(got, want.x)
    if guidance is not None:  # or the test could not fail
        plain = ours(made, model, cond, away, None, noise).x
        assert not close(got, plain, 1e-3)


@pytest.mark.parametrize("name", ["none", "cfg", "apg", "interval", "steps", "hold", "predicted", "other side"])
def test_one_call_for_each_branch_and_none_for_closed_ones(name):
    family, net, made, model, cond, away = world("ddim")
    noise = normal(3, B, 4, 8, 8)
    _, calls = drive(family, net, made, as_guider(GUIDANCES[name], made), noise, cond, away)
    counts = ours(made, model, cond, away, GUIDANCES[name], noise).counts
    assert calls == counts.rows / B
    assert (calls < 2 * N) == (name not in ("cfg", "apg"))


def test_adaptive_guidance_spares_a_call_once_all_samples_have_stopped():
    family, net, made, model, cond, away = world("ddim")
    noise = normal(3, B, 4, 8, 8)
    for bar in (-1.0, 0.5, 0.9, 1.0):
        guidance = CFG(3).when(AG(bar))
        got, calls = drive(family, net, made, as_guider(guidance, made), noise, cond, away)
        want = ours(made, model, cond, away, guidance, noise)
        steps = [ours(made, model, cond, away, CFG(3).when(AG(bar)), noise).state[0][0][2]]
        assert calls == N + int(torch.stack(steps).max())
        assert close(got, want.x)
    assert calls == 2 * N


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_our_cfg_and_theirs(kind):
    family, net = "sdxl", built("sdxl")
    made = scheduler("DDIMScheduler", **SCALED, clip_sample=False, prediction_type=kind)
    fields = from_diffusers(net, made, tokens=5).schema.fields
    cond, away, noise = conditions(fields, 1), conditions(fields, 2), normal(3, B, 4, 8, 8)
    cond, away = ({k: v.double() for k, v in c.items()} for c in (cond, away))
    theirs, _ = drive(family, net.double(), made, guiders.ClassifierFreeGuidance(5.0), noise.double(), cond, away)
    mine, _ = drive(family, net, made, as_guider(CFG(5), made), noise.double(), cond, away)
    assert close(mine, theirs, 1e-12)


def test_our_apg_and_theirs_where_the_network_answers_x0():
    family, net = "sdxl", built("sdxl")
    made = scheduler("DDIMScheduler", **SCALED, clip_sample=False, prediction_type="sample")
    fields = from_diffusers(net, made, tokens=5).schema.fields
    cond, away, noise = conditions(fields, 1), conditions(fields, 2), normal(3, B, 4, 8, 8)
    guider = guiders.AdaptiveProjectedGuidance(4.0, -0.5, 3.0, eta=0.2, use_original_formulation=True)
    theirs, _ = drive(family, net, made, guider, noise, cond, away)
    mine, _ = drive(family, net, made, as_guider(apg(5, eta=0.2, r=3.0, beta=-0.5), made), noise, cond, away)
    assert close(mine, theirs, 5e-5)  # steps amplify rounding: at eta = 1, the same operations, they differ as much
    flat, _ = drive(family, net, made, as_guider(CFG(5), made), noise, cond, away)
    assert not close(mine, flat, 1e-2)


def test_runs_one_after_another_and_a_switch():
    family, net, made, model, cond, away = world("ddim")
    noise, guider = normal(3, B, 4, 8, 8), as_guider(GUIDANCES["interval"], made)
    assert guider.num_conditions == 2
    first, _ = drive(family, net, made, guider, noise, cond, away)
    assert guider.num_conditions == 2  # what encoders ask before the next run
    again, _ = drive(family, net, made, guider, noise, cond, away)
    other, _ = drive(family, net, made, guider.new(), noise, cond, away)
    assert torch.equal(first, again)
    assert torch.equal(first, other)
    guider.disable()
    assert guider.num_conditions == 1
    got, calls = drive(family, net, made, guider, noise, cond, None)
    assert calls == N
    assert close(got, ours(made, model, cond, away, None, noise).x)
    guider.enable()
    assert torch.equal(drive(family, net, made, guider, noise, cond, away)[0], first)
    assert "Interval" in repr(guider)


def test_inputs_from_a_block_state():
    made = scheduler("FlowMatchEulerDiscreteScheduler")
    made.set_timesteps(N)
    guider, text = as_guider(apg(5, r=2.0), made), normal(1, 2, B, 5, 12)
    state = BlockState(text=text[0], no_text=text[1], both=text[0])
    guider.set_state(0, N, made.timesteps[0])
    fields = {"encoder_hidden_states": ("text", "no_text"), "more": "both", "absent": ("a", "b")}
    one, two = guider.prepare_inputs_from_block_state(state, fields)
    assert torch.equal(one.encoder_hidden_states, text[0])
    assert torch.equal(two.encoder_hidden_states, text[1])
    assert torch.equal(two.more, text[0])
    assert (one["__guidance_identifier__"], two["__guidance_identifier__"]) == ("pred_cond", "pred_uncond")


def test_half_precision_stays_in_the_network():
    family, net, made, _, cond, away = world("flow")
    noise, guidance = normal(3, B, 4, 8, 8), apg(5, r=3.0, beta=-0.5)
    full, _ = drive(family, net, made, as_guider(guidance, made), noise, cond, away)
    half = [{k: v.bfloat16() for k, v in c.items()} for c in (cond, away)]
    got, _ = drive(family, net.bfloat16(), made, as_guider(guidance, made), noise.bfloat16(), *half)
    assert got.dtype == torch.bfloat16
    assert close(got.float(), full, 0.1)


@pytest.mark.parametrize(
    ("guidance", "said"),
    [
        (Auto(2), "second network"),
        (CFG(3).versus("base", 1.6), "second network"),
        (3 * Away(NULL, of=Query("cond", grad=True)), "gradients"),
        (CFG(3) + Away("negative"), "prompt and a negative prompt"),
        (PAG(3) + CFG(3), "prompt and a negative prompt"),
        (PAG(3), "prompt and a negative prompt"),
        (PAG(3, "negative"), "inside the network"),
        (Guidance(CFG(0.6), noise=NULL), "a noise of its own"),
        (Guidance(CFG(4), sources=(replace(TABLE, fingerprint=(("grid", "a"),)),)), "fitted to a run"),
        (dynamic_cfg({"size": lambda x, at, cond: x.sum((1, 2, 3))}), "looks ahead"),
    ],
)
def test_what_a_guider_cannot_give(guidance, said):
    with pytest.raises(UnsupportedError, match=said):
        as_guider(guidance, scheduler("DDIMScheduler"))


def test_schedulers_that_do_not_fit():
    heun = scheduler("HeunDiscreteScheduler")
    with pytest.raises(UnsupportedError, match="two evaluations"):
        as_guider(apg(5, beta=-0.5), heun)
    with pytest.raises(UnsupportedError, match="two evaluations"):
        as_guider(CFG(5).when(Interval(high=1.0)), scheduler("PNDMScheduler"))
    as_guider(CFG(5), heun)
    with pytest.raises(UnsupportedError, match="no alphas_cumprod"):
        as_guider(CFG(5), scheduler("VQDiffusionScheduler", num_vec_classes=4))


def test_loops_that_do_not_fit():
    family, net, made, _, cond, away = world("dpm")
    noise, still = normal(3, B, 4, 8, 8), scheduler("DPMSolverMultistepScheduler", **SCALED)
    with pytest.raises(ConditionError, match="negative"):
        drive(family, net, made, as_guider(CFG(5), made), noise, cond, None)
    still.set_timesteps(7)
    with pytest.raises(UnsupportedError, match="where the scheduler stands"):
        drive(family, net, made, as_guider(apg(5), still), noise, cond, away)
    guider, data = as_guider(apg(5, beta=-0.5), made), {"text": (cond["encoder_hidden_states"],) * 2}
    made.set_timesteps(N)
    guider.set_state(2, N, made.timesteps[0])
    with pytest.raises(UnsupportedError, match="step 2"):
        guider.prepare_inputs(data)
    guider.set_state(0, N, made.timesteps[0])
    asked = guider.prepare_inputs(data)
    for each in asked:
        each.noise_pred = noise
    with pytest.raises(ShapeError, match="network input"):
        guider(asked)
    guider.set_state(0, N, made.timesteps[0])
    with pytest.raises(ConditionError, match="floating-point"):
        guider.prepare_inputs({"ids": torch.ones(2, 3, dtype=torch.int64)})
    with pytest.raises(UnsupportedError, match="save_guidance"):
        guider.save_pretrained("folder")


def test_a_sum_of_answers_needs_no_points():
    made = scheduler("DDIMScheduler", **SCALED)
    made.set_timesteps(N)
    guider, y = as_guider(CFG(4), made), normal(1, 2, B, 4, 8, 8)
    guider.set_state(0, N, made.timesteps[0])
    asked = guider.prepare_inputs({"text": (y[0], y[1])})
    for each, answer in zip(asked, y, strict=True):
        each.noise_pred = answer
    assert close(guider(asked).pred, y[1] + 4 * (y[0] - y[1]))


def test_a_step_that_fails_leaves_no_hook():
    made = scheduler("DDIMScheduler", **SCALED)
    made.set_timesteps(N)
    guider, net = as_guider(CFG(4), made), nn.Identity()
    for _ in range(2):
        guider.set_state(0, N, made.timesteps[0])
        guider.prepare_inputs({"text": (normal(1, B, 5, 12), normal(2, B, 5, 12))})
        guider.prepare_models(net)
        assert len(net._forward_pre_hooks) == 1
    guider.cleanup_models(net)
    assert not net._forward_pre_hooks


def test_the_level_where_a_run_begins_in_the_middle():
    made = scheduler("DPMSolverMultistepScheduler", **SCALED, use_karras_sigmas=True)
    y, first = normal(1, 2, B, 4, 8, 8), []
    for begin in (0, 2):
        made.set_timesteps(N)
        made.set_begin_index(begin)
        guider = as_guider(apg(5, r=3.0), made)
        x, t = normal(4, B, 4, 8, 8), made.timesteps[begin]
        guider.set_state(0, N - begin, t)
        asked, net = guider.prepare_inputs({"text": (y[0], y[1])}), nn.Identity()
        guider.prepare_models(net)
        net(x)
        guider.cleanup_models(net)
        for each, answer in zip(asked, y, strict=True):
            each.noise_pred = answer
        got, sigma = guider(asked).pred.double(), made.sigmas[begin].double()
        x0 = [(1 + sigma**2).sqrt() * x - sigma * a for a in y.double()]  # x is the scaled input, a the noise
        gap = x0[0] - x0[1]
        gap = gap * (3.0 / gap.flatten(1).norm(dim=1)).clamp(max=1).reshape(B, 1, 1, 1)
        on = (gap * x0[0]).sum((1, 2, 3), True) / x0[0].square().sum((1, 2, 3), True)
        want = y[0].double() - 4 * (gap - on * x0[0]) / sigma
        assert close(got, want)
        first.append(got)
    assert not close(*first, 1e-2)
