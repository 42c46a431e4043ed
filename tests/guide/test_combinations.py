"""Parts of guidance put together, against loops written by hand (hand.py): values, cost of every step, and resuming."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import hand
import handrules as by_hand
import pytest
import torch
from hand import GRID, LABELS, B, N, World
from handrules import BAR, EARLY, EDGE, TABLE, judge, wavy

from wayfield.field.binding import NULL, Query
from wayfield.guide import CFG, Auto, Away, Guidance
from wayfield.guide.adaptive import AG
from wayfield.guide.apg import APG
from wayfield.guide.classifier import ClassifierGuidance
from wayfield.guide.compose import compose
from wayfield.guide.energy import Energy
from wayfield.guide.gates import Interval, Schedule, Stage, Steps
from wayfield.guide.guidance import guidance_of
from wayfield.guide.hold import Hold
from wayfield.guide.linear import LinearAG
from wayfield.guide.rescale import Rescale
from wayfield.sampling import Checkpoint, sample
from wayfield.solve import DDIM, DPM2M, Heun

SOLVERS = {"ddim": DDIM(), "2m": DPM2M(), "heun": Heun()}
W = World.make()
SHAPED = APG(r=0.8, beta=-0.5)
FREE = APG(eta=0.3, r=1.5, beta=-0.75)


class Case(NamedTuple):
    """An expression, its loop, and what a step costs. rows, calls: where k samples are open, as hand.py counts them /
    most: k where all are.
    """

    guidance: Any
    rule: Callable[..., Any]
    solvers: str = "ddim 2m heun"
    rows: Callable[[int], int] = lambda k: B + k
    calls: Callable[[int], int] = lambda k: 1
    masked: bool = False
    most: int = B


def twice(k):
    """Calls where gradients are evaluated apart."""
    return 2 if k else 1


def shaped(part=SHAPED):
    return Away(NULL).through(part)


CFG_ENERGY = CFG(4) + Energy(wavy, 0.2)
INSIDE = Interval(-3.0, EDGE)
CASES = {
    "cfg": Case(CFG(4), by_hand.cfg),
    "apg on cfg": Case(3 * shaped(), by_hand.apg_on_cfg),
    "apg on auto": Case(1.5 * Away(Query("cond", "weak")).through(FREE), by_hand.apg_on_auto, calls=lambda k: 2),
    "ag": Case(CFG(4).when(AG(BAR)), by_hand.ag, masked=True),
    "ag over apg": Case((3 * shaped()).when(AG(BAR)), by_hand.ag_over_apg, masked=True),
    "apg over ag": Case(3 * Away(NULL).when(AG(BAR)).through(SHAPED), by_hand.apg_over_ag, masked=True),
    "linear ag in an interval": Case(
        Guidance(CFG(4).when(Interval(high=EDGE)), sources=(LinearAG(**TABLE, space="eps"),)),
        by_hand.linear_in_interval,
        "ddim 2m",
    ),
    "cfg++ rescaled": Case(
        Guidance(CFG(0.6).through(Rescale(0.7, "eps")), noise=NULL), by_hand.cfg_pp_rescaled, "ddim 2m"
    ),
    "energy and cfg": Case(CFG_ENERGY, by_hand.energy_and_cfg, calls=lambda k: 2),
    "classifier and cfg": Case(
        CFG(4) + ClassifierGuidance(judge, 0.3, "clean", temperature=2.0), by_hand.classifier_and_cfg, calls=lambda k: 2
    ),
    "ag over (cfg and energy)": Case(
        CFG_ENERGY.when(AG(BAR)), by_hand.ag_over_cfg_and_energy, calls=twice, masked=True
    ),
    "cfg, and ag over energy": Case(
        CFG(4) + Energy(wavy, 0.2).when(AG(BAR)),
        by_hand.ag_over_energy_beside_cfg,
        rows=lambda k: 2 * B,
        calls=twice,
        masked=True,
    ),
    "two latches": Case(2 * Away(NULL).when(AG(EARLY)) + Away(NULL).when(AG(BAR)), by_hand.two_latches, masked=True),
    "ag in an interval, and auto": Case(
        CFG(4).when(AG(BAR)).when(INSIDE) + Auto(2),
        by_hand.ag_and_interval_and_auto,
        rows=lambda k: 2 * B + k,
        calls=lambda k: 2,
        masked=True,
    ),
    "interval in ag, and auto": Case(
        CFG(4).when(INSIDE).when(AG(BAR)) + Auto(2),
        by_hand.ag_and_interval_and_auto,
        rows=lambda k: 2 * B + k,
        calls=lambda k: 2,
        masked=True,
    ),
    "cfg versus cfg": Case(CFG(4).versus("base", 1.6), by_hand.cfg_versus, rows=lambda k: 4 * B, calls=lambda k: 2),
    "apg versus apg": Case(
        (3 * shaped()).versus("base", 1.6), by_hand.apg_versus, rows=lambda k: 4 * B, calls=lambda k: 2
    ),
    "ag versus ag": Case(
        CFG(4).when(AG(BAR)).versus("base", 1.6),
        by_hand.ag_versus,
        rows=lambda k: 2 * B + k,
        calls=lambda k: 2,
        masked=True,
        most=2 * B,
    ),
    "ag, then hold": Case(Guidance(CFG(4), sources=(Hold(AG(BAR), space="x0"),)), by_hand.ag_holding(0), masked=True),
    "ag, then extrapolate": Case(
        Guidance(CFG(4), sources=(Hold(AG(BAR), 1, space="x0"),)), by_hand.ag_holding(1), "ddim 2m", masked=True
    ),
    "hold odd steps": Case(
        Guidance(CFG(4), sources=(Hold(Steps((True, False) * (N // 2)), space="x0"),)), by_hand.holding_at_odd_steps
    ),
    "and, not": Case(compose({"cond": 3.0, "second": 2.0, "bad": -1.5}), by_hand.and_not, rows=lambda k: 4 * B),
    "and, not, through apg": Case(
        Guidance(compose({"cond": 3.0, "second": 2.0, "bad": -1.5}).term.through(APG(r=2.0, beta=-0.5)), base=NULL),
        by_hand.and_not_shaped,
        rows=lambda k: 4 * B,
    ),
    "apg on a schedule": Case((3 * shaped()).when(Schedule(((-3.0, 0.0), (3.0, 1.0)))), by_hand.scheduled_apg),
    "first evaluations only": Case(CFG(4).when(Stage(0)), by_hand.uncorrected, "heun"),
    "negative by sample, clipped": Case(
        Guidance((0.0, 0.5, 1.0, 2.0, 3.0) * Away("bad"), clip=(-1.0, 0.8)), by_hand.mixed_and_clipped
    ),
}


RUNS = [(name, solver) for name, case in CASES.items() for solver in case.solvers.split()]
MASKED = [(name, solver) for name, solver in RUNS if CASES[name].masked]


def engine(name, solver, rows="exact", keep=slice(None), stop=N + 1, **options):
    """A case under the library's driver, and the cost of every step; killed after step `stop`."""
    paid: list[tuple[int, int]] = []

    def seen(info):
        paid.append(info.counts[:2])
        if info.i == stop:
            raise KeyboardInterrupt

    guidance = dataclasses.replace(guidance_of(CASES[name].guidance), rows=rows)
    out = sample(
        W.nets["main"],
        GRID,
        x=W.x[keep],
        samples=list(range(B))[keep],
        cond={"label": LABELS["cond"][keep]},
        conds={k: {"label": LABELS[k][keep]} for k in ("second", "bad")},
        nets={k: W.nets[k] for k in ("weak", "base")},
        solver=SOLVERS[solver],
        guidance=guidance,
        dtype=torch.float64,
        callback=seen,
        **options,
    )
    return out, [(c - a, r - b) for (a, b), (c, r) in zip([(0, 0), *paid], paid, strict=False)]


def costs(case, opened, rows):
    """What every step should cost, from how many samples were open in each evaluation."""
    out, before = [], case.most
    for step in opened:
        if case.masked and rows == "late":
            paid = [None if k is None else before for k in step]
            before = before if step[0] is None else step[0]
        else:
            paid = [None if k is None else case.most if case.masked and rows == "fixed" else k for k in step]
        paid = [k or 0 for k in paid]
        out.append((sum(case.calls(k) for k in paid), sum(case.rows(k) for k in paid)))
    return out


def check(name, solver, rows):
    case, (want, opened) = CASES[name], hand.run(W, CASES[name].rule, solver)
    got, paid = engine(name, solver, rows)
    torch.testing.assert_close(got.x, want, rtol=1e-10, atol=1e-10)
    assert paid == costs(case, opened, rows)
    branches = guidance_of(case.guidance).branches
    assert got.counts.rows + got.counts.skipped == B * branches * sum(len(step) for step in opened)
    return opened


@pytest.mark.parametrize(("name", "solver"), RUNS)
def test_values_and_cost_of_every_step(name, solver):
    opened = check(name, solver, "exact")
    if CASES[name].masked:  # the case would prove little if all samples were open or closed together
        assert {step[0] for step in opened} & {1, 2, 3, 4}


@pytest.mark.parametrize("rows", ["late", "fixed"])
@pytest.mark.parametrize(("name", "solver"), MASKED)
def test_row_modes_agree(name, solver, rows):
    check(name, solver, rows)


@pytest.mark.parametrize("name", CASES)
def test_sample_k_does_not_depend_on_its_batch(name):
    """Numbers by sample belong to a batch, so that case is left out."""
    if "by sample" in name:
        return
    solver = CASES[name].solvers.split()[-1]
    whole = engine(name, solver)[0].x
    for k in (1, 3):
        torch.testing.assert_close(engine(name, solver, keep=slice(k, k + 1))[0].x[0], whole[k], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("name", "solver"), RUNS)
def test_resumed_in_the_middle(tmp_path, name, solver):
    """Killed after seven of ten steps, with a state of six on disk: the rest is the same to the bit."""
    for rows in ("exact", "fixed", "late") if CASES[name].masked else ("exact",):
        want, _ = engine(name, solver, rows)
        checkpoint = Checkpoint(str(tmp_path / f"{rows}.safetensors"), every=3)
        with pytest.raises(KeyboardInterrupt):
            engine(name, solver, rows, stop=7, checkpoint=checkpoint)
        got, paid = engine(name, solver, rows, checkpoint=checkpoint)
        assert len(paid) == N - 6
        if rows == "late":  # no mask of a step ago is known: all rows are asked once more, in a batch of another size
            torch.testing.assert_close(got.x, want.x, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(got.x, want.x)
            assert got.counts == want.counts


@pytest.mark.parametrize("name", ["ag over apg", "ag, then extrapolate", "ag over (cfg and energy)", "ag versus ag"])
def test_compiled_is_one_graph(name):
    """Masks, histories and gradients inside of one graph, with nothing compiled anew from step to step."""
    import torch._dynamo as dynamo

    dynamo.reset()
    with dynamo.config.patch(trace_autograd_ops=True, error_on_recompile=True):
        got, _ = engine(name, "2m", "fixed", compile="eager")
    torch.testing.assert_close(got.x, engine(name, "2m", "fixed")[0].x, rtol=1e-12, atol=1e-12)
