"""Suite "steps": what `sample()` costs around the network, against loops by hand and peers, on one CPU thread.

Cases "ddim", "dpm2m", "dpm3m" and "unipc" are whole runs of 50 steps with CFG on a network of some 30 us, so that they
show overhead (set-up included); "ddim, slow network" has one of at least 5 ms, where overhead should vanish. "noise" is
one addressed draw of 16 pictures against torch.randn; "import" is the time that importing wayfield (and its driver)
adds to that of torch, in fresh processes, by the wall clock.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from wayfield.bench import loops
from wayfield.bench.loops import Net, World
from wayfield.bench.timing import Contest, Row, compete, spread
from wayfield.core.errors import MissingExtraError
from wayfield.core.grid import karras, spaced, uniform
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import EDM, VE
from wayfield.core.predict import Kind
from wayfield.core.schedule import tabulated
from wayfield.solve import DDIM, DPM2M, DPM3M, Solver, UniPC

__all__ = ["run"]

DIM, STEPS = 64, 50

Peers = dict[str, Callable[[], Callable[[], Tensor]]]


def run(quick: bool) -> list[Row]:
    """All cases."""
    out: list[Row] = []
    for contest in _small(STEPS):
        out += compete(contest, 8 if quick else 60)
    out += compete(_slow(5 if quick else STEPS), 3 if quick else 15, warmups=1)
    out += compete(_noise(), 8 if quick else 60)
    return out + _imports(1 if quick else 5)


def _start(scale: float, rows: int = 4) -> Tensor:
    return scale * torch.randn(rows, DIM, generator=torch.Generator().manual_seed(1))


def _small(steps: int) -> Iterator[Contest]:
    """Each peer on its own ground: diffusers on a table, k-diffusion on sigma, azula on its own preconditioning."""
    table = World(Net(rate=1e-3), spaced(tabulated("linear"), steps), "eps", "index", _start(1.0))
    sigma = World(Net(), karras(EDM(80.0), steps), "x0", "t", _start(80.0))
    level = World(
        Net(rate=-0.1), uniform(VE(1e-3, 1e3), steps), Kind("x0", sigma_data=1.0), "log_snr", _start(1e3), True
    )
    hand = {"ddim": partial(loops.ddim_by_hand, table), "dpm2m": partial(loops.dpm_2m_by_hand, table)}
    hf, k = partial(loops.diffusers, table), partial(loops.k_diffusion, sigma)
    ddim, two = partial(hf, "DDIMScheduler", {"clip_sample": False}), partial(hf, "DPMSolverMultistepScheduler")
    yield _contest("ddim", table, DDIM(), {"by hand": hand["ddim"]})
    yield _contest("ddim", table, DDIM(), {"diffusers": ddim})
    yield _contest("ddim", sigma, DDIM(), {"k-diffusion": partial(k, "sample_euler")})
    yield _contest("ddim", level, DDIM(), {"azula": partial(loops.azula, level, "DDIMSampler")})
    yield _contest("dpm2m", table, DPM2M(), {"by hand": hand["dpm2m"]})
    yield _contest("dpm2m", table, DPM2M(), {"diffusers": two})
    yield _contest("dpm2m", sigma, DPM2M(), {"k-diffusion": partial(k, "sample_dpmpp_2m")})
    yield _contest("dpm3m", level, DPM3M(), {"azula": partial(loops.azula, level, "xEABSampler", {"order": 3})})
    yield _contest("unipc", table, UniPC(2), {"diffusers": partial(hf, "UniPCMultistepScheduler")})


def _slow(steps: int) -> Contest:
    net = Net(width=512, depth=13, rate=1e-3)
    world = World(net, spaced(tabulated("linear"), steps), "eps", "index", _start(1.0, rows=64))
    return _contest("ddim, slow network", world, DDIM(), {"by hand": partial(loops.ddim_by_hand, world)})


def _contest(case: str, world: World, solver: Solver, peers: Peers) -> Contest:
    """The case without the peers that are not installed."""
    ours, present = world.wayfield(solver), {}
    for name, make in peers.items():
        try:
            present[name] = make()
        except MissingExtraError as error:
            print(f"warning: {case}: no row for {name}: {error}", file=sys.stderr)
    counts = ours().counts
    return Contest(case, lambda: ours().x, present, counts.calls, counts.rows)


def _noise() -> Contest:
    shape, noise, gen = (16, 3, 64, 64), SeededNoise(0, 16), torch.Generator().manual_seed(0)
    steps = iter(range(1 << 30))

    def same(a: Tensor, b: Tensor) -> bool:
        """Both standard normal, as far as so many numbers tell (five standard errors)."""
        bar = 5 / a.numel() ** 0.5
        return a.shape == b.shape and all(abs(float(v.mean())) < bar and abs(float(v.std()) - 1) < bar for v in (a, b))

    return Contest(
        "noise",
        lambda: noise.draw(shape[1:], Address(next(steps))),
        {"torch.randn": lambda: torch.randn(shape, generator=gen)},
        same=same,
    )


def _imports(rounds: int) -> list[Row]:
    """What the imports add, each round in fresh processes; the first, which may compile, does not count."""
    return [_import(subject, rounds) for subject in ("wayfield", "wayfield.sampling")]


def _import(subject: str, rounds: int) -> Row:
    code = f"from time import time as t; a = t(); import torch; b = t(); import {subject}; print(b - a, t() - b)"
    taken = []
    for _ in range(1 + rounds):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        taken.append([float(v) for v in done.stdout.split()])
    torches, ours = zip(*taken[1:], strict=True)
    return Row("import", subject, "torch", *spread(ours, torches), 0, 0)
