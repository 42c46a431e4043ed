"""What every step of a fit is given: the same for the same (seed, step), whatever happened before."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from wayfield.core.errors import DTypeError, RangeError, ShapeError
from wayfield.vi.feed import Feed, minibatches, step_seed
from wayfield.vi.parameters import named


def test_seeds_of_steps_differ_and_stay():
    seeds = {step_seed(seed, step, stage) for seed in range(3) for step in range(50) for stage in range(3)}
    assert len(seeds) == 3 * 50 * 3
    assert all(0 <= s < 2**63 for s in seeds)
    assert step_seed(1, 23) != step_seed(12, 3)
    assert step_seed(0, 0) == 4808561972376111626  # of b2sum: a run made again by a later version sees the same noise


def test_minibatches_visit_every_row_once_an_epoch():
    x = torch.arange(12.0)[:, None]
    feed = minibatches(x, 10 * x, batch=4)
    for seed in (0, 1):
        for epoch in range(2):
            rows = torch.cat([feed(3 * epoch + k, seed)[0][:, 0] for k in range(3)])
            assert sorted(rows.tolist()) == list(range(12))
    first, second = feed(5, 0)
    assert torch.equal(10 * first, second)
    assert torch.equal(first, feed(5, 0)[0])
    assert not torch.equal(first, feed(5, 1)[0])


def test_minibatches_refuse_what_has_no_rows():
    with pytest.raises(ShapeError, match="minibatches"):
        minibatches(torch.zeros(3), torch.zeros(4), batch=2)
    for batch in (0, 4, 1.5):
        with pytest.raises(RangeError, match="batch"):
            minibatches(torch.zeros(3), batch=batch)
    with pytest.raises(RangeError, match="batch"):
        minibatches(torch.zeros(()), batch=1)
    with pytest.raises(ShapeError, match="minibatches"):
        minibatches(batch=1)


def test_fixed_arguments_and_functions():
    x = torch.ones(2, 3)
    assert Feed((x, 5), 0)(7) == (x, 5)
    assert Feed(x, 0)(7) == (x,)  # a tensor is an argument, not a list of rows
    assert Feed(lambda step, seed: (step, seed), 9)(7) == (7, 9)
    assert Feed(lambda step, seed: x, 9)(7) == (x,)


def test_a_list_begins_again_and_may_be_entered_anywhere():
    batches = [(torch.tensor(1.0),), [torch.tensor(2.0), 3], torch.tensor(4.0)]
    feed = Feed(batches, 0)
    assert [feed(k) for k in range(4)] == [(1.0,), (2.0, 3), (4.0,), (1.0,)]
    assert feed(3) == (1.0,)
    assert Feed(batches, 0)(7) == (2.0, 3)


def test_a_loader_shuffles_the_same_way_again():
    """Whatever the caller's generator does, and from wherever the run is taken up."""
    x = torch.arange(20.0)
    runs = []
    for disturb in (False, True):
        feed = Feed(DataLoader(TensorDataset(x), 5, shuffle=True), 3)
        steps = []
        for k in range(8):
            steps.append(feed(k)[0])
            if disturb:
                torch.empty(7).normal_()
        runs.append(torch.stack(steps))
    assert torch.equal(*runs)
    assert torch.equal(Feed(DataLoader(TensorDataset(x), 5, shuffle=True), 3)(6)[0], runs[0][6])
    assert sorted(runs[0][:4].flatten().tolist()) == x.tolist()
    assert not torch.equal(runs[0][:4], runs[0][4:])
    assert not torch.equal(runs[0][0], Feed(DataLoader(TensorDataset(x), 5, shuffle=True), 4)(0)[0])


def test_what_runs_out_is_named():
    feed = Feed(iter([1, 2]), 0)
    assert feed(1) == (2,)
    with pytest.raises(RangeError, match="data: got 2 items"):
        feed(2)
    with pytest.raises(RangeError, match="data: got 0 items"):
        Feed([], 0)(0)


@pytest.mark.parametrize("bad", [{"x": 1}, "x", 3, None])
def test_data_of_another_kind_is_refused(bad):
    with pytest.raises(DTypeError, match="data"):
        Feed(bad, 0)


def test_parameters_have_names():
    a, net = torch.zeros(2, requires_grad=True), nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    assert list(named(a).tensors) == ["0"]
    assert list(named(net).tensors) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert list(named([a, net]).tensors)[:2] == ["0", "1.0.weight"]
    assert list(named({"scale": a, "net": net}).tensors)[:2] == ["scale", "net.0.weight"]
    assert len(named(net).buffers) == 3
    net[0].bias.requires_grad_(False)
    assert "0.bias" not in named(net).tensors
    assert list(named([net, net[0], a, a]).tensors) == ["0.0.weight", "0.1.weight", "0.1.bias", "2"]


def test_parameters_that_cannot_be_trained_are_refused():
    for empty in ([], {}, nn.Sequential(), [nn.ReLU()], nn.Linear(1, 1).requires_grad_(False)):
        with pytest.raises(RangeError, match="none that can be trained"):
            named(empty)
    a = torch.zeros(2, requires_grad=True)
    with pytest.raises(DTypeError, match="'s': got a tensor without gradient"):
        named({"s": a.detach()})
    with pytest.raises(DTypeError, match="'1': got a computed tensor"):
        named([a, a.exp()])
    with pytest.raises(DTypeError, match="'0': got float"):
        named([1.0])
    with pytest.raises(DTypeError, match="parameters"):
        named(3)
