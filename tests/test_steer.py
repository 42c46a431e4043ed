"""Whole pipelines under our sampler: the same pictures as the pipelines' own calls, from the same latents."""

import pytest
import torch

import wayfield as wf
from pipeworld import dit, flux, pixart, scheduler, sd, sd3, sdxl, tokenizer
from wayfield.core.errors import ConditionError, DTypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from wayfield.core.noise import INITIAL, Address, SeededNoise
from wayfield.sampling.pipes import solver_of
from wayfield.sampling.steer import steer

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DDIM = ("DDIMScheduler", {**SCALED, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1})
DPM = ("DPMSolverMultistepScheduler", {**SCALED, "use_karras_sigmas": True, "steps_offset": 1})
UNIPC = ("UniPCMultistepScheduler", {**SCALED, "steps_offset": 1})
EULER = ("EulerDiscreteScheduler", {**SCALED, "timestep_spacing": "leading", "steps_offset": 1})
HEUN = ("HeunDiscreteScheduler", {**SCALED, "timestep_spacing": "leading", "steps_offset": 1})
EDM = ("EDMDPMSolverMultistepScheduler", {})
FLOW = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
SHIFTED = ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True})
PROMPTS = ["a cat", "red dog on the moon"]
SIZE = {"height": 16, "width": 16}


def noise(seed=3, rows=2):
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def made(build, scheduler_of, folder, *rest):
    name, config = scheduler_of
    return quiet(build(folder, scheduler(name, **config), *rest))


def close(ours, theirs, to=1e-5):
    return float((ours - theirs).abs().max()) <= to * float(theirs.abs().max())


@pytest.mark.parametrize(
    ("build", "how", "w"),
    [
        (sd, DDIM, 7.5),
        (sd, DPM, 7.5),
        (sdxl, EDM, 3.0),
        (sd, UNIPC, 7.5),
        (sd, HEUN, 7.5),
        (sdxl, EULER, 5.0),
        (sd3, FLOW, 7.0),
        (sd3, SHIFTED, 7.0),
    ],
)
@pytest.mark.parametrize("negative", [None, "blurry dog"])
def test_a_pipeline_and_its_own_call(build, how, w, negative, tmp_path):
    pipe = made(build, how, tmp_path)
    theirs = pipe(
        PROMPTS, negative_prompt=negative and [negative] * 2, guidance_scale=w, num_inference_steps=4,
        latents=noise(), output_type="latent", **SIZE,
    ).images  # fmt: skip
    out = steer(pipe, PROMPTS, negative_prompt=negative, guidance=wf.CFG(w), steps=4, latents=noise(), output_type="pt")
    assert close(out.latents, theirs)
    calls = 7 if how is HEUN else 4
    assert (out.counts.calls, out.counts.rows) == (calls, 4 * calls)
    shown = pipe(
        PROMPTS, negative_prompt=negative and [negative] * 2, guidance_scale=w, num_inference_steps=4,
        latents=noise(), output_type="pt", **SIZE,
    ).images  # fmt: skip
    assert torch.allclose(out.images, shown, atol=1e-5)
    assert not torch.allclose(out.images[0], out.images[1], atol=1e-3)


def test_pixart_and_its_own_call(tmp_path):
    pipe = made(pixart, ("DPMSolverMultistepScheduler", {}), tmp_path)
    theirs = pipe(
        PROMPTS, negative_prompt="blurry", num_inference_steps=4, latents=noise(), output_type="latent",
        use_resolution_binning=False, **SIZE,
    ).images  # fmt: skip
    out = steer(pipe, PROMPTS, negative_prompt="blurry", guidance=wf.CFG(4.5), steps=4, latents=noise(), **SIZE)
    assert close(out.latents, theirs)
    assert [picture.size for picture in out.images] == [(16, 16)] * 2


@pytest.mark.parametrize("name", ["flux", "flux-plain"])
@pytest.mark.parametrize("true_cfg", [False, True])
def test_flux_and_its_own_call(name, true_cfg, tmp_path):
    pipe = made(flux, SHIFTED, tmp_path, name)
    packed = pipe._pack_latents(noise(), 2, 4, 8, 8)
    theirs = pipe(
        PROMPTS, negative_prompt=["blurry"] * 2 if true_cfg else None, true_cfg_scale=3.0 if true_cfg else 1.0,
        guidance_scale=2.5, num_inference_steps=4, latents=packed, output_type="latent", **SIZE,
    ).images  # fmt: skip
    options = {"negative_prompt": "blurry", "guidance": wf.CFG(3.0)} if true_cfg else {}
    distilled = 2.5 if name == "flux" else None
    for start in (packed, noise()):
        out = steer(
            pipe, PROMPTS, distilled=distilled, true_cfg=true_cfg, steps=4, latents=start, output_type="latent",
            **SIZE, **options,
        )  # fmt: skip
        assert close(out.images, theirs)
    assert out.latents.shape == (2, 4, 8, 8)
    assert out.counts.rows == (16 if true_cfg else 8)


def test_dit_and_its_own_call(monkeypatch):
    pipe = quiet(dit(scheduler("DDIMScheduler", clip_sample=False)))
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: noise())
    theirs = pipe([3, 7], guidance_scale=1.0, num_inference_steps=4, output_type="np").images
    theirs = torch.from_numpy(theirs).permute(0, 3, 1, 2)
    out = steer(pipe, [3, 7], steps=4, latents=noise(), output_type="pt")
    assert torch.allclose(out.images, theirs, atol=1e-5)
    named = steer(pipe, ["thing 3", "thing 7"], steps=4, latents=noise(), output_type="np").images
    assert torch.allclose(torch.from_numpy(named).permute(0, 3, 1, 2), theirs, atol=1e-5)
    guided = steer(pipe, 3, guidance=wf.CFG(4.0), steps=2)
    assert guided.counts.rows == 4
    with pytest.raises(ConditionError, match="10 names"):
        steer(pipe, "cat")


@pytest.mark.parametrize("strength", [0.75, 0.3, 1.0])
@pytest.mark.parametrize(
    ("build", "how", "kind"),
    [(sd, DDIM, "StableDiffusion"), (sd, HEUN, "StableDiffusion"), (sd3, FLOW, "StableDiffusion3")],
)
def test_image_to_image_and_its_own_call(build, how, kind, strength, tmp_path, monkeypatch):
    import diffusers
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    pipe = made(build, how, tmp_path)
    rest = {"requires_safety_checker": False} if build is sd else {}
    other = quiet(getattr(diffusers, f"{kind}Img2ImgPipeline")(**pipe.components, **rest))
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    eps = SeededNoise(0, (5,)).draw((4, 8, 8), Address(INITIAL, 0))
    monkeypatch.setattr(f"{type(other).__module__}.randn_tensor", lambda *args, **options: eps.clone())
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    size = SIZE if build is sd3 else {}
    theirs = other(
        "a cat", image=picture, strength=strength, guidance_scale=5.0, num_inference_steps=10, output_type="latent",
        **size,
    ).images  # fmt: skip
    out = steer(
        pipe, "a cat", image=picture, strength=strength, guidance=wf.CFG(5.0), steps=10, seeds=5, output_type="latent"
    )
    assert close(out.images, theirs)


def test_a_seed_is_a_picture_alone_or_in_any_batch(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    options = {"guidance": wf.CFG(3.0), "steps": 2, "output_type": "latent"}
    many = steer(pipe, "a cat", seeds=range(4), **options).latents
    assert torch.allclose(steer(pipe, "a cat", seeds=2, **options).latents, many[2:3], atol=1e-5)
    assert not torch.allclose(many[0], many[1], atol=1e-2)
    two = steer(pipe, ["a cat", "a dog"], **options).latents
    assert torch.allclose(two[0], many[0], atol=1e-5)
    same = steer(pipe, ["a cat", "a cat"], seeds=3, **options).latents
    assert torch.allclose(same[0], same[1], atol=1e-5)


def test_null_and_negative_are_two_conditions_where_guidance_names_both(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    term = 3 * wf.Away(wf.NULL) + 2 * wf.Away("negative")
    options = {"guidance": term, "steps": 2, "latents": noise(), "output_type": "latent"}
    out = steer(pipe, PROMPTS, negative_prompt=["blurry", "red"], **options)
    assert out.counts.rows == 12
    other = steer(pipe, PROMPTS, negative_prompt=["blurry", "dog"], **options)
    assert torch.allclose(out.latents[0], other.latents[0], atol=1e-5)
    assert not torch.allclose(out.latents[1], other.latents[1], atol=1e-3)


def test_further_texts_by_the_names_of_guidance(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    options = {"steps": 2, "latents": noise(), "output_type": "latent"}
    want = steer(pipe, PROMPTS, guidance=2 * wf.Away("negative"), negative_prompt=["blurry", "red"], **options)
    got = steer(pipe, PROMPTS, guidance=2 * wf.Away("bad"), texts={"bad": ["blurry", "red"]}, **options)
    assert torch.equal(got.latents, want.latents)
    with pytest.raises(ConditionError, match=r"'worse'.*texts="):
        steer(pipe, PROMPTS, guidance=wf.Away("worse"), texts={"bad": "blurry"})
    with pytest.raises(ConditionError, match="never asks"):
        steer(pipe, PROMPTS, guidance=wf.CFG(2.0), texts={"bad": "blurry"})
    with pytest.raises(ConditionError, match=r"bad.*3.*1 or 2"):
        steer(pipe, PROMPTS, guidance=wf.Away("bad"), texts={"bad": ["blurry"] * 3})
    with pytest.raises(ConditionError, match="in use"):
        steer(pipe, PROMPTS, guidance=wf.CFG(2.0), texts={"null": "blurry"})


def test_every_guidance_of_the_library_is_at_hand(tmp_path):
    from wayfield.field.hf import from_diffusers

    pipe = made(sdxl, EULER, tmp_path)
    weak = from_diffusers(pipe.unet, pipe.scheduler, tokens=8)
    term = wf.apg(5.0) + wf.CFG(2.0).when(wf.Interval(-2.0, 2.0)) + wf.Auto(2.0)
    out = steer(pipe, PROMPTS, guidance=term, nets={"weak": weak}, solver=wf.DPM2M(), steps=3, latents=noise())
    assert len(out.images) == 2
    assert out.counts.rows == 18
    once = steer(pipe, PROMPTS, guidance=wf.CFG(1.0), negative_prompt="blurry", steps=2, latents=noise())
    assert once.counts.rows == 4


def test_ones_own_grid_starts_at_its_own_noise(tmp_path):
    from wayfield.field.hf import from_diffusers

    pipe = made(sd, DDIM, tmp_path)
    path = from_diffusers(pipe.unet, pipe.scheduler, tokens=8).path
    grid = wf.karras(path, 3, sigma_min=0.05, sigma_max=2.0)
    starts = []
    steer(pipe, "a cat", grid=grid, latents=noise(rows=1), callback=lambda info: starts.append(info.t))
    assert starts == list(grid.t[1:])
    flat = steer(pipe, "a cat", grid=wf.Grid(path, (0.5, 0.4999999)), latents=noise(rows=1), output_type="latent")
    assert torch.allclose(flat.latents, float(flat_sigma(path)) * noise(rows=1), atol=1e-3)


def flat_sigma(path):
    return path.scales(torch.tensor(0.5, dtype=torch.float64)).sigma


def test_half_precision_pipelines(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    options = {"guidance": wf.CFG(2.0), "steps": 2, "latents": noise(), "output_type": "pt"}
    full = steer(pipe, PROMPTS, **options)
    half = steer(pipe.to(torch.bfloat16), PROMPTS, **options)
    assert half.latents.dtype == torch.float32
    assert half.images.dtype == torch.bfloat16
    assert torch.allclose(half.images.float(), full.images, atol=0.1)


def test_autoencoders_that_overflow_in_half_precision_run_in_float32(tmp_path, monkeypatch):
    pipe = made(sdxl, EULER, tmp_path).to(torch.float16)
    assert pipe.vae.config.force_upcast
    seen, decode = [], type(pipe.vae).decode

    def spied(self, z, *args, **options):
        seen.append((self.dtype, z.dtype))
        return decode(self, z, *args, **options)

    monkeypatch.setattr(type(pipe.vae), "decode", spied)
    out = steer(pipe, PROMPTS, steps=2, latents=noise(), output_type="pt")
    assert seen == [(torch.float32, torch.float32)]
    assert pipe.vae.dtype == torch.float16
    assert bool(out.images.isfinite().all())


def test_pictures_to_start_from_may_be_pil_and_many(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    options = {"steps": 4, "strength": 0.5, "seeds": (3, 4)}
    images = steer(pipe, PROMPTS, latents=noise(), steps=2).images
    both = steer(pipe, PROMPTS, image=images, **options).latents
    one = steer(pipe, PROMPTS[1], image=images[1], steps=4, strength=0.5, seeds=4).latents
    assert torch.allclose(both[1:], one, atol=1e-5)
    shared = steer(pipe, "a cat", image=images[0], **options)
    assert shared.counts.rows == 4
    assert len(shared.images) == 2


def test_parts_whose_weights_are_elsewhere(tmp_path):
    from accelerate import cpu_offload

    pipe = made(sd, DDIM, tmp_path)
    options = {"guidance": wf.CFG(2.0), "steps": 2, "latents": noise(), "output_type": "pt"}
    before = steer(pipe, PROMPTS, **options)
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        cpu_offload(part, torch.device("cpu"))
    assert next(pipe.unet.parameters()).is_meta
    after = steer(pipe, PROMPTS, **options)
    assert torch.equal(after.images, before.images)
    assert next(pipe.unet.parameters()).is_meta


def test_offloading_as_the_pipeline_offers_it(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    options = {"guidance": wf.CFG(2.0), "steps": 2, "latents": noise(), "output_type": "pt"}
    before = steer(pipe, PROMPTS, **options)
    pipe.enable_model_cpu_offload(device="cpu")
    freed, free = [], pipe.maybe_free_model_hooks
    pipe.maybe_free_model_hooks = lambda: (freed.append(1), free())
    after = steer(pipe, PROMPTS, **options)
    assert torch.equal(after.images, before.images)
    assert freed == [1]
    assert hasattr(pipe.unet, "_hf_hook")


def test_the_safety_checker_is_asked(tmp_path, monkeypatch):
    pipe = made(sd, DDIM, tmp_path)
    pipe.safety_checker = object()
    monkeypatch.setattr(type(pipe), "run_safety_checker", lambda self, x, device, dtype: (x * 0, [True, False]))
    out = steer(pipe, PROMPTS, steps=2, latents=noise(), output_type="pt")
    assert out.flagged == (True, False)
    assert float(out.images.abs().max()) <= 0.5


def test_a_ceiling_of_rows_takes_more_calls_for_the_same_pictures(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    options = {"guidance": wf.CFG(3.0), "steps": 3, "latents": noise(), "output_type": "latent"}
    whole, parts = (steer(pipe, PROMPTS, batching=b, **options) for b in (None, wf.Batching(max_rows=2)))
    assert (whole.counts[:2], parts.counts[:2]) == ((3, 12), (6, 12))
    assert close(parts.latents, whole.latents)


@pytest.mark.slow
def test_compiled_step_gives_the_same(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    options = {"guidance": wf.CFG(2.0), "steps": 2, "latents": noise(), "output_type": "latent"}
    plain = steer(pipe, PROMPTS, **options).latents
    assert torch.allclose(steer(pipe, PROMPTS, compile="eager", **options).latents, plain, atol=1e-5)


def test_a_solver_for_a_scheduler():
    assert solver_of(scheduler("DDPMScheduler")) == wf.DDIM(eta=1.0)
    assert solver_of(scheduler(*EULER[:1], **EULER[1])) == wf.DDIM()
    for name, config in (
        ("PNDMScheduler", {}),
        ("LMSDiscreteScheduler", {}),
        ("KDPM2DiscreteScheduler", {}),
        ("DEISMultistepScheduler", {}),
        ("LCMScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
        ("DPMSolverMultistepScheduler", {"euler_at_final": True}),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
        ("UniPCMultistepScheduler", {"lower_order_final": False}),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ):
        with pytest.raises(UnsupportedError, match=rf"{name}.*solver=DPM2M"):
            solver_of(scheduler(name, **config))


def test_a_pipeline_whose_scheduler_has_no_equal_here_runs_at_its_times(tmp_path):
    pipe = made(sd, ("PNDMScheduler", {**SCALED, "skip_prk_steps": True, "steps_offset": 1}), tmp_path)
    with pytest.raises(UnsupportedError, match="PNDM"):
        steer(pipe, "a cat", steps=5)
    times = []
    out = steer(pipe, "a cat", steps=5, solver=wf.DPM2M(), callback=lambda info: times.append(info.t))
    assert times == pytest.approx([0.602, 0.402, 0.202, 0.002, 0.001])
    assert out.counts.calls == 5


def test_their_samplers_of_the_same_kind_have_a_solver():
    dpm, unipc = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
    assert solver_of(scheduler(dpm, algorithm_type="sde-dpmsolver++")) == wf.DPM2M(eta=1.0)
    assert solver_of(scheduler(dpm, solver_order=1)) == wf.DDIM()
    assert solver_of(scheduler(dpm, solver_order=1, algorithm_type="sde-dpmsolver++")) == wf.DDIM(eta=1.0)
    assert [solver_of(scheduler(unipc, solver_order=p)) for p in (1, 2, 3)] == [wf.UniPC(1), wf.UniPC(), wf.UniPC(3)]
    assert solver_of(scheduler("HeunDiscreteScheduler")) == wf.Heun()


def test_texts_are_refused_not_cut(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    steer(pipe, "a cat on the moon blurry", steps=1)  # with its two marks: exactly 8
    with pytest.raises(ConditionError, match="9 tokens; expected at most 8"):
        steer(pipe, "a red cat on the moon blurry", steps=1)
    with pytest.raises(ConditionError, match="9 tokens"):
        steer(pipe, "a cat", negative_prompt="a red cat on the moon blurry", guidance=wf.CFG(2.0), steps=1)
    flow = made(sd3, FLOW, tmp_path)
    steer(flow, "cat " * 200, steps=1)  # its T5 takes 256
    with pytest.raises(ConditionError, match="302 tokens; expected at most 256"):
        steer(flow, "cat " * 300, steps=1)


def test_terms_that_the_model_cannot_serve(tmp_path):
    distilled, plain = made(flux, FLOW, tmp_path), made(sd, DDIM, tmp_path)
    with pytest.raises(UnsupportedError, match=r"distilled guidance.*true_cfg"):
        steer(distilled, "a cat", guidance=wf.apg(4.0))
    with pytest.raises(RangeError, match="distilled"):
        steer(distilled, "a cat", distilled="strong")
    with pytest.raises(UnsupportedError, match="distilled"):
        steer(plain, "a cat", distilled=3.5)
    with pytest.raises(ConditionError, match="negative"):
        steer(plain, "a cat", guidance=wf.CFG(3.0, away="negative"))
    with pytest.raises(ConditionError, match="never asks"):
        steer(plain, "a cat", negative_prompt="blurry")
    with pytest.raises(UnsupportedError, match="away='negative'"):
        steer(plain, PROMPTS, negative_prompt=["red", "blurry"], guidance=wf.CFG(3.0))
    with pytest.raises(UnknownNameError, match="weak"):
        steer(plain, "a cat", guidance=wf.Auto(2.0))


def test_bad_input(tmp_path):
    import diffusers
    from hfworld import built

    pipe = made(sd, DDIM, tmp_path)
    for what, bad in {
        "prompts": {"prompt": None},
        "seeds": {"seeds": "7"},
        "image": {"image": "x.png"},
    }.items():
        with pytest.raises(ConditionError, match=what):
            steer(pipe, **{"prompt": "a cat", **bad})
    for empty in ([], ()):
        with pytest.raises(ConditionError, match="prompts"):
            steer(pipe, empty)
    with pytest.raises(ConditionError, match="seeds"):
        steer(pipe, "a cat", seeds=torch.Generator())
    for what, bad in {"solver": wf.DDIM, "latents": [1.0]}.items():
        with pytest.raises(DTypeError, match=what):
            steer(pipe, "a cat", **{what: bad})
    with pytest.raises(RangeError, match="picture size"):
        steer(pipe, "a cat", height="16")
    with pytest.raises(ConditionError, match="2 for 3"):
        steer(pipe, PROMPTS, seeds=range(3))
    with pytest.raises(ConditionError, match="latents"):
        steer(pipe, PROMPTS, latents=noise(rows=1))
    with pytest.raises(ConditionError, match=r"negative prompts.*3.*1 or 2"):
        steer(pipe, PROMPTS, negative_prompt=["red"] * 3, guidance=wf.CFG(3.0))
    with pytest.raises(ConditionError, match="int"):
        steer(pipe, 3)
    with pytest.raises(UnknownNameError, match="'pil'"):
        steer(pipe, "a cat", output_type="pill")
    with pytest.raises(RangeError, match="picture size"):
        steer(pipe, "a cat", height=17, width=16)
    with pytest.raises(ShapeError, match="latents"):
        steer(pipe, "a cat", latents=noise(rows=1), height=32, width=16)
    with pytest.raises(UnsupportedError, match="image and latents"):
        steer(pipe, "a cat", latents=noise(rows=1), image=torch.rand(1, 3, 16, 16, generator=torch.Generator()))
    for strength in (0.0, 1.5, 0.01):
        with pytest.raises(RangeError, match="strength"):
            steer(pipe, "a cat", image=torch.zeros(1, 3, 16, 16), strength=strength)
    pipe.scheduler = scheduler("DDIMScheduler")
    with pytest.raises(UnsupportedError, match="clip_sample"):
        steer(pipe, "a cat")
    steer(pipe, "a cat", guidance=wf.Guidance(clip=(-1.0, 1.0)), steps=1)
    with pytest.raises(UnsupportedError, match="from_diffusers"):
        steer(built("unet"), "a cat")
    pipe.scheduler = scheduler("ScoreSdeVeScheduler")
    with pytest.raises(UnsupportedError, match=r"ScoreSdeVeScheduler.*no alphas_cumprod"):
        steer(pipe, "a cat", solver=wf.DPM2M())
    bare = diffusers.DDPMPipeline(built("unet2d"), scheduler("DDPMScheduler"))
    with pytest.raises(UnsupportedError, match="DDPMPipeline"):
        steer(bare, "a cat")
    assert tokenizer(tmp_path, 8)("a cat").input_ids == [1, 4, 7, 2]


def test_parts_that_nobody_would_ask_are_refused(tmp_path):
    import diffusers

    class Controlled(diffusers.StableDiffusionPipeline):
        @property
        def components(self):
            return {**super().components, "controlnet": object()}

    pipe = made(sd, DDIM, tmp_path)
    odd = Controlled(**pipe.components, requires_safety_checker=False)
    with pytest.raises(UnsupportedError, match="controlnet"):
        steer(odd, "a cat")
