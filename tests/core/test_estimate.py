"""Surrogates whose gradient is known exactly; estimators whose mean is known, with a stated rate of false alarms.

Unbiasedness: z = |mean - truth| / standard error over many independent columns. A test fails if z > 5, which a correct
estimator with normal errors does with probability 6e-7 per draw of the seed; seeds are fixed, so a pass stays a pass.
"""

import dataclasses
import math
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wayfield.core.errors import DTypeError, RangeError, ShapeError, WayfieldError
from wayfield.core.estimate import Estimate, RunningMean, as_gradient, control_variate, leave_one_out

LIMIT = 5.0


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def z_score(columns, truth):
    """Distance of the mean of independent columns from the truth, in standard errors."""
    return abs(columns.mean().item() - truth) / (columns.std().item() / math.sqrt(columns.numel()))


class RefuseHostReads(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read on the host"
        return func(*args, **(kwargs or {}))


# Estimate


def estimate(value=1.0, surrogate=2.0, **aux):
    return Estimate(torch.tensor(value), torch.tensor(surrogate), {k: torch.tensor(v) for k, v in aux.items()})


def test_estimates_add_and_scale_value_and_surrogate_but_not_aux():
    total = estimate(1.0, 2.0, rec=3.0) + 0.5 * estimate(4.0, 6.0, kl=7.0)
    assert (total.value, total.surrogate) == (3.0, 5.0)
    assert dict(total.aux) == {"rec": 3.0, "kl": 7.0}
    for scaled in (estimate() * 3, 3 * estimate(), torch.tensor(3.0) * estimate(), estimate() * torch.tensor(3.0)):
        assert (scaled.value, scaled.surrogate) == (3.0, 6.0)


def test_the_negative_descends_where_the_estimate_ascends():
    theta = torch.tensor(2.0, requires_grad=True)
    loss = -Estimate(theta**2, theta**2, {"part": theta})
    loss.surrogate.backward()
    assert (loss.value.item(), theta.grad.item(), loss.aux["part"].item()) == (-4.0, -4.0, 2.0)


def test_gradient_of_a_sum_is_the_sum_of_gradients_and_a_weight_may_be_learned():
    x, w = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    total = Estimate(x**2, x**2) + w * Estimate(x**3, x**3)
    gx, gw = torch.autograd.grad(total.surrogate, (x, w))
    assert (gx, gw) == (2 * 2 + 3 * 3 * 4, 8)


def test_the_report_cannot_be_differentiated():
    x = torch.tensor(2.0, requires_grad=True)
    e = Estimate(x**2, 3 * x, {"half": x / 2})
    assert not e.value.requires_grad
    assert not e.aux["half"].requires_grad
    assert e.surrogate.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        e.value.backward()
    kept = e.detach()
    assert not kept.surrogate.requires_grad
    assert (kept.value, kept.surrogate, kept.aux["half"]) == (4.0, 6.0, 1.0)


def test_estimate_is_frozen_copies_its_aux_and_travels():
    aux = {"kl": torch.tensor(1.0)}
    e = Estimate(torch.tensor(1.0), torch.tensor(2.0), aux)
    aux["later"] = torch.tensor(0.0)
    assert list(e.aux) == ["kl"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.value = torch.tensor(0.0)
    back = pickle.loads(pickle.dumps(e))
    assert (back.value, back.surrogate, back.aux["kl"]) == (1.0, 2.0, 1.0)


def test_estimate_errors():
    with pytest.raises(WayfieldError, match=r"aux of a sum: got \['kl'\] on both sides; expected distinct names"):
        estimate(kl=1.0) + estimate(kl=2.0)
    assert set((estimate(kl=1.0).named("a") + estimate(kl=2.0).named("b")).aux) == {"a.kl", "b.kl"}
    with pytest.raises(ShapeError, match=r"surrogate of the second estimate: got \(2,\); expected \(\)"):
        estimate() + Estimate(torch.tensor(1.0), torch.ones(2))
    with pytest.raises(ShapeError, match=r"weight: got \(3,\); expected \(\)"):
        estimate() * torch.ones(3)
    with pytest.raises(TypeError):
        estimate() * "2"
    with pytest.raises(TypeError):
        estimate() + 1


# as_gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_as_gradient_has_exactly_the_given_gradient(dtype):
    x, g = 1e3 * normal(3, 2, 4), normal(3, 2, 4, seed=1)
    x, g = x.to(dtype).requires_grad_(), g.to(dtype).requires_grad_()
    s = as_gradient(x, g * 1)
    assert s.shape == ()
    s.backward()
    assert torch.equal(x.grad, g)
    assert g.grad is None


def test_as_gradient_goes_through_the_chain_rule_and_not_through_g():
    theta = normal(4, 3).requires_grad_()
    x = theta.sin()
    g = x**2  # depends on theta, and must not be differentiated
    (got,) = torch.autograd.grad(as_gradient(x, g), theta)
    torch.testing.assert_close(got, (theta.sin() ** 2 * theta.cos()).detach())


def test_as_gradient_errors():
    with pytest.raises(ShapeError, match=r"gradient g: got \(2, 1\); expected \(2, 3\)"):
        as_gradient(torch.ones(2, 3), torch.ones(2, 1))


# leave_one_out


def test_leave_one_out_is_the_mean_of_the_others():
    v = normal(5, 3, 2)
    got = leave_one_out(v)
    for k in range(5):
        torch.testing.assert_close(got[k], torch.cat([v[:k], v[k + 1 :]]).mean(0))
    torch.testing.assert_close(got.mean(0), v.mean(0))
    torch.testing.assert_close(leave_one_out(v[:, 0, 0]), got[:, 0, 0])


def test_leave_one_out_loses_nothing_to_cancellation_and_keeps_infinities_apart():
    v = torch.tensor([[1e8], [1.0], [2.0]])
    assert leave_one_out(v)[0] == 1.5
    v[0] = math.inf
    assert leave_one_out(v).flatten().tolist() == [1.5, math.inf, math.inf]


def test_leave_one_out_baseline_keeps_the_score_gradient_unbiased_and_lowers_its_variance():
    # d/dm E (z + 4)^2 at z ~ N(m, 1), m = 1: the answer is 2 (m + 4) = 10
    m, K, columns = 1.0, 4, 100_000
    z = m + normal(K, columns, seed=2)
    f, score = (z + 4) ** 2, z - m
    plain, better = (f * score).mean(0), ((f - leave_one_out(f)) * score).mean(0)
    assert z_score(plain, 10.0) < LIMIT
    assert z_score(better, 10.0) < LIMIT
    assert better.var() < 0.5 * plain.var()
    # a baseline that has seen its own draw is biased by the factor 1 - 1/K, and this test would notice
    assert z_score(((f - f.mean(0)) * score).mean(0), 10.0) > 4 * LIMIT


# control_variate


def hutchinson(K, columns, seed, n=6):
    """Gaussian trace probes: f = z'Az with mean tr A, and the companion |z|^2 with mean n."""
    root = normal(n, n, seed=seed)
    A = root @ root.T
    z = normal(K, columns, n, seed=seed + 1)
    return torch.einsum("kbi,ij,kbj->kb", z, A, z), z.square().sum(-1), A.trace().item(), float(n)


@pytest.mark.parametrize("K", [4, 6, 12])
def test_control_variate_is_unbiased_and_lowers_the_variance_of_a_trace_estimate(K):
    f, c, truth, mean_c = hutchinson(K, 100_000, seed=3)
    got = control_variate(f, c, mean_c)
    assert got.shape == f.shape
    assert z_score(got.mean(0), truth) < LIMIT
    assert z_score(got[0], truth) < LIMIT  # each draw on its own, not only their mean
    assert got.mean(0).var() < {4: 1.05, 6: 0.85, 12: 0.7}[K] * f.mean(0).var()  # the optimal beta reaches 0.49


def test_control_variate_that_saw_its_own_draw_would_be_caught():
    # f = c^2 is skewed against c: a pooled beta correlates with the draw it corrects
    K, columns = 4, 100_000
    c = normal(K, columns, seed=5)
    f = (c + 1) ** 2
    pooled = ((f - f.mean(0)) * c).sum(0) / c.square().sum(0)
    assert z_score((f - pooled * c).mean(0), 2.0) > 4 * LIMIT
    assert z_score(control_variate(f, c, 0.0).mean(0), 2.0) < LIMIT


def test_control_variate_reaches_the_optimal_variance_for_many_draws():
    # f = 2 c + e with e ~ N(0, 1/4): the best possible variance per draw is that of e
    K = 256
    c, e = 3 + normal(K, 400, seed=6), normal(K, 400, seed=7) / 2
    got = control_variate(2 * c + e, c, 3.0)
    assert got.var(0).mean() < 1.05 * 0.25
    assert abs(got.mean().item() - 6) < LIMIT * 0.5 / math.sqrt(got.numel())


def test_control_variate_beta_comes_from_the_other_draws_alone():
    f, c = normal(5, 3, seed=8), normal(5, 3, seed=9)
    beta = lambda f, c: (f - control_variate(f, c, 0.25)) / (c - 0.25)  # noqa: E731
    for k in range(5):
        rest = [i for i in range(5) if i != k]
        u = c[rest] - 0.25
        covariance = ((f[rest] - f[rest].mean(0)) * (u - u.mean(0))).mean(0)
        torch.testing.assert_close(beta(f, c)[k], covariance / (u**2).mean(0))
    moved, cmoved = f.clone(), c.clone()
    moved[2], cmoved[2] = 100.0, -50.0
    torch.testing.assert_close(beta(moved, cmoved)[2], beta(f, c)[2])


@pytest.mark.parametrize(
    ("correlation", "K", "low", "high"), [(0.9, 4, 0.5, 0.7), (0.5, 4, 1.2, 1.6), (0.5, 8, 0.85, 0.98)]
)
def test_control_variate_gains_what_the_docstring_says(correlation, K, low, high):
    c = normal(K, 40_000, seed=14)
    f = correlation * c + math.sqrt(1 - correlation**2) * normal(K, 40_000, seed=15)
    ratio = control_variate(f, c, 0.0).mean(0).var() / f.mean(0).var()
    assert low < ratio < high


def test_control_variate_columns_are_independent_and_offsets_harmless():
    f, c, means = normal(6, 4, seed=10), normal(6, 4, seed=11), torch.linspace(-1, 1, 4, dtype=torch.float64)
    whole = control_variate(f, c, means)
    for j in range(4):
        torch.testing.assert_close(control_variate(f[:, j], c[:, j], means[j]), whole[:, j])
    torch.testing.assert_close(control_variate(f + 1e8, c, means) - 1e8, whole, atol=1e-6, rtol=0)


def test_control_variate_without_information_returns_f():
    f = normal(4, 3)
    assert torch.equal(control_variate(f, torch.full_like(f, 2.0), 2.0), f)


def test_control_variate_does_not_differentiate_beta_and_reads_nothing():
    f, c = normal(5, 3, seed=12).requires_grad_(), normal(5, 3, seed=13).requires_grad_()
    with RefuseHostReads():
        got = control_variate(f, c, 0.0)
    gf, gc = torch.autograd.grad(got.sum(), (f, c))
    assert torch.equal(gf, torch.ones_like(f))
    torch.testing.assert_close(gc, ((got - f) / c).detach())


def test_draw_errors():
    with pytest.raises(ShapeError, match=r"values: got \(1, 3\); expected \(K, \*B\), K >= 2"):
        leave_one_out(torch.ones(1, 3))
    with pytest.raises(DTypeError, match=r"values: got torch.int64"):
        leave_one_out(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"f: got \(3, 2\); expected \(K, \*B\), K >= 4"):
        control_variate(torch.ones(3, 2), torch.ones(3, 2), 0.0)
    with pytest.raises(ShapeError, match=r"control variate c: got \(4, 1\); expected \(4, 2\)"):
        control_variate(torch.ones(4, 2), torch.ones(4, 1), 0.0)
    with pytest.raises(ShapeError, match=r"mean_c: got \(4, 2\); expected one of \(\(\), \(2,\)\)"):
        control_variate(torch.ones(4, 2), torch.ones(4, 2), torch.ones(4, 2))


# RunningMean


def test_running_mean_is_the_weighted_mean_of_what_it_saw():
    state, batches = RunningMean(decay=0.8), normal(6, 10)
    assert state.value == 0
    for i, batch in enumerate(batches):
        state = state.update(batch)
        weights = 0.8 ** torch.arange(i, -1, -1, dtype=torch.float64)
        want = (weights * batches[: i + 1].mean(1)).sum() / weights.sum()
        torch.testing.assert_close(state.value.double(), want, atol=1e-6, rtol=1e-6)
    constant = RunningMean().update(torch.full((3,), 7.0))
    torch.testing.assert_close(constant.value, torch.tensor(7.0))
    assert RunningMean(decay=0.0).update(torch.ones(2)).update(torch.zeros(2)).value == 0


def test_running_mean_is_explicit_state_without_graph_or_host_reads():
    start = RunningMean()
    with RefuseHostReads():
        after = start.update(torch.ones(4, requires_grad=True))
        assert after.value.shape == ()
    assert start.weight == 0
    assert not after.total.requires_grad
    with pytest.raises(dataclasses.FrozenInstanceError):
        start.decay = 0.5
    low = start.update(torch.full((4096,), 3.0, dtype=torch.bfloat16)).value
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, torch.tensor(3.0))


def test_running_mean_baseline_from_the_past_is_unbiased_and_lowers_variance():
    m, columns = 1.0, 100_000
    state, estimates = RunningMean(decay=0.9), []
    for i in range(20):
        z = m + normal(columns // 20, seed=20 + i)
        f = (z + 4) ** 2
        estimates.append((f - state.value) * (z - m))
        state = state.update(f)
    assert z_score(torch.cat(estimates), 10.0) < LIMIT
    assert torch.cat(estimates[1:]).var() < 0.5 * ((z + 4) ** 2 * (z - m)).var()


def test_running_mean_errors():
    for decay in (1.0, -0.1, math.nan):
        with pytest.raises(RangeError, match=r"decay: got .*; expected in \[0, 1\)"):
            RunningMean(decay=decay)
