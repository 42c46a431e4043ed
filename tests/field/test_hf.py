"""diffusers models as denoisers: our solvers against their schedulers' own loops, on the same network and noise."""

import copy

import pytest
import torch
from hfworld import (
    NETS,
    SCALED,
    B,
    L,
    built,
    conditions,
    diffusers,
    normal,
    scheduler,
    their_call,
    their_loop,
)
from torch import nn

import wayfield as wf
from wayfield.core.errors import (
    ConditionError,
    DTypeError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from wayfield.core.noise import ReplayNoise
from wayfield.field.hf import from_diffusers
from wayfield.field.hf_families import _KNOWN, Family, add_family, families, family_of, named
from wayfield.field.hf_path import flow_shift, scheduler_grid, start_scale, told
from wayfield.sampling.pipes import solver_of

DDIM_SD = {**SCALED, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
ZERO = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
STEPS = 5  # their DDIM lands on its next row only if the table divides into so many

AGREE = [  # family, scheduler, its options, our solver
    ("unet", "DDIMScheduler", DDIM_SD, wf.DDIM()),
    ("unet", "DDIMScheduler", {**SCALED, "clip_sample": False, "prediction_type": "sample"}, wf.DDIM()),
    ("unet", "DPMSolverMultistepScheduler", {**SCALED}, wf.DPM2M()),
    ("unet", "DPMSolverMultistepScheduler", {**SCALED, **ZERO, "rescale_betas_zero_snr": False}, wf.DPM2M()),
    ("unet", "DPMSolverMultistepScheduler", {**SCALED, "use_karras_sigmas": True}, wf.DPM2M()),
    ("unet", "EDMEulerScheduler", {}, wf.DDIM()),
    ("unet", "EDMEulerScheduler", {"prediction_type": "v_prediction"}, wf.Euler()),
    ("unet", "EDMDPMSolverMultistepScheduler", {}, wf.DPM2M()),
    ("unet", "UniPCMultistepScheduler", {**SCALED, "use_karras_sigmas": True}, wf.UniPC()),
    ("sdxl", "EulerDiscreteScheduler", {**SCALED}, wf.DDIM()),
    ("sdxl", "EulerDiscreteScheduler", {**SCALED, "timestep_spacing": "leading", "steps_offset": 1}, wf.DDIM()),
    ("sdxl", "EulerDiscreteScheduler", {**SCALED, "timestep_spacing": "trailing"}, wf.DDIM()),
    ("sdxl", "EulerDiscreteScheduler", {**SCALED, "use_karras_sigmas": True}, wf.DDIM()),
    ("sdxl", "HeunDiscreteScheduler", {**SCALED}, wf.Heun()),
    ("sdxl", "HeunDiscreteScheduler", {**SCALED, "timestep_spacing": "trailing"}, wf.Heun()),
    ("unet", "HeunDiscreteScheduler", {**SCALED, "use_karras_sigmas": True}, wf.Heun()),
    ("unet", "DPMSolverMultistepScheduler", {**SCALED, "solver_order": 1}, wf.DDIM()),
    ("unet", "UniPCMultistepScheduler", {**SCALED, "solver_order": 1}, wf.UniPC(1)),
    ("unet", "UniPCMultistepScheduler", {**SCALED, "solver_order": 3}, wf.UniPC(3)),
    ("sdxl", "DDIMScheduler", {**SCALED, **ZERO, "clip_sample": False}, wf.DDIM()),
    ("unet2d", "DDIMScheduler", {"clip_sample": False}, wf.DDIM()),
    ("unet2d-classes", "DPMSolverMultistepScheduler", {}, wf.DPM2M()),
    ("dit", "DDIMScheduler", {"clip_sample": False}, wf.DDIM()),
    ("dit", "DPMSolverMultistepScheduler", {}, wf.DPM2M()),
    ("pixart", "DPMSolverMultistepScheduler", {}, wf.DPM2M()),
    ("pixart-large", "EulerDiscreteScheduler", {}, wf.DDIM()),
    ("sd3", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, wf.Euler()),
    ("sd3", "FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}, wf.DDIM()),
    ("flux", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}, wf.Euler()),
    ("flux-plain", "FlowMatchEulerDiscreteScheduler", {}, wf.Euler()),
]


def close(ours, theirs, to=1e-5):
    return float((ours - theirs).abs().max()) <= to * float(theirs.abs().max())


def pair(name, made, solver, steps=STEPS, w=3.0, grid=None, net=None, theirs=None, **timesteps):
    """Our sample and theirs, from the same noise and under CFG where the network has conditions."""
    net = built(name) if net is None else net
    model = from_diffusers(net, made, tokens=L)
    noise, fields = normal(7, B, *NETS[name][1]), model.schema.fields
    cond, away = (conditions(fields, k) if fields else None for k in (0, 1))
    x = their_loop(name, net, theirs or made, steps, noise, cond or {}, away, w, **timesteps)
    grid = scheduler_grid(made, steps, **timesteps) if grid is None else grid
    guided = {"conds": {"other": away}, "guidance": wf.CFG(w, away="other")} if fields else {}
    out = wf.sample(model, grid, x=noise * start_scale(made, grid), samples=B, cond=cond, solver=solver, **guided)
    return out, x


@pytest.mark.parametrize(("name", "kind", "config", "solver"), AGREE)
def test_our_solver_equals_their_loop(name, kind, config, solver):
    made, timesteps = scheduler(kind, **config), {}
    if name.startswith("flux"):
        timesteps = {"mu": flow_shift(made, 16), "sigmas": torch.linspace(1, 1 / STEPS, STEPS).tolist()}
    ours, theirs = pair(name, made, solver, **timesteps)
    assert close(ours.x, theirs)
    calls = 2 * STEPS - 1 if solver == wf.Heun() else STEPS
    assert ours.counts.rows == calls * B * (1 if name == "unet2d" else 2)


def test_the_flow_shift_is_the_one_their_pipelines_compute():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    made = scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    assert flow_shift(made, 1000) == pytest.approx(calculate_shift(1000), rel=1e-12)
    assert flow_shift(scheduler("FlowMatchEulerDiscreteScheduler"), 1000) is None


def test_the_path_is_their_table_in_float64_and_linear_in_log_snr_between_rows():
    made = scheduler("DDIMScheduler", **DDIM_SD)
    path = told(made).path
    a = made.alphas_cumprod.double()
    rows = torch.arange(1, 1001, dtype=torch.float64) / 1000
    assert torch.equal(path.scales(rows).alpha, torch.sigmoid(path.log_snr(rows)).sqrt())
    assert torch.allclose(path.scales(rows).alpha ** 2, a, rtol=1e-12, atol=0)
    middle = path.log_snr(rows[:-1] + 0.5 / 1000)
    level = a.log() - torch.log1p(-a)
    assert torch.allclose(middle, (level[1:] + level[:-1]) / 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    "kind", ["DDIM", "DDPM", "PNDM", "DPMSolverMultistep", "EulerDiscrete", "EulerAncestralDiscrete"]
)
def test_grids_are_their_time_steps(kind, spacing, offset):
    options = {"timestep_spacing": spacing, "steps_offset": offset}
    made = scheduler(f"{kind}Scheduler", **SCALED, **options)
    grid = scheduler_grid(made, 7)
    assert made.num_inference_steps is None  # the user's scheduler is left alone
    made.set_timesteps(7)
    theirs = made.timesteps.double().unique().flip(0)
    rows = grid.times * 1000 - 1
    assert torch.allclose(rows[: len(theirs)], theirs, rtol=0, atol=2e-2 if kind.startswith("Euler") else 1e-9)
    assert grid.t[-1] == (0.001 if kind == "PNDM" else 0)
    assert len(grid.t) == len(theirs) + (0 if kind == "PNDM" and theirs[-1] == 0 else 1)


def test_a_last_step_that_stays_where_it_is_costs_nothing():
    made = scheduler("DDIMScheduler", **{**DDIM_SD, "steps_offset": 0})
    ours, theirs = pair("unet", made, wf.DDIM())
    assert ours.steps == STEPS - 1
    assert close(ours.x, theirs)


def test_where_their_ddim_steps_to_another_row_than_it_next_evaluates_at():
    """With 7 trailing steps their DDIM lands at t - 142, but goes on from the row 143 below: ours, like their Euler,
    lands where it goes on.
    """
    options = {**SCALED, "timestep_spacing": "trailing"}
    made = scheduler("DDIMScheduler", **options, clip_sample=False)
    ours, theirs = pair("unet", made, wf.DDIM(), steps=7)
    assert not close(ours.x, theirs, 1e-3)
    euler = scheduler("EulerDiscreteScheduler", **options)
    same, theirs = pair("unet", euler, wf.DDIM(), steps=7)
    assert close(same.x, theirs)
    assert scheduler_grid(made, 7).t == scheduler_grid(euler, 7).t


def test_where_their_dpm_solver_cuts_network_times():
    """Its flow times are cut to integers; told them whole, the network gives our sample."""
    made = scheduler(
        "DPMSolverMultistepScheduler", use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    ours, theirs = pair("sd3", made, wf.DPM2M())
    assert not close(ours.x, theirs, 1e-5)

    class Whole(type(made)):
        def set_timesteps(self, *args, **options):
            super().set_timesteps(*args, **options)
            self.timesteps = self.sigmas[:-1].double() * 1000
            self.set_begin_index(0)

    ours, theirs = pair("sd3", made, wf.DPM2M(), theirs=Whole(**made.config))
    assert close(ours.x, theirs)


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("spaced", ["use_exponential_sigmas", "use_beta_sigmas"])
def test_where_their_levels_between_rows_are_told_as_rows(kind, spaced):
    """Told the levels themselves, the network gives our sample."""
    if spaced == "use_beta_sigmas":
        pytest.importorskip("scipy", reason="pip install scipy")
    made = scheduler(kind, **SCALED, **{spaced: True})
    solver, path = solver_of(made), told(made).path
    ours, theirs = pair("unet", made, solver)
    assert not close(ours.x, theirs, 1e-4)

    class Exact(type(made)):
        def set_timesteps(self, *args, **options):
            super().set_timesteps(*args, **options)
            self.timesteps = path.time(-2 * self.sigmas[:-1].double().log()) * 1000 - 1
            self.set_begin_index(0)

    ours, theirs = pair("unet", made, solver, theirs=Exact(**made.config))
    assert close(ours.x, theirs, 1e-4)


def test_their_clipping_is_a_guidance():
    """Their DDIM clips x0 and keeps the network's own eps."""
    net, made = built("unet2d"), scheduler("DDIMScheduler", clip_sample=True)
    model, noise = from_diffusers(net, made), normal(7, B, 3, 8, 8)
    grid = scheduler_grid(made, STEPS)
    rule = wf.Guidance(noise=wf.COND, clip=(-1.0, 1.0))
    out = wf.sample(model, grid, x=noise, samples=B, guidance=rule)
    assert close(out.x, their_loop("unet2d", net, made, STEPS, noise, {}))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("DDPMScheduler", {"clip_sample": False}),
        ("DDPMScheduler", {"clip_sample": True}),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    ],
)
def test_ancestral_steps_on_the_same_noise(kind, options, monkeypatch):
    net, made, first = built("unet2d"), scheduler(kind, **options), normal(7, B, 3, 8, 8)
    draws = {(i, 0): normal(50 + i, B, 3, 8, 8) for i in range(STEPS)}
    module = __import__(type(made).__module__, fromlist=["randn_tensor"])
    queue = iter(draws.values())
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **options: next(queue))
    theirs = their_loop("unet2d", net, made, STEPS, first, {})
    grid = scheduler_grid(made, STEPS)
    out = wf.sample(
        from_diffusers(net, made),
        grid,
        x=first * start_scale(made, grid),
        noise=ReplayNoise(draws),
        solver=solver_of(made),
        guidance=wf.Guidance(clip=(-1.0, 1.0)) if options.get("clip_sample") else None,
    )
    assert close(out.x, theirs, 1e-4)


def test_the_start_of_sample_differs_by_the_signal_they_ignore():
    made = scheduler("DDIMScheduler", **DDIM_SD)
    grid = scheduler_grid(made, 20)
    assert start_scale(made, grid) == 1.0
    assert float(grid.scales.sigma[0]) == pytest.approx((1 - float(made.alphas_cumprod[951])) ** 0.5, rel=1e-6)
    euler = scheduler("EulerDiscreteScheduler", **SCALED, timestep_spacing="trailing")
    grid = scheduler_grid(euler, 20)
    euler.set_timesteps(20)
    seen = float(euler.init_noise_sigma / (euler.sigmas[0] ** 2 + 1) ** 0.5)
    assert start_scale(euler, grid) == pytest.approx(seen, rel=1e-6)


def test_null_conditions_serve_plain_cfg():
    net, made = built("sdxl"), scheduler("EulerDiscreteScheduler", **SCALED)
    fields = from_diffusers(net, made, tokens=L).schema.fields
    cond, away = (conditions(fields, k) for k in (0, 1))
    null = {name: v[0] for name, v in away.items()}
    model, grid = from_diffusers(net, made, null=null), scheduler_grid(made, 3)
    assert model.schema.fields["encoder_hidden_states"].shape == (L, 12)
    noise, same = normal(7, B, 4, 8, 8), {name: v.expand(B, *v.shape) for name, v in null.items()}
    out = wf.sample(model, grid, x=noise * start_scale(made, grid), samples=B, cond=cond, guidance=wf.CFG(5.0))
    assert close(out.x, their_loop("sdxl", net, made, 3, noise, cond, same, 5.0))


def test_dit_knows_its_own_null_and_drops_its_learned_variance():
    net, made = built("dit"), scheduler("DDIMScheduler", clip_sample=False)
    model, noise = from_diffusers(net, made), normal(7, B, 4, 8, 8)
    out = wf.sample(
        model, scheduler_grid(made, 3), x=noise, samples=B, cond={"class_labels": torch.tensor([1, 9])},
        guidance=wf.CFG(4.0),
    )  # fmt: skip
    labels, null = ({"class_labels": torch.tensor(k)} for k in ([1, 9], [10, 10]))
    assert close(out.x, their_loop("dit", net, made, 3, noise, labels, null, 4.0))


def test_masked_tokens_of_pixart_do_not_matter():
    model = from_diffusers(built("pixart"), scheduler("DDIMScheduler"), tokens=L)
    cond, x = conditions(model.schema.fields, 0), normal(7, B, 4, 8, 8)
    other = {**cond, "encoder_hidden_states": cond["encoder_hidden_states"].clone()}
    other["encoder_hidden_states"][1, 2:] = 3.0
    y, z = (model(x, 0.5, c).x0 for c in (cond, other))
    assert torch.allclose(y, z, atol=1e-5)
    other["encoder_hidden_states"][1, 1] = 3.0
    assert not torch.allclose(y[1], model(x, 0.5, other).x0[1], atol=1e-3)


def test_distilled_guidance_is_a_condition_and_has_no_null():
    net, made = built("flux"), scheduler("FlowMatchEulerDiscreteScheduler")
    assert family_of(net).distilled(net)
    assert not family_of(built("flux-plain")).distilled(built("flux-plain"))
    model, x = from_diffusers(net, made, tokens=L), normal(7, B, 4, 8, 8)
    cond = conditions(model.schema.fields, 0)
    weak, strong = (model(x, 0.5, {**cond, "guidance": torch.full((B,), g)}).x0 for g in (1.0, 8.0))
    assert not torch.allclose(weak, strong, atol=1e-3)
    with pytest.raises(ConditionError):
        wf.sample(model, scheduler_grid(made, 2), x=x, samples=B, cond=cond, guidance=wf.CFG(3.0))


@pytest.mark.parametrize("name", list(NETS))
def test_levels_may_differ_by_row_and_gradients_pass(name):
    flow = name[:3] in ("sd3", "flu")
    made = scheduler("FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler")
    model = from_diffusers(built(name), made, tokens=L)
    cond, x = conditions(model.schema.fields, 0), normal(7, B, *NETS[name][1])
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    both = model(x, t, cond or None).x0
    for k in range(B):
        row = {n: v[k : k + 1] for n, v in cond.items()}
        assert torch.allclose(model(x[k : k + 1], float(t[k]), row or None).x0, both[k : k + 1], atol=1e-4)
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(leaf, t, cond or None).x0.square().sum(), leaf)
    assert bool((g.flatten(1).norm(dim=1) > 0).all())


def test_one_width_for_every_block_of_a_text_network():
    from hfworld import unet

    class Fake(nn.Module):
        def __init__(self, widths):
            super().__init__()
            self.config = type(unet().config)({**unet().config, "cross_attention_dim": widths})
            self.dtype = torch.float32

    family = family_of(unet())
    assert family.fields(Fake([12, 12]), L)["encoder_hidden_states"].shape == (L, 12)
    with pytest.raises(UnsupportedError, match="cross_attention_dim"):
        family.fields(Fake((12, 16)), L)


def test_half_precision_weights_keep_a_float32_run():
    net, made = built("unet"), scheduler("DDIMScheduler", **DDIM_SD, prediction_type="v_prediction")
    half = copy.deepcopy(net).to(torch.bfloat16)
    grid, noise = scheduler_grid(made, 3), normal(7, B, 4, 8, 8)
    cond = conditions(from_diffusers(net, made, tokens=L).schema.fields, 0)
    x, y = (wf.sample(from_diffusers(n, made, tokens=L), grid, x=noise, samples=B, cond=cond).x for n in (net, half))
    assert y.dtype == torch.float32
    assert close(y, x, 0.05)
    assert not torch.equal(x, y)
    assert from_diffusers(half, made).schema.fields["encoder_hidden_states"].dtype == "bfloat16"


def test_hooks_that_bring_weights_are_called():
    from accelerate.hooks import ModelHook, add_hook_to_module

    called = []

    class Count(ModelHook):
        def pre_forward(self, module, *args, **options):
            called.append(1)
            return args, options

    net, made = built("unet"), scheduler("DDIMScheduler", **DDIM_SD)
    plain = from_diffusers(net, made, tokens=L)
    cond, x = conditions(plain.schema.fields, 0), normal(7, B, 4, 8, 8)
    before = plain(x, 0.5, cond).x0
    add_hook_to_module(net, Count())
    hooked = from_diffusers(net, made, tokens=L)
    assert torch.equal(hooked(x, 0.5, cond).x0, before)
    assert called == [1]
    assert next(hooked.net.parameters(), None) is None  # their device is not the run's
    from wayfield.field.identity import weights_digest

    assert weights_digest(hooked.net) == weights_digest(net)


def test_a_family_of_ones_own():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x, time):
            return self.scale * x

    net, made = Mine(), scheduler("DDIMScheduler", clip_sample=False)
    with pytest.raises(UnsupportedError, match=r"Mine.*UNet2D.*diffusers\.md"):
        from_diffusers(net, made)
    family = Family("Mine", named("Mine"), lambda net, tokens: {}, lambda net, x, time, cond: net(x, time))
    known = list(_KNOWN)
    try:
        add_family(family)
        assert families()[0] is family
        model = from_diffusers(net, made)
    finally:
        _KNOWN[:] = known
    assert torch.equal(model(normal(0, 1, 2), 0.5).eps, 0.5 * normal(0, 1, 2))
    assert from_diffusers(net, made, family=family).kind.name == "eps"
    with pytest.raises(DTypeError):
        add_family("Mine")


def test_compiled_networks_are_known():
    net = built("unet2d")
    assert family_of(torch.compile(net, backend="eager")) is family_of(net)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 500}),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
        ("ScoreSdeVeScheduler", {}),
    ],
)
def test_schedulers_of_another_meaning_are_refused(kind, options):
    with pytest.raises(UnsupportedError, match=kind):
        told(scheduler(kind, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"time_cond_proj_dim": 8},
        {"class_embed_type": "timestep"},
        {"encoder_hid_dim": 12},
        {"num_class_embeds": 4},
    ],
)
def test_options_of_a_network_that_nobody_would_serve_are_refused(options):
    from hfworld import unet

    with pytest.raises(UnsupportedError, match=next(iter(options))):
        from_diffusers(unet(**options), scheduler("DDIMScheduler"))


def test_bad_input():
    made, flow = scheduler("DDIMScheduler"), scheduler("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    net = built("unet")
    with pytest.raises(DTypeError, match=r"pipe\.unet"):
        from_diffusers("unet", made)
    with pytest.raises(RangeError, match="tokens"):
        from_diffusers(net, made, tokens=0)
    with pytest.raises(ConditionError, match="null"):
        from_diffusers(net, made, null={"prompt": torch.zeros(L, 12)})
    with pytest.raises(UnsupportedError, match="KDPM2"):
        scheduler_grid(scheduler("KDPM2DiscreteScheduler"), 4)
    with pytest.raises(UnsupportedError, match="flow_shift"):
        scheduler_grid(flow, 4)
    with pytest.raises(UnsupportedError, match=r"mu=1\.0"):
        scheduler_grid(made, 4, mu=1.0)
    with pytest.raises(RangeError, match="3 levels"):
        scheduler_grid(flow, 4, mu=1.0, sigmas=[1.0, 0.6, 0.3])
    for steps in (0, 2.5, 1001):
        with pytest.raises(RangeError, match="steps"):
            scheduler_grid(made, steps)
    model = from_diffusers(net, made, tokens=L)
    cond = {"encoder_hidden_states": torch.zeros(L + 1, 12)}
    with pytest.raises(ConditionError, match="encoder_hidden_states"):
        model(torch.zeros(1, 4, 8, 8), 0.5, cond)
    with pytest.raises(UnknownNameError, match="prompt"):
        model(torch.zeros(1, 4, 8, 8), 0.5, {"prompt": torch.zeros(L, 12)})
    odd = from_diffusers(built("flux-plain"), scheduler("FlowMatchEulerDiscreteScheduler"), tokens=L)
    with pytest.raises(ShapeError, match="even"):
        odd(torch.zeros(1, 4, 7, 8), 0.5, {k: v[:1] for k, v in conditions(odd.schema.fields, 0).items()})


def test_their_call_is_ours_for_one_point():
    """The table of conditions and the calls of the pipelines, without any loop."""
    for name in ("unet", "sdxl", "sd3", "flux"):
        flow = name in ("sd3", "flux")
        made = scheduler("FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler")
        net, x = built(name), normal(7, B, 4, 8, 8)
        model = from_diffusers(net, made, tokens=L)
        cond, t = conditions(model.schema.fields, 0), torch.tensor(250.0 if flow else 249.0)
        level = model.level(torch.tensor(0.25, dtype=torch.float64), dtype=torch.float32)
        assert torch.allclose(model.answer(x, level, cond), their_call(name, net, x, t, cond), atol=1e-5)


def test_diffusers_is_only_imported_by_its_user():
    import subprocess
    import sys

    code = "import sys, wayfield.field.hf; print(any(m.split('.')[0] == 'diffusers' for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
    assert diffusers.__version__
