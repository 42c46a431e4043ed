"""What the guidance suite compares and counts; times are never asserted."""

import pytest

from wayfield import bench
from wayfield.bench import guidance, guiders, peers, timing
from wayfield.bench.loops import Net
from wayfield.bench.timing import OutputsDifferError, compete
from wayfield.guide import CFG

STEPS = 10  # divides the table of 1000 rows, as diffusers' DDIM wants it
# network calls and branches per step: one doubled call, or one call for each of two networks
COSTS = {"cfg": (1, 2), "apg": (1, 2), "auto": (2, 2), "mix": (2, 3)}


@pytest.mark.parametrize("batch", guidance.BATCHES)
def test_every_tiny_case_agrees_with_its_peers_and_is_counted(batch):
    cases = list(guidance._tiny(batch, STEPS))
    faced = {(c.case.split(",")[0], name) for c in cases for name in c.peers}
    assert {(kind, "by hand") for kind in COSTS} <= faced
    assert {("cfg", "diffusers"), ("apg", "diffusers"), ("auto", "diffusers"), ("cfg", "azula")} <= faced
    for contest in cases:
        calls, branches = COSTS[contest.case.split(",")[0]]
        for row in compete(contest, 1, warmups=0):
            assert (row.calls, row.rows) == (calls * STEPS, branches * batch * STEPS), row.case


def test_slow_cases_agree(monkeypatch):
    monkeypatch.setattr(guidance, "SLOW_DEPTH", 2)
    for contest in guidance._slow(4, 2):
        hand = contest.peers["by hand"]()
        assert contest.same(contest.subject(), hand), contest.case


def test_guidance_is_not_idle_in_the_compared_runs():
    """Else outputs would agree whatever the guiders do."""
    world = guidance._world(4, STEPS, Net(rate=1e-3))
    plain = world.wayfield(guidance.DDIM(), CFG(1.0))().x
    outputs = [contest.subject() for contest in guidance._all("", world, Net(width=64, depth=2, rate=1e-3))]
    for k, one in enumerate([plain, *outputs]):
        assert not any(timing.close(one, other, 1e-2) for other in outputs[k:])


def test_the_third_term_acts_at_some_steps_only():
    world = guidance._world(1, guidance.STEPS, Net(rate=1e-3))
    log_snr = world.grid.path.log_snr(world.grid.times[:-1])
    inside = (log_snr >= guidance.LOW) & (log_snr <= guidance.HIGH)
    assert 0 < int(inside.sum()) < guidance.STEPS


def test_apg_clips_and_remembers_in_the_compared_runs():
    """The clip and the momentum change the run, so that agreement with peers covers them."""
    world = guidance._world(4, STEPS, Net(rate=1e-3))
    full = guiders.by_hand(world, guiders.apg_by_hand(world, guidance.W, guidance.R, guidance.BETA))()
    for r, beta in ((1e9, guidance.BETA), (guidance.R, 0.0)):
        assert not timing.close(guiders.by_hand(world, guiders.apg_by_hand(world, guidance.W, r, beta))(), full)


def test_a_wrong_guider_is_refused():
    world = guidance._world(4, STEPS, Net(rate=1e-3))
    wrong = {"diffusers": lambda: guiders.guider(world, "ClassifierFreeGuidance", {"guidance_scale": 3.1})}
    contest = guidance._contest("cfg", world, CFG(3.0), wrong)
    with pytest.raises(OutputsDifferError, match="diffusers"):
        compete(contest, 1)


@pytest.mark.parametrize(("batch", "calls"), [(1, 1), (4, 1), (16, 2)])
def test_batching_contest_covers_both_choices(batch, calls):
    """Merging stops at 65,536 input numbers: 2 x 4 pictures of 3 x 32 x 32 are below that, 2 x 16 above."""
    contest = guidance._batching(batch, 1)
    assert (contest.calls, contest.rows) == (calls, 2 * batch)
    assert all(contest.same(contest.subject(), peer()) for peer in contest.peers.values())


def test_a_missing_peer_gives_a_warning_and_no_row(monkeypatch, capsys):
    def missing(name):
        return peers.peer("no_such_peer")

    monkeypatch.setattr(guiders, "peer", missing)
    cases = list(guidance._tiny(1, 2))
    assert {name for c in cases for name in c.peers} == {"by hand"}
    assert "no row for diffusers" in capsys.readouterr().err


def test_quick_suite_runs(monkeypatch):
    monkeypatch.setattr(guidance, "STEPS", STEPS)
    monkeypatch.setattr(guidance, "SLOW_DEPTH", 2)
    monkeypatch.setattr(timing, "interleaved", lambda runs, rounds, **_: [[1.0] * rounds for _ in runs])
    rows = bench.run("guidance", quick=True)
    assert {row.case.split(",")[0] for row in rows} == {*COSTS, "batching"}
    assert {row.case for row in rows if "slow" in row.case} >= {f"cfg, batch {b}, slow network" for b in (1, 4, 16)}
    assert all(row.ratio == 1.0 for row in rows)
