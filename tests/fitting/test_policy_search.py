"""The policy search: its loss and gradient on an exact world, and that what it finds is what it says."""

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import RangeError, UnsupportedError
from wayfield.core.path import VP
from wayfield.fitting.draws import Draws
from wayfield.fitting.policy_search import Relaxed, search_policy
from wayfield.guide import CFG, Guidance
from wayfield.guide.policy import policy, policy_cost
from wayfield.sampling import sample
from wayfield.solve import DPM2M, Adaptive, Heun

W, N = 3.0, 4
GRID = G.karras(VP(), N, sigma_min=0.05, sigma_max=20.0)
OPTIONS = (0.0, 1.0, W / 2, W, 2 * W)
COST = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0], dtype=torch.float64)


def labels(n):
    return {"label": torch.arange(n) % 2}


def relaxed(mixture, n=6):
    draws = Draws(mixture(VP(), d=3), GRID, n, 3, labels(n), dtype=torch.float64)
    return Relaxed(draws, W, OPTIONS)


def search(mixture, **options):
    options = {"w": W, "lam": 0.01, "cond": labels(12), "samples": 12, "batch": 6, "steps": 20, **options}
    return search_policy(mixture(VP(), d=3), GRID, dtype=torch.float64, **options)


def logits_on(k, height=800.0):
    return height * torch.nn.functional.one_hot(torch.full((N,), k), 5).double()


def test_logits_on_full_guidance_have_no_loss(mixture):
    problem, part = relaxed(mixture), range(6)
    assert float(problem.mse(logits_on(3).softmax(-1), part, problem.teacher(part))) < 1e-24


def test_an_imitation_has_no_loss_and_no_gradient_but_another_cost(mixture):
    """Half nothing and half 2 w is w in the mean: the images cannot tell, the cost can."""
    problem, part = relaxed(mixture), range(6)
    logits = (logits_on(0) + logits_on(4)).requires_grad_()
    p = problem.probabilities(logits, 1.0)
    loss = problem.mse(p, part, problem.teacher(part))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) < 1e-24
    assert float(gradient.abs().max()) < 1e-11
    assert float(problem.cost(p.detach())) == pytest.approx(0.75)


def test_a_mixture_is_guidance_with_its_mean_scale(mixture, randn64):
    problem, part = relaxed(mixture), range(6)
    logits = randn64(N, 5, seed=1)
    p, doubled = problem.probabilities(logits, 0.5), (2 * logits).exp()
    scales = (doubled / doubled.sum(-1, keepdim=True) * torch.tensor(OPTIONS, dtype=torch.float64)).sum(-1).tolist()
    want = sample(
        problem.draws.model, GRID, samples=6, seed=3, cond=labels(6), guidance=policy(scales), dtype=torch.float64
    ).x
    assert float(problem.mse(p, part, want)) < 1e-24


def test_the_gradient_is_that_of_finite_differences(mixture, randn64):
    problem, part = relaxed(mixture), range(6)
    teacher, at = problem.teacher(part), 0.3 * randn64(N, 5, seed=2)

    def loss(logits):
        p = problem.probabilities(logits, 0.7)
        return problem.mse(p, part, teacher) + 0.1 * problem.cost(p)

    logits = at.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(logits), logits)
    h, numeric = 1e-5, torch.zeros_like(at)
    for i in range(N):
        for k in range(5):
            e = torch.zeros_like(at)
            e[i, k] = h
            numeric[i, k] = (loss(at + e) - loss(at - e)) / (2 * h)
    assert float(gradient.abs().max()) > 1e-3
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-9)


def test_expected_cost(mixture, randn64):
    p = randn64(N, 5).softmax(-1)
    want = float((p * COST).sum()) / (2 * N)
    assert float(relaxed(mixture).cost(p)) == pytest.approx(want, rel=1e-12)
    assert float(relaxed(mixture).cost(logits_on(3).softmax(-1))) == pytest.approx(1.0)


def test_what_is_found_is_what_is_said(mixture):
    """Scales are those of the largest logits; their loss and rows are those of sampling."""
    found = search(mixture)
    best = torch.tensor(found.logits).argmax(-1).tolist()
    assert found.scales == tuple(OPTIONS[k] for k in best)
    assert found.options == OPTIONS
    assert len(found.losses) == 20
    options = {"samples": 12, "cond": labels(12), "dtype": torch.float64}
    den = mixture(VP(), d=3)
    got, full = sample(den, GRID, guidance=found.guidance, **options), sample(den, GRID, guidance=CFG(W), **options)
    assert found.mse == pytest.approx(float((got.x - full.x).square().mean()), rel=1e-9, abs=1e-24)
    assert got.counts.rows == 12 * found.rows == 12 * policy_cost(found.scales)


def test_free_guidance_is_kept_and_dear_guidance_is_not(mixture):
    free, dear = search(mixture, lam=0.0, steps=60), search(mixture, lam=100.0, steps=60)
    assert dear.rows == N
    assert free.rows > N
    assert free.mse < dear.mse
    assert free.losses[-1] < free.losses[0]


def test_the_search_repeats_itself(mixture):
    assert search(mixture, steps=5) == search(mixture, steps=5)


def test_networks_are_left_alone(mixture):
    den = mixture(VP(), d=3)
    den.net.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    search_policy(den, GRID, w=W, lam=0.1, cond=labels(4), samples=4, steps=2, dtype=torch.float64)
    assert den.net.scale.grad is None
    assert den.net.scale.requires_grad


def test_options_and_negative_conditions(mixture):
    got = search(mixture, options=(1, W), away="negative", conds={"negative": {"label": 2}}, steps=3, solver=DPM2M())
    assert set(got.scales) <= {1, W}
    assert isinstance(got.guidance, Guidance)
    assert search(mixture, w=2.0, steps=1).options == (0.0, 1.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"w": 1.0}, RangeError),
        ({"w": float("nan")}, RangeError),
        ({"lam": -1.0}, RangeError),
        ({"steps": 0}, RangeError),
        ({"lr": 0.0}, RangeError),
        ({"tau": (1.0, 0.0)}, RangeError),
        ({"options": ()}, RangeError),
        ({"options": (float("inf"),)}, RangeError),
        ({"samples": 0}, RangeError),
        ({"batch": 0}, RangeError),
        ({"solver": Heun()}, UnsupportedError),
        ({"solver": Adaptive()}, UnsupportedError),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_refused(mixture, options, error):
    with pytest.raises(error):
        search(mixture, **options)
