import math
from itertools import pairwise

import pytest
import torch

from wayfield.core.errors import RangeError, ShapeError, UnknownNameError
from wayfield.core.noise import Address, BrownianNoise, RecordingNoise, ReplayNoise, SeededNoise, uniforms
from wayfield.core.path import VP

SHAPES = [(), (1,), (2,), (3, 5), (1, 8, 8), (3, 64, 64)]


@pytest.mark.parametrize("shape", SHAPES)
def test_sample_k_is_bit_equal_alone_and_in_any_batch(shape):
    whole = SeededNoise(7, 40).draw(shape, Address(3, 1))
    for k in (0, 1, 17, 39):
        assert torch.equal(SeededNoise(7, [k]).draw(shape, Address(3, 1))[0], whole[k])
    assert torch.equal(SeededNoise(7, range(16, 40)).draw(shape, Address(3, 1)), whole[16:])
    order = [5, 30, 31, 2, 2]
    assert torch.equal(SeededNoise(7, order).draw(shape, Address(3, 1)), whole[order])


def test_every_part_of_the_address_counts():
    base = SeededNoise(0, 4).draw((5,), Address(0, 0))
    others = [
        SeededNoise(1, 4).draw((5,), Address(0, 0)),
        SeededNoise(0, 4).draw((5,), Address(1, 0)),
        SeededNoise(0, 4).draw((5,), Address(0, 1)),
        SeededNoise(0, 4).draw((5,), Address(-1, 0)),
        SeededNoise(0, range(10_000, 10_004)).draw((5,), Address(0, 0)),
        SeededNoise(1 << 33, 4).draw((5,), Address(0, 0)),
    ]
    for k, other in enumerate(others):
        assert not torch.isclose(base, other).any(), k


def test_moments_and_independence():
    """Means over 40 x 40,000 numbers; bounds are 5 standard errors (false alarm below 1e-6 each)."""
    draws = torch.stack([SeededNoise(3, 20_000).draw((2,), Address(i)).flatten() for i in range(40)])
    n = draws.numel()
    assert abs(draws.mean()) < 5 / math.sqrt(n)
    assert abs(draws.var() - 1) < 5 * math.sqrt(2 / n)
    corr = draws @ draws.T / draws.shape[1] - torch.eye(40)
    assert corr.abs().max() < 5.5 / math.sqrt(draws.shape[1])


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    SeededNoise(0, 3).draw((4,), Address(0))
    BrownianNoise(0, 3).draw((4,), Address(0, 0, 0.5, 0.2))
    assert torch.equal(before, torch.get_rng_state())


class TestBrownian:
    def test_increments_add_up(self):
        """A finer grid refines the same path: W(.9) - W(.1) is the sum over any cut."""
        w = BrownianNoise(1, 6)
        cuts = [0.9, 0.77, 0.5, 0.31, 0.1]
        total = w.draw((3,), Address(0, 0, 0.9, 0.1)) * math.sqrt(0.8)
        parts = [w.draw((3,), Address(i, 0, t, s)) * math.sqrt(t - s) for i, (t, s) in enumerate(pairwise(cuts))]
        torch.testing.assert_close(sum(parts), total, rtol=0, atol=1e-5)

    def test_order_of_questions_does_not_matter(self):
        spans = [(0.9, 0.7), (0.7, 0.2), (0.2, 0.05), (0.9, 0.7), (0.55, 0.54)]
        forwards = BrownianNoise(1, 6)
        first = [forwards.draw((3,), Address(0, 0, *s)) for s in spans]
        backwards = BrownianNoise(1, 6)
        second = [backwards.draw((3,), Address(0, 0, *s)) for s in reversed(spans)]
        assert all(torch.equal(a, b) for a, b in zip(first, reversed(second), strict=True))

    @pytest.mark.parametrize("clock", [None, VP()])
    def test_increments_are_standard_normal_and_independent(self, clock):
        """KS distance of 40,000 numbers from the normal law, below the 1e-6 quantile (2.7 / sqrt n); correlations below
        5 se.
        """
        w = BrownianNoise(2, 40_000, clock)
        a = w.draw((), Address(0, 0, 0.83, 0.41)).double()
        b = w.draw((), Address(1, 0, 0.41, 0.4)).double()
        n = len(a)
        for z in (a, b):
            cdf = torch.special.ndtr(z.sort().values)
            ks = (cdf - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max()
            assert ks < 2.7 / math.sqrt(n)
        assert abs((a * b).mean()) < 5 / math.sqrt(n)

    def test_batch_independence_and_start(self):
        whole = BrownianNoise(1, 9)
        alone = BrownianNoise(1, [4])
        at = Address(2, 0, 0.6, 0.5)
        assert torch.equal(alone.draw((2, 2), at)[0], whole.draw((2, 2), at)[4])
        start = Address(-1, 0, 1.0, 1.0)
        assert torch.equal(whole.draw((2, 2), start), SeededNoise(1, 9).draw((2, 2), start))

    def test_empty_interval_is_refused(self):
        with pytest.raises(RangeError):
            BrownianNoise(0, 1).draw((2,), Address(0, 0, 0.5, 0.5))
        with pytest.raises(RangeError):
            BrownianNoise(0, 1, depth=0)


def test_record_and_replay():
    recorder = RecordingNoise(SeededNoise(0, [3, 9]))
    drawn = [recorder.draw((4,), Address(i)) for i in (-1, 0, 1)]
    replay = ReplayNoise(recorder.draws)
    assert list(replay.samples) == [0, 1]
    assert all(torch.equal(replay.draw((4,), Address(i)), d) for i, d in zip((-1, 0, 1), drawn, strict=True))
    with pytest.raises(UnknownNameError):
        replay.draw((4,), Address(2))
    with pytest.raises(ShapeError):
        replay.draw((5,), Address(0))


def test_uniforms():
    u = uniforms(0, 50_000, 3)
    assert u.dtype == torch.float64
    assert 0 < u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / 50_000)
    assert torch.equal(uniforms(0, [17], 3)[0], u[17])


@pytest.mark.parametrize("samples", [0, [], [-1, 2], range(3, 3)])
def test_bad_addresses(samples):
    with pytest.raises(RangeError):
        SeededNoise(0, samples)


def test_addresses_are_canonical():
    assert SeededNoise(0, [2, 3, 4]) == SeededNoise(0, range(2, 5))
    assert repr(SeededNoise(0, 3)) == "SeededNoise(seed=0, samples=range(0, 3))"
