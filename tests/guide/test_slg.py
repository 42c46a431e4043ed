"""Skipping blocks: against networks that have none, against diffusers' own option, and as a term."""

import pytest
import torch
from tests.field.patchworld import B, ask, dit, points, sd3, unet

from wayfield.core.errors import RangeError, UnsupportedError
from wayfield.core.grid import uniform
from wayfield.core.path import Straight
from wayfield.field.patch import install
from wayfield.guide.slg import SLG, SkipLayers
from wayfield.sampling.driver import sample

ON = torch.ones(B).bool()


def skipping(world, layers=None):
    model, undo = install(world.model, "slg", SkipLayers((world.block,) if layers is None else layers))
    out = ask(model, {**world.cond, "slg": ON}, points(world))
    undo()
    return out


def test_our_transformer_without_a_block():
    world = dit()
    got = skipping(world, ("blocks.0", "blocks.2"))
    del world.model.net.blocks[2], world.model.net.blocks[0]
    assert torch.equal(got, ask(world.model, world.cond, points(world)))


def test_our_unet_without_attention():
    world = unet()
    got = skipping(world)
    world.model.net.middle[0].attention = None
    assert torch.equal(got, ask(world.model, world.cond, points(world)))


@pytest.mark.parametrize("skipped", [[1], [0, 1]])
def test_agrees_with_diffusers(skipped):
    world = sd3()
    got = skipping(world, tuple(f"transformer_blocks.{k}" for k in skipped))
    cond, inner = dict(world.cond), world.model.call

    def call(net, x, time, told):
        return net(x, timestep=time.expand(len(x)), **told, skip_layers=skipped, return_dict=False)[0]

    object.__setattr__(world.model, "call", call)
    assert torch.equal(got, ask(world.model, cond, points(world)))
    assert call is not inner


def test_the_last_block_has_no_text():
    world = sd3()
    got = skipping(world, ("transformer_blocks.2",))
    assert got.isfinite().all()
    assert not torch.equal(got, ask(world.model, world.cond, points(world)))


def test_the_term():
    world = dit()
    model, _ = install(world.model, "slg", SkipLayers((world.block,)))
    off = {"tokens": world.cond["tokens"]}
    told = {"cond": off, "conds": {"skipped": {**off, "slg": True}}, "samples": B}
    grid = uniform(Straight(), 1)
    plain, steered = sample(model, grid, **told), sample(model, grid, **told, guidance=SLG(2.8))
    away = sample(model, grid, cond={**off, "slg": True}, samples=B)
    torch.testing.assert_close(steered.x, plain.x + 2.8 * (plain.x - away.x), rtol=1e-5, atol=1e-5)
    assert steered.counts[:2] == (1, 2 * B)
    none = sample(model, grid, **told, guidance=SLG(0.0))
    assert torch.equal(none.x, plain.x)
    assert none.counts == plain.counts


def test_bad_input():
    with pytest.raises(RangeError, match="scale s of SLG"):
        SLG(float("inf"))
    with pytest.raises(UnsupportedError, match="names of blocks"):
        SkipLayers(())


def test_written_out():
    assert eval(repr(SLG(1.5))) == SLG(1.5)
    assert SLG().s == 2.8
