"""What the suite "diffusers" compares and counts; times are never asserted."""

import pytest
import torch
from torch import nn

from wayfield import bench
from wayfield.bench import pipelines, timing
from wayfield.bench.peers import peer
from wayfield.bench.pipelines import Cost, Size, cost
from wayfield.bench.timing import OutputsDifferError, compete

pytest.importorskip("diffusers", reason="pip install diffusers")
pytest.importorskip("transformers", reason="pip install transformers")

SMALL, STEPS = Size(4, 8), 4  # 4 divides the table of 1000 rows


@pytest.fixture(scope="module")
def settings():
    return {s.case: s for s in pipelines._settings(SMALL, STEPS, tuple(pipelines.SCHEDULERS))}


def test_every_case_agrees_with_both_pipelines_and_is_counted(settings):
    assert list(settings) == [f"{name}, batch {batch}" for name in ("ddim", "dpm++ 2m") for batch in (1, 4)]
    for case, setting in settings.items():
        rows = compete(setting.contest(), 1, warmups=0)
        assert [row.peer for row in rows] == ["classic", "modular"]
        assert {(row.calls, row.rows) for row in rows} == {(STEPS, 2 * setting.batch * STEPS)}, case


def test_pictures_are_inside_their_range_and_tell_scales_and_texts_apart(settings):
    """Else outputs would agree whatever the pipelines do."""
    setting = settings["ddim, batch 4"]
    pictures = setting.ours().images
    assert float(((pictures > 0) & (pictures < 1)).float().mean()) > 0.99
    for w in (1.0, 1.02 * pipelines.W):
        assert not timing.close(setting.ours(w).images, pictures)
    assert not any(timing.close(pictures[k], pictures[k + 1], 1e-2) for k in range(3))


def test_schedulers_give_different_pictures(settings):
    ddim, dpm = (settings[f"{name}, batch 1"].ours().images for name in pipelines.SCHEDULERS)
    assert not timing.close(ddim, dpm, 1e-3)


def test_another_scale_is_refused(settings, monkeypatch):
    contest = settings["ddim, batch 1"].contest()
    monkeypatch.setattr(pipelines, "W", 1.02 * pipelines.W)  # theirs reads it in the call
    with pytest.raises(OutputsDifferError, match="classic"):
        compete(contest, 1)


def test_counts_of_a_run_that_is_known():
    net = nn.Linear(1024, 1024, bias=False)
    x = torch.zeros(2, 1024)

    def run():
        with torch.no_grad():
            y = net(x)
            del y
            float(net(x[:1]).sum())

    got = cost(run, net)
    assert got[:3] == Cost(calls=2, rows=3, reads=1, memory=0)[:3]
    assert 2 * 1024 * 4 <= got.memory < 2 * 2 * 1024 * 4
    assert cost(run, net)[:3] == got[:3]  # the hook of the first is gone


def test_count_rows(settings):
    rows = settings["ddim, batch 4"].counted()
    assert len(rows) == 2 * len(pipelines.COUNTS)
    by = {(row.peer, row.case.split(" (")[0]): row for row in rows}
    assert by["classic", "calls"].ratio == by["classic", "rows"].ratio == by["modular", "rows"].ratio == 1.0
    assert by["modular", "calls"].ratio == 0.5
    assert by["classic", "calls"].case == f"calls ({STEPS} to {STEPS}), ddim, batch 4"
    assert by["classic", "host reads"].ratio < 1


def test_a_step_of_ours_reads_nothing(settings):
    """Whatever set-up and the final check read, more steps must not read more often."""
    few, many = (
        cost(s.ours, s.pipe.unet)
        for s in (pipelines.Setting("", settings["ddim, batch 1"].pipe, None, 1, n) for n in (4, 8))
    )
    assert few.reads == many.reads
    assert (few.calls, many.calls) == (4, 8)


def test_a_diffusers_without_modular_pipelines_gives_a_warning_and_no_row(monkeypatch, capsys):
    class Older:
        def __getattr__(self, name):
            if name == "StableDiffusionXLAutoBlocks":
                raise AttributeError(name)
            return getattr(peer("diffusers"), name)

    monkeypatch.setattr(pipelines, "peer", lambda name: Older() if name == "diffusers" else peer(name))
    (setting, *_) = pipelines._settings(SMALL, 2, ("ddim",))
    assert list(setting.peers()) == ["classic"]
    assert "no row for modular" in capsys.readouterr().err


def test_quick_suite_runs(monkeypatch):
    monkeypatch.setattr(pipelines, "STEPS", 2)
    monkeypatch.setattr(pipelines, "FAST", SMALL)
    monkeypatch.setattr(pipelines, "MIDDLE", Size(8, 8))
    monkeypatch.setattr(pipelines, "SLOW", Size(8, 8))
    monkeypatch.setattr(timing, "interleaved", lambda runs, rounds, **_: [[1.0] * rounds for _ in runs])
    rows = bench.run("diffusers", quick=True)
    networks = ("", ", middle network", ", slow network")
    assert {row.case for row in rows} >= {f"ddim, batch {b}{also}" for b in (1, 4) for also in networks}
    assert all(row.ratio == 1.0 for row in rows if "(" not in row.case)
