r"""A codec between pictures and standardised latents, so that a denoiser of latents needs to know nothing of pictures.

An autoencoder's latents have any mean and size. Denoisers and noise levels are made for data around zero with a known
standard deviation, so each channel is moved and scaled by what was measured over the training data:

.. math:: z = \frac{\sigma_d}{s} \, (E(x) - m), \qquad x \approx D\bigl(m + \tfrac{s}{\sigma_d} z\bigr)

sigma_d is 0.5, the data size that EDM's preconditioning and noise levels are made for; use 1 for latents that live on a
variance-preserving path with unit data. Both ways are differentiable.

=======  ==============================================  ==================
symbol   meaning                                         shape
=======  ==============================================  ==================
x, z     pictures, latents                               (B, *D), (B, c, *)
m, s     mean and deviation of each latent channel       (c,)
=======  ==============================================  ==================

A network of another library is wrapped by two functions; an encoder that answers a pair (mean, log-variance) can also
be sampled. For latents that another model defines as z = k E(x), m is 0, s is 1 / k and sigma_d is 1:

    LatentCodec(lambda x: vae.encode(x).latent_dist.mean, lambda z: vae.decode(z).sample,
                torch.zeros(4), torch.full((4,), 1 / 0.18215), sigma_data=1.0)

References: Rombach et al. 2022, arXiv 2112.10752; Karras et al. 2024, arXiv 2312.02696 (per-channel standardisation).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, ShapeError, UnsupportedError
from wayfield.core.noise import INITIAL, Address, Noise
from wayfield.core.shapes import check_samples
from wayfield.field.nets.autoencoder import Autoencoder, Posterior

__all__ = ["LatentCodec"]

Encoder = Callable[[Tensor], Any]
Decoder = Callable[[Tensor], Tensor]

_POSTERIOR = Address(INITIAL, 1)  # no sampler draws here, so that one seed may serve both


@final
@dataclass(frozen=True, eq=False)
class LatentCodec:
    """Pictures to standardised latents and back.

    encoder: pictures (B, *D) -> raw latents (B, c, *), or a pair (mean, logvar) of such / decoder: raw latents ->
    pictures / mean, std: of each raw channel over the training data, (c,) / sigma_data: standard deviation of the
    standardised latents / shape: *D, checked where known / code: shape (c, *) of a latent, checked where known.
    Raises DTypeError, ShapeError, NonFiniteError, or RangeError for a deviation that is not positive.
    """

    encoder: Encoder
    decoder: Decoder
    mean: Tensor
    std: Tensor
    sigma_data: float = 0.5
    shape: tuple[int, ...] | None = None
    code: tuple[int, ...] | None = None
    net: nn.Module | None = None

    def __post_init__(self) -> None:
        for name in ("encoder", "decoder"):
            if not callable(getattr(self, name)):
                got, remedy = repr(getattr(self, name)), "Give a function of a tensor."
                raise DTypeError(f"codec {name}", got=got, expected="a function", remedy=remedy)
        for name in ("mean", "std"):
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            if value.ndim != 1 or not len(value) == torch.as_tensor(self.std).numel() > 0:
                got, remedy = tuple(value.shape), "Give one number per latent channel."
                raise ShapeError(f"codec {name}", got=got, expected="(c,), the same for mean and std", remedy=remedy)
            if not bool(value.isfinite().all()):
                remedy = "Measure it again."
                raise NonFiniteError(f"codec {name}", got=value.tolist(), expected="finite numbers", remedy=remedy)
            object.__setattr__(self, name, value)
        self._check_positive("std", float(self.std.min()))
        self._check_positive("sigma_data", self.sigma_data)
        if self.code is not None and self.code[0] != len(self.mean):
            got, remedy = f"{len(self.mean)} numbers for latents {self.code}", "Give one number per latent channel."
            raise ShapeError("codec mean and std", got=got, expected=f"({self.code[0]},)", remedy=remedy)

    @classmethod
    def of(cls, net: Autoencoder, mean: Tensor, std: Tensor, sigma_data: float = 0.5) -> LatentCodec:
        """The codec of one of this library's autoencoders. mean, std: as above, both (c,)."""
        return cls(net.encode, net.decode, mean, std, sigma_data, net.config.shape, net.config.code, net)

    def encode(self, x: Tensor, *, noise: Noise | None = None) -> Tensor:
        """Standardised latents z (B, c, *) of pictures x (B, *D).

        noise: draw from the encoder's distribution with the noise of these addresses, one per row, instead of taking
        its mean. Raises ShapeError, or UnsupportedError if the encoder has no distribution.
        """
        self._check("pictures", x, self.shape)
        out = self.encoder(x)
        if isinstance(out, Tensor):
            if noise is not None:
                got, remedy = "an encoder of points", "Leave noise out, or let the encoder return (mean, logvar)."
                raise UnsupportedError("sampled latents", got=got, expected="one of pairs", remedy=remedy)
            raw = out
        else:
            posterior = Posterior(*out)
            raw = posterior.mean
            if noise is not None:
                raw = posterior.sample(noise.draw(tuple(raw.shape[1:]), _POSTERIOR).to(raw))
        mean, scale = self._numbers(raw)
        return (raw - mean) / scale

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, *D) of standardised latents z (B, c, *). Not clipped, so that gradients pass. Raises
        ShapeError.
        """
        self._check("latents", z, self.code)
        mean, scale = self._numbers(z)
        return self.decoder(mean + scale * z)

    def to(self, device: torch.device | str) -> LatentCodec:
        """Move the network in place, if it is one of this library's, and return self; functions stay as they are."""
        if self.net is not None:
            self.net.to(device)
        return self

    def _numbers(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """m and s / sigma_d, laid out over latents z."""
        if z.ndim < 2 or z.shape[1] != len(self.mean):
            got, remedy = tuple(z.shape), "Encode with the same autoencoder."
            raise ShapeError("latents", got=got, expected=f"(B, {len(self.mean)}, ...)", remedy=remedy)
        over = (1, -1, *(1,) * (z.ndim - 2))
        return self.mean.to(z).reshape(over), (self.std / self.sigma_data).to(z).reshape(over)

    def _check(self, what: str, x: Tensor, shape: tuple[int, ...] | None) -> None:
        check_samples(what, x)
        if shape is not None and tuple(x.shape[1:]) != shape:
            remedy = "This codec was made for that shape."
            raise ShapeError(what, got=tuple(x.shape), expected=("B", *shape), remedy=remedy)

    def _check_positive(self, name: str, value: Any) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise DTypeError(f"codec {name}", got=repr(value), expected="a number", remedy="Use 0.5 or 1.0.")
        if not 0 < value < float("inf"):
            remedy = "A channel that is constant over the data carries nothing: use fewer latent channels."
            raise RangeError(f"codec {name}", got=value, expected="positive and finite", remedy=remedy)
