"""Settings are checked when they are made; the learning rate rises, stays and falls as written."""

from __future__ import annotations

from itertools import pairwise

import pytest

from wayfield.core.errors import DTypeError, RangeError, UnknownNameError
from wayfield.train import EMA, LogNormal, TrainConfig, Weight, learning_rate


def test_learning_rate():
    config = TrainConfig(steps=100, lr=2.0, warmup=10, decay=0.4)
    rates = [learning_rate(config, i) for i in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:61] == pytest.approx([2.0] * 51)
    assert rates[61:] == pytest.approx([2.0 * (100 - i) / 40 for i in range(61, 100)])
    assert [learning_rate(TrainConfig(steps=5, lr=1.0, decay=0.0), i) for i in range(5)] == [1.0] * 5
    assert learning_rate(TrainConfig(steps=1, lr=1.0, decay=1.0), 0) == 1.0


def test_cycles_repeat_the_schedule_of_a_shorter_training():
    whole = TrainConfig(steps=300, lr=2.0, warmup=10, decay=0.4, cycles=3)
    part = TrainConfig(steps=100, lr=2.0, warmup=10, decay=0.4)
    assert [learning_rate(whole, i) for i in range(300)] == [learning_rate(part, i % 100) for i in range(300)]


@pytest.mark.parametrize(("steps", "cycles"), [(10, 3), (7, 7), (100, 9)])
def test_cycles_of_odd_lengths_cover_all_steps(steps, cycles):
    config = TrainConfig(steps=steps, lr=1.0, decay=1.0, cycles=cycles)
    rates = [learning_rate(config, i) for i in range(steps)]
    starts = [i for i, rate in enumerate(rates) if rate == 1.0]
    lengths = [b - a for a, b in pairwise([*starts, steps])]
    assert starts[0] == 0
    assert len(starts) == cycles
    assert max(lengths) - min(lengths) <= 1
    for start, n in zip(starts, lengths, strict=True):
        assert rates[start : start + n] == pytest.approx([(n - j) / n for j in range(n)])


def test_saving_more_often_is_the_same_run_and_anything_else_is_not():
    base = TrainConfig()
    assert TrainConfig(save_every=7, snapshot_every=3, sample_every=2).identity() == base.identity()
    for change in (
        {"steps": 7},
        {"seed": 1},
        {"log_every": 9},
        {"levels": LogNormal()},
        {"ema": None},
        {"cycles": 2},
        {"optimizer": "muon"},
        {"muon_lr": 0.01},
        {"weight": Weight("v")},
    ):
        assert TrainConfig(**change).identity() != base.identity()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"steps": 0}, RangeError),
        ({"steps": 10.0}, DTypeError),
        ({"batch": True}, DTypeError),
        ({"lr": 0.0}, RangeError),
        ({"lr": float("inf")}, RangeError),
        ({"warmup": -1}, RangeError),
        ({"decay": 1.5}, RangeError),
        ({"drop": -0.1}, RangeError),
        ({"weight_decay": -1.0}, RangeError),
        ({"clip": 0.0}, RangeError),
        ({"betas": (0.9,)}, DTypeError),
        ({"betas": (0.9, 1.0)}, RangeError),
        ({"seed": -1}, RangeError),
        ({"log_every": 0}, RangeError),
        ({"save_every": 0}, RangeError),
        ({"snapshot_every": -1}, RangeError),
        ({"sample_every": -1}, RangeError),
        ({"cycles": 0}, RangeError),
        ({"cycles": 1501}, RangeError),
        ({"muon_lr": 0.0}, RangeError),
        ({"optimizer": "adam"}, UnknownNameError),
        ({"precision": "fp16"}, UnknownNameError),
        ({"weight": "snr"}, UnknownNameError),
        ({"weight": None}, DTypeError),
        ({"levels": "Uniform"}, DTypeError),
        ({"ema": 0.999}, DTypeError),
    ],
)
def test_bad_settings_are_refused_by_name(change, error):
    with pytest.raises(error, match=next(iter(change))):
        TrainConfig(**change)


def test_averages_and_weights_are_accepted():
    assert TrainConfig(ema=None, clip=None, weight=Weight("p2"), betas=[0.8, 0.9]).betas == (0.8, 0.9)
    assert TrainConfig(ema=EMA()).ema == EMA(0.9999)
