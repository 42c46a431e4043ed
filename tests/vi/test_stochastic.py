"""Stochastic densities: both identities of their weights, exact cases to the bit, nesting, and what is refused."""

import math

import densitytoys as X
import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Independent, Normal
from toys import t

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, UnknownNameError, UnsupportedError
from wayfield.vi import (
    MVD,
    Enum,
    LeaveOneOut,
    Reinforce,
    Reparam,
    Run,
    elbo,
    iwelbo,
    log_density,
    marginal,
    normalize,
    simulate,
)
from wayfield.vi.seeding import seeded
from wayfield.vi.smooth import Provenance

F = torch.float64
Z, ONE = torch.zeros((), dtype=F), torch.ones((), dtype=F)
CARD = (0.249571, 4.006877)  # q(x) and 1 / q(x) at x = 0.7 of N(0, 2)


def chain(h):
    u = h.sample("u", Normal(Z, ONE))
    return h.sample("x", Normal(u, ONE))


def backward(h):
    """The same joint, x first: with x forced, u is exactly what it was drawn with."""
    x = h.sample("x", Normal(Z, math.sqrt(2) * ONE))
    h.sample("u", Normal(x / 2, math.sqrt(0.5) * ONE))


def exact(h, kept):
    h.sample("u", Normal(kept["x"] / 2, math.sqrt(0.5) * ONE))


def prior(h, kept):
    h.sample("u", Normal(Z, ONE))


def draws(density, samples, seed=0, forced=None):
    with seeded(seed):
        run = Run(samples, forced=forced)
        return run, run.simulate(density)


def near(values, want, errors=4.0):
    """Within 4 standard errors: one false alarm in 16000."""
    assert abs(float(values.mean()) - want) < errors * float(values.std()) / math.sqrt(values.numel())


@pytest.mark.parametrize("m", [1, 2, 7])
def test_an_exact_proposal_has_no_variance(m):
    density = marginal(chain, ["x"], exact, m)
    run, q = draws(density, 500)
    want = Normal(Z, math.sqrt(2) * ONE).log_prob(q.values["x"])
    assert (q.log_prob - want).abs().max() < 1e-12
    estimate = run.log_density(density, q)
    assert (estimate - want).abs().max() < 1e-12


@pytest.mark.parametrize("proposal", [None, prior])
def test_the_weights_estimate_the_density_and_its_inverse(proposal):
    density = marginal(chain, ["x"], proposal, 5)
    x = torch.tensor(0.7, dtype=F)
    with seeded(0):
        near(Run(200_000).log_density(density, {"x": x}).exp(), CARD[0])
    _, q = draws(density, 200_000)
    near(
        (Normal(0.7 * ONE, 0.1 * ONE).log_prob(q.values["x"]) - q.log_prob).exp(), 1.0
    )  # integral of phi(x) q(x) / q(x)


def test_the_inverse_at_one_value_and_that_the_two_are_not_each_other():
    """x = 0.7 forced, u from its posterior. Leaving u_1 out of the weight, or adding it to the estimate, is far off."""
    density, N = marginal(backward, ["x"], prior, 5), 200_000
    _, q = draws(density, N, forced={0: torch.full((N,), 0.7, dtype=F)})
    near((-q.log_prob).exp(), CARD[1])
    with seeded(1):
        estimate = Run(N).log_density(density, {"x": torch.tensor(0.7, dtype=F)})
    swapped, other = (-estimate).exp(), q.log_prob.exp()
    assert abs(float(swapped.mean()) - CARD[1]) > 10 * float(swapped.std()) / math.sqrt(N)
    assert abs(float(other.mean()) - CARD[0]) > 10 * float(other.std()) / math.sqrt(N)


@pytest.mark.parametrize("m", [1, 4])
def test_helpers_have_the_shapes_of_rows_samples_and_particles(m):
    def wide(h, x):
        u = h.sample("u", Independent(Normal(x, ONE), 1))
        h.sample("v", Normal(u.sum(-1), ONE))

    x = torch.zeros(3, 2, dtype=F)
    with seeded(0):
        run = Run(4, (3,))
        q = run.simulate(marginal(wide, ["v"], m=m), x, n=5)
        assert q.values["v"].shape[-3:] == q.log_prob.shape[-3:] == (5, 4, 3)
        assert run.log_density(marginal(wide, ["v"], m=m), q, x).shape[-3:] == (5, 4, 3)
        both = run.simulate(marginal(wide, ["u"], m=m), x)
    assert both.values["u"].shape[-3:] == (4, 3, 2)
    assert both.values["u"].std() > 0.5


def test_the_sum_over_a_finite_support_is_the_marginal_itself():
    p = X.leaves()
    _, guide, _ = X.programs(p)
    density = marginal(guide, ["b"], m=None)
    run, q = draws(density, 100)
    want = X.kept(p).log()[q.values["b"].long()]
    assert (q.log_prob - want).abs().max() < 1e-12
    assert (run.log_density(density, {"b": torch.ones((), dtype=F)}) - X.kept(p)[1].log()).abs().max() < 1e-12


def test_the_elbo_of_the_exact_posterior_is_the_evidence_whatever_is_chosen():
    p = X.leaves()
    model, _, _ = X.programs(p)

    def wide(h):
        h.sample("b", Bernoulli(torch.tensor(0.5, dtype=F)))

    posterior = normalize(model, wide, None)
    for select in (Enum(), Reinforce(), MVD()):
        e = elbo(model, normalize(model, wide, None, select), samples=3)(seed=0)
        assert abs((e.value - X.evidence(p)).item()) < 1e-12
    want = X.joint(p)[1] - X.evidence(p)
    with seeded(0):
        assert abs((Run().log_density(posterior, {"b": torch.ones((), dtype=F)}) - want).item()) < 1e-12


def conjugate(h):
    z = h.sample("z", Normal(Z, ONE))
    h.observe("y", Normal(z, 0.5 * ONE), torch.tensor(1.3, dtype=F))


def broad(h):
    h.sample("z", Normal(0.5 * ONE, 0.8 * ONE))


@pytest.mark.parametrize("select", [Enum(), Reinforce(), MVD()], ids=["enum", "reinforce", "mvd"])
@pytest.mark.parametrize("n", [1, 5])
def test_the_elbo_of_resampling_is_the_iwelbo_draw_by_draw(select, n):
    """log P(z_J, y) - log w = log mean w for every draw and every choice, 1e-12."""
    with seeded(0):
        run = Run(200)
        q = run.simulate(normalize(conjugate, broad, n, select))
        left = run.log_density(conjugate, q) - q.log_prob
    with seeded(0):
        run = Run(200)
        z = run.simulate(broad, n=n)
        right = z.logmeanexp(run.log_density(conjugate, z) - z.log_prob)
    assert (left - right).abs().max() < 1e-12


def test_resampled_density_integrates_to_one_and_agrees_with_its_draws():
    density, grid = normalize(conjugate, broad, 3), torch.linspace(-3, 4, 281, dtype=F)
    with seeded(0):
        run = Run(4000, (281,))
        q = run.log_density(density, {"z": grid}).exp().mean(-2).flatten()
    assert abs(float(torch.trapezoid(q, grid)) - 1) < 0.01  # measured 0.001; spread of the estimate about 0.002
    _, drawn = draws(normalize(conjugate, broad, 3, Reinforce()), 100_000)
    mean = float(torch.trapezoid(q * grid, grid))
    assert abs(float(drawn.values["z"].mean()) - mean) < 0.02
    near(((Normal(0.9 * ONE, 0.2 * ONE).log_prob(drawn.values["z"])) - drawn.log_prob).exp(), 1.0)


def test_densities_nest_as_sites_and_as_proposals():
    """A chain of three, marginalised inside out: u -> v -> x with v's helper inside; q(x) = N(0, 3)."""

    def inner(h, u):
        h.sample("v", Normal(u, ONE))

    def outer(h):
        u = h.sample("u", Normal(Z, ONE))
        v = h.sample("v", marginal(lambda h: inner(h, u), "v"))
        h.sample("x", Normal(v, ONE))

    def helped(h):
        pair = h.sample("pair", marginal(two, ["v"], m=2))
        h.sample("x", Normal(pair["v"], ONE))

    def two(h):
        u = h.sample("u", Normal(Z, ONE))
        h.sample("v", Normal(u, ONE))

    want = math.exp(float(Normal(Z, math.sqrt(3) * ONE).log_prob(torch.tensor(0.7, dtype=F))))
    for program in (outer, helped):
        density = marginal(program, "x", m=3)
        with seeded(0):
            near(Run(100_000).log_density(density, {"x": torch.tensor(0.7, dtype=F)}).exp(), want)
        _, q = draws(density, 100_000)
        near((Normal(0.7 * ONE, 0.1 * ONE).log_prob(q.values["x"]) - q.log_prob).exp(), 1.0)
    marginal_of_marginal = marginal(marginal(outer, ["v", "x"], m=2), ["x"], lambda h, k: h.sample("v", Normal(Z, ONE)))
    with seeded(0):
        near(Run(100_000).log_density(marginal_of_marginal, {"x": torch.tensor(0.7, dtype=F)}).exp(), want)


def test_resampling_takes_a_stochastic_proposal_and_a_stochastic_target():
    """Their ELBO stays below the evidence, and the draws keep weights of both identities."""

    def helped(h):
        u = h.sample("u", Normal(Z, ONE))
        h.sample("z", Normal(u, ONE))

    def target(m):
        def model(h):
            z = h.sample("z", marginal(helped, "z", m=m))
            h.observe("y", Normal(z, 0.5 * ONE), torch.tensor(1.3, dtype=F))

        return model

    log_y = float(Normal(Z, math.sqrt(2.25) * ONE).log_prob(torch.tensor(1.3, dtype=F)))
    density = normalize(target(2), marginal(helped, ["z"]), 4, Reinforce())
    _, q = draws(density, 100_000)
    near((Normal(0.9 * ONE, 0.2 * ONE).log_prob(q.values["z"]) - q.log_prob).exp(), 1.0)
    bounds = [
        elbo(target(m), normalize(target(m), marginal(helped, ["z"], m=m), n, Reinforce()), samples=1000)(seed=0).value
        for n, m in ((4, 2), (4, 50), (20, 50))
    ]
    # iwelbo with both densities exact, 20000 draws: -2.33 for n = 4, -1.755 for n = 20; the evidence is -1.70
    assert float(bounds[0]) + 0.15 < float(bounds[1]) < float(bounds[2]) - 0.4 < log_y - 0.4


@pytest.mark.parametrize("select", [Enum(), Reinforce()], ids=repr)
def test_resampling_of_resampling_keeps_both_identities(select):
    inner = normalize(conjugate, broad, 2, select)
    density = normalize(conjugate, inner, 3, Reinforce())
    if isinstance(select, Reinforce):  # else the enumerated choices would have to be averaged
        _, q = draws(density, 40_000)
        near((Normal(0.9 * ONE, 0.2 * ONE).log_prob(q.values["z"]) - q.log_prob).exp(), 1.0)
    log_y = float(Normal(Z, math.sqrt(1.25) * ONE).log_prob(torch.tensor(1.3, dtype=F)))
    once = elbo(conjugate, inner, 5000)(seed=0).value
    twice = elbo(conjugate, density, 5000)(seed=1).value
    assert once + 0.1 < twice < log_y


def test_a_site_holds_the_only_value_or_a_dict():
    def guide(h):
        x = h.sample("x", marginal(chain, "x"))
        z = h.sample("z", normalize(conjugate, broad, 2, alone="z"))
        pair = h.sample("pair", marginal(chain, ["u", "x"]))
        return x + z + pair["u"]

    run, q = draws(guide, 3)
    assert list(q.values) == ["x", "z", "pair/u", "pair/x"]
    assert q.result.shape[-1] == 3
    again = run.replay(guide, q)
    assert torch.isfinite(again.log_prob).all()
    assert (again.sites["pair"].log_prob - q.sites["pair"].log_prob).abs().max() < 1e-12  # nothing left out: exact


def _kept(p, strategy):
    def guide(h, *args):
        h.sample("b", Bernoulli(logits=p["a"]), strategy)

    return guide


def _iwelbo(p, n):
    """By the number of ones among n draws of b ~ Bernoulli(s(a))."""
    q, log_p = X.prior(p), X.joint(p)
    log_w, total = log_p - q.log(), torch.zeros((), dtype=F)
    for k in range(n + 1):
        chance = math.comb(n, k) * q[1] ** k * q[0] ** (n - k)
        total = total + chance * ((n - k) * log_w[0].exp() + k * log_w[1].exp()).div(n).log()
    return total


def test_enumerated_resampling_is_exact():
    p = X.leaves()
    model = X.programs(p)[0]
    for n in (1, 2, 3):
        e = elbo(model, normalize(model, _kept(p, Enum()), n))(seed=0)
        want = _iwelbo(p, n)
        assert abs((e.value - want).item()) < 1e-12
        for found, right in zip(X.gradients(e.surrogate, p).values(), X.gradients(want, p).values(), strict=True):
            assert abs((found - right).item()) < 1e-12


def test_resampling_under_particles_enumerates_jointly_or_is_refused_by_name():
    p = X.leaves()
    model = X.programs(p)[0]
    few = iwelbo(model, normalize(model, _kept(p, Reinforce()), 2), 2, samples=2000)(seed=0).value
    other = iwelbo(model, normalize(model, _kept(p, Reinforce()), 2, Reinforce(LeaveOneOut())), 2, samples=2000)
    assert abs(float(few - other(seed=0).value)) < 0.02
    with pytest.raises(UnsupportedError, match="'select'"):
        iwelbo(model, normalize(model, _kept(p, Reinforce()), 8), 8)(seed=0)


def test_outside_of_objectives_densities_are_drawn_and_weighed():
    density = marginal(chain, ["x"], exact, 3)
    q = simulate(density, seed=0, samples=4)
    assert q.values["x"].shape == (4,)
    want = Normal(Z, math.sqrt(2) * ONE).log_prob(q.values["x"])
    assert (log_density(density, q.values, samples=4, seed=1) - want).abs().max() < 1e-12
    drawn = simulate(conjugate_of, None, seed=0, samples=1000)  # nothing observed yet: a datum is drawn
    assert list(drawn.values) == ["z"]
    assert abs(drawn.sites["y"].value.std().item() - math.sqrt(1.25)) < 0.1


def conjugate_of(h, y):
    z = h.sample("z", Normal(Z, ONE))
    h.observe("y", Normal(z, 0.5 * ONE), y)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: marginal(chain, ["x"], m=0), RangeError, "helpers m"),
        (lambda: marginal(chain, []), RangeError, "keep"),
        (lambda: marginal(chain, ["x"], prior, None), UnsupportedError, "m=None"),
        (lambda: marginal(marginal(chain, ["x"]), ["x"]), UnsupportedError, "proposal"),
        (lambda: normalize(conjugate, broad, 0), RangeError, "candidates n"),
        (lambda: normalize(conjugate, broad, 2.0), RangeError, "candidates n"),
        (lambda: normalize(conjugate, broad, 2, "enum"), DTypeError, "select"),
        (lambda: normalize(conjugate, broad, 2, Reparam()), DTypeError, "select"),
        (lambda: normalize(conjugate, marginal(chain, ["x"]), None), UnsupportedError, "Marginal"),
        (lambda: draws(marginal(chain, ["w"]), 2), UnknownNameError, "name to keep"),
        (lambda: draws(marginal(conjugate, ["z"]), 2), UnsupportedError, "'y'"),
        (lambda: draws(marginal(chain, ["x"], m=None), 2), UnsupportedError, "'u'"),
        (lambda: draws(marginal(chain, ["x"], broad_helper), 2), UnknownNameError, "'w'"),
        (lambda: draws(normalize(conjugate, chain, 2), 2), UnknownNameError, "'z'"),
        (lambda: draws(normalize(conjugate, conjugate, 2), 2), UnsupportedError, "'y'"),
        (lambda: draws(half, 2), UnsupportedError, "part of it"),
        (lambda: Run().log_density(marginal(chain, ["x"]), {"u": Z}), UnsupportedError, "marginal"),
        (lambda: draws(lambda h: h.sample("x", 3.0), 2), DTypeError, "'x'"),
        (lambda: Run().simulate(chain, given={"w": Z}), UnsupportedError, "'w'"),
    ],
)
def test_wrong_options_are_refused_by_name(make, error, says):
    with pytest.raises(error, match=says), seeded(0):
        make()


def broad_helper(h, kept):
    h.sample("w", Normal(Z, ONE))


def _pair(h):
    h.sample("pair", marginal(chain, ["u", "x"]))


half = marginal(_pair, ["pair/x"])


def test_candidates_without_any_weight_are_named():
    def target(h):
        b = h.sample("b", Bernoulli(torch.tensor(0.5, dtype=F)))
        h.factor("gate", torch.where(b > 0, -math.inf, 0.0))

    def guide(h):
        h.sample("b", Bernoulli(torch.tensor(0.5, dtype=F)), Enum())

    with pytest.raises(NonFiniteError, match="normalize"):
        elbo(target, normalize(target, guide, 2))(seed=0)


def test_an_exact_sum_refuses_too_many_values():
    def many(h):
        h.sample("k", Independent(Categorical(torch.full((3, 20), 0.05, dtype=F)), 1))
        h.sample("x", Normal(Z, ONE))

    with pytest.raises(UnsupportedError, match="8000"):
        draws(marginal(many, ["x"], m=None), 2)


def test_the_first_call_checks_what_is_inside_of_a_density():
    """A reparameterised helper that decides is refused by its own name."""

    def jumps(h):
        u = h.sample("u", Normal(Z, ONE))
        h.sample("x", Normal(torch.where(u > 0, 1.0, 0.0), ONE))

    with pytest.raises(UnsupportedError, match="'u'"), seeded(0), Provenance() as watch:
        Run(watch=watch).simulate(marginal(jumps, ["x"]))


def test_an_event_is_not_taken_for_samples():
    """One estimate for one value of three numbers; as many as are said for several."""

    def program(h):
        u = h.sample("u", Normal(t(0.0), t(1.0)))
        h.sample("x", Independent(Normal(u[..., None].expand(*u.shape, 3), t(1.0)), 1))

    density = marginal(program, keep=["x"], m=2)
    assert log_density(density, {"x": t([0.1, 0.2, 0.3])}).numel() == 1
    assert log_density(density, {"x": t([[0.1, 0.2, 0.3]] * 5)}, samples=5).numel() == 5
