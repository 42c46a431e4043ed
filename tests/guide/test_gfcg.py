"""GFCG against an exact world: what it pushes, when it is CFG, what is held and remembered."""

import itertools
import math

import pytest
import torch
from tests.guide.classworld import (
    DEN,
    LABELS,
    MEANS,
    POOR,
    SHORT,
    WEAK,
    K,
    X,
    by_class,
    close,
    exact,
    linear,
    one_step,
    run,
    world,
)
from torch import nn

from wayfield.core import grid as G
from wayfield.core.path import VP
from wayfield.field.binding import NULL
from wayfield.guide import CFG, Auto, Guidance
from wayfield.guide.classifier import ClassifierGuidance
from wayfield.guide.gates import Interval
from wayfield.guide.gfcg import GFCG
from wayfield.guide.references import confusion, top_wrong
from wayfield.guide.roles import Step
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, Heun

GIVEN = {"samples": 5, "cond": {"label": LABELS}, "dtype": torch.float64}


# the card's oracles


@pytest.mark.parametrize("t", [0.9, 0.5, 0.1])
def test_a_difference_of_classes_is_the_gradient_of_their_log_odds(t):
    """It is the same at every point, s^2 / (a^2 v + s^2) (m_y - m_rho), since covariances are equal."""
    (a,), (s,) = (v[:1] for v in G.given(VP(), (t, t / 2)).scales[:2])
    each, _, _ = by_class(t=t)
    leaf = X.clone().requires_grad_()
    log_p = DEN.net.posterior(leaf, torch.tensor(t, dtype=torch.float64)).log()
    for y, rho in itertools.combinations(range(K), 2):
        (grad,) = torch.autograd.grad((log_p[:, y] - log_p[:, rho]).sum(), leaf, retain_graph=True)
        close(each[y] - each[rho], s**2 / a * grad, 1e-10)
        want = (s**2 / (a**2 * 0.2 + s**2) * (MEANS[y] - MEANS[rho])).expand(5, 3)
        close(each[y] - each[rho], want)


def test_where_nothing_is_confused_there_is_no_push():
    """To the bit, with q_y = 1 and with w_max = 1; the latter costs no reference."""
    sure = nn.functional.one_hot(LABELS, K) * 1e3
    plain = run(None)
    assert torch.equal(run(GFCG(lambda x0: sure.to(x0), 10)).x, plain.x)
    neutral = run(GFCG(linear, 1.0))
    assert torch.equal(neutral.x, plain.x)
    assert neutral.counts[:2] == plain.counts[:2]


@pytest.mark.parametrize("solver", [DPM2M(), Heun(), DPM2M(eta=1.0)], ids=str)
def test_always_confused_with_nothing_is_cfg(solver):
    got = run(GFCG(linear, 3.0, confusion="always", reference="null"), solver=solver)
    want = run(CFG(3.0), solver=solver)
    close(got.x, want.x)
    assert got.counts == want.counts


@pytest.mark.parametrize("w", [1.5, 4.0])
def test_two_classes_and_their_posterior_are_cfg(mixture, w):
    """u = p_y c + p_o D_o, so c - u = (1 - p_y)(c - D_o), over whole runs."""
    den = mixture(VP(), d=3)
    labels = torch.tensor([0, 1, 1, 0, 1])
    got = run(GFCG(exact(den), w, "noisy", floor=0.0), labels, den=den, nets={})
    want = run(CFG(w), labels, den=den, nets={})
    close(got.x, want.x, 1e-11)
    assert got.counts.rows == want.counts.rows


def test_all_wrong_classes_by_their_posterior_are_cfg():
    """sum_k p(k|x)(c - D_k) = c - u, and so the mix of all wrong classes is CFG with scale w_max."""
    each, c, u = by_class()
    p = DEN.net.posterior(X, torch.tensor(0.5, dtype=torch.float64))
    close(torch.einsum("bk,kbd->bd", p, c - each), c - u)
    mix = GFCG(exact(), 3.0, "noisy", reference="mix", mixed=K - 1, floor=0.0)
    got = run(mix)
    close(got.x, run(CFG(3.0)).x, 1e-11)
    assert got.counts.rows == 6 * 5 * K


def test_classes_in_another_order_change_nothing():
    """Class j of the other world is class order[j] of this one."""
    order = torch.tensor([2, 0, 3, 1])
    other, place = world(order=order.tolist()), order.argsort()
    got = run(GFCG(lambda x0: linear(x0)[:, order], 6.0), place[LABELS], den=other, nets={})
    close(got.x, run(GFCG(linear, 6.0)).x)


@pytest.mark.parametrize(
    "logits",
    [
        torch.zeros(K),
        torch.tensor([9.0, 0, 0, 0]),
        torch.tensor([math.inf, 0, 0, 0]).nan_to_num(posinf=1e30),
        torch.tensor([0.0, -math.inf, -math.inf, -math.inf]),
        torch.tensor([-math.inf, -math.inf, 0.0, -math.inf]),
    ],
    ids=str,
)
def test_the_reference_is_never_the_class_itself(logits):
    """Also with ties, certainty, and classes without any probability."""
    log_q = logits.double().log_softmax(0).expand(K, K)
    _, top, rho = top_wrong(log_q, torch.arange(K), 2)
    assert not (rho == torch.arange(K)[:, None]).any()
    assert (rho[:, 0] != rho[:, 1]).all()
    assert top.softmax(1).isfinite().all()


def test_guiding_away_from_a_weak_network_that_is_not_weak():
    """Autoguidance is w D + (1 - w) D_weak: nothing with equal networks, and the weak one at w = 0."""
    close(run(Auto(3.0), nets={"weak": DEN}).x, run(None).x)
    close(run(Auto(0.0)).x, run(None, den=POOR).x)
    _, c, _ = by_class()
    close(one_step(Auto(2.5)), torch.lerp(by_class(POOR)[1], c, 2.5))
    swap = GFCG(linear, confusion=1e-9, combine="swap", w=3.0, other=WEAK)  # nobody is that sure of being wrong
    close(run(swap, nets={"weak": DEN}).x, run(None).x)


def test_bounds_of_a_window():
    """Both bounds are inside; the card's lower bound is outside, which on a grid matters only at that very level."""
    gate = Interval.sigma(0.5, 2.0)
    levels = {0.49: False, 0.5: True, 1.0: True, 2.0: True, 2.01: False}
    for sigma, inside in levels.items():
        assert gate.open(Step(0, 1, 0, -2 * math.log(sigma), False), ()) is inside


def test_with_the_posterior_classifier_guidance_makes_a_conditional_model():
    """Of as many classes as here; everything else about it is in its own tests."""
    guided = Guidance(ClassifierGuidance(exact()), base=NULL)
    close(one_step(guided), by_class()[1], 1e-10)


class Watched(nn.Module):
    """A classifier with batch norm that notes what it is given and answers."""

    def __init__(self):
        super().__init__()
        self.norm, self.seen, self.said = nn.BatchNorm1d(3), [], []
        self.double().eval()

    def forward(self, x0):
        """Logits (b, K)."""
        self.seen.append(x0)
        self.said.append(linear(self.norm(x0)))
        return self.said[-1]


def test_the_classifier_only_infers():
    """No gradient is recorded, even in a run that is differentiated, and statistics stay as they were."""
    judge = Watched()
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    x = X.clone().requires_grad_()
    out = sample(DEN, SHORT, x=x, guidance=GFCG(judge), grad=True, **GIVEN)
    assert out.x.requires_grad
    assert judge.seen[0].requires_grad
    assert not any(logits.requires_grad for logits in judge.said)
    assert all(torch.equal(v, before[k]) for k, v in judge.state_dict().items())
    (grad,) = torch.autograd.grad(out.x.sum(), x)
    assert grad.isfinite().all()


# by hand


def by_hand(q, rule, w_max=6.0):
    """w_t - 1 and the reference, from probabilities (B, K)."""
    q_y = q[torch.arange(5), LABELS]
    wrong = q.clone()
    wrong[torch.arange(5), LABELS] = -1
    q_rho, rho = wrong.max(1)
    kappa = {
        "p": 1 - q_y,
        "ratio": q_rho / (q_y + q_rho),
        "gate": (q.argmax(1) != LABELS).double(),
        0.3: (q_y < 0.3).double(),
        "always": torch.ones(5).double(),
    }[rule]
    return (w_max - 1) * kappa, rho


@pytest.mark.parametrize("rule", ["p", "ratio", "gate", 0.3, "always"])
def test_each_confusion(rule):
    each, c, _ = by_class()
    gain, rho = by_hand(linear(c).softmax(1), rule)
    assert rule == "always" or gain.unique().numel() > 1
    close(one_step(GFCG(linear, 6.0, confusion=rule, floor=0.0)), c + gain[:, None] * (c - each[rho, torch.arange(5)]))


@pytest.mark.parametrize("on", ["clean", "uncond", "noisy"])
def test_what_the_classifier_is_shown(on):
    each, c, u = by_class()
    seen = {"clean": c, "uncond": u, "noisy": X}[on]
    gain, rho = by_hand(linear(seen).softmax(1), "p")
    judge = (lambda x, level: linear(x)) if on == "noisy" else linear
    got = one_step(GFCG(judge, 6.0, on, floor=0.0))
    close(got, c + gain[:, None] * (c - each[rho, torch.arange(5)]))


def test_the_step_before_is_judged_from_the_second_on():
    """Two steps of DDIM: the first judges c, the second what was made of the first."""
    grid = G.given(VP(), (0.5, 0.3, 0.2))
    (a, b, _), (s, r, _) = grid.scales[:2]
    made = one_step(GFCG(linear, 6.0, floor=0.0))
    x = b * made + r / s * (X - a * made)
    each, c, _ = by_class(x=x, t=0.3)
    gain, rho = by_hand(linear(made).softmax(1), "p")
    want = c + gain[:, None] * (c - each[rho, torch.arange(5)])
    seen = []

    def judge(x0):
        seen.append(x0)
        return linear(x0)

    guidance = GFCG(judge, 6.0, "previous", floor=0.0)
    out = sample(DEN, grid, x=X, guidance=guidance, solver=DDIM(), **GIVEN)
    close(seen[1], made)
    (_, _, _, last, begun) = out.state[0]
    close(last, want)
    assert begun.all()


@pytest.mark.parametrize("T", [2.5, ((-9.0, 1.5), (-4.0, 2.5), (1.0, 0.5)), ((5.0, 2.5), (6.0, 1.0))], ids=str)
def test_temperature(T):
    """A number, or linear in log-SNR between points and constant beyond them."""
    each, c, _ = by_class()
    (a,), (s,) = (v[:1] for v in SHORT.scales[:2])
    at = float(2 * (a / s).log())
    assert -4.0 < at < 1.0
    here = 2.5 if not isinstance(T, tuple) or at < T[0][0] else 2.5 - 2 / 5 * (at + 4)
    gain, rho = by_hand((linear(c) / here).softmax(1), "p")
    close(one_step(GFCG(linear, 6.0, temperature=T, floor=0.0)), c + gain[:, None] * (c - each[rho, torch.arange(5)]))


def test_floor_and_cap():
    each, c, _ = by_class()
    gain, rho = by_hand(linear(c).softmax(1), "p")
    order = gain.sort().values
    low, high = float(order[:2].mean()), float(order[2:4].mean())
    want = torch.where(gain <= low, 0, gain.clamp(max=high))
    assert (want == 0).sum() == 1
    assert (want == high).sum() == 2
    got = one_step(GFCG(linear, 6.0, floor=low, cap=1 + high))
    close(got, c + want[:, None] * (c - each[rho, torch.arange(5)]))


def test_a_mix_is_weighted_by_probability():
    each, c, _ = by_class()
    q = linear(c).softmax(1)
    gain, _ = by_hand(q, "p")
    wrong = q.scatter(1, LABELS[:, None], 0.0)
    least = wrong.topk(2, 1).values[:, 1:]
    share = torch.where(wrong >= least, wrong, 0)
    share = share / share.sum(1, keepdim=True)
    want = c + gain[:, None] * (c - torch.einsum("bk,kbd->bd", share, each))
    close(one_step(GFCG(linear, 6.0, reference="mix", floor=0.0)), want)


@pytest.mark.parametrize("other", [NULL, WEAK], ids=str)
@pytest.mark.parametrize("combine", ["swap", "alternate"])
def test_combined_with_another_guidance(other, combine):
    """Swapped, the other guidance is given the reference class; alternating, it rests where GFCG acts."""
    each, c, u = by_class()
    weak, own, _ = by_class(POOR)
    gain, rho = by_hand(linear(c).softmax(1), 0.3)
    assert 0 < (gain > 0).sum() < 5
    usual = u if other == NULL else own
    row = torch.arange(5)
    if combine == "swap":
        asked = each if other == NULL else weak
        want = c + 0.7 * (c - torch.where(gain[:, None] > 0, asked[rho, row], usual))
    else:
        want = c + torch.where(gain[:, None] > 0, gain[:, None] * (c - each[rho, row]), 0.7 * (c - usual))
    guidance = GFCG(linear, 6.0, confusion=0.3, combine=combine, w=1.7, other=other)
    close(one_step(guidance), want)
    rows = {"swap": 2, "alternate": 3}[combine]
    assert run(guidance).counts.rows == 6 * 5 * rows
    assert Guidance(guidance).branches == rows


def test_reference_and_scale_are_held_within_a_step():
    """Heun by hand: one verdict a step, which the corrector uses at the next level."""
    calls = []

    def judge(x0):
        calls.append(1)
        return linear(x0)

    grid = G.given(VP(), (0.5, 0.3))
    (a, b), (s, r) = grid.scales[:2]
    each, c, _ = by_class()
    gain, rho = by_hand(linear(c).softmax(1), "p")
    row = torch.arange(5)
    now = c + gain[:, None] * (c - each[rho, row])
    eps = (X - a * now) / s
    end = b * now + r * eps
    later, d, _ = by_class(x=end, t=0.3)
    then = d + gain[:, None] * (d - later[rho, row])
    assert not torch.equal(by_hand(linear(d).softmax(1), "p")[0], gain)
    want = end + 0.5 * (r - b * s / a) * ((end - b * then) / r - eps)
    got = sample(DEN, grid, x=X, guidance=GFCG(judge, 6.0, floor=0.0), solver=Heun(), **GIVEN)
    close(got.x, want, 1e-11)
    assert len(calls) == 1


def test_confusion_hides_no_nan():
    bad = torch.tensor([math.nan, -1.0])
    for rule in ("p", "ratio", "gate", 0.5, "always"):
        assert confusion(bad, torch.zeros(2), rule).isnan().tolist() == [True, False]
