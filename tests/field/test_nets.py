"""Every network passes the same examination; then the few things that only one of them does."""

from __future__ import annotations

import copy
import json
from types import MappingProxyType

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from wayfield.core.errors import ConditionError, DTypeError, RangeError, ShapeError, UnknownNameError
from wayfield.field.nets import (
    NETS,
    Classifier,
    ClassifierConfig,
    DiTConfig,
    ResidualMLP,
    ResidualMLPConfig,
    UNet,
    UNetConfig,
    build,
    initialise,
    spec_of,
)
from wayfield.field.nets.dit import sincos_places
from wayfield.field.nets.layers import Attention, attend

UNET = {"net": "UNet", "channels": [8, 16], "blocks": 1, "heads": 2, "groups": 4, "width": 16}
DIT = {"net": "DiT", "width": 16, "depth": 2, "heads": 2}
MLP = {"net": "ResidualMLP", "width": 16, "blocks": 2}
CAPTION = {"vocab": 7, "max_tokens": 6}
FEATURES = {"context_channels": 5}

SPECS = {
    "mlp": MLP | {"shape": [3]},
    "mlp-label": MLP | {"shape": [1, 8, 8], "num_classes": 3},
    "mlp-context": MLP | {"shape": [4, 2], **FEATURES},
    "unet": UNET | {"shape": [1, 8, 8]},
    "unet-label": UNET | {"shape": [1, 8, 8], "num_classes": 3, "attention": [1]},
    "unet-tokens": UNET | {"shape": [3, 16, 16], "patch": 2, "attention": [0, 1], **CAPTION},
    "unet-context": UNET | {"shape": [3, 16, 8], "patch": 4, "channels": [8], "attention": [0], **FEATURES},
    "dit": DIT | {"shape": [1, 8, 8], "patch": 2, "places": "learned"},
    "dit-label": DIT | {"shape": [1, 8, 4], "num_classes": 3},
    "dit-tokens": DIT | {"shape": [3, 8, 8], "num_classes": 3, **CAPTION},
    "dit-context": DIT | {"shape": [3, 8, 8], **FEATURES},
}
every = pytest.mark.parametrize("name", SPECS)
captioned = pytest.mark.parametrize("name", ["unet-tokens", "dit-tokens"])
featured = pytest.mark.parametrize("name", ["mlp-context", "unet-context", "dit-context"])


def nudged(spec: dict, seed: int = 0) -> nn.Module:
    """The network of `spec`, a little away from its start, where zeroed layers would hide everything."""
    net, g = build(spec, seed=seed), torch.Generator().manual_seed(seed + 99)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return net


def given(spec: dict, rows: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """A batch for the network of `spec`: x, time, cond."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(rows, *spec["shape"], generator=g, dtype=torch.float64).to(dtype)
    time = torch.randn(rows, generator=g, dtype=torch.float64).to(dtype)
    cond = {}
    if spec.get("num_classes"):
        cond["label"] = torch.randint(0, spec["num_classes"] + 1, (rows,), generator=g)
    if spec.get("vocab"):
        cond["tokens"] = torch.randint(1, spec["vocab"], (rows, 4), generator=g)
        cond["tokens"][0, 2:] = 0
    if spec.get("context_channels"):
        cond["context"] = torch.randn(rows, 4, spec["context_channels"], generator=g, dtype=torch.float64).to(dtype)
    return x, time, cond


def differs(a: Tensor, b: Tensor) -> bool:
    """Whether every row of a and b differs by more than rounding."""
    return bool(((a - b).flatten(1).abs().amax(1) > 1e-4).all())


# ------------------------------------------------------------------------------------------------ one examination
@every
def test_output_has_the_shape_of_x_and_starts_at_zero(name):
    x, time, cond = given(SPECS[name])
    out = build(SPECS[name])(x, time, cond)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert not out.any()
    assert differs(nudged(SPECS[name])(x, time, cond), out)


@every
def test_equal_seeds_give_equal_weights_and_the_global_generator_is_untouched(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build(SPECS[name], seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build(SPECS[name], seed=3).state_dict(), build(SPECS[name], seed=4).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


@every
@pytest.mark.parametrize("training", [False, True])
def test_a_row_does_not_depend_on_its_batch(name, training):
    net = nudged(SPECS[name]).train(training)
    x, time, cond = given(SPECS[name])
    whole = net(x, time, cond)
    for k in range(len(x)):
        alone = net(x[k : k + 1], time[k : k + 1], {key: value[k : k + 1] for key, value in cond.items()})
        torch.testing.assert_close(alone, whole[k : k + 1], rtol=1e-5, atol=1e-5)


@every
def test_training_mode_changes_nothing(name):
    net, batch = nudged(SPECS[name]), given(SPECS[name])
    assert torch.equal(net.train()(*batch), net.eval()(*batch))


@every
def test_scalar_time_equals_one_time_per_row_and_time_matters(name):
    net = nudged(SPECS[name])
    x, _, cond = given(SPECS[name])
    scalar = net(x, torch.tensor(0.7), cond)
    torch.testing.assert_close(scalar, net(x, torch.full((len(x),), 0.7), cond), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scalar, net(x, torch.tensor(0.7, dtype=torch.float64), cond), rtol=1e-5, atol=1e-5)
    assert differs(scalar, net(x, torch.tensor(-1.1), cond))


@every
def test_every_parameter_has_a_gradient(name):
    net = nudged(SPECS[name])
    x, time, cond = given(SPECS[name])
    (net(x, time, cond) - x).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@every
def test_float64_agrees_with_float32_and_bf16_autocast_runs(name):
    net = nudged(SPECS[name])
    x, time, cond = given(SPECS[name])
    single = net(x, time, cond)
    double = copy.deepcopy(net).double()(*given(SPECS[name], dtype=torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, time, cond)
    half.square().sum().backward()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, rtol=0.1, atol=0.1)


@every
def test_spec_survives_json_and_weights_survive_a_state_dict(name):
    net = nudged(SPECS[name])
    spec = json.loads(json.dumps(spec_of(net)))
    assert SPECS[name].items() <= spec.items()
    twin = build(spec, seed=8)
    assert spec_of(twin) == spec
    assert twin.config == net.config
    twin.load_state_dict(net.state_dict())
    batch = given(SPECS[name])
    assert torch.equal(twin(*batch), net(*batch))
    assert torch.equal(copy.deepcopy(net)(*batch), net(*batch))


@every
def test_forward_derivatives_and_vmap_work(name):  # what MeanFlow and per-sample gradients need
    net = nudged(SPECS[name]).double()
    x, time, cond = given(SPECS[name], dtype=torch.float64)
    ones, h = (torch.ones_like(x), torch.ones_like(time)), 1e-5
    out, slope = torch.func.jvp(lambda x, time: net(x, time, cond), (x, time), ones)
    apart = (net(x + h, time + h, cond) - net(x - h, time - h, cond)) / (2 * h)
    torch.testing.assert_close(slope, apart, rtol=1e-6, atol=1e-7)
    rows = torch.func.vmap(lambda x, s, c: net(x[None], s, {k: v[None] for k, v in c.items()})[0])(x, time, cond)
    torch.testing.assert_close(rows, out)


@pytest.mark.parametrize("name", ["mlp-label", "unet-tokens", "dit-tokens", "dit-context"])
def test_compiles_to_one_graph(name):
    torch._dynamo.reset()
    counter = CompileCounter()
    net = nudged(SPECS[name]).eval()
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    x, time, cond = given(SPECS[name])
    with torch.no_grad():
        for shift in (0.0, 1.0, 2.0):
            out = compiled(x + shift, time - shift, cond)
            torch.testing.assert_close(out, net(x + shift, time - shift, cond))
    assert counter.frame_count == 1
    assert spec_of(compiled) == spec_of(net)


@pytest.mark.slow
def test_inductor_agrees_with_eager():
    torch._dynamo.reset()
    net = nudged(SPECS["mlp-label"]).eval()
    batch = given(SPECS["mlp-label"])
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net, fullgraph=True)(*batch), net(*batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["unet-label", "dit-label"])
def test_a_scalar_time_and_a_foreign_mapping_compile_too(name):
    torch._dynamo.reset()
    net = nudged(SPECS[name])
    x, _, cond = given(SPECS[name])
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, torch.tensor(0.3), MappingProxyType(cond)), net(x, torch.tensor(0.3), cond))


# ----------------------------------------------------------------------------------------------------- conditions
@pytest.mark.parametrize("name", ["mlp-label", "unet-label", "dit-label"])
def test_label_and_null_label_change_the_output(name):
    net, (x, time, _) = nudged(SPECS[name]), given(SPECS[name])
    outs = [net(x, time, {"label": torch.full((len(x),), y)}) for y in range(4)]
    assert all(differs(a, b) for i, a in enumerate(outs) for b in outs[:i])
    with pytest.raises(IndexError):
        net(x, time, {"label": torch.full((len(x),), 4)})


@captioned
def test_tokens_and_their_order_change_the_output(name):
    net = nudged(SPECS[name])
    x, time, cond = given(SPECS[name])

    def out(*words: int) -> Tensor:
        return net(x, time, cond | {"tokens": torch.tensor([words]).expand(len(x), -1)})

    assert differs(out(1, 2), out(1, 3))
    assert differs(out(1, 2), out(2, 1))
    assert differs(out(1, 2), out(0, 0))
    assert differs(out(1, 2), out(1))


@captioned
def test_padding_does_not_influence(name):
    net = nudged(SPECS[name])
    x, time, cond = given(SPECS[name])
    before = net(x, time, cond)
    longer = cond | {"tokens": F.pad(cond["tokens"], (0, 2))}
    torch.testing.assert_close(net(x, time, longer), before, rtol=1e-5, atol=1e-6)
    null = cond | {"tokens": torch.zeros_like(cond["tokens"])}
    no_words = net(x, time, null)
    assert no_words.isfinite().all()
    with torch.no_grad():
        net.conditioning.sequence.tokens.weight[0] += 3.0
    assert torch.equal(net(x, time, cond), before)
    assert torch.equal(net(x, time, null), no_words)


@featured
def test_context_changes_the_output_and_what_is_masked_does_not(name):
    net = nudged(SPECS[name])
    x, time, cond = given(SPECS[name])
    context, rows = cond["context"], len(x)
    whole = net(x, time, cond)
    torch.testing.assert_close(net(x, time, cond | {"context_mask": torch.ones(rows, 4, dtype=torch.bool)}), whole)
    assert differs(net(x, time, {"context": context.flip(0)}), whole)
    mask = torch.tensor([[True, True, False, False]]).expand(rows, -1)
    short = net(x, time, {"context": context[:, :2]})
    assert differs(short, whole)
    broken = context.masked_fill(~mask[..., None], float("nan"))
    masked = net(x, time, {"context": broken, "context_mask": mask})
    torch.testing.assert_close(masked, short, rtol=1e-5, atol=1e-6)
    null = net(x, time, {"context": context, "context_mask": torch.zeros_like(mask)})
    assert null.isfinite().all()
    assert differs(null, whole)


def test_attention_of_the_unet_reads_single_words():
    net = nudged(SPECS["unet-tokens"])
    with torch.no_grad():  # without the pooled caption, the keys are the only way in
        net.conditioning.pool.weight.zero_()
    x, time, cond = given(SPECS["unet-tokens"])
    assert differs(net(x, time, {"tokens": cond["tokens"].flip(1)}), net(x, time, cond))


def test_unconditional_networks_ignore_cond():
    for name in ("mlp", "unet", "dit"):
        net, (x, time, _) = nudged(SPECS[name]), given(SPECS[name])
        assert torch.equal(net(x, time, {}), net(x, time, {"label": torch.zeros(4, dtype=torch.int64)}))


# --------------------------------------------------------------------------------------------- sizes, layers, init
@pytest.mark.parametrize(
    ("shape", "channels", "patch"),
    [([1, 8, 8], [8, 16], 1), ([1, 28, 28], [8, 8, 16], 1), ([3, 32, 32], [8, 16], 2), ([3, 32, 32], [16], 4)],
)
def test_unet_sizes(shape, channels, patch):
    net = nudged(UNET | {"shape": shape, "channels": channels, "patch": patch, "attention": [len(channels) - 1]})
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    assert net(x, torch.tensor(0.0), {}).shape == x.shape


def test_written_out_attention_equals_the_fused_one():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=g, dtype=torch.float64) for n in (5, 7, 7))
    mask = torch.tensor([[True] * 7, [True, False, True, False, False, False, False]])
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
    torch.testing.assert_close(attend(q, k, v, mask), fused)


@captioned
def test_the_fused_path_of_other_devices_fits_together(name):
    net = build(SPECS[name]).to("meta")
    x, time, cond = given(SPECS[name])
    out = net(x.to("meta"), time.to("meta"), {key: value.to("meta") for key, value in cond.items()})
    assert out.shape == x.shape


def test_attention_over_own_tokens_and_context_is_one_softmax():
    layer = Attention(8, 2, own=True, context_width=8)
    initialise(layer, 0)
    g = torch.Generator().manual_seed(0)
    h, context = torch.randn(2, 3, 8, generator=g), torch.randn(2, 4, 8, generator=g)
    hidden = torch.zeros(2, 4, dtype=torch.bool)
    torch.testing.assert_close(layer(h, context, hidden), layer(h))
    assert differs(layer(h, context), layer(h))


def test_initialise_has_the_stated_spread_and_takes_a_live_module():
    layer = nn.Sequential(nn.Linear(200, 300), nn.Conv2d(20, 300, 3), nn.Embedding(100, 300), nn.GroupNorm(2, 4))
    kept = layer[0].weight
    initialise(layer, 0)
    assert layer[0].weight is kept
    for part, std in zip(layer, (200**-0.5, 180**-0.5, 0.5), strict=False):
        assert part.weight.std().item() == pytest.approx(std, rel=0.03)
    assert not layer[0].bias.any()
    assert not layer[1].bias.any()
    assert (layer[3].weight == 1).all()
    with pytest.raises(DTypeError, match="BatchNorm1d"):
        initialise(nn.BatchNorm1d(3), 0)


def test_default_dtype_and_outer_device_context_are_respected():
    torch.set_default_dtype(torch.float64)
    try:
        net = build(SPECS["dit-label"], seed=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {p.dtype for p in [*net.parameters(), *net.buffers()]} == {torch.float64}
    with torch.device("meta"):
        inside = build(SPECS["dit-label"], seed=2)
    for key, value in inside.state_dict().items():
        assert torch.equal(value, net.state_dict()[key].float())


def test_sincos_places_tell_all_patches_apart():
    places = sincos_places(7, 5, 16)
    assert places.shape == (35, 16)
    assert (torch.cdist(places, places) + torch.eye(35)).min() > 0.3
    torch.testing.assert_close(places[:5, :8], places[:1, :8].expand(5, -1))  # one row of patches, equal row half


def test_residual_mlp_learns_a_denoiser():
    net = ResidualMLP(ResidualMLPConfig(shape=(2,), width=32, blocks=2, num_classes=2), seed=0)
    opt, g = torch.optim.Adam(net.parameters(), 3e-3), torch.Generator().manual_seed(0)
    losses = []
    for _ in range(150):
        y = torch.randint(0, 2, (128,), generator=g)
        x0, eps = (2.0 * y[:, None] - 1.0).expand(-1, 2), torch.randn(128, 2, generator=g)
        s = torch.rand(128, generator=g)
        loss = (net((1 - s)[:, None] * x0 + s[:, None] * eps, s, {"label": y}) - x0).square().mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.0)
    assert sum(losses[-10:]) / 10 < 0.01


# ----------------------------------------------------------------------------------------------------- classifier
CLASSIFIERS = {
    "maps": {"net": "Classifier", "shape": [1, 7, 8], "classes": 3, "width": 8, "groups": 4},
    "maps-noise": {"net": "Classifier", "shape": [2, 8, 8], "classes": 3, "width": 8, "groups": 4, "noise_aware": True},
    "rows": {"net": "Classifier", "shape": [5], "classes": 3, "width": 8},
    "rows-noise": {"net": "Classifier", "shape": [5, 2], "classes": 3, "width": 8, "noise_aware": True},
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name):
    spec, state = CLASSIFIERS[name], torch.get_rng_state()
    net = nudged(spec)
    assert torch.equal(torch.get_rng_state(), state)
    x, time, _ = given(spec)
    args = (time,) if spec.get("noise_aware") else ()
    logits, features = net(x, *args), net.features(x, *args)
    assert logits.shape == (4, 3)
    assert features.shape == (4, 16 if len(spec["shape"]) == 3 else 8)
    torch.testing.assert_close(net.out(features), logits)
    torch.testing.assert_close(net(x[1:2], *(t[1:2] for t in args)), logits[1:2], rtol=1e-5, atol=1e-5)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert spec_of(build(json.loads(json.dumps(spec_of(net))))) == spec_of(net)
    with pytest.raises(ConditionError, match="Classifier time"):
        net(x, *(() if args else (time,)))
    with pytest.raises(ShapeError):
        net(x[:, :1] if len(spec["shape"]) == 1 else x.flatten(1), *args)


def test_noise_aware_classifier_hears_the_time_and_compiles():
    torch._dynamo.reset()
    net = nudged(CLASSIFIERS["maps-noise"])
    x, time, _ = given(CLASSIFIERS["maps-noise"])
    assert differs(net(x, time), net(x, time + 1.0))
    torch.testing.assert_close(net(x, torch.tensor(0.5)), net(x, torch.full((4,), 0.5)))
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(x, time), net(x, time))


# --------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (ShapeError, "patch and levels", lambda: UNetConfig(shape=(1, 7, 8))),
        (ShapeError, "patch and levels", lambda: UNetConfig(shape=(1, 8, 8), patch=8)),
        (ShapeError, "heads", lambda: UNetConfig(shape=(1, 8, 8), channels=(8, 16), attention=(1,), heads=3)),
        (ShapeError, "groups", lambda: UNetConfig(shape=(1, 8, 8), channels=(8, 12))),
        (ShapeError, "shape", lambda: UNetConfig(shape=(8, 8))),
        (RangeError, "channels", lambda: UNetConfig(shape=(1, 8, 8), channels=())),
        (RangeError, "channels", lambda: UNetConfig(shape=(1, 8, 8), channels=(8, 0))),
        (RangeError, "attention", lambda: UNetConfig(shape=(1, 8, 8), attention=(2,))),
        (RangeError, "width", lambda: UNetConfig(shape=(1, 8, 8), width=0)),
        (RangeError, "at most one", lambda: UNetConfig(shape=(1, 8, 8), vocab=3, context_channels=2)),
        (RangeError, "vocab", lambda: UNetConfig(shape=(1, 8, 8), vocab=-1)),
        (ShapeError, "patch", lambda: DiTConfig(shape=(1, 6, 8))),
        (ShapeError, "heads", lambda: DiTConfig(shape=(1, 8, 8), width=64, heads=5)),
        (ShapeError, "sincos", lambda: DiTConfig(shape=(1, 8, 8), width=6, heads=2)),
        (
            ShapeError,
            "sequence encoder",
            lambda: DiTConfig(shape=(1, 8, 8), width=6, heads=2, places="learned", vocab=2),
        ),
        (UnknownNameError, "sincos", lambda: DiTConfig(shape=(1, 8, 8), places="sincoss")),
        (RangeError, "width", lambda: ResidualMLPConfig(shape=(2,), width=-4)),
        (RangeError, "max_frequency", lambda: ResidualMLPConfig(shape=(2,), max_frequency=0.0)),
        (DTypeError, "max_frequency", lambda: ResidualMLPConfig(shape=(2,), max_frequency="fast")),
        (DTypeError, "width", lambda: ResidualMLPConfig(shape=(2,), width=4.0)),
        (DTypeError, "tuple", lambda: ResidualMLPConfig(shape=[2])),
        (ShapeError, "shape", lambda: ResidualMLPConfig(shape=())),
        (RangeError, "shape", lambda: ResidualMLPConfig(shape=(0, 2))),
        (RangeError, "classes", lambda: ClassifierConfig(shape=(2,), classes=0)),
        (ShapeError, "groups", lambda: ClassifierConfig(shape=(1, 8, 8), classes=2, width=12)),
        (UnknownNameError, "'UNet'", lambda: build({"net": "UNett", "shape": [1, 8, 8]})),
        (UnknownNameError, "network", lambda: build({"shape": [1, 8, 8]})),
        (UnknownNameError, "'width'", lambda: build({"net": "UNet", "shape": [1, 8, 8], "widht": 3})),
        (UnknownNameError, "'shape'", lambda: build({"net": "DiT"})),
        (DTypeError, "mapping", lambda: build("UNet")),
        (UnknownNameError, "Linear", lambda: spec_of(nn.Linear(1, 1))),
    ],
)
def test_construction_errors(error, match, make):
    with pytest.raises(error, match=match):
        make()


@every
def test_a_wrong_x_or_time_is_named(name):
    net = build(SPECS[name])
    x, time, cond = given(SPECS[name])
    expected = ", ".join(map(str, SPECS[name]["shape"]))
    with pytest.raises(ShapeError, match=expected):
        net(x[..., :-1], time, cond)
    with pytest.raises(ShapeError, match="time"):
        net(x, time[:2], cond)
    with pytest.raises(DTypeError, match="time"):
        net(x, 0.5, cond)


@pytest.mark.parametrize(
    ("name", "key", "wrong"),
    [
        ("mlp-label", "label", torch.zeros(3, dtype=torch.int64)),
        ("unet-label", "label", torch.zeros(4)),
        ("dit-tokens", "tokens", torch.ones(4, 7, dtype=torch.int64)),
        ("dit-tokens", "tokens", torch.ones(4, dtype=torch.int64)),
        ("unet-context", "context", torch.zeros(4, 3, 4)),
        ("unet-context", "context", torch.zeros(4, 3, 5, dtype=torch.int64)),
        ("dit-context", "context_mask", torch.ones(4, 3, dtype=torch.bool)),
    ],
)
def test_a_wrong_or_missing_condition_is_named(name, key, wrong):
    net = build(SPECS[name])
    x, time, cond = given(SPECS[name])
    with pytest.raises(ConditionError, match=key):
        net(x, time, cond | {key: wrong})
    if key in cond:
        with pytest.raises(ConditionError, match=key):
            net(x, time, {k: v for k, v in cond.items() if k != key})


def test_the_classes_take_their_configs_directly():
    config = UNetConfig(shape=(1, 8, 8), channels=(8, 16))
    direct, built = UNet(config, seed=4), build(spec_of(UNet(config)), seed=4)
    assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), built.parameters(), strict=True))
    assert Classifier(ClassifierConfig(shape=(2,), classes=2)).config.classes == 2
    assert set(NETS) == {"Autoencoder", "Classifier", "Detector", "DiT", "ResidualMLP", "UNet"}
