"""CFG, then APG with the momentum of all steps: against a loop by hand and diffusers' guider."""

from typing import Any

import pytest
import torch
from tests.guide import peers

from wayfield.core.errors import DTypeError, RangeError
from wayfield.guide import CFG, Guidance, apg
from wayfield.guide.handover import handover
from wayfield.guide.window import Window

STEPS, V, W, R, BETA = 6, 2.0, 5.0, 6.0, -0.5
X = peers.noise(4, 3, *peers.SIZE)
LATE = apg(W, r=R, beta=BETA)


def mix(plain: float, **options: Any):
    return handover(CFG(V), LATE, plain, **options)


def run(guidance, **options):
    return peers.run(guidance, kind="x0", steps=STEPS, x=X, **options)


def loop(rule):
    """DDIM by hand through the levels of `run`. rule(c, u, i): the guided x0."""
    den, x, grid = peers.model("x0"), X, peers.grid("x0", STEPS)
    a, s = grid.scales[:2]
    for i in range(STEPS):
        c, u = den(x, grid.t[i], {"label": peers.LABELS}).x0, den(x, grid.t[i]).x0
        x0 = rule(c, u, i)
        x = a[i + 1] * x0 + s[i + 1] * (x - a[i] * x0) / s[i]
    return x


@pytest.mark.parametrize("plain", [0, 2, STEPS])
def test_by_hand(plain):
    memory = [torch.zeros_like(X)]

    def rule(c, u, i):
        memory[0] = c - u + BETA * memory[0]
        if i < plain:
            return u + V * (c - u)
        out = []
        for one, m in zip(c, memory[0], strict=True):
            d = m * min(1.0, R / float(m.norm()))
            out.append(one + (W - 1) * (d - (d * one).sum() / (one * one).sum() * one))
        return torch.stack(out)

    torch.testing.assert_close(run(mix(plain)).x, loop(rule), rtol=1e-10, atol=1e-10)


def test_agrees_with_diffusers_mix():
    """Their start step is the last plain one."""
    guiders = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance_mix")
    guider = guiders.AdaptiveProjectedMixGuidance(
        guidance_scale=V,
        adaptive_projected_guidance_scale=W,
        adaptive_projected_guidance_momentum=BETA,
        adaptive_projected_guidance_rescale=R,
        adaptive_projected_guidance_start_step=2,
    )
    guider.momentum_buffer = guiders.MomentumBuffer(BETA)
    want = loop(lambda c, u, i: peers.theirs(guider, c, u, i, STEPS))
    got = run(handover(CFG(V), apg(W, r=R, beta=BETA, variant="uncond_base"), 3)).x
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_memory_begins_with_the_run():
    """Two gates side by side are another guidance."""
    beside = CFG(V).when(Window(0, 3)) + LATE.when(Window(3))
    assert float((run(mix(3)).x - run(beside).x).abs().max()) > 1e-3


def test_without_memory_it_is_two_gates():
    then = apg(W, r=R)
    beside = CFG(V).when(Window(0, 3)) + then.when(Window(3))
    torch.testing.assert_close(run(handover(CFG(V), then, 3)).x, run(beside).x, rtol=1e-11, atol=1e-11)


def test_neutral_and_shares():
    nothing = handover(CFG(1.0), apg(1.0), 3)
    assert nothing.neutral
    assert torch.equal(run(nothing).x, run(None).x)
    assert torch.equal(run(mix(0.5, unit="share")).x, run(mix(3)).x)


def test_sample_k_does_not_depend_on_its_batch():
    whole, alone = peers.run(mix(3)).x, peers.run(mix(3), [2], peers.LABELS[2:]).x
    torch.testing.assert_close(alone[0], whole[2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", ["exact", "late", "fixed"])
def test_it_compiles(rows):
    got = run(Guidance(mix(3), rows=rows), compile="eager").x
    torch.testing.assert_close(got, run(mix(3)).x, rtol=1e-10, atol=1e-10)


def test_wrong_arguments():
    with pytest.raises(RangeError, match="whole number"):
        mix(0.5)
    for pair in ((CFG(3.0), Guidance()), (Window(), CFG(3.0))):
        with pytest.raises(DTypeError, match="term"):
            handover(*pair, 3)  # pyright: ignore[reportArgumentType]
