r"""From drafts of scenes to pictures: signed distances, anti-aliased, on a dark plain or textured ground.

A thing of radius r and centre c covers a pixel p by clamp(1/2 - d(p - c), 0, 1), d its signed distance in pixels. It is
painted over a ground of brightness g (B, 3, 32, 32):

    plain     g = b
    stripes   g = b + a sin(w . p + phase)               speckles  g = b + a z, z uniform per pixel, hashed from p
    checks    g = b + a sign(sin(w . p) sin(w' . p))     with w' across w

b: a dark colour, below 0.3 / a: 0.05 .. 0.15 / w: a direction at wavelengths of 4 .. 10 pixels. Coverage is rounded to
1/256 and the picture to 8 bits, so that every machine paints the same one, and a PNG file holds it exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wayfield.data.scenes.glyphs import segments
from wayfield.data.scenes.scene import SIDE, Draft
from wayfield.data.shapes import COLOUR_VALUES

__all__ = ["GROUNDS", "paint"]

GROUNDS = ("plain", "stripes", "checks", "speckles")
"""Names of the grounds."""


def paint(scenes: Draft, texture: float) -> Tensor:
    """The pictures, (B, 3, 32, 32) float32 in [-1, 1]. texture: share of textured grounds, 0..1."""
    out = _ground(scenes.ground, texture)
    colours = torch.tensor(list(COLOUR_VALUES.values()), dtype=torch.float64)
    for k in range(3):
        form, colour = scenes.things[:, k, 0].long(), scenes.things[:, k, 1].long()
        here = (form >= 0).nonzero()[:, 0]
        if not len(here):
            continue
        cover = _cover(form[here], scenes.r[here, k], scenes.things[here, k, 3:])
        ink = colours[colour[here]][:, :, None, None]
        out[here] = torch.lerp(out[here], ink.expand(-1, -1, SIDE, SIDE), cover[:, None])
    return ((out * 255).round() / 127.5 - 1).float()


def _cover(form: Tensor, r: Tensor, centre: Tensor) -> Tensor:
    """How much of each pixel a thing covers, (N, 32, 32); form and r (N,), centre (N, 2)."""
    axis = torch.arange(SIDE, dtype=torch.float64) + 0.5
    x = axis[None, None, :] - centre[:, 0, None, None]
    y = axis[None, :, None] - centre[:, 1, None, None]
    d = torch.empty(len(form), SIDE, SIDE, dtype=torch.float64)
    for number in form.clamp(max=6).unique().tolist():
        rows = (form.clamp(max=6) == number).nonzero()[:, 0]
        radius = r[rows, None, None]
        d[rows] = (
            _shape(number, x[rows], y[rows], radius) if number < 6 else _strokes(form[rows], x[rows], y[rows], radius)
        )
    return ((0.5 - d).clamp(0, 1) * 256).round() / 256


def _shape(number: int, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance in pixels of shape `number` of radius r at (x, y); none reaches beyond 1.25 r."""
    x, y = torch.broadcast_tensors(x, y)
    match number:
        case 0:
            return (x.square() + y.square()).sqrt() - r
        case 1:
            return torch.maximum(x.abs(), y.abs()) - 0.8 * r
        case 2:
            lower = y - 0.2 * r  # centres its height
            return torch.maximum(math.sqrt(0.75) * x.abs() - 0.5 * lower, lower) - 0.55 * r
        case 3:
            return ((x.square() + y.square()).sqrt() - 0.75 * r).abs() - 0.25 * r
        case 4:
            near, far = torch.minimum(x.abs(), y.abs()), torch.maximum(x.abs(), y.abs())
            return torch.maximum(near - 0.3 * r, far - 0.95 * r)
        case _:
            return (x.abs() + y.abs() - r) * math.sqrt(0.5)


def _strokes(form: Tensor, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Signed distance of digits and letters, whose pens are 0.26 r + 0.5 pixels wide."""
    ends = segments()[form - 6] * 0.88 * r  # (N, 16, 4): the pen reaches beyond the strokes' ends
    ax, ay, bx, by = (e[..., None, None] for e in ends.unbind(-1))
    x, y, ex, ey = x[:, None] - ax, y[:, None] - ay, bx - ax, by - ay
    along = ((x * ex + y * ey) / (ex.square() + ey.square())).clamp(0, 1)
    away = (x - along * ex).square() + (y - along * ey).square()
    return away.amin(1).sqrt() - (0.13 * r + 0.25)


def _ground(u: Tensor, texture: float) -> Tensor:
    """Brightness of the grounds, (B, 3, 32, 32) float64, from uniform numbers u (B, 12)."""
    u = u[:, :, None, None]
    axis = torch.arange(SIDE, dtype=torch.float64) + 0.5
    x, y = axis[None, None, :], axis[None, :, None]
    base = 0.05 + 0.2 * u[:, 1:2] + 0.05 * (u[:, 2:5] - 0.5)
    angle, pace = math.pi * u[:, 5], 2 * math.pi / (4 + 6 * u[:, 6])
    c, s, phase = pace * angle.cos(), pace * angle.sin(), 2 * math.pi * u[:, 7]
    along, across = (c * x + s * y + phase).sin(), (c * y - s * x + phase).sin()
    noise = _hash(x, y, u[:, 9]) * 2 - 1
    patterns = torch.stack([along, torch.where(along * across < 0, -1.0, 1.0), noise], 1)
    which = (u[:, 0] / max(texture, 1e-9) * 3).long().clamp(max=2)[:, None]
    pattern = patterns.gather(1, which.expand(-1, 1, SIDE, SIDE))
    depth = torch.where(u[:, :1] < texture, 0.05 + 0.1 * u[:, 8:9], 0.0)
    return (base + depth * pattern).clamp(0, 1)


def _hash(x: Tensor, y: Tensor, u: Tensor) -> Tensor:
    """Numbers in [0, 1) that look random, from pixel and scene: exact integer arithmetic, the same everywhere."""
    word = (
        x.floor().long() * 374761393 + y.floor().long() * 668265263 + (u * 2**20).floor().long() * 2246822519
    ) % 2**32
    word = (word ^ (word >> 13)) * 1274126177 % 2**32
    return ((word ^ (word >> 16)) % 2**16).double() / 2**16
