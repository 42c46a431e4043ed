"""The smooth rule: a jump of a reparameterised value is refused by name, however the value got there."""

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent, LogNormal, Normal, Uniform
from toys import t

from wayfield.core.errors import UnsupportedError
from wayfield.vi import MVD, Enum, Objective, Reinforce, Reparam, elbo

NET = nn.Sequential(nn.Linear(1, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 1)).double()
TABLE = torch.arange(6.0, dtype=torch.float64)


def run_once(use, strategy=None, samples=1):
    """A value drawn at site "x", (1,) events, and what the program does with it."""

    def program(h, m):
        x = h.sample("x", Independent(Normal(m[..., None], t(1.0)), 1), strategy)
        return torch.as_tensor(use(x), dtype=torch.float64).sum(-1) + 0 * m

    objective = Objective(lambda run, m: run.simulate(program, m).result, samples)
    return objective(t(0.3, grad=True), seed=0)


def set_entry(x):
    out = torch.zeros_like(x)
    out[..., 0] = x[..., 0]
    return torch.where(out > 0, 1.0, 2.0)


JUMPS = {
    "if": lambda x: x if x[..., 0].sum() > 0 else -x,
    "lt": lambda x: torch.where(x < 0, x, 2 * x),
    "method": lambda x: x.gt(0.5) * x,
    "equal": lambda x: (x == 0.1) * x,
    "after a net": lambda x: torch.where(NET(x) > 0, x, -x),
    "after an index": lambda x: torch.where(torch.cat([x, x])[1] > 0, x, -x),
    "after detach": lambda x: torch.where(x.detach() > 0, x, -x),
    "after clone, view, sum": lambda x: torch.where(x.clone().reshape(-1).sum() > 0, x, -x),
    "after a set item": set_entry,
    "under no_grad": lambda x: torch.where(torch.no_grad()(lambda: x > 0)(), x, -x),
    "as an index": lambda x: TABLE[x.abs().long().clamp(max=5)],
    "item": lambda x: x * x.sum().item(),
    "float": lambda x: x * float(x.sum()),
    "int": lambda x: x * int(x.sum()),
    "tolist": lambda x: x * x.tolist()[0],
    "numpy": lambda x: x * float(x.detach().numpy()[0]),
    "round": torch.round,
    "floor": lambda x: x // 1,
    "mod": lambda x: x % 1.0,
    "rounding division": lambda x: torch.div(x, 2.0, rounding_mode="floor"),
    "sign": torch.sign,
    "argmax": lambda x: torch.argmax(x, -1, keepdim=True).double(),
    "one of an order": lambda x: TABLE[torch.sort(x, -1).indices],
    "where of max": lambda x: TABLE[x.max(-1).indices],
    "allclose": lambda x: x if torch.allclose(x, -x) else -x,
    "bernoulli": lambda x: torch.bernoulli(torch.sigmoid(x)),
    "threshold": lambda x: nn.functional.threshold(x, 0.1, 20.0),
    "any": lambda x: x * x.any(),
}


@pytest.mark.parametrize("use", JUMPS.values(), ids=JUMPS)
def test_a_jump_of_a_reparameterised_value_is_refused(use):
    with pytest.raises(UnsupportedError, match=r"site 'x'.*smooth use only.*Reinforce"):
        run_once(use)


@pytest.mark.parametrize("strategy", [Reinforce(), MVD()], ids=repr)
@pytest.mark.parametrize("use", JUMPS.values(), ids=JUMPS)
def test_the_same_with_a_value_that_may_decide(use, strategy):
    assert torch.isfinite(run_once(use, strategy).value)


SMOOTH = {
    "arithmetic": lambda x: (x * x + 1).log() / 3,
    "net": NET,
    "clamp, relu, abs, max": lambda x: x.clamp(min=0) + x.relu() + x.abs() + x.max(-1, keepdim=True).values,
    "shape": lambda x: x.reshape(x.shape).expand(2, *x.shape).sum(0) * x.shape[0] * x.ndim * len(x),
    "zeros like, compared": lambda x: torch.where(torch.zeros_like(x) < 1, x, 2 * x),
    "new": lambda x: x.new_ones(3, dtype=torch.long).sum() * x,
    "checks": lambda x: torch.where(torch.isfinite(x), x, torch.zeros_like(x)),
    "sorted values": lambda x: torch.sort(x, -1).values,
    "softmax, dropout": lambda x: torch.softmax(x, -1) + nn.functional.dropout(x, 0.5),
}


@pytest.mark.parametrize("use", SMOOTH.values(), ids=SMOOTH)
def test_smooth_use_is_allowed(use):
    assert torch.isfinite(run_once(use).value)


@pytest.mark.parametrize("samples", [1, 3])
def test_densities_may_compare_supports_and_bounds(samples):
    """Uniform's bounds, LogNormal's support, Categorical's index and torch's own checks are no jumps of a program."""

    def guide(h, m):
        x = h.sample("x", Normal(m, t(0.1)), Reparam())
        h.sample("y", LogNormal(x, t(0.2)), Reparam())
        h.sample("k", Categorical(logits=torch.stack([x, -x, 2 * x], -1)), Reinforce())

    def model(h, m):
        h.sample("x", Uniform(t(-5.0), t(5.0)))
        y = h.sample("y", LogNormal(t(0.0), t(1.0)))
        k = h.sample("k", Categorical(t(0.2, 0.3, 0.5)))
        h.observe("o", Normal(y * TABLE[k], t(1.0)), t(0.3))

    assert torch.isfinite(elbo(model, guide, samples=samples)(t(0.3, grad=True), seed=0).value)


class Kinked(Normal):
    """A distribution of the user's own, which may compare in its density."""

    def log_prob(self, value):
        return torch.where(value > 0, super().log_prob(value), super().log_prob(value) + 0.1)


def test_so_may_the_user_s_own_distributions():
    def guide(h, m):
        h.sample("x", Normal(m, t(1.0)))

    def model(h, m):
        h.sample("x", Kinked(t(0.0), t(1.0)))

    assert torch.isfinite(elbo(model, guide)(t(0.3, grad=True), seed=0).value)


def test_a_discrete_value_drawn_given_a_smooth_one_may_decide():
    def program(h, m):
        x = h.sample("x", Normal(m, t(1.0)))
        b = h.sample("b", Bernoulli(torch.sigmoid(x)), Reinforce())
        return x * x if b == 1 else x

    assert torch.isfinite(Objective(lambda run, m: run.simulate(program, m).result)(t(0.3, grad=True), seed=0).value)


def test_the_error_names_every_site_that_took_part():
    def program(h, m):
        x = h.sample("x", Normal(m, t(1.0)))
        y = h.sample("y", Normal(x, t(1.0)), Reinforce())
        z = h.sample("z", Normal(y, t(1.0)))
        return torch.where(x + z > y, x, z)

    with pytest.raises(UnsupportedError, match=r"^site 'x', 'z': got gt"):
        Objective(lambda run, m: run.simulate(program, m).result)(t(0.3, grad=True), seed=0)


def test_the_strategy_alone_makes_the_program_legal():
    def program(h, m):
        return torch.where(h.sample("x", Normal(m, t(1.0))) > 0, 1.0, 2.0)

    objective = Objective(lambda run, m: run.simulate(program, m).result)
    with pytest.raises(UnsupportedError, match="site 'x'"):
        objective(t(0.3, grad=True), seed=0)
    assert torch.isfinite(objective.with_strategies({"x": MVD()})(t(0.3, grad=True), seed=0).value)


def test_enumerated_values_may_index_and_compare():
    def program(h, l):
        k = h.sample("k", Categorical(logits=l), Enum())
        return TABLE[k] * (k > 0)

    estimate = Objective(lambda run, l: run.simulate(program, l).result)(t(0.1, 0.2, 0.3, grad=True), seed=0)
    assert estimate.value.item() == pytest.approx((torch.softmax(t(0.1, 0.2, 0.3), 0) * t(0.0, 1.0, 2.0)).sum().item())
