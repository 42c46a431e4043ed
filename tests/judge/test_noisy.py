"""Judges of noisy points: what their network is shown, on which path, and by whom they may be called."""

import pytest
import torch
from torch import nn

from wayfield.core.errors import ConditionError, RangeError, ShapeError
from wayfield.core.path import EDM, VP, Scales, Straight
from wayfield.judge import Blind, MLPJudge, Noisy, PictureJudge


class Seen(nn.Module):
    """Keeps what it is shown."""

    def forward(self, x, c):
        self.x, self.c = x, c
        return x.flatten(1)


def scales(path, t, dtype=torch.float64):
    return Scales(*(c.to(dtype) for c in path.scales(torch.as_tensor(t, dtype=torch.float64))))


def test_points_of_all_paths_look_alike_at_one_log_snr(randn64):
    x0, eps, shown = randn64(4, 3), randn64(4, 3, seed=1), []
    for path in (VP(), EDM(20.0), Straight()):
        t = path.time(torch.tensor([3.0, 0.5, -2.0, -4.0], dtype=torch.float64))
        seen = Seen()
        Noisy(seen)(path.noised(x0, t, eps), scales(path, t))
        shown.append((seen.x, seen.c))
    for x, c in shown[1:]:
        torch.testing.assert_close(x, shown[0][0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(c, shown[0][1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(shown[0][1], -torch.tensor([3.0, 0.5, -2.0, -4.0], dtype=torch.float64) / 8)


def test_the_level_is_bounded_at_both_ends(randn64):
    seen = Seen()
    for t, bound in ((0.0, -2.5), (1.0, 2.5)):
        Noisy(seen)(randn64(2, 3), scales(Straight(), t))
        assert float(seen.c) == bound
        assert bool(seen.x.isfinite().all())


def test_a_level_laid_out_over_the_points_is_the_same(randn64):
    x, t = randn64(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.9])
    net = Noisy(MLPJudge(16, 2).double())
    flat = scales(VP(), t)
    torch.testing.assert_close(net(x, flat), net(x, Scales(*(c.reshape(-1, 1, 1, 1) for c in flat))))


@pytest.mark.parametrize("make", [lambda c: MLPJudge(48, 5, clean=c), lambda c: PictureJudge(3, 5, clean=c)])
def test_rows_do_not_depend_on_their_batch(make, randn64):
    x, t = randn64(4, 3, 4, 4), torch.tensor([0.1, 0.4, 0.6, 0.9])
    level = scales(VP(), t)
    for judge in (Noisy(make(False).double()), Blind(make(True).double())):
        whole = judge(x, level)
        assert whole.shape == (4, 5)
        for k in range(4):
            alone = judge(x[k : k + 1], Scales(*(c[k : k + 1] for c in level)))
            torch.testing.assert_close(alone[0], whole[k], rtol=1e-12, atol=1e-12)


def test_equal_seeds_give_equal_weights_and_the_global_generator_rests():
    before = torch.get_rng_state()
    a, b, c = (MLPJudge(4, 2, seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wrap", [Noisy, Blind])
def test_a_wrapper_has_the_mode_of_its_network(wrap):
    assert wrap(MLPJudge(3, 2)).training
    assert not wrap(MLPJudge(3, 2).eval()).training


def test_answers_have_the_dtype_of_the_points(randn64):
    assert MLPJudge(3, 2, clean=True)(randn64(2, 3)).dtype == torch.float64


def test_what_does_not_fit_is_refused(randn64):
    with pytest.raises(RangeError, match="width"):
        MLPJudge(3, 2, width=0)
    with pytest.raises(ShapeError, match="width"):
        PictureJudge(3, 2, width=12)
    with pytest.raises(ShapeError, match="MLPJudge"):
        MLPJudge(3, 2, clean=True)(randn64(2, 4))
    with pytest.raises(ShapeError, match="PictureJudge"):
        PictureJudge(3, 2, clean=True)(randn64(2, 1, 8, 8))
    with pytest.raises(ConditionError, match="clean=True"):
        Noisy(MLPJudge(3, 2, clean=True))(randn64(2, 3), scales(VP(), 0.5))
    with pytest.raises(ConditionError, match="clean=False"):
        MLPJudge(3, 2)(randn64(2, 3))
