"""GFCG among other guidance, with classes told by prompts, and what it refuses."""

import dataclasses
import math

import pytest
import torch
from tests.guide.classworld import DEN, GRID, LABELS, WEAK, K, close, linear, run
from torch import nn

from wayfield.core.errors import (
    ConditionError,
    DeviceError,
    DTypeError,
    NonFiniteError,
    RangeError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from wayfield.core.path import VP
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Auto, Guidance, codec
from wayfield.guide.adaptive import AG
from wayfield.guide.apg import APG, apg
from wayfield.guide.classifier import ClassifierGuidance
from wayfield.guide.gates import Interval, Steps
from wayfield.guide.gfcg import GFCG
from wayfield.guide.guidance import guidance_of
from wayfield.guide.roles import Gate
from wayfield.judge import MLPJudge, Noisy
from wayfield.sampling import sample
from wayfield.solve import DPM2M, Adaptive, Heun


def noisy(x, level):
    """A classifier of noisy points."""
    return linear(x) / (level.alpha**2 + level.sigma**2).reshape(-1, 1)


PARTS = {
    "clean": GFCG(linear, 6.0),
    "previous": GFCG(linear, 6.0, "previous"),
    "uncond": GFCG(linear, 6.0, "uncond", "ratio", temperature=((-4.0, 2.0), (4.0, 1.0))),
    "noisy": GFCG(noisy, 6.0, "noisy"),
    "mix": GFCG(linear, 6.0, reference="mix"),
    "null": GFCG(linear, 6.0, reference="null", cap=4.0),
    "swap": GFCG(linear, confusion=0.3, combine="swap", w=2.0),
    "swap auto": GFCG(linear, confusion=0.3, combine="swap", w=2.0, other=WEAK),
    "alternate": GFCG(linear, 6.0, confusion="gate", combine="alternate", w=2.0, other=WEAK),
}
ROWS = {"uncond": 3, "mix": 3, "alternate": 3}
each = pytest.mark.parametrize("name", list(PARTS))


class Half(Gate):
    """Closes rows 1 and 3 of five."""

    masked = True

    def open(self, step, state):
        return torch.tensor([True, False, True, False, True])


@each
def test_rows_are_those_of_cfg(name):
    """Two a sample and step unless it says otherwise, all of them announced."""
    counts, guidance = run(PARTS[name]).counts, Guidance(PARTS[name])
    assert guidance.branches == ROWS.get(name, 2)
    assert (counts.rows, counts.skipped) == (6 * 5 * guidance.branches, 0)
    if name in ("clean", "previous", "noisy", "swap"):
        assert counts.rows == run(CFG(3.0)).counts.rows


@each
@pytest.mark.parametrize("solver", [DPM2M(eta=1.0), Heun()], ids=str)
def test_sample_k_does_not_depend_on_its_batch(name, solver):
    whole = run(PARTS[name], solver=solver).x
    for k in (0, 3):
        close(run(PARTS[name], LABELS[k : k + 1], [k], solver=solver).x[0], whole[k], 1e-11)


@each
@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
def test_some_rows_only(name, rows):
    """Labels, verdicts and conditions of the open rows are their own; closed ones cost nothing where they may."""
    got = run(Guidance(PARTS[name].when(Half()), rows=rows))
    whole, plain, mask = run(PARTS[name]).x, run(None).x, torch.tensor([1, 0, 1, 0, 1]).bool()
    close(got.x, torch.where(mask[:, None], whole, plain), 1e-11)
    assert (got.counts.skipped > 0) is (rows != "fixed")


@each
def test_compiled_equals_eager_without_new_graphs(name):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        got = run(PARTS[name], compile="eager").x
    close(got, run(PARTS[name]).x, 1e-11)


@each
def test_float32(name):
    single = run(PARTS[name], dtype=torch.float32).x.double()
    torch.testing.assert_close(single, run(PARTS[name]).x, rtol=2e-3, atol=2e-3)


@each
def test_it_can_be_kept(name, monkeypatch):
    monkeypatch.setitem(codec.PARTS, "GFCG", "wayfield.guide.gfcg")
    functions = {"linear": linear, "noisy": noisy}
    guidance = CFG(2.0) + PARTS[name].when(Interval(high=3.0))
    assert codec.from_json(codec.to_json(guidance, functions), functions) == guidance


def test_what_it_prints():
    assert repr(PARTS["noisy"]).startswith("GFCG(noisy, w_max=6.0, on='noisy', confusion='p', reference='top', ")
    assert f"{linear.__name__}, " in repr(PARTS["clean"])


# beside other guidance


@pytest.mark.parametrize(
    ("guidance", "rows"),
    [
        (CFG(2.0) + GFCG(linear, 6.0), 3),
        (Auto(2.0) + GFCG(linear, 6.0), 3),
        (Auto(2.0) + GFCG(linear, 6.0, net="weak"), 3),
        (CFG(2.0) + GFCG(linear, 6.0, "uncond"), 3),
        (GFCG(linear, 6.0).through(APG(0.0, 0.5, -0.3)), 2),
        (apg(3.0, r=0.5) + GFCG(linear, 6.0), 3),
        (GFCG(linear, 6.0) + ClassifierGuidance(noisy, 0.3), 2),
        (GFCG(linear, 6.0) + ClassifierGuidance(linear, 0.3, "clean"), 2),
        (GFCG(linear, 6.0).versus("weak", 1.5), 4),
        (GFCG(linear, 6.0).when(Steps((True, False) * 3)), 2),
        (Guidance(GFCG(linear, 6.0), clip=(-1.0, 1.0)), 2),
    ],
    ids=lambda g: repr(g)[:40],
)
def test_combinations(guidance, rows):
    """They cost what is announced, do something, and are the same in another batch."""
    got = run(guidance)
    assert guidance_of(guidance).branches == rows
    assert got.counts.rows + got.counts.skipped == 6 * 5 * rows
    assert not torch.equal(got.x, run(None).x)
    close(run(guidance, LABELS[3:4], [3]).x[0], got.x[3], 1e-11)


def test_trained_judges_serve():
    """A network of noisy points and one of clean data, both of `wayfield.judge`, in float32 beside a float64 run."""
    clean, aware = MLPJudge(3, K, width=8, clean=True).eval(), Noisy(MLPJudge(3, K, width=8)).eval()
    for part in (GFCG(clean, 6.0), GFCG(aware, 6.0, "noisy")):
        got = run(part).x
        assert not torch.equal(got, run(None).x)
        close(run(part, LABELS[3:4], [3]).x[0], got[3], 1e-4)  # the judge rounds in float32


def test_added_to_cfg_is_both_pushes():
    """At one point: c + (w - 1)(c - u) + (w_t - 1)(c - D_rho)."""
    from tests.guide.classworld import by_class, one_step

    _, c, u = by_class()
    close(one_step(CFG(2.0) + GFCG(linear, 6.0)), one_step(GFCG(linear, 6.0)) + c - u)


def test_away_from_the_weak_network_of_a_comparison():
    """In `versus` each network's guidance asks that network for its reference."""
    other = run(GFCG(linear, 6.0).versus("weak", 1.5), nets={"weak": DEN}).x
    close(other, run(GFCG(linear, 6.0)).x, 1e-11)


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
def test_until_two_predictions_agree(rows):
    """AG closes sample by sample; GFCG then sees fewer rows, and nothing of the others changes."""
    term = (CFG(2.0) + GFCG(linear, 6.0)).when(AG(0.9))
    got = run(Guidance(term, rows=rows))
    close(got.x, run(term).x, 1e-11)
    assert run(term).counts.skipped > 0
    for k in (0, 4):
        close(run(term, LABELS[k : k + 1], [k]).x[0], got.x[k], 1e-11)


def test_a_step_whose_beginning_is_not_guided_is_not_guided():
    """A window that opens between the two evaluations of a step: the corrector has no verdict to hold."""
    levels = [-2 * math.log(float(s / a)) for a, s in zip(*GRID.scales[:2], strict=True) if s > 0]
    within = Interval(low=(levels[2] + levels[3]) / 2)
    begun = Steps((False,) * 3 + (True,) * 3)
    part = GFCG(linear, 6.0)
    close(run(part.when(within), solver=Heun()).x, run(part.when(begun), solver=Heun()).x)


def test_an_adaptive_solver_is_refused():
    with pytest.raises(UnsupportedError, match="adaptive"):
        run(PARTS["clean"], solver=Adaptive())


# what a class is to the model

PROMPTS = torch.tensor([[3, 0], [1, 2], [2, 2], [3, 1]])
EMPTY = [0, 0]


def by_prompt():
    """The same world as a model that is told a class by two tokens; the empty prompt is the mixture."""
    known = torch.cat([PROMPTS, torch.tensor([EMPTY])])

    def call(net, x, time, cond):
        return net(x, time, {"label": (cond["tokens"][:, None] == known).all(2).int().argmax(1)})

    schema = Schema({"tokens": Field((2,), values=4)}, {"tokens": EMPTY})
    return Denoiser(DEN.net, VP(), "x0", shape=(3,), schema=schema, call=call)


def prompted(guidance, labels=LABELS, den=None, **options):
    """A run of the model that reads prompts."""
    tokens = torch.cat([PROMPTS, torch.tensor([EMPTY])])[labels]
    options = {"solver": DPM2M(), "dtype": torch.float64, "seed": 3, **options}
    return sample(den or by_prompt(), GRID, samples=5, cond={"tokens": tokens}, guidance=guidance, **options)


@pytest.mark.parametrize("name", ["clean", "mix", "swap", "noisy"])
def test_classes_told_by_prompts(name):
    """The same numbers as by labels; prompts that are no class are not pushed."""
    part = dataclasses.replace(PARTS[name], classes={"tokens": PROMPTS})
    close(prompted(part).x, run(PARTS[name]).x)
    if name != "swap":
        labels = torch.tensor([0, 4, 2, 4, 1])
        got, plain = prompted(part, labels).x, prompted(None, labels).x
        assert torch.equal(got[[1, 3]], plain[[1, 3]])
        close(got[[0, 2, 4]], prompted(part).x[[0, 2, 4]])


def test_a_table_is_kept_as_numbers():
    part = GFCG(linear, 6.0, classes={"tokens": PROMPTS})
    assert part.classes == (("tokens", ((3, 0), (1, 2), (2, 2), (3, 1))),)
    assert part == GFCG(linear, 6.0, classes=part.classes)
    assert hash(part) == hash(GFCG(linear, 6.0, classes=part.classes))


@pytest.mark.parametrize("name", ["clean", "swap", "alternate"])
def test_null_labels(name):
    """No class, no confusion: there is no push, or that of the other guidance."""
    labels = torch.tensor([0, 4, 2, 4, 1])
    other = {"clean": None, "swap": CFG(2.0), "alternate": Auto(2.0)}[name]
    got = run(PARTS[name], labels).x
    close(got[[1, 3]], run(other, labels).x[[1, 3]])
    close(got[[0, 2, 4]], run(PARTS[name]).x[[0, 2, 4]])


# bad input


@each
def test_nan_is_reported(name):
    """By the driver, with the step; no choice by scores hides it."""
    bad = dataclasses.replace(PARTS[name], classifier=lambda x0, *_: torch.where(x0[:, :1] > 0, math.nan, linear(x0)))
    with pytest.raises(NonFiniteError, match="step 1"):
        run(bad)


class Elsewhere(nn.Module):
    """Answers on another device."""

    def forward(self, x0):
        """Logits (b, K)."""
        return linear(x0).to("meta")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"classifier": lambda x0: linear(x0)[:, :1]}, ShapeError, "K >= 2"),
        ({"classifier": lambda x0: linear(x0)[:2]}, ShapeError, "logits"),
        ({"classifier": lambda x0: linear(x0)[:, :3]}, RangeError, "got 3; expected 4"),
        ({"classifier": lambda x0: linear(x0).repeat(1, 2)}, RangeError, "got 8; expected 4"),
        ({"classifier": Elsewhere().eval()}, DeviceError, "meta"),
        ({"reference": "mix", "mixed": 4}, RangeError, "at most 3"),
        ({"field": "labels"}, UnknownNameError, "label"),
        ({"net": "weka"}, UnknownNameError, "weak"),
        ({"combine": "swap", "w": 2.0, "other": WEAK._replace(cond="cnod")}, UnknownNameError, "cond"),
        ({"classes": {"tokens": PROMPTS}}, UnknownNameError, "tokens"),
        ({"classes": {"label": [0, 1, 2]}}, ShapeError, r"got \(3,\); expected \(4,\)"),
        ({"classes": {"label": PROMPTS}}, ShapeError, r"got \(4, 2\)"),
        ({"classes": {"label": [0, 1, 2, 9]}}, RangeError, "0..4"),
    ],
)
def test_what_does_not_fit_the_run(change, error, text):
    with pytest.raises(error, match=text):
        run(dataclasses.replace(PARTS["clean"], **change))


@pytest.mark.parametrize("classes", [None, {"label": [0, 1, 2, 3]}])
def test_a_run_without_labels(classes):
    with pytest.raises(ConditionError, match=r"without a condition|got none"):
        sample(DEN, GRID, guidance=GFCG(linear, classes=classes), dtype=torch.float64)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"classifier": None}, DTypeError),
        ({"classifier": nn.Linear(3, K)}, UnsupportedError),
        ({"on": "cleen"}, UnknownNameError),
        ({"confusion": "q"}, UnknownNameError),
        ({"confusion": 1.0}, RangeError),
        ({"confusion": math.nan}, RangeError),
        ({"reference": "sample"}, UnknownNameError),
        ({"combine": "add"}, UnknownNameError),
        ({"w_max": 0.5}, RangeError),
        ({"w_max": math.inf}, RangeError),
        ({"cap": 0.5}, RangeError),
        ({"floor": -0.1}, RangeError),
        ({"mixed": 0}, RangeError),
        ({"w": 2.0}, RangeError),
        ({"w": math.nan, "combine": "swap"}, RangeError),
        ({"combine": "swap", "reference": "null"}, UnsupportedError),
        ({"combine": "swap", "net": "weak"}, UnsupportedError),
        ({"temperature": 0.0}, RangeError),
        ({"temperature": ((1.0, 1.0), (0.0, 1.0))}, RangeError),
        ({"temperature": ()}, RangeError),
        ({"classes": {}}, RangeError),
        ({"classes": {"label": [0]}}, RangeError),
        ({"classes": {"label": [0, 1], "size": [1, 2, 3]}}, RangeError),
        ({"classes": {"label": [0, 1, 1]}}, RangeError),
    ],
    ids=str,
)
def test_bad_fields(change, error):
    with pytest.raises(error):
        dataclasses.replace(GFCG(linear), **change)


def test_neutral_parameters():
    for part in (GFCG(linear, 1.0), GFCG(linear, combine="swap"), GFCG(linear, 1.0, combine="alternate")):
        assert part.neutral
        assert torch.equal(run(part).x, run(None).x)
        assert Guidance(part).branches == 1
    assert not GFCG(linear, combine="alternate").neutral
