r"""Muon: steps for matrices whose singular values are all alike, so that rare directions learn as fast as common ones.

The gradient of a weight matrix is dominated by few directions. Muon replaces its running mean by the nearest orthogonal
matrix before it steps; the reports below count a third to a half fewer steps than with AdamW.

    m <- mu m + (1 - mu) g,     u = mu m + (1 - mu) g                         (Nesterov, mu = 0.95)
    W <- (1 - lr lambda) W - lr sqrt(max(1, rows / cols)) orth(u)

    orth(u): X_0 = u / |u|_F,   A = X X^T,   X <- a X + (b A + c A^2) X,      five times
    (a, b, c) = (3.4445, -4.7750, 2.0315)

W, g, m, u: (rows, cols); a convolution kernel (out, in, k, k) is flattened to (out, in k^2). The polynomial is steep at
zero and does not converge: singular values of u from 0.0016 of |u|_F on end within 0.68 .. 1.21, which is enough
here and costs fifteen matrix products. Matrices of one shape are iterated in one batched product.

Muon is for hidden matrices and kernels. Vectors, embeddings, and the layers that touch the data stay with AdamW:
`matrices` tells which are which.

References: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025, arXiv
2502.16982 (decoupled weight decay).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn

from wayfield.core.errors import ShapeError
from wayfield.train.checks import check_number

__all__ = ["Muon", "matrices", "orthogonalise"]

_A, _B, _C = 3.4445, -4.7750, 2.0315
_EDGES = ("stem", "out")  # what the networks here call the layers that read and write the data


def orthogonalise(u: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest orthogonal matrices, roughly: u (*, rows, cols) -> the same shape and dtype, zero where u is zero.

    steps: iterations / dtype: of the matrix products; bfloat16 is enough, and faster where the hardware has it.
    """
    tall = u.shape[-2] > u.shape[-1]
    x = u.mT if tall else u
    x = (x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)).to(dtype)
    x, shape = x.reshape(-1, *x.shape[-2:]), x.shape
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    x = x.reshape(shape).to(u.dtype)
    return x.mT if tall else x


def matrices(net: nn.Module) -> list[nn.Parameter]:
    """The parameters for Muon: trained, of two or more axes, no embedding, in no `stem` and no outermost `out`."""
    found = []
    for name, module in net.named_modules():
        path = name.split(".")
        edge = path[-1] == _EDGES[0] or (path[-1] == _EDGES[1] and len(path) <= 2)
        if not edge and not isinstance(module, nn.Embedding):
            found += [p for p in module.parameters(recurse=False) if p.requires_grad and p.ndim > 1]
    return list(dict.fromkeys(found))  # a weight may have two owners


@final
class Muon(torch.optim.Optimizer):
    """The step above on parameters of two and more axes, read as (rows, all others).

    lr: size of a step, the spectral norm of its change / momentum: mu in [0, 1) / weight_decay: lambda >= 0 /
    dtype: of the matrix products. Raises RangeError for numbers outside, ShapeError for a vector.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_number("lr of Muon", lr, 0, open_low=True)
        check_number("momentum of Muon", momentum, 0, 1 - 1e-12)
        check_number("weight_decay of Muon", weight_decay, 0)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim < 2:
                remedy = "Give vectors to AdamW, see `matrices`."
                raise ShapeError("parameter of Muon", got=tuple(p.shape), expected="two or more axes", remedy=remedy)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step on every parameter that has a gradient. closure: there for the base class."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.flatten(1).shape, p.device, p.dtype].append(p)
            for (shape, _, _), same in alike.items():
                u = orthogonalise(torch.stack([self._momentum(p, group["momentum"]) for p in same]), dtype=self._dtype)
                size = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for p, direction in zip(same, u, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction.reshape(p.shape), alpha=size)

    def _momentum(self, p: nn.Parameter, mu: float) -> Tensor:
        """Nesterov's look-ahead u, (rows, cols), after this step's gradient went into the memory m."""
        grad, state = p.grad, self.state[p]
        assert grad is not None
        if not state:
            state["momentum"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        m = state["momentum"].lerp_(grad, 1 - mu)
        return grad.lerp(m, mu).flatten(1)
