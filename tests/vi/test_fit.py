"""Fitting: closed forms, the way to the bit after a kill, and every way in which a run can go wrong."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal

from wayfield.core.errors import (
    CheckpointError,
    DTypeError,
    NonFiniteError,
    RangeError,
    UnknownNameError,
    UnsupportedError,
)
from wayfield.vi.checkpoint import CHECKPOINT
from wayfield.vi.feed import minibatches, step_seed
from wayfield.vi.fit import EarlyStop, _Label, fit
from wayfield.vi.objective import Objective
from wayfield.vi.objectives import elbo
from wayfield.vi.strategy import Reinforce

X = torch.tensor(2.0, dtype=torch.float64)


def leaf(x):
    return torch.tensor(x, dtype=torch.float64, requires_grad=True)


def conjugate(samples=4, form="plain"):
    """z ~ N(0, 1), x | z ~ N(z, 1): posterior N(x / 2, 1 / 2), evidence N(x; 0, 2)."""
    m, s = leaf(0.0), leaf(0.0)

    def model(h, x):
        z = h.sample("z", Normal(torch.zeros((), dtype=torch.float64), 1.0))
        h.observe("x", Normal(z, 1.0), x)

    def guide(h, x):
        h.sample("z", Normal(m, s.exp()))

    return elbo(model, guide, samples=samples, form=form), {"m": m, "s": s}


def sgd(lr=0.1, **settings):
    return lambda trained: torch.optim.SGD(trained, lr=lr, **settings)


def run(steps, samples=4, **options):
    objective, parameters = conjugate(samples)
    done = fit(objective, parameters, options.pop("data", X), steps=steps, progress=False, **options)
    return done, [p.detach().clone() for p in parameters.values()]


def same(a, b):
    return torch.equal(a[0].values, b[0].values) and all(map(torch.equal, a[1], b[1]))


class Langevin(torch.optim.Optimizer):
    """Stochastic gradient Langevin dynamics: an optimiser that draws."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01})

    def step(self, closure):
        loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * p.grad + math.sqrt(2 * group["lr"]) * torch.empty_like(p).normal_()
        return loss


OPTIMIZERS = {
    "adam": None,
    "momentum": sgd(0.05, momentum=0.9),
    "rmsprop": lambda trained: torch.optim.RMSprop(trained, lr=0.01, centered=True),
    "lbfgs": lambda trained: torch.optim.LBFGS(trained, lr=0.1, max_iter=3),
    "langevin": Langevin,
}


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_the_posterior_is_found(name):
    """Sticking the landing has no noise at the exact posterior, so that the fit ends there to the digit."""
    objective, parameters = conjugate(form="landing")
    chosen = {
        "adam": lambda trained: torch.optim.Adam(trained, lr=0.2),
        "lbfgs": lambda trained: torch.optim.LBFGS(trained, lr=0.3, max_iter=5),
    }[name]
    steps, decay = {"adam": (250, 0.975), "lbfgs": (40, 1.0)}[name]
    done = fit(objective, parameters, (X,), steps=steps, optimizer=chosen, schedule=lambda k: decay**k, progress=False)
    assert parameters["m"].item() == pytest.approx(1.0, abs=1e-4)
    assert parameters["s"].item() == pytest.approx(math.log(0.5) / 2, abs=1e-4)
    evidence = Normal(0.0, math.sqrt(2)).log_prob(X.float()).item()
    assert done.bound(5) == pytest.approx(evidence, abs=1e-5)
    assert (done.steps, done.kept, done.stopped) == (steps, steps, "steps")


def test_a_step_is_what_it_says():
    """Ascent along the gradient of the seed of step k, clipped, its rate times the schedule; other sums of the same
    numbers differ by rounding only.
    """
    _, found = run(3, optimizer=sgd(0.1), clip=0.5, schedule=lambda k: 1 / (k + 1), seed=7)
    objective, parameters = conjugate()
    m, s = parameters.values()
    values = []
    for k in range(3):
        estimate = objective(X, seed=step_seed(7, k))
        g = torch.stack(torch.autograd.grad(estimate.surrogate, (m, s)))
        g = g * min(1.0, 0.5 / float(g.norm()))
        values.append(float(estimate.value))
        with torch.no_grad():
            for p, d in zip((m, s), g, strict=True):
                p += 0.1 / (k + 1) * d
    torch.testing.assert_close(torch.stack(found), torch.stack([m, s]).detach(), rtol=1e-5, atol=1e-9)
    done, _ = run(3, optimizer=sgd(0.1), clip=0.5, schedule=lambda k: 1 / (k + 1), seed=7)
    assert done.values.tolist() == pytest.approx(values, rel=1e-5)


def test_nothing_but_the_seed_is_random():
    state = torch.default_generator.get_state()
    first = run(5)
    assert torch.equal(state, torch.default_generator.get_state())
    torch.empty(3).normal_()
    assert same(first, run(5))
    assert not same(first, run(5, seed=1))
    assert same(first, run(5, check_every=3))  # how often the device is read changes nothing


class KilledError(Exception):
    pass


def killed_at(step, data):
    def feed(k, seed):
        if k == step:
            raise KilledError
        return data(k, seed)

    return feed


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_killed_run_goes_on_to_the_bit(name, tmp_path):
    options = {} if OPTIMIZERS[name] is None else {"optimizer": OPTIMIZERS[name]}
    options |= {"early_stop": EarlyStop(patience=100, smooth=3), "schedule": lambda k: 1 / (1 + k)}
    rows = minibatches(torch.linspace(-1, 3, 9, dtype=torch.float64), batch=1)

    def data(step, seed):
        return (rows(step, seed)[0][0],)

    whole = run(12, data=data, **options)
    with pytest.raises(KilledError):
        run(12, data=killed_at(8, data), folder=tmp_path, save_every=5, **options)
    seen = []

    def watched(step, seed):
        seen.append(step)
        return data(step, seed)

    again = run(12, data=watched, folder=tmp_path, save_every=5, **options)
    assert min(k for k in seen if k) == 5  # step 0 alone is read before, to know the data
    assert same(whole, again)
    assert whole[0].kept == again[0].kept
    assert [f.name for f in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_run_is_prolonged_and_a_finished_one_stays(tmp_path):
    run(4, folder=tmp_path)
    longer = run(9, folder=tmp_path)
    assert same(longer, run(9))
    after = run(9, folder=tmp_path)
    assert same(longer, after)
    assert same(longer, run(9, folder=tmp_path, resume=False))


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(tmp_path):
    (tmp_path / "file").write_text("")
    objective, parameters = conjugate()
    with pytest.raises(OSError, match="file"):
        fit(objective, parameters, X, steps=3, folder=tmp_path / "file", progress=False)
    assert parameters["m"].item() == 0


def test_another_run_is_refused_by_name(tmp_path):
    run(2, folder=tmp_path)
    for options, what in (
        ({"optimizer": sgd()}, "optimizer"),
        ({"seed": 1}, "seed"),
        ({"clip": 1.0}, "clip"),
        ({"samples": 5}, "objective"),
        ({"data": X + 1}, "data"),
    ):
        with pytest.raises(CheckpointError, match=f"of another run: got {what}"):
            run(3, folder=tmp_path, **options)
    run(3, folder=tmp_path, optimizer=sgd(), resume=False)
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="unreadable"):
        run(3, folder=tmp_path)


def test_running_means_of_a_network_are_kept(tmp_path):
    """Buffers go into the checkpoint, and the run of the checks does not move them."""
    rows = minibatches(torch.linspace(-1, 1, 24).reshape(12, 2), batch=4)

    def learn(steps, **options):
        net = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(0.5)

        def program(h, x):
            return -h.sample("z", Normal(net(x)[:, 0], 1.0)).square()

        objective = Objective(lambda r, x: r.simulate(program, x).result, batch_dims=1)
        fit(objective, net, options.pop("data", rows), steps=steps, progress=False, **options)
        return net.state_dict()

    whole = learn(8)
    with pytest.raises(KilledError):
        learn(8, data=killed_at(6, rows), folder=tmp_path, save_every=4)
    again = learn(8, folder=tmp_path, save_every=4)
    assert all(torch.equal(v, again[k]) for k, v in whole.items())
    assert whole["1.num_batches_tracked"] == 8


def test_early_stop_keeps_the_best_or_the_last():
    """With a rate that is far too large the bound falls; the best block is found by hand from the values."""
    rule = EarlyStop(patience=12, smooth=4)
    options = {"optimizer": sgd(0.9), "schedule": lambda k: 0.1 if k < 20 else 2.2}
    done, best = run(200, early_stop=rule, **options)
    assert done.stopped == "patience"
    assert done.steps < 200
    blocks = done.values.reshape(-1, 4).mean(1)
    at = 4 * (int(blocks.argmax()) + 1)
    assert (done.kept, done.steps) == (at, at + 12)
    assert torch.equal(torch.stack(best), torch.stack(run(at, **options)[1]))
    last = EarlyStop(patience=12, smooth=4, keep="last")
    done, kept = run(200, early_stop=last, **options)
    assert done.kept == done.steps == at + 12
    assert torch.equal(torch.stack(kept), torch.stack(run(at + 12, **options)[1]))


def test_a_run_that_was_stopped_stays_stopped(tmp_path):
    options = {"optimizer": sgd(0.9), "schedule": lambda k: 2.2, "early_stop": EarlyStop(8, 4), "folder": tmp_path}
    first = run(100, **options)
    assert first[0].stopped == "patience"
    again = run(100, **options)
    assert again[0].stopped == "patience"
    assert again[0].kept == first[0].kept
    assert same(first, again)


def test_a_rise_below_least_does_not_count():
    options = {"optimizer": sgd(1e-6), "data": X}
    assert run(40, early_stop=EarlyStop(8, 4, least=100.0), **options)[0].steps == 12
    with pytest.raises(RangeError, match="patience"):
        EarlyStop(patience=5, smooth=10)
    with pytest.raises(RangeError, match="least"):
        EarlyStop(least=-1.0)
    with pytest.raises(UnknownNameError, match="keep"):
        EarlyStop(keep="beast")


def breaking(at):
    """The scale of the guide is zero in step `at`: its log density is infinite there."""
    m, s = leaf(0.0), leaf(0.0)

    def model(h, scale):
        h.sample("z", Normal(torch.zeros((), dtype=torch.float64), 1.0))

    def guide(h, scale):
        h.sample("z", Normal(m, s.exp() * scale))

    def data(step, seed):
        return (torch.tensor(0.0 if step == at else 1.0, dtype=torch.float64),)

    return elbo(model, guide), [m, s], data


@pytest.mark.parametrize("every", [1, 4, 50])
@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_a_broken_step_is_named_and_undone(every, name):
    """The parameters are those of a run that ends before the step, whenever the device is read."""
    options = {} if OPTIMIZERS[name] is None else {"optimizer": OPTIMIZERS[name]}
    objective, want, data = breaking(99)
    fit(objective, want, data, steps=6, progress=False, **options)
    objective, found, data = breaking(6)
    with pytest.raises(NonFiniteError, match=r"bound at step 6, log density of site 'z'") as error:
        fit(objective, found, data, steps=20, check_every=every, progress=False, **options)
    assert f"seed={step_seed(0, 6)}" in str(error.value)
    assert all(map(torch.equal, want, found))


def test_a_gradient_that_breaks_names_its_parameter():
    a, b = leaf(1.0), leaf(0.0)
    objective = Objective(lambda run: a + b.abs().sqrt())
    with pytest.raises(NonFiniteError, match=r"gradient at step 0: .* not finite for \['b'\]"):
        fit(objective, {"a": a, "b": b}, steps=3, progress=False)
    assert (a.item(), b.item()) == (1.0, 0.0)


def test_an_optimiser_that_breaks_in_the_middle_of_a_step_is_undone_too():
    """LBFGS evaluates after it has moved: here it crosses 0.5, where the objective ends, within step 0."""
    m = leaf(0.0)
    objective = Objective(lambda run: -(m - 1).square() + 0 * (0.5 - m).sqrt())
    lbfgs = lambda trained: torch.optim.LBFGS(trained, lr=0.2, max_iter=9)  # noqa: E731
    with pytest.raises(NonFiniteError, match="bound at step 0"):
        fit(objective, m, steps=5, optimizer=lbfgs, progress=False)
    assert m.item() == 0.0


def test_an_optimiser_that_breaks_is_told_from_a_program():
    """An infinite rate; the sampler of Bernoulli then raises of its own."""
    l = leaf(0.3)

    def program(h):
        return h.sample("b", Bernoulli(logits=l), Reinforce()) + l

    objective = Objective(lambda run: run.simulate(program).result)
    for every in (1, 3):
        with torch.no_grad():
            l.fill_(0.3)
        with pytest.raises(NonFiniteError, match=r"parameters at step 5: got parameters \['0'\] not finite"):
            fit(
                objective, l, steps=9, optimizer=sgd(0.1), check_every=every, progress=False,
                schedule=lambda k: math.nan if k == 4 else 1.0,
            )  # fmt: skip


def test_a_parameter_without_gradient_is_named():
    a, idle, net = leaf(1.0), leaf([1.0, 2.0]), nn.Linear(3, 1)
    objective = Objective(lambda run: -a.square(), name="mine")
    with pytest.raises(UnsupportedError, match=r"parameters of mine: got no gradient for idle \(2,\), net\.weight"):
        fit(objective, {"a": a, "idle": idle, "net": net}, steps=2, progress=False)
    assert a.item() == 1
    fit(objective, {"a": a, "idle": idle}, steps=2, progress=False, allow_unused=True, optimizer=sgd())
    assert a.item() == pytest.approx(0.8**2)
    for unused in (True, False):
        with pytest.raises(UnsupportedError, match="no gradient for idle"):
            fit(objective, {"idle": idle}, steps=2, progress=False, allow_unused=unused)
        with pytest.raises(UnsupportedError, match="no gradient for 0"):
            fit(Objective(lambda run: torch.ones(())), idle, steps=2, progress=False, allow_unused=unused)


def test_only_what_is_trained_gets_a_gradient():
    objective, parameters = conjugate()
    fit(objective, parameters["m"], X, steps=2, progress=False)
    assert parameters["s"].grad is None
    assert parameters["s"].item() == 0


def test_the_program_is_checked_before_the_first_step():
    m = leaf(0.5)

    def jumps(h):
        z = h.sample("z", Normal(m, 1.0))
        return torch.where(z > 0, z, -z)

    with pytest.raises(UnsupportedError, match="site 'z'"):
        fit(Objective(lambda run: run.simulate(jumps).result), m, steps=2, progress=False)
    assert m.item() == 0.5


def test_wrong_options_are_refused():
    for options, what in (
        ({"steps": 0}, "steps"),
        ({"steps": 1, "save_every": 0}, "save_every"),
        ({"steps": 1, "check_every": 0}, "check_every"),
        ({"steps": 1, "clip": 0.0}, "clip"),
        ({"steps": 1, "seed": -1}, "seed"),
    ):
        with pytest.raises(RangeError, match=what):
            run(**options)
    objective, parameters = conjugate()
    with pytest.raises(DTypeError, match="steps"):
        run(1.5)
    with pytest.raises(DTypeError, match="an Objective"):
        fit(lambda: None, parameters, steps=1)
    with pytest.raises(DTypeError, match="optimizer: got SGD itself"):
        fit(objective, parameters, X, steps=1, optimizer=torch.optim.SGD(parameters.values(), lr=1.0))
    with pytest.raises(DTypeError, match="optimizer: got list"):
        fit(objective, parameters, X, steps=1, optimizer=lambda trained: trained)
    with pytest.raises(UnsupportedError, match="maximize"):
        fit(objective, parameters, X, steps=1, optimizer=sgd(maximize=True))


def test_the_bar_shows_the_bound(capsys):
    objective, parameters = conjugate()
    fit(objective, parameters, X, steps=3)
    label = _Label("fitting")
    label.text = "fitting, bound -2.3"
    progress = pytest.importorskip("rich.progress")
    bar = progress.Progress()
    bar.add_task(label)
    assert progress.TextColumn("{task.description}").render(bar.tasks[0]).plain == "fitting, bound -2.3"


def branching():
    l = leaf(0.3)

    def program(h):
        b = h.sample("b", Bernoulli(logits=l), Reinforce())
        return b if b > 0 else l * 0 - b

    return Objective(lambda run: run.simulate(program).result, samples=2), l


def test_programs_that_decide_in_python_are_fitted_but_not_compiled():
    objective, l = branching()
    fit(objective, l, steps=20, optimizer=sgd(0.5), progress=False)
    assert l.item() > 0.3
    with pytest.raises(UnsupportedError, match="compile: got the replay engine"):
        fit(objective, l, steps=2, compile=True, progress=False)


def test_one_graph_is_compiled():
    """The same numbers as without, up to the order of sums, from one graph for all steps."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    plain = run(4, optimizer=sgd())
    found = run(4, optimizer=sgd(), compile=lambda f: torch.compile(f, backend=counter, fullgraph=True))
    torch.testing.assert_close(found[0].values, plain[0].values, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.stack(found[1]), torch.stack(plain[1]), rtol=1e-12, atol=0)
    assert counter.frame_count == 1
