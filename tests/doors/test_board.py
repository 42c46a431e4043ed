"""TensorBoard shows what the log says, once, also after a training that was interrupted and went on."""

from __future__ import annotations

import errno
import json
import os
import sys

import pytest
from doorkit import CONFIG, write_config
from PIL import Image

from wayfield.cli import main
from wayfield.doors.board import BOARD, Board
from wayfield.doors.watching import Watching


@pytest.fixture
def shown():
    """What TensorBoard would show of a folder: {name: [(step, value)]}, and the steps of its pictures."""
    pytest.importorskip("tensorboard", reason='TensorBoard is not there: pip install "wayfield[tensorboard]"')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        events = EventAccumulator(str(folder / BOARD), size_guidance={"images": 0}).Reload()
        tags = events.Tags()
        scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags["scalars"]}
        return scalars, [e.step for tag in tags["images"] for e in events.Images(tag)]

    return read


def test_curves_and_sheets(shown, tmp_path):
    config = write_config(tmp_path, train={**CONFIG["train"], "sample_every": 3})
    assert main(["train", config, "--out", str(tmp_path), "--tensorboard"]) == 0
    scalars, pictures = shown(tmp_path)
    assert sorted(scalars) == ["grad_norm", "loss", "lr", "samples_per_second"]
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for name, points in scalars.items():
        assert [step for step, _ in points] == [2, 4, 6]
        assert [value for _, value in points] == pytest.approx([line[name] for line in log])
    assert pictures == [3, 6]


def test_steps_that_are_repeated_after_a_kill_appear_once(shown, tmp_path):
    def entry(step, loss):
        return {"step": step, "loss": loss}

    first = Board(tmp_path / BOARD)
    for step in (10, 20, 30, 40):
        first.line(entry(step, 1.0))
        first.picture(Image.new("RGB", (6, 4)), step)
    first.close()  # killed here, the checkpoint was of step 15
    second = Board(tmp_path / BOARD)
    for step in (20, 30, 40, 50):
        second.line(entry(step, 2.0))
        second.picture(Image.new("RGB", (6, 4)), step)
    second.close()
    scalars, pictures = shown(tmp_path)
    assert scalars == {"loss": [(10, 1.0), (20, 2.0), (30, 2.0), (40, 2.0), (50, 2.0)]}
    assert pictures == [10, 20, 30, 40, 50]


def test_without_tensorboard_the_command_that_installs_it_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    out = tmp_path / "out"
    assert main(["train", write_config(tmp_path), "--out", str(out), "--tensorboard"]) == 1
    assert 'pip install "wayfield[tensorboard]"' in capsys.readouterr().err
    assert not out.exists()  # before the first step


def test_a_disk_that_is_full_ends_the_board_and_not_the_training(tmp_path):
    class Full:
        calls = 0

        def line(self, entry):
            self.calls += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    said, board = [], Full()
    watch = Watching(tmp_path, said.append, lines=True, board=board)
    entry = {"step": 3, "loss": 0.5, "grad_norm": 1.0, "lr": 1e-3, "samples_per_second": 100.0}
    with pytest.warns(RuntimeWarning, match="TensorBoard.* could not be written: .*No space left"):
        watch.line(entry)
    watch.line(entry)
    watch.close()
    assert board.calls == 1
    assert len([text for text in said if text.startswith("step")]) == 2
