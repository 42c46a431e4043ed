"""Rewards: closed forms, a real encoder, a reader that is known to be right, and everything they refuse."""

import io

import pytest
import torch
from tests.conftest import randn
from torch import nn

from wayfield.core.errors import (
    ConditionError,
    DeviceError,
    DTypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
)
from wayfield.core.exact import Mixture, isotropic_mixture
from wayfield.core.path import Straight
from wayfield.data.scenes import Prompt, Scenes, Thing, parse, tokenize
from wayfield.data.scenes.reader import Sighting
from wayfield.judge import rewards as R
from wayfield.judge.rewards import Compressibility, Faithful, Legible, Linear, prompts_of, rewards_of, tilted

Image = pytest.importorskip("PIL.Image", reason="install wayfield[data] for Pillow")
ZERO = torch.zeros((), dtype=torch.float64)


def test_linear_is_the_inner_product():
    x, c = randn(4, 2, 3), randn(2, 3, seed=1)
    torch.testing.assert_close(rewards_of(Linear(c), x, {}), torch.einsum("bij,ij->b", x, c))
    with pytest.raises(ShapeError, match="linear reward"):
        Linear(c)(x[:, :1], {})


def full_mixture(K=4, d=3, labels=None):
    a = randn(K, d, d, seed=2)
    return Mixture(Straight(), randn(K, seed=3).exp(), randn(K, d, seed=4), a @ a.mT + 0.1 * torch.eye(d), labels)


def test_the_tilt_of_a_mixture_has_density_p_times_exp_of_the_reward():
    """log p_beta - log p - R/beta is one constant, log 1/Z, at any points."""
    mixture, c, beta, x = full_mixture(), randn(3, seed=5), 0.7, 2 * randn(50, 3)
    rest = tilted(mixture, c, beta).log_prob(x, ZERO) - mixture.log_prob(x, ZERO) - x @ c / beta
    torch.testing.assert_close(rest, rest[:1].expand(50), rtol=0, atol=1e-10)


def test_the_tilt_of_equal_covariances_is_the_cards():
    """Weights ~ pi exp(c . mu / beta), means mu + s^2 c / beta, the same covariance."""
    means, c, beta, pi = randn(4, 2), randn(2, seed=1), 1.5, randn(4, seed=2).softmax(0)
    got = tilted(isotropic_mixture(Straight(), means, 0.25, pi, torch.tensor([0, 1, 1, 0])), c, beta)
    torch.testing.assert_close(got.weights, (pi.log() + means @ c / beta).softmax(0))
    torch.testing.assert_close(got.means, means + 0.25 * c / beta)
    torch.testing.assert_close(got.covs, 0.25 * torch.eye(2).double().expand(4, 2, 2))
    assert got.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("beta", [0.0, float("inf"), float("nan")])
def test_tilts_without_a_number(beta):
    with pytest.raises(RangeError, match="beta of a tilt"):
        tilted(full_mixture(), randn(3), beta)
    with pytest.raises(ShapeError, match="direction of a tilt"):
        tilted(full_mixture(), randn(2), 1.0)


def pictures(n=3):
    return Scenes(seed=5, plain=True).batch(range(n))[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_compressibility_counts_the_bytes_of_a_file_that_opens(channels):
    x = pictures()[:, :channels]
    got = Compressibility(90)(x, {})
    for k, p in enumerate(x):
        file = io.BytesIO()
        pixels = ((p + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file, "JPEG", quality=90)
        assert float(got[k]) == pytest.approx(-len(file.getvalue()) / 1000, abs=1e-6)
        assert Image.open(file).size == (32, 32)


def test_plainer_pictures_are_worth_more():
    noise, plain = 0.5 * randn(1, 3, 32, 32).clamp(-1, 1), torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    worse, better = Compressibility()(torch.cat([noise, plain]), {}).tolist()
    assert worse < better - 0.5


def test_what_cannot_be_compressed():
    x = pictures()
    with pytest.raises(ShapeError, match="pictures to compress"):
        Compressibility()(x[:, :2], {})
    x[1, 0, 3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="picture 1"):
        Compressibility()(x, {})
    with pytest.raises(RangeError, match="quality"):
        Compressibility(0)


def test_prompts_come_back_from_their_tokens():
    scenes = Scenes(seed=9)
    said = scenes.prompts(range(300))
    more = ["", "three small cyan crosses", "a shape", "something red above a digit", "the letter K at the top"]
    said += [parse(text) for text in more]
    assert prompts_of(tokenize(said)) == said
    with pytest.raises(ConditionError, match="tokens of a prompt"):
        prompts_of(tokenize(["a red ring"]).flip(1))


class Told:
    """A reader that says what it is told to."""

    def __init__(self, monkeypatch, *sightings):
        monkeypatch.setattr(R, "readings", lambda net, x: list(sightings))


def seen(*things, certainty=None):
    made = tuple(Thing(form, colour, size, x, 16.0) for form, colour, size, x in things)
    return Sighting(made, (0.9,) * len(made), certainty or (1.0,) * len(made))


RING, BLUE = ("ring", "red", "small", 8.0), ("square", "blue", "large", 24.0)


@pytest.mark.parametrize(
    ("text", "sighting", "want"),
    [
        ("a small red ring", seen(RING), 1.0),
        ("a small red ring", seen(RING, certainty=(0.6,)), 0.6),
        ("a large red ring", seen(RING), 0.75),
        ("a small red ring", seen(), 0.0),
        ("a small red ring left of a large blue square", seen(RING, BLUE, certainty=(0.9, 0.5)), 0.5),
        ("a small red ring right of a large blue square", seen(RING, BLUE), 0.8),
    ],
    ids=str,
)
def test_faithful_is_the_share_that_is_right_times_certainty(monkeypatch, text, sighting, want):
    Told(monkeypatch, sighting)
    got = Faithful(nn.Identity())(torch.zeros(1, 3, 32, 32), {"tokens": tokenize([text])})
    assert float(got) == pytest.approx(want)


A, B, SEVEN = ("A", "red", "large", 8.0), ("B", "red", "large", 24.0), ("7", "red", "large", 24.0)


@pytest.mark.parametrize(
    ("text", "sighting", "want"),
    [
        ("the letter A", seen(A, certainty=(0.8,)), 0.8),
        ("the letter A", seen(B), 0.0),
        ("the letter A", seen(A, B), 0.5),
        ("the letter A and the digit 7", seen(A, SEVEN, certainty=(0.8, 0.6)), 0.7),
        ("a letter and the letter A", seen(A, B, certainty=(0.9, 0.5)), 0.7),
        ("two letters A", seen(A, certainty=(0.9,)), 0.45),
        ("the letter A and a red ring", seen(A, RING), 1.0),
    ],
    ids=str,
)
def test_legible_reads_the_glyphs_asked_for_and_no_others(monkeypatch, text, sighting, want):
    Told(monkeypatch, sighting)
    got = Legible(nn.Identity())(torch.zeros(1, 3, 32, 32), {"tokens": tokenize([text])})
    assert float(got) == pytest.approx(want)


def test_legible_needs_something_to_read(monkeypatch):
    Told(monkeypatch, seen(RING))
    with pytest.raises(ConditionError, match="Legible"):
        Legible(nn.Identity())(torch.zeros(1, 3, 32, 32), {"tokens": tokenize(["a red ring"])})


def test_a_real_reader_finds_what_was_painted():
    """Real scenes of single shapes are read right, and another prompt's are not."""
    from wayfield import zoo
    from wayfield.recipes.shapes_world import SHAPES

    x, cond = SHAPES.batch(range(16))
    reward = Faithful(zoo.load_detector("scenes-second-reader"))
    right, wrong = (rewards_of(reward, x, {"tokens": t}) for t in (cond["tokens"], cond["tokens"].roll(1, 0)))
    assert float(right.mean()) > 0.95
    assert float(wrong.mean()) < 0.7


def test_rewards_without_prompts():
    with pytest.raises(ConditionError, match="reader's reward"):
        Faithful(nn.Identity())(pictures(), {"label": torch.zeros(3)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_named(value):
    def broken(x0, cond):
        return torch.where(torch.arange(len(x0)) == 2, value, 1.0)

    with pytest.raises(NonFiniteError, match=r"broken.*sample 2"):
        rewards_of(broken, randn(4, 2), {})


@pytest.mark.parametrize(
    ("reward", "error"),
    [
        (lambda x, c: x, ShapeError),
        (lambda x, c: x.sum(), ShapeError),
        (lambda x, c: 1.0, DTypeError),
        (lambda x, c: (x > 0).any(1), DTypeError),
        (lambda x, c: x.sum(1).to("meta"), DeviceError),
    ],
)
def test_rewards_that_are_not_one_number_a_sample(reward, error):
    with pytest.raises(error, match="reward"):
        rewards_of(reward, randn(4, 2), {})


def test_prompts_without_demands_are_met_by_anything(monkeypatch):
    Told(monkeypatch, seen())
    got = Faithful(nn.Identity())(torch.zeros(1, 3, 32, 32), {"tokens": tokenize([Prompt()])})
    assert float(got) == 1.0
