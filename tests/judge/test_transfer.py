"""Knowledge transfer: what its losses are zero at, what their minimisers are, and what it refuses."""

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from wayfield.core.errors import DTypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from wayfield.core.path import VP, Scales
from wayfield.judge import MLPJudge
from wayfield.judge.experts import Experts, NoiseRanges
from wayfield.judge.lora import LoRA
from wayfield.judge.transfer import (
    class_shares,
    kt_classification,
    kt_regression,
    kt_segmentation,
    pixels,
    stored,
    transfer,
)


@pytest.mark.parametrize("tau", [0.25, 1.0, 2.0])
def test_the_loss_is_zero_at_the_sharpened_teacher_alone(tau, randn64):
    o = 2 * randn64(6, 4)
    assert kt_classification(o / tau + 3.0, o, tau).abs() < 1e-14
    assert kt_classification(o / tau + 0.1 * randn64(6, 4, seed=1), o, tau) > 1e-4


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_the_gradient_in_the_logits(tau, randn64):
    """(softmax(s) - softmax(o / tau)) / B: a sum over classes, a mean over rows."""
    o, s = randn64(6, 4), randn64(6, 4, seed=1).requires_grad_()
    (grad,) = torch.autograd.grad(kt_classification(s, o, tau), s)
    torch.testing.assert_close(grad, (s.softmax(1) - (o / tau).softmax(1)) / 6, rtol=0, atol=1e-14)


def test_segmentation_is_classification_of_every_pixel(randn64):
    o, s = randn64(2, 3, 4, 5), randn64(2, 3, 4, 5, seed=1)
    rows = [y.permute(0, 2, 3, 1).reshape(-1, 3) for y in (s, o)]
    torch.testing.assert_close(kt_segmentation(s, o, 0.5), kt_classification(*rows, 0.5), rtol=1e-14, atol=1e-14)


def quadrature(tau):
    """p(y | x_t), and E[softmax(f(x0) / tau) | x_t] for the exact f, of a mixture of two normals, at points x_t."""
    x0 = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    (weights, means, var), alpha, sigma = ((0.4, 0.6), (-1.0, 0.7), 0.3), 0.8, 0.6
    joint = torch.stack([w * torch.exp(-0.5 * (x0 - m) ** 2 / var) for w, m in zip(weights, means, strict=True)])
    joint = joint / var**0.5
    teacher = (joint.log() / tau).softmax(0)
    x = torch.tensor([-1.5, -0.2, 0.0, 0.3, 1.0], dtype=torch.float64)
    density = joint.sum(0) * torch.exp(-0.5 * ((x[:, None] - alpha * x0) / sigma) ** 2)
    learned = (teacher[:, None] * density).sum(2) / density.sum(1)
    spread = alpha**2 * var + sigma**2
    pairs = zip(weights, means, strict=True)
    exact = torch.stack([torch.log(torch.tensor(w)) - 0.5 * (x - alpha * m) ** 2 / spread for w, m in pairs]).softmax(0)
    return exact, learned


def test_a_teacher_taken_at_its_word_teaches_the_noisy_posterior():
    """The tower property, by quadrature; a sharpened teacher teaches something else, surer than the truth."""
    exact, learned = quadrature(1.0)
    torch.testing.assert_close(learned, exact, rtol=0, atol=1e-6)
    exact, learned = quadrature(0.25)
    assert (learned - exact).abs().max() > 0.01


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_the_minimiser_is_the_mean_of_the_sharpened_teacher(tau, randn64):
    """One student's distribution for many teachers' answers: the gradient vanishes at the mean of softmax(o / tau)."""
    o = 2 * randn64(50, 3)
    mean = (o / tau).softmax(1).mean(0)
    s = mean.log().requires_grad_()
    (grad,) = torch.autograd.grad(kt_classification(s.expand(50, 3), o, tau), s)
    assert grad.abs().max() < 1e-14


def test_regression_of_a_linear_teacher_on_gaussian_data(randn64):
    """f(x0) = A x0 + b, data N(m, S): the best student is A E[x0 | x] + b, here by least squares on exact moments."""
    a, s = 0.6, 0.8
    root, m, A, b = randn64(3, 3), randn64(3, seed=1), randn64(2, 3, seed=2), randn64(2, seed=3)
    S = root @ root.T + 0.1 * torch.eye(3, dtype=torch.float64)
    gain = a * S @ torch.linalg.inv(a**2 * S + s**2 * torch.eye(3, dtype=torch.float64))
    # points whose first and second moments are exact: a cubature of (x0, eps), 2 * 6 points of equal weight
    unit = torch.cat([torch.eye(6), -torch.eye(6)]).double() * 6**0.5
    x0, eps = m + unit[:, :3] @ torch.linalg.cholesky(S).T, unit[:, 3:]
    x, o = a * x0 + s * eps, x0 @ A.T + b
    student = torch.linalg.lstsq(torch.cat([x, torch.ones(12, 1, dtype=torch.float64)], 1), o).solution
    at = randn64(5, 3, seed=4)
    want = (m + (at - a * m) @ gain.T) @ A.T + b
    got = torch.cat([at, torch.ones(5, 1, dtype=torch.float64)], 1) @ student
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    w = student.clone().requires_grad_()
    (grad,) = torch.autograd.grad(kt_regression(torch.cat([x, torch.ones_like(x[:, :1])], 1) @ w, o), w)
    assert grad.abs().max() < 1e-10


MEANS = torch.tensor([[-0.6, 0.2], [0.5, 0.3], [0.0, -0.6]])


def world(n=600):
    """Pictures of two pixels in three classes, as bytes, and their labels."""
    g = torch.Generator().manual_seed(0)
    label = torch.randint(3, (n,), generator=g)
    return stored(MEANS[label] + 0.1 * torch.randn(n, 2, generator=g)), label


class Teacher(nn.Module):
    """The exact log-posterior of the clean data, up to a constant."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
        g = torch.Generator().manual_seed(1)
        for p in self.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=g)
        optimizer, (images, label) = torch.optim.Adam(self.parameters(), 0.02), world()
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self(pixels(images)), label).backward()
            optimizer.step()
        self.eval()

    def forward(self, x):
        return self.layers(x)


TEACHER = Teacher()


def bank(count=2):
    return Experts(TEACHER, NoiseRanges.from_count(count, VP()), LoRA(4))


def run(experts, loss=partial(kt_classification, tau=1.0), **options):
    options = {"path": VP(), "steps": 40, "batch": 64, "lr": 5e-3, "weight_decay": 0.0} | options
    return transfer(experts, TEACHER, world()[0], loss, **options)


def error(experts, t):
    """Mean KL between the teacher's answer and the experts', at time t."""
    x0 = pixels(world()[0])
    level = Scales(*(c.float() for c in VP().scales(torch.full((len(x0),), t, dtype=torch.float64))))
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        answer = experts(level.alpha[:, None] * x0 + level.sigma[:, None] * eps, level)
        return float(kt_classification(answer, TEACHER(x0), 1.0))


def test_experts_learn_in_their_ranges():
    """The error falls at levels of either range, and each expert is better at its own than the other is."""
    experts = bank()
    losses = run(experts, steps=600, lr=2e-2)
    assert [len(each) for each in losses] == [300, 300]
    for t in (0.25, 0.75):
        assert error(experts, t) < 0.7 * error(bank(), t)
    swapped = bank()
    for n in (0, 1):
        swapped.adapter(n).load_state_dict(experts.adapter(1 - n).state_dict())
    for t in (0.15, 0.75):
        assert error(experts, t) < error(swapped, t)
    assert not experts.training


def test_equal_seeds_give_equal_experts_and_the_base_stands_still():
    (a, b, c), before = (bank(), bank(), bank()), torch.get_rng_state()
    assert run(a) == run(b) != run(c, seed=1)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(a.base.parameters(), TEACHER.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())


def test_a_start_from_the_expert_before():
    """With a vanishing rate expert 1 ends where it starts: at the base, or where expert 0 ended."""
    base, previous = bank(), bank()
    run(base, lr=1e-12, steps=2)
    assert not any(torch.equal(p, q) for p, q in _factors(base))
    run(previous, lr=1e-12, steps=2, init="previous")
    assert all(torch.allclose(p, q, atol=1e-9) for p, q in _factors(previous))


def _factors(experts):
    """Factors A of both experts, which start by lot."""
    pairs = itertools.pairwise([experts.adapter(0).own, experts.adapter(1).own])
    return [(a[key], b[key]) for a, b in pairs for key in a if key.endswith(":A")]


def test_mirrored_pictures_are_mirrored_for_the_teacher_too():
    """Both pixels swap, for teacher and student alike: a teacher of the difference then sees both signs."""
    seen = []

    def teacher(x):
        seen.append(x[:, 0] - x[:, 1])
        return TEACHER(x)

    images = torch.tensor([[10, 200]], dtype=torch.uint8).expand(8, 2)
    transfer(bank(1), teacher, images, kt_regression, path=VP(), steps=1, batch=64, flip=True)
    positive = (torch.cat(seen) > 0).float().mean()
    assert 0.2 < positive < 0.8


def test_bytes():
    """Rounded to 256 levels over [-1, 1], clamped; reading is exact there."""
    x = torch.tensor([[-1.2, -1.0, 0.0, 0.5, 1.0, 3.0]])
    assert stored(x).tolist() == [[0, 0, 128, 191, 255, 255]]
    every = torch.arange(256, dtype=torch.uint8)[None]
    assert torch.equal(stored(pixels(every)), every)


def test_shares_of_classes_and_the_warning_of_gaps():
    images, label = world()
    shares = class_shares(TEACHER, images)
    torch.testing.assert_close(shares, label.bincount(minlength=3).double() / len(label), rtol=0, atol=0.02)
    dense = class_shares(lambda x: TEACHER(x)[:, :, None].expand(-1, -1, 4), images)
    torch.testing.assert_close(dense, shares)
    options = {"path": VP(), "steps": 2, "batch": 8}
    with pytest.warns(UserWarning, match=r"classes \[2\]"):
        transfer(bank(), TEACHER, images[label < 2], kt_classification, **options)
    transfer(bank(), TEACHER, images[label < 2], kt_regression, **options)


def test_bad_input(randn64):
    images = world()[0]
    for tau in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RangeError, match="tau"):
            kt_classification(randn64(2, 3), randn64(2, 3), tau)
    with pytest.raises(ShapeError, match="student's answers"):
        kt_regression(randn64(2, 3), randn64(2, 4))
    with pytest.raises(ShapeError, match="one per pixel"):
        kt_classification(randn64(2, 3, 4), randn64(2, 3, 4))
    with pytest.raises(ShapeError, match="kt_classification"):
        kt_segmentation(randn64(2, 3), randn64(2, 3))
    with pytest.raises(DTypeError, match="stored"):
        transfer(bank(), TEACHER, pixels(images), kt_regression, path=VP(), steps=2)
    with pytest.raises(ShapeError, match="images"):
        transfer(bank(), TEACHER, images[:0], kt_regression, path=VP(), steps=2)
    with pytest.raises(DTypeError, match="floats"):
        stored(images)
    with pytest.raises(RangeError, match="one per expert"):
        run(bank(3), steps=2)
    with pytest.raises(UnknownNameError, match="start of experts"):
        run(bank(), init="last")
    with pytest.raises(UnsupportedError, match="training mode"):
        transfer(bank(), MLPJudge(2, 3, clean=True), images, kt_regression, path=VP(), steps=2)
