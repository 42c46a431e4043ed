r"""AIR (attend, infer, repeat): how many objects are in a picture, where, and what they look like, learned unlabelled.

One program of a model and a guide; how the gradient passes the choices "is there one more object?" is said outside, by
site: score function with or without a baseline, enumeration, measure-valued derivatives, or a mixture of these.

.. math::
    \text{pres}_t &\sim \operatorname{Bernoulli}(0.01\, \text{pres}_{t-1}), \quad
    \text{where}_t \sim N((3, 0, 0), (0.2, 1, 1)), \quad \text{what}_t \sim N(0, I) \\
    x &\sim N(\textstyle\sum_t \text{pres}_t\, \operatorname{paste}(\operatorname{decode}(\text{what}_t),
    \text{where}_t),\; 0.3)

where = (s, a, b): canvas coordinates u in [-1, 1] are object coordinates s u + (a, b), so an object is 1 / s of the
canvas. Absent objects have no density: their where and what are masked in model and guide. The guide is one network
for all steps: it sees what is left of the picture once the objects found are wiped out (the papers' LSTM remembers them
instead, which needs hours to learn), says whether there is one more and where, and encodes what it attends to.

Shapes: pictures x (B, C, C) in [0, 1]; pres (..., B), where (..., B, 3), what (..., B, D); glimpses (..., G, G).
References: Eslami et al. 2016, arXiv 1603.08575; Becker et al. 2024, arXiv 2406.15742, figure 7.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, Normal
from torch.nn import functional as F

from wayfield import vi
from wayfield.data.digits import digits
from wayfield.vi import MVD, Enum, Learned, Reinforce, Reparam
from wayfield.vi.program import Handle
from wayfield.vi.seeding import seeded
from wayfield.vi.strategy import Strategy

__all__ = ["ARMS", "SIZES", "Air", "Masked", "Size", "attend", "boxes", "canvases", "paste", "strategies", "trained"]

SCORE, MEASURE = "REINFORCE", "MVD"
ARMS = (SCORE, "REINFORCE + baseline", "ENUM", MEASURE, "MVD and ENUM")
PRIOR_WHERE = ((3.0, 0.0, 0.0), (0.2, 1.0, 1.0))
NOISE, PRESENT = 0.3, 0.01
EPS = 1e-3  # probabilities stay within [1e-3, 1 - 1e-5]: single precision can tell the latter from one


@final
@dataclass(frozen=True)
class Size:
    """How large everything is. canvas, glimpse: sides in pixels / most: objects / what, hidden, dense: widths of the
    code, the guide's state and the layers of encoder and decoder / train, test: canvases / rates: of the nets, of the
    baseline / epochs, seconds: training ends at the first of them / compared: seconds at which arms are compared.
    """

    canvas: int = 24
    glimpse: int = 8
    most: int = 2
    what: int = 16
    hidden: int = 128
    dense: int = 128
    train: int = 2048
    test: int = 512
    batch: int = 64
    rates: tuple[float, float] = (1e-3, 1e-2)
    epochs: int = 1000
    seconds: float = 40.0
    compared: float = 30.0


SIZES: Mapping[str, Size] = {
    "cpu": Size(),
    "gpu": Size(
        50, 20, 3, 50, 256, 200, 60_000, 2_000, rates=(1e-4, 1e-3), epochs=40, seconds=math.inf, compared=math.inf
    ),
    "quick": Size(what=2, hidden=8, dense=8, train=64, test=32, batch=16, epochs=2),
}
"""By name; "gpu" has the paper's canvas, widths, batch, rate and number of epochs."""


def canvases(size: Size, split: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, C) in [0, 1] with 0 to `most` real digits that do not touch, and how many there are, (N,)."""
    generator = torch.Generator().manual_seed(seed + (1 << 20 if split == "test" else 0))
    digit, side = (digits(split).x + 1) / 2, round(size.canvas / 3)
    if side != digit.shape[-1]:
        digit = F.interpolate(digit, size=(side, side), mode="bilinear", align_corners=True)
    n, room = size.train if split == "train" else size.test, size.canvas - side + 1
    x, counts = torch.zeros(n, size.canvas, size.canvas), torch.arange(n) % (size.most + 1)
    for k, count in enumerate(counts.tolist()):
        placed: list[tuple[int, int]] = []
        while len(placed) < count:
            i, j = torch.randint(room, (2,), generator=generator).tolist()
            if all(max(abs(i - a), abs(j - b)) >= side for a, b in placed):
                placed.append((i, j))
                which = int(torch.randint(len(digit), (), generator=generator))
                x[k, i : i + side, j : j + side] = digit[which, 0]
    return x, counts


def _hats(at: Tensor, points: int) -> Tensor:
    """Bilinear weights of `points` places from -1 to 1, as seen from `at`: (..., P) -> (..., P, points)."""
    places = torch.linspace(-1, 1, points, device=at.device, dtype=at.dtype)
    return (1 - (at[..., None] - places).abs() * (points - 1) / 2).relu()


def paste(glimpse: Tensor, where: Tensor, canvas: int) -> Tensor:
    """Objects on an empty canvas, bilinear, zero outside: (..., G, G), (..., 3) -> (..., C, C)."""
    u = torch.linspace(-1, 1, canvas, device=where.device, dtype=where.dtype)
    columns, rows = (_hats(where[..., :1] * u + where[..., k, None], glimpse.shape[-1]) for k in (1, 2))
    return rows @ glimpse @ columns.mT


def attend(x: Tensor, where: Tensor, glimpse: int) -> Tensor:
    """What lies at `where`, the inverse of `paste`: (..., C, C), (..., 3) -> (..., G, G)."""
    v = torch.linspace(-1, 1, glimpse, device=where.device, dtype=where.dtype)
    columns, rows = (_hats((v - where[..., k, None]) / where[..., :1], x.shape[-1]) for k in (1, 2))
    return rows @ x @ columns.mT


@final
class Masked(Distribution):
    """A distribution whose density counts only where mask is 1: the draw of an absent object is drawn, and ignored.

    base: batch (...) / mask: 0 or 1, may have more dims than the base, which shares its draw over them.
    """

    has_rsample = True
    arg_constraints: Mapping[str, Any] = {}  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, base: Distribution, mask: Tensor) -> None:
        self.base, self.mask = base, mask
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of the base."""
        return self.base.support

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A draw of the base, [..., *event]."""
        return self.base.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log density where present, zero elsewhere, [...]."""
        return self.base.log_prob(value) * self.mask

    def expand(self, batch_shape: Any, _instance: Any = None) -> Masked:
        """The same with a base of more dims."""
        return Masked(self.base.expand(batch_shape), self.mask)


def _bernoulli(p: Tensor) -> Bernoulli:
    return Bernoulli((EPS + p) / (1 + 1.01 * EPS))


def _gaussian(loc: Tensor, scale: Tensor) -> Independent:
    return Independent(Normal(loc, scale), 1)


@final
class Air(nn.Module):
    """The networks, and `model(h, x)` and `guide(h, x)` as programs for pictures x (B, C, C). Sites: pres_t, where_t,
    what_t.

    The guide's own strategy for pres_t is Reinforce with a learned baseline; `strategies` gives those that replace it.
    """

    prior_where: Tensor

    def __init__(self, size: Size, seed: int) -> None:
        super().__init__()
        self.size, pixels, window = size, size.canvas**2, size.glimpse**2
        with seeded(seed):
            self.decoder = _mlp(size.what, size.dense, window)
            self.encoder = _mlp(window, size.dense, 2 * size.what)
            self.look = nn.Sequential(_mlp(pixels, 2 * size.hidden, size.hidden), nn.ReLU())
            self.predict = nn.Linear(size.hidden, 7)
            self.baseline = _mlp(size.hidden, size.hidden, 1)
        with torch.no_grad():  # start: faint objects, likely present, of the prior's size, placed with precision
            self.decoder.get_parameter("2.bias").sub_(2)
            self.predict.weight.mul_(0.1)
            self.predict.bias.copy_(torch.tensor([2.0, 0, 0, 0, -2, -2, -2]))
        self.register_buffer("prior_where", torch.tensor(PRIOR_WHERE), persistent=False)

    def decode(self, what: Tensor) -> Tensor:
        """Codes (..., D) to objects (..., G, G) in [0, 1]."""
        return self.decoder(what).sigmoid().unflatten(-1, (self.size.glimpse, self.size.glimpse))

    def model(self, h: Handle, x: Tensor) -> None:
        """Objects, one after another, and the picture."""
        alive, canvas = x.new_ones(()), x.new_zeros(())
        code = x.new_zeros(self.size.what), x.new_ones(self.size.what)
        for t in range(self.size.most):
            alive = alive * h.sample(f"pres_{t}", _bernoulli(PRESENT * alive))
            where = h.sample(f"where_{t}", Masked(_gaussian(*self.prior_where), alive))
            what = h.sample(f"what_{t}", Masked(_gaussian(*code), alive))
            canvas = canvas + alive[..., None, None] * paste(self.decode(what), where, self.size.canvas)
        h.observe("x", Independent(Normal(canvas, NOISE), 2), x)

    def guide(self, h: Handle, x: Tensor) -> None:
        """The same sites, each from what is left of the picture once the objects found before it are wiped out."""
        rest, alive, window = x, x.new_ones(()), x.new_ones(self.size.glimpse, self.size.glimpse)
        for t in range(self.size.most):
            state = self.look(rest.flatten(-2))
            logit, move, spread = self.predict(state).split((1, 3, 3), -1)
            baseline = self.size.canvas**2 * self.baseline(state.detach())[..., 0]
            p = logit[..., 0].sigmoid() * alive
            alive = alive * h.sample(f"pres_{t}", _bernoulli(p), Reinforce(Learned(baseline)))
            loc, scale = self.prior_where[0] + move, F.softplus(spread)
            where = h.sample(f"where_{t}", Masked(_gaussian(loc, scale), alive), Reparam())
            code, spread = self.encoder(attend(x, where, self.size.glimpse).flatten(-2)).chunk(2, -1)
            h.sample(f"what_{t}", Masked(_gaussian(code, F.softplus(spread)), alive), Reparam())
            rest = rest * (1 - alive[..., None, None] * paste(window, where, self.size.canvas))


def _mlp(a: int, hidden: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(a, hidden), nn.ReLU(), nn.Linear(hidden, b))


def strategies(arm: str, size: Size) -> dict[str, Strategy]:
    """How the gradient passes every pres_t; the baseline's arm is what the guide says itself."""
    every = {f"pres_{t}": t for t in range(size.most)}
    kinds: dict[str, Any] = {
        SCORE: lambda t: Reinforce(),
        "ENUM": lambda t: Enum(),
        MEASURE: lambda t: MVD(),
        "MVD and ENUM": lambda t: Enum() if t % 2 else MVD(),
    }
    return {name: kinds[arm](t) for name, t in every.items()} if arm in kinds else {}


def located(net: Air, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """One draw of the guide: whether there is a t-th object, (B, T) of 0 and 1, and where it is, (B, T, 3)."""
    with torch.no_grad():
        values = vi.simulate(net.guide, x, seed=seed, batch=(len(x),)).values
    steps = range(net.size.most)
    alive = torch.stack([values[f"pres_{t}"] for t in steps], 1).cumprod(1)
    return alive, torch.stack([values[f"where_{t}"] for t in steps], 1)


def trained(arm: str, seed: int, size: Size, device: str = "cpu") -> tuple[Air, dict[str, Any]]:
    """Train with one arm's strategies.

    Returns the networks and {"curve": [(seconds, share of test canvases counted right, test ELBO in nats)], one point
    per epoch, "seconds_per_epoch"}. Seconds are those of the thread on a CPU, of the wall on a GPU, without measuring.
    """
    (train, _), (test, counts) = (canvases(size, split) for split in ("train", "test"))
    train, test, counts = train.to(device), test.to(device), counts.to(device)
    net = Air(size, seed).to(device)
    objective = vi.elbo(net.model, net.guide, batch_dims=1).with_strategies(strategies(arm, size))
    critic = list(net.baseline.parameters())
    others = [p for name, p in net.named_parameters() if not name.startswith("baseline.")]
    groups = [{"params": p, "lr": lr} for p, lr in zip((others, critic), size.rates, strict=True)]
    optimiser, generator = torch.optim.Adam(groups), torch.Generator().manual_seed(seed)
    curve: list[tuple[float, float, float]] = []
    spent, step = 0.0, seed << 32
    while len(curve) < size.epochs and spent < size.seconds:
        start = _clock(device)
        for rows in torch.randperm(len(train), generator=generator).split(size.batch):
            optimiser.zero_grad()
            (-objective(train[rows.to(device)], seed=step).surrogate).backward()
            optimiser.step()
            step += 1
        spent += _clock(device) - start
        alive, _ = located(net, test, seed=step)
        with torch.no_grad():
            bound = float(objective(test, seed=step).value)
        curve.append((spent, float((alive.sum(1) == counts).double().mean()), bound))
    return net, {"curve": curve, "seconds_per_epoch": spent / len(curve)}


def _clock(device: str) -> float:
    if device == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def boxes(net: Air, x: Tensor, seed: int, scale: int = 4) -> Tensor:
    """Pictures (N, C, C), enlarged, in [-1, 1], with a box where one draw of the guide sees an object: (N, 3, H, H)."""
    alive, where = located(net, x, seed)
    side = net.size.canvas * scale
    out = (2 * x - 1).repeat_interleave(scale, -1).repeat_interleave(scale, -2)[:, None].repeat(1, 3, 1, 1)
    colours = torch.tensor([[1.0, 0.1, -0.6], [-0.9, 0.4, 1.0], [-0.5, 0.9, -0.3]])
    for n, t in (alive > 0).nonzero().tolist():
        s, *shift = where[n, t].tolist()
        ends = [[((e - c) / s + 1) / 2 * (side - 1) for e in (-1, 1)] for c in shift]
        (left, right), (top, bottom) = ([min(max(round(v), 0), side - 1) for v in pair] for pair in ends)
        for i, j in ((top, slice(left, right + 1)), (bottom, slice(left, right + 1))):
            out[n, :, i, j] = colours[t % 3, :, None]
        for j in (left, right):
            out[n, :, top : bottom + 1, j] = colours[t % 3, :, None]
    return out
