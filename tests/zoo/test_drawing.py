"""Drawing samples to be judged, choosing a scale, and the distances that all judges share."""

from __future__ import annotations

import pytest
import torch

from wayfield.core.path import EDM, Cosine, Straight
from wayfield.data.dataset import InMemory
from wayfield.zoo.judging.distances import evenly, frechet, nearest, nearest_ratio
from wayfield.zoo.judging.drawing import best_scale, draw, grid_of


@pytest.mark.parametrize("path", [EDM(20.0), EDM(400.0), Cosine(), Straight()], ids=repr)
def test_the_grid_starts_at_80_or_at_the_end_of_the_path(path):
    grid = grid_of(path)
    sigma = (-grid.lam[:-1]).exp()
    assert grid.steps == 20
    assert float(sigma[0]) == pytest.approx(20.0 if path == EDM(20.0) else 80.0, rel=1e-6)
    assert float(sigma[-1]) == pytest.approx(0.02, rel=1e-6)
    assert grid.t[-1] == 0


def test_samples_do_not_depend_on_how_many_are_drawn_at_once(mixture):
    model = mixture(Straight(), 2)
    labels = torch.arange(70) % 2  # more than one batch
    x = draw(model, {"label": labels}, w=1.5, seed=3, steps=4)
    torch.testing.assert_close(draw(model, {"label": labels[66:]}, w=1.5, seed=3, steps=4, first=66), x[66:])
    assert not torch.equal(draw(model, {"label": labels[:4]}, w=1.0, seed=3, steps=4), x[:4])


def test_the_smallest_of_equally_good_scales_is_taken():
    assert best_scale((1.0, 2.0, 3.0, 5.0), {1.0: 0.1, 2.0: 0.7, 3.0: 0.7, 5.0: 0.3}.__getitem__)[0] == 2.0
    assert best_scale((3.0, 1.0), lambda w: 0.0) == (1.0, {3.0: 0.0, 1.0: 0.0})


def test_nearest_distances_in_closed_form():
    line = torch.arange(5.0)[:, None, None]  # five pictures of one pixel: 0, 1, 2, 3, 4
    assert nearest(torch.tensor([[[0.25]], [[9.0]]]), line) == pytest.approx((0.25 + 5.0) / 2)
    assert nearest_ratio(line[:2] + 0.1, line[:3] + 0.4, line) == pytest.approx(0.25)
    assert nearest_ratio(line, line + 0.4, line) == 0.0


def test_the_frechet_distance_of_few_samples_is_allowed_and_silent():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    assert frechet(x, x + 3.0) == pytest.approx(18.0)


def test_samples_are_spread_evenly_over_a_dataset():
    x, cond = evenly(InMemory(torch.arange(10.0)[:, None]), 5)
    assert x[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert cond == {}
    assert len(evenly(InMemory(torch.arange(10.0)[:, None]), 50)[0]) == 10
