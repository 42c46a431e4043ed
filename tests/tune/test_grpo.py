"""Policy gradient: advantages and gradients by hand, rewards that rise, the KL that holds, resuming, bad input."""

import copy

import pytest
import torch
from tests.tune.points import denoiser

from wayfield.core import grid as G
from wayfield.core.errors import CheckpointError, DTypeError, NonFiniteError, RangeError, UnsupportedError
from wayfield.core.path import Straight
from wayfield.judge.rewards import Linear
from wayfield.solve import DDIM
from wayfield.train import EMA
from wayfield.tune import GRPO, FlowSDE, Transitions, advantages, grpo
from wayfield.tune.grpo import _draw, _improve
from wayfield.tune.reweight import trainable

GRID = G.uniform(Straight(), 8)
C = torch.tensor([1.0, 0.5])
LABELS = {"label": torch.tensor([0, 1])}
SMALL = {"iterations": 4, "prompts": 2, "group": 8, "lr": 1e-2}


def test_advantages_by_hand():
    r = torch.tensor([1.0, 3.0, 2.0, 2.0, 10.0, 40.0])
    torch.testing.assert_close(advantages(r, 2), torch.tensor([-1.0, 1.0, 0.0, 0.0, -1.0, 1.0]))
    torch.testing.assert_close(advantages(r, 3, normalise=False), torch.tensor([-1.0, 1, 0, -46 / 3, -22 / 3, 68 / 3]))


def test_a_group_without_a_difference_teaches_nothing():
    model = denoiser()
    done = grpo(model, GRID, lambda x, c: torch.full((len(x),), 0.1), GRPO(**SMALL, beta=0.0), cond=LABELS)
    assert torch.equal(done.denoiser.net.means, model.net.means)
    assert done.divergence == (0.0,) * 4


@pytest.mark.parametrize("solver", [FlowSDE(), DDIM(eta=1.0)], ids=str)
def test_the_first_gradient_is_the_score_function_s(solver):
    """grad L = -1/B sum_k A_k sum_i grad log p(x_{i+1} | x_i), from torch's own normals; one plain step of Adam."""
    model = denoiser()
    config = GRPO(iterations=1, prompts=2, group=8, epochs=1, lr=1e-2, norm=1e9, rows=7)
    rollout, mean = _draw(model, model, Transitions(solver, GRID), Linear(C), config, LABELS, 0)
    policy = Transitions(solver, GRID)
    own = policy.means(model, rollout.x, rollout.steps, rollout.cond)
    normal = torch.distributions.Normal(own, policy.rows.noise[rollout.steps].float()[:, None])
    loss = -(normal.log_prob(rollout.y).sum(1) * rollout.advantage).sum() / 16
    (want,) = torch.autograd.grad(loss, model.net.means)
    mine = trainable(model)
    optimizer = torch.optim.SGD(mine.net.parameters(), lr=1.0)
    _improve(mine, policy, rollout, config, optimizer, 0)
    torch.testing.assert_close(model.net.means.detach() - mine.net.means.detach(), want, rtol=1e-3, atol=1e-4)
    assert float(mean) == pytest.approx(float((rollout.y[-16:] @ C).mean()), abs=1e-5) or isinstance(solver, DDIM)


@pytest.mark.parametrize(
    ("gap", "advantage", "moves"), [(1.0, 1, False), (1.0, -1, True), (-1.0, 1, True), (-1.0, -1, False)]
)
def test_what_has_moved_far_enough_is_not_moved_further(gap, advantage, moves):
    """Transitions already e times as likely as when drawn, or as unlikely: only the way back has a gradient."""
    mine, policy = trainable(denoiser()), Transitions(FlowSDE(), GRID)
    config = GRPO(prompts=2, group=8, beta=0.0)
    rollout, _ = _draw(mine, mine, policy, Linear(C), config, LABELS, 0)
    rollout = rollout._replace(old=rollout.old - gap, advantage=torch.full_like(rollout.old, advantage))
    before = mine.net.means.detach().clone()
    _improve(mine, policy, rollout, config, torch.optim.SGD(mine.net.parameters(), lr=1.0), 0)
    assert torch.equal(mine.net.means.detach(), before) != moves


def test_conditions_are_taken_in_turn_in_groups():
    policy, config = Transitions(FlowSDE(), GRID), GRPO(prompts=1, group=4)
    seen = [_draw(denoiser(), denoiser(), policy, Linear(C), config, LABELS, k)[0].cond["label"] for k in (0, 1)]
    assert sorted(int(s[0]) for s in seen) == [0, 1]
    assert all(len(s.unique()) == 1 and len(s) == 8 * 4 for s in seen)


def test_the_reward_rises_and_the_model_is_left_alone():
    model = denoiser()
    before = copy.deepcopy(model.net.state_dict())
    config = GRPO(iterations=25, prompts=2, group=64, beta=0.0, lr=3e-2)
    done = grpo(model, GRID, Linear(C), config, cond=LABELS)
    assert done.rewards[-1] > done.rewards[0] + 0.3
    assert done.divergence[-1] > 0.1
    assert all(torch.equal(v, before[k]) for k, v in model.net.state_dict().items())
    assert not done.denoiser.net.means.requires_grad
    moved = done.denoiser.net.means - before["means"]
    assert bool((moved[:2] @ C > 0.2).all())
    assert torch.equal(moved[2], torch.zeros(2))


def test_a_larger_beta_stays_nearer():
    far = {}
    for beta in (0.02, 5.0):
        config = GRPO(iterations=25, prompts=2, group=64, beta=beta, lr=3e-2, normalise=False)
        far[beta] = grpo(denoiser(), GRID, Linear(C), config, cond=LABELS).divergence[-1]
    assert far[5.0] < 0.2 * far[0.02]


def test_a_model_without_conditions_is_one_group():
    done = grpo(denoiser(), GRID, Linear(C), GRPO(iterations=20, prompts=2, group=32, beta=0.0, lr=3e-2))
    assert done.rewards[-1] > done.rewards[0] + 0.2


def test_equal_seeds_equal_weights():
    runs = [grpo(denoiser(), GRID, Linear(C), GRPO(**SMALL, seed=s), cond=LABELS) for s in (0, 0, 1)]
    a, b, c = (r.denoiser.net.means for r in runs)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_averaged_weights_lag_behind():
    last, mean = (grpo(denoiser(), GRID, Linear(C), GRPO(**SMALL, ema=e), cond=LABELS) for e in (None, EMA(0.9)))
    moved, lagged = (r.denoiser.net.means - denoiser().net.means.detach() for r in (last, mean))
    assert 0 < float(lagged.norm()) < 0.5 * float(moved.norm())


@pytest.mark.parametrize("ema", [None, EMA(0.9)], ids=["last", "ema"])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path, ema):
    class Stop(Exception):
        pass

    config, calls = GRPO(**SMALL, ema=ema, save_every=2), []

    def reward(x, cond):
        calls.append(1)
        if len(calls) == 4:
            raise Stop
        return x @ C

    want = grpo(denoiser(), GRID, Linear(C), config, cond=LABELS)
    with pytest.raises(Stop):
        grpo(denoiser(), GRID, reward, config, cond=LABELS, out=tmp_path)
    got = grpo(denoiser(), GRID, reward, config, cond=LABELS, out=tmp_path)
    assert len(calls) == 4 + 2  # from the checkpoint after two iterations
    assert torch.equal(got.denoiser.net.means, want.denoiser.net.means)
    assert got.rewards == want.rewards
    other = denoiser(torch.zeros(3, 2))
    with pytest.raises(CheckpointError, match="another run"):
        grpo(other, GRID, reward, config, cond=LABELS, out=tmp_path)


def test_bad_rewards_and_solvers():
    def broken(x, cond):
        return torch.where(torch.arange(len(x)) == 5, float("nan"), 1.0)

    with pytest.raises(NonFiniteError, match="sample 5"):
        grpo(denoiser(), GRID, broken, GRPO(**SMALL), cond=LABELS)
    with pytest.raises(UnsupportedError, match="solver of a policy"):
        grpo(denoiser(), GRID, Linear(C), GRPO(**SMALL), cond=LABELS, solver=DDIM())


def test_a_policy_that_breaks_is_named():
    config = GRPO(**(SMALL | {"lr": 1e30, "norm": 1e30, "epochs": 3}))
    with pytest.raises(NonFiniteError, match="iteration"):
        grpo(denoiser(), GRID, Linear(1e30 * C), config, cond=LABELS)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("iterations", 0, RangeError),
        ("group", 1, RangeError),
        ("beta", -1.0, RangeError),
        ("clip", 0.0, RangeError),
        ("lr", float("nan"), RangeError),
        ("epochs", 1.5, DTypeError),
        ("ema", 0.9, DTypeError),
    ],
)
def test_settings_are_checked(field, value, error):
    with pytest.raises(error, match=f"{field} of GRPO"):
        GRPO(**{field: value})
