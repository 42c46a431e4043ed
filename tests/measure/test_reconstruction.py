"""The distance that an autoencoder costs: zero for a perfect one, a known number for one that shrinks."""

from __future__ import annotations

import pytest
import torch

from wayfield.core.errors import RangeError
from wayfield.field.latent import LatentCodec
from wayfield.measure.reconstruction import reconstruction_fd, reconstructions


def codec(shrink):
    return LatentCodec(lambda x: x, lambda z: shrink * z, torch.tensor([0.5, -1.0]), torch.tensor([2.0, 3.0]))


def test_a_perfect_codec_costs_nothing(randn64):
    x = randn64(50, 2)
    torch.testing.assert_close(reconstructions(codec(1.0), x, batch=7), x)
    assert reconstruction_fd(codec(1.0), x, lambda x: x, batch=7) < 1e-12


def test_shrinking_costs_its_closed_form(randn64):
    """FD of N(m, S) and N(a m, a^2 S) is (1 - a)^2 (|m|^2 + tr S)."""
    x = randn64(200, 2) + 1
    expected = 0.09 * (x.mean(0).square().sum() + x.var(0).sum())
    assert reconstruction_fd(codec(0.7), x, lambda x: x) == pytest.approx(float(expected), rel=1e-9)
    # twice as large features, four times the distance
    assert reconstruction_fd(codec(0.7), x, lambda x: 2 * x) == pytest.approx(4 * float(expected), rel=1e-9)


def test_few_pictures_are_refused(randn64):
    with pytest.raises(RangeError, match="allow_small"):
        reconstruction_fd(codec(1.0), randn64(3, 2), lambda x: x)
