"""What the suite of variational inference compares and counts; times are never asserted."""

import pytest
import torch

from wayfield import bench
from wayfield.bench import peers, timing, vi, vi_models
from wayfield.bench.timing import OutputsDifferError
from wayfield.bench.vi import HAND, OURS, PYRO, compete
from wayfield.vi.seeding import seeded

CALLS = {"air, MVD": 3}  # one run, and one more for each of two choices


@pytest.fixture
def quick(monkeypatch):
    """No clock, and torch.compile as far as its graphs."""
    monkeypatch.setattr(vi, "BACKEND", "eager")
    monkeypatch.setattr(timing, "interleaved", lambda runs, rounds, **_: [[1.0] * rounds for _ in runs])


@pytest.fixture
def few(monkeypatch, quick):
    """Without compiling."""
    monkeypatch.setattr(vi, "_compiled", lambda case, weights: {})


def test_every_case_agrees_with_its_peers_and_is_counted(few):
    rows = bench.run("vi", quick=True)
    faced = {(row.case, row.peer) for row in rows}
    for case in ("vae, batch 64", "chain, ten sites", "mixture, enumerated", "air, REINFORCE", "air, ENUM"):
        assert {(case, HAND), (case, PYRO), (case, f"{PYRO}, checks on")} <= faced
    assert {(c, f"{OURS}, REINFORCE") for c in ("air, ENUM", "air, MVD")} | {("vae, batch 64", "storchastic")} <= faced
    assert {row.case: row.calls for row in rows} == {row.case: CALLS.get(row.case, 1) for row in rows}
    assert all(row.rows == (128 if "mixture" in row.case else 64) for row in rows)


def test_compiled_is_compared_too(quick):
    """One graph each, or torch.compile raises."""
    cases = {case.name: case for case in vi.cases((64,))}
    assert {name for name, case in cases.items() if case.compiled} == cases.keys() - {"air, ENUM", "air, MVD"}
    pairs = {(row.subject, row.peer) for row in compete(cases["mixture, enumerated"], 2)}
    assert {(vi.COMPILED, HAND), (vi.COMPILED, f"{HAND}, compiled"), (vi.COMPILED, PYRO)} <= pairs


def test_every_parameter_has_a_gradient():
    """Else gradients would agree because there are none."""
    for case in list(vi.cases((64,)))[:-2]:
        weights = list(case.model.parameters())
        numbers = vi._numbers(vi._wayfield(case.model, case.x), weights)
        assert len(numbers) == 1 + len(weights)
        assert all(bool(g.abs().max() > 0) for g in numbers), case.name


@pytest.mark.parametrize("what", ["value", "gradient"])
def test_another_number_is_refused(few, monkeypatch, what):
    class Wrong(vi_models.Chain):
        def by_hand(self, x):
            bound = super().by_hand(x)
            more = 1e-2 * self.gain
            return bound + (more.detach() if what == "value" else more - more.detach()) * bound.detach().abs()

    monkeypatch.undo()
    monkeypatch.setattr(vi, "_compiled", lambda case, weights: {})
    case = vi.Case("chain", Wrong(), torch.linspace(-1, 1, 8))
    with pytest.raises(OutputsDifferError, match="by hand"):
        compete(case, 1)


def test_missing_peers_give_warnings_and_no_rows(few, monkeypatch, capsys):
    def missing(name):
        return peers._missing(name, None)

    def absent(name="storch"):
        raise missing(name)

    for module in (vi, vi_models):
        monkeypatch.setattr(module, "peer", absent)
    monkeypatch.setattr(vi_models, "storchastic", absent)
    rows = compete(next(vi.cases((64,))), 1)
    assert {row.peer for row in rows} == {HAND}
    told = capsys.readouterr().err
    assert "no row for pyro" in told
    assert "no row for storchastic" in told


def test_nothing_is_left_of_storchastics_import_and_of_the_checks():
    from torch.distributions import Distribution

    before = torch.is_tensor, torch.Tensor.to, torch.Tensor.le, torch.Tensor.gt, Distribution._validate_args
    vi_models.storchastic()
    with vi._unchecked():
        assert not Distribution._validate_args
    assert (torch.is_tensor, torch.Tensor.to, torch.Tensor.le, torch.Tensor.gt, Distribution._validate_args) == before


def test_draws_are_those_of_the_seed():
    """Steps of one peer differ from each other, and equal seeds give equal numbers."""
    case = next(vi.cases((64,)))
    with seeded(3):
        a, b = case.model.by_hand(case.x), case.model.by_hand(case.x)
    with seeded(3):
        c = case.model.by_hand(case.x)
    assert a.item() == c.item() != b.item()
