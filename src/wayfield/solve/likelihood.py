r"""Log-likelihood by the probability-flow ODE.

In the EDM state y = x/alpha with tau = log(sigma/alpha), the flow and its log-density obey

.. math:: \frac{dy}{d\tau} = \frac{\sigma}{\alpha}\, \varepsilon(\alpha y), \qquad
   \frac{d \log p(y)}{d\tau} = -\frac{\sigma}{\alpha}\, \mathrm{tr} \frac{\partial \varepsilon}{\partial y}

integrated by the classical Runge-Kutta method of order four up a rising grid; the density at the top is N(0, sigma_T^2
I) unless a better one is given.
The trace is exact (one backward pass per dimension) or Hutchinson's, with Rademacher probes addressed by sample.

Shapes: x (B, *D), result (B,), in nats.

References: Chen et al. 2018; Grathwohl et al. 2019 (Hutchinson trace); Song et al. 2021, appendix D.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from wayfield.core.errors import GridError, RangeError, unknown_name
from wayfield.core.grid import Grid
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.shapes import check_samples, flatten
from wayfield.field.batching import Batching
from wayfield.field.binding import Binding
from wayfield.field.denoiser import Denoiser
from wayfield.guide.guidance import ANYWHERE, At, Guidance, guidance_of
from wayfield.guide.terms import Term

__all__ = ["bits_per_dim", "log_likelihood"]


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    grid: Grid,
    *,
    cond: Mapping[str, Any] | None = None,
    guidance: Guidance | Term | None = None,
    trace: Literal["exact", "hutchinson"] = "exact",
    probes: int = 1,
    seed: int = 0,
    samples: Sequence[int] | None = None,
    top: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """log p(x) of points x (B, *D) that live at the grid's first time, in nats, (B,).

    grid: rising, inside (0, 1), from nearly clean to nearly pure noise; four evaluations a step / trace: "exact" costs
    D backward passes per evaluation, "hutchinson" `probes` of them and is unbiased / samples: addresses of the probes,
    0..B-1 by default.
    top: log-density (B,) of points (B, *D) at the grid's last time; by default N(0, sigma^2 I), the usual
    approximation.
    Raises GridError for falling grids or ends without signal or noise, RangeError for fewer than one probe.
    """
    check_samples("points", x)
    denoiser.check_points(x)
    if trace not in ("exact", "hutchinson"):
        raise unknown_name("trace", trace, ("exact", "hutchinson"))
    if probes < 1:
        raise RangeError(
            "probes", got=probes, expected=">= 1", remedy="One probe is unbiased; more reduce its variance."
        )
    if not (grid.rising and bool(torch.isfinite(grid.lam).all())):
        raise GridError(
            "likelihood grid",
            got=f"t = {grid.t[0]:g} to {grid.t[-1]:g}",
            expected="rising times at which alpha > 0 and sigma > 0",
            remedy="Use karras(...).reversed(), which drops the clean end.",
        )
    binding = Binding({"main": denoiser}, {"cond": cond}, len(x), x.device, Batching.default(x.device))
    vectors = _probes(x, trace, probes, seed, samples)

    def slope(y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        return _slope(binding, guidance_of(guidance), grid, y, tau, vectors)

    tau = (-grid.lam).tolist()
    alpha = grid.scales.alpha
    y, log_det = x / alpha[0].to(x), torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for a, b in pairwise(tau):
        h = b - a
        k1, d1 = slope(y, a)
        k2, d2 = slope(y + h / 2 * k1, a + h / 2)
        k3, d3 = slope(y + h / 2 * k2, a + h / 2)
        k4, d4 = slope(y + h * k3, b)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        log_det = log_det + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    d = flatten(x).shape[1]
    x_top, sigma = alpha[-1].to(x) * y, float(grid.scales.sigma[-1])
    if top is None:
        log_top = -0.5 * flatten(x_top / sigma).square().sum(1) - d * math.log(sigma * math.sqrt(2 * math.pi))
    else:
        log_top = top(x_top)
    return (log_top + log_det + d * (alpha[-1] / alpha[0]).log().to(x)).detach()


def bits_per_dim(log_prob: Tensor, dims: int, *, bins: float = 127.5) -> Tensor:
    """Nats to bits per dimension for 8-bit data scaled to [-1, 1] (`bins` levels per unit); lower is better."""
    return -log_prob / (dims * math.log(2)) + math.log2(bins)


def _probes(x: Tensor, trace: str, probes: int, seed: int, samples: Sequence[int] | None) -> Tensor:
    """(P, B, *D) whose outer products sum to the identity, exactly or in expectation: unit vectors, or scaled
    Rademacher signs.
    """
    if trace == "exact":
        d = flatten(x).shape[1]
        eye = torch.eye(d, dtype=x.dtype, device=x.device)
        return eye.reshape(d, 1, *x.shape[1:]).expand(d, *x.shape)
    noise = SeededNoise(seed, len(x) if samples is None else samples)
    draws = [noise.draw(x.shape[1:], Address(k)).sign().to(x) for k in range(probes)]
    return torch.stack(draws) / math.sqrt(probes)


def _slope(
    binding: Binding, guidance: Guidance, grid: Grid, y: Tensor, tau: float, vectors: Tensor
) -> tuple[Tensor, Tensor]:
    """dy/dtau (B, *D) and the trace of its Jacobian (B,), by the probing vectors."""
    t = grid.path.time(torch.tensor(-2 * tau, dtype=torch.float64))
    alpha = grid.path.scales(t).alpha.to(y)
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        x = alpha * y
        levels = {n: d.level(t, path=grid.path, dtype=y.dtype, device=y.device) for n, d in binding.nets.items()}
        plan = guidance.anywhere(binding, x, "log_likelihood")
        pred, *_ = guidance(binding, x, At(levels), ANYWHERE, guidance.init(x, 1), plan)
        out = math.exp(tau) * pred.eps
        total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
        for v in vectors:
            (g,) = torch.autograd.grad(out, y, v, retain_graph=True)
            total = total + flatten(g * v).sum(1)
    return out.detach(), total
