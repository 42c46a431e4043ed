"""Guided sampling written out by hand, sample by sample: shares nothing with the library but the denoisers.

A rule is called as rule(world, x, j, m) with points x (B, *D), the index j of their level and a memory m, a dict that
it may change; it returns x0, or (x0, eps). It leaves in m["open"] for how many samples it evaluated what could be
spared; None where the host alone had decided against it.
"""

import math
from dataclasses import dataclass

import torch

from wayfield.core import grid as G
from wayfield.core.exact import isotropic_mixture
from wayfield.core.path import VP
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser

N, B, NONE = 10, 5, 4
GRID = G.karras(VP(), N, sigma_min=0.05, sigma_max=20.0)
LABELS = {
    "cond": torch.tensor([0, 1, 2, 0, 1]),
    "second": torch.tensor([1, 2, 3, 3, 0]),
    "bad": torch.tensor([2, 3, 0, 1, 3]),
    "null": torch.full((B,), NONE),
}


def _noise(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def denoiser(seed):
    """Six Gaussians in four classes, in four dimensions; label 4 is all of them."""
    net = isotropic_mixture(VP(), 0.8 * _noise(seed, 6, 4), 0.1, labels=torch.tensor([0, 1, 2, 3, 0, 1]))
    return Denoiser(net, VP(), "x0", shape=(4,), schema=Schema({"label": Field(values=5)}, {"label": NONE}))


@dataclass
class World:
    """Three networks, the levels and the start of a run."""

    nets: dict
    t: tuple
    alpha: torch.Tensor
    sigma: torch.Tensor
    x: torch.Tensor

    @staticmethod
    def make():
        nets = {"main": denoiser(0), "weak": denoiser(1), "base": denoiser(2)}
        a, s = GRID.scales[:2]
        return World(nets, GRID.t, a, s, float(s[0]) * _noise(3, B, 4))

    def __call__(self, x, j, cond="cond", net="main"):
        return self.nets[net](x, self.t[j], {"label": LABELS[cond]}).x0

    def eps(self, x, j, x0):
        return (x - self.alpha[j] * x0) / self.sigma[j]

    def log_snr(self, j):
        return 2 * math.log(float(self.alpha[j] / self.sigma[j]))


def run(world, rule, solver):
    """The final points, and for every step the `open` of each evaluation. solver: "ddim", "2m" or "heun"."""
    a, s, x, memory, before, opened = world.alpha, world.sigma, world.x, {}, None, []
    for i in range(N):
        kept = dict(memory)
        x0, eps = _pair(world, x, i, rule(world, x, i, kept))
        opened.append([kept.pop("open")])
        moved = a[i + 1] * x0 + s[i + 1] * eps
        if solver == "2m" and 0 < i < N - 1:
            lam = (a[i - 1 : i + 2] / s[i - 1 : i + 2]).log()
            h, ratio = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
            moved = moved + a[i + 1] * (1 - (-h).exp()) / (2 * ratio) * (x0 - before)
        if solver == "heun" and s[i + 1] > 0:
            scratch = dict(memory)  # a second evaluation reads what was known before the step, and is forgotten
            _, later = _pair(world, moved, i + 1, rule(world, moved, i + 1, scratch))
            opened[-1].append(scratch["open"])
            moved = moved + 0.5 * (s[i + 1] - a[i + 1] * s[i] / a[i]) * (later - eps)
        x, before, memory = moved, x0, kept
    return x, opened


def _pair(world, x, j, answer):
    return answer if isinstance(answer, tuple) else (answer, world.eps(x, j, answer))


def rows_only(on, push):
    """The push where a list of booleans says so."""
    return torch.stack([p if k else torch.zeros_like(p) for k, p in zip(on, push, strict=True)])


def latch(a, b, m, bar, name="on"):
    """AG: who is guided now. m[name]: who still will be at the next step."""
    on = m.get(name, [True] * B)
    m[name] = [k and not float(p @ q / p.norm() / q.norm()) > bar for k, p, q in zip(on, a, b, strict=True)]
    m["open"] = sum(on)
    return on


def project(d, c, m, *, r, beta, eta=0.0, on=(True,) * B, name="momentum"):
    """APG with momentum that stands still where `on` is False."""
    old, out, kept = m.get(name, torch.zeros_like(d)), [], []
    for k in range(B):
        v = d[k] + beta * old[k]
        kept.append(v if on[k] else old[k])
        v = v * min(1.0, r / float(v.norm()))
        out.append(v - (1 - eta) * (v @ c[k]) / (c[k] @ c[k]) * c[k])
    m[name] = torch.stack(kept)
    return torch.stack(out)


def respread(y, like, phi):
    """Lin et al., eq. 15 and 16: standard deviations over the values of each sample."""
    factors = [phi * float(c.std(correction=0) / g.std(correction=0)) + 1 - phi for g, c in zip(y, like, strict=True)]
    return torch.stack([f * g for f, g in zip(factors, y, strict=True)])


def gradient(f, x):
    """Of a sum of scalars in the points."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf).sum(), leaf)[0]


def linear_answer(world, x, j, m, table):
    """LinearAG in eps: the network's or the predicted unconditional x0; histories are lists in m."""
    c, true = world(x, j), table["true"][j]
    past_c, past_u = [*m.get("c", []), world.eps(x, j, c)], m.get("u", [])
    if true:
        u = world.eps(x, j, world(x, j, "null"))
    else:
        u = torch.full_like(x, table["b0"][j])
        for b, y in zip(table["bc"][j] + table["bu"][j], past_c + past_u, strict=True):
            u = u + b * y
    m["c"], m["u"], m["open"] = past_c, [*past_u, u], B if true else None
    return c, (x - world.sigma[j] * u) / world.alpha[j]
