"""Bounds: exact values and gradients on two bits, their order, the ELBO's forms, and what is refused."""

import math

import densitytoys as X
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch.distributions import Bernoulli, Normal, kl_divergence
from toys import assert_unbiased, bound_renyi, exact, row_gradients, z_scores

from wayfield.core.errors import DTypeError, RangeError, UnknownNameError, UnsupportedError
from wayfield.vi import (
    MVD,
    Enum,
    Objective,
    Reinforce,
    Reparam,
    diwhvi,
    elbo,
    hvi,
    iwelbo,
    iwhvi,
    marginal,
    normalize,
    renyi,
)

F = torch.float64
Z, ONE = torch.zeros((), dtype=F), torch.ones((), dtype=F)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 3), (3, 1), (1, 2), (2, 2)])
def test_enumeration_gives_the_bound_and_its_gradient(n, m):
    """1e-12 against the sum over every joint value, written out."""
    p = X.leaves()
    model, _, q = X.programs(p, Enum())
    objective = hvi(model, q) if (n, m) == (1, 1) else iwhvi(model, q, m) if n == 1 else diwhvi(model, q, n, m)
    e, want = objective(seed=0), X.bound(p, n, m)
    assert abs((e.value - want).item()) < 1e-12
    for found, right in zip(X.gradients(e.surrogate, p).values(), X.gradients(want, p).values(), strict=True):
        assert abs((found - right).item()) < 1e-12


def test_the_score_of_helpers_is_needed():
    """Drawn without it, the gradient of the helpers' probability is far off: the product of `test_product` can fail."""
    start = tuple(X.START.values())
    truth = exact(X.states(2), bound_renyi(0.0), 1, start)[1]
    model, q = X.by_rows(Reinforce())

    def body(run, *args):
        fixed = run.simulate(q.program, *args, frozen=True).values["b"]
        weights = run.simulate(q.program, *args, n=2, given={"b": fixed})
        log_q = torch.logsumexp(weights.log_likelihood, -weights.dim, keepdim=True) - math.log(2)
        return run.log_density(model, {"b": fixed}, *args) - log_q

    _, gradients = row_gradients(Objective(body, batch_dims=1), start, 20_000)
    assert z_scores(gradients, truth)[0] > 10


def test_bounds_are_ordered_and_below_the_evidence():
    """Exact sums; the hvi family from below, and n, m to the evidence."""
    p = X.leaves()
    b = {(n, m): X.bound(p, n, m).item() for n, m in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (3, 2))}
    top = X.evidence(p).item()
    exact = elbo(X.programs(p)[0], marginal(X.programs(p, Enum())[1], ["b"], m=None))(seed=0).value.item()
    assert b[1, 1] < b[1, 2] < b[1, 4] < exact < top
    assert b[1, 1] < b[2, 1] < b[2, 2] < b[3, 2] < top
    model, guide = X.programs(p)[0], _single(p, Enum())
    tight = [iwelbo(model, guide, n)(seed=0).value.item() for n in (1, 2, 3, 6)]
    assert tight == sorted(tight)
    assert tight[-1] < top
    orders = [renyi(model, guide, 3, a)(seed=0).value.item() for a in (1.0, 0.6, 0.3, 0.0)]
    assert orders == sorted(orders)


def _single(p, strategy):
    def guide(h, *args):
        h.sample("b", Bernoulli(logits=p["a"]), strategy)

    return guide


def test_identities_between_bounds_hold_draw_by_draw():
    """elbo = iwelbo(1), hvi = iwhvi(1) = elbo of the marginal, iwhvi(m) = diwhvi(1, m): equal to the bit."""
    p = X.leaves()
    model, _, q = X.programs(p)
    guide = _single(p, None)
    for one, other in (
        (elbo(model, guide), iwelbo(model, guide, 1)),
        (elbo(model, guide), renyi(model, guide, 4, 1.0)),
        (hvi(model, q), iwhvi(model, q, 1)),
        (hvi(model, q), elbo(model, q)),
        (iwhvi(model, q, 3), diwhvi(model, q, 1, 3)),
        (diwhvi(model, q, 2, 3), iwelbo(model, marginal(q.program, ["b"], m=3), 2)),
    ):
        a, b = (o(seed=3).value for o in (one, other))
        if "renyi" in other.name:  # a mean over four draws
            assert torch.isfinite(b)
        else:
            assert a == b


def helper_model(h, a, c, s, k):
    x = h.sample("x", Normal(Z, ONE))
    h.observe("y", Normal(x, 0.5 * ONE), torch.tensor(0.8, dtype=F))


def helper_bound(a, c, s, k, own):
    """E log P(x, y) - log of the mean of two weights; u_1, x, u_2 by Gauss-Hermite. own: the guide's own proposal."""
    where, weight = (torch.tensor(v, dtype=F) for v in hermegauss(24))
    weight = weight / weight.sum()
    u1 = (a + where)[:, None, None]
    x = c * u1 + s.exp() * where[:, None]
    u2 = a + where if own else k * x + 0.8 * where

    def weigh(u):
        joint = log_normal(u, a, 1.0) + log_normal(x, c * u, s.exp())
        return joint - (log_normal(u, a, 1.0) if own else log_normal(u, k * x, 0.8))

    log_w = torch.logaddexp(weigh(u1), weigh(u2)) - math.log(2)
    log_p = log_normal(x, 0.0, 1.0) + log_normal(torch.tensor(0.8, dtype=F), x, 0.5)
    return (weight[:, None, None] * weight[:, None] * weight * (log_p - log_w)).sum()


def log_normal(x, m, s):
    s = torch.as_tensor(s, dtype=F)
    return -0.5 * ((x - m) / s) ** 2 - s.log() - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("own", [True, False], ids=["own proposal", "learned proposal"])
@pytest.mark.parametrize("strategy", [Reparam(), Reinforce(), MVD()], ids=repr)
def test_helpers_and_their_proposal_learn_by_any_strategy(strategy, own):
    """Gaussian helper; the proposal's slope k has a gradient as well. 4 standard errors, 4 parameters."""

    def guide(h, a, c, s, k):
        u = h.sample("u", Normal(a, ONE), strategy)
        h.sample("x", Normal(c * u, s.exp()))

    def proposal(h, kept, a, c, s, k):
        h.sample("u", Normal(k * kept["x"], 0.8 * ONE), strategy)

    start = (0.3, 0.7, -0.4, 0.5)
    thetas = [torch.tensor(v, dtype=F, requires_grad=True) for v in start]
    want = torch.autograd.grad(helper_bound(*thetas, own), thetas, allow_unused=True)
    objective = iwhvi(helper_model, marginal(guide, ["x"], None if own else proposal), 2, batch_dims=1)
    value, gradients = row_gradients(objective, start, 40_000)
    assert_unbiased(gradients, [0.0 if g is None else g.item() for g in want])
    assert abs((value - helper_bound(*thetas, own)).item()) < 0.03  # a spread below 1.5: 4 standard errors
    assert (gradients[3].abs().max() > 0) == (not own)


def posterior_model(theta):
    def model(h):
        z = h.sample("z", Normal(Z, ONE))
        h.observe("y", Normal(z, 0.5 * ONE), torch.tensor(1.3, dtype=F))
        w = h.sample("w", Normal(theta * z, ONE))
        h.observe("v", Normal(w, 2 * ONE), torch.tensor(-0.4, dtype=F))

    return model


def gaussian(p):
    def guide(h):
        z = h.sample("z", Normal(p[0], p[1].exp()), Reparam())
        h.sample("w", Normal(p[2] * z + p[3], p[4].exp()), Reparam())

    return guide


def best(theta=0.6):
    """The exact posterior of `posterior_model` in the form of `gaussian`."""
    w_var = 1 / (1 + 1 / 4)
    slope, offset = theta * w_var, -0.4 / 4 * w_var
    # v given z is N(theta z, 5)
    precision = 1 + 4 + theta**2 / 5
    mean = (1.3 * 4 + theta * -0.4 / 5) / precision
    values = [mean, -0.5 * math.log(precision), slope, offset, 0.5 * math.log(w_var)]
    return torch.tensor(values, dtype=F)


def gradient_rows(form, at, rows=20_000, seed=0, samples=1):
    p = at.expand(rows, 5).clone().requires_grad_()
    guide, model = gaussian(p.unbind(-1)), posterior_model(torch.tensor(0.6, dtype=F))
    objective = elbo(lambda h, x: model(h), lambda h, x: guide(h), samples=samples, batch_dims=1, form=form)
    e = objective(torch.zeros(rows, dtype=F), seed=seed)
    (g,) = torch.autograd.grad(e.surrogate * rows, p)
    return e.value, g


def test_landing_has_no_variance_at_the_exact_posterior():
    value, g = gradient_rows("landing", best())
    assert g.abs().max() < 1e-12
    y = torch.tensor([1.3, -0.4], dtype=F)
    cov = torch.tensor([[1.25, 0.6], [0.6, 0.36 + 5]], dtype=F)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F), cov).log_prob(y)
    assert abs((value - evidence).item()) < 1e-12
    _, plain = gradient_rows("plain", best())
    assert plain.std(0).min() > 0.3  # the score term that landing leaves out
    assert (plain.mean(0).abs() < 4 * plain.std(0) / math.sqrt(len(plain))).all()


@pytest.mark.parametrize("form", ["plain", "landing", "kl"])
def test_every_form_is_unbiased(form):
    """Against the closed form of a conditional Gaussian guide; 4 standard errors, 5 parameters."""
    at = best() + torch.tensor([0.3, 0.2, -0.2, 0.4, -0.1], dtype=F)
    p = at.clone().requires_grad_()
    m, s, a, b, t = p[0], p[1].exp(), p[2], p[3], p[4].exp()
    w_mean, w_var = a * m + b, a**2 * s**2 + t**2
    joint = (
        -0.5 * (m**2 + s**2)
        - 2 * ((1.3 - m) ** 2 + s**2)
        - 0.5 * (((a - 0.6) * m + b) ** 2 + (a - 0.6) ** 2 * s**2 + t**2)
        - ((-0.4 - w_mean) ** 2 + w_var) / 8
    )
    (want,) = torch.autograd.grad(joint + s.log() + t.log(), p)
    _, g = gradient_rows(form, at)
    assert ((g.mean(0) - want).abs() < 4 * g.std(0) / math.sqrt(len(g))).all()


def test_exact_kl_lowers_the_variance_and_is_the_kl():
    at = best() + 0.3
    plain, kl = (gradient_rows(form, at)[1] for form in ("plain", "kl"))
    assert (kl.var(0).sum() < 0.7 * plain.var(0).sum()).item()  # measured 0.53
    q = Normal(0.4 * ONE, 0.7 * ONE)
    objective = elbo(lambda h: h.sample("z", Normal(Z, ONE)), lambda h: h.sample("z", q), form="kl")
    assert abs((objective(seed=0).value + kl_divergence(q, Normal(Z, ONE))).item()) < 1e-12


@pytest.mark.parametrize("form", ["landing", "kl"])
def test_forms_that_would_be_biased_or_unknown_are_refused_by_site(form):
    p = X.leaves()
    model, guide, q = X.programs(p, Reinforce())
    with pytest.raises(UnsupportedError, match=form):
        elbo(model, q, form=form)(seed=0)
    with pytest.raises(UnsupportedError, match=form):
        elbo(model, normalize(model, _single(p, None), 2), form=form)(seed=0)
    with pytest.raises(UnsupportedError, match=r"'b'|sites|'u'"):
        elbo(lambda h: h.sample("u", Bernoulli(0.5 * ONE)), guide, form=form)(seed=0)


def test_landing_refuses_every_rough_strategy_by_site():
    p = X.leaves()
    for strategy in (Reinforce(), Enum(), MVD()):
        with pytest.raises(UnsupportedError, match=r"at site 'b'"):
            elbo(X.programs(p)[0], _single(p, strategy), form="landing")(seed=0)
    switched = elbo(posterior_model(ONE), gaussian(best()), form="landing").with_strategies({"w": Reinforce()})
    with pytest.raises(UnsupportedError, match=r"at site 'w'"):
        switched(seed=0)


def test_kl_refuses_another_order_and_unknown_pairs():
    def swapped(h):
        h.sample("w", Normal(Z, ONE))
        h.sample("z", Normal(Z, ONE))

    with pytest.raises(UnsupportedError, match="form='kl'"):
        elbo(posterior_model(ONE), swapped, form="kl")(seed=0)
    with pytest.raises(UnsupportedError, match="Normal and StudentT at site 'z'"):
        elbo(
            lambda h: h.sample("z", torch.distributions.StudentT(3 * ONE)),
            lambda h: h.sample("z", Normal(Z, ONE)),
            form="kl",
        )(seed=0)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda m, g, q: elbo(m, g, form="sticky"), UnknownNameError),
        (lambda m, g, q: iwelbo(m, g, 0), RangeError),
        (lambda m, g, q: renyi(m, g, 2, 1.5), RangeError),
        (lambda m, g, q: hvi(m, g), DTypeError),
        (lambda m, g, q: iwhvi(m, g, 2), DTypeError),
        (lambda m, g, q: iwhvi(m, q, 0), RangeError),
        (lambda m, g, q: diwhvi(m, q, 0, 2), RangeError),
        (lambda m, g, q: diwhvi(m, q, 2, 0), RangeError),
        (lambda m, g, q: elbo(m, g, samples=0), RangeError),
    ],
)
def test_wrong_options_are_refused_when_made(make, error):
    with pytest.raises(error):
        make(*X.programs(X.leaves()))


def test_left_out_helpers_must_be_marginalised():
    p = X.leaves()
    model, guide, _ = X.programs(p)
    with pytest.raises(UnsupportedError, match="marginal"):
        elbo(model, guide)(seed=0)
