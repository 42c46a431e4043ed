"""RLG: the oracles of its card in closed form, cost, bits at both ends, combinations by hand, and what it refuses."""

import math
import warnings

import pytest
import torch
from tests.conftest import mixture_denoiser, randn
from torch import nn

from wayfield.core import grid as G
from wayfield.core.errors import DTypeError, RangeError, ShapeError, UnknownNameError, UnsupportedError
from wayfield.core.exact import gaussian, isotropic_mixture
from wayfield.core.noise import ReplayNoise
from wayfield.core.path import EDM, VE, VP, Straight
from wayfield.core.predict import Kind, convert
from wayfield.field.batching import Batching
from wayfield.field.binding import NULL, Query
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Away, Guidance
from wayfield.guide.adaptive import AG
from wayfield.guide.apg import APG, apg
from wayfield.guide.gates import Interval, Schedule, Steps
from wayfield.guide.rlg import RLG, effective_kl, rlg
from wayfield.judge.rewards import tilted
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M, Heun, HeunTime

F64 = torch.float64
LABELS = torch.tensor([0, 1, 1, 0, 1])
COND = {"label": LABELS}
GRID = G.karras(VP(), 8, sigma_min=0.05, sigma_max=20.0)


def answer(ref, tuned, x, t, guidance, cond=None, **nets):
    """The guided x0 at points of time t, read off one DDIM step x_s = alpha_s x0 + sigma_s (x - alpha x0) / sigma."""
    grid = G.given(ref.path, (t, 0.0))
    options = {"samples": len(x), "x": x, "cond": cond, "nets": {"tuned": tuned, **nets}, "dtype": x.dtype}
    moved = sample(ref, grid, guidance=guidance, solver=DDIM(), **options).x
    (a, a_s), (s, s_s) = grid.scales[:2]
    return (moved - s_s / s * x) / (a_s - s_s * a / s)


def run(ref, tuned, guidance, **options):
    options = {"samples": 5, "seed": 3, "cond": COND, "dtype": F64, "solver": DPM2M(), **options}
    return sample(ref, GRID, guidance=guidance, nets={"tuned": tuned}, **options)


def pair(path=None, d=3):
    path = path or VP()
    return mixture_denoiser(path, d), mixture_denoiser(path, d, spread=0.05)


# 1: both ends to the bit, at the cost of one model; linear in between


@pytest.mark.parametrize("guided", [None, CFG(3.0), apg(4.0, r=0.5, beta=-0.5)], ids=["bare", "cfg", "apg"])
@pytest.mark.parametrize(("w", "which"), [(0.0, 0), (1.0, 1)])
def test_both_ends_are_one_model_alone(guided, w, which):
    nets = pair()
    got = run(*nets, rlg(w, guided=guided))
    want = sample(nets[which], GRID, samples=5, seed=3, cond=COND, guidance=guided, dtype=F64, solver=DPM2M())
    assert torch.equal(got.x, want.x)
    assert got.counts == want.counts


def test_the_answer_is_linear_in_w():
    nets, x = pair(), randn(5, 3)
    zero, one = (answer(*nets, x, 0.5, rlg(w), COND) for w in (0.0, 1.0))
    for w in (-1.0, 0.3, 0.5, 1.7, 3.0):
        torch.testing.assert_close(answer(*nets, x, 0.5, rlg(w), COND), zero + w * (one - zero), rtol=0, atol=1e-14)


# 2: one rule in every parameterisation


class Answering(nn.Module):
    """An exact mixture that answers in another kind."""

    def __init__(self, exact, kind):
        super().__init__()
        self.exact, self.kind = exact, Kind(kind)

    def forward(self, x, time, cond):
        t = torch.as_tensor(time, dtype=F64)
        return convert(self.kind, self.exact(x, t, cond), self.exact.path.scales(t))


@pytest.mark.parametrize("path", [VP(), Straight(), VE(0.02, 20.0)], ids=str)
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity", "score"])
def test_mixing_answers_of_any_kind_is_the_same(path, kind):
    """The networks' own answers mixed by hand, and what the library makes of networks of that kind, agree in v."""
    exact, x, t, w = pair(path), randn(5, 3), 0.4, 1.8
    nets = [Denoiser(Answering(d, kind), path, kind, shape=(3,), schema=d.schema) for d in exact]
    scales = path.scales(torch.tensor(t, dtype=F64))
    ref, tuned = (convert(kind, d(x, t, COND), scales) for d in exact)
    mixed = ref + w * (tuned - ref)
    c0, c1, c2, c3 = Kind(kind).solve_row(scales)
    want = scales.alpha * (c2 * x + c3 * mixed) - scales.sigma * (c0 * x + c1 * mixed)
    x0 = answer(*nets, x, t, rlg(w), COND)
    got = (scales.alpha * (x - scales.alpha * x0) - scales.sigma**2 * x0) / scales.sigma
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


# 3: a linear reward on a Gaussian is exact at every level


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("w", [-0.5, 0.5, 2.0, 4.0])
def test_a_linear_reward_on_a_gaussian_is_exactly_beta_over_w(t, w):
    path, m, c, beta, x = VP(), randn(3, seed=1), randn(3, seed=2), 0.8, 2 * randn(6, 3)
    a = randn(3, 3, seed=3)
    S = a @ a.T + 0.2 * torch.eye(3, dtype=F64)
    ref, tuned = (Denoiser(gaussian(path, mean, S), path, "x0", shape=(3,)) for mean in (m, m + S @ c / beta))
    s = path.scales(torch.tensor(t, dtype=F64))
    x0 = answer(ref, tuned, x, t, rlg(w))
    got = (s.alpha * x0 - x) / s.sigma**2
    cov = s.alpha**2 * S + s.sigma**2 * torch.eye(3, dtype=F64)
    want = -torch.linalg.solve(cov, (x - s.alpha * (m + w * S @ c / beta)).T).T
    torch.testing.assert_close(got, want, rtol=0, atol=2e-12 / float(s.sigma) ** 2)
    torch.testing.assert_close(tilted(ref.net, c, beta).means, tuned.net.means)
    if w > 0:  # what it aims at is training with beta / w
        aimed = tilted(ref.net, c, effective_kl(beta, w))
        torch.testing.assert_close(aimed.means, (m + w * S @ c / beta)[None])


# 4, 5: what the samplers end with where it is not exact, 1-D Gaussians of variance S0 and S1


def gaussians(path, s0, s1):
    zero = torch.zeros(1, dtype=F64)
    return [Denoiser(gaussian(path, zero, torch.tensor(s, dtype=F64)), path, "x0", shape=(1,)) for s in (s0, s1)]


@pytest.mark.parametrize(("w", "s0", "s1"), [(2.0, 1.0, 0.5), (0.5, 1.0, 0.5), (3.0, 0.7, 0.4), (-1.0, 1.0, 0.6)])
def test_the_ode_ends_with_a_geometric_mean_of_variances(w, s0, s1):
    """By quadrature of the growth of the linear flow, 40 nodes of Gauss and Legendre, and by 200 steps of Heun."""
    path = Straight()
    nets, one = gaussians(path, s0, s1), torch.ones(1, 1, dtype=F64)
    nodes, weights = _gauss_legendre(40)
    growth = 0.0
    for t, weight in zip(nodes, weights, strict=True):
        x0 = float(answer(*nets, one, t, rlg(w)))
        eps = (1 - (1 - t) * x0) / t
        growth += weight * (eps - x0)
    want = s0 ** (1 - w) * s1**w
    assert math.exp(-2 * growth) == pytest.approx(want, abs=1e-8)
    grid = G.uniform(path, 200)
    options = {"x": one, "dtype": F64, "nets": {"tuned": nets[1]}, "guidance": rlg(w)}
    assert float(sample(nets[0], grid, solver=HeunTime(), **options).x) ** 2 == pytest.approx(want, abs=1e-3)


def _gauss_legendre(n):
    """Nodes and weights on [0, 1], by the eigenvalues of the Jacobi matrix."""
    k = torch.arange(1, n, dtype=F64)
    beta = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return ((values + 1) / 2).tolist(), (vectors[0] ** 2).tolist()


def _sde_variance(w, s0, s1):
    """The card's integral over u in (0, inf), u = v / (1 - v)."""
    nodes, weights = _gauss_legendre(60)
    total = 0.0
    for v, weight in zip(nodes, weights, strict=True):
        u = v / (1 - v)
        value = (s0 / (s0 + u)) ** (2 * (1 - w)) * (s1 / (s1 + u)) ** (2 * w)
        total += weight * value / (1 - v) ** 2
    return total


@pytest.mark.parametrize(("w", "target"), [(2.0, 0.291667), (0.5, 0.693147)])
def test_the_sde_ends_with_the_integral(w, target):
    """The exact variance of the library's ancestral steps: their scale probed without noise, their noise read off."""
    assert _sde_variance(w, 1.0, 0.5) == pytest.approx(target, abs=1e-6)
    coarse, fine = (_ancestral_variance(w, n) for n in (300, 600))
    variance = 2 * fine - coarse  # the steps are of first order
    assert variance == pytest.approx(target, abs=2e-3)
    assert abs(variance - 1 / ((1 - w) + 2 * w)) > 0.02  # which is what one would have liked


def _ancestral_variance(w, n):
    nets = gaussians(EDM(300.0), 1.0, 0.5)
    grid = G.exponential(EDM(300.0), n, sigma_min=1e-3, sigma_max=300.0)
    silent = ReplayNoise({(i, 0): torch.zeros(1, 1) for i in range(grid.steps)})
    options = {"x": torch.ones(1, 1, dtype=F64), "noise": silent, "dtype": F64, "record": True}
    kept = sample(nets[0], grid, solver=DDIM(eta=1.0), guidance=rlg(w), nets={"tuned": nets[1]}, **options).trajectory
    noise, variance, scale = DDIM(eta=1.0).plan(grid).rows.noise, 300.0**2, kept[:, 0, 0].tolist()
    for i in range(grid.steps):
        variance = (scale[i + 1] / scale[i]) ** 2 * variance + float(noise[i]) ** 2
    return variance


# 6: mixtures with a linear reward: exact without noise, and only there


def test_on_mixtures_it_is_exact_without_noise_and_only_there():
    path, c, beta, w = Straight(), torch.tensor([1.0, 0.5], dtype=F64), 2.0, 2.0
    means = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]], dtype=F64)
    ref = isotropic_mixture(path, means, 0.25)
    tuned, aimed = tilted(ref, c, beta), tilted(ref, c, effective_kl(beta, w))
    x = 2 * randn(20, 2)

    def score_at(net, t):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(net.log_prob(leaf, torch.tensor(t, dtype=F64)).sum(), leaf)[0]

    mixed = (1 - w) * score_at(ref, 0.0) + w * score_at(tuned, 0.0)
    torch.testing.assert_close(mixed, score_at(aimed, 0.0), rtol=0, atol=1e-10)
    gaps = []
    for t in (1e-3, 0.5):
        s = path.scales(torch.tensor(t, dtype=F64))
        x0 = answer(Denoiser(ref, path, "x0", shape=(2,)), Denoiser(tuned, path, "x0", shape=(2,)), x, t, rlg(w))
        torch.testing.assert_close(  # the library's answer is the mixed score
            (s.alpha * x0 - x) / s.sigma**2, (1 - w) * score_at(ref, t) + w * score_at(tuned, t), rtol=0, atol=1e-8
        )
        gaps.append(float(((s.alpha * x0 - x) / s.sigma**2 - score_at(aimed, t)).abs().max()))
    assert gaps[0] < 1e-3 < 0.1 < gaps[1]


# 7, 8: with classifier-free guidance, and several experts


@pytest.mark.parametrize("w", [0.5, 2.0, (0.0, 1.0, 0.5, 2.0, -1.0)])
def test_cfg_then_rlg_is_rlg_then_cfg(w):
    nets, x, t, g = pair(), randn(5, 3), 0.5, 3.5
    by = torch.tensor(w, dtype=F64).reshape(-1, 1)
    mix = [nets[0](x, t, c).x0 + by * (nets[1](x, t, c).x0 - nets[0](x, t, c).x0) for c in (COND, None)]
    want = mix[0] + (g - 1) * (mix[0] - mix[1])
    torch.testing.assert_close(answer(*nets, x, t, rlg(w, guided=CFG(g)), COND), want, rtol=0, atol=1e-14)
    if w == 2.0:  # the same as the comparison that the engine has
        torch.testing.assert_close(answer(*nets, x, t, CFG(g).versus("tuned", 1 - w), COND), want, rtol=0, atol=1e-14)


def test_experts_add_up():
    """Two exact tilts of a Gaussian: N(alpha (m + S sum w_i c_i / beta_i), ...) at every level."""
    path, m, S, t, x = VP(), randn(2, seed=1), torch.diag(torch.tensor([0.5, 1.2], dtype=F64)), 0.4, randn(6, 2)
    tilts = [(1.5, randn(2, seed=2), 0.7), (-0.4, randn(2, seed=3), 1.3)]
    ref = Denoiser(gaussian(path, m, S), path, "x0", shape=(2,))
    experts = [Denoiser(gaussian(path, m + S @ c / b, S), path, "x0", shape=(2,)) for _, c, b in tilts]
    total = m + sum(w * S @ c / b for w, c, b in tilts)
    want = gaussian(path, total, S)(x, torch.tensor(t, dtype=F64), {})
    term = RLG(tilts[0][0]) + RLG(tilts[1][0], "other")
    torch.testing.assert_close(answer(ref, experts[0], x, t, term, other=experts[1]), want, rtol=0, atol=1e-12)


def test_guided_experts_add_up():
    nets, x, t, P = (*pair(), mixture_denoiser(VP(), 3, spread=0.2)), randn(5, 3), 0.5, CFG(2.0)
    ref, one, two = (d(x, t, COND).x0 + d(x, t, COND).x0 - d(x, t).x0 for d in nets)
    term = RLG(1.5, guided=P) + RLG(0.7, "other", P) - P
    got = answer(nets[0], nets[1], x, t, term, COND, other=nets[2])
    torch.testing.assert_close(got, ref + 1.5 * (one - ref) + 0.7 * (two - ref), rtol=0, atol=1e-13)


# cost, and the parts it is put together with


@pytest.mark.parametrize(
    ("guidance", "branches", "rows"),
    [
        (rlg(2.0), 2, 16),
        (rlg(2.0, guided=CFG(3.0)), 4, 32),
        (rlg(0.0, guided=CFG(3.0)), 2, 16),
        (rlg(1.0, guided=CFG(3.0)), 2, 16),
        (rlg(2.0, warmup=3), 2, 13),
        (rlg(2.0, guided=CFG(3.0), warmup=3), 4, 26),
        (rlg(1.0, warmup=3), 1, 8),
        (RLG(2.0).when(Steps((True, False) * 4)), 2, 12),
        (RLG(2.0) + CFG(3.0), 3, 24),
    ],
    ids=str,
)
def test_rows_are_those_of_the_models_that_count(guidance, branches, rows):
    counts = run(*pair(), guidance, batching=Batching()).counts
    assert counts.rows == 5 * rows
    assert counts.rows + counts.skipped == 5 * 8 * branches


@pytest.mark.parametrize("guided", [None, CFG(3.0)], ids=["bare", "cfg"])
def test_the_warm_up_is_the_tuned_model_alone(guided):
    """Its steps to the bit, and after them the dial's."""
    nets = pair()
    warm = run(*nets, rlg(2.0, guided=guided, warmup=3), record=True, solver=DDIM()).trajectory
    tuned = run(nets[1], nets[1], guided, record=True, solver=DDIM()).trajectory
    assert torch.equal(warm[:4], tuned[:4])
    rest = G.given(VP(), GRID.t[3:])
    options = {"samples": 5, "x": warm[3], "cond": COND, "dtype": F64, "nets": {"tuned": nets[1]}}
    dial = sample(nets[0], rest, guidance=rlg(2.0, guided=guided), **options).x
    torch.testing.assert_close(warm[-1], dial, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("guided", [None, CFG(3.0), apg(4.0, r=0.5, beta=-0.5)], ids=["bare", "cfg", "apg"])
@pytest.mark.parametrize("w", [0.5, 2.0, (0.0, 1.0, 0.5, 2.0, -1.0)], ids=str)
def test_it_does_not_matter_which_of_the_two_is_pushed(guided, w):
    """From the reference or from the tuned network: memory of guidance inside included."""
    nets, term = pair(), RLG(w, guided=guided)
    a, b = (run(*nets, Guidance(term, base=q)).x for q in (Query("cond"), Query("cond", "tuned")))
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_apg_inside_sees_its_own_network():
    """One step by hand: each model's push is projected against its own prediction."""
    nets, x, t, w = pair(), randn(5, 3), 0.5, 1.7

    def projected(d):
        c, u = d(x, t, COND).x0, d(x, t).x0
        push = c - u
        along = (push * c).sum(1, keepdim=True) / (c * c).sum(1, keepdim=True) * c
        return c + 3.0 * (push - along)

    ref, tuned = map(projected, nets)
    got = answer(*nets, x, t, rlg(w, guided=3.0 * Away(NULL).through(APG())), COND)
    torch.testing.assert_close(got, ref + w * (tuned - ref), rtol=0, atol=1e-12)


COMBINED = {
    "dial beside ag": RLG(1.7) + CFG(3.0).when(AG(0.95)),
    "ag inside": RLG(1.7, guided=CFG(3.0).when(AG(0.95))),
    "apg": 2.0 * RLG(1.0).through(APG(r=0.5)),
    "apg inside": RLG(1.7, guided=apg(4.0, r=0.5, beta=-0.5)),
    "under ag": RLG(1.7, guided=CFG(3.0)).when(AG(0.9)),
    "schedule": RLG(1.0).when(Schedule(((-4.0, 0.0), (2.0, 1.6)))),
    "interval": RLG(1.7).when(Interval(low=-2.0)),
    "warm": rlg(1.7, guided=CFG(3.0), warmup=2),
    "weak": RLG(1.3).versus("tuned", 1.5),
    "ode": rlg(2.0),
}


@pytest.mark.parametrize("name", COMBINED)
@pytest.mark.parametrize("solver", [DPM2M(), Heun()], ids=str)
def test_laws_of_combinations(name, solver):
    """Row modes, compiling and the batch change no values."""
    nets, guidance = pair(), COMBINED[name]
    guidance = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    want = run(*nets, guidance, solver=solver).x
    assert not torch.allclose(want, run(*nets, None, solver=solver).x, atol=1e-4)
    for mode in ("late", "fixed"):
        got = run(*nets, Guidance(guidance.term, guidance.base, rows=mode), solver=solver).x
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    alone = run(*nets, guidance, solver=solver, samples=[3], cond={"label": LABELS[3:4]}).x
    torch.testing.assert_close(alone[0], want[3], rtol=1e-10, atol=1e-10)
    if solver == DPM2M() and name in ("warm", "ag inside", "apg inside"):
        torch._dynamo.reset()
        fixed = Guidance(guidance.term, guidance.base, rows="fixed")
        torch.testing.assert_close(run(*nets, fixed, compile="eager").x, want, rtol=1e-11, atol=1e-11)


def test_a_schedule_of_w():
    """w by noise level is a gate on w = 1; with guidance inside, on the difference to it."""
    nets, x, P = pair(), randn(5, 3), CFG(3.0)
    log_snr = float(VP().log_snr(torch.tensor(0.5, dtype=F64)))
    gate = Schedule(((log_snr - 1.0, 1.0), (log_snr + 1.0, 2.0)))
    for term, want in (
        (RLG(1.0).when(gate), rlg(1.5)),
        (P + (RLG(1.0, guided=P) - P).when(gate), rlg(1.5, guided=P)),
    ):
        got, want = (answer(*nets, x, 0.5, g, COND) for g in (term, want))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


def test_repr_rebuilds():
    names = {"RLG": RLG, "CFG": CFG}
    for term in (RLG(1.6), RLG((1.0, 2.0), "net", CFG(3.0), 2, False)):
        assert eval(repr(term), names) == term


class Adapted(nn.Module):
    """One set of weights with a switchable correction, as an adapter is."""

    def __init__(self, exact):
        super().__init__()
        self.exact, self.on = exact, False
        self.shift = nn.Parameter(torch.full((3,), 0.1, dtype=F64))

    def forward(self, x, time, cond):
        return self.exact(x, time, cond) + (self.shift if self.on else 0)


def adapted(net, x, time, cond):
    """Call with the adapter on."""
    net.on = True
    try:
        return net(x, time, cond)
    finally:
        net.on = False


def test_one_set_of_weights_with_an_adapter():
    exact, x = mixture_denoiser(VP(), 3), randn(5, 3)
    net = Adapted(exact.net)
    ref = Denoiser(net, VP(), "x0", shape=(3,), schema=exact.schema)
    tuned = Denoiser(net, VP(), "x0", shape=(3,), schema=exact.schema, call=adapted)
    with torch.no_grad():
        got = answer(ref, tuned, x, 0.5, rlg(2.0), COND)
    torch.testing.assert_close(got, exact(x, 0.5, COND).x0 + 0.2, rtol=0, atol=1e-12)


# what it refuses


@pytest.mark.parametrize("w", [float("nan"), float("inf"), True, "1", (1.0, float("nan"))])
def test_w_is_a_finite_number(w):
    with pytest.raises(RangeError, match="w of RLG"):
        rlg(w)


def test_w_far_out_warns():
    with pytest.warns(UserWarning, match="more than 5"):
        rlg(5.5)
    with pytest.warns(UserWarning, match="more than 5"):
        RLG((1.0, -6.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rlg(5.0)


@pytest.mark.parametrize("warmup", [-1, 1.5, True])
def test_warm_up_is_a_number_of_steps(warmup):
    with pytest.raises(RangeError, match="warmup"):
        rlg(1.6, warmup=warmup)


def test_the_reference_is_no_expert_on_itself():
    with pytest.raises(UnsupportedError, match="network of RLG"):
        RLG(1.6, "main")
    with pytest.raises(DTypeError, match="term"):
        RLG(1.6, guided=Guidance(CFG(3.0)))


def other(ref, **changes):
    fields = {"net": ref.net, "path": ref.path, "kind": "x0", "shape": (3,), "schema": ref.schema}
    return Denoiser(**(fields | changes))


OTHERS = {
    "path": {"path": Straight()},
    "kind": {"kind": "eps"},
    "conditions": {"schema": Schema({"label": Field(values=4)}, {"label": 3})},
}


@pytest.mark.parametrize("name", OTHERS)
def test_networks_that_do_not_belong_together(name):
    ref, _ = pair()
    strange = other(ref, **OTHERS[name])
    with pytest.raises(UnsupportedError, match=f"{name} of the tuned network 'tuned'"):
        run(ref, strange, rlg(1.6))
    assert run(ref, strange, rlg(1.6, strict=False)).x.shape == (5, 3)


def test_two_paths_are_mixed_at_equal_noise_if_asked_to():
    """Levels are matched by log-SNR: the same model on another path is the same model."""
    ref, tuned = pair(VP())
    same = mixture_denoiser(Straight(), 3, spread=0.05)
    want, got = run(ref, tuned, rlg(1.6)).x, run(ref, same, rlg(1.6, strict=False)).x
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_networks_that_are_not_there_or_not_ready():
    ref, tuned = pair()
    with pytest.raises(ShapeError, match="points"):
        run(ref, mixture_denoiser(VP(), 2), rlg(1.6))
    with pytest.raises(UnknownNameError, match="'tune'"):
        run(ref, tuned, rlg(1.6, "tune"))
    noisy = other(ref, net=nn.ModuleList([ref.net, nn.Dropout()]).train(), call=lambda n, *args: n[0](*args))
    for nets in ((ref, noisy), (noisy, tuned)):
        with pytest.raises(UnsupportedError, match="active dropout"):
            run(*nets, rlg(1.6))
    noisy.net.eval()
    run(ref, noisy, rlg(1.6))


def test_effective_kl():
    assert effective_kl(0.04, 2.0) == 0.02
    for beta, w in ((0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (float("inf"), 1.0), (1.0, float("nan"))):
        with pytest.raises(RangeError):
            effective_kl(beta, w)
