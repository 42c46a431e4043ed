"""Held differences: against a loop by hand, row by row, with every kind of gate, and what is refused."""

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, UnknownNameError, UnsupportedError
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import VP
from wayfield.field.binding import COND, NULL, Query
from wayfield.guide import CFG, Guidance
from wayfield.guide.adaptive import AG
from wayfield.guide.gates import Interval, Schedule, Stage, Steps
from wayfield.guide.hold import Hold
from wayfield.sampling import Checkpoint, sample
from wayfield.solve import DDIM, DPM2M, Heun

N, B, W = 10, 6, 3.0
GRID = G.karras(VP(), N, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])
MODES = ("exact", "late", "fixed")
BAR = 0.97
ODD = (True, True, False, True, False, False, True, False, True, False)
GATES = {"ag": AG(BAR), "steps": Steps(ODD)}


def run(den, guidance, samples=B, labels=LABELS, **options):
    options = {"dtype": torch.float64, "solver": DDIM(), "seed": 3, **options}
    return sample(den, GRID, samples=samples, cond={"label": labels}, guidance=guidance, **options)


def held(gate, order=0, mode="exact", term=None, space="x0"):
    return Guidance(term or CFG(W), sources=(Hold(gate, order, space=space),), rows=mode)


def by_hand(den, gate, order, latch=None, heun=False, space="x0"):
    """One sample after the other; latch: threshold of another gate, on the term. Points and number of true answers."""
    a, s, noise = GRID.scales.alpha, GRID.scales.sigma, SeededNoise(3, B)
    start = float(s[0]) * noise.draw((3,), Address(-1)).double()
    ends, asked = [], 0
    worth = a / s if space == "eps" else torch.ones_like(a)
    for k in range(B):
        x, on, guided, true = start[k : k + 1], True, True, []
        for i in range(N):

            def guide(x, at, live, true, k=k, i=i):
                t = GRID.t[at]
                c = den(x, t, {"label": LABELS[k : k + 1]}).x0
                if live:
                    gap = c - den(x, t).x0
                else:
                    gap = true[-1][1]
                    if order and len(true) > 1:
                        (j0, d0), (j1, d1) = true[-2:]
                        gap = d1 + (d1 - d0) * (i - j1) / (j1 - j0)
                    gap = gap / worth[at]
                return c, gap

            live = on if isinstance(gate, AG) else ODD[i]
            c, gap = guide(x, i, live, true)
            known = list(true)
            x0, eps = c + (W - 1) * gap * guided, None
            if live and guided:
                asked += 1
                true.append((i, gap * worth[i]))
                u = c - gap
                cos = float((c * u).sum() / (c.square().sum() * u.square().sum()).sqrt())
            eps = (x - a[i] * x0) / s[i]
            new = a[i + 1] * x0 + s[i + 1] * eps
            if heun and s[i + 1] > 0:  # the second evaluation sees the state of before the step
                c, gap = guide(new, i + 1, live, known)
                asked += live
                slope = (new - a[i + 1] * (c + (W - 1) * gap)) / s[i + 1] - eps
                new = new + 0.5 * (s[i + 1] - a[i + 1] * s[i] / a[i]) * slope
            x = new
            if live and guided:
                on = on and not cos > BAR
            if latch is not None and guided:
                c, u = c, c - gap
                cos = float((c * u).sum() / (c.square().sum() * u.square().sum()).sqrt())
                guided = not cos > latch
        ends.append(x)
    return torch.cat(ends), asked


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("space", ["x0", "eps"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("gate", GATES)
def test_equals_a_loop_by_hand(mixture, gate, order, space, mode):
    den = mixture(VP(), d=3)
    result = run(den, held(GATES[gate], order, mode, space=space))
    x, asked = by_hand(den, GATES[gate], order, space=space)
    torch.testing.assert_close(result.x, x, rtol=1e-9, atol=1e-9)
    if mode == "exact" or gate == "steps":
        assert result.counts.rows == B * N + asked
    elif mode == "late":
        assert B * N + asked <= result.counts.rows <= B * N + asked + B
    else:
        assert result.counts.rows == 2 * B * N


@pytest.mark.parametrize("space", ["x0", "eps"])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("gate", GATES)
def test_both_evaluations_of_a_step_hold_the_same(mixture, gate, order, space):
    den = mixture(VP(), d=3)
    result = run(den, held(GATES[gate], order, space=space), solver=Heun())
    x, asked = by_hand(den, GATES[gate], order, heun=True, space=space)
    torch.testing.assert_close(result.x, x, rtol=1e-8, atol=1e-8)
    assert result.counts.rows == B * (2 * N - 1) + asked


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [0, 1])
def test_other_gates_may_ask_for_part_of_the_batch(mixture, order, mode):
    """AG on the term leaves some rows; those learn, and are answered, as if the others were not there."""
    den = mixture(VP(), d=3)
    guidance = Guidance(CFG(W).when(AG(BAR)), sources=(Hold(Steps(ODD), order, space="x0"),), rows=mode)
    x, asked = by_hand(den, Steps(ODD), order, latch=BAR)
    result = run(den, guidance)
    torch.testing.assert_close(result.x, x, rtol=1e-9, atol=1e-9)
    if mode == "exact":
        assert result.counts.rows == B * N + asked
        assert asked < B * sum(ODD)


def test_an_always_open_gate_changes_nothing(mixture):
    den = mixture(VP(), d=3)
    plain = run(den, CFG(W))
    for guidance in (held(AG(1.0)), held(AG(1.0), 1), held(Steps((True,) * N))):
        result = run(den, guidance)
        torch.testing.assert_close(result.x, plain.x, rtol=1e-13, atol=1e-13)
        assert result.counts == plain.counts


def test_a_constant_difference_is_held_exactly(mixture):
    """Order 0 is right where d does not change; order 1 where it is linear in the step. Checked on the push itself."""
    den, d = mixture(VP(), d=3), {0: lambda i: 0.3, 1: lambda i: 0.3 - 0.02 * i}
    for order, wanted in d.items():
        hold = Hold(Steps((True, True) + (False,) * 8), order, space="x0")
        x = torch.zeros(2, 3, dtype=torch.float64)
        state = hold.init(x, N)
        for i in range(2):
            state = hold._learned(_Answers(x, wanted(i)), None, state, torch.tensor([float(i)]), False)  # type: ignore
        for i in range(2, N):
            got = hold.answer(_Answers(x, 0.0), None, state, torch.tensor([float(i)]))  # type: ignore
            torch.testing.assert_close(got, x + 1 - wanted(i), rtol=0, atol=1e-6)
    assert den.shape == (3,)


class _Answers:
    """Stands for an `Ask` whose answers are constants: x0 of the condition 1, of nothing 1 - d."""

    def __init__(self, x, d):
        self.x, self.d = x, d

    def __call__(self, *queries):
        return [type("P", (), {"x0": self.x + (1.0 if q == COND else 1.0 - self.d)}) for q in queries]

    def point(self, x0):
        return x0


def test_with_small_steps_holding_follows_guidance_closer_than_dropping_it(mixture):
    den, grid, every = mixture(VP(), d=3), G.karras(VP(), 60, sigma_min=0.05, sigma_max=20.0), Steps((True, False) * 30)
    options = {"samples": 64, "cond": {"label": torch.arange(64) % 2}, "dtype": torch.float64}
    full, dropped, held_0, held_1 = (
        sample(den, grid, guidance=g, **options) for g in (CFG(W), CFG(W).when(every), held(every), held(every, 1))
    )
    gaps = [float((result.x - full.x).square().mean()) for result in (held_1, held_0, dropped)]
    assert gaps == sorted(gaps)
    assert gaps[1] < 0.1 * gaps[2]
    assert held_1.counts == held_0.counts == dropped.counts


def test_over_a_long_gap_noise_is_the_space_to_hold_in(mixture):
    """After the latch of AG differences of x0 should vanish; held ones do not, and ruin what is nearly done."""
    den = mixture(VP(), d=3)
    full = run(den, CFG(W)).x
    gaps = [float((run(den, held(AG(0.9), space=s)).x - full).square().mean()) for s in ("eps", "x0")]
    assert gaps[0] < 0.1 * gaps[1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [0, 1])
def test_sample_k_does_not_depend_on_its_batch(mixture, order, mode):
    den, guidance = mixture(VP(), d=3), held(AG(BAR), order, mode)
    whole = run(den, guidance).x
    for k in (1, 4):
        alone = run(den, guidance, [k], LABELS[k : k + 1]).x
        torch.testing.assert_close(alone[0], whole[k], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("order", [0, 1])
def test_compiled_equals_eager(mixture, order):
    den = mixture(VP(), d=3)
    torch._dynamo.reset()
    for gate in GATES.values():
        guidance = held(gate, order, "fixed")
        compiled = run(den, guidance, compile="eager")
        torch.testing.assert_close(compiled.x, run(den, guidance).x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", [0, 1])
def test_a_run_goes_on_from_the_middle(mixture, tmp_path, order, mode):
    class Stopped(Exception):
        pass

    def stop(info):
        if info.i == 6:
            raise Stopped

    den, guidance = mixture(VP(), d=3), held(AG(BAR), order, mode)
    options = {"solver": DPM2M(), "checkpoint": Checkpoint(str(tmp_path / "run"), every=5)}
    with pytest.raises(Stopped):
        run(den, guidance, callback=stop, **options)
    assert torch.equal(run(den, guidance, **options).x, run(den, guidance, solver=DPM2M()).x)


def test_a_negative_prompt_is_held_too(mixture):
    den, negative = mixture(VP(), d=3), Query("negative")
    conds = {"negative": {"label": 1 - LABELS}}
    gate = AG(BAR, pairs=((COND, negative),))
    guidance = Guidance(CFG(W, "negative"), sources=(Hold(gate, query=negative),))
    result = run(den, guidance, conds=conds)
    assert B * (N + 1) <= result.counts.rows < 2 * B * N
    never = Guidance(CFG(W, "negative"), sources=(Hold(AG(1.0, pairs=((COND, negative),)), query=negative),))
    plain = run(den, CFG(W, "negative"), conds=conds).x
    torch.testing.assert_close(run(den, never, conds=conds).x, plain, rtol=1e-13, atol=1e-13)


def test_an_interval_around_it_neither_asks_nor_learns(mixture):
    """At the closed steps of the interval nothing is asked; the first difference comes from its first open step."""
    den = mixture(VP(), d=3)
    late = Steps((False, False) + (True,) * 8)
    odd = Steps((True, True, True, *ODD[3:]))
    result = run(den, held(odd, term=CFG(W).when(late)))
    assert result.counts.rows == B * (N + sum(ODD[3:]) + 1)


def test_nothing_to_hold_is_never_silent(mixture):
    """The interval leaves out all steps at which the difference could have been learned: the run says so."""
    den, late = mixture(VP(), d=3), Steps((False, False) + (True,) * 8)
    with pytest.raises(NonFiniteError, match="step 3"):
        run(den, held(Steps(ODD), term=CFG(W).when(late)))


@pytest.mark.parametrize(
    "gate", [Steps((False,) + (True,) * (N - 1)), Interval(low=0.0), Stage(0), Schedule(((-1.0, 0.5),))], ids=str
)
def test_gates_that_cannot_be_held_are_refused_at_the_first_step(mixture, gate):
    solver = Heun() if isinstance(gate, Stage) else DDIM()
    with pytest.raises(UnsupportedError):
        run(mixture(VP(), d=3), held(gate), solver=solver)


def test_repr_rebuilds():
    for hold in (Hold(AG()), Hold(Steps(ODD), 1, space="eps"), Hold(AG(), query=Query("negative"))):
        assert eval(repr(hold)) == hold
    assert (Hold(AG()).masked, Hold(AG()).latching) == (True, True)
    assert not Hold(Steps(ODD)).masked


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"gate": 0.9}, DTypeError),
        ({"gate": AG(), "order": 2}, RangeError),
        ({"gate": AG(), "query": "null"}, DTypeError),
        ({"gate": AG(), "space": "native"}, UnknownNameError),
        ({"gate": AG(), "query": NULL, "of": NULL}, RangeError),
    ],
)
def test_wrong_fields_are_refused(fields, error):
    with pytest.raises(error):
        Hold(**fields)
