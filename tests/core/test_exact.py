import math

import pytest
import torch

from wayfield.core.errors import RangeError, ShapeError
from wayfield.core.exact import Empirical, Mixture, gaussian, isotropic_mixture
from wayfield.core.path import Straight, Trig


def t64(v):
    return torch.tensor(v, dtype=torch.float64)


def full_mixture(path, randn):
    A = randn(3, 4, 4, seed=2)
    covs = A @ A.mT / 4 + 0.05 * torch.eye(4, dtype=torch.float64)
    return Mixture(path, t64([0.2, 0.5, 0.3]), randn(3, 4, seed=3), covs, torch.tensor([0, 0, 1]))


def test_gaussian_formula(path, randn64):
    """Card, oracle 4: D = mu + a c^2 / (a^2 c^2 + s^2) (x - a mu)."""
    mu, c = randn64(5), 0.6
    net = gaussian(path, mu, t64(c**2))
    x, t = randn64(7, 5, seed=1), torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    a, s = (v[:, None] for v in path.scales(t)[:2])
    torch.testing.assert_close(
        net(x, t, {}), mu + a * c**2 / (a**2 * c**2 + s**2) * (x - a * mu), rtol=1e-11, atol=1e-11
    )


def test_denoiser_is_the_score_of_log_prob(path, randn64):
    """Card, oracle 6: autograd of log p_t gives (a D - x) / s^2, for the whole mixture and for each class."""
    net = full_mixture(path, randn64)
    x = randn64(6, 4, seed=7).requires_grad_()
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    a, s = (v[:, None] for v in path.scales(t)[:2])
    for label in (None, torch.tensor([0, 1, 2, 0, 1, 2])):
        (score,) = torch.autograd.grad(net.log_prob(x, t, label).sum(), x)
        D = net(x.detach(), t, {} if label is None else {"label": label})
        torch.testing.assert_close((a * D - x.detach()) / s**2, score, rtol=1e-9, atol=1e-9)


def test_log_prob_matches_torch_distributions(randn64):
    net = full_mixture(Trig(), randn64)
    x, t = randn64(6, 4), t64(0.3)
    a, s, _, _ = Trig().scales(t)
    comps = torch.distributions.MultivariateNormal(
        a * net.means, a**2 * net.covs + s**2 * torch.eye(4, dtype=torch.float64)
    )
    mixed = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(net.weights), comps)
    torch.testing.assert_close(net.log_prob(x, t), mixed.log_prob(x), rtol=1e-11, atol=1e-11)


def test_posterior_is_bayes(randn64):
    net = full_mixture(Straight(), randn64)
    x, t = randn64(6, 4), t64(0.4)
    q = net.posterior(x, t)
    torch.testing.assert_close(q.sum(1), torch.ones(6, dtype=torch.float64))
    for k, prior in ((0, 0.7), (1, 0.3)):
        label = torch.full((6,), k)
        want = (net.log_prob(x, t, label) - net.log_prob(x, t)).exp() * prior
        torch.testing.assert_close(q[:, k], want, rtol=1e-11, atol=1e-12)


def test_total_expectation(randn64):
    """sum_k p(k | x) E[x0 | x, k] = E[x0 | x]."""
    net = full_mixture(Trig(), randn64)
    x, t = randn64(6, 4), t64(0.6)
    q = net.posterior(x, t)
    parts = [net(x, t, {"label": torch.full((6,), k)}) for k in (0, 1)]
    torch.testing.assert_close(q[:, :1] * parts[0] + q[:, 1:] * parts[1], net(x, t, {}), rtol=1e-11, atol=1e-11)


def test_linear_gaussian_posterior(randn64):
    """Against the information form, and against Bayes' rule on densities for a mixture."""
    H, y, R = randn64(2, 4, seed=4), randn64(2, seed=5), t64([[0.3, 0.1], [0.1, 0.2]])
    prior = gaussian(Trig(), randn64(4), full_mixture(Trig(), randn64).covs[0])
    post = prior.given(H, y, R)
    precision = torch.linalg.inv(prior.covs[0]) + H.T @ torch.linalg.inv(R) @ H
    torch.testing.assert_close(post.covs[0], torch.linalg.inv(precision), rtol=1e-9, atol=1e-10)
    shift = torch.linalg.inv(prior.covs[0]) @ prior.means[0] + H.T @ torch.linalg.inv(R) @ y
    torch.testing.assert_close(post.means[0], torch.linalg.solve(precision, shift), rtol=1e-9, atol=1e-10)

    mix = full_mixture(Trig(), randn64)
    post = mix.given(H, y, R)
    x0, clean = randn64(5, 4, seed=6), t64(0.0)
    like = torch.distributions.MultivariateNormal(x0 @ H.T, R).log_prob(y)
    unnormalised = mix.log_prob(x0, clean) + like - post.log_prob(x0, clean)
    torch.testing.assert_close(unnormalised, unnormalised[:1].expand(5), rtol=1e-9, atol=1e-9)


def test_gaussian_flow(path, randn64):
    mu, c = randn64(3), 0.6
    net = gaussian(path, mu, t64(c**2))
    x = randn64(4, 3, seed=1)
    (at, st), (ar, sr) = (path.scales(t64(t))[:2] for t in (0.8, 0.3))
    want = ar * mu + ((ar**2 * c**2 + sr**2) / (at**2 * c**2 + st**2)).sqrt() * (x - at * mu)
    torch.testing.assert_close(net.flow(x, 0.8, 0.3), want, rtol=1e-11, atol=1e-11)


def test_mixture_flow_in_one_dimension(path, mixture, randn64):
    """Its time derivative is the velocity of the denoiser, and there and back is the identity."""
    den = mixture(path)
    net, x, t, h = den.net, randn64(9, 1), 0.4445, 1e-5
    rate = (net.flow(x, t, t + h) - net.flow(x, t, t - h)) / (2 * h)
    _, _, da, ds = path.scales(t64(t))
    pred = den(x, t, None)
    torch.testing.assert_close(rate, da * pred.x0 + ds * pred.eps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.flow(net.flow(x, 0.9, 0.1), 0.1, 0.9), x, rtol=1e-7, atol=1e-7)
    with pytest.raises(ShapeError):
        mixture(path, d=2).net.flow(randn64(1, 2), 0.9, 0.1)


def test_empirical_is_a_mixture_without_width(path, randn64):
    data, labels = randn64(5, 2, 3), torch.tensor([0, 1, 1, 0, 2])
    net = Empirical(path, data, labels)
    same = Mixture(path, torch.ones(5, dtype=torch.float64), data, torch.zeros(5, 6, 6, dtype=torch.float64), labels)
    x, t = randn64(4, 2, 3, seed=1), torch.linspace(0.1, 0.9, 4, dtype=torch.float64)
    for cond in ({}, {"label": torch.tensor([0, 1, 2, 3])}):
        torch.testing.assert_close(net(x, t, cond), same(x, t, cond), rtol=1e-9, atol=1e-9)


def test_empirical_without_noise_is_the_nearest_member(randn64):
    data = 10 * randn64(5, 300)
    net = Empirical(Straight(), data)
    torch.testing.assert_close(net(data + 0.01, t64(0.0), {}), data, rtol=0, atol=0)


def test_bad_input(randn64):
    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ShapeError):
        Mixture(Trig(), torch.ones(2), randn64(3, 2), eye.expand(3, 2, 2))
    with pytest.raises(RangeError):
        Mixture(Trig(), t64([1.0]), randn64(1, 2), -eye[None])
    with pytest.raises(RangeError):
        isotropic_mixture(Trig(), randn64(2, 2), 0.1, t64([1.0, 0.0]))
    with pytest.raises(ShapeError):
        Empirical(Trig(), randn64(3, 2), torch.zeros(2, dtype=torch.long))
    assert math.isclose(float(isotropic_mixture(Trig(), randn64(2, 2), 0.1).weights.sum()), 1)
