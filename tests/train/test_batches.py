"""Batches are pure functions of (seed, step, position): epochs are permutations, shares are slices, nothing moves."""

from __future__ import annotations

import pytest
import torch
from tiny_training import SCHEMA, config, points

from wayfield.core.path import EDM
from wayfield.field.cond import Schema
from wayfield.train.batches import draw, indices, share_of


def test_every_epoch_visits_every_sample_once_in_a_new_order():
    size, batch = 50, 8
    stream = torch.cat([indices(3, size, batch, step, range(batch)) for step in range(25)])
    epochs = stream.reshape(4, size)
    assert torch.equal(epochs.sort(1).values, torch.arange(size).expand(4, size))
    assert len({tuple(e.tolist()) for e in epochs}) == 4
    assert not torch.equal(stream[:50], torch.cat([indices(4, size, batch, i, range(batch)) for i in range(7)])[:50])


def test_a_batch_may_be_larger_than_the_data():
    out = indices(0, 5, 12, 0, range(12))
    assert torch.equal(out[:10].reshape(2, 5).sort(1).values, torch.arange(5).expand(2, 5))


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_shares_are_the_slices_of_the_global_batch(world):
    data, settings = points(), config(drop=0.5)
    whole = draw(data, SCHEMA, EDM(10.0), settings, 11, range(9))
    shares = [share_of(9, rank, world) for rank in range(world)]
    assert [k for share in shares for k in share] == list(range(9))
    parts = [draw(data, SCHEMA, EDM(10.0), settings, 11, share) for share in shares]
    for name in ("x0", "t", "eps"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts]))
    assert torch.equal(whole.cond["label"], torch.cat([p.cond["label"] for p in parts]))


def test_draws_are_repeatable_differ_between_steps_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b, c = (draw(points(), SCHEMA, EDM(10.0), config(), step, range(9)) for step in (4, 4, 5))
    assert torch.equal(a.eps, b.eps)
    assert torch.equal(a.t, b.t)
    assert not torch.equal(a.eps, c.eps)
    assert not torch.equal(a.t, c.t)
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_are_dropped_at_the_stated_rate_independently_of_the_level():
    data, settings = points(1000), config(batch=1000, drop=0.3)
    batches = [draw(data, SCHEMA, EDM(10.0), settings, step, range(1000)) for step in range(10)]
    dropped = torch.cat([b.cond["label"] == 3 for b in batches]).double()
    assert float(dropped.mean()) == pytest.approx(0.3, abs=0.015)  # 3.3 standard errors
    levels = torch.cat([b.t for b in batches]).log()
    assert abs(float(torch.corrcoef(torch.stack([dropped, levels]))[0, 1])) < 0.03
    assert bool((draw(data, SCHEMA, EDM(10.0), config(drop=1.0), 0, range(9)).cond["label"] == 3).all())


def test_only_the_chosen_conditions_are_kept():
    assert draw(points(), Schema(), EDM(10.0), config(), 0, range(9)).cond == {}
