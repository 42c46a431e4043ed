"""Expressions: what they build, what they refuse, and how masks, weights and comparisons act on pushes and state."""

from dataclasses import dataclass

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import DTypeError, RangeError, UnknownNameError, UnsupportedError
from wayfield.core.path import VP
from wayfield.field.binding import COND, NULL, Query
from wayfield.guide import CFG, Auto, Away, Guidance
from wayfield.guide.gates import Interval, Steps
from wayfield.guide.nodes import Scale, Sum, Through, Versus, When
from wayfield.guide.roles import Gate, Shaper, Source
from wayfield.guide.terms import Direction
from wayfield.sampling import sample
from wayfield.solve import DDIM, Adaptive, Heun

GRID = G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1])


@dataclass(frozen=True)
class Count(Gate):
    """Sample k is open for its first `first + k` steps; remembers how often it was asked."""

    first: int = 1
    remembers = masked = latching = True

    def init(self, x, n):
        return (torch.zeros(len(x), dtype=x.dtype), self.first + torch.arange(len(x), dtype=x.dtype))

    def open(self, step, state):
        return state[0] < state[1]

    def update(self, ask, step, state):
        return state[0] + 1, state[1]


@dataclass(frozen=True)
class Double(Shaper):
    """Adds what it remembers of earlier pushes."""

    remembers = True

    def init(self, x, n):
        return (torch.zeros_like(x),)

    def shape(self, ask, push, step, state):
        return push + state[0], (state[0] + push,)


@dataclass(frozen=True)
class Answer(Source):
    """Answers NULL by the condition's answer."""

    @property
    def query(self):
        return NULL

    def open(self, step, state):
        return True

    def answer(self, ask, step, state, row):
        return ask(COND)[0]


def run(mixture, guidance, samples=5, labels=LABELS, **options):
    options = {"dtype": torch.float64, "solver": DDIM(), **options}
    den = mixture(VP(), d=3)
    nets = {"weak": mixture(VP(), d=3)}
    return sample(den, GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, nets=nets, **options)


def close(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def test_expressions_build_their_nodes():
    a, b, gate, shaper = CFG(4), Auto(2), Interval(high=2.0), Double()
    assert a + b + a == Sum((a, b, a))
    assert a - b == Sum((a, Scale(-1.0, b)))
    assert 3 * a == a * 3 == Scale(3, a)
    assert a.through(shaper).when(gate) == When(Through(a, shaper), gate)
    assert a.versus("base", 1.6) == Versus(a, "base", 1.6)
    assert eval(repr((3 * Away(NULL).through(shaper)).when(gate))) == When(Scale(3, Through(Away(NULL), shaper)), gate)
    assert Away("negative", of=Query("cond", "weak")) == Away(Query("negative"), Query("cond", "weak"))


@pytest.mark.parametrize(
    "make", [lambda: CFG(2) + 1, lambda: CFG(2).when(Double()), lambda: CFG(2).through(Interval())]
)
def test_only_terms_gates_and_shapers_combine(make):
    with pytest.raises((DTypeError, TypeError)):
        make()


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), "2", True, (1.0, float("nan"))])
def test_bad_factors(factor):
    with pytest.raises(RangeError):
        Scale(factor, CFG(2))
    with pytest.raises(RangeError):
        CFG(factor)


def test_linear_terms_add_up(mixture):
    """CFG(4) = 3 Away = Away + 2 Away = CFG(2) + CFG(3) = 5 Away - CFG(3)."""
    want = run(mixture, CFG(4)).x
    for same in (3 * Away(NULL), Away(NULL) + 2 * Away(NULL), CFG(2) + CFG(3), 5 * Away(NULL) - CFG(3)):
        close(run(mixture, same).x, want, 1e-9)
        assert run(mixture, same).counts == run(mixture, CFG(4)).counts


def test_each_sample_its_own_scale(mixture):
    w = (1.0, 2.0, 0.0, 5.0, 3.0)
    whole = run(mixture, CFG(w)).x
    scaled = run(mixture, tuple(v - 1 for v in w) * Away(NULL)).x
    for k, v in enumerate(w):
        alone = run(mixture, CFG(v), [k], LABELS[k : k + 1]).x[0]
        close(whole[k], alone, 1e-9)
        close(scaled[k], alone, 1e-9)


def test_a_neutral_term_asks_nothing(mixture):
    for term in (
        CFG(1),
        0 * CFG(3),
        CFG(1) + Auto(1),
        CFG(1).when(Count()),
        CFG(1).through(Double()),
        CFG(1).versus("weak", 1),
    ):
        result = run(mixture, term)
        assert torch.equal(result.x, run(mixture, None).x)
        assert (result.counts.calls, result.counts.rows) == (6, 30)
        assert Guidance(term).branches == 1


@pytest.mark.parametrize("solver", [DDIM(), Heun()], ids=str)
@pytest.mark.parametrize("mode", ["exact", "late", "fixed"])
def test_a_closed_row_stands_still(mixture, mode, solver):
    """Count opens sample k for 1 + k steps: the same as k single runs gated by steps, whatever is evaluated."""
    term = (2 * Away(NULL).through(Double())).when(Count())
    got = run(mixture, Guidance(term, rows=mode), solver=solver)
    for k in range(5):
        steps = Steps(tuple(i < 1 + k for i in range(6)))
        alone = run(mixture, (2 * Away(NULL).through(Double())).when(steps), [k], LABELS[k : k + 1], solver=solver)
        close(got.x[k], alone.x[0], 1e-9)
    parts = {type(part): state for part, state in Guidance(term).remembered(got.state)}
    assert parts[Count][0].tolist() == [1, 2, 3, 4, 5]  # how often each was open
    assert set(parts) == {Away, Double, Count}
    # open 1 + 2 + ... + 5 rows; "late" adds one step of each; Heun asks twice but in the last step
    want = (
        {"exact": 30 + 15, "late": 30 + 20, "fixed": 60}
        if solver == DDIM()
        else {"exact": 85, "late": 94, "fixed": 110}
    )
    assert got.counts.rows == want[mode]


def test_gates_commute(mixture):
    """A gate outside of a closed gate neither asks nor learns."""
    inside, outside = Interval(low=-2.0), Count()
    a, b = run(mixture, CFG(3).when(inside).when(outside)), run(mixture, CFG(3).when(outside).when(inside))
    close(a.x, b.x)
    assert a.counts == b.counts


def test_weights_multiply(mixture):
    close(run(mixture, CFG(5).when(Steps((0.5,) * 6))).x, run(mixture, CFG(3)).x, 1e-9)
    off = run(mixture, CFG(5).when(Steps((0.0,) * 6)))
    assert torch.equal(off.x, run(mixture, None).x)
    assert off.counts == (6, 30, 30)


def test_versus_an_equal_network_changes_nothing(mixture):
    result = run(mixture, CFG(3).versus("weak", 2.5))
    close(result.x, run(mixture, CFG(3)).x, 1e-9)
    assert (result.counts.calls, result.counts.rows) == (12, 120)
    assert Guidance(CFG(3).versus("weak", 2.5)).branches == 4


def test_a_part_used_twice_remembers_twice(mixture):
    part = Away(NULL).through(Double())
    close(run(mixture, part + part).x, run(mixture, 2 * part).x, 1e-9)


def test_sources_answer_instead_of_the_network(mixture):
    result = run(mixture, Guidance(CFG(3), sources=(Answer(),)))
    assert torch.equal(result.x, run(mixture, None).x)
    assert result.counts == (6, 30, 30)


class TestGuidance:
    def test_noise_of_another_query(self, mixture, randn64):
        """CFG++: x_s = alpha_s x0(guided) + sigma_s eps(unconditional)."""
        den, x, grid = mixture(VP(), d=3), randn64(4, 3), G.given(VP(), (0.7, 0.4))
        guidance = Guidance(CFG(0.6), noise=NULL)
        label = {"label": torch.tensor([0, 1, 0, 1])}
        got = sample(den, grid, x=x, samples=4, cond=label, guidance=guidance, dtype=torch.float64)
        c, u = den(x, 0.7, label), den(x, 0.7)
        (_, a), (_, s) = grid.scales[:2]
        close(got.x, a * (u.x0 + 0.6 * (c.x0 - u.x0)) + s * u.eps)
        assert got.counts == (1, 8, 0)

    def test_base_null_is_composition(self, mixture):
        close(run(mixture, Guidance(4 * Away(NULL), base=NULL)).x, run(mixture, CFG(4)).x, 1e-9)

    def test_contradictions_are_refused(self):
        with pytest.raises(UnsupportedError, match="one source"):
            Guidance(CFG(3), sources=(Answer(), Answer()))
        with pytest.raises(UnsupportedError, match="nobody asks"):
            Guidance(CFG(1), sources=(Answer(),))
        with pytest.raises(UnknownNameError, match="late"):
            Guidance(CFG(3), rows="lat")  # type: ignore[arg-type]
        with pytest.raises(RangeError, match="clip"):
            Guidance(clip=(1.0, -1.0))
        with pytest.raises(DTypeError):
            Guidance(Guidance(CFG(3)))  # type: ignore[arg-type]

    def test_refusals_of_a_run(self, mixture):
        with pytest.raises(DTypeError, match="a term or a Guidance"):
            run(mixture, 3.0)
        with pytest.raises(UnsupportedError, match="adaptive solver"):
            run(mixture, CFG(3).when(Interval(high=0.0)), solver=Adaptive())
        with pytest.raises(UnsupportedError, match="fixed"):
            run(mixture, CFG(3).when(Count()), compile="eager")
        with pytest.raises(UnknownNameError, match="unknown network"):
            run(mixture, Auto(2, "weaker"))

    def test_queries_of_the_whole_tree(self):
        term = (CFG(3).when(Interval(high=0.0)) + Auto(2)).versus("base", 2.0)
        assert set(Guidance(term).queries) == {
            COND,
            NULL,
            Query("cond", "weak"),
            Query("cond", "base"),
            Query("null", "base"),
        }


@dataclass(frozen=True)
class Asks(Direction):
    """Forgets to declare what it asks."""

    def push(self, ask, step, state):
        c, u = ask(COND, NULL)
        return 2 * (c.x0 - u.x0), state


def test_forgetting_needs_costs_calls_never_values(mixture):
    forgot, declared = run(mixture, Asks()), run(mixture, CFG(3))
    close(forgot.x, declared.x)
    assert (forgot.counts.calls, declared.counts.calls) == (12, 6)
    assert forgot.counts.rows == declared.counts.rows


def test_gradients_through_a_whole_run(mixture):
    """d sample / d scale by autograd equals central differences."""

    @dataclass(frozen=True, eq=False)
    class Learned(Direction):
        w: torch.Tensor
        needs = (COND, NULL)

        def push(self, ask, step, state):
            c, u = ask(COND, NULL)
            return self.w * (c.x0 - u.x0), state

    w = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(run(mixture, Learned(w), grad=True).x.square().sum(), w)
    h = 1e-6
    up, down = (run(mixture, CFG(2.5 + e)).x.square().sum() for e in (h, -h))
    close(g, (up - down) / (2 * h), 1e-6)


def test_scales_of_each_sample_stay_with_it_where_samples_end_on_their_own(mixture):
    scales = (1.5, 4.0, 0.5, 2.0, 3.0)
    solver = Adaptive(rtol=1e-4, atol=1e-4)
    together = run(mixture, CFG(scales), solver=solver).x
    for k, w in enumerate(scales):
        options = {"cond": {"label": LABELS[k]}, "guidance": CFG(w), "solver": solver, "dtype": torch.float64}
        alone = sample(mixture(VP(), d=3), GRID, samples=[k], seed=3, **options).x
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-8, atol=1e-8)
