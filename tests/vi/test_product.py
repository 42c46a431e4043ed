"""The whole product: every strategy with every objective, on two toy programs, is unbiased or refused by name.

Truth is the sum over all states (Gauss-Hermite for the Gaussian site), made by `toys` without the library. Each pair
compares its gradients, value included for the coin, at 4 standard errors: 6e-5 false alarms per number, below 2% for
this whole file if seeds were drawn anew; they are fixed.
"""

import densitytoys as D
import pytest
import torch
from torch.distributions import Bernoulli, Normal
from toys import (
    COIN,
    PAIR,
    assert_unbiased,
    bound_elbo,
    bound_renyi,
    coin_guide,
    coin_model,
    coin_states,
    exact,
    mixed_guide,
    mixed_model,
    mixed_states,
    row_gradients,
    t,
)

from wayfield.core.errors import UnsupportedError, WayfieldError
from wayfield.vi import (
    MVD,
    Enum,
    Learned,
    LeaveOneOut,
    Reinforce,
    Reparam,
    diwhvi,
    elbo,
    forward_kl,
    hvi,
    iwelbo,
    iwhvi,
    normalize,
    p_wake,
    q_wake,
    renyi,
    symmetric,
)

STRATEGIES = {
    "Reinforce": Reinforce(),
    "Reinforce(constant)": Reinforce(-1.0),
    "Reinforce(LeaveOneOut)": Reinforce(LeaveOneOut()),
    "Reinforce(Learned)": Reinforce(Learned(t(-0.8, grad=True))),
    "Enum": Enum(),
    "MVD": MVD(),
}

# name: (objective of model, guide, samples; the bound of n log weights that it estimates; n)
OBJECTIVES = {
    "elbo": (lambda p, q, s: elbo(p, q, s, batch_dims=1), bound_elbo, 1),
    "elbo, form kl": (lambda p, q, s: elbo(p, q, s, batch_dims=1, form="kl"), bound_elbo, 1),
    "elbo, form landing": (lambda p, q, s: elbo(p, q, s, batch_dims=1, form="landing"), bound_elbo, 1),
    "iwelbo(2)": (lambda p, q, s: iwelbo(p, q, 2, s, batch_dims=1), bound_renyi(0.0), 2),
    "renyi(2, 0.5)": (lambda p, q, s: renyi(p, q, 2, 0.5, s, batch_dims=1), bound_renyi(0.5), 2),
    "renyi(2, 1)": (lambda p, q, s: renyi(p, q, 2, 1.0, s, batch_dims=1), bound_elbo, 2),
    # further objectives of the same form go here; those with other truths have tables of their own below
}

# Pairs that are refused, and why; all others are unbiased.
REFUSED = {(s, "elbo, form landing"): "form='landing'" for s in STRATEGIES}
PAIRS = {(s, o): REFUSED.get((s, o), "unbiased") for s in STRATEGIES for o in OBJECTIVES}

PROGRAMS = {
    "coin": (coin_model, coin_guide, coin_states, COIN),
    "mixed": (mixed_model, mixed_guide, mixed_states, PAIR),
}
ROWS = 60_000


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("strategy", "objective"), PAIRS)
def test_every_pair_is_unbiased_or_refused(program, strategy, objective):
    model, guide, states, parameters = PROGRAMS[program]
    make, bound, n = OBJECTIVES[objective]
    samples = 2 if strategy == "Reinforce(LeaveOneOut)" and n == 1 else 1
    made = make(model, guide(STRATEGIES[strategy]), samples)
    if (words := PAIRS[strategy, objective]) != "unbiased":
        with pytest.raises(UnsupportedError, match=words):
            row_gradients(made, parameters, 4)
        return
    want, truth = exact(states, bound, n, parameters)
    value, gradients = row_gradients(made, parameters, ROWS)
    assert_unbiased(gradients, truth)
    if strategy == "Enum" and program == "coin":
        assert value.item() == pytest.approx(want, abs=1e-12)
        assert gradients[:, 0].tolist() == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("gauss", [Reparam(), Reinforce(), Reinforce(LeaveOneOut()), MVD()], ids=repr)
@pytest.mark.parametrize("coin", [Reinforce(), Reinforce(LeaveOneOut()), Enum(), MVD()], ids=repr)
def test_two_sites_with_strategies_of_their_own(coin, gauss):
    made = iwelbo(mixed_model, mixed_guide(coin, gauss), 2, batch_dims=1)
    _, gradients = row_gradients(made, PAIR, 20_000, seed=5)
    assert_unbiased(gradients, exact(mixed_states, bound_renyi(0.0), 2, PAIR)[1])


@pytest.mark.parametrize("samples", [1, 3])
def test_the_same_with_samples_and_particles_together(samples):
    coin = Reinforce(LeaveOneOut())
    made = renyi(mixed_model, mixed_guide(coin), 2, 0.5, samples, batch_dims=1)
    _, gradients = row_gradients(made, PAIR, 20_000, seed=6)
    assert_unbiased(gradients, exact(mixed_states, bound_renyi(0.5), 2, PAIR)[1])


def test_a_wrong_estimator_would_be_seen():
    """A frozen guide has no score: the same comparison fails."""
    from wayfield.vi import Objective

    def body(run, *a):
        q = run.simulate(coin_guide(Reinforce()), *a, frozen=True)
        return run.log_density(coin_model, q, *a) - run.log_density(coin_guide(None), q.values, *a)

    _, gradients = row_gradients(Objective(body, batch_dims=1), COIN, 2000)
    with pytest.raises(AssertionError):
        assert_unbiased(gradients, exact(coin_states, bound_elbo, 1, COIN)[1])


def test_leave_one_out_of_a_single_draw_is_refused():
    with pytest.raises(WayfieldError, match="site 'b'"):
        row_gradients(elbo(coin_model, coin_guide(Reinforce(LeaveOneOut())), batch_dims=1), COIN, 4)


# Bounds with helpers: the particles n and helpers m of their truth, on guides whose bit is left out.

HELPED = {
    "hvi": (lambda p, q, s: hvi(p, q, s, batch_dims=1), 1, 1),
    "iwhvi(3)": (lambda p, q, s: iwhvi(p, q, 3, s, batch_dims=1), 1, 3),
    "diwhvi(2, 2)": (lambda p, q, s: diwhvi(p, q, 2, 2, s, batch_dims=1), 2, 2),
}
HELPED_PROGRAMS = {
    "bits": (lambda s: D.by_rows(s), D.states, tuple(D.START.values())),
    "mixed": (lambda s: (D.helped_model, D.helped_guide(s)), D.helped_states, PAIR),
}


@pytest.mark.parametrize("program", HELPED_PROGRAMS)
@pytest.mark.parametrize("objective", HELPED)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bounds_with_helpers_are_unbiased(strategy, objective, program):
    (made, states, parameters), (make, n, m) = HELPED_PROGRAMS[program], HELPED[objective]
    want, truth = exact(states(m), bound_renyi(0.0), n, parameters)
    # the log of an average of helpers is no log mean of the objective's particles: leave one out takes two samples
    objective = make(*made(STRATEGIES[strategy]), 2 if strategy == "Reinforce(LeaveOneOut)" else 1)
    finite = strategy == "Enum" and program == "bits"
    value, gradients = row_gradients(objective, parameters, 20 if finite else 20_000)
    if finite:
        assert value.item() == pytest.approx(want, abs=1e-12)
        assert gradients[:, 0].tolist() == pytest.approx(truth, abs=1e-12)
    assert_unbiased(gradients, truth)


# Resampled guides: the truth is the IWELBO's, whatever way the choice is differentiated.


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("select", [Enum(), Reinforce(), Reinforce(LeaveOneOut()), MVD()], ids=repr)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resampled_guides_are_unbiased(strategy, select, program):
    model, guide, states, parameters = PROGRAMS[program]
    resampled = normalize(model, guide(STRATEGIES[strategy]), 2, select)
    _, gradients = row_gradients(elbo(model, resampled, 2, batch_dims=1), parameters, 10_000)
    assert_unbiased(gradients, exact(states, bound_renyi(0.0), 2, parameters)[1])


# Wakes: no draw is differentiated, and the truth is that of their finite n. Exact posteriors need finite supports.

WAKES = {
    "q_wake": (lambda p, q, n: q_wake(p, q, n, batch_dims=1), "q"),
    "p_wake": (lambda p, q, n: p_wake(p, q, n, batch_dims=1), "p"),
    "symmetric": (lambda p, q, n: symmetric(p, q, n, 0.7, 2, batch_dims=1), "both"),
}
WAKE_PROGRAMS = {
    "coin": (D.coin_model, D.coin_guide, D.coin_wake, D.COIN),
    "mixed": (mixed_model, mixed_guide, D.mixed_wake, PAIR),
}


@pytest.mark.parametrize("n", [2, None])
@pytest.mark.parametrize("program", WAKE_PROGRAMS)
@pytest.mark.parametrize("wake", WAKES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_wakes_are_unbiased_for_their_own_number_of_draws(strategy, wake, program, n):
    (model, guide, states, parameters), (make, side) = WAKE_PROGRAMS[program], WAKES[wake]
    made = make(model, guide(STRATEGIES[strategy]), n)
    if program == "mixed" and n is None:
        with pytest.raises(UnsupportedError, match="site 'x'"):
            row_gradients(made, parameters, 4)
        return
    want, truth = D.exact_wake(states, n, "p" if side == "p" else "q", parameters)
    if side == "both":
        reverse = mixed_states if program == "mixed" else D.coin_states
        bound, other = exact(reverse, bound_elbo, 1, parameters)
        want, truth = bound + 0.7 * want, [a + 0.7 * b for a, b in zip(other, truth, strict=True)]
    value, gradients = row_gradients(made, parameters, 20_000)
    assert_unbiased(gradients, truth)
    if n is None and (side != "both" or strategy == "Enum"):
        assert value.item() == pytest.approx(want, abs=1e-12)
        assert gradients[:, 0].tolist() == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_sleep_phase_is_unbiased(strategy):
    """b ~ Bernoulli(s(t)), y ~ N(b, 1): E log Q(b | y) with Q = s(v + w y), by quadrature; no gradient in t."""

    def model(h, y, t, v, w):
        b = h.sample("b", Bernoulli(logits=t), STRATEGIES[strategy])
        h.observe("y", Normal(b, torch.ones_like(b)), y)

    def guide(h, y, t, v, w):
        h.sample("b", Bernoulli(logits=v + w * y), STRATEGIES[strategy])

    want, truth = D.exact_sleep(0.3, -0.2, 0.8)
    value, gradients = row_gradients(forward_kl(model, guide, "y", batch_dims=1), (0.3, -0.2, 0.8), 20_000)
    assert_unbiased(gradients, [0.0, *truth])
    assert value.item() == pytest.approx(want, abs=0.02)  # a spread of 0.5 over 20 000 rows: 5 standard errors
