"""Guidance that acts inside the network, from `steer`: the same as patches installed by hand, gone afterwards."""

import pytest
import torch

import wayfield as wf
from pipeworld import dit, flux, pixart, scheduler, sd, sd3
from wayfield.core.errors import ConditionError, DTypeError, RangeError, UnknownNameError, UnsupportedError
from wayfield.field.hf import from_diffusers
from wayfield.sampling.pipes import encode, grid_of, pipe_of, size_of
from wayfield.sampling.steer import steer

DDIM = ("DDIMScheduler", {"clip_sample": False})
FLOW = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
SIZE = {"height": 16, "width": 16}
PROMPTS = ["a cat", "red dog on the moon"]
MIDDLE = "mid_block.attentions.0"
TERMS = {
    "perturbed": (wf.PAG(3.0), wf.PerturbedAttention((MIDDLE,))),
    "smoothed": (wf.SEG(3.0), wf.SmoothedAttention((MIDDLE,), 1.0)),
    "skipped": (wf.SLG(3.0), wf.SkipLayers((MIDDLE,))),
}


def noise(rows=2):
    return torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def made(build, how, folder, *rest):
    pipe = build(folder, scheduler(how[0], **how[1]), *rest)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def close(a, b, to=1e-5):
    return float((a - b).abs().max()) <= to * float(b.abs().max())


def run(pipe, steps=3, **options):
    return steer(pipe, PROMPTS, steps=steps, latents=noise(), output_type="latent", **SIZE, **options)


def traces(pipe):
    net = pipe_of(pipe).net
    return [(name, sorted(vars(module))) for name, module in net.named_modules()]


def by_hand(pipe, name, term, patch):
    """The same run with `install` and `sample`."""
    p = pipe_of(pipe)
    size = size_of(p, **SIZE)
    said, empty = encode(p, PROMPTS, size), encode(p, [""], size)
    null = {key: v[0] for key, v in empty.items()}
    model, undo = wf.install(from_diffusers(p.net, pipe.scheduler, null=null), name, patch)
    grid = grid_of(p, 3, size)
    conds = {name: said | {name: True}}
    out = wf.sample(model, grid, x=noise(), samples=2, cond=said, conds=conds, guidance=wf.CFG(4.0) + term)
    undo()
    return out


@pytest.mark.parametrize("name", TERMS)
def test_a_patched_term_is_the_one_installed_by_hand(name, tmp_path):
    pipe, (term, patch) = made(sd, DDIM, tmp_path), TERMS[name]
    before, plain = traces(pipe), run(pipe, guidance=wf.CFG(4.0))
    out = run(pipe, guidance=wf.CFG(4.0) + term, patches={name: patch})
    assert traces(pipe) == before
    assert close(out.latents, by_hand(pipe, name, term, patch).x)
    assert not close(out.latents, plain.latents, 1e-3)
    assert (out.counts.calls, out.counts.rows) == (3, 3 * 2 * 3)  # prompt, "null" and patched in one call
    assert torch.equal(run(pipe, guidance=wf.CFG(4.0)).latents, plain.latents)


def test_several_at_once_and_each_where_it_is_asked(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    terms, patches = wf.CFG(4.0), {}
    for name, (term, patch) in TERMS.items():
        terms, patches[name] = terms + term, patch
    out = run(pipe, guidance=terms, patches=patches)
    assert out.counts.rows == 3 * 2 * 5
    smoothed = wf.CFG(4.0) + wf.SEG(3.0)
    alone = run(pipe, guidance=smoothed, patches={"smoothed": patches["smoothed"]})
    both = run(pipe, guidance=smoothed + wf.PAG(0.0), patches={k: patches[k] for k in ("perturbed", "smoothed")})
    assert close(both.latents, alone.latents)


@pytest.mark.parametrize(
    ("build", "layer", "options"),
    [(sd3, "transformer_blocks.0.attn", {}), (flux, "transformer_blocks.0.attn", {"distilled": 2.0})],
)
def test_transformers_with_joint_text(build, layer, options, tmp_path):
    """Also a model with distilled guidance, which has no "null" to ask."""
    pipe = made(build, FLOW, tmp_path)
    patches = {"perturbed": wf.PerturbedAttention((layer,))}
    out = run(pipe, guidance=wf.PAG(3.0), patches=patches, **options)
    assert out.counts.rows == 3 * 2 * 2
    assert not close(out.latents, run(pipe, **options).latents, 1e-3)


@pytest.mark.parametrize("build", [sd, pixart, sd3, flux])
def test_a_negative_prompt_inside_the_network(build, tmp_path):
    pipe = made(build, FLOW if build in (sd3, flux) else DDIM, tmp_path)
    plain, before = run(pipe, steps=2), traces(pipe)
    out = run(pipe, steps=2, negative_prompt="blurry", nasa=0.3)
    assert (out.counts.calls, out.counts.rows) == (2, 4)  # one row for each picture, as without
    assert traces(pipe) == before
    assert not close(out.latents, plain.latents, 1e-3)
    assert torch.equal(run(pipe, steps=2, negative_prompt="blurry", nasa=0.0).latents, plain.latents)
    other = run(pipe, steps=2, negative_prompt=["blurry", "dog"], nasa=[0.3, 0.3]).latents
    assert close(other[:1], out.latents[:1])
    assert not close(other[1:], out.latents[1:], 5e-5)  # of 264 tokens two differ


def test_nasa_beside_other_guidance(tmp_path):
    """ "null" is the empty text then, and "steered" is asked where a term names it."""
    pipe = made(sd, DDIM, tmp_path)
    said = {"negative_prompt": "blurry", "nasa": 0.3}
    alone = run(pipe, **said)
    assert close(run(pipe, guidance=wf.NASA(1.0), **said).latents, alone.latents)
    twice = run(pipe, guidance=wf.NASA(2.0), **said)
    assert twice.counts.rows == 3 * 4
    assert not close(twice.latents, alone.latents, 1e-3)
    guided = run(pipe, guidance=wf.CFG(3.0), negative_prompt="blurry", nasa=0.0)
    assert close(guided.latents, run(pipe, guidance=wf.CFG(3.0)).latents)
    assert not close(guided.latents, run(pipe, guidance=wf.CFG(3.0), negative_prompt="blurry").latents, 1e-3)


def test_parts_whose_weights_are_elsewhere(tmp_path):
    from accelerate import cpu_offload

    pipe = made(sd, DDIM, tmp_path)
    term, patch = TERMS["perturbed"]
    options = {"guidance": wf.CFG(4.0) + term, "patches": {"perturbed": patch}}
    nasa = {"negative_prompt": "blurry", "nasa": 0.3}
    before, inside = run(pipe, **options), run(pipe, **nasa)
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        cpu_offload(part, torch.device("cpu"))
    hooks = traces(pipe)
    assert torch.equal(run(pipe, **options).latents, before.latents)
    assert torch.equal(run(pipe, **nasa).latents, inside.latents)
    assert traces(pipe) == hooks
    assert next(pipe.unet.parameters()).is_meta


def test_a_run_that_fails_leaves_the_network_as_it_was(tmp_path):
    pipe = made(sd, DDIM, tmp_path)
    before, (term, patch) = traces(pipe), TERMS["perturbed"]

    def stop(info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(pipe, guidance=term, patches={"perturbed": patch}, callback=stop)
    assert traces(pipe) == before
    bad = {"perturbed": patch, "smoothed": wf.SmoothedAttention(("middle",))}
    with pytest.raises(UnknownNameError, match="mid"):  # the second cannot be installed
        run(pipe, guidance=term + wf.SEG(2.0), patches=bad)
    assert traces(pipe) == before


def test_bad_input(tmp_path):
    pipe, patch = made(sd, DDIM, tmp_path), TERMS["perturbed"][1]
    for bad in (wf.PAG(3.0), wf.SLG(), wf.SEG(), wf.NASA()):
        with pytest.raises(ConditionError, match=r"patches=.*nasa=alpha"):
            run(pipe, guidance=bad)
    with pytest.raises(ConditionError, match="never asks"):
        run(pipe, guidance=wf.CFG(2.0), patches={"perturbed": patch})
    with pytest.raises(ConditionError, match=r"'null'.*in use"):
        run(pipe, guidance=wf.CFG(2.0), patches={"null": patch})
    with pytest.raises(UnsupportedError, match="nasa=alpha"):
        run(pipe, guidance=wf.PAG(2.0), patches={"perturbed": wf.NegativeAttention(("encoder_hidden_states",))})
    with pytest.raises(DTypeError, match="patches"):
        run(pipe, guidance=wf.PAG(2.0), patches=[patch])
    with pytest.raises(DTypeError, match="a Patch"):
        run(pipe, guidance=wf.PAG(2.0), patches={"perturbed": "mid_block"})
    with pytest.raises(ConditionError, match=r"negative prompt.*nasa"):
        run(pipe, nasa=0.3)
    with pytest.raises(RangeError, match="alpha"):
        run(pipe, negative_prompt="blurry", nasa=-0.3)
    classes = dit(scheduler(DDIM[0], **DDIM[1]))
    with pytest.raises(UnknownNameError, match="encoder_hidden_states"):
        steer(classes, 3, negative_prompt=4, nasa=0.3)
