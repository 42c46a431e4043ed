"""The open world: scenes obey their rules, pictures are what their records say, and both are functions of addresses."""

import hashlib
import math

import pytest
import torch

from wayfield.core.errors import DTypeError, RangeError, UnknownNameError
from wayfield.data import scenes
from wayfield.data.dataset import load_dataset
from wayfield.data.scenes import Mix, Scenes, Thing
from wayfield.data.scenes.glyphs import STROKES, segments
from wayfield.data.scenes.paint import paint
from wayfield.data.scenes.scene import COLOURS, FORMS, HELD_OUT, SIDE, SIZES, Draft, draft, lots, things_of
from wayfield.data.shapes import COLOUR_VALUES

N = 3000
DRAFT = draft(lots(0, range(N)), Mix())


def one(form, *, colour="red", size="large", x=16.0, y=16.0, r=7.0):
    """The picture of one thing on the darkest plain ground, (3, 32, 32) in [0, 1]."""
    row = [FORMS.index(form), COLOURS.index(colour), SIZES.index(size), x, y]
    things = torch.tensor([[row, [-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]]], dtype=torch.float64)
    ground = torch.full((1, 12), 0.5, dtype=torch.float64)
    ground[:, 1] = 0
    scene = Draft(torch.tensor([0]), things, torch.tensor([[r, 4.0, 4.0]], dtype=torch.float64), ground, ground)
    return (paint(scene, 0.0)[0].double() + 1) / 2


def test_discs_lie_inside_and_apart():
    there, c, r = DRAFT.things[..., 0] >= 0, DRAFT.things[..., 3:], DRAFT.r
    inside = (c >= r[..., None] + 0.5 - 1e-9) & (c <= SIDE - r[..., None] - 0.5 + 1e-9)
    assert bool(inside[there].all())
    for j, k in ((0, 1), (0, 2), (1, 2)):
        both = there[:, j] & there[:, k]
        gap = (c[:, j] - c[:, k]).square().sum(-1).sqrt() - r[:, j] - r[:, k]
        assert int(both.sum()) > 100
        assert float(gap[both].min()) >= 1 - 1e-9


def test_kinds_hold_what_they_say_and_come_as_often_as_asked():
    mix = Mix()
    things = [things_of(rows) for rows in DRAFT.things]
    counts = [1, 2, 3, 2, 3]
    for kind, of in zip(DRAFT.kind.tolist(), things, strict=True):
        looks = [(t.form, t.colour, t.size) for t in of]
        assert len(of) == counts[kind]
        assert len(set(looks)) == (1 if kind >= 3 else len(of))
        assert len(of) < 3 or all(t.size == "small" for t in of)
    shares = DRAFT.kind.bincount(minlength=5) / N
    wanted = mix.kinds / mix.kinds.sum()
    assert bool(((shares - wanted).abs() < 4 * (wanted * (1 - wanted) / N).sqrt()).all())
    first = DRAFT.things[:, 0, 0]
    share = float((first < 6).double().mean())
    assert abs(share - mix.shape) < 4 * math.sqrt(mix.shape * (1 - mix.shape) / N)


def test_every_form_colour_and_size_appears():
    rows = DRAFT.things.flatten(0, 1)
    rows = rows[rows[:, 0] >= 0]
    assert set(rows[:, 0].long().tolist()) == set(range(42))
    assert set(rows[:, 1].long().tolist()) == set(range(6))
    assert set(rows[:, 2].long().tolist()) == {0, 1}


def test_held_out_pairs_are_in_their_own_set_alone():
    assert len({shape for shape, _ in HELD_OUT}) == 6
    seen = {(t.form, t.colour) for rows in DRAFT.things for t in things_of(rows)}
    assert not seen & set(HELD_OUT)
    assert len({pair for pair in seen if pair[0] in FORMS[:6]}) == 30
    kept = scenes.held_out()
    assert {(t.form, t.colour) for things in kept.things(range(200)) for t in things} == set(HELD_OUT)


def test_a_scene_is_a_function_of_its_address():
    data = load_dataset("scenes")
    x, cond = data.batch(range(10, 20))
    for rows in ([12, 19, 10], range(12, 14)):
        y, other = data.batch(rows)
        at = [k - 10 for k in rows]
        assert torch.equal(y, x[at])
        assert torch.equal(other["tokens"], cond["tokens"][at])
        assert torch.equal(other["things"], cond["things"][at])
    assert not torch.equal(Scenes(seed=1).batch([12])[0], x[2:3])


def test_the_pictures_of_a_seed_never_change():
    """Recorded once; a change here breaks every recorded figure of this world."""
    x, cond = Scenes(seed=7, count=64).batch(range(64))
    levels = ((x + 1) * 127.5).round()
    assert torch.allclose((x + 1) * 127.5, levels, atol=1e-4)  # eight bits, so a PNG file holds a picture exactly
    digest = hashlib.sha256(levels.to(torch.uint8).numpy().tobytes() + cond["tokens"].numpy().tobytes()).hexdigest()
    assert digest[:16] == "c783cc67e065073e"


@pytest.mark.parametrize(
    ("form", "area"),
    [
        ("circle", math.pi * 49),
        ("square", (1.6 * 7) ** 2),
        ("ring", math.pi * 49 * 0.75),
        ("diamond", 2 * 49),
        ("cross", 4 * 49 * (2 * 0.95 * 0.3 - 0.3**2)),
        ("triangle", 3 * math.sqrt(3) * (0.55 * 7) ** 2),
    ],
)
def test_shapes_cover_their_area_and_reach_no_further_than_they_may(form, area):
    picture = one(form)
    cover = picture[0] - picture[1]  # red over grey
    assert abs(float(cover.sum()) / area - 1) < 0.01
    axis = torch.arange(SIDE) + 0.5 - 16
    outside = axis.square()[:, None] + axis.square()[None, :] > (7 * 1.25 + 1) ** 2
    assert float(cover[outside].abs().max()) == 0


@pytest.mark.parametrize("colour", COLOURS)
def test_ink_has_its_colour(colour):
    assert torch.allclose(one("circle", colour=colour)[:, 16, 16], torch.tensor(COLOUR_VALUES[colour]).double())


def test_glyphs_all_differ_and_reach_no_further_than_they_may():
    assert len(STROKES) == 36
    pictures = torch.stack([one(name, r=4.0, size="small") for name in STROKES]).flatten(1)
    apart = torch.cdist(pictures, pictures) + 99 * torch.eye(36)
    assert float(apart.min()) > 0.5
    assert float(segments().abs().max()) == 1
    axis = torch.arange(SIDE) + 0.5 - 16
    outside = axis.square()[:, None] + axis.square()[None, :] > (7 * 1.25 + 1) ** 2
    for name in STROKES:
        picture = one(name)
        assert float((picture[0] - picture[1])[outside].abs().max()) < 1e-6, name


def test_grounds_stay_dark_and_textures_come_as_often_as_asked():
    nothing = DRAFT._replace(things=torch.full_like(DRAFT.things, -1))
    plain, textured = paint(nothing, 0.0), paint(nothing, 1.0)
    assert float(plain.flatten(2).std(2).max()) < 1e-6
    assert float(textured.flatten(2).std(2).min()) > 0.01
    assert float(textured.max()) <= 2 * 0.45 - 1
    share = float((paint(nothing, 0.35).flatten(2).std(2) > 1e-3).any(1).double().mean())
    assert abs(share - 0.35) < 4 * math.sqrt(0.35 * 0.65 / N)


def test_bad_input_is_named():
    with pytest.raises(UnknownNameError, match="circle"):
        Thing("circel", "red", "small", 1.0, 1.0)
    with pytest.raises(RangeError, match="at least 0"):
        Mix(pair=-1)
    with pytest.raises(RangeError, match="all 0"):
        Mix(shape=0, digit=0, letter=0)
    with pytest.raises(DTypeError, match="number"):
        Mix(one="half")
    with pytest.raises(RangeError, match="at least 1"):
        Scenes(count=0)
    with pytest.raises(RangeError, match="wrap"):
        Scenes(count=5).batch([5])
