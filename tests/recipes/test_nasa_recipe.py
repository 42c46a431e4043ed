"""The recipe of NASA: the world is as described, the machinery runs, and each criterion can fail."""

import math

import pytest
import torch

from wayfield.recipes.nasa import ALPHAS, KINDS, SHAPE, _chosen, _drawn, _kind, _Sizes, _trained, _verdict, run

ARMS = ["none", "CFG 1.5", "CFG 2.5", "embedding 0.5", "embedding 1", *(f"NASA {a:g}" for a in ALPHAS)]


def test_the_world():
    z = torch.randn(6000, 4, generator=torch.Generator().manual_seed(0))
    drawn = _kind(z, torch.full((6000,), SHAPE)).bincount(minlength=3) / 6000
    torch.testing.assert_close(drawn, torch.full((3,), 1 / 3), rtol=0, atol=0.02)  # 3 standard deviations
    for kind in range(len(KINDS)):
        word = torch.full((6000,), kind + 2)
        assert (_kind(z, word) == kind).all()
        x = _drawn(z, _kind(z, word))
        assert x.shape == (6000, 1, 16, 16)
        assert x.abs().max() <= 1
        edge = torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], -1)
        assert edge.mean() < -0.9  # nothing is cut off
        assert x.amax((1, 2, 3)).min() > 0.5
    centred = torch.zeros(3, 4)
    disk, square, cross = ((_drawn(centred, torch.arange(3)) > 0).sum((1, 2, 3))).tolist()
    assert cross < min(disk, square)
    assert pytest.approx(square, rel=0.15) == 4 * 4.5**2 * 0.85**2
    assert math.pi * 4.5**2 == pytest.approx(disk, rel=0.15)


def test_training_is_seeded_and_learns():
    sizes = _Sizes(steps=12, batch=8)
    (first, loss), (again, _), (other, _) = (_trained(seed, sizes) for seed in (0, 0, 1))
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.stem.weight, other.stem.weight)
    _, longer = _trained(0, _Sizes(steps=60, batch=8))
    assert longer < loss


@pytest.mark.slow
def test_a_quick_run_reports_every_figure(tmp_path):
    report = run(2, True, tmp_path)
    assert len(report.per_seed) == 2
    for figures in report.per_seed:
        assert list(figures["settings"]) == ARMS
        assert all(math.isfinite(v) for arm in figures["settings"].values() for v in arm.values())
        assert [figures["settings"][name]["rows_per_sample"] for name in ARMS] == [1, 2, 2] + [1] * 9
    assert len(report.criteria) == 5
    assert all((tmp_path / name).exists() for name in report.pictures)
    assert report.write(tmp_path).exists()


def seeds(reader=0.99, chooser=None, share=0.1, clear=0.95, cfg=0.25, cfg_clear=0.8):
    """A seed that chooses NASA 0.3, and one that judges."""
    plain = {"share": 0.33, "clear": 0.99}
    arms = {name: dict(plain) for name in ARMS}
    arms["CFG 1.5"], arms["CFG 2.5"] = {"share": 0.3, "clear": 0.9}, {"share": cfg, "clear": cfg_clear}
    arms["NASA 0.8"] = {"share": 0.01, "clear": 0.5}
    first = {**arms, "NASA 0.3": {"share": 0.1, "clear": 0.95}, **(chooser or {})}
    judge = {**arms, "NASA 0.3": {"share": share, "clear": clear}}
    return [{"reader": reader, "settings": first}, {"reader": reader, "settings": judge}]


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, ()),
        ({"reader": 0.97}, (0,)),
        ({"share": 0.2}, (1,)),
        ({"clear": 0.88}, (2,)),
        ({"share": 0.16, "cfg": 0.15}, (3,)),
        ({"cfg_clear": 0.97}, (4,)),
        ({"share": math.nan}, (1, 3)),
    ],
    ids=str,
)
def test_each_criterion_can_fail(change, failed):
    assert [k for k, c in enumerate(_verdict(seeds(**change))) if not c.passed] == list(failed)


def test_the_first_seed_chooses():
    assert _chosen(seeds()[0]) == "NASA 0.3"
    assert _chosen(seeds(chooser={"NASA 0.2": {"share": 0.05, "clear": 0.9}})[0]) == "NASA 0.2"
    bad = {f"NASA {a:g}": {"share": 0.0, "clear": 0.5 + a / 10} for a in ALPHAS}
    assert _chosen(seeds(chooser=bad)[0]) == "NASA 1"
