"""The latent half of `ddpm-ddim-ldm`: its machinery runs, its counts are exact, its criteria can fail."""

from __future__ import annotations

import math

import pytest
import torch

from wayfield.core.path import EDM
from wayfield.field.denoiser import Denoiser
from wayfield.field.latent import LatentCodec
from wayfield.field.nets import build
from wayfield.recipes import latent_digits
from wayfield.recipes.latent_digits import EVALUATIONS, evaluate, pictures, verdict, work


def test_a_quick_run_reports_every_figure(tmp_path):
    run = evaluate(0, quick=True)
    for part in ("reconstructions", "brief_reconstructions", "latent", "pixel"):
        assert math.isfinite(run[part]["fd"])
        assert 0 <= run[part]["accuracy"] <= 1
    # the same network on a quarter of the places, and a small decoder
    assert 0.25 < run["latent"]["multiply_adds"] / run["pixel"]["multiply_adds"] < 0.3
    assert all(x.shape == (10, 1, 32, 32) for x in run["_pictures"].values())
    assert pictures([run], tmp_path) == "latents.png"
    assert (tmp_path / "latents.png").exists()
    assert "_pictures" not in run
    assert len(verdict([run])) == 4


def test_multiply_adds_are_counted_exactly():
    net = build({"net": "ResidualMLP", "shape": [6], "width": 8, "blocks": 1, "num_classes": 10, "frequencies": 4})
    model = Denoiser(net, EDM(), "edm", schema=latent_digits.SCHEMA, shape=(6,))
    once = sum(m.weight.numel() for m in net.modules() if isinstance(m, torch.nn.Linear))
    assert work(model) == EVALUATIONS * once
    last = torch.nn.Linear(6, 5)
    codec = LatentCodec(lambda x: x, last, torch.zeros(6), torch.ones(6))
    assert work(model, codec) == EVALUATIONS * once + 30


def run(rfd=0.1, brief=0.4, latent=0.3, pixel=0.2, accuracy=0.95, cost=25):
    return {
        "reconstructions": {"fd": rfd, "accuracy": 1.0},
        "brief_reconstructions": {"fd": brief, "accuracy": 1.0},
        "latent": {"fd": latent, "accuracy": accuracy, "multiply_adds": cost},
        "pixel": {"fd": pixel, "accuracy": 1.0, "multiply_adds": 100},
    }


@pytest.mark.parametrize(
    ("change", "failed"),
    [({}, None), ({"rfd": 0.4}, 0), ({"accuracy": 0.8}, 1), ({"cost": 60}, 2), ({"brief": 0.1}, 3)],
)
def test_each_criterion_can_fail(change, failed):
    passed = [c.passed for c in verdict([run(**change)])]
    assert passed == [k != failed for k in range(4)]
