"""LinearAG: predicted answers are the stated sums, whatever runs them; tables are refused where they do not belong."""

import dataclasses

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import CheckpointError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import VP
from wayfield.field.binding import COND, NULL, Query  # noqa: F401  (Query: for eval)
from wayfield.guide import CFG, Guidance
from wayfield.guide.codec import from_json, to_json
from wayfield.guide.facts import run_facts
from wayfield.guide.gates import Steps
from wayfield.guide.linear import LinearAG, alternating, remember
from wayfield.guide.roles import Gate
from wayfield.sampling import Checkpoint, sample
from wayfield.solve import DDIM, DPM2M, Heun

N, W = 8, 3.0
GRID = G.karras(VP(), N, sigma_min=0.05, sigma_max=20.0)
LABELS = torch.tensor([0, 1, 1, 0, 1])
TRUE = (True, False, True, False, False, True, True, True)
OPEN = (True,) * 5 + (False,) * 3  # guidance ends where nothing is predicted any more


def table(randn64, space="eps", **fields):
    """Random scalars, small enough to keep samples finite."""
    bc = tuple(() if t else tuple((0.3 * randn64(i + 1, seed=i)).tolist()) for i, t in enumerate(TRUE))
    bu = tuple(() if t else tuple((0.3 * randn64(i, seed=50 + i)).tolist()) for i, t in enumerate(TRUE))
    return LinearAG(TRUE, bc, bu, tuple((0.1 * randn64(N, seed=99)).tolist()), space, **fields)


def run(mixture, source, term=None, samples=5, labels=LABELS, rows="exact", **options):
    options = {"dtype": torch.float64, "solver": DDIM(), **options}
    guidance = Guidance(CFG(W).when(Steps(OPEN)) if term is None else term, sources=(source,), rows=rows)
    return sample(
        mixture(VP(), d=3), GRID, samples=samples, seed=3, cond={"label": labels}, guidance=guidance, **options
    )


def by_hand(mixture, source, opened=OPEN):
    """The algorithm written out: lists of answers, DDIM steps."""
    den = mixture(VP(), d=3)
    x = float(GRID.scales.sigma[0]) * SeededNoise(3, 5).draw((3,), Address(-1)).double()
    a, s, cs, us = GRID.scales.alpha, GRID.scales.sigma, [], []
    for i in range(N):
        pred = den(x, GRID.t[i], {"label": LABELS})
        x0 = pred.x0
        if opened[i]:
            c, u = (getattr(p, source.space) for p in (pred, den(x, GRID.t[i])))
            cs.append(c)
            if not source.true[i]:
                u = torch.full_like(c, source.b0[i])
                for b, y in zip(source.bc[i], cs, strict=True):
                    u = u + b * y
                for b, y in zip(source.bu[i], us, strict=True):
                    u = u + b * y
            us.append(u)
            guided = u + W * (c - u)
            x0 = guided if source.space == "x0" else (x - s[i] * guided) / a[i]
        x = a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]
    return x


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
@pytest.mark.parametrize("space", ["x0", "eps"])
def test_the_run_is_the_algorithm_written_out(mixture, randn64, space, rows):
    source = table(randn64, space)
    got = run(mixture, source, rows=rows)
    torch.testing.assert_close(got.x, by_hand(mixture, source), rtol=1e-10, atol=1e-10)
    assert got.counts.rows == 5 * (N + 2)  # true and open: steps 0 and 2
    assert got.counts.calls == N


def test_compiled_is_eager_with_one_graph_for_each_kind_of_step(mixture, randn64):
    """u evaluated, u predicted, guidance closed, and the first step, which lays out calls: 4 kinds for 8 steps."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    source = table(randn64)
    got = run(mixture, source, compile="eager")
    torch.testing.assert_close(got.x, run(mixture, source).x, rtol=1e-12, atol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4
    torch._dynamo.reset()


def test_hold_keeps_the_difference_of_the_step_before(mixture):
    """u = c - d with d the last true difference in x0, also over two predicted steps in a row."""
    den, source = mixture(VP(), d=3), LinearAG.hold(TRUE)
    x = float(GRID.scales.sigma[0]) * SeededNoise(3, 5).draw((3,), Address(-1)).double()
    a, s, gap = GRID.scales.alpha, GRID.scales.sigma, None
    for i in range(N):
        c = den(x, GRID.t[i], {"label": LABELS}).x0
        if TRUE[i]:
            gap = c - den(x, GRID.t[i]).x0
        x0 = c + (W - 1) * gap
        x = a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]
    torch.testing.assert_close(run(mixture, source, CFG(W)).x, x, rtol=1e-11, atol=1e-11)


def test_skip_is_guidance_closed_at_predicted_steps(mixture):
    closed = sample(
        mixture(VP(), d=3),
        GRID,
        samples=5,
        seed=3,
        cond={"label": LABELS},
        guidance=CFG(W).when(Steps(TRUE)),
        dtype=torch.float64,
    )
    got = run(mixture, LinearAG.skip(TRUE), CFG(W))
    torch.testing.assert_close(got.x, closed.x, rtol=1e-11, atol=1e-11)
    assert got.counts.rows == closed.counts.rows == 5 * (N + 5)


def test_other_queries(mixture, randn64):
    """A negative condition equal to the null label is the null answer."""
    source = table(randn64, query=Query("negative"))
    got = run(mixture, source, CFG(W, away="negative").when(Steps(OPEN)), conds={"negative": {"label": 2}})
    torch.testing.assert_close(got.x, run(mixture, table(randn64)).x, rtol=1e-12, atol=1e-12)


def test_sample_k_does_not_depend_on_its_batch(mixture, randn64):
    source = table(randn64)
    alone = run(mixture, source, samples=[3], labels=LABELS[3:4]).x
    torch.testing.assert_close(alone[0], run(mixture, source).x[3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_stopped_run_goes_on(mixture, randn64, tmp_path, stop):
    class Stop(Exception):
        pass

    def stopping(info):
        if info.i == stop + 1:
            raise Stop

    source, checkpoint = table(randn64), Checkpoint(str(tmp_path / "state"), every=stop)
    with pytest.raises(Stop):
        run(mixture, source, checkpoint=checkpoint, callback=stopping)
    seen = []
    got = run(mixture, source, checkpoint=checkpoint, callback=lambda info: seen.append(info.i))
    assert seen[0] == stop + 1
    assert torch.equal(got.x, run(mixture, source).x)


class Mask(Gate):
    """Some samples only."""

    masked = True

    def open(self, step, state):
        return torch.tensor([True, True, False, True, False])


def test_masks_need_all_rows_while_history_is_kept(mixture, randn64):
    source, term = table(randn64), CFG(W).when(Steps(OPEN)).when(Mask())
    got, whole = run(mixture, source, term, rows="fixed").x, run(mixture, source).x
    torch.testing.assert_close(got[[0, 1, 3]], whole[[0, 1, 3]], rtol=1e-12, atol=1e-12)
    with pytest.raises(UnsupportedError, match="rows='fixed'"):
        run(mixture, source, term, rows="exact")


def test_a_gap_before_the_last_predicted_step_is_refused(mixture, randn64):
    gap = CFG(W).when(Steps((True, True, False, True, True, True, True, True)))
    with pytest.raises(UnsupportedError, match="was not asked"):
        run(mixture, table(randn64), gap)


def test_solvers_with_two_evaluations_are_refused(mixture, randn64):
    with pytest.raises(UnsupportedError, match="evaluation 1 of a step"):
        run(mixture, table(randn64), solver=Heun())
    assert run(mixture, table(randn64), solver=DPM2M()).x.isfinite().all()


def test_a_run_of_another_length_is_refused(mixture):
    with pytest.raises(ShapeError, match="8 steps"):
        run(mixture, LinearAG.hold(alternating(6)), CFG(W))


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"true": (False, True)}, RangeError),
        ({"true": (True, True)}, RangeError),
        ({"true": ()}, RangeError),
        ({"bc": ((), (1.0,))}, ShapeError),
        ({"bu": ((), ())}, ShapeError),
        ({"bu": ((), (float("nan"),))}, RangeError),
        ({"b0": (1.0,)}, ShapeError),
        ({"space": "native"}, UnknownNameError),
    ],
)
def test_tables_that_do_not_fit_together_are_refused(fields, error):
    with pytest.raises(error):
        dataclasses.replace(LinearAG.hold((True, False)), **fields)


def test_alternating_is_the_published_pattern():
    assert [i for i, t in enumerate(alternating(20)) if not t] == [1, 3, 5, 7, 9]


def test_a_table_survives_print_and_json(randn64):
    source = table(randn64, fingerprint=(("path", "VP()"), ("times", "1, 0")))
    assert eval(repr(source)) == source
    kept = Guidance(CFG(3.0), sources=(source,))
    assert from_json(to_json(kept)) == kept


def test_a_table_is_refused_by_another_run(mixture, randn64):
    den, other = mixture(VP(), d=3), mixture(VP(), d=3)
    other.net.means += 1e-9
    guidance = Guidance(CFG(W))
    facts = run_facts({"main": den}, GRID, DDIM(), guidance)
    source = table(randn64, fingerprint=tuple(facts.items()))
    within = Guidance(CFG(W), sources=(source,), rows="fixed")
    source.check(run_facts({"main": mixture(VP(), d=3)}, GRID, DDIM(), within))
    table(randn64).check(facts)
    runs = {
        "network 'main'": ({"main": other}, GRID, DDIM(), guidance),
        "network 'weak'": ({"main": den, "weak": den}, GRID, DDIM(), guidance),
        "times": ({"main": den}, GRID.below(GRID.t[1]), DDIM(), guidance),
        "solver": ({"main": den}, GRID, DPM2M(), guidance),
        "guidance": ({"main": den}, GRID, DDIM(), Guidance(CFG(W + 1))),
    }
    for fact, arguments in runs.items():
        with pytest.raises(CheckpointError) as error:
            source.check(run_facts(*arguments))
        assert f"{{{fact!r}:" in str(error.value)
        assert str(error.value).count(fact) == 2


def test_nothing_is_kept_where_nothing_is_marked(randn64):
    state = (randn64(2, 3, 4), randn64(2, 3, 4))
    assert remember(LinearAG.hold((True, False)), None, state, torch.zeros(0)) is state
