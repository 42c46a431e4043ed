"""Suite "guidance": what guided runs cost beside loops by hand, diffusers' guiders and azula's CFG, on one CPU thread.

"cfg", "apg", "auto" (a weaker network) and "mix" (CFG, autoguidance and a third term on an interval of noise levels)
are whole runs of DDIM for batches of 1, 4 and 16, on a network of some 30 us, so that they show overhead; in the cases
"..., slow network" one takes at least 5 ms. "batching" holds our own choice of calls against one doubled call and one
call per branch, for a small network of pictures; the better of the two is the bar.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wayfield.bench import guiders
from wayfield.bench.loops import CLASSES, Net, World
from wayfield.bench.timing import Contest, Row, compete
from wayfield.core.errors import MissingExtraError
from wayfield.core.grid import spaced, uniform
from wayfield.core.path import VE, Straight
from wayfield.core.predict import Kind
from wayfield.core.schedule import tabulated
from wayfield.field.batching import Batching
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.guide import CFG, Auto, Away
from wayfield.guide.apg import apg
from wayfield.guide.gates import Interval
from wayfield.guide.terms import Term
from wayfield.sampling import Result, sample
from wayfield.solve import DDIM

__all__ = ["run"]

DIM, STEPS, BATCHES = 64, 50, (1, 4, 16)
SLOW_STEPS, SLOW_DEPTH = 25, 32
W, WEAK_W, THIRD, LOW, HIGH = 3.0, 1.5, 0.5, -4.0, 4.0
R, BETA = 0.4, -0.5
TABLE = tabulated("linear")  # one for all cases, as a user has one: equal tables are compared number by number

Peers = dict[str, Callable[[], Callable[[], Tensor]]]


def run(quick: bool) -> list[Row]:
    """All cases."""
    out: list[Row] = []
    for batch in BATCHES:
        for contest in _tiny(batch, STEPS):
            out += compete(contest, 8 if quick else 60)
    for batch in BATCHES:
        for contest in _slow(batch, 2 if quick else SLOW_STEPS):
            out += compete(contest, 2 if quick else 9, warmups=1)
    for batch in BATCHES:
        out += compete(_batching(batch, 2 if quick else SLOW_STEPS), 3 if quick else 25, warmups=1)
    return out


def _tiny(batch: int, steps: int) -> Iterator[Contest]:
    yield from _all(f"batch {batch}", _world(batch, steps, Net(rate=1e-3)), Net(width=64, depth=2, rate=1e-3))
    # azula's CFG on its own ground, where both have the same preconditioning
    path, kind = VE(1e-3, 1e3), Kind("x0", sigma_data=1.0)
    level = World(Net(rate=-0.1), uniform(path, steps), kind, "log_snr", 1e3 * _start(batch), True)
    yield _contest(f"cfg, batch {batch}", level, CFG(W), {"azula": partial(guiders.azula_cfg, level, W)})


def _slow(batch: int, steps: int) -> Iterator[Contest]:
    net, weak = (Net(width=width, depth=SLOW_DEPTH, rate=1e-3, gain=1.6) for width in (1024, 512))
    yield from _all(f"batch {batch}, slow network", _world(batch, steps, net), weak)


def _all(where: str, world: World, weak: Net) -> Iterator[Contest]:
    """Every kind of guidance on one world against its peers."""
    hand, hf = partial(partial, guiders.by_hand, world), partial(partial, guiders.guider, world)
    plain, projected = "ClassifierFreeGuidance", "AdaptiveProjectedGuidance"
    options = {
        "guidance_scale": W - 1,
        "adaptive_projected_guidance_momentum": BETA,
        "adaptive_projected_guidance_rescale": R,
        "eta": 0.0,
        "use_original_formulation": True,
    }
    yield _contest(
        f"cfg, {where}",
        world,
        CFG(W),
        {"by hand": hand(guiders.cfg_by_hand(world, W)), "diffusers": hf(plain, {"guidance_scale": W})},
    )
    yield _contest(
        f"apg, {where}",
        world,
        apg(W, eta=0.0, r=R, beta=BETA),
        {"by hand": hand(guiders.apg_by_hand(world, W, R, BETA)), "diffusers": hf(projected, options)},
    )
    yield _contest(
        f"auto, {where}",
        world,
        Auto(W),
        {
            "by hand": hand(guiders.auto_by_hand(world, weak, W)),
            "diffusers": hf(plain, {"guidance_scale": W}, weak=weak),
        },
        weak,
    )
    yield _mix(where, world, weak)


def _mix(where: str, world: World, weak: Net) -> Contest:
    """No peer has more than one guider at a time."""
    log_snr = world.grid.path.log_snr(world.grid.times[:-1]).tolist()
    scales = [W + (THIRD if LOW <= at <= HIGH else 0.0) for at in log_snr]
    third = (THIRD * Away()).when(Interval(LOW, HIGH))
    hand = partial(guiders.by_hand, world, guiders.mix_by_hand(world, weak, scales, WEAK_W))
    return _contest(f"mix, {where}", world, CFG(W) + Auto(WEAK_W) + third, {"by hand": hand}, weak)


def _start(batch: int, *shape: int) -> Tensor:
    return torch.randn(batch, *(shape or (DIM,)), generator=torch.Generator().manual_seed(1))


def _world(batch: int, steps: int, net: Net) -> World:
    return World(net, spaced(TABLE, steps), "x0", "index", _start(batch))


def _contest(case: str, world: World, guidance: Term, peers: Peers, weak: Net | None = None) -> Contest:
    """The case without the peers that are not installed."""
    ours, present = world.wayfield(DDIM(), guidance, weak), {}
    for name, make in peers.items():
        try:
            present[name] = make()
        except MissingExtraError as error:
            print(f"warning: {case}: no row for {name}: {error}", file=sys.stderr)
    counts = ours().counts
    return Contest(case, lambda: ours().x, present, counts.calls, counts.rows)


@final
class Pictures(nn.Module):
    """A small convolutional network of pictures (B, 3, S, S), told the time and the class."""

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> nn.Parameter:
            scale = (shape[1] * shape[2] * shape[3]) ** -0.5 if len(shape) == 4 else 1.0
            return nn.Parameter(scale * torch.randn(shape, generator=gen), requires_grad=False)

        self.label, self.depth = weight(CLASSES + 1, width), depth
        self.first, self.inner, self.last = weight(width, 3, 3, 3), weight(width, width, 3, 3), weight(3, width, 3, 3)

    def forward(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """x: (B, 3, S, S) / time: () / cond: {"label": (B,)}."""
        h = F.conv2d(x, self.first, padding=1) + (time + self.label[cond["label"]])[:, :, None, None]
        for _ in range(self.depth - 1):
            h = F.conv2d(F.silu(h), self.inner, padding=1)
        return F.conv2d(F.silu(h), self.last, padding=1)


def _batching(batch: int, steps: int) -> Contest:
    """Subject: the default policy / peers: the two choices that it has."""
    grid, x, label = uniform(Straight(), steps, end=0.02), _start(batch, 3, 32, 32), torch.arange(batch) % CLASSES
    schema = Schema({"label": Field(values=CLASSES + 1)}, {"label": CLASSES})
    denoiser = Denoiser(Pictures(), Straight(), "x0", schema=schema)

    def ours(batching: Batching | None) -> Result:
        cond = {"label": label}
        return sample(denoiser, grid, x=x, samples=batch, cond=cond, guidance=CFG(W), batching=batching)

    peers = {"doubled": lambda: ours(Batching()).x, "split": lambda: ours(Batching(merge_below=0)).x}
    counts = ours(None).counts
    return Contest(f"batching, batch {batch}", lambda: ours(None).x, peers, counts.calls, counts.rows)
