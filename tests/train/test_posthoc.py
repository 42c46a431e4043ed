"""Post-hoc averages: exact where the wanted profile was kept or nothing moved, close to the true average else."""

from __future__ import annotations

import math

import pytest
import torch

from wayfield import files
from wayfield.core.errors import CheckpointError, RangeError
from wayfield.train.ema import PowerEMA, power_gamma
from wayfield.train.posthoc import Snapshot, posthoc_weights, read_snapshots, synthesise, write_snapshot

BATCH, STEPS = 4, 2000
KEPT = PowerEMA((0.05, 0.1))


def weights_at(step: int) -> dict[str, torch.Tensor]:
    """A network that learns: two smooth curves and a wiggle, with an integer that counts."""
    x = step / STEPS
    curve = torch.tensor([math.exp(-3 * x), math.sqrt(x), x + 0.1 * math.sin(40 * x)], dtype=torch.float64)
    return {"w": curve, "still": torch.tensor([2.5]), "count": torch.tensor(step)}


def averaged(average: PowerEMA, until: int, every: int) -> list[Snapshot]:
    state, out = average.init(weights_at(0)), []
    for step in range(1, until + 1):
        average.update(state, weights_at(step), seen=step * BATCH, batch=BATCH)
        if step % every == 0:
            for width, track in zip(average.widths, average.tracks, strict=True):
                tensors = {k: v.clone() for k, v in average.read(state, track).items()}
                out.append(Snapshot(step * BATCH, width, tensors))
    return out


@pytest.fixture(scope="module")
def kept() -> list[Snapshot]:
    return averaged(KEPT, STEPS, STEPS // 16)


def test_a_kept_profile_is_returned_exactly(kept):
    for k, snapshot in enumerate(kept):
        c = posthoc_weights([s.seen for s in kept], [s.width for s in kept], at=snapshot.seen, width=snapshot.width)
        assert torch.allclose(c, torch.eye(len(kept), dtype=torch.float64)[k], atol=1e-7)
    out = synthesise(kept, 0.1)
    assert torch.allclose(out["w"], kept[-1].tensors["w"], rtol=1e-9)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.15, 0.25])
def test_weights_sum_to_one_so_what_did_not_move_is_exact(kept, width):
    assert float(
        posthoc_weights([s.seen for s in kept], [s.width for s in kept], at=STEPS, width=width).sum()
    ) == pytest.approx(1)
    out = synthesise(kept, width, at=STEPS * BATCH * 0.7)
    assert out["still"].dtype == torch.float32
    assert torch.allclose(out["still"], torch.tensor([2.5]), rtol=1e-6)
    assert int(out["count"]) == STEPS


@pytest.mark.parametrize(("width", "bar"), [(0.04, 2e-3), (0.07, 2e-4), (0.12, 1e-3), (0.2, 5e-3)])
def test_other_widths_come_close_to_the_average_that_was_not_kept(kept, width, bar):
    (truth,) = averaged(PowerEMA((width,)), STEPS, STEPS)
    error = (synthesise(kept, width)["w"] - truth.tensors["w"]).abs().max()
    nearest = min((s for s in kept if s.seen == STEPS * BATCH), key=lambda s: abs(s.width - width))
    plain = (nearest.tensors["w"] - truth.tensors["w"]).abs().max()
    assert float(error) < bar
    assert float(error) < 0.25 * float(plain)


def test_the_combination_solves_the_least_squares_problem_of_the_profiles():
    seen, widths, n = [2.0, 3.0, 3.0], [0.05, 0.05, 0.1], 60_000
    tau = (torch.arange(n, dtype=torch.float64) + 0.5) * 3 / n

    def profile(at, width):
        g = power_gamma(width)
        return torch.where(tau <= at, (g + 1) * tau**g / at ** (g + 1), 0.0)

    columns = torch.stack([profile(a, w) for a, w in zip(seen, widths, strict=True)], 1)
    c = torch.linalg.lstsq(columns, profile(3.0, 0.08)[:, None]).solution[:, 0]
    assert torch.allclose(posthoc_weights(seen, widths, at=3.0, width=0.08), c / c.sum(), atol=1e-4)


def test_snapshots_survive_the_disk(kept, tmp_path):
    for snapshot in kept[-4:]:
        write_snapshot(tmp_path, snapshot)
    back = read_snapshots(tmp_path)
    assert {(s.seen, s.width) for s in back} == {(s.seen, s.width) for s in kept[-4:]}
    assert torch.equal(synthesise(back, 0.1)["w"], synthesise(kept[-4:], 0.1)["w"])


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no snapshots"):
        read_snapshots(tmp_path)
    files.write(tmp_path / "other.safetensors", {"w": torch.zeros(1)}, {"format": "else"})
    with pytest.raises(CheckpointError, match="a snapshot"):
        read_snapshots(tmp_path)


@pytest.mark.parametrize(
    ("seen", "widths", "at", "width"),
    [([], [], 1, 0.1), ([1], [0.1, 0.2], 1, 0.1), ([4], [0.1], 5, 0.1), ([4], [0.1], 4, 0.5), ([0], [0.1], 1, 0.1)],
)
def test_bad_requests_are_refused(seen, widths, at, width):
    with pytest.raises(RangeError):
        posthoc_weights(seen, widths, at=at, width=width)
