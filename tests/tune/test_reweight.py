"""Reweighted fine-tuning: weights and draws in closed form, the optimum reached, the model untouched."""

import copy
import math

import pytest
import torch
from tests.tune.points import SCHEMA, denoiser

from wayfield.core import grid as G
from wayfield.core.errors import CheckpointError, ConditionError, NonFiniteError, RangeError
from wayfield.core.path import Straight
from wayfield.judge.rewards import Linear
from wayfield.train import TrainConfig
from wayfield.tune import Pool, draw_pool, reweight
from wayfield.tune.reweight import Weighted, trainable

GRID = G.uniform(Straight(), 20)
C = torch.tensor([1.0, 0.5])
LABELS = {"label": torch.tensor([0, 1])}
CONFIG = {"batch": 128, "lr": 2e-2, "drop": 0.0, "weight": "x0", "weight_decay": 0.0, "ema": None}


def pool(**changes):
    fields = {"x": torch.arange(8.0)[:, None], "cond": {}, "rewards": torch.tensor([0.0, 1, 2, 3] * 2), "conditions": 2}
    return Pool(**(fields | changes))


def test_weights_are_a_softmax_within_each_condition():
    got = pool(rewards=torch.tensor([0.0, 1, 2, 3, 100, 101, 102, 103])).weights(0.5).reshape(2, 4)
    each = (2 * torch.arange(4.0).double()).softmax(0) / 2
    torch.testing.assert_close(got, each.expand(2, 4))


def test_effective_samples():
    assert pool().effective(1e9) == pytest.approx(8.0)
    assert pool().effective(1e-3) == pytest.approx(2.0)
    w = torch.arange(4.0).double().softmax(0)
    assert pool().effective(1.0) == pytest.approx(2 / float((w**2).sum()))


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_beta_is_positive(beta):
    with pytest.raises(RangeError, match="KL coefficient"):
        pool().weights(beta)


def test_draws_come_as_often_as_they_weigh():
    """Stratified: floor or ceil of size w times each; one pass through the set is the distribution."""
    p = pool()
    w = p.weights(1.0)
    data = Weighted(p, w, SCHEMA, size=1000)
    counts = torch.bincount(data.batch(torch.arange(1000))[0][:, 0].long(), minlength=8).double()
    assert float((counts - 1000 * w).abs().max()) <= 1
    assert len(data) == 1000
    assert data.shape == (1,)


def test_samples_keep_their_conditions():
    p = draw_pool(denoiser(), GRID, Linear(C), samples=300, cond=LABELS, rows=128)
    assert p.conditions == 2
    assert p.cond["label"].tolist() == [0] * 300 + [1] * 300
    means = p.x.reshape(2, 300, 2).mean(1)
    torch.testing.assert_close(means, denoiser().net.means.detach()[:2], rtol=0, atol=0.15)  # 5 standard errors
    torch.testing.assert_close(p.rewards, p.x @ C)
    again = draw_pool(denoiser(), GRID, Linear(C), samples=300, cond=LABELS, rows=77)
    torch.testing.assert_close(again.x, p.x, rtol=1e-5, atol=1e-5)


def test_the_optimum_is_p_beta_and_the_model_is_left_alone():
    """It learns the weighted means of the pool, which are those of N(m + S c / beta, S) for each label, up to 5
    standard errors of 2000 samples, of which e^-1.95 count.
    """
    model, beta = denoiser(), 0.4
    before = copy.deepcopy(model.net.state_dict())
    p = draw_pool(model, GRID, Linear(C), samples=2000, cond=LABELS)
    tuned = reweight(model, p, beta, TrainConfig(steps=300, decay=0.8, **CONFIG))
    want = before["means"][:2] + 0.25 * C / beta
    w = p.weights(beta).float()[:, None] * 2
    learned = (w * p.x).reshape(2, 2000, 2).sum(1)
    torch.testing.assert_close(tuned.denoiser.net.means[:2], learned, rtol=0, atol=0.04)
    torch.testing.assert_close(learned, want, rtol=0, atol=5 * 0.5 / math.sqrt(2000 * math.exp(-1.95)))
    torch.testing.assert_close(tuned.denoiser.net.means[2], before["means"][2])  # its null was never drawn
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())
    assert not tuned.denoiser.net.means.requires_grad
    truth = float((want @ C).mean())
    assert tuned.target == pytest.approx(truth, abs=0.15)
    assert tuned.reward == pytest.approx(float((before["means"][:2] @ C).mean()), abs=0.05)
    assert tuned.effective == p.effective(beta)


def test_it_resumes_only_itself(tmp_path):
    model = denoiser()
    p = draw_pool(model, GRID, Linear(C), samples=200, cond=LABELS)
    settings = TrainConfig(steps=20, **CONFIG)
    first = reweight(model, p, 1.0, settings, out=tmp_path)
    again = reweight(model, p, 1.0, settings, out=tmp_path)
    assert torch.equal(first.denoiser.net.means, again.denoiser.net.means)
    with pytest.raises(CheckpointError, match="another run"):
        reweight(model, p, 0.6, settings, out=tmp_path)


def test_few_samples_that_count_are_said():
    p = draw_pool(denoiser(), GRID, Linear(C), samples=20, cond=LABELS)
    with pytest.warns(UserWarning, match="samples count"):
        reweight(denoiser(), p, 1e-3, TrainConfig(steps=1, **CONFIG))


def test_what_is_trained():
    """Everything where nothing required gradients, else what did."""
    frozen = denoiser()
    frozen.net.requires_grad_(False)
    assert trainable(frozen).net.means.requires_grad
    assert not frozen.net.means.requires_grad
    assert trainable(denoiser()).net.means is not denoiser().net.means


def test_bad_input():
    with pytest.raises(NonFiniteError, match="sample 0"):
        draw_pool(denoiser(), GRID, lambda x, c: x[:, 0] / 0, samples=4, cond=LABELS)
    with pytest.raises(RangeError, match="samples of a pool"):
        draw_pool(denoiser(), GRID, Linear(C), samples=0)
    for cond in ({"label": 1}, {"label": torch.tensor([], dtype=torch.long)}):
        with pytest.raises(ConditionError, match="conditions"):
            draw_pool(denoiser(), GRID, Linear(C), samples=4, cond=cond)
