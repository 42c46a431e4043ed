"""Patches: off is plain to the bit, on equals a call of its own, undone is as if nothing had been."""

import copy

import pytest
import torch
from tests.field.patchworld import WORLDS, B, ask, dit, flux, normal, points, sd3, sd_unet, tokens, unet

from wayfield.core.errors import DTypeError, ShapeError, UnknownNameError, UnsupportedError
from wayfield.core.grid import uniform
from wayfield.core.path import Straight
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets.mlp import ResidualMLP, ResidualMLPConfig
from wayfield.field.patch import Patch, install
from wayfield.guide.contrast import CFG
from wayfield.guide.nasa import NegativeAttention
from wayfield.guide.pag import PAG, PerturbedAttention
from wayfield.guide.seg import SmoothedAttention
from wayfield.guide.slg import SLG, SkipLayers
from wayfield.sampling.driver import sample

MIXED = torch.tensor([True, False, True, False])
PATCHES = {
    "pag": lambda world: PerturbedAttention((world.layer,)),
    "slg": lambda world: SkipLayers((world.block,)),
    "seg": lambda world: SmoothedAttention((world.layer,), 1.0),
    "nasa": lambda world: NegativeAttention((world.text,)),
}


def told(world, name, gate=MIXED):
    """The world's condition, with a patch's gate and, for NASA, a negative text."""
    if name != "nasa":
        return {**world.cond, name: gate}
    text = tokens(5) if world.text == "tokens" else normal(5, *world.cond[world.text].shape)
    return {**world.cond, "nasa": 0.4 * gate.float(), f"nasa_{world.text}": text}


def traces(net):
    """Everything that the modules of a network hold, apart from weights."""
    return [(name, sorted(vars(module))) for name, module in net.named_modules()]


every = pytest.mark.parametrize("world", WORLDS)


@every
@pytest.mark.parametrize("name", PATCHES)
def test_rows_are_plain_or_steered_alone(world, name):
    world = WORLDS[world]()
    x, net = points(world), world.model.net
    plain, before = ask(world.model, world.cond, x), traces(net)
    weights = {k: v.clone() for k, v in net.state_dict().items()}
    model, undo = install(world.model, name, PATCHES[name](world))
    cond = told(world, name)
    mixed = ask(model, cond, x)
    assert torch.equal(mixed[~MIXED], plain[~MIXED])
    assert (mixed - plain)[MIXED].flatten(1).abs().amax(1).min() > 1e-3
    for row in (0, 2):
        torch.testing.assert_close(mixed[row : row + 1], ask(model, cond, x, slice(row, row + 1)), rtol=1e-5, atol=1e-5)
    assert torch.equal(ask(world.model, world.cond, x), plain)  # the old denoiser is plain
    undo()
    assert traces(net) == before
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())
    assert torch.equal(ask(world.model, world.cond, x), plain)


@every
def test_patches_stack(world):
    world = WORLDS[world]()
    x = points(world)
    alone = {}
    for name in ("pag", "slg", "seg"):
        model, undo = install(world.model, name, PATCHES[name](world))
        alone[name] = ask(model, told(world, name, torch.ones(B).bool()), x)
        undo()
    model, undos = world.model, []
    for name in ("pag", "slg", "seg"):
        model, undo = install(model, name, PATCHES[name](world))
        undos.append(undo)
    gates = {name: torch.arange(B) == k for k, name in enumerate(alone)}
    out = ask(model, {**world.cond, **gates}, x)
    for k, name in enumerate(alone):
        torch.testing.assert_close(out[k], alone[name][k], rtol=1e-5, atol=1e-5)
    assert torch.equal(out[3], ask(world.model, world.cond, x)[3])
    for undo in reversed(undos):
        undo()
    assert torch.equal(out[3], ask(world.model, world.cond, x)[3])


def test_in_one_layer_the_last_acts_on_what_the_others_made():
    world = dit()
    first, _ = install(world.model, "seg", SmoothedAttention((world.layer,)))
    both, _ = install(first, "pag", PerturbedAttention((world.layer,)))
    on = torch.ones(B).bool()
    out = ask(both, {**world.cond, "seg": on, "pag": on}, points(world))
    want = ask(both, {**world.cond, "seg": ~on, "pag": on}, points(world))
    assert torch.equal(out, want)  # the identity does not ask anybody's softmax


def test_branches_share_a_call():
    world = dit()
    model, _ = install(world.model, "pag", PerturbedAttention((world.layer,)))
    model, _ = install(model, "slg", SkipLayers((world.block,)))
    off = {
        "tokens": world.cond["tokens"],
    }
    conds = {"perturbed": {**off, "pag": True}, "skipped": {**off, "slg": True}}
    rule = CFG(3) + PAG(2) + SLG(1)
    out = sample(model, uniform(Straight(), 4), cond=off, conds=conds, guidance=rule, samples=B)
    assert out.counts[:2] == (4, 4 * 4 * B)
    alone = sample(model, uniform(Straight(), 4), samples=[2], cond={**off, "tokens": off["tokens"][2:3]},
                   conds={k: {**c, "tokens": c["tokens"][2:3]} for k, c in conds.items()}, guidance=rule)  # fmt: skip
    torch.testing.assert_close(out.x[2:3], alone.x, rtol=1e-4, atol=1e-4)
    plain = sample(model, uniform(Straight(), 4), cond=off, conds=conds, guidance=CFG(3), samples=B)
    untouched = sample(world.model, uniform(Straight(), 4), cond=world.cond, guidance=CFG(3), samples=B)
    assert torch.equal(plain.x, untouched.x)


def test_one_graph():
    world = dit()
    model, _ = install(world.model, "pag", PerturbedAttention((world.layer,)))
    model, _ = install(model, "nasa", NegativeAttention(("tokens",)))
    cond = {**told(world, "nasa"), "pag": MIXED}
    level = model.level(torch.tensor(0.5), dtype=torch.float32)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(lambda x, cond: model.answer(x, level, cond), fullgraph=True, backend=backend)
    with torch.no_grad():
        for seed in range(3):
            x, bound = points(world, seed), model.schema.bind({**cond, "pag": ~cond["pag"]}, B, "cpu")
            assert torch.equal(step(x, bound), model.answer(x, level, bound))
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("world", [sd_unet, sd3, flux], ids=["sd-unet", "sd3", "flux"])
@pytest.mark.parametrize("name", PATCHES)
def test_one_graph_of_diffusers(world, name):
    world = world()
    model, _ = install(world.model, name, PATCHES[name](world))
    bound = model.schema.bind(told(world, name), B, "cpu")
    level, graphs = model.level(torch.tensor(0.5), dtype=torch.float32), []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(lambda x: model.answer(x, level, bound), fullgraph=True, backend=backend)
    with torch.no_grad():
        for seed in range(2):
            torch.testing.assert_close(step(points(world, seed)), model.answer(points(world, seed), level, bound))
    assert len(graphs) == 1


def test_gradients_reach_the_points():
    world = dit()
    model, _ = install(world.model, "pag", PerturbedAttention((world.layer,)))
    x, bound = points(world).requires_grad_(), model.schema.bind(told(world, "pag"), B, "cpu")
    level = model.level(torch.tensor(0.5), dtype=torch.float32)
    model.answer(x, level, bound).square().sum().backward()
    on = model.schema.bind(told(world, "pag", torch.ones(B).bool()), B, "cpu")
    y = points(world).requires_grad_()
    model.answer(y, level, on).square().sum().backward()
    torch.testing.assert_close(x.grad[MIXED], y.grad[MIXED], rtol=1e-4, atol=1e-5)


def test_a_copy_is_steered_by_its_own():
    world = dit()
    model, undo = install(world.model, "pag", PerturbedAttention((world.layer,)))
    twin = Denoiser(copy.deepcopy(model.net), model.path, model.kind, schema=model.schema, call=model.call)
    with torch.no_grad():
        for p in twin.net.parameters():
            p.zero_()
    x, cond = points(world), told(world, "pag")
    assert ask(twin, cond, x).abs().max() == 0
    assert ask(model, cond, x).abs().max() > 0
    undo()
    assert ask(twin, cond, x).abs().max() == 0


def test_what_a_network_had_in_place_of_forward_comes_back():
    world = sd_unet()
    layer, x = world.model.net.get_submodule(world.layer), points(world)
    plain = layer.forward
    mine = layer.forward = lambda *args, **kwargs: 0.5 * plain(*args, **kwargs)
    before = ask(world.model, world.cond, x)
    model, undo = install(world.model, "pag", PerturbedAttention((world.layer,)))
    mixed = ask(model, told(world, "pag"), x)
    assert torch.equal(mixed[~MIXED], before[~MIXED])
    assert not torch.equal(mixed[MIXED], before[MIXED])
    undo()
    assert vars(layer)["forward"] is mine


def test_a_layer_of_ours_that_was_replaced_is_not_passed_over():
    world = dit()
    layer = world.model.net.blocks[1].attention
    layer.forward = lambda h, *rest: 0 * h
    with pytest.raises(UnsupportedError, match="a forward of its own"):
        install(world.model, "pag", PerturbedAttention((world.layer,)))


def test_a_failed_call_leaves_no_trace():
    world = dit()
    model, _ = install(world.model, "pag", PerturbedAttention((world.layer,)))
    x, on = points(world), told(world, "pag", torch.ones(B).bool())
    with pytest.raises(Exception, match="input"):
        ask(model, on, normal(0, B, 1, 4, 4))
    net = world.model.net
    direct = net(x, torch.tensor(0.6), world.cond)
    assert torch.equal(direct.detach(), ask(world.model, world.cond, x))


def test_unconditional_networks_need_no_condition():
    from wayfield.field.nets.dit import DiT, DiTConfig

    net = DiT(DiTConfig((1, 8, 8), patch=4, width=16, depth=2, heads=2, frequencies=4))
    model, _ = install(Denoiser(net, Straight(), "velocity", shape=(1, 8, 8)), "pag", PerturbedAttention())
    out = sample(model, uniform(Straight(), 2), conds={"perturbed": {"pag": True}}, guidance=PAG(1.0))
    assert out.counts[:2] == (2, 4)


# ---------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("world", [dit, sd_unet], ids=["dit", "sd-unet"])
def test_layers_that_are_not_there(world):
    world = world()
    with pytest.raises(UnknownNameError, match="Did you mean"):
        install(world.model, "pag", PerturbedAttention((world.layer + "s",)))
    with pytest.raises(UnknownNameError, match="block with attention"):
        install(world.model, "slg", SkipLayers(("nothing",)))
    assert "_wayfield_patches" not in vars(world.model.net)


def test_networks_without_attention():
    net = ResidualMLP(ResidualMLPConfig(shape=(2,), width=8, blocks=1))
    for patch in (PerturbedAttention(), SmoothedAttention(), SkipLayers(("a",))):
        with pytest.raises(UnsupportedError, match="ResidualMLP without one"):
            install(Denoiser(net, Straight(), "velocity"), "p", patch)


def test_names_are_used_once():
    world = dit()
    model, undo = install(world.model, "pag", PerturbedAttention())
    for again in (model, world.model):
        with pytest.raises(UnsupportedError, match="'pag'"):
            install(again, "pag", PerturbedAttention())
    with pytest.raises(UnsupportedError, match="the condition 'tokens'"):
        install(world.model, "tokens", PerturbedAttention())
    undo()
    install(world.model, "pag", PerturbedAttention())


def test_undo_in_order():
    world = dit()
    model, first = install(world.model, "a", PerturbedAttention())
    both, second = install(model, "b", SkipLayers(("blocks.0",)))
    with pytest.raises(UnsupportedError, match="'b' installed later"):
        first()
    second()
    with pytest.raises(UnsupportedError, match="undo of patch 'b'"):
        second()
    with pytest.raises(UnsupportedError, match="undone"):
        ask(both, {**world.cond, "a": MIXED, "b": MIXED}, points(world))
    ask(model, {**world.cond, "a": MIXED}, points(world))
    layer = world.model.net.blocks[0].attention
    site = layer.forward
    layer.forward = lambda *args: site(*args)
    with pytest.raises(UnsupportedError, match="somebody else"):
        first()
    layer.forward = site
    first()
    assert "forward" not in vars(layer)


def test_wrong_patches():
    world = dit()
    with pytest.raises(DTypeError, match="Patch"):
        install(world.model, "pag", "PAG")
    with pytest.raises(DTypeError, match="layers"):
        PerturbedAttention(3)
    with pytest.raises(UnsupportedError, match="layers to skip"):
        SkipLayers(())
    compiled = Denoiser(torch.compile(world.model.net), Straight(), "velocity")
    with pytest.raises(UnsupportedError, match="compiled"):
        install(compiled, "pag", PerturbedAttention())


def test_blocks_that_change_the_shape():
    class Halved(Patch):
        layers = ()

        def candidates(self, net):
            return {"stem": net.stem}

        def block(self, module, forward, args, kwargs, rows):
            from wayfield.field.patch import gated

            return gated(rows[""], args[0], forward(*args, **kwargs))

    world = unet()
    model, _ = install(world.model, "half", Halved())
    with pytest.raises(ShapeError, match="puts in place"):
        ask(model, {**world.cond, "half": MIXED}, points(world))


def test_attention_that_cannot_be_reached():
    processors = pytest.importorskip("diffusers.models.attention_processor")
    world = sd_unet()
    world.model.net.set_attn_processor(processors.AttnProcessor())
    model, _ = install(world.model, "pag", PerturbedAttention((world.layer,)))
    with pytest.raises(UnsupportedError, match="scaled_dot_product_attention"):
        ask(model, told(world, "pag"), points(world))


def test_checkpointed_gradients_are_refused():
    world = sd_unet()
    model, _ = install(world.model, "pag", PerturbedAttention((world.layer,)))
    world.model.net.enable_gradient_checkpointing()
    bound = model.schema.bind(told(world, "pag"), B, "cpu")
    with pytest.raises(UnsupportedError, match="checkpointing"):
        model.answer(points(world), model.level(torch.tensor(0.5), dtype=torch.float32), bound)


class Rows(torch.nn.Module):
    """A network of points without height and width."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, time, cond):
        return self.net(x.unflatten(1, (1, 8, 8)), time, cond).flatten(1)


def test_tokens_that_are_no_map():
    world = dit()
    flat = Denoiser(Rows(world.model.net), Straight(), "velocity", shape=(64,), schema=world.model.schema)
    model, _ = install(flat, "seg", SmoothedAttention(("net.blocks.0.attention",)))
    with pytest.raises(ShapeError, match="a map like None"):
        ask(model, told(world, "seg"), points(world).flatten(1))
