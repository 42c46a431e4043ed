"""An energy's push against exact tilted densities, its two Jacobians against each other, and its cost."""

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import DTypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from wayfield.core.exact import gaussian
from wayfield.core.path import VP, Straight
from wayfield.field.ask import Ask
from wayfield.field.batching import Batching
from wayfield.field.binding import COND, NULL, Binding, Query
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Guidance
from wayfield.guide.energy import Energy
from wayfield.guide.gates import Steps
from wayfield.guide.roles import Gate
from wayfield.sampling import sample
from wayfield.solve import DPM2M, Heun

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 1, 0, 1])
TARGET = torch.tensor([0.4, -0.2, 0.7], dtype=torch.float64)
GRID = G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)


def pull_to_target(x0):
    """|x0 - y|^2 / 2, whose gradient is x0 - y."""
    return 0.5 * (x0 - TARGET.to(x0)).square().sum(1)


def wavy(x0):
    return (x0.sin() * x0.roll(1, 1)).sum(1)


def push(den, x, t, energy, cond=None):
    """One push at points x and times t, outside of any run."""
    binding = Binding({"main": den}, {"cond": cond}, len(x), CPU, Batching())
    ask = Ask(binding, x, {"main": den.level(torch.as_tensor(t, dtype=torch.float64), dtype=x.dtype)})
    with torch.no_grad():
        out, _ = energy.push(ask, None, ())
    return out, ask


def isotropic(path, std=0.7):
    mean = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
    return mean, Denoiser(gaussian(path, mean, torch.tensor(std**2, dtype=torch.float64)), path, "x0", shape=(3,))


@pytest.mark.parametrize("t", [0.9, 0.5, 0.1, [0.9, 0.5, 0.3, 0.1]])
def test_quadratic_energy_on_gaussian_data_by_hand(path, randn64, t):
    """x0 = m + g (x - a m) with g = a v / (a^2 v + s^2), so the push is -scale (s^2/a) g (x0 - y)."""
    mean, den = isotropic(path)
    x, v = 2 * randn64(4, 3), 0.49
    got, _ = push(den, x, t, Energy(pull_to_target, 0.3))
    a, s = (c[..., None] for c in path.scales(torch.as_tensor(t, dtype=torch.float64))[:2])
    gain = a * v / (a**2 * v + s**2)
    x0 = mean + gain * (x - a * mean)
    torch.testing.assert_close(got, -0.3 * s**2 / a * gain * (x0 - TARGET), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("energy", [pull_to_target, wavy], ids=["quadratic", "wavy"])
def test_both_jacobians_agree_on_gaussian_data(path, randn64, energy):
    _, den = isotropic(path)
    x = 2 * randn64(4, 3)
    through, _ = push(den, x, 0.4, Energy(energy, 0.7))
    closed, _ = push(den, x, 0.4, Energy(energy, 0.7, "gaussian", std=0.7))
    torch.testing.assert_close(closed, through, rtol=1e-10, atol=1e-10)


def test_weak_energy_is_the_tilted_gaussian_to_first_order(randn64):
    """exp(-k |x0 - y|^2 / 2) N(m, v) is Gaussian with precision 1/v + k: its denoiser's derivative in k at 0, plus the
    part of E's mean that a point estimate misses, none for a quadratic, is the push at scale 1.
    """
    path, v, x = VP(), 0.49, 2 * randn64(4, 3)
    mean, den = isotropic(path)

    def tilted(k):
        w = 1 / (1 / v + k)
        return Denoiser(gaussian(path, w * (mean / v + k * TARGET), torch.tensor(w, dtype=torch.float64)), path, "x0")

    k = 1e-5
    slope = (tilted(k)(x, 0.4).x0 - tilted(-k)(x, 0.4).x0) / (2 * k)
    got, _ = push(den, x, 0.4, Energy(pull_to_target))
    torch.testing.assert_close(got, slope, rtol=1e-8, atol=1e-8)


def test_network_jacobian_is_the_posterior_covariance(mixture, randn64):
    """A linear energy b.x0 pushes by -Cov[x0 | x] b, whose entries come from sampling-free second moments."""
    path, x, b = VP(), randn64(5, 3), TARGET
    den = mixture(path, d=3)
    got, _ = push(den, x, 0.3, Energy(lambda x0: x0 @ b), {"label": LABELS})
    a, s = path.scales(torch.tensor(0.3, dtype=torch.float64))[:2]
    net = den.net
    S = a**2 * 0.09 + s**2
    r = x[:, None] - a * net.means
    log_q = net.weights.log() - 0.5 * r.square().sum(2) / S
    q = log_q.masked_fill(net.labels != LABELS[:, None], -torch.inf).softmax(1)
    each = net.means + a * 0.09 / S * r
    gap = each - (q[..., None] * each).sum(1, keepdim=True)
    cov = torch.einsum("bk,bki,bkj->bij", q, gap, gap) + 0.09 * s**2 / S * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(got, -cov @ b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("jacobian", "calls"), [("network", 2), ("gaussian", 1)])
def test_the_conditional_row_is_shared_with_cfg(mixture, jacobian, calls):
    term = CFG(3.0) + Energy(wavy, 0.1, jacobian)
    out = run(mixture, term)
    assert (out.counts.calls, out.counts.rows) == (6 * calls, 6 * 10)


def run(mixture, guidance, labels=LABELS, samples=5, **options):
    options = {"dtype": torch.float64, "solver": DPM2M(), **options}
    return sample(
        mixture(VP(), d=3), GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options
    )


@pytest.mark.parametrize("jacobian", ["network", "gaussian"])
@pytest.mark.parametrize("solver", [DPM2M(), Heun()], ids=str)
def test_sample_k_does_not_depend_on_its_batch(mixture, jacobian, solver):
    term = CFG(2.0) + Energy(wavy, 0.2, jacobian)
    whole, alone = run(mixture, term, solver=solver).x, run(mixture, term, LABELS[3:4], [3], solver=solver).x
    torch.testing.assert_close(alone[0], whole[3], rtol=1e-11, atol=1e-11)


def test_neutral_is_plain_and_free(mixture):
    out, plain = run(mixture, Energy(wavy, 0.0)), run(mixture, None)
    assert torch.equal(out.x, plain.x)
    assert out.counts.rows == plain.counts.rows


class Half(Gate):
    """Closes the last two of five rows at once."""

    masked = True

    def open(self, step, state):
        return torch.tensor([True, True, True, False, False])


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
def test_gradient_rows_shrink_and_values_do_not_depend_on_the_row_mode(mixture, rows):
    """Open rows are those of the whole energy, closed ones plain; "gaussian" is checked beside."""
    for jacobian in ("network", "gaussian"):
        energy = Energy(wavy, 0.2, jacobian)
        out = run(mixture, Guidance(energy.when(Half()), rows=rows))
        whole, plain = run(mixture, energy).x, run(mixture, None).x
        torch.testing.assert_close(out.x, torch.cat([whole[:3], plain[3:]]), rtol=1e-11, atol=1e-11)
        assert out.counts.rows == 6 * 5


def test_a_scale_for_each_sample(mixture):
    """Also where only some rows are pushed."""
    scales = (0.1, 0.0, 0.3, 0.2, 0.1)
    got = run(mixture, Energy(wavy, scales).when(Half())).x
    for k in (0, 1, 2):
        want = run(mixture, Energy(wavy, scales[k])).x[k]
        torch.testing.assert_close(got[k], want, rtol=1e-11, atol=1e-11)


def test_no_signal_no_push_through_the_network(mixture, randn64):
    """At t = 1 of the straight path alpha = 0; 1/alpha must not turn a zero gradient into NaN."""
    _, den = isotropic(Straight())
    x = randn64(4, 3)
    got, _ = push(den, x, 1.0, Energy(pull_to_target))
    assert torch.equal(got, torch.zeros_like(x))
    closed, ask = push(den, x, 1.0, Energy(pull_to_target, jacobian="gaussian", std=0.7))
    torch.testing.assert_close(closed, -0.49 * (ask(COND)[0].x0 - TARGET), rtol=1e-12, atol=1e-12)


def test_of_another_condition(mixture, randn64):
    """The unconditional prediction judged: its row is asked, and no other."""
    den, x = mixture(VP(), d=3), randn64(5, 3)
    got, ask = push(den, x, 0.3, Energy(wavy, of="null"), {"label": LABELS})
    want, _ = push(den, x, 0.3, Energy(wavy, of=COND))
    assert ask.evaluated == 5
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("jacobian", ["network", "gaussian"])
def test_a_run_can_be_differentiated_through_it(mixture, randn64, jacobian):
    """d/dx of the final points against central differences: the push depends on x too."""
    den, start, way = mixture(VP(), d=3), 20 * randn64(2, 3), randn64(2, 3, seed=1)
    options = {"samples": 2, "cond": {"label": LABELS[:2]}, "guidance": Energy(wavy, 0.2, jacobian)}

    def end(x):
        return sample(den, GRID, x=x, dtype=torch.float64, grad=True, **options).x.square().sum()

    x = start.clone().requires_grad_()
    (grad,) = torch.autograd.grad(end(x), x)
    want = (end(start + 1e-5 * way) - end(start - 1e-5 * way)).detach() / 2e-5
    torch.testing.assert_close((grad * way).sum(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("jacobian", ["network", "gaussian"])
def test_energies_of_the_wrong_shape_or_without_gradient(mixture, jacobian):
    with pytest.raises(ShapeError, match="all axes but the first"):
        run(mixture, Energy(lambda x0: x0.square().sum(), 0.1, jacobian))
    with pytest.raises(ShapeError, match="one for each sample"):
        run(mixture, Energy(lambda x0: 1.0, 0.1, jacobian))
    with pytest.raises(UnsupportedError, match="without a gradient"):
        run(mixture, Energy(lambda x0: x0.detach().sum(1), 0.1, jacobian))


def test_bad_fields():
    with pytest.raises(DTypeError, match="a function"):
        Energy(3.0)
    with pytest.raises(RangeError, match="scale of an energy"):
        Energy(wavy, float("nan"))
    with pytest.raises(UnknownNameError, match="Did you mean 'network'"):
        Energy(wavy, jacobian="net")
    for std in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(RangeError, match="std of an energy"):
            Energy(wavy, jacobian="gaussian", std=std)


def test_what_it_prints_and_needs():
    """No addresses in the text: a saved run is recognised by it in another process."""
    assert repr(Energy(wavy, 0.5)) == (
        "Energy(wavy, scale=0.5, jacobian='network', std=1.0, of=Query(cond='cond', net='main', grad=False))"
    )
    assert Energy(wavy).needs == (COND._replace(grad=True),)
    assert Energy(wavy, jacobian="gaussian", of=NULL).needs == (NULL,)
    assert Energy(wavy, of=Query("cond", "weak")).needs == (Query("cond", "weak", grad=True),)


def test_through_a_gate_that_is_closed_nothing_is_asked(mixture):
    counts = run(mixture, Energy(wavy, 0.1, of=NULL).when(Steps((True, True, False, False, False, False)))).counts
    assert counts.rows == 6 * 5 + 2 * 5
