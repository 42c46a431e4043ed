r"""A convolutional autoencoder whose code is a Gaussian: pictures to a smaller map of latents and back.

Diffusion in pixels spends most of its work on details that the eye does not miss. A small map that still decodes to the
picture is cheaper to model; a weak pull of its distribution towards N(0, I) keeps the map smooth and bounded.

.. math:: q(z | x) = N(m(x), \mathrm{diag}\, e^{l(x)}), \qquad x \approx D(z), \qquad
   \mathrm{KL}(q \,\|\, N(0, I)) = \tfrac12 (m^2 + e^l - 1 - l) \;\text{ per element}

    encoder  pixel-unshuffle by p; per level `blocks` residual blocks, a stride-2 convolution between levels
    decoder  the mirror image: residual blocks, nearest upsampling and a convolution; pixel-shuffle by p

=======  ==================================================  ==================
symbol   meaning                                             shape
=======  ==================================================  ==================
x        pictures                                            (B, C, H, W)
m, l, z  mean, log-variance, and a latent                    (B, c, H/f, W/f)
f        downsampling, patch 2^(levels - 1)
=======  ==================================================  ==================

References: Kingma & Welling 2014, arXiv 1312.6114 (eq. 10); Rombach et al. 2022, arXiv 2112.10752 (sec. 3.1, app. G).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import RangeError, ShapeError
from wayfield.core.shapes import check_like
from wayfield.field.nets.layers import (
    ConvBlock,
    check_divides,
    check_input,
    check_positive,
    check_shape,
    initialise,
)

__all__ = ["Autoencoder", "AutoencoderConfig", "Posterior"]

_LOGVAR = (-30.0, 20.0)  # beyond these exp() is 0 or infinite in 16 bits


@dataclass(frozen=True)
class AutoencoderConfig:
    """Fields of an `Autoencoder`.

    shape: (C, H, W), H and W multiples of patch 2^(levels - 1) / latent: channels c of the code / channels: per level,
    fine to coarse / blocks: residual blocks per level, each way / patch: pixel-unshuffle factor / groups: of GroupNorm,
    dividing every entry of `channels`. The code may not have more numbers than the picture.
    """

    shape: tuple[int, ...]
    latent: int = 4
    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    patch: int = 2
    groups: int = 8

    def __post_init__(self) -> None:
        check_shape(self, axes=3)
        check_positive(self, "latent", "channels", "blocks", "patch", "groups")
        if not self.channels:
            got, remedy = "()", "Try (32, 64)."
            raise RangeError("AutoencoderConfig.channels", got=got, expected="at least one level", remedy=remedy)
        for size in self.shape[1:]:
            remedy = "Use fewer levels, another patch, or pad the pictures."
            check_divides("AutoencoderConfig.shape over the downsampling", self.factor, size, remedy)
        for channels in self.channels:
            check_divides("AutoencoderConfig.channels over groups", self.groups, channels, "Change groups or channels.")
        if self.latent > self.shape[0] * self.factor**2:
            expected = f"at most {self.shape[0] * self.factor**2}, the numbers of the picture behind each place"
            remedy = "Choose fewer."
            raise RangeError("AutoencoderConfig.latent", got=self.latent, expected=expected, remedy=remedy)

    @property
    def factor(self) -> int:
        """f, how much smaller the map is than the picture, on each side."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def code(self) -> tuple[int, int, int]:
        """(c, H/f, W/f), the shape of a latent."""
        return (self.latent, self.shape[1] // self.factor, self.shape[2] // self.factor)


class Posterior(NamedTuple):
    """The distribution of the latents of pictures: mean and logvar, each (B, c, H/f, W/f)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """A latent, (B, c, H/f, W/f), differentiable. noise: standard normal, of that shape. Raises ShapeError."""
        return self.mean + (0.5 * self.logvar).exp() * check_like("noise of a posterior", noise, self.mean)

    def kl(self) -> Tensor:
        """KL to N(0, I) of each element, (B, c, H/f, W/f), in nats."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)


class Autoencoder(nn.Module):
    """autoencoder(x, noise) -> (reconstruction, posterior): x (B, C, H, W), noise (B, c, H/f, W/f), None: z = m."""

    def __init__(self, config: AutoencoderConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        pixels, first, last = config.shape[0] * config.patch**2, config.channels[0], config.channels[-1]
        with torch.device("meta"):
            self.encoder = nn.ModuleList([nn.Conv2d(pixels, first, 3, padding=1), *_way_down(config)])
            self.encoder_norm = nn.GroupNorm(config.groups, last)
            self.moments = nn.Conv2d(last, 2 * config.latent, 3, padding=1)
            self.decoder = nn.ModuleList([nn.Conv2d(config.latent, last, 3, padding=1), *_way_up(config)])
            self.decoder_norm = nn.GroupNorm(config.groups, first)
            self.out = nn.Conv2d(first, pixels, 3, padding=1)
        initialise(self, seed)

    def encode(self, x: Tensor) -> Posterior:
        """x (B, C, H, W) -> the distribution of its latent."""
        check_input("Autoencoder", x, self.config.shape)
        h = _through(self.encoder, F.pixel_unshuffle(x, self.config.patch))
        mean, logvar = self.moments(F.silu(self.encoder_norm(h))).to(x.dtype).chunk(2, 1)
        return Posterior(mean, logvar.clamp(*_LOGVAR))

    def decode(self, z: Tensor) -> Tensor:
        """z (B, c, H/f, W/f) -> pictures (B, C, H, W), about [-1, 1]; not clipped, so that gradients pass."""
        if tuple(z.shape[1:]) != self.config.code:
            expected = f"(B, {', '.join(map(str, self.config.code))})"
            raise ShapeError("latents", got=tuple(z.shape), expected=expected, remedy="Encode pictures of its shape.")
        h = _through(self.decoder, z)
        return F.pixel_shuffle(self.out(F.silu(self.decoder_norm(h))), self.config.patch).to(z.dtype)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Posterior]:
        """x (B, C, H, W), noise (B, c, H/f, W/f) or None -> (reconstruction (B, C, H, W), posterior)."""
        posterior = self.encode(x)
        return self.decode(posterior.mean if noise is None else posterior.sample(noise)), posterior


class _Up(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, 2H, 2W)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))


def _way_down(config: AutoencoderConfig) -> list[nn.Module]:
    """From the finest level to the coarsest."""
    steps: list[nn.Module] = []
    for level, channels in enumerate(config.channels):
        if level:
            steps.append(nn.Conv2d(config.channels[level - 1], channels, 3, stride=2, padding=1))
        steps += [ConvBlock(channels, channels, 0, config.groups) for _ in range(config.blocks)]
    return steps


def _way_up(config: AutoencoderConfig) -> list[nn.Module]:
    """From the coarsest level to the finest."""
    steps: list[nn.Module] = []
    for level, channels in reversed(list(enumerate(config.channels))):
        steps += [ConvBlock(channels, channels, 0, config.groups) for _ in range(config.blocks)]
        if level:
            steps.append(_Up(channels, config.channels[level - 1]))
    return steps


def _through(steps: nn.ModuleList, h: Tensor) -> Tensor:
    for step in steps:
        h = step(h, None) if isinstance(step, ConvBlock) else step(h)
    return h
