"""The contestants: one guided run of `sample()`, and the same run by hand and by each peer.

Every loop gets the same network, start points, times and guidance (CFG in one doubled batch, w = 4), and does per run
whatever its library asks for per run: wayfield makes its tables, diffusers sets its time steps. The loops by hand have
all coefficients made in advance, as 0-dim tensors, which PyTorch multiplies faster than Python numbers. Peers run in
their own state: k-diffusion on sigma, diffusers on its table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wayfield.bench.peers import k_diffusion_sampling, peer
from wayfield.core.grid import Grid
from wayfield.core.path import VE
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG
from wayfield.guide.terms import Term
from wayfield.sampling import Result, sample
from wayfield.solve.roles import Solver

__all__ = ["Net", "World", "azula", "ddim_by_hand", "diffusers", "dpm_2m_by_hand", "k_diffusion"]

CLASSES, W = 10, 4.0


@final
class Net(nn.Module):
    """A network (B, dim) -> (B, dim) that hears time and class; `depth` layers of `width` (one weight) set its cost.

    gain: of the inner layers; about 1.7 keeps the size of what passes through many of them.
    """

    def __init__(self, dim: int = 64, width: int = 128, depth: int = 3, rate: float = 1.0, gain: float = 1.0) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(0)

        def weight(n: int, m: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(n, m, generator=gen) / n**0.5, requires_grad=False)

        self.time, self.label = weight(1, width), weight(CLASSES + 1, width)
        self.first, self.last = weight(dim, width), weight(width, dim)
        self.inner, self.depth = weight(width, width).mul_(gain), depth
        self.rate, self.gain, self.size = rate, gain, (dim, width, depth)

    def hearing(self, factor: float) -> Net:
        """The same network for times in another unit."""
        return self if factor == 1 else Net(*self.size, rate=self.rate * factor, gain=self.gain)

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """x: (B, dim) / time: () or (B,) / cond: {"label": (B,)}."""
        h = F.silu(
            torch.addmm(self.label[cond["label"]], x, self.first) + (time * self.rate).reshape(-1, 1) * self.time
        )
        for _ in range(self.depth - 1):
            h = F.silu(h @ self.inner)
        return h @ self.last


@final
@dataclass(frozen=True)
class World:
    """What all contestants of a case share. grid: on the network's path / x: start (B, dim) / rest: see `Denoiser`."""

    net: Net
    grid: Grid
    kind: Any
    time: str
    x: Tensor
    scale_input: bool = False

    @property
    def label(self) -> Tensor:
        """One class per row."""
        return torch.arange(len(self.x)) % CLASSES

    @property
    def doubled(self) -> dict[str, Tensor]:
        """The condition of the doubled batch: classes, then none."""
        return {"label": torch.cat([self.label, torch.full_like(self.label, CLASSES)])}

    def denoiser(self, net: Net) -> Denoiser:
        """A network of this world as wayfield takes it."""
        schema = Schema({"label": Field(values=CLASSES + 1)}, {"label": CLASSES})
        shape, scaled = tuple(self.x.shape[1:]), self.scale_input
        return Denoiser(net, self.grid.path, self.kind, time=self.time, scale_input=scaled, schema=schema, shape=shape)

    def wayfield(self, solver: Solver, guidance: Term = CFG(W), weak: Net | None = None) -> Callable[[], Result]:
        """Our run. weak: a second network, for guidance that asks it."""
        denoiser, cond, x = self.denoiser(self.net), {"label": self.label}, self.x
        nets = None if weak is None else {"weak": self.denoiser(weak)}
        return lambda: sample(
            denoiser, self.grid, x=x, samples=len(x), cond=cond, solver=solver, guidance=guidance, nets=nets
        )

    def guided(self, rescaled: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
        """The network under CFG in one call, as a peer's user would write it, for times `rescaled` against ours."""
        net, cond, w = self.net.hearing(1 / rescaled), self.doubled, torch.tensor(W)

        def call(x: Tensor, time: Tensor) -> Tensor:
            c, u = net(torch.cat([x, x]), time, cond).chunk(2)
            return torch.lerp(u, c, w)

        return call


def _numbers(values: Tensor) -> tuple[Tensor, ...]:
    return values.float().unbind()


def _indices(world: World) -> tuple[Tensor, ...]:
    return _numbers(world.grid.times[:-1] * 1000 - 1)


def ddim_by_hand(world: World) -> Callable[[], Tensor]:
    """x <- p x + q eps for an eps-network on a table of 1000 rows: the shortest loop there is."""
    a, s = world.grid.scales[:2]
    p, q = a[1:] / a[:-1], s[1:] - s[:-1] * a[1:] / a[:-1]
    steps = list(zip(_numbers(p), _numbers(q), _indices(world), strict=True))
    guided, x0 = world.guided(), world.x

    @torch.no_grad()
    def run() -> Tensor:
        x = x0
        for p, q, time in steps:
            x = torch.addcmul(p * x, q, guided(x, time))
        return x

    return run


def dpm_2m_by_hand(world: World) -> Callable[[], Tensor]:
    """DPM-Solver++(2M) for an eps-network on a table of 1000 rows: D = i x + j eps, x <- p x + q D + r D_prev."""
    a, s, h = *world.grid.scales[:2], world.grid.lam.diff()
    p, q = s[1:] / s[:-1], -a[1:] * torch.expm1(-h)
    half = torch.cat([torch.zeros(1, dtype=h.dtype), h[1:] / (2 * h[:-1])])
    half[-1] = 0
    columns = (1 / a[:-1], -s[:-1] / a[:-1], p, q * (1 + half), -q * half)
    steps = list(zip(*(_numbers(c) for c in columns), _indices(world), strict=True))
    guided, x0 = world.guided(), world.x

    @torch.no_grad()
    def run() -> Tensor:
        x, before = x0, torch.zeros_like(x0)
        for i, j, p, q, r, time in steps:
            D = torch.addcmul(i * x, j, guided(x, time))
            x, before = torch.addcmul(torch.addcmul(p * x, q, D), r, before), D
        return x

    return run


def diffusers(world: World, scheduler: str, config: Mapping[str, Any] = MappingProxyType({})) -> Callable[[], Tensor]:
    """A diffusers scheduler with trailing time steps around the guided network, as its pipelines call it."""
    made = getattr(peer("diffusers"), scheduler)(timestep_spacing="trailing", **config)
    guided, x0, steps = world.guided(), world.x, world.grid.steps

    @torch.no_grad()
    def run() -> Tensor:
        made.set_timesteps(steps)
        x = x0
        for t in made.timesteps:
            x = made.step(guided(made.scale_model_input(x, t), t), t, x, return_dict=False)[0]
        return x

    return run


def k_diffusion(world: World, sampler: str) -> Callable[[], Tensor]:
    """A k-diffusion sampler around the guided network, which predicts clean data on the EDM path and hears sigma."""
    function = getattr(k_diffusion_sampling(), sampler)
    x0, sigmas = world.x, world.grid.scales.sigma.float()
    guided = world.guided(float(sigmas[0]) / world.grid.t[0])

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return guided(x, sigma[0])

    return lambda: function(model, x0, sigmas, disable=True)


def azula(world: World, sampler: str, options: Mapping[str, Any] = MappingProxyType({})) -> Callable[[], Tensor]:
    """An azula sampler around its own `SimpleDenoiser` under CFG in one doubled batch (its own CFG makes two calls)."""
    path, denoise, cond, w = world.grid.path, peer("azula.denoise"), world.doubled, torch.tensor(W)
    assert isinstance(path, VE)
    schedule = peer("azula.noise").VESchedule(path.sigma_min, path.sigma_max)
    single, ends = (
        denoise.SimpleDenoiser(world.net.hearing(-2.0), schedule),
        world.grid.t,
    )  # log(sigma/alpha), not log-SNR

    class Guided(denoise.Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            c, u = single(torch.cat([x_t, x_t]), t, cond=cond).mean.chunk(2)
            return denoise.DiracPosterior(torch.lerp(u, c, w))

    made = getattr(peer("azula.sample"), sampler)(
        Guided(), start=ends[0], stop=ends[-1], steps=world.grid.steps, silent=True, **options
    )
    return lambda: made(world.x)
