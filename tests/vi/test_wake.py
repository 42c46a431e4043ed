"""Wake phases, the sleep phase and the symmetric sum: exact limits, bias that shrinks, and whose gradient they are.

That every strategy gives each its gradient is in `test_product`.
"""

import itertools
import math

import densitytoys as X
import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal

from wayfield.core.errors import RangeError, UnknownNameError, UnsupportedError
from wayfield.vi import MVD, Enum, Reinforce, Reparam, elbo, forward_kl, marginal, p_wake, q_wake, symmetric

F = torch.float64
STRATEGIES = [None, Reinforce(), Reinforce(1.5), Enum(), MVD()]


def card(l):
    """Oracle 2's model and guide: P(0, y) = 0.35, P(1, y) = 0.15, a guide s(l)."""

    def model(h):
        h.sample("b", Bernoulli(torch.tensor(0.3, dtype=F)))
        h.factor("y", torch.tensor(0.5, dtype=F).log())

    def guide(h):
        h.sample("b", Bernoulli(logits=l))

    return model, guide


def parameter(rows=None):
    return torch.full(() if rows is None else (rows,), 0.4, dtype=F, requires_grad=True)


def finite(l, n):
    """E of sum_i w_i log Q(b_i) with n self-normalised draws, draws and weights fixed: by the number k of ones."""
    q = torch.stack([1 - torch.sigmoid(l), torch.sigmoid(l)])
    fixed, w = q.detach(), torch.tensor([0.35, 0.15], dtype=F) / q.detach()
    total = torch.zeros((), dtype=F)
    for k in range(n + 1):
        chance = math.comb(n, k) * fixed[1] ** k * fixed[0] ** (n - k)
        ones = k * w[1] / (k * w[1] + (n - k) * w[0])
        total = total + chance * (ones * q[1].log() + (1 - ones) * q[0].log())
    return total


def test_the_exact_posterior_gives_the_forward_kl():
    """d/dl of E_{P(b|y)} log Q = 0.3 - s(0.4) = -0.298688 (the card's number, of the negative)."""
    l = parameter()
    e = q_wake(*card(l), None)(seed=0)
    (g,) = torch.autograd.grad(e.surrogate, l)
    assert abs(g.item() - (0.3 - torch.sigmoid(l).item())) < 1e-12
    assert abs(g.item() + 0.298688) < 1e-6
    want = 0.3 * torch.sigmoid(l).log() + 0.7 * (1 - torch.sigmoid(l)).log()
    assert abs((e.value - want).item()) < 1e-12


def test_finite_draws_are_biased_and_the_bias_shrinks():
    """Gradients of the card, 0.133, 0.270, 0.293 for n = 2, 10, 50; ours within 4 standard errors of the exact ones."""
    exact, rows = 0.298688, 4000
    gaps = []
    for n, told in ((2, 0.133), (10, 0.270), (50, 0.293)):
        l = parameter()
        (want,) = torch.autograd.grad(finite(l, n), l)
        assert abs(-want.item() - told) < 1e-3
        many = parameter(rows)
        e = q_wake(*[_rows(f) for f in card(many)], n, batch_dims=1)(torch.zeros(rows, dtype=F), seed=0)
        (g,) = torch.autograd.grad(e.surrogate * rows, many)
        assert abs((g.mean() - want).item()) < 4 * g.std().item() / math.sqrt(rows)
        gaps.append(exact + want.item())
    assert gaps[0] > 4 * gaps[1] > 16 * gaps[2] / 1.5 > 0


def _rows(program):
    return lambda h, x: program(h)


@pytest.mark.parametrize("n", [4, None])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_each_wake_moves_its_own_side_alone(n, strategy):
    p = X.leaves()
    model, guide = _bits(p, strategy)
    for make, moved, still in ((q_wake, "a", "t"), (p_wake, "t", "a")):
        e = make(model, guide, n, samples=3)(seed=0)
        moving, other = torch.autograd.grad(e.surrogate, [p[moved], p[still]], allow_unused=True)
        assert moving.abs() > 1e-3
        assert other is None


def _bits(p, strategy):
    model, _, _ = X.programs(p)

    def guide(h, *args):
        h.sample("b", Bernoulli(logits=p["a"]), strategy)

    return model, guide


def test_the_whole_support_is_that_of_several_dependent_sites():
    """Three bits and a vector of two, 32 joint values: the exact posterior by a sum written out, rows on their own."""
    w = torch.tensor([0.3, -0.8, 1.2, 0.5, -0.4], dtype=F, requires_grad=True)
    y = torch.tensor([0.2, -1.0], dtype=F)

    def guide(h, y):
        a = h.sample("a", Bernoulli(logits=w[0] + y))
        b = h.sample("b", Bernoulli(logits=w[1] + a))
        logits = torch.stack(torch.broadcast_tensors(w[2] * b, w[3] - a), -1)  # each site is on a dim of its own
        c = h.sample("c", Independent(Bernoulli(logits=logits), 1))
        h.sample("d", Bernoulli(logits=w[4] * c.sum(-1)))

    def model(h, y):
        a, b = h.sample("a", Bernoulli(_half())), h.sample("b", Bernoulli(_half()))
        c = h.sample("c", Independent(Bernoulli(_half().expand(2)), 1))
        d = h.sample("d", Bernoulli(_half()))
        h.observe("y", Normal(a + 2 * b - c[..., 0] + 0.5 * c[..., 1] * d, torch.ones((), dtype=F)), y)

    e = q_wake(model, guide, None, batch_dims=1)(y, seed=0)
    total = torch.zeros((), dtype=F)
    for row in y:
        log_p, log_q = [], []
        for bits in itertools.product((0.0, 1.0), repeat=5):
            a, b, c0, c1, d = (torch.tensor(v, dtype=F) for v in bits)
            mean = a + 2 * b - c0 + 0.5 * c1 * d
            log_p.append(Normal(mean, torch.ones((), dtype=F)).log_prob(row))
            logits = (w[0] + row, w[1] + a, w[2] * b, w[3] - a, w[4] * (c0 + c1))
            log_q.append(sum(Bernoulli(logits=m).log_prob(v) for m, v in zip(logits, (a, b, c0, c1, d), strict=True)))
        total = total + (torch.stack(log_p).softmax(0) * torch.stack(log_q)).sum() / 2
    assert abs((e.value - total).item()) < 1e-12
    (found,), (right,) = torch.autograd.grad(e.surrogate, w), torch.autograd.grad(total, w)
    assert (found - right).abs().max() < 1e-12


def _half():
    return torch.tensor(0.5, dtype=F)


def dreams(h, y, shift):
    z = h.sample("z", Normal(torch.zeros((), dtype=F), torch.ones((), dtype=F)))
    h.observe("y", Normal(z + shift, torch.tensor(0.5, dtype=F)), y)


def recognises(w):
    def guide(h, y, shift):
        h.sample("z", Normal(w[0] * y + w[1], w[2].exp()), Reparam())

    return guide


def test_the_sleep_phase_is_unbiased_and_moves_the_guide_alone():
    """E log N(z; w0 y + w1, e^w2) with y = z + s + noise of 0.5: closed form; 4 standard errors."""
    s, rows = torch.tensor(0.3, dtype=F, requires_grad=True), 20_000
    start = torch.tensor([0.5, -0.1, -0.3], dtype=F)
    w = start.expand(rows, 3).clone().requires_grad_()
    x = torch.zeros(rows, dtype=F)

    def wide(h, y, x):
        dreams(h, y, s)

    objective = forward_kl(wide, lambda h, y, x: recognises(w.unbind(-1))(h, y, s.detach()), "y", batch_dims=1)
    e = objective(x, seed=0)
    found, other = torch.autograd.grad(e.surrogate * rows, [w, s], allow_unused=True)
    assert other is None
    v = start.clone().requires_grad_()
    gap = (1 - v[0]) ** 2 + v[0] ** 2 * 0.25 + (v[0] * 0.3 + v[1]) ** 2  # E (z - w0 y - w1)^2
    want = -v[2] - 0.5 * math.log(2 * math.pi) - 0.5 * gap * (-2 * v[2]).exp()
    (right,) = torch.autograd.grad(want, v)
    assert ((found.mean(0) - right).abs() < 4 * found.std(0) / math.sqrt(rows)).all()
    best = torch.tensor([0.8, -0.24, 0.5 * math.log(0.2)], dtype=F)  # the posterior: its gradient is zero
    w.data.copy_(best.expand(rows, 3))
    (zero,) = torch.autograd.grad(objective(x, seed=1).surrogate * rows, w)
    assert (zero.mean(0).abs() < 4 * zero.std(0) / math.sqrt(rows)).all()


def test_a_stochastic_guide_stays_below_its_exact_wake():
    """E log of an estimate <= log of its mean, and more helpers come nearer."""
    p = X.leaves()
    model, guide, _ = X.programs(p)
    exact = q_wake(model, marginal(guide, ["b"], m=None), 50, samples=2000)(seed=0).value
    loose, tight = (q_wake(model, marginal(guide, ["b"], m=m), 50, samples=2000)(seed=0).value for m in (1, 8))
    assert loose + 0.02 < tight < exact + 1e-3
    want = (X.joint(p).softmax(0) * X.kept(p).log()).sum()
    assert abs((exact - want).item()) < 0.01


def test_the_bias_is_told_and_wrong_options_are_refused():
    p = X.leaves()
    model, guide = _bits(p, None)
    assert "biased at order 1/n" in q_wake(model, guide, 10).explain()
    assert "biased at order 1/n" in p_wake(model, guide, 10).explain()
    assert "exact" in q_wake(model, guide, None).explain()
    for make in (q_wake, p_wake, symmetric):
        with pytest.raises(RangeError, match="draws n"):
            make(model, guide, 0)
        with pytest.raises(UnsupportedError, match="Marginal"):
            make(model, X.programs(p)[2], None)
    with pytest.raises(RangeError, match="weight"):
        symmetric(model, guide, 2, -1.0)
    with pytest.raises(RangeError, match="observed"):
        forward_kl(model, guide, [])
    with pytest.raises(UnknownNameError, match="observed site"):
        forward_kl(dreams, recognises((_half(), _half(), _half())), "z")(torch.zeros((), dtype=F), seed=0)


def test_infinite_supports_have_no_exact_wake():
    with pytest.raises(UnsupportedError, match="'z'"):
        q_wake(lambda h: None, lambda h: h.sample("z", Normal(_half(), _half())), None)(seed=0)


def test_symmetric_with_weight_zero_is_the_elbo():
    p = X.leaves()
    model, guide = _bits(p, Enum())
    assert symmetric(model, guide, None, 0.0)(seed=0).value == elbo(model, guide)(seed=0).value
