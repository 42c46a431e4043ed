"""The reader of scenes against maps and networks that answer what a test wants."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wayfield.core.errors import ConditionError, NonFiniteError, RangeError, ShapeError, UnsupportedError
from wayfield.data import InMemory, load_dataset
from wayfield.data.scenes.reader import (
    Lessons,
    Sighting,
    assign,
    decode,
    first_lessons,
    read,
    reading_accuracy,
    readings,
    second_lessons,
)
from wayfield.data.scenes.scene import COLOURS, FORMS, HELD_OUT, LETTERS, SHAPES, SIZES, Thing, things_of
from wayfield.data.shapes import COLOUR_VALUES
from wayfield.field.cond import Field, Schema
from wayfield.field.nets.detector import Detector, DetectorConfig, Maps, split
from wayfield.train.detecting import setup_detector, targets

SCHEMA = Schema({"things": Field((3, 5), "float32")})
CONFIG = DetectorConfig((3, 32, 32), width=8, fine=0, deep=1)
A = Thing("circle", "red", "small", 6.25, 7.5)
B = Thing("7", "cyan", "large", 24.0, 8.875)
C = Thing("Q", "blue", "small", 15.5, 25.75)


def rows(*things: Thing) -> Tensor:
    """The record of a scene, (3, 5)."""
    numbers = [[FORMS.index(t.form), COLOURS.index(t.colour), SIZES.index(t.size), t.x, t.y] for t in things]
    return torch.tensor(numbers + [[-1.0, 0.0, 0.0, 0.0, 0.0]] * (3 - len(things)))


def maps_of(things: Tensor, sure: float = 20.0, seed: int = 0) -> Tensor:
    """Output of a network that says exactly what the targets of things (B, 3, 5) are, noise in all other cells."""
    aim, g = targets(things, 16, 16), torch.Generator().manual_seed(seed)
    out = torch.randn(len(things), 1 + 42 + 6 + 2 + 2, 16 * 16, generator=g)
    out[:, 0] = torch.logit(aim.heat.flatten(1), eps=1e-6)
    for b, k in aim.there.nonzero().tolist():
        form, colour, size = (int(v) for v in things[b, k, :3])
        cell = out[b, 1:, aim.cell[b, k]]
        cell[:50] = 0.0
        cell[[form, 42 + colour, 48 + size]] = sure
        cell[50:] = aim.offset[b, k]
    return out.unflatten(2, (16, 16))


class Oracle(nn.Module):
    """A detector whose maps are those of the record written into the pictures' first pixels by `pictures_of`."""

    def __init__(self, change: Tensor | None = None) -> None:
        super().__init__()
        self.config, self.change = CONFIG, change
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        things = x[:, 0].flatten(1)[:, :15].reshape(-1, 3, 5) * 100
        return maps_of(things if self.change is None else things + self.change)


def pictures_of(things: Tensor) -> Tensor:
    x = torch.zeros(len(things), 3, 32, 32)
    x[:, 0].flatten(1)[:, :15] = things.reshape(-1, 15) / 100  # a view
    return x


def data_of(*scenes: tuple[Thing, ...]) -> InMemory:
    things = torch.stack([rows(*scene) for scene in scenes])
    return InMemory(pictures_of(things), {"things": things}, SCHEMA)


def same(found: tuple[Thing, ...], truth: tuple[Thing, ...]) -> bool:
    """Equal as sets, centres up to rounding."""
    pairs = assign(found, truth)
    named = all((a.form, a.colour, a.size) == (b.form, b.colour, b.size) for a, b in pairs)
    return len(found) == len(truth) and named and all(math.hypot(a.x - b.x, a.y - b.y) < 1e-4 for a, b in pairs)


# ----------------------------------------------------------------------------------------------------------- decode
@pytest.mark.parametrize("scene", [(), (A,), (B, C), (A, B, C)])
def test_maps_that_say_the_truth_are_read_as_it(scene):
    (reading,) = decode(split(maps_of(rows(*scene)[None]), CONFIG))
    assert same(reading.things, scene)
    assert len(reading.there) == len(reading.certainty) == len(scene)
    assert all(p > 0.999 for p in (*reading.there, *reading.certainty))


@pytest.mark.parametrize("name", ["scenes", "scenes-test", "scenes-held-out"])
def test_every_scene_of_the_world_survives_targets_and_reading(name):
    _, cond = load_dataset(name).batch(range(512))
    found = decode(split(maps_of(cond["things"]), CONFIG))
    assert all(same(reading.things, things_of(t)) for reading, t in zip(found, cond["things"], strict=True))


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (32.0, 0.0), (0.0, 32.0), (32.0, 32.0), (16.0, 31.5), (0.25, 15.0)])
def test_peaks_on_the_rim_are_read(x, y):
    thing = Thing("ring", "green", "large", x, y)
    (reading,) = decode(split(maps_of(rows(thing)[None]), CONFIG))
    assert same(reading.things, (thing,))


@pytest.mark.parametrize("angle", range(0, 360, 7))
def test_neighbours_further_than_the_window_are_both_read(angle):
    """Centres sqrt(52) = 7.2 pixels apart, in any direction and anywhere in their cells."""
    apart = 52**0.5 + 1e-3
    dx, dy = apart * math.cos(math.radians(angle)), apart * math.sin(math.radians(angle))
    for x in (15.0, 15.99, 16.0, 16.7):
        for y in (15.0, 15.99, 16.0, 16.7):
            two = (Thing("A", "red", "small", x, y), Thing("B", "red", "small", x + dx, y + dy))
            out = maps_of(rows(*two)[None])
            out[0, 0, int(two[1].y / 2), int(two[1].x / 2)] -= 5.0  # a window that reached the other would prefer it
            (reading,) = decode(split(out, CONFIG))
            assert same(reading.things, two)


def test_one_peak_per_window_the_surest_first_and_none_below_the_threshold():
    maps = split(torch.zeros(1, 53, 16, 16), CONFIG)
    maps.heat.fill_(-9.0)
    maps.heat[0, 3, 3], maps.heat[0, 3, 5] = 1.0, 0.9  # the second within two cells of a higher one
    maps.heat[0, 5, 5] = 0.8  # in a corner of the first one's window, two below the second
    maps.heat[0, 10, 2] = 2.0
    maps.heat[0, 12, 12], maps.heat[0, 1, 14] = math.log(0.449 / 0.551), math.log(0.451 / 0.549)
    (reading,) = decode(maps)
    assert [(t.x, t.y) for t in reading.things] == [(5.0, 21.0), (7.0, 7.0), (29.0, 3.0)]
    assert reading.there == pytest.approx([1 / (1 + math.exp(-2.0)), 1 / (1 + math.exp(-1.0)), 0.451])
    assert reading.certainty == pytest.approx([1 / 42] * 3)


def test_centres_stay_inside_the_picture():
    maps = split(maps_of(rows(Thing("A", "red", "small", 0.5, 31.5))[None]), CONFIG)
    maps.offset[:] = torch.tensor([-3.0, 3.0])[:, None, None]
    ((thing,),) = (reading.things for reading in decode(maps))
    assert (thing.x, thing.y) == (0.0, 32.0)


def test_the_certainty_of_a_form_is_its_probability():
    (reading,) = decode(split(maps_of(rows(A, B)[None], sure=3.0), CONFIG))
    p = math.exp(3.0) / (math.exp(3.0) + 41)
    assert reading.certainty == pytest.approx((p, p), rel=1e-5)
    assert reading.least == pytest.approx(p, rel=1e-5)
    assert Sighting((), (), ()).least == 1.0


# ----------------------------------------------------------------------------------------------------- assign, read
def test_assignment_is_of_least_total_distance():
    assert assign((C, A, B), (A, B, C)) == [(C, C), (A, A), (B, B)]
    # greedily, the first found takes the true one that the second needs: 1 + 9 against 3 + 3
    at = [Thing("ring", "red", "small", x, 5.0) for x in (10.0, 14.0, 11.0, 17.0)]
    (p, q), (left, right) = at[:2], (Thing("ring", "red", "small", 11.0, 5.0), Thing("ring", "red", "small", 17.0, 5.0))
    assert assign((q, p), (left, right)) == [(q, right), (p, left)]


def test_assignment_of_too_few_or_too_many():
    assert assign((), (A, B)) == []
    assert assign((A,), ()) == []
    assert assign((B,), (A, B, C)) == [(B, B)]
    assert assign((C, A, B), (A, B)) == [(C, B), (A, A)]  # the surest two


def test_pictures_are_read_in_order_and_in_batches():
    scenes = [(A,), (B, C), (), (A, B, C)] * 100
    found = read(Oracle(), pictures_of(torch.stack([rows(*scene) for scene in scenes])))
    assert all(map(same, found, scenes))
    assert len(found) == 400


def test_reading_keeps_no_graph_and_takes_float64():
    class Spy(Oracle):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x.dtype, torch.is_grad_enabled()
            return super().forward(x)

    net = Spy()
    (reading,) = readings(net, pictures_of(rows(A, B)[None]).double())
    assert same(reading.things, (A, B))
    assert net.seen == (torch.float32, False)


# --------------------------------------------------------------------------------------------------------- accuracy
def test_accuracy_of_a_perfect_reader_is_one():
    found = reading_accuracy(Oracle(), data_of((A, B, C), (B, C), (A,)), 3)
    assert found.pop("position") == pytest.approx(0.0, abs=1e-4)
    assert found == dict.fromkeys(("count", "form", "shape", "digit", "letter", "colour", "size", "all"), 1.0)
    assert "digit" not in reading_accuracy(Oracle(), data_of((A, B, C), (C,), (A,)), 2, first=1)


def test_accuracy_counts_what_is_wrong():
    change = torch.zeros(3, 5)
    change[0, 1], change[1, 0], change[2, 3] = (
        1.0,
        1.0,
        1.5,
    )  # colour of the first, form of the second, place of the third
    found = reading_accuracy(Oracle(change), data_of((A, B, C), (A, B, C)), 2)
    expected = {"count": 1.0, "form": 2 / 3, "shape": 1.0, "digit": 0.0, "letter": 1.0, "colour": 2 / 3, "size": 1.0}
    assert found == pytest.approx(expected | {"position": 0.5, "all": 0.0}, abs=1e-4)


def test_a_centre_far_off_is_wrong_and_one_nearby_is_not():
    for far, right in ((1.9, 1.0), (2.1, 0.0)):
        change = torch.zeros(3, 5)
        change[0, 4] = far
        found = reading_accuracy(Oracle(change), data_of((A, B)), 1)
        assert found["all"] == right
        assert found["position"] == pytest.approx(far / 2, abs=1e-4)


def test_what_was_missed_counts_as_wrong():
    change = torch.zeros(3, 5)
    change[1, 0] = -1.0 - FORMS.index(B.form)
    found = reading_accuracy(Oracle(change), data_of((A, B)), 1)
    assert (found["count"], found["all"]) == (0.0, 0.0)
    assert (found["form"], found["colour"], found["digit"], found["shape"]) == (0.5, 0.5, 0.0, 1.0)


def test_noise_is_addressed_by_sample():
    class Spy(Oracle):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            return maps_of(torch.stack([rows()] * len(x)))

    data, net = data_of((A,), (A,), (A,)), Spy()
    reading_accuracy(net, data, 3, noise=0.2)
    whole = net.seen
    assert float((whole - data.x).std()) == pytest.approx(0.2, rel=0.05)
    reading_accuracy(net, data, 1, first=2, noise=0.2)
    assert torch.equal(net.seen, whole[2:])


# ----------------------------------------------------------------------------------------------------------- errors
def test_what_cannot_be_read_is_refused():
    net, x = Detector(CONFIG), torch.zeros(2, 3, 32, 32)
    with pytest.raises(NonFiniteError, match="picture 1"):
        read(net, torch.stack([x[0], x[1] + math.nan]))
    with pytest.raises(ShapeError, match="Detector input"):
        read(net, x[:, :1])
    with pytest.raises(UnsupportedError, match="forms"):
        read(Detector(DetectorConfig((3, 32, 32), forms=6, width=8)), x)
    with pytest.raises(ConditionError, match="things"):
        reading_accuracy(net, InMemory(x), 1)
    for n, noise in ((0, 0.0), (1, -0.1), (1, math.inf)):
        with pytest.raises(RangeError, match="read"):
            reading_accuracy(net, data_of((A,)), n, noise=noise)
    with pytest.raises(RangeError, match="indices"):
        reading_accuracy(net, data_of((A,)), 2)


def test_maps_may_live_in_16_bits():
    maps = Maps(*(m.bfloat16() for m in split(maps_of(rows(A, B, C)[None]), CONFIG)))
    (reading,) = decode(maps)
    assert {t.form for t in reading.things} == {"circle", "7", "Q"}


# ---------------------------------------------------------------------------------------------------------- lessons
def test_lessons_show_every_pair_and_more_letters_than_scenes_do():
    _, cond = Lessons().batch(range(2400))
    things = [thing for rows in cond["things"] for thing in things_of(rows)]
    shapes = [(t.form, t.colour) for t in things if t.form in SHAPES]
    held = sum(pair in HELD_OUT for pair in shapes) / len(shapes)
    # (1/12) / (1/12 + 11/12 * 0.4) = 0.185, of 1/6 where all pairs were equal; some 2,000 shapes, mostly independent
    assert held == pytest.approx(0.185, abs=0.04)
    assert set(shapes) == {(form, colour) for form in SHAPES for colour in COLOURS}
    assert sum(t.form in LETTERS for t in things) / len(things) == pytest.approx(0.4 * 11 / 12, abs=0.05)


def test_a_lesson_is_a_function_of_seed_and_number():
    data = Lessons(seed=3, count=500)
    whole, cond = data.batch(range(30))
    picked, its = data.batch([24, 7, 0])
    assert len(data) == 500
    assert data.shape == whole.shape[1:]
    assert torch.equal(picked, whole[[24, 7, 0]])
    assert all(torch.equal(its[name], cond[name][[24, 7, 0]]) for name in cond)
    assert not (whole == Lessons(seed=4).batch(range(30))[0]).flatten(1).all(1).any()


def test_the_record_of_a_lesson_is_that_of_its_picture():
    x, cond = Lessons().batch(range(60))
    inks = torch.tensor(list(COLOUR_VALUES.values()), dtype=torch.float32) * 2 - 1
    for k, (picture, rows) in enumerate(zip(x, cond["things"], strict=True)):
        for thing in things_of(rows):
            assert k % 12 or (thing.form, thing.colour) in HELD_OUT
            if thing.form in ("circle", "square", "diamond", "cross", "triangle"):  # these are filled at their centre
                assert torch.equal(picture[:, int(thing.y), int(thing.x)], inks[COLOURS.index(thing.colour)])


def test_lessons_refuse_what_scenes_refuse():
    with pytest.raises(RangeError, match="count"):
        Lessons(count=0)
    with pytest.raises(RangeError, match="indices"):
        Lessons(count=5).batch([5])


# ---------------------------------------------------------------------------------------------------------- configs
def test_the_two_readers_are_built_and_taught_differently(monkeypatch):
    """So that a model guided by one can be judged by the other."""
    lessons = {"scenes-lessons": first_lessons, "scenes-second-lessons": second_lessons}
    monkeypatch.setattr("wayfield.train.detecting.load_dataset", lambda name: lessons[name]())
    folder = Path(str(resources.files("wayfield"))) / "zoo" / "configs"
    configs = [json.loads((folder / name).read_text()) for name in ("scenes-reader.json", "scenes-second-reader.json")]
    (one, first, mine), (two, second, yours) = map(setup_detector, configs)
    assert first.seed != second.seed
    assert mine.seed != yours.seed
    assert one.config.width != two.config.width
    assert one.config.deep != two.config.deep
    for task in (one, two):
        assert 100_000 <= sum(p.numel() for p in task.net.parameters()) <= 200_000
