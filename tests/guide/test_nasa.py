"""NASA: the oracles of attention alone, layers against processors written by hand, and as a condition and a term."""

import pytest
import torch
from tests.field.patchworld import B, L, ask, dit, flux, normal, points, sd3, sd_unet, tokens, unet
from torch.nn import functional as F

from wayfield.core.errors import ConditionError, RangeError, UnknownNameError, UnsupportedError
from wayfield.core.grid import uniform
from wayfield.core.path import Straight
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets.dit import DiT, DiTConfig
from wayfield.field.patch import install
from wayfield.guide.nasa import NASA, NegativeAttention, nasa_attention, negative
from wayfield.sampling.driver import sample

ALPHA = torch.tensor([0.0, 0.25, 0.5, 1.0])
N, M = 6, 5
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def heads(seed, count, width=4):
    return normal(seed, B, 2, count, width).double()


Q, KP, VP, KN, VN = heads(0, N), heads(1, L), heads(2, L), heads(3, M), heads(4, M)


def plain(k, v, mask=None):
    return F.scaled_dot_product_attention(Q, k, v, mask)


# ------------------------------------------------------------------------------------------------------ attention alone
def test_the_formula():
    weights = [(Q @ k.transpose(-1, -2) / Q.shape[-1] ** 0.5).softmax(-1) for k in (KP, KN)]
    want = weights[0] @ VP - ALPHA.double()[:, None, None, None] * (weights[1] @ VN)
    torch.testing.assert_close(nasa_attention(Q, KP, VP, KN, VN, ALPHA), want, **EXACT)


def test_alpha_zero_is_plain_whatever_the_negative_holds():
    assert torch.equal(nasa_attention(Q, KP, VP, KN, VN, 0.0), plain(KP, VP))
    out = nasa_attention(Q, KP, VP, KN * torch.nan, VN * torch.inf, torch.tensor([0.0, 0.0, 0.0, 0.5]))
    assert torch.equal(out[:3], plain(KP, VP)[:3])


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_equal_prompts_shrink(alpha):
    out = nasa_attention(Q, KP, VP, KP, VP, alpha)
    torch.testing.assert_close(out, (1 - alpha) * plain(KP, VP), **EXACT)


def test_no_values_no_change():
    torch.testing.assert_close(nasa_attention(Q, KP, VP, KN, 0 * VN, 0.8), plain(KP, VP), **EXACT)


def test_one_negative_token_subtracts_a_constant():
    out = nasa_attention(Q, KP, VP, KN[:, :, :1], VN[:, :, :1], 0.8)
    torch.testing.assert_close(out, plain(KP, VP) - 0.8 * VN[:, :, :1], **EXACT)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9, 1.4])
def test_shrinks_and_extrapolates(alpha):
    zp, zn = plain(KP, VP), plain(KN, VN)
    want = (1 - alpha) * (zp + alpha / (1 - alpha) * (zp - zn))
    torch.testing.assert_close(nasa_attention(Q, KP, VP, KN, VN, alpha), want, **EXACT)


def test_order_copies_and_masked_tokens_of_the_negative_do_not_matter():
    want = nasa_attention(Q, KP, VP, KN, VN, 0.7)
    order = torch.tensor([3, 0, 4, 1, 2, 3, 0, 4, 1, 2])
    torch.testing.assert_close(nasa_attention(Q, KP, VP, KN[:, :, order], VN[:, :, order], 0.7), want, **EXACT)
    k, v = torch.cat([KN, heads(7, 2)], 2), torch.cat([VN, heads(8, 2)], 2)
    mask = (torch.arange(M + 2) < M)[None, None, None]
    torch.testing.assert_close(nasa_attention(Q, KP, VP, k, v, 0.7, mask_neg=mask), want, **EXACT)


def test_affine_in_alpha():
    at = [nasa_attention(Q, KP, VP, KN, VN, a) for a in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(at[1], (at[0] + at[2]) / 2, **EXACT)


# ---------------------------------------------------------------------------------------------------- inside networks
def unwanted(world):
    return {world.text: tokens(5) if world.text == "tokens" else normal(5, *world.cond[world.text].shape)}


def steered(world, texts, alpha=ALPHA, layers=()):
    model, undo = install(world.model, "nasa", NegativeAttention((world.text,), layers))
    out = ask(model, negative(world.cond, texts, alpha), points(world))
    undo()
    return out


def close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def less(out, other, bias):
    """After the way out: the bias counts once."""
    return out - ALPHA[: len(out), None, None] * (other - bias)


def by_hand_ours(world, layers):
    """Every layer run once with each text."""
    with torch.no_grad():
        context, mask = world.model.net.conditioning.sequence(unwanted(world), B)
    for layer in layers:
        layer.forward = lambda h, c, m, f=layer.forward, b=layer.out.bias: less(f(h, c, m), f(h, context, mask), b)
    return ask(world.model, world.cond, points(world))


def test_our_transformer_by_hand():
    world = dit()
    got = steered(world, unwanted(world))
    close(got, by_hand_ours(world, [block.cross for block in world.model.net.blocks]))


def test_our_unet_by_hand():
    world = unet()
    net = world.model.net
    units = [unit for unit in (*net.down, *net.middle, *net.up) if getattr(unit, "attention", None) is not None]
    assert len(units) == 4
    got = steered(world, unwanted(world))
    close(got, by_hand_ours(world, [unit.attention.attention for unit in units]))


def test_some_layers_only():
    world = dit()
    got = steered(world, unwanted(world), layers=("blocks.1",))
    close(got, by_hand_ours(world, [world.model.net.blocks[1].cross]))


def test_unet_of_diffusers_by_hand():
    world = sd_unet()
    text = unwanted(world)[world.text]
    got = steered(world, unwanted(world))

    class Processor:
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **rest):
            out = self.inner(attn, hidden_states, encoder_hidden_states, **rest)
            if encoder_hidden_states is None:
                return out
            return less(out, self.inner(attn, hidden_states, text, **rest), attn.to_out[0].bias)

    inner = next(iter(world.model.net.attn_processors.values()))
    world.model.net.set_attn_processor(Processor(inner))
    close(got, ask(world.model, world.cond, points(world)))


class Paired:
    """Rows of a batch are samples with the positive text, then the same with the negative; places are shared."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **rest):
        out = self.inner(attn, hidden_states, encoder_hidden_states, *args, **rest)
        if encoder_hidden_states is not None:
            places, text = out
            shared = less(*places.chunk(2), attn.to_out[0].bias)
            return torch.cat([shared, shared]), text
        if getattr(attn, "pre_only", False):  # Flux: text first, in one stream
            shared = less(*out[:, L:].chunk(2), 0.0)
            return torch.cat([out[:, :L], torch.cat([shared, shared])], 1)
        return out


@pytest.mark.parametrize("world", [sd3, flux], ids=["sd3", "flux"])
def test_texts_that_are_carried_along_by_hand(world):
    world = world()
    got, net, x = steered(world, unwanted(world)), world.model.net, points(world)
    for module in net.modules():
        if hasattr(module, "processor"):
            module.processor = Paired(module.processor)
    both = {name: torch.cat([c, c]) for name, c in world.cond.items()}
    both[world.text] = torch.cat([world.cond[world.text], unwanted(world)[world.text]])
    close(got, ask(world.model, both, torch.cat([x, x]))[:B])


def test_masks_of_the_negative_text():
    diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")
    net = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        cross_attention_dim=24, caption_channels=12, use_additional_conditions=False,
    )  # fmt: skip

    def call(net, x, time, cond):
        told = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}, "timestep": time.expand(len(x))}
        return net(x, **told, **cond, return_dict=False)[0]

    names = ("encoder_hidden_states", "encoder_attention_mask")
    schema = Schema({names[0]: Field((L, 12), "float32"), names[1]: Field((L,), values=2)})
    model = Denoiser(net.eval(), Straight(), "velocity", "1000t", shape=(4, 8, 8), schema=schema, call=call)
    model, _ = install(model, "nasa", NegativeAttention(names))
    cond, x = {names[0]: normal(1, B, L, 12), names[1]: torch.ones(B, L).long()}, normal(2, B, 4, 8, 8)
    mask = torch.tensor([1, 1, 0]).expand(B, L)
    text = normal(3, B, L, 12)
    other = torch.cat([text[:, :2], normal(4, B, 1, 12)], 1)
    a, b = (ask(model, negative(cond, {names[0]: t, names[1]: mask}, 0.5), x) for t in (text, other))
    assert torch.equal(a, b)
    seen = ask(model, negative(cond, {names[0]: other, names[1]: torch.ones(B, L).long()}, 0.5), x)
    assert (seen - b).abs().max() > 1e-4


# -------------------------------------------------------------------------------------------------- in a run, as a term
def test_a_steered_run_has_as_many_rows_as_a_plain_one():
    world = dit()
    model, _ = install(world.model, "nasa", NegativeAttention(("tokens",)))
    grid = uniform(Straight(), 3)
    cond = negative(world.cond, unwanted(world), 0.3)
    direct = sample(model, grid, cond=cond, samples=B)
    assert direct.counts[:2] == (3, 3 * B)
    off = negative(world.cond, unwanted(world), 0.0)
    untouched = sample(world.model, grid, cond=world.cond, samples=B)
    assert torch.equal(sample(model, grid, cond=off, samples=B).x, untouched.x)
    term = sample(model, grid, cond=off, conds={"steered": cond}, samples=B, guidance=NASA())
    torch.testing.assert_close(term.x, direct.x, rtol=1e-5, atol=1e-5)
    assert term.counts[:2] == (3, 6 * B)
    none = sample(model, grid, cond=off, conds={"steered": cond}, samples=B, guidance=NASA(0.0))
    assert torch.equal(none.x, untouched.x)


def test_rows_are_bound_by_strength_of_their_own():
    world = dit()
    texts = unwanted(world)
    out = steered(world, texts)
    for row, alpha in enumerate(ALPHA.tolist()):
        close(out[row], steered(world, texts, alpha)[row])


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("alpha", [-0.1, float("nan"), [0.1, float("inf")]])
def test_bad_strength(alpha):
    with pytest.raises(RangeError, match="alpha"):
        negative({}, {}, alpha)


def test_towards_a_text_if_asked():
    assert negative({}, {}, -0.5, allow_negative=True)["nasa"] == -0.5


def test_strong_is_said():
    with pytest.warns(UserWarning, match="takes away more"):
        negative({}, {}, 2.0)


def test_texts_that_the_model_does_not_know():
    world = dit()
    with pytest.raises(UnknownNameError, match="tokens"):
        install(world.model, "nasa", NegativeAttention(("token",)))
    with pytest.raises(UnsupportedError, match="text of NASA"):
        NegativeAttention(())


def test_networks_that_read_no_text():
    net = DiT(DiTConfig((1, 8, 8), patch=4, width=16, depth=1, heads=2, frequencies=4, num_classes=3))
    model = Denoiser(net, Straight(), "velocity", schema=Schema({"label": Field(values=4)}, {"label": 3}))
    with pytest.raises(UnsupportedError, match="looks at a text"):
        install(model, "nasa", NegativeAttention(("label",)))


def test_some_blocks_cannot_carry_a_text():
    world = sd3()
    with pytest.raises(UnsupportedError, match="layers of NASA"):
        install(world.model, "nasa", NegativeAttention((world.text,), ("transformer_blocks.1",)))


def test_a_text_of_another_width():
    world = sd_unet()
    schema = Schema({**world.model.schema.fields, "wide": Field((L, 20), "float32")})
    model = Denoiser(world.model.net, Straight(), "velocity", schema=schema, call=lambda net, x, time, cond: net(
        x, time, encoder_hidden_states=cond["encoder_hidden_states"]).sample)  # fmt: skip
    model, _ = install(model, "nasa", NegativeAttention(("wide",)))
    cond = {**world.cond, "wide": normal(0, B, L, 20)}
    with pytest.raises(ConditionError, match="got 20; expected 12"):
        ask(model, negative(cond, {"wide": cond["wide"]}, 0.5), points(world))


def test_bad_scale():
    with pytest.raises(RangeError, match="scale s of NASA"):
        NASA(float("nan"))


def test_written_out():
    assert eval(repr(NASA(2.5))) == NASA(2.5)
    assert NASA().s == 1.0
