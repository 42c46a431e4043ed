"""What the bench compares and counts. No wall-clock assertions: times are facts about a machine, not about the code."""

import itertools
import json

import pytest
import torch

from wayfield import bench
from wayfield.bench import loops, peers, steps, timing
from wayfield.bench.timing import Contest, OutputsDifferError, close, compete, interleaved, spread
from wayfield.core.errors import MissingExtraError, UnknownNameError, WayfieldError

KEYS = ["case", "subject", "peer", "ratio", "low", "high", "calls", "rows"]


def ticks(*durations):
    """A clock on which the runs take these times, in the order in which they are run, for ever."""
    now, each = 0.0, itertools.cycle(durations)

    def stamps():
        nonlocal now
        while True:
            yield now
            now += next(each)
            yield now

    out = stamps()
    return lambda: next(out)


def test_rows_have_the_keys_that_scripts_depend_on():
    ones = torch.ones(3)
    (row,) = compete(Contest("case", lambda: ones, {"peer": lambda: ones}, 5, 40), 4, clock=ticks(1.0, 2.0, 2.0, 1.0))
    assert list(row._asdict()) == KEYS
    assert json.loads(json.dumps(row._asdict())) == row._asdict()
    assert (row.case, row.subject, row.peer, row.calls, row.rows) == ("case", "wayfield", "peer", 5, 40)


def test_order_turns_round_so_that_drift_hits_all_alike():
    order = []
    interleaved([lambda: order.append("a"), lambda: order.append("b")], 3, warmups=1)
    assert "".join(order) in ("abbaabba", "baabbaab")


def test_ratio_is_subject_over_peer_round_by_round():
    # rounds run b a, a b, b a, ...: the peer takes 2, the subject 1
    contest = Contest("case", lambda: torch.ones(1), {"peer": lambda: torch.ones(1)})
    (row,) = compete(contest, 4, warmups=0, clock=ticks(2.0, 1.0, 1.0, 2.0))
    assert (row.ratio, row.low, row.high) == (0.5, 0.5, 0.5)


def test_median_and_quantiles():
    assert spread([1.0, 2.0, 30.0], [1.0, 1.0, 10.0]) == pytest.approx((2.0, 1.2, 2.8))
    assert spread([3.0], [2.0]) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    "other",
    [torch.full((3,), 1.001), torch.ones(2), torch.tensor([1.0, 1.0, float("nan")])],
    ids=["far", "shape", "nan"],
)
def test_different_outputs_are_refused_before_timing(other):
    def never():
        raise AssertionError("timed")

    contest = Contest("case", lambda: torch.ones(3), {"good": lambda: torch.ones(3), "odd": lambda: other})
    with pytest.raises(OutputsDifferError, match="odd") as caught:
        compete(contest, 3, clock=never)
    assert isinstance(caught.value, WayfieldError)


def test_outputs_are_compared_relative_to_their_size():
    big = torch.tensor([1e4, 1.0])
    assert close(big + 0.5, big)
    assert not close(big + 2.0, big)


def test_threads_are_pinned_and_restored():
    before, seen = torch.get_num_threads(), []

    def subject():
        seen.append(torch.get_num_threads())
        return torch.ones(1)

    torch.set_num_threads(2)
    try:
        compete(Contest("case", subject, {"peer": lambda: torch.ones(1)}), 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_every_small_case_agrees_with_its_peers_and_is_counted():
    n = 5  # divides the table of 1000 rows, as diffusers' DDIM wants it
    cases = list(steps._small(n))
    faced = {(c.case, name) for c in cases for name in c.peers}
    assert {"by hand", "diffusers", "k-diffusion", "azula"} <= {name for _, name in faced}
    assert {("ddim", "by hand"), ("dpm2m", "by hand")} <= faced
    for contest in cases:
        rows = compete(contest, 1, warmups=0)
        # CFG in one doubled batch of 2 x 4 rows a step
        assert {(row.calls, row.rows) for row in rows} == {(n, 8 * n)}


def test_slow_network_agrees():
    contest = steps._slow(2)
    assert contest.same(contest.subject(), contest.peers["by hand"]())
    assert contest.calls == 2


def test_noise_case_compares_distributions():
    contest = steps._noise()
    assert contest.same(contest.subject(), contest.peers["torch.randn"]())
    assert not contest.same(contest.subject(), 1.1 * contest.subject())


def test_a_missing_peer_gives_a_warning_and_no_row(monkeypatch, capsys):
    def missing(name):
        raise peers._missing(name, None)

    monkeypatch.setattr(loops, "peer", missing)
    cases = list(steps._small(2))
    assert "diffusers" not in {name for c in cases for name in c.peers}
    assert "no row for diffusers" in capsys.readouterr().err


def test_a_missing_peer_is_a_named_error():
    with pytest.raises(MissingExtraError, match="no_such_peer"):
        peers.peer("no_such_peer")


def test_k_diffusion_leaves_no_stand_ins_behind():
    import sys

    module = peers.k_diffusion_sampling()
    assert module.sample_euler.__module__ == "k_diffusion.sampling"
    assert not [name for name in sys.modules if name.split(".")[0] == "k_diffusion"]


def test_quick_suite_runs(monkeypatch):
    monkeypatch.setattr(steps, "STEPS", 5)
    monkeypatch.setattr(timing, "interleaved", lambda runs, rounds, **_: [[1.0] * rounds for _ in runs])
    rows = bench.run("steps", quick=True)
    assert {row.case for row in rows} >= {"ddim", "dpm2m", "noise", "import", "ddim, slow network"}
    assert all(row.ratio == 1.0 for row in rows if row.case != "import")


def test_unknown_suite():
    with pytest.raises(UnknownNameError, match="steps"):
        bench.run("step")
