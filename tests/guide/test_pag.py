"""Perturbed attention: against diffusers' own processors, against layers rewritten by hand, and as a term."""

import pytest
import torch
from tests.field.patchworld import B, ask, dit, points, sd3, sd_unet, unet

from wayfield.core.errors import RangeError
from wayfield.core.grid import uniform
from wayfield.core.path import Straight
from wayfield.field.attention import Heads, Layer
from wayfield.field.patch import install
from wayfield.guide.pag import PAG, PerturbedAttention
from wayfield.sampling.driver import sample

ON = torch.ones(B).bool()


def perturbed(world, layers=None):
    model, undo = install(world.model, "pag", PerturbedAttention((world.layer,) if layers is None else layers))
    out = ask(model, {**world.cond, "pag": ON}, points(world))
    undo()
    return out


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_our_transformer_by_hand():
    world = dit()
    got, layer = perturbed(world), world.model.net.blocks[1].attention
    layer.forward = lambda h: layer.out(layer.own(h).chunk(2, -1)[1])
    close(got, ask(world.model, world.cond, points(world)))


def test_our_unet_keeps_the_words():
    world = unet()
    got, layer = perturbed(world), world.model.net.middle[0].attention.attention

    def forward(h, context, mask):
        """One place at a time: its own key, and those of the text."""
        heads = lambda y: y.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # noqa: E731
        (ko, vo), (kc, vc) = (map(heads, y.chunk(2, -1)) for y in (layer.own(h), layer.context(context)))
        out, q = [], heads(layer.query(h))
        for i in range(h.shape[1]):
            k, v = torch.cat([ko[:, :, i : i + 1], kc], 2), torch.cat([vo[:, :, i : i + 1], vc], 2)
            scores = (q[:, :, i : i + 1] @ k.transpose(-1, -2)) / k.shape[-1] ** 0.5
            seen = torch.cat([mask.new_ones(len(mask), 1), mask], 1)[:, None, None]
            out.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v)
        return layer.out(torch.cat(out, 2).transpose(1, 2).flatten(2))

    layer.forward = forward
    close(got, ask(world.model, world.cond, points(world)))


def theirs(world, processor, layer):
    """Their processors perturb the second half of a batch."""
    net, x = world.model.net, points(world)
    net.get_submodule(layer).set_processor(processor)
    both = {name: torch.cat([c, c]) for name, c in world.cond.items()}
    return ask(world.model, both, torch.cat([x, x]))[B:]


def test_agrees_with_diffusers():
    processors = pytest.importorskip("diffusers.models.attention_processor")
    world = sd_unet()
    close(perturbed(world), theirs(world, processors.PAGIdentitySelfAttnProcessor2_0(), world.layer))


def test_agrees_with_diffusers_where_text_is_joint():
    processors = pytest.importorskip("diffusers.models.attention_processor")
    world = sd3()
    for block in world.model.net.transformer_blocks:  # their processor does not know norms of heads
        block.attn.norm_q = block.attn.norm_k = block.attn.norm_added_q = block.attn.norm_added_k = None
    close(perturbed(world), theirs(world, processors.PAGJointAttnProcessor2_0(), world.layer))


def test_the_term():
    world = dit()
    model, _ = install(world.model, "pag", PerturbedAttention((world.layer,)))
    off = {"tokens": world.cond["tokens"]}
    told = {"cond": off, "conds": {"perturbed": {**off, "pag": True}}, "samples": B, "shape": (1, 8, 8)}
    grid = uniform(Straight(), 1)
    plain = sample(model, grid, **told)
    steered = sample(model, grid, **told, guidance=PAG(2.0))
    away = sample(model, grid, cond={**off, "pag": True}, samples=B)
    close(steered.x, plain.x + 2 * (plain.x - away.x))
    assert steered.counts[:2] == (1, 2 * B)
    none = sample(model, grid, **told, guidance=PAG(0.0))
    assert torch.equal(none.x, plain.x)
    assert none.counts == plain.counts
    each = sample(model, grid, **told, guidance=PAG((2.0, 0.0, 2.0, 0.0)))
    close(each.x, torch.where(torch.arange(B)[:, None, None, None] % 2 == 0, steered.x, plain.x))


def test_bad_input():
    for s in (float("nan"), "3", None):
        with pytest.raises(RangeError, match="scale s of PAG"):
            PAG(s)


def test_written_out():
    assert eval(repr(PAG(2.5))) == PAG(2.5)
    assert PAG().s == 3.0


def test_added_masks_are_as_boolean_ones():
    """A layer whose keys are six places and two words, one of them hidden."""
    q, k, v = (torch.randn(B, 2, n, 4, generator=torch.Generator().manual_seed(n)) for n in (6, 8, 9))
    v, seen = v[:, :, :8], torch.arange(8) != 6
    added = torch.zeros(8).masked_fill(~seen, -torch.inf).expand(1, 1, 6, 8)
    usual = torch.nn.functional.scaled_dot_product_attention
    layer = Layer("layer", torch.nn.Identity(), "keys")
    both = [
        PerturbedAttention().attend(Heads(layer, q, k, v, mask, slice(0, 6), None, usual), {"": ON})
        for mask in (added, seen.expand(1, 1, 6, 8))
    ]
    close(both[0], both[1])
    weights = (q[:, :, :1] @ torch.cat([k[:, :, :1], k[:, :, 7:]], 2).transpose(-1, -2) / 2).softmax(-1)
    close(both[0][:, :, :1], weights @ torch.cat([v[:, :, :1], v[:, :, 7:]], 2))
