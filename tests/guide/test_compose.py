"""AND and NOT against products of Gaussians and the mixture's own posterior."""

import pytest
import torch

from wayfield.core import grid as G
from wayfield.core.errors import RangeError, UnknownNameError, UnsupportedError
from wayfield.core.exact import Mixture
from wayfield.core.path import VP
from wayfield.field.binding import NULL, Query
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Guidance
from wayfield.guide.compose import compose
from wayfield.guide.roles import Gate
from wayfield.sampling import sample
from wayfield.solve import DDIM, DPM2M

WEIGHTS = [{"cond": 1.0}, {"cond": 3.0, "second": 2.0, "bad": -1.5}, {"cond": 0.7, "second": 0.2}]
LABELS = {"cond": 0, "second": 1, "bad": 2}
CONDS = {k: {"label": v} for k, v in LABELS.items() if k != "cond"}


def experts(path):
    """Labels 0..2 are wide Gaussians of their own, label 3 ("none") is another; not their mixture."""
    gen = torch.Generator().manual_seed(1)
    means = torch.randn(4, 3, dtype=torch.float64, generator=gen)
    covs = torch.stack([(0.2 + 0.3 * k) * torch.eye(3, dtype=torch.float64) for k in range(4)])
    net = Mixture(path, torch.ones(4, dtype=torch.float64), means, covs, torch.arange(4))
    # label 3 is the fourth component; 4 would be all of them
    schema = Schema({"label": Field(values=4)}, {"label": 3})
    return Denoiser(net, path, "x0", shape=(3,), schema=schema)


def step(den, guidance, x, t, **options):
    """The x0 that one DDIM step from t used, and the run's cost."""
    grid = G.given(den.path, (t, 0.9 * t))
    (a, an), (s, sn) = grid.scales[:2]
    options = {"conds": CONDS, "cond": {"label": 0}, "solver": DDIM(), "dtype": torch.float64, **options}
    out = sample(den, grid, x=x, samples=len(x), guidance=guidance, **options)
    # x_n = an x0 + sn (x - a x0) / s
    return (out.x - sn / s * x) / (an - sn * a / s), out.counts


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("t", [0.9, 0.4, 0.1])
def test_product_of_gaussian_experts(path, randn64, weights, t):
    """prod_k (p_k / p_0)^w_k p_0 of noisy Gaussians is Gaussian; x0 is Tweedie of its score."""
    den, x = experts(path), randn64(5, 3)
    got, counts = step(den, compose(weights), x, t)
    a, s = path.scales(torch.tensor(t, dtype=torch.float64))[:2]
    v = torch.tensor([0.2 + 0.3 * k for k in range(4)], dtype=torch.float64)
    powers = torch.zeros(4, dtype=torch.float64)
    for name, w in weights.items():
        powers[LABELS[name]] += w
    powers[3] = 1 - sum(weights.values())
    precision = powers / (a**2 * v + s**2)
    score = (precision[:, None] * a * den.net.means).sum(0) - precision.sum() * x
    torch.testing.assert_close(got, (x + s**2 * score) / a, rtol=1e-8, atol=1e-8)
    assert (counts.calls, counts.rows) == (1, 5 * (1 + len(weights)))


@pytest.mark.parametrize("t", [0.7, 0.3])
def test_posterior_of_a_mixture(mixture, randn64, t):
    """Where "none" is all the data, x0 = u + (s^2/a) grad sum_k w_k log p(y_k | x)."""
    den, x = mixture(VP(), d=3), randn64(5, 3)
    got, _ = step(den, compose({"cond": 1.5, "second": -0.5}), x, t)
    a, s = den.path.scales(torch.tensor(t, dtype=torch.float64))[:2]
    leaf = x.clone().requires_grad_()
    log_p = den.net.posterior(leaf, torch.tensor(t, dtype=torch.float64)).log()
    (grad,) = torch.autograd.grad((1.5 * log_p[:, 0] - 0.5 * log_p[:, 1]).sum(), leaf)
    torch.testing.assert_close(got, den(x, t).x0 + s**2 / a * grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("w", [0.5, 1.0, 4.0, (1.0, 2.0, 0.0, 3.0, -1.0)], ids=str)
def test_one_condition_is_cfg(mixture, randn64, w):
    den, x = mixture(VP(), d=3), randn64(5, 3)
    got, want = (step(den, g, x, 0.4)[0] for g in (compose({"cond": w}), CFG(w)))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_a_weight_of_zero_costs_nothing(mixture, randn64):
    den, x = mixture(VP(), d=3), randn64(5, 3)
    got, counts = step(den, compose({"cond": 0.0, "second": 2.0}), x, 0.4)
    want, _ = step(den, compose({"second": 2.0}), x, 0.4)
    assert torch.equal(got, want)
    assert counts.rows == 10


class Half(Gate):
    """Closes rows 1 and 3 of five."""

    masked = True

    def open(self, step, state):
        return torch.tensor([True, False, True, False, True])


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
def test_gated_rows_fall_back_to_the_unconditional_model(mixture, rows):
    den, grid = mixture(VP(), d=3), G.karras(VP(), 6, sigma_min=0.05, sigma_max=20.0)
    composed = compose({"cond": 2.0, "second": -0.5})
    options = {"samples": 5, "cond": {"label": 0}, "conds": CONDS, "solver": DPM2M(), "dtype": torch.float64}
    gated = Guidance(composed.term.when(Half()), base=NULL, rows=rows)
    got, whole = (sample(den, grid, guidance=g, **options).x for g in (gated, composed))
    plain = sample(den, grid, guidance=Guidance(base=NULL), **options).x
    open_rows = torch.tensor([[True], [False], [True], [False], [True]])
    torch.testing.assert_close(got, torch.where(open_rows, whole, plain), rtol=1e-11, atol=1e-11)


def test_bad_weights_and_names(mixture, randn64):
    for bad in ({}, {"null": 1.0}, {"cond": 1.0, "null": 2.0}):
        with pytest.raises(UnsupportedError, match="not 'null'"):
            compose(bad)
    with pytest.raises(RangeError, match="weight of 'cond'"):
        compose({"cond": float("nan")})
    with pytest.raises(UnknownNameError, match="Did you mean 'second'"):
        step(mixture(VP(), d=3), compose({"secnd": 1.0}), randn64(5, 3), 0.4)


def test_repr_rebuilds():
    from wayfield.guide import Away
    from wayfield.guide.nodes import Scale, Sum

    names = {"Guidance": Guidance, "Away": Away, "Scale": Scale, "Sum": Sum, "Query": Query}
    for weights in WEIGHTS:
        assert eval(repr(compose(weights)), names) == compose(weights)
