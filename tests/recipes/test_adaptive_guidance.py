"""The recipe of adaptive guidance: its settings cost what they say, its machinery runs, its criteria can fail."""

import torch

from wayfield.core import grid as G
from wayfield.core.path import VP
from wayfield.field.binding import Counts
from wayfield.guide.linear import LinearAG, alternating
from wayfield.recipes import adaptive_guidance as recipe
from wayfield.recipes.adaptive_guidance import STEPS
from wayfield.sampling import Result, sample


def test_settings_cost_what_they_say(mixture):
    den = mixture(VP(), d=2)
    ways = recipe._ways(-1.0, LinearAG.hold(alternating(STEPS)))
    rows = {}
    for name, (way, steps) in ways.items():
        grid = G.karras(VP(), steps, sigma_min=0.05, sigma_max=20.0)
        run = sample(den, grid, samples=2, cond={"label": torch.tensor([0, 1])}, guidance=way, dtype=torch.float64)
        rows[name] = run.counts.rows / 2
    assert rows == {
        "CFG": 40,
        "CFG, 15 steps": 30,
        "AG": 21,
        "AG, held in eps": 21,
        "AG, held in x0": 21,
        "first half": 30,
        "last half": 30,
        "LinearAG": 25,
        "hold": 25,
        "skip": 25,
    }


def test_holding_by_a_table_and_by_a_gate_are_the_same(mixture):
    den = mixture(VP(), d=2)
    ways = recipe._ways(0.9, LinearAG.hold(alternating(STEPS)))
    grid, cond = G.karras(VP(), STEPS, sigma_min=0.05, sigma_max=20.0), {"label": torch.tensor([0, 1])}
    a, b = (
        sample(den, grid, samples=2, cond=cond, guidance=ways[k][0], dtype=torch.float64).x
        for k in ("LinearAG", "hold")
    )
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def figures(**changes):
    settings = {
        name: {"accuracy": 0.9, "fd": 5.0, "mse_to_cfg": 0.02, "rows_per_sample": 30.0}
        for name in recipe._ways(0.9, LinearAG.hold(alternating(STEPS)))
    }
    settings["last half"] = settings["last half"] | {"mse_to_cfg": 0.06}
    settings["skip"] = settings["skip"] | {"mse_to_cfg": 0.07}
    for name, values in changes.get("settings", {}).items():
        settings[name] = settings[name] | values
    rising = [i / 20 for i in range(20)]
    gamma = {"x0": rising, "eps": rising[::-1]} | changes.get("gamma", {})
    return {"settings": settings, "mean_gamma": gamma, "linear_errors": {1: 0.01, 9: changes.get("error", 0.019)}}


def verdict(digits, shapes=None):
    return [
        c.passed for c in recipe._verdict([{"world": "digits"} | digits, {"world": "shapes"} | (shapes or figures())])
    ]


def test_every_criterion_can_fail():
    assert verdict(figures()) == [True] * 10
    dip = [0.5, 0.48, *(0.5 + i / 40 for i in range(18))]
    failing = [
        figures(gamma={"x0": dip}),
        figures(gamma={"eps": [i / 20 for i in range(20)]}),
        figures(settings={"last half": {"mse_to_cfg": 0.03}}),
        figures(settings={"AG": {"rows_per_sample": 30.5}}),
        figures(settings={"AG": {"accuracy": 0.89}}),
        figures(settings={"AG": {"fd": 5.1}}),
        figures(error=0.021),
        figures(settings={"LinearAG": {"mse_to_cfg": 0.024}}),
        figures(settings={"skip": {"mse_to_cfg": 0.039}}),
    ]
    for k, case in enumerate(failing):
        assert verdict(case) == [j != k for j in range(10)]
    assert verdict(figures(), figures(settings={"AG": {"accuracy": 0.84}})) == [True] * 9 + [False]


def test_figures_are_compared_with_the_baseline():
    drawn = {name: Result(torch.full((2, 1, 8, 8), v), Counts(1, 30, 0), 20) for name, v in (("CFG", 0.5), ("AG", 0.0))}
    out = recipe._compared(drawn, lambda x: {"mean": float(x.mean())}, 1)
    assert out["settings"]["AG"] == {"mean": 0.0, "mse_to_cfg": 0.25, "rows_per_sample": 15.0}
    assert out["_pictures"]["CFG"].shape == (1, 1, 8, 8)
