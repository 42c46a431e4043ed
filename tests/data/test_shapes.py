"""The finite world against brute force: pictures, captions, posterior, score, denoisers, reader and sampling."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import (
    ConditionError,
    DTypeError,
    RangeError,
    ShapeError,
    SingularError,
    UnknownNameError,
)
from wayfield.core.path import EDM, VE, Straight
from wayfield.data import load_dataset
from wayfield.data.captions import ATTRIBUTES, SCENES, VOCABULARY, Description, Scene, caption, parse
from wayfield.data.shapes import ShapesWorld, agreement, draw, read, templates, world_denoiser
from wayfield.sampling import sample
from wayfield.solve.dpm import DPM2M

TIMES = [0.05, 0.35, 0.7, 1.0]


def allowed(rule):
    return torch.tensor([bool(rule(s)) for s in SCENES])


RULES = {
    "": allowed(lambda s: True),
    "a red circle": allowed(lambda s: s.colour == "red" and s.shape == "circle"),
    "something blue": allowed(lambda s: s.colour == "blue"),
    "not red": allowed(lambda s: s.colour != "red"),
    "a circle, not red": allowed(lambda s: s.shape == "circle" and s.colour != "red"),
    "a red circle or a blue square": allowed(lambda s: (s.colour, s.shape) in {("red", "circle"), ("blue", "square")}),
}
RED = allowed(lambda s: s.colour == "red")


def points(path, t, randn64, n=6):
    """Noisy pictures of scenes and of mixtures of two, where the posterior is not settled."""
    m = templates()
    k = torch.arange(n) * 37 % 240
    x0 = 0.5 * (m[k] + m[(k + 60) % 240])
    return path.noised(x0, t, randn64(*x0.shape, seed=int(100 * t)))


def log_joint(x, a, s, mask):
    """log p(k, x | mask) by brute force, (B, 240)."""
    d2 = (x[:, None] - a * templates()).square().flatten(2).sum(2)
    log_p = -d2 / (2 * s**2) - 3072 * (s.log() + 0.5 * math.log(2 * math.pi)) - math.log(int(mask.sum()))
    return log_p.masked_fill(~mask, -math.inf)


# pictures


def test_templates_are_distinct_black_ground_pictures():
    m = templates()
    assert m.shape == (240, 3, 32, 32)
    assert m.dtype == torch.float64
    assert (float(m.min()), float(m.max())) == (-1, 1)
    apart = torch.cdist(m.flatten(1), m.flatten(1)).fill_diagonal_(math.inf)
    assert float(apart.min()) == pytest.approx(3.873, abs=1e-3)  # the small circle and square of one primary colour
    assert bool((m[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] == -1).all())


def test_pictures_show_what_they_say():
    area = ((templates() + 1) / 2).amax(1)  # coverage, (240, 32, 32)
    axis = torch.arange(32) - 15.5
    exact = {"circle": math.pi, "square": 1.75**2, "triangle": 1.875**2 / math.sqrt(3), "ring": 0.75 * math.pi}
    for k, s in enumerate(SCENES):
        r = {"small": 4, "large": 7}[s.size]
        assert float(area[k].sum()) == pytest.approx(exact[s.shape] * r**2, rel=0.05), s
        x, y = (float((area[k] * w).sum() / area[k].sum()) for w in (axis[None], axis[:, None]))
        dx, dy = {"centre": (0, 0), "left": (-8, 0), "right": (8, 0), "top": (0, -8), "bottom": (0, 8)}[s.position]
        assert x == pytest.approx(dx, abs=1e-9)
        middle = dy + 0.25 * r * (s.shape == "triangle")  # its height is centred, not its mass
        assert y == pytest.approx(middle, abs=0.1 if s.shape == "triangle" else 1e-9)
        row, column = 16 + dy, 16 + dx
        assert (float(area[k, row, column]) > 0.5) == (s.shape != "ring")  # a ring is hollow
        lit = {"r": s.colour in ("red", "yellow", "magenta"), "g": s.colour in ("green", "yellow", "cyan")}
        lit["b"] = s.colour in ("blue", "magenta", "cyan")
        assert (templates()[k].amax((1, 2)) == 1).tolist() == list(lit.values())


def test_triangle_points_up_and_edges_are_smooth():
    m = draw([Scene("triangle", "red", "large", "centre"), Scene("circle", "red", "large", "centre")])[:, 0]
    widths = ((m[0] + 1) / 2).sum(1)
    rows = widths.nonzero().flatten()
    assert float(widths[rows[1]]) < float(widths[rows[-2]]) / 3
    between = (m[1] > -1) & (m[1] < 1)
    assert 20 < int(between.sum()) < 80
    assert torch.equal(m[1], m[1].T)
    assert torch.equal(m[1], m[1].flip(0))


def test_drawing_is_deterministic_and_exact_in_float32():
    state = torch.random.get_rng_state()
    x = draw(SCENES)
    assert x.dtype == torch.float32
    assert x.device.type == "cpu"
    assert torch.equal(x.double(), templates())
    digests = {hashlib.sha256(draw(SCENES).numpy().tobytes()).hexdigest() for _ in range(2)}
    templates.cache_clear()
    digests.add(hashlib.sha256(draw(SCENES).numpy().tobytes()).hexdigest())
    assert len(digests) == 1
    assert bool((((x + 1) * 128) % 1 == 0).all())  # multiples of 1/128 from black: no machine rounds them otherwise
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(draw(SCENES[7:9]), x[7:9])
    with pytest.raises(ShapeError, match="at least one"):
        draw([])


# captions


def test_every_caption_parses_back():
    captions = [caption(s) for s in SCENES]
    assert len(set(captions)) == len(set(SCENES)) == 240
    assert captions[0] == "a small red circle in the centre"
    assert caption(Scene("square", "blue", "large", "left")) == "a large blue square on the left"
    for s, text in zip(SCENES, captions, strict=True):
        assert parse(text).scenes == (s,)
        assert parse(text.upper() + ".").scenes == (s,)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 240),
        ("anything", 240),
        ("a red circle", 10),
        ("something red", 40),
        ("red", 40),
        ("not red", 200),
        ("not a red circle", 230),
        ("a circle, not red", 50),
        ("a circle not red", 50),
        ("a circle, and not red, but small", 25),
        ("a small shape, not red, not blue, not on the left", 64),
        ("a large shape on the left", 24),
        ("at the top", 48),
        ("top", 48),
        ("a red ring in the middle", 2),
        ("a red circle or a blue square", 20),
        ("a red circle, or a blue square", 20),
        ("a circle, not red or blue", 80),  # "or" is the loosest
        ("red or not red", 240),
    ],
)
def test_counts(text, count):
    assert len(parse(text)) == count


@pytest.mark.parametrize("text", RULES)
def test_masks(text):
    assert torch.equal(parse(text).mask, RULES[text])


def test_queries_are_an_algebra_of_sets():
    red, circle = parse("red"), parse("a circle")
    assert circle & ~red == parse("a circle, not red")
    assert ~(red | circle) == ~red & ~circle == parse("not red, not a circle")
    assert red | ~red == parse("")
    assert Scene("ring", "red", "small", "top") in red
    assert Scene("ring", "blue", "small", "top") not in red
    with pytest.raises(ConditionError, match=r"not \(.*240 scenes"):
        _ = ~parse("")
    with pytest.raises(ConditionError, match="3 flags"):
        Description((True, False, True))


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("a red cirle", "circle"), ("a bleu square", "blue"), ("a lage ring", "large"), ("botom", "bottom")],
)
def test_unknown_words_name_the_nearest(text, nearest):
    with pytest.raises(UnknownNameError, match=f"unknown word.*Did you mean '{nearest}'"):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["a", "circle a red", "not", "not not red", "a circle, not", "red or", "or red", ", red", "a red circle and", ",,"],
)
def test_unfinished_captions_are_refused(text):
    with pytest.raises(ConditionError, match="expected a phrase such as"):
        parse(text)


@pytest.mark.parametrize(
    "text", ["a red left circle", "a red circle on the", "a circle square", "a circle on the left at the top"]
)
def test_words_out_of_order_are_refused(text):
    with pytest.raises(ConditionError, match="expected a phrase such as"):
        parse(text)


@pytest.mark.parametrize("text", ["a red blue circle", "a red circle and a blue square", "red, not red"])
def test_captions_that_no_scene_satisfies_are_refused(text):
    with pytest.raises(ConditionError, match='alternatives with "or"'):
        parse(text)


def test_vocabulary_is_small_and_whole():
    assert {v for values in ATTRIBUTES.values() for v in values} < set(VOCABULARY)
    assert len(VOCABULARY) == 33
    with pytest.raises(UnknownNameError, match="Did you mean 'ring'"):
        Scene("rings", "red", "small", "top")


# exact truths


@pytest.mark.parametrize("t", TIMES)
def test_posterior_is_brute_force(path, t, randn64):
    x, world = points(path, t, randn64), ShapesWorld(path)
    a, s = path.scales(torch.tensor(t, dtype=torch.float64))[:2]
    for text in ("", "not red"):
        truth = log_joint(x, a, s, RULES[text]).softmax(1)
        p = world.posterior(x, t, text)
        assert p.shape == (6, 240)
        assert float((p - truth).abs().max()) < 1e-10


@pytest.mark.parametrize("t", TIMES)
def test_denoisers_are_brute_force_for_every_kind_of_query(path, t, randn64):
    x, world = points(path, t, randn64), ShapesWorld(path)
    a, s = path.scales(torch.tensor(t, dtype=torch.float64))[:2]
    for text, mask in RULES.items():
        q = log_joint(x, a, s, mask).softmax(1)
        truth = torch.einsum("bk,kchw->bchw", q, templates())
        assert float((world.denoise(x, t, text) - truth).abs().max()) < 1e-10, text
        assert torch.equal(world.denoise(x, t, mask), world.denoise(x, t, parse(text)))
    masks = torch.stack(list(RULES.values()))
    rows = torch.cat([world.denoise(x[i : i + 1], t, masks[i]) for i in range(6)])
    times = torch.full((6,), t, dtype=torch.float64)
    assert float((world(x, times, {"mask": masks}) - rows).abs().max()) < 1e-12


@pytest.mark.parametrize("t", [0.2, 0.6, 0.95])
def test_score_is_the_gradient_of_brute_force(path, t, randn64):
    x, world = points(path, t, randn64, n=3).requires_grad_(), ShapesWorld(path)
    a, s = path.scales(torch.tensor(t, dtype=torch.float64))[:2]
    for text in ("", "a circle, not red"):
        log_p = log_joint(x, a, s, RULES[text]).logsumexp(1)
        (truth,) = torch.autograd.grad(log_p.sum(), x)
        score = world.score(x.detach(), t, text)
        assert float((score - truth).norm() / truth.norm()) < 1e-10
        mine = world.log_prob(x, t, text)
        assert torch.allclose(mine, log_p, rtol=1e-10, atol=1e-8)
        (through,) = torch.autograd.grad(mine.sum(), x)
        assert float((through - truth).norm() / truth.norm()) < 1e-10


@pytest.mark.parametrize("t", TIMES)
def test_law_of_total_expectation(path, t, randn64):
    x, world = points(path, t, randn64), ShapesWorld(path)
    p = world.log_evidence(x, t, "red").exp()
    assert torch.allclose(p, world.posterior(x, t)[:, RED].sum(1), rtol=0, atol=1e-12)
    assert torch.allclose(p + world.log_evidence(x, t, "not red").exp(), torch.ones(6, dtype=p.dtype))
    p = p[:, None, None, None]
    joined = p * world.denoise(x, t, "red") + (1 - p) * world.denoise(x, t, "not red")
    assert float((joined - world.denoise(x, t)).abs().max()) < 1e-10


@pytest.mark.parametrize("path", [Straight(), EDM(80.0), VE(0.02, 20.0)], ids=["straight", "edm", "ve"])
def test_evidence_gradient_is_the_gap_of_scores(path, randn64):
    """Bayes: the gradient of log p(red | x) is score(x | red) - score(x); this is exact classifier guidance."""
    t = path.at_sigma(2.0) if not isinstance(path, Straight) else 0.6
    x, world = points(path, t, randn64).requires_grad_(), ShapesWorld(path)
    (gap,) = torch.autograd.grad(world.log_evidence(x, t, "red").sum(), x)
    x = x.detach()
    truth = world.score(x, t, "red") - world.score(x, t)
    assert float(truth.norm()) > 1e-3
    assert float((gap - truth).norm() / truth.norm()) < 1e-9


def test_at_the_clean_end_the_nearest_allowed_template(randn64):
    world, x = ShapesWorld(Straight()), templates()[[0, 100]] + 0.01 * randn64(2, 3, 32, 32)
    assert torch.equal(world.denoise(x, 0.0), templates()[[0, 100]])
    assert [s.colour for s in read(world.denoise(x, 0.0, "not red"))] == ["yellow", SCENES[100].colour]
    for ask in (world.score, world.log_prob):
        with pytest.raises(SingularError, match="sigma = 0"):
            ask(x, 0.0)


def test_times_per_row_and_dtypes(randn64):
    world, t = ShapesWorld(Straight()), torch.tensor([0.3, 0.9], dtype=torch.float64)
    x = randn64(2, 3, 32, 32)
    for ask in (world.denoise, world.posterior, world.log_prob, world.score):
        rows = torch.cat([ask(x[i : i + 1], float(t[i]), "red") for i in range(2)])
        assert torch.allclose(ask(x, t, "red"), rows, rtol=1e-12, atol=1e-12)
        assert ask(x.float(), t).dtype == torch.float32


def test_bad_input_is_named(randn64):
    world, x = ShapesWorld(Straight()), randn64(2, 3, 32, 32)
    with pytest.raises(ShapeError, match="pictures"):
        world.denoise(x[:, :1], 0.5)
    with pytest.raises(ShapeError, match="t: got"):
        world.denoise(x, torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(RangeError, match=r"\[0, 1\]"):
        world.denoise(x, 1.5)
    with pytest.raises(DTypeError, match="mask"):
        world.denoise(x, 0.5, torch.ones(240))
    with pytest.raises(ShapeError, match="mask"):
        world.denoise(x, 0.5, torch.ones(3, 240, dtype=torch.bool))
    with pytest.raises(ConditionError, match="no scene"):
        world.denoise(x, 0.5, torch.zeros(240, dtype=torch.bool))


# as a denoiser


def test_world_denoiser_takes_masks(path, randn64):
    den, x, t = world_denoiser(path), points(path, 0.5, randn64), 0.5
    truth = ShapesWorld(path)
    assert torch.allclose(den(x, t).x0, truth.denoise(x, t), rtol=0, atol=1e-12)
    query = parse("a red circle or a blue square")
    assert torch.allclose(den(x, t, {"mask": query.mask}).x0, truth.denoise(x, t, query), rtol=0, atol=1e-12)
    with pytest.raises(ConditionError, match="mask"):
        den(x, t, {"mask": query.mask[:5]})


@pytest.mark.parametrize("text", ["a small red circle on the left", "a large cyan ring at the bottom"])
def test_sampling_a_full_caption_lands_on_its_template(text):
    path = EDM(80.0)
    run = sample(
        world_denoiser(path),
        G.karras(path, 20),
        samples=3,
        cond={"mask": parse(text).mask},
        solver=DPM2M(),
        dtype=torch.float64,
    )
    (scene,) = parse(text).scenes
    assert float((run.x - draw([scene])).abs().max()) < 1e-3
    assert agreement(run.x, [text] * 3)["all"] == 1


def test_sampling_a_partial_caption_stays_in_it():
    path, text = EDM(80.0), "a circle, not red"
    cond = {"mask": parse(text).mask}
    x = sample(world_denoiser(path), G.karras(path, 30), samples=16, cond=cond, solver=DPM2M()).x
    assert x.dtype == torch.float32
    assert agreement(x, [text] * 16) == {"shape": 1, "colour": 1, "all": 1}
    assert len({s.colour for s in read(x)}) >= 3


# reading


def test_reader_is_right_on_clean_and_noisy_templates(randn64):
    assert read(draw(SCENES)) == list(SCENES)
    assert read(templates() + 0.2 * randn64(240, 3, 32, 32)) == list(SCENES)
    wrong = sum(p != s for p, s in zip(read(templates() + 4 * randn64(240, 3, 32, 32)), SCENES, strict=True))
    assert wrong > 20  # so noise can defeat it


def test_agreement_is_per_attribute():
    pictures = draw([Scene("circle", "red", "small", "left"), Scene("ring", "blue", "large", "top")])
    assert agreement(pictures, ["a red square", "something blue"]) == {"shape": 0, "colour": 1, "all": 0.5}
    asked = [Scene("circle", "red", "large", "left"), parse("a red circle or a blue ring")]
    expected = {"shape": 1, "colour": 1, "size": 0, "position": 1, "all": 0.5}
    assert agreement(pictures, asked) == expected
    bound = agreement(draw([Scene("square", "red", "small", "top")]), ["a red circle or a blue square"])
    assert bound == {"shape": 1, "colour": 1, "all": 0}  # the right words bound to the wrong things
    with pytest.raises(ShapeError, match="one per picture"):
        agreement(pictures, ["red"])


def test_dataset():
    data = load_dataset("shapes-240")
    assert (len(data), data.shape) == (240, (3, 32, 32))
    x, cond = data.batch([5, 239])
    assert torch.equal(x, draw([SCENES[5], SCENES[239]]))
    assert cond["scene"].tolist() == [5, 239]
    assert data.schema.null == {"scene": 240}
    assert data.schema.fields["scene"].values == 241
