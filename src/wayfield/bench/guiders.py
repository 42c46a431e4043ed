"""Guidance as others write it: by hand, with diffusers' guiders, with azula's CFG.

By hand means what a careful author would write for one network and one method: both conditions in one doubled batch,
all coefficients made in advance, nothing that the method does not need. The network predicts clean data, so that
methods which depend on the space they work in (APG does) are the same formula for everybody.

=========  ============================================  ==================
symbol     meaning                                       shape
=========  ============================================  ==========
c, u       answers with the condition and without        (B, dim)
v          the weaker network's, with the condition      (B, dim)
=========  ============================================  ==========

diffusers' guiders and azula's CFG call the network once per branch. diffusers' AutoGuidance skips layers of one
network, which is another method; what stands beside ours is its CFG guider, given the answers of two networks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wayfield.bench.loops import CLASSES, Net, World
from wayfield.bench.peers import peer
from wayfield.core.path import VE

__all__ = ["Guide", "apg_by_hand", "auto_by_hand", "azula_cfg", "by_hand", "cfg_by_hand", "guider", "mix_by_hand"]

Guide = Callable[[Tensor, Tensor, int], Tensor]
"""Guided clean data (B, dim) from the points x (B, dim), the time () and the number of the step."""


def by_hand(world: World, start: Callable[[], Guide]) -> Callable[[], Tensor]:
    """DDIM for an x0-network on a table of 1000 rows, x <- p x + q x0. start: makes the guide of one run."""
    a, s = world.grid.scales[:2]
    p = s[1:] / s[:-1]
    columns = (p, a[1:] - p * a[:-1], world.grid.times[:-1] * 1000 - 1)
    steps, x0 = list(zip(*(c.float().unbind() for c in columns), strict=True)), world.x

    @torch.no_grad()
    def run() -> Tensor:
        x, guide = x0, start()
        for k, (p, q, time) in enumerate(steps):
            x = torch.addcmul(p * x, q, guide(x, time, k))
        return x

    return run


def cfg_by_hand(world: World, w: float) -> Callable[[], Guide]:
    """u + w (c - u)."""
    net, cond, scale = world.net, world.doubled, torch.tensor(w)

    def guide(x: Tensor, time: Tensor, k: int) -> Tensor:
        c, u = net(torch.cat([x, x]), time, cond).chunk(2)
        return torch.lerp(u, c, scale)

    return lambda: guide


def auto_by_hand(world: World, weak: Net, w: float) -> Callable[[], Guide]:
    """v + w (c - v)."""
    net, cond, scale = world.net, {"label": world.label}, torch.tensor(w)
    return lambda: lambda x, time, k: torch.lerp(weak(x, time, cond), net(x, time, cond), scale)


def apg_by_hand(world: World, w: float, r: float, beta: float) -> Callable[[], Guide]:
    """c + (w - 1) d, with d the clipped sum of differences c - u without its part along c."""
    net, cond, gain, momentum = world.net, world.doubled, torch.tensor(w - 1), torch.tensor(beta)

    def start() -> Guide:
        before = torch.zeros_like(world.x)

        def guide(x: Tensor, time: Tensor, k: int) -> Tensor:
            nonlocal before
            c, u = net(torch.cat([x, x]), time, cond).chunk(2)
            before = d = torch.addcmul(c - u, momentum, before)
            d = d * (r / torch.linalg.vector_norm(d, dim=1, keepdim=True)).clamp(max=1)
            along = (d * c).sum(1, keepdim=True) / (c * c).sum(1, keepdim=True)
            return torch.addcmul(c, gain, torch.addcmul(d, along, c, value=-1))

        return guide

    return start


def mix_by_hand(world: World, weak: Net, cfg: list[float], auto: float) -> Callable[[], Guide]:
    """c + (w - 1)(c - u) + (auto - 1)(c - v). cfg: w of each step."""
    net, twice, once = world.net, world.doubled, {"label": world.label}
    of_c, of_u, of_v = torch.tensor(cfg) + auto - 1, 1 - torch.tensor(cfg), torch.tensor(1 - auto)
    steps = list(zip(of_c.unbind(), of_u.unbind(), strict=True))

    def guide(x: Tensor, time: Tensor, k: int) -> Tensor:
        (a, b), (c, u) = steps[k], net(torch.cat([x, x]), time, twice).chunk(2)
        return torch.addcmul(torch.addcmul(a * c, b, u), of_v, weak(x, time, once))

    return lambda: guide


def guider(world: World, name: str, options: dict[str, Any], weak: Net | None = None) -> Callable[[], Tensor]:
    """A diffusers guider and its DDIM, driven as its pipelines drive them. weak: answers the second branch, with the
    condition; by default the network does, without it.
    """
    config = {"timestep_spacing": "trailing", "prediction_type": "sample", "clip_sample": False}
    scheduler, made = peer("diffusers").DDIMScheduler(**config), getattr(peer("diffusers.guiders"), name)(**options)
    nets, label, x0, steps = (world.net, weak or world.net), world.label, world.x, world.grid.steps
    labels = {"label": (label, torch.full_like(label, CLASSES) if weak is None else label)}

    @torch.no_grad()
    def run() -> Tensor:
        scheduler.set_timesteps(steps)
        x = x0
        for i, t in enumerate(scheduler.timesteps):
            made.set_state(step=i, num_inference_steps=steps, timestep=t)
            branches, seen = made.prepare_inputs(labels), scheduler.scale_model_input(x, t)
            for net, branch in zip(nets, branches, strict=True):
                made.prepare_models(net)
                branch.noise_pred = net(seen, t, {"label": branch.label})
                made.cleanup_models(net)
            x = scheduler.step(made(branches).pred, t, x, return_dict=False)[0]
        return x

    return run


def azula_cfg(world: World, w: float) -> Callable[[], Tensor]:
    """azula's CFG and DDIM around its own preconditioning, on the path where it agrees with ours."""
    path, denoise = world.grid.path, peer("azula.denoise")
    assert isinstance(path, VE)
    net = world.net.hearing(-2.0)  # it hears log(sigma/alpha), not log-SNR
    single = denoise.SimpleDenoiser(net, peer("azula.noise").VESchedule(path.sigma_min, path.sigma_max))
    label, (first, *_, last) = world.label, world.grid.t
    made = peer("azula.sample").DDIMSampler(
        peer("azula.guidance.cfg").CFGDenoiser(single), start=first, stop=last, steps=world.grid.steps, silent=True
    )
    given = {"cond": {"label": label}}, {"cond": {"label": torch.full_like(label, CLASSES)}}
    return lambda: made(world.x, positive=given[0], negative=given[1], guidance=w - 1)
