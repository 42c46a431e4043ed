"""The pictures and figures of the page "Which estimator?": how much a gradient varies under one strategy after another.

    python docs/estimator_gallery.py [name ...]    all pictures, or those named; about two minutes on one core

writes images/vi-NAME.png and prints the figures. Every gradient is one row of a batch: parameters are laid out, a copy
for each row, so that ROWS independent gradients come from one call. Seed 0. Where several draws are averaged, the
variance is given for one: that of the mean times their number.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.ticker import LogLocator
from torch import Tensor
from torch.distributions import Bernoulli, Normal

from wayfield import plots, vi
from wayfield.plots.figures import Curves, curves_plot
from wayfield.vi.program import Program
from wayfield.vi.strategy import Strategy

__all__ = ["PICTURES", "Gradients", "coin", "guide", "main", "particles", "sites", "wiggle"]

FOLDER = Path(__file__).parent / "images"
ROWS = 40_000
ALONE = vi.Reinforce(vi.LeaveOneOut())
COIN = {
    "Reinforce()": (vi.Reinforce(), 1),
    "Reinforce(2.4)": (vi.Reinforce(2.4), 1),
    "LeaveOneOut, 2 draws": (ALONE, 2),
    "LeaveOneOut, 8 draws": (ALONE, 8),
    "MVD()": (vi.MVD(), 1),
    "Enum()": (vi.Enum(), 1),
}
"""Strategies of a coin, and how many draws are averaged."""


class Gradients:
    """Independent gradients of an objective in its first argument, (ROWS,), at one value of each argument."""

    def __init__(self, objective: vi.Objective, *at: float, rows: int = ROWS) -> None:
        first, *rest = (torch.full((rows,), v, dtype=torch.float64) for v in at)
        first.requires_grad_()
        objective(first, *rest, seed=0).surrogate.backward()
        assert first.grad is not None
        self.each = first.grad * rows  # the surrogate is the mean over rows
        self.draws = objective.samples

    @property
    def mean(self) -> float:
        """Of all rows."""
        return float(self.each.mean())

    @property
    def variance(self) -> float:
        """Of a gradient from one draw."""
        return float(self.each.var()) * self.draws

    def signal(self, mean: float) -> float:
        """|mean| over standard deviation."""
        return abs(mean) / math.sqrt(self.variance)


def coin() -> tuple[Curves, str, str]:
    """A coin decides the mean of a normal value that the cost squares; the gradient in the coin's logit."""

    def toss(h: vi.Handle, logit: Tensor) -> Tensor:
        b = h.sample("b", Bernoulli(logits=logit))
        x = h.sample("x", Normal(-0.5 + 1.3 * b, 0.7 + 0.4 * b), vi.Reparam())
        return x.square() * (1 + b) + 0.2 * b

    def cost(run: vi.Run, logit: Tensor) -> Tensor:
        return run.simulate(toss, logit).result

    places = [0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98]
    curves = {}
    for name, (strategy, draws) in COIN.items():
        objective = vi.Objective(cost, samples=draws, batch_dims=1, strategies={"b": strategy})
        curves[name] = [(p, Gradients(objective, math.log(p / (1 - p))).variance) for p in places]
    return curves, "probability of heads", "variance of the gradient in the logit"


def sites() -> tuple[Curves, str, str]:
    """K coins are added up and compared with a measurement; the gradient of the ELBO in the first coin's logit."""
    names = [name for name in COIN if name not in ("Reinforce(2.4)", "Enum()")]
    curves = {n: [(k, _coins(k, *COIN[n]).variance) for k in (1, 2, 4, 8, 16, 32)] for n in names}
    curves["MVD()"] = curves["MVD()"][1:]  # one coin: no variance
    return curves, "coins", "variance of the gradient in one logit"


def _coins(count: int, strategy: Strategy, draws: int) -> Gradients:
    def model(h: vi.Handle, logit: Tensor) -> None:
        fair = Bernoulli(torch.full((), 0.5, dtype=logit.dtype))
        total = torch.stack([h.sample(f"b{k}", fair) for k in range(count)]).sum(0)
        h.observe("y", Normal(total, 1.0), torch.full_like(logit, 0.75 * count))

    def guide(h: vi.Handle, logit: Tensor) -> None:
        for k in range(count):
            h.sample(f"b{k}", Bernoulli(logits=logit if k == 0 else torch.zeros_like(logit)))

    bound = vi.elbo(model, guide, samples=draws, batch_dims=1)
    return Gradients(bound.with_strategies({f"b{k}": strategy for k in range(count)}), 0.0)


def wiggle() -> tuple[Curves, str, str]:
    """sin(k x) of a normal x: the gradient in its mean as the cost gets rougher."""
    strategies = {"Reparam()": vi.Reparam(), "Reinforce()": vi.Reinforce(), "MVD()": vi.MVD()}

    def curve(strategy: Strategy) -> list[tuple[float, float]]:
        found = []
        for k in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):

            def program(h: vi.Handle, mean: Tensor, k: float = k) -> Tensor:
                return torch.sin(k * h.sample("x", Normal(mean, 0.8)))

            def cost(run: vi.Run, mean: Tensor, program: Program = program) -> Tensor:
                return run.simulate(program, mean).result

            objective = vi.Objective(cost, batch_dims=1, strategies={"x": strategy})
            found.append((k, Gradients(objective, 0.1).variance))
        return found

    return {n: curve(s) for n, s in strategies.items()}, "k in sin(k x)", "variance of the gradient in the mean"


def _pair(mean: float = 0.5) -> tuple[Program, Program]:
    """z ~ N(0, 1), y = 1 observed with noise 1: the posterior is N(1/2, sqrt(1/2)), and a normal guide."""

    def model(h: vi.Handle, loc: Tensor, scale: Tensor) -> None:
        z = h.sample("z", Normal(torch.zeros((), dtype=loc.dtype), 1.0))
        h.observe("y", Normal(z, 1.0), torch.ones_like(loc))

    def normal(h: vi.Handle, loc: Tensor, scale: Tensor) -> None:
        h.sample("z", Normal(loc, scale))

    return model, normal


def particles() -> tuple[Curves, str, str]:
    """A normal guide a little off: signal to noise of the IWELBO's gradient in its mean as particles are added."""
    model, normal = _pair()
    strategies = {
        "Reparam()": vi.Reparam(),
        "Reinforce()": vi.Reinforce(),
        "LeaveOneOut": ALONE,
        "MVD()": vi.MVD(),
    }
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in strategies}
    for n in (1, 2, 4, 8, 16, 32):
        bound = vi.iwelbo(model, normal, n, batch_dims=1)
        found = {
            name: Gradients(bound.with_strategies({"z": s}), 0.2, 0.8)
            for name, s in strategies.items()
            if n > 1 or name != "LeaveOneOut"
        }
        for name, gradients in found.items():  # the mean is that of all strategies: the least noisy one tells it
            curves[name].append((n, gradients.signal(found["MVD()"].mean)))
    return curves, "particles n of the IWELBO", "|mean| / standard deviation of one gradient"


def guide() -> tuple[Curves, str, str]:
    """Three forms of the ELBO as a normal guide nears the posterior: the gradient in its mean."""
    model, normal = _pair()
    distances = [1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]

    def curve(form: str) -> list[tuple[float, float]]:
        bound = vi.elbo(model, normal, batch_dims=1, form=form)  # type: ignore[arg-type]
        exact = math.sqrt(0.5)
        return [(d, Gradients(bound, 0.5 + d, exact * (1 + d)).variance) for d in distances]

    forms = {"plain": "plain", "kl": "kl", "landing": "landing"}
    return (
        {n: curve(f) for n, f in forms.items()},
        "distance of the guide from the posterior",
        "variance of the gradient",
    )


PICTURES: dict[str, Callable[[], tuple[Curves, str, str]]] = {
    "coin": coin,
    "sites": sites,
    "wiggle": wiggle,
    "particles": particles,
    "guide": guide,
}
"""Name of the picture -> its curves and the names of its axes."""


def main(names: list[str]) -> None:
    """Draw the pictures of these names, or all, and print their figures."""
    for name in names or PICTURES:
        curves, x, y = PICTURES[name]()
        print(f"{name}: {y} by {x}")
        for strategy, points in curves.items():
            print(f"  {strategy:26}" + "  ".join(f"{a:g}: {b:.3g}" for a, b in points), flush=True)
        figure = curves_plot(curves, x=x, y=y, log_x=name != "coin", log_y=True)
        heights = [b for points in curves.values() for _, b in points]
        if max(heights) > 1000 * min(heights):  # fewer numbers on a long axis
            figure.axes[0].yaxis.set_major_locator(LogLocator())
        plots.save(FOLDER / f"vi-{name}.png", figure)


if __name__ == "__main__":
    main(sys.argv[1:])
