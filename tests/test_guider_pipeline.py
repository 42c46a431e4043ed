"""A whole modular pipeline of diffusers with our guider: the latents of `steer`, and of their own guider."""

import pytest
import torch

from pipeworld import scheduler, sdxl
from wayfield.guide import CFG, Steps, apg
from wayfield.sampling.guider import as_guider
from wayfield.sampling.steer import steer

guiders = pytest.importorskip("diffusers.guiders", reason="pip install diffusers>=0.40")
N = 4
DDIM = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
        "clip_sample": False, "set_alpha_to_one": False}  # fmt: skip
SIZE = {"height": 16, "width": 16, "output_type": "latent"}
TEXT = {"prompt": "a cat", "negative_prompt": "blurry dog"}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return sdxl(tmp_path_factory.mktemp("sdxl"), scheduler("DDIMScheduler", **DDIM))


@pytest.fixture(scope="module")
def modular(pipe):
    from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

    made = StableDiffusionXLAutoBlocks().init_pipeline()
    made.set_progress_bar_config(disable=True)
    made.update_components(**{k: v for k, v in pipe.components.items() if k in made._component_specs and v is not None})
    return made


def latents():
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def theirs(modular, guider):
    modular.update_components(guider=guider)
    return modular(**TEXT, **SIZE, num_inference_steps=N, latents=latents(), output="images")


def close(a, b, to=2e-5):
    return float((a - b).abs().max()) <= to * float(b.abs().max())


@pytest.mark.parametrize(
    "guidance", [CFG(5), apg(6, r=3.0, beta=-0.5), apg(6, r=3.0).when(Steps((True, True, False, False)))], ids=str
)
def test_our_guider_and_our_sampler(guidance, pipe, modular):
    got = theirs(modular, as_guider(guidance, pipe.scheduler))
    want = steer(pipe, **TEXT, **SIZE, guidance=guidance, steps=N, latents=latents())
    assert close(got, want.images)
    assert not close(got, theirs(modular, as_guider(None, pipe.scheduler)), 1e-3)


def test_our_cfg_and_theirs(pipe, modular):
    assert close(
        theirs(modular, as_guider(CFG(5), pipe.scheduler)), theirs(modular, guiders.ClassifierFreeGuidance(5.0)), 5e-6
    )
