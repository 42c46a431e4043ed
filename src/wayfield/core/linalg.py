r"""Linear algebra on batches, every sample for itself: Krylov solvers, projections, a structured covariance.

Guidance and inverse problems meet operators that exist only as functions (a Jacobian of the network, a blur) and
covariances too large to store. Solvers here run a fixed number of steps, decide by masks and never read the device.

.. math::
    \text{cg:}\quad & x_{j+1} = x_j + a_j p_j,\;\; r_{j+1} = r_j - a_j A p_j,\;\; p_{j+1} = r_{j+1} + \beta_j p_j,
        \quad a_j = \frac{r_j^\top r_j}{p_j^\top A p_j},\; \beta_j = \frac{r_{j+1}^\top r_{j+1}}{r_j^\top r_j} \\
    \text{gmres:}\quad & x = x_0 + W_m y, \quad y = \arg\min_y \| \beta e_1 - H_m y \|, \quad A W_m = W_{m+1} H_m \\
    \text{project:}\quad & x_\parallel = \frac{x^\top y}{y^\top y}\, y, \quad x_\perp = x - x_\parallel \\
    \text{covariance:}\quad & C = \mathrm{diag}(d) + V V^\top, \quad
        C^{-1} = D^{-1} - D^{-1} V M^{-1} V^\top D^{-1}, \quad \det C = \det D \det M, \quad M = I + V^\top D^{-1} V

Shapes: x, b, r, p (B, \*D); A maps (B, \*D) to (B, \*D), row k of the answer from row k alone; a, beta, residual (B,);
W m directions (B, \*D); H (m + 1, m) per sample; d (n,) or (B, n); V (n, k) or (B, n, k); M (k, k).

References: Hestenes & Stiefel 1952 and Saad 2003, section 6.7 (cg); Saad & Schultz 1986 and Saad 2003, section 6.5
(gmres); Paige et al. 2006 (modified Gram-Schmidt is enough for it); Woodbury 1950; Sadat et al. 2024 (APG: project).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from wayfield.core.errors import DeviceError, DTypeError, RangeError, ShapeError
from wayfield.core.shapes import check_like, check_samples, dot, expand, flatten, norm

__all__ = ["DiagonalPlusLowRank", "Operator", "Solution", "cg", "gmres", "project"]

Operator = Callable[[Tensor], Tensor]


class Solution(NamedTuple):
    """What a solver found. x: (B, *D) / residual: ||b - A x|| per sample by the solver's own recurrence, (B,)."""

    x: Tensor
    residual: Tensor


def cg(A: Operator, b: Tensor, *, x: Tensor | None = None, steps: int, tol: float = 1e-6) -> Solution:
    """Conjugate gradients for A x = b with A symmetric positive definite; `steps` calls of A, one more if `x` is given.

    b, x: right-hand side and first guess (zero if None), (B, *D) / tol: a sample is frozen once ||r|| <= tol ||b||, or
    once rounding or an indefinite A gives p.Ap <= 0; its residual tells how far it came. NaN is never frozen out of x.

    Autograd differentiates the iterates, not the exact solution: a sample that stops early (b = 0, an eigenvector,
    A = c I, a good first guess) carries the gradient of its short polynomial. Where that matters, solve without a graph
    and get the gradient from a second solve: with l = A^{-1} g it is l in b, and that of -l.A(x), x held, in A.
    """
    x, r = _start(A, b, x, steps)
    if not tol >= 0:
        raise RangeError("tol of cg", got=tol, expected=">= 0", remedy="Give a relative residual such as 1e-6.")
    p, rho, enough = r, dot(r, r), tol**2 * dot(b, b)
    for _ in range(steps):
        q = _apply(A, p)
        curvature = dot(p, q)
        stop = (rho <= enough) | (curvature <= 0)
        # the masked denominators keep gradients of frozen samples finite: where() alone would pass 0 * inf back
        a = rho / curvature.masked_fill(stop, 1)
        frozen = expand(stop, x)
        x = torch.where(frozen, x, x + expand(a, x) * p)
        r = torch.where(frozen, r, r - expand(a, x) * q)
        new = dot(r, r)
        p = torch.where(frozen, p, r + expand(new / rho.masked_fill(stop, 1), x) * p)
        rho = new
    return Solution(x, norm(r))


def gmres(A: Operator, b: Tensor, *, x: Tensor | None = None, steps: int) -> Solution:
    """Least residual over the Krylov space of a general square A; min(steps, n) calls of A, one more if `x` is given.

    b, x: right-hand side and first guess (zero if None), (B, *D) / steps: dimension of the space, all kept in memory.
    A sample whose space is exhausted earlier gains nothing from later steps; numerically singular directions are left
    out. Autograd differentiates the iterates, see `cg`.
    """
    x, r = _start(A, b, x, steps)
    size = norm(r)
    basis, rotations, columns, g = [_unit(r, size, size == 0)], [], [], [size]
    for j in range(min(steps, flatten(b).shape[1])):
        h, scale = _arnoldi(A, basis)
        for i, (c, s) in enumerate(rotations):
            h[i], h[i + 1] = c * h[i] + s * h[i + 1], c * h[i + 1] - s * h[i]
        # dead: A adds no direction; the unsolved part of g moves on (c = 0, s = 1), the pivot is 1 and this y is 0
        dead = torch.hypot(h[j].detach(), h[j + 1].detach()) <= scale
        top = h[j].masked_fill(dead, 1)
        length = torch.hypot(top, h[j + 1])
        c, s = (top / length).masked_fill(dead, 0), (h[j + 1] / length).masked_fill(dead, 1)
        columns.append([*h[:j], length])
        rotations.append((c, s))
        g[j:] = [c * g[j], -s * g[j]]
    for y, w in zip(_back_substitute(columns, g), basis, strict=False):
        x = x + expand(y, x) * w
    return Solution(x, g[-1].abs())


def project(x: Tensor, onto: Tensor) -> tuple[Tensor, Tensor]:
    """(parallel, orthogonal) parts of each sample of `x` relative to `onto`, all (B, *D); all orthogonal if onto = 0.

    Sums run in float32 or wider (an inner product of half-precision latents overflows), after scaling by the largest
    entry of `onto` (its square may underflow); the projection does not depend on that scale, so it needs no gradient.
    """
    check_like("onto", onto, check_samples("x", x))
    wide = torch.promote_types(torch.promote_types(x.dtype, onto.dtype), torch.float32)
    largest = flatten(onto.detach()).abs().amax(1).to(wide)
    u = onto.to(wide) / expand(largest.masked_fill(largest == 0, 1), x)
    length = dot(u, u).masked_fill(largest == 0, 1)
    parallel = expand(dot(x.to(wide), u) / length, x) * u
    return parallel.to(x.dtype), (x.to(wide) - parallel).to(x.dtype)


@final
@dataclass(frozen=True, eq=False)
class DiagonalPlusLowRank:
    """The covariance C = diag(d) + V V^T, which stores n (k + 1) numbers and solves in O(n k^2).

    d: positive diagonal, (n,) or (B, n) / V: factor, (n, k) or (B, n, k), k = 0 allowed; batched and unbatched mix.
    Points are (B, *D) with prod D = n. Construction reads d once to see that it is positive; in a loop use `unchecked`.
    """

    d: Tensor
    V: Tensor

    def __post_init__(self) -> None:
        _check_factors(self.d, self.V)
        if not torch.compiler.is_compiling() and not bool((self.d > 0).all()):
            low = self.d.detach().min().item()
            raise RangeError("diagonal d", got=f"minimum {low:g}", expected="> 0", remedy="Add a small variance.")

    @classmethod
    def unchecked(cls, d: Tensor, V: Tensor) -> DiagonalPlusLowRank:
        """The same object with its shapes checked but not its values, so that nothing waits for the device."""
        _check_factors(d, V)
        C = object.__new__(cls)
        object.__setattr__(C, "d", d)
        object.__setattr__(C, "V", V)
        return C

    def matmul(self, x: Tensor) -> Tensor:
        """C x, (B, *D) -> (B, *D)."""
        rows = self._rows("x", x)
        return (self.d * rows + _mv(self.V, _mv(self.V.mT, rows))).reshape(x.shape)

    def solve(self, x: Tensor) -> Tensor:
        """C^{-1} x by Woodbury's identity, (B, *D) -> (B, *D)."""
        scaled = self._rows("x", x) / self.d
        inner = torch.cholesky_solve(_mv(self.V.mT, scaled).unsqueeze(-1), self._capacitance()).squeeze(-1)
        return (scaled - _mv(self.V, inner) / self.d).reshape(x.shape)

    def logdet(self) -> Tensor:
        """log det C, () or (B,)."""
        return self.d.log().sum(-1) + 2 * self._capacitance().diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def trace(self) -> Tensor:
        """The sum of the variances, () or (B,)."""
        return self.d.sum(-1) + self.V.square().sum((-2, -1))

    def sample(self, eps: Tensor, z: Tensor) -> Tensor:
        """sqrt(d) eps + V z, a draw from N(0, C), (B, *D). eps: (B, *D) / z: (B, k), independent standard normals."""
        rows = self._rows("eps", eps)
        if z.shape != (rows.shape[0], self.V.shape[-1]):
            want = (rows.shape[0], self.V.shape[-1])
            raise ShapeError("noise z", got=tuple(z.shape), expected=want, remedy="Draw one number per column of V.")
        return (self.d.sqrt() * rows + _mv(self.V, z)).reshape(eps.shape)

    def to_dense(self) -> Tensor:
        """C written out, (n, n) or (B, n, n)."""
        return torch.diag_embed(self.d) + self.V @ self.V.mT

    def scaled(self, a: Tensor | float) -> DiagonalPlusLowRank:
        """a^2 C, the covariance of a x. a: a number, () or (B,)."""
        return self.unchecked(self._factor(a, 1) ** 2 * self.d, self._factor(a, 2) * self.V)

    def shifted(self, s: Tensor | float) -> DiagonalPlusLowRank:
        """C + s^2 I, the covariance of x + s eps; after `scaled`, of alpha x0 + sigma eps. s: a number, () or (B,)."""
        return self.unchecked(self.d + self._factor(s, 1) ** 2, self.V)

    def _capacitance(self) -> Tensor:
        """Lower Cholesky factor of M; not cached, since a kept graph could be differentiated only once."""
        M = self.V.mT @ (self.V / self.d.unsqueeze(-1))
        # the _ex form does not wait for an error code; M >= I never fails while d > 0
        return torch.linalg.cholesky_ex(M + torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)).L

    def _batch(self) -> int | None:
        """B if d or V is batched."""
        return self.d.shape[0] if self.d.ndim == 2 else self.V.shape[0] if self.V.ndim == 3 else None

    def _rows(self, what: str, x: Tensor) -> Tensor:
        """`x` as rows (B, n), refused if size, batch, type or device differ from those of C."""
        rows, n, batch = flatten(check_samples(what, x)), self.d.shape[-1], self._batch()
        if rows.shape[1] != n or batch not in (None, rows.shape[0]):
            want = f"({batch or 'B'}, *D) with prod D = {n}"
            raise ShapeError(what, got=tuple(x.shape), expected=want, remedy="Match the covariance's batch and size.")
        if x.dtype != self.d.dtype:
            raise DTypeError(what, got=x.dtype, expected=self.d.dtype, remedy="Cast one of them.")
        if x.device != self.d.device:
            raise DeviceError(what, got=x.device, expected=self.d.device, remedy="Move one of them with .to(device).")
        return rows

    def _factor(self, c: Tensor | float, axes: int) -> Tensor | float:
        """A factor laid over `axes` trailing axes; a plain number stays one, so nothing is copied to the device."""
        if not isinstance(c, Tensor):
            return c
        if c.ndim > 1 or (c.ndim == 1 and self._batch() not in (None, c.shape[0])):
            want = f"() or ({self._batch() or 'B'},)"
            raise ShapeError("factor", got=tuple(c.shape), expected=want, remedy="Give one number, or one per sample.")
        return c.to(self.d.dtype).reshape(c.shape + (1,) * axes if c.ndim else ())


def _start(A: Operator, b: Tensor, x: Tensor | None, steps: int) -> tuple[Tensor, Tensor]:
    """First guess and its residual, both (B, *D), after the checks the two solvers share."""
    check_samples("b", b)
    if steps < 1:
        raise RangeError("steps", got=steps, expected=">= 1", remedy="Each step is one call of A; n are exact.")
    if x is None:
        return torch.zeros_like(b), b
    return x, b - _apply(A, check_like("x", x, b))


def _apply(A: Operator, x: Tensor) -> Tensor:
    return check_like("A(x)", A(x), x)


def _unit(w: Tensor, length: Tensor, gone: Tensor) -> Tensor:
    """w / length per sample, and zero where `gone`: a zero direction makes every later step a no-op."""
    return torch.where(expand(gone, w), 0, w / expand(length.masked_fill(gone, 1), w))


def _arnoldi(A: Operator, basis: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Append the next orthonormal direction to `basis`; its column of H, and the size below which it is rounding."""
    w = _apply(A, basis[-1])
    scale = 10 * torch.finfo(w.dtype).eps * norm(w.detach())
    h = []
    for u in basis:  # modified Gram-Schmidt: each coefficient is taken from what the earlier ones left
        h.append(dot(w, u))
        w = w - expand(h[-1], w) * u
    h.append(norm(w))
    basis.append(_unit(w, h[-1], h[-1] <= scale))
    return h, scale


def _back_substitute(columns: list[list[Tensor]], g: list[Tensor]) -> list[Tensor]:
    """y with R y = g for the upper triangular R given by columns, per sample."""
    m = len(columns)
    y: list[Tensor] = [torch.zeros_like(g[0])] * m
    for i in reversed(range(m)):
        rest = g[i]
        for j in range(i + 1, m):
            rest = rest - columns[j][i] * y[j]
        y[i] = rest / columns[i][i]
    return y


def _mv(V: Tensor, x: Tensor) -> Tensor:
    """V x for a shared or a per-sample matrix: (n, k) or (B, n, k), (B, k) -> (B, n)."""
    return (V @ x.unsqueeze(-1)).squeeze(-1)


def _check_factors(d: Tensor, V: Tensor) -> None:
    """Refuse d and V that cannot be the two parts of one covariance; shapes and types only."""
    for what, part in (("diagonal d", d), ("factor V", V)):
        if not part.is_floating_point():
            raise DTypeError(what, got=part.dtype, expected="a floating-point tensor", remedy="Cast it first.")
    if d.ndim not in (1, 2) or d.numel() == 0:
        raise ShapeError("diagonal d", got=tuple(d.shape), expected="(n,) or (B, n)", remedy="Flatten the data axes.")
    fits = V.ndim in (2, 3) and V.shape[-2] == d.shape[-1] and (V.ndim == 2 or d.ndim == 1 or V.shape[0] == d.shape[0])
    if not fits:
        n, batch = d.shape[-1], d.shape[0] if d.ndim == 2 else "B"
        want = f"({n}, k) or ({batch}, {n}, k)"
        raise ShapeError("factor V", got=tuple(V.shape), expected=want, remedy="Give one row per entry of d.")
    if V.dtype != d.dtype:
        raise DTypeError("factor V", got=V.dtype, expected=d.dtype, remedy="Cast one of them.")
    if V.device != d.device:
        raise DeviceError("factor V", got=V.device, expected=d.device, remedy="Move one of them with .to(device).")
