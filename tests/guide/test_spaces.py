"""Both sides of a contrast: their products in a space, against the network's own answers."""

import pytest
import torch
from tests.guide import peers

from wayfield.core.errors import RangeError, UnknownNameError
from wayfield.core.shapes import dot, norm
from wayfield.field.ask import Ask
from wayfield.field.batching import Batching
from wayfield.field.binding import COND, NULL, Binding
from wayfield.guide import CFG
from wayfield.guide.rescale import Rescale
from wayfield.guide.spaces import check_space, ratio, shaped, sides, silence


def at(kind):
    """An ask at the point of `peers.world`, and its answers."""
    den, x, c, u = peers.world(kind)
    given = {"cond": {"label": peers.LABELS}, "null": None}
    level = den.level(torch.tensor(peers.T, dtype=torch.float64))
    return Ask(Binding({"main": den}, given, 3, x.device, Batching()), x, {"main": level}), c, u


@pytest.mark.parametrize("kind", list(peers.PATHS))
def test_native_sides_are_the_networks_answers(kind):
    ask, c, u = at(kind)
    push = ask(COND)[0].x0 - ask(NULL)[0].x0
    both = sides(ask, push, "native")
    want = (dot(c, c), dot(u, u), dot(c, u), dot(c, c) - dot(u, u), norm(c - u), norm(u))
    for got, number in zip(both, want, strict=False):
        torch.testing.assert_close(got, number, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(both.rest, ask(NULL)[0].x0 - peers.x0_of(kind, torch.zeros_like(c), ask.x))
    moved = both.moved(torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.0, 1.0, 3.0]).double())
    by_hand = torch.stack([push[0], 2 * push[1] + both.rest[1], 3 * both.rest[2]])
    torch.testing.assert_close(moved, by_hand, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("space", ["native", "x0", "eps"])
def test_silence_is_the_answer_0(space):
    ask, c, _ = at("v")
    z = silence(ask, c, space)
    torch.testing.assert_close(ask.express(z, space), torch.zeros_like(c), rtol=0, atol=1e-12)


def test_ratio():
    got = ratio(torch.tensor([1.0, 0.0, -2.0]), torch.tensor([2.0, 0.0, 1.0]))
    assert got.tolist() == [0.5, 0.0, -2.0]


def test_shaped_is_w_less_one_of_the_unit_contrast():
    """Rescaling by 0 changes nothing."""
    for w in (3.0, (1.0, 2.0, 3.0)):
        got, want = peers.run(shaped(Rescale(0.0), w, "null")).x, peers.run(CFG(w)).x
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    with pytest.raises(RangeError, match="scale w"):
        shaped(Rescale(0.0), float("nan"), "null")


def test_names():
    assert check_space("eps") == "eps"
    with pytest.raises(UnknownNameError, match="native"):
        check_space("velocity")
