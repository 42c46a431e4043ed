"""Experts: every level has exactly one, a level on the device finds it unread, and rows find their own."""

import copy

import pytest
import torch
from torch import nn

from wayfield.core.errors import DTypeError, RangeError
from wayfield.core.path import EDM, VP, Scales, Straight
from wayfield.core.schedule import tabulated
from wayfield.judge import MLPJudge
from wayfield.judge.experts import Expert, Experts, NoiseRanges
from wayfield.judge.lora import LoRA

T = 1000


def at(path, t, dtype=torch.float64):
    """The level at times t."""
    return Scales(*(c.to(dtype) for c in path.scales(torch.as_tensor(t, dtype=torch.float64))))


def bank(ranges, *, base=None, moved=True, seed=0):
    base = MLPJudge(3, 2, width=8, clean=True).double() if base is None else base
    experts = Experts(base.eval(), ranges, LoRA(rank=2), seed=seed)
    g = torch.Generator().manual_seed(5)
    for p in experts.adapters.parameters():
        p.data += 0.3 * moved * torch.randn(p.shape, dtype=torch.float64, generator=g).to(p)
    return experts


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", [1, 3, 5, 7, T])
def test_every_discrete_time_has_the_expert_that_trains_on_it(count, dtype):
    """Time number i belongs to n if floor(n T / N) <= i < floor((n + 1) T / N), in training and dispatch alike."""
    path = tabulated("linear", T)
    ranges = NoiseRanges.from_count(count, path)
    i = torch.arange(T)
    bounds = [n * T // count for n in range(count + 1)]
    want = torch.tensor([sum(k >= b for b in bounds[1:]) for k in range(T)])
    got = ranges.index(at(path, (i + 1) / T, dtype))
    assert torch.equal(got, want)
    assert got.unique().numel() == ranges.count == count
    for n in range(count):
        first, last = (v * T - 1 for v in ranges.times(n, path))  # times as numbers i
        assert first == pytest.approx(bounds[n] - 0.5 if n else -1, abs=1e-6)
        assert last == pytest.approx(bounds[n + 1] - 0.5 if n + 1 < count else T - 1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("path", [VP(), Straight(), EDM(20.0)], ids=str)
def test_ranges_are_half_open_in_time(path, dtype):
    """A level at an edge is the noisier side's; ends without noise or without signal have an expert too."""
    ranges = NoiseRanges.from_count(4, path)
    t = torch.tensor([0.0, 0.249, 0.25, 0.251, 0.499, 0.5, 0.501, 0.75, 1.0])
    assert ranges.index(at(path, t, dtype)).tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert [ranges.times(n, path) for n in (0, 3)] == [(0.0, pytest.approx(0.25)), (pytest.approx(0.75), 1.0)]


def test_ranges_cut_on_one_path_are_read_on_every_other():
    """By log-SNR: sigma/alpha = 1 is the edge, wherever it lies in time."""
    ranges = NoiseRanges((0.0,))
    for path, middle in ((Straight(), 0.5), (EDM(20.0), 0.05)):
        assert ranges.index(at(path, [middle * 0.99, middle * 1.01])).tolist() == [0, 1]
        assert ranges.times(0, path) == (0.0, pytest.approx(middle))


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_untrained_experts_are_the_network_to_the_bit(alpha, randn64):
    """f_n(x) = f(x / sqrt(alpha^2 + sigma^2)); with alpha = 1 and sigma = 0 it is f(x) itself."""
    x, experts = randn64(6, 3), bank(NoiseRanges((2.0, 0.0)), moved=False)
    one, zero = torch.tensor(alpha, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    level = Scales(one, zero, zero, zero)
    assert torch.equal(experts(x, level), experts.base(x / alpha))
    assert all(torch.equal(experts.answer(n, x, level), experts.base(x / alpha)) for n in range(3))


def test_one_range_is_a_single_judge_of_noise(randn64):
    x, experts = randn64(6, 3), bank(NoiseRanges())
    for t in (0.1, 0.9):
        assert torch.equal(experts(x, at(VP(), t)), Expert(experts, 0)(x, at(VP(), t)))
        assert torch.equal(experts(x, at(VP(), torch.full((6,), t))), experts(x, at(VP(), t)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_with_levels_of_their_own_answer_as_alone(randn64, dtype):
    ranges = NoiseRanges.from_count(5, VP())
    experts, x = bank(ranges).to(dtype), randn64(8, 3).to(dtype)
    t = torch.tensor([0.05, 0.2, 0.21, 0.39, 0.5, 0.77, 0.8, 1.0])
    assert ranges.index(at(VP(), t)).tolist() == [0, 1, 1, 1, 2, 3, 4, 4]
    got = experts(x, at(VP(), t, dtype))
    want = torch.cat([experts(x[k : k + 1], at(VP(), t[k], dtype)) for k in range(8)])
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert (experts.answer(0, x, at(VP(), t, dtype)) - got)[1:].abs().amax(1).min() > 1e-3  # experts differ


def test_pictures_and_dense_answers(randn64):
    base = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 1)).double()
    experts, x = bank(NoiseRanges((0.0,)), base=base), randn64(4, 2, 5, 5)
    got = experts(x, at(VP(), [0.1, 0.9, 0.1, 0.9]))
    assert got.shape == (4, 3, 5, 5)
    torch.testing.assert_close(got[1:2], experts(x[1:2], at(VP(), 0.9)), rtol=1e-12, atol=1e-12)


def test_a_merged_expert_is_a_network_of_its_own(randn64):
    x, experts = randn64(6, 3), bank(NoiseRanges((0.0,)))
    level = at(VP(), 0.9)
    alone = experts.merged(1)
    want = experts(x, level)
    torch.testing.assert_close(alone(x / torch.hypot(level.alpha, level.sigma)), want, rtol=1e-12, atol=1e-12)
    for p in experts.adapters.parameters():
        p.data.zero_()
    torch.testing.assert_close(alone(x / torch.hypot(level.alpha, level.sigma)), want, rtol=1e-12, atol=1e-12)


def test_everything_is_registered_and_only_adapters_learn(randn64):
    """Moves of dtype and copies take all experts along; one expert is kept by its own parameters."""
    experts = bank(NoiseRanges((2.0, 0.0)))
    assert {p.dtype for p in experts.float().parameters()} == {torch.float32}
    learning = [name for name, p in experts.named_parameters() if p.requires_grad]
    assert learning
    assert all(name.startswith("adapters.") for name in learning)
    other, x = bank(NoiseRanges((2.0, 0.0)), moved=False), randn64(2, 3)
    other.adapter(1).load_state_dict(experts.double().adapter(1).state_dict())
    assert torch.equal(other.answer(1, x, at(VP(), 0.5)), experts.answer(1, x, at(VP(), 0.5)))
    assert torch.equal(other.answer(0, x, at(VP(), 0.5)), other.base(x))
    assert torch.equal(copy.deepcopy(experts)(x, at(VP(), 0.5)), experts(x, at(VP(), 0.5)))


def test_the_given_network_is_neither_frozen_nor_changed():
    base = MLPJudge(3, 2, width=8, clean=True)
    before = copy.deepcopy(base.state_dict())
    bank(NoiseRanges(), base=base)
    assert all(p.requires_grad for p in base.parameters())
    assert all(torch.equal(before[k], v) for k, v in base.state_dict().items())


def test_a_batch_norm_keeps_its_statistics(randn64):
    """In training, too: no row's answer depends on the others."""
    base = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    experts, x = bank(NoiseRanges((0.0,)), base=base).train(), randn64(6, 3)
    assert experts.training
    before = experts.base[1].running_mean.clone()
    got = experts(x, at(VP(), 0.9))
    torch.testing.assert_close(got[2:3], experts(x[2:3], at(VP(), 0.9)), rtol=1e-12, atol=1e-12)
    assert torch.equal(before, experts.base[1].running_mean)


def test_share_of_parameters():
    """MLP 3-8-8-2 at rank 2: 2 (3 + 8) + 2 (8 + 8) + 16 of 24 + 8 + 64 + 8 + 16 + 2."""
    assert bank(NoiseRanges((0.0,))).share == pytest.approx(70 / 122)


def test_bad_ranges():
    for bad in (0, -1, 1.5, T + 1):
        with pytest.raises(RangeError, match="noise ranges"):
            NoiseRanges.from_count(bad, tabulated("linear", T))
    with pytest.raises(RangeError, match="falling"):
        NoiseRanges((0.0, 1.0))
    with pytest.raises(RangeError, match="finite"):
        NoiseRanges((float("inf"),))
    with pytest.raises(RangeError, match=r"times in \(0, 1\)"):
        NoiseRanges.from_times([0.0, 0.5], VP())
    for n in (-1, 2):
        with pytest.raises(RangeError, match="number of a noise range"):
            NoiseRanges((0.0,)).times(n, VP())
    with pytest.raises(RangeError, match="no level"):
        NoiseRanges((-20.0,)).times(1, EDM(10.0))
    with pytest.raises(DTypeError, match=r"nn\.Module"):
        Experts(lambda x: x, NoiseRanges())
    assert eval(repr(NoiseRanges((1.0, -1.0)))) == NoiseRanges((1.0, -1.0))
