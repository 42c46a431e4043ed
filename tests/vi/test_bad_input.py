"""What the card lists as bad input: a named error that names the site, and no number."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Exponential, Independent, Normal, Poisson
from toys import coin_guide, coin_model, mixed_guide, mixed_model, t

from wayfield.core.errors import (
    DTypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
    WayfieldError,
)
from wayfield.vi import MVD, Enum, Implicit, Learned, LeaveOneOut, Objective, Reinforce, Reparam, elbo, iwelbo, renyi


def guide_of(dist, strategy=None, name="z"):
    return lambda h, *a: h.sample(name, dist, strategy)


def standard(h, *a):
    h.sample("z", Normal(t(0.0), t(1.0)))


def once(program, *args, **options):
    return Objective(lambda run, *a: run.simulate(program, *a).log_prob, **options)(*args, seed=0)


# Names


def test_a_name_twice():
    def program(h):
        h.sample("z", Normal(t(0.0), t(1.0)))
        h.sample("z", Normal(t(0.0), t(1.0)))

    with pytest.raises(WayfieldError, match="site 'z': got the name twice"):
        once(program)


def test_a_site_the_guide_lacks():
    with pytest.raises(UnknownNameError, match="site 'z': got no value"):
        elbo(standard, guide_of(Normal(t(0.0), t(1.0)), name="other"))(seed=0)


def test_a_site_the_model_lacks():
    def guide(h):
        standard(h)
        h.sample("extra", Normal(t(0.0), t(1.0)))

    with pytest.raises(UnsupportedError, match=r"site 'extra'.*marginal"):
        elbo(standard, guide)(seed=0)


def test_a_strategy_for_an_unknown_site():
    objective = elbo(standard, standard).with_strategies({"zz": Reinforce()})
    with pytest.raises(UnknownNameError, match="'zz'"):
        objective(seed=0)


def test_a_strategy_for_a_site_of_another_branch_is_no_mistake():
    def program(h):
        a = h.sample("a", Bernoulli(t(0.5)), Reinforce())
        return h.sample("b" if a == 1 else "c", Normal(t(0.0), t(1.0)))

    strategies = {"b": Reinforce(), "c": Reinforce()}
    assert math.isfinite(Objective(lambda r: r.simulate(program).result, strategies=strategies)(seed=0).value)


# Shapes


@pytest.mark.parametrize("samples", [1, 3])
def test_events_that_differ_between_guide_and_model(samples):
    """Three samples would broadcast with three dims of the event: the events are compared, not the shapes."""
    guide = guide_of(Independent(Normal(torch.zeros(3), 1.0), 1))
    with pytest.raises(ShapeError, match="event of site 'z'"):
        elbo(standard, guide, samples=samples)(seed=0)
    with pytest.raises(ShapeError, match="event of site 'z'"):
        elbo(guide, standard, samples=samples)(seed=0)
    with pytest.raises(ShapeError, match="event of site 'z'"):
        elbo(guide, guide_of(Independent(Normal(torch.zeros(1), 1.0), 1)), samples=samples)(seed=0)


def test_a_dim_that_is_neither_event_nor_row():
    with pytest.raises(ShapeError, match=r"site 'z'.*Independent"):
        once(guide_of(Normal(torch.zeros(3), 1.0)))


def test_an_observation_of_another_shape():
    def model(h):
        standard(h)
        h.observe("x", Independent(Normal(torch.zeros(3), 1.0), 1), torch.zeros(4))

    with pytest.raises(RangeError, match="value of site 'x'"):
        elbo(model, standard)(seed=0)


def test_an_observation_outside_of_the_support():
    def model(h):
        standard(h)
        h.observe("x", Bernoulli(t(0.3)), t(0.5))

    with pytest.raises(RangeError, match=r"value of site 'x'.*Bernoulli"):
        elbo(model, standard)(seed=0)


def test_later_calls_with_other_shapes_are_checked_too():
    def model(h, x):
        standard(h)
        h.observe("x", Normal(t(0.0), t(1.0)), x)

    objective = elbo(model, standard)
    objective(t(0.3), seed=0)
    with pytest.raises(ShapeError, match="site 'x'"):
        objective(torch.zeros(5), seed=0)


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        (lambda run: 1.0, DTypeError, "cost of an objective: got float"),
        (lambda run: torch.zeros(4), ShapeError, "cost of an objective"),
        (lambda run: run.simulate(standard, n=3).log_prob, ShapeError, "Reduce particles"),
    ],
)
def test_costs_of_the_wrong_kind(body, error, words):
    with pytest.raises(error, match=words):
        Objective(body)(seed=0)


def test_weights_without_their_particles():
    def body(run):
        q = run.simulate(standard, n=3)
        return q.logmeanexp(q.log_prob.sum(0))

    with pytest.raises(ShapeError, match="log weights"):
        Objective(body)(seed=0)


def test_rows_need_an_argument_that_has_them():
    with pytest.raises(ShapeError, match="first argument of elbo"):
        elbo(standard, standard, batch_dims=1)(seed=0)
    with pytest.raises(ShapeError, match="first argument of elbo"):
        elbo(standard, standard, batch_dims=2)(torch.zeros(3), seed=0)


# Numbers


@pytest.mark.parametrize("n", [0, -1, 1.5])
def test_particles_are_counted_from_one(n):
    with pytest.raises(RangeError, match="particles n"):
        iwelbo(standard, standard, n)
    with pytest.raises(RangeError, match="particles n"):
        Objective(lambda run: run.simulate(standard, n=n).log_prob)(seed=0)


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": 1.5}, {"batch_dims": -1}])
def test_samples_and_rows_are_whole_numbers(options):
    with pytest.raises(RangeError, match=next(iter(options))):
        elbo(standard, standard, **options)


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(RangeError, match="seed"):
        elbo(standard, standard)(seed=seed)


def test_options_are_checked_by_name():
    with pytest.raises(UnknownNameError, match="engine"):
        Objective(lambda run: t(0.0), engine="fast")
    with pytest.raises(UnknownNameError, match="form"):
        elbo(standard, standard, form="exact")
    with pytest.raises(RangeError, match="alpha"):
        renyi(standard, standard, 2, 1.5)
    for strategy in (Enum, MVD):
        with pytest.raises(RangeError, match="limit"):
            strategy(limit=0)


# Strategies


@pytest.mark.parametrize(
    ("dist", "strategy", "words"),
    [
        (Poisson(t(2.0)), Enum(), r"site 'z': got Enum\(\) of Poisson; expected a finite support"),
        (Normal(t(0.0), t(1.0)), Enum(), "finite support"),
        (Categorical(torch.ones(20)), Enum(limit=10), "site 'z': got 20 values; expected at most 10"),
        (Independent(Bernoulli(torch.ones(13) / 2), 1), Enum(), "site 'z': got 8192 values"),
        (Bernoulli(t(0.3)), Reparam(), "site 'z'.*rsample"),
        (Bernoulli(t(0.3)), Implicit(), "site 'z'.*rsample"),
        (Normal(t(0.0), t(1.0)), Implicit(), r"site 'z': got Implicit\(\) of Normal"),
    ],
)
def test_strategies_that_cannot_serve_the_site(dist, strategy, words):
    with pytest.raises(UnsupportedError, match=words):
        once(guide_of(dist, strategy))


def test_joint_values_of_particles_have_a_limit():
    with pytest.raises(UnsupportedError, match=r"Enum\(\) at site 'b': got 2 values for each of 13 particles"):
        iwelbo(coin_model, coin_guide(Enum()), 13)(t(0.4, grad=True), seed=0)
    objective = Objective(iwelbo(coin_model, coin_guide(Enum()), 13).body, engine="replay")
    with pytest.raises(UnsupportedError, match=r"Enum\(\) at site 'b': got 2 values for each of 13 particles"):
        objective(t(0.4, grad=True), seed=0)


@pytest.mark.parametrize("strategy", ["enum", Enum, 3])
def test_a_strategy_that_is_none(strategy):
    with pytest.raises(DTypeError, match="strategy of site 'z'"):
        once(guide_of(Bernoulli(t(0.3)), strategy))


@pytest.mark.parametrize("baseline", [t(0.3, grad=True), "mean", nn.Linear(1, 1)])
def test_baselines_of_the_wrong_kind(baseline):
    with pytest.raises(DTypeError, match="baseline of Reinforce"):
        Reinforce(baseline)


def test_learned_takes_a_prediction_not_a_network():
    with pytest.raises(DTypeError, match="Learned"):
        Learned(nn.Linear(1, 1))


def test_a_learned_baseline_that_would_move_the_guide():
    """Its regression must not reach the parameters the objective is about."""
    net, shared = nn.Linear(1, 1), nn.Linear(1, 1)

    def program(h, x, detach):
        feature = shared(x)
        baseline = Learned(net(feature.detach() if detach else feature)[..., 0])
        return h.sample("b", Bernoulli(logits=feature[..., 0]), Reinforce(baseline)) * 2.0

    def objective(detach):
        return Objective(lambda run, x: run.simulate(program, x, detach).result, batch_dims=1)

    with pytest.raises(UnsupportedError, match=r"Learned\(\) at site 'b'.*[Dd]etach"):
        objective(False)(torch.randn(4, 1, generator=torch.Generator()), seed=0)
    assert math.isfinite(objective(True)(torch.zeros(4, 1), seed=0).value)


def test_leave_one_out_of_one():
    with pytest.raises(WayfieldError, match=r"LeaveOneOut\(\) at site 'b'"):
        elbo(coin_model, coin_guide(Reinforce(LeaveOneOut())))(t(0.4, grad=True), seed=0)
    with pytest.raises(WayfieldError, match="1 particle"):
        iwelbo(coin_model, coin_guide(Reinforce(LeaveOneOut())), 1)(t(0.4, grad=True), seed=0)


# Densities


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 0.0), (math.nan, 1.0)])
def test_parameters_that_torch_refuses_are_named_by_their_site(loc, scale):
    """torch's own error tells the distribution, and stays as the context."""
    with pytest.raises(NonFiniteError, match="log density of site 'z'") as error:
        elbo(standard, lambda h: h.sample("z", Normal(t(loc), t(scale))))(seed=0)
    assert "Expected parameter" in str(error.value.__context__)


@pytest.mark.parametrize("log_weight", [math.nan, math.inf, -math.inf])
def test_a_log_density_that_is_not_finite(log_weight):
    def model(h):
        standard(h)
        h.factor("hard", t(log_weight))

    for objective in (elbo(model, standard), iwelbo(model, standard, 3)):
        with pytest.raises(NonFiniteError, match="log density of site 'hard'"):
            objective(seed=0)


def test_a_value_without_density():
    def model(h):
        h.sample("z", Exponential(t(1.0)))

    with pytest.raises(WayfieldError, match="site 'z'"):
        elbo(model, guide_of(Normal(t(-5.0), t(0.1))))(seed=0)


def test_all_weights_zero_under_enumeration():
    """Single enumerated values may be impossible, all of them may not."""

    def model(h, l):
        b = h.sample("b", Bernoulli(t(0.5)))
        h.factor("hard", torch.where(b >= 0, -math.inf, 0.0))

    for n in (1, 2):
        with pytest.raises(NonFiniteError, match="value of iwelbo"):
            iwelbo(model, coin_guide(Enum()), n)(t(0.4, grad=True), seed=0)


@pytest.mark.parametrize("kind", ["observe", "factor"])
def test_a_guide_that_conditions_has_no_density(kind):
    def guide(h):
        z = h.sample("z", Normal(t(0.0), t(1.0)))
        if kind == "observe":
            h.observe("y", Normal(z, t(1.0)), t(0.0))
        else:
            h.factor("y", -z)

    for objective in (elbo(standard, guide), iwelbo(standard, guide, 2)):
        with pytest.raises(UnsupportedError, match="site 'y': got an observation or a factor"):
            objective(seed=0)


# Explaining


@pytest.mark.parametrize("coin", [Reinforce(), Reinforce(LeaveOneOut()), Reinforce(0.5), Enum(), MVD()], ids=repr)
@pytest.mark.parametrize("engine", ["auto", "vectorised", "replay"])
def test_everything_can_be_explained(coin, engine):
    for made in (elbo(mixed_model, mixed_guide(coin), 2), iwelbo(mixed_model, mixed_guide(coin), 2, 2)):
        told = Objective(made.body, made.samples, engine=engine, name=made.name).explain(
            *(t(v) for v in (0.3, 0, 1, 0.2))
        )
        assert made.name in told
        assert f"b: {coin!r} of Bernoulli" in told
        assert ("asked for" in told) == (engine != "auto")
