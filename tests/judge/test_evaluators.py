"""Evaluators: what each head scores and learns, against closed forms, and how far they say they can be trusted."""

import math

import pytest
import torch
from tests.test_sampling import Reads
from torch import nn

from wayfield.core.errors import ConditionError, NonFiniteError, RangeError, ShapeError
from wayfield.core.path import EDM, Straight
from wayfield.field.denoiser import Landing
from wayfield.guide.dynamic import Greedy
from wayfield.judge import MLPJudge, Noisy
from wayfield.judge.evaluators import Evaluator, Seen, area, measure, train_evaluator
from wayfield.judge.heads import Captions, Labels, Preference, Rating, Realism

PATH = Straight()


class Linear(nn.Module):
    """A judge that is linear in x at a level that it is not told."""

    def __init__(self, dim, out=1):
        super().__init__()
        self.layer = nn.Linear(dim, out)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x, level):
        return self.layer(x)


def level(alpha=1.0, sigma=1.0):
    return Landing(torch.tensor(alpha), torch.tensor(sigma))


def label_of(cond):
    return cond["label"]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_labels_score_is_the_log_probability():
    answer, label = rand(4, 3), torch.tensor([0, 2, 1, 3])
    got = Labels(label_of, null=3)(answer, {"label": label})
    want = answer.softmax(1).log()
    torch.testing.assert_close(got, torch.stack([want[0, 0], want[1, 2], want[2, 1], torch.zeros(())]))
    torch.testing.assert_close(Labels(label_of).loss(answer[:3], label[:3]), -got[:3])


def test_a_class_that_the_judge_lacks_surfaces():
    """Three classes asked about a fourth: not finite, so that a run names the step and a measurement refuses."""
    evaluator, asked = Evaluator(Linear(1, 3), Labels(label_of)), {"label": torch.tensor([1, 3])}
    assert evaluator(torch.zeros(2, 1), level(), asked).isnan().tolist() == [False, True]
    seen = Seen(torch.zeros(2, 1), asked)
    with pytest.raises(NonFiniteError):
        measure(evaluator, seen, seen, path=PATH, times=(0.5,))


def test_captions_score_is_a_cosine_and_towers_learn_pairs():
    head = Captions("tokens", 3, 5, width=8)
    tokens = torch.tensor([[1, 2, 0], [3, 4, 1], [1, 2, 0], [2, 2, 2]])
    answer = rand(4, 8)
    told = head.told(tokens)
    torch.testing.assert_close(told.norm(dim=1), torch.ones(4))
    got = head(answer, {"tokens": tokens})
    torch.testing.assert_close(got, nn.functional.cosine_similarity(answer, told))
    torch.testing.assert_close(head(7 * answer, {"tokens": tokens}), got)
    with pytest.raises(ConditionError, match="tokens"):
        head(answer, {"label": tokens})


def test_captions_loss_is_symmetric_infonce_with_equal_captions_together():
    head = Captions("tokens", 3, 5, width=8)
    tokens, answer = torch.tensor([[1, 2, 0], [3, 4, 1], [1, 2, 0]]), rand(3, 8)
    near = 10 * nn.functional.normalize(answer, dim=1) @ head.told(tokens).T
    truth = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    want = (nn.functional.cross_entropy(near, truth) + nn.functional.cross_entropy(near.T, truth)) / 2
    torch.testing.assert_close(head.loss(answer, tokens).mean(), want)
    with torch.no_grad():
        assert float(head.loss(head.told(tokens[:2]), tokens[:2]).mean()) < float(
            head.loss(answer[:2], tokens[:2]).mean()
        )


def test_preference_loss_is_log_2_at_equality_and_pulls_apart():
    """Bradley-Terry: the gradient raises the preferred and lowers the other, by the probability of the error."""
    answer = torch.zeros(1, 2, 1, requires_grad=True)
    loss = Preference().loss(answer, None).sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert answer.grad is not None
    assert answer.grad.flatten().tolist() == [-0.5, 0.5]
    gap = torch.tensor([[[2.0], [-1.0]]])
    assert float(Preference().loss(gap, None)) == pytest.approx(-math.log(1 / (1 + math.exp(-3))), rel=1e-5)


def test_preferences_are_learned_from_pairs_with_the_same_noise():
    """Pairs differ along one axis by 0.1 and have noise of size 1: with noise of their own that would drown."""
    seen = []

    class Watch(Linear):
        def forward(self, x, level):
            seen.append((x.detach(), level))
            return super().forward(x, level)

    def draw(generator, n):
        x = torch.randn(n, 2, generator=generator)
        return torch.stack([x + torch.tensor([0.1, 0.0]), x], 1), ()

    judge = Watch(2)
    train_evaluator(Evaluator(judge, Preference()), draw, path=EDM(1.0), steps=60, batch=64, lr=0.05, levels=(0.5, 1.0))
    better, worse = seen[0][0], seen[1][0]
    torch.testing.assert_close(better - worse, torch.tensor([0.1, 0.0]).expand(64, 2), rtol=0, atol=1e-6)
    assert torch.equal(seen[0][1].sigma, seen[1][1].sigma)
    along, across = judge.layer.weight[0].tolist()
    assert along > 1
    assert abs(across) < 1e-5


def test_a_trained_discriminator_is_the_optimal_one():
    """Two Gaussians N(m, S) at a fixed level: the logit is linear, slope S_t^-1 a (m_r - m_g), to 5 %."""
    m_real, m_fake, spread, t = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([-0.5, 0.5, 0.0]), 0.6, 0.4

    def draw(generator, n):
        true = torch.arange(n) % 2 == 0
        x = torch.where(true[:, None], m_real, m_fake) + spread * torch.randn(n, 3, generator=generator)
        return x, true

    layer = (judge := Linear(3)).layer
    train_evaluator(Evaluator(judge, Realism()), draw, path=PATH, steps=1500, batch=512, lr=0.05, levels=(t, t + 1e-6))
    a, s = 1 - t, t
    variance = (a * spread) ** 2 + s**2
    slope = a * (m_real - m_fake) / variance
    offset = -(a**2) * (m_real.square().sum() - m_fake.square().sum()) / (2 * variance)
    weight, bias = layer.weight.detach()[0], layer.bias.detach()
    assert float((weight - slope).norm() / slope.norm()) < 0.05
    assert abs(float(bias) - float(offset)) < 0.05 * float(slope.norm())


def test_weights_leave_out_what_noise_hides():
    """A loss that counts alpha^2 / (alpha^2 + sigma^2): by hand at one level."""

    def draw(generator, n):
        return torch.ones(n, 1), torch.ones(n)

    plain, weighed = (
        train_evaluator(Evaluator(Linear(1), Rating()), draw, path=PATH, steps=1, levels=(0.75, 0.75 + 1e-6), weigh=w)
        for w in (False, True)
    )
    assert plain == [1.0]
    assert weighed[0] == pytest.approx(0.25**2 / (0.25**2 + 0.75**2), rel=1e-4)


def test_a_rating_is_learned():
    def draw(generator, n):
        x = torch.randn(n, 2, generator=generator)
        return x, 2 * x[:, 0]

    evaluator = Evaluator(Linear(2), Rating())
    losses = train_evaluator(evaluator, draw, path=EDM(1.0), steps=200, lr=0.05, levels=(0.0, 0.01))
    assert losses[-1] < 0.01 < losses[0]
    score = evaluator(torch.tensor([[1.0, 5.0]]), level(1.0, 0.01), {})
    assert float(score.detach()) == pytest.approx(2.0, abs=0.1)


def test_equal_seeds_train_equal_evaluators():
    def draw(generator, n):
        return torch.randn(n, 2, generator=generator), torch.arange(n) % 2

    def made(seed):
        evaluator = Evaluator(Noisy(MLPJudge(2, 2, width=8)), Labels(label_of))
        train_evaluator(evaluator, draw, path=PATH, steps=3, seed=seed)
        return [p.detach().clone() for p in evaluator.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(made(0), made(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(made(0), made(1), strict=True))


def test_levels_beyond_those_of_training_are_read_at_their_border():
    """A clean end above all: the last landing of every run."""
    told = []

    class Watch(Linear):
        def forward(self, x, level):
            told.append((float(level.alpha.detach().mean()), float(level.sigma.detach().mean())))
            return super().forward(x, level)

    def draw(generator, n):
        return torch.randn(n, 1, generator=generator), torch.zeros(n)

    evaluator = Evaluator(Watch(1), Rating())
    evaluator(torch.zeros(1, 1), level(1.0, 0.0), {})
    assert told[-1] == (1.0, 0.0)
    train_evaluator(evaluator, draw, path=EDM(10.0), steps=1, levels=(0.1, 0.2))
    for (alpha, sigma), want in (((1.0, 0.0), 1.01), ((1.0, 1.5), 1.5), ((1.0, 50.0), 1.99)):
        evaluator(torch.zeros(1, 1), level(alpha, sigma), {})
        assert told[-1][1] / told[-1][0] == pytest.approx(want, rel=1e-5)


def test_area_is_the_probability_of_the_right_order():
    better, worse = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 2.0])
    assert area(better, worse) == (2 + 1 + 1.5) / 6
    assert area(worse, better) == 1 - area(better, worse)
    assert area(torch.ones(5), torch.ones(3)) == 0.5


def test_quality_is_measured_level_by_level():
    """Clean points tell two classes apart, drowned ones do not; in between as the normal distribution says."""
    x = torch.cat([torch.full((400, 1), 1.0), torch.full((400, 1), -1.0)])
    judge = Linear(1)
    nn.init.ones_(judge.layer.weight)
    evaluator = Evaluator(judge, Realism())
    assert float(evaluator.quality(level())) == 1
    times = (0.01, 0.5, 0.999)
    areas = measure(evaluator, Seen(x[:400], {}), Seen(x[400:], {}), path=PATH, times=times)
    assert [a for a, _ in areas] == sorted(a for a, _ in areas)
    drowned, middle, clean = (a for _, a in areas)
    assert clean == 1
    assert middle > 0.9  # the same noise on both sides: better than the normal's 0.92 by chance of the draw only
    assert drowned < 0.55
    assert float(evaluator.quality(level(1.0, 0.0))) == 1
    assert float(evaluator.quality(level(0.0, 1.0))) == 0
    assert float(evaluator.quality(level(1.0, 1.0))) == pytest.approx(2 * middle - 1)
    rows = Landing(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert evaluator.quality(rows).tolist() == [1, 0]


def test_an_area_just_above_chance_counts_nothing():
    evaluator = Evaluator(Linear(1), Realism())
    evaluator.trust([(-1.0, 0.549), (1.0, 0.56)])
    assert float(evaluator.quality(level(1.0, 10.0))) == 0
    assert float(evaluator.quality(level(10.0, 1.0))) == pytest.approx(0.12)
    for bad in ([], [(1.0, 0.5), (0.0, 0.6)]):
        with pytest.raises(RangeError):
            evaluator.trust(bad)


def test_evaluators_serve_greedy_and_are_kept():
    """In evaluation mode after training; what was measured is in the state dict."""
    evaluator = Evaluator(Linear(1), Realism())
    assert not evaluator.training
    assert Greedy((("realism", evaluator),)).evaluators[0][1] is evaluator
    evaluator.trust([(-1.0, 0.6), (1.0, 0.9)])
    other = Evaluator(Linear(1), Realism())
    other.trust([(0.0, 0.5), (1.0, 0.6)])
    other.load_state_dict(evaluator.state_dict())
    assert float(other.quality(level(1.0, 0.1))) == pytest.approx(0.8)


@pytest.mark.parametrize(
    "head", [Labels(label_of, 2), Realism(), Captions("tokens", 4, 9, width=2)], ids=lambda h: type(h).__name__
)
def test_nothing_is_read_from_the_device(head):
    """So that a run's loop need not wait; and all of it compiles."""
    evaluator, x = Evaluator(Noisy(MLPJudge(3, 2, width=8)), head), rand(5, 3)
    evaluator.trust([(-1.0, 0.6), (1.0, 0.9)])
    cond = {"label": torch.arange(5) % 3, "tokens": torch.arange(20).reshape(5, 4) % 9}

    def both(x):
        return evaluator(x, level(), cond) * evaluator.quality(level())

    with torch.no_grad(), Reads() as mode:
        want = both(x)
    assert mode.n == 0
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(both, backend="eager", fullgraph=True)(x), want)


def test_answers_of_another_shape_are_refused():
    class Flat(Linear):
        def forward(self, x, level):
            return x[:, 0]

    with pytest.raises(ShapeError, match="answers of an evaluator"):
        Evaluator(Flat(1), Realism())(torch.zeros(2, 1), level(), {})
