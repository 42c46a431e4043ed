"""The solvers against torch.linalg.solve, the covariance against its dense form, each sample against itself alone."""

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wayfield.core.errors import DTypeError, RangeError, ShapeError
from wayfield.core.linalg import DiagonalPlusLowRank, cg, gmres, project
from wayfield.core.shapes import dot, norm

B, D = 5, (2, 3, 2)
N = math.prod(D)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def apply(matrices):
    """A batch of matrices (B, n, n) as an operator on (B, *D), with a fixed order of summation per sample."""
    return lambda x: (matrices * x.reshape(x.shape[0], 1, -1)).sum(-1).reshape(x.shape)


def spd(conditions, n=N, seed=1):
    """Symmetric positive definite matrices with the given condition numbers, (B, n, n)."""
    q = torch.linalg.qr(normal(len(conditions), n, n, seed=seed)).Q
    powers = torch.linspace(0, 1, n, dtype=torch.float64)
    values = torch.tensor(conditions, dtype=torch.float64)[:, None] ** powers
    return q @ torch.diag_embed(values) @ q.mT


def general(count=B, n=N, seed=2):
    """Non-symmetric matrices with spectrum around 3, (B, n, n)."""
    return 3 * torch.eye(n, dtype=torch.float64) + normal(count, n, n, seed=seed) / 2


def exact(matrices, b):
    return torch.linalg.solve(matrices, b.reshape(b.shape[0], -1, 1)).reshape(b.shape)


def no_host_reads():
    """A context in which reading a tensor's value on the host is an error."""

    class Refuse(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read on the host"
            return func(*args, **(kwargs or {}))

    return Refuse()


CONDITIONS = [1.5, 4.0, 10.0, 30.0, 100.0]
SOLVERS = pytest.mark.parametrize(
    ("solver", "matrices"), [(cg, spd(CONDITIONS)), (gmres, general())], ids=["cg", "gmres"]
)


def run(solver, A, b, steps, **extra):
    """cg without its tolerance, so that both solvers take every step."""
    return solver(A, b, steps=steps, **({"tol": 0.0} if solver is cg else {}), **extra)


# both solvers


@SOLVERS
def test_n_steps_give_the_exact_solution(solver, matrices):
    b = normal(B, *D)
    x, residual = run(solver, apply(matrices), b, N + 2 if solver is cg else N)
    torch.testing.assert_close(x, exact(matrices, b), atol=1e-10, rtol=1e-10)
    assert residual.shape == (B,)
    assert (residual < 1e-10).all()


@SOLVERS
@pytest.mark.parametrize("steps", [1, 3, 7])
def test_reported_residual_is_the_true_one(solver, matrices, steps):
    b, guess = normal(B, *D), normal(B, *D, seed=3)
    for x0 in (None, guess):
        x, residual = run(solver, apply(matrices), b, steps, x=x0)
        torch.testing.assert_close(residual, norm(b - apply(matrices)(x)), atol=1e-12, rtol=1e-10)


@SOLVERS
def test_a_right_guess_stays_and_any_guess_leads_to_the_same_end(solver, matrices):
    b = normal(B, *D)
    right = exact(matrices, b)
    torch.testing.assert_close(solver(apply(matrices), b, x=right, steps=3).x, right, atol=1e-12, rtol=0)
    far = run(solver, apply(matrices), b, N + 4, x=10 * normal(B, *D, seed=4)).x
    torch.testing.assert_close(far, right, atol=1e-10, rtol=1e-10)


@SOLVERS
@pytest.mark.parametrize("steps", [2, 6, 40])
def test_a_sample_alone_equals_itself_in_the_batch(solver, matrices, steps):
    b = normal(B, *D)
    together = run(solver, apply(matrices), b, steps)
    for k in range(B):
        alone = run(solver, apply(matrices[k : k + 1]), b[k : k + 1], steps)
        torch.testing.assert_close(alone.x[0], together.x[k], atol=1e-13, rtol=1e-13)
        torch.testing.assert_close(alone.residual[0], together.residual[k], atol=1e-13, rtol=1e-13)


@SOLVERS
def test_scale_of_one_sample_does_not_touch_the_others(solver, matrices):
    b = normal(B, *D)
    loud = b.clone()
    loud[2] *= 1e8
    torch.testing.assert_close(run(solver, apply(matrices), loud, 6).x[3], run(solver, apply(matrices), b, 6).x[3])
    # with cg's default tolerance too: the threshold of a sample knows its own right-hand side only
    for steps in (6, 12):
        both = (solver(apply(matrices), v, steps=steps) for v in (loud, b))
        torch.testing.assert_close(*(s.x[3] for s in both))


@SOLVERS
def test_nan_stays_in_its_sample_and_is_not_hidden(solver, matrices):
    b = normal(B, *D)
    b[1, 0, 0, 0] = math.nan
    x, residual = solver(apply(matrices), b, steps=4)
    assert x[1].isnan().any()
    assert residual[1].isnan()
    keep = [0, 2, 3, 4]
    assert x[keep].isfinite().all()


@SOLVERS
def test_zero_right_hand_side_gives_zero_and_finite_gradients(solver, matrices):
    b = normal(B, *D)
    b[2] = 0
    b.requires_grad_()
    x, residual = solver(apply(matrices), b, steps=20)
    assert (x[2] == 0).all()
    assert residual[2] == 0
    (grad,) = torch.autograd.grad(x.sum() + residual.sum(), b)
    assert grad.isfinite().all()


@SOLVERS
@pytest.mark.parametrize("steps", [2, 4])
def test_gradcheck_in_right_hand_side_guess_and_operator(solver, matrices, steps):
    small = matrices[:2, :4, :4]
    inputs = [small, normal(2, 4, seed=5), normal(2, 4, seed=6)]

    def f(M, b, x):
        # the operator stays symmetric under perturbation, as cg demands
        return run(solver, apply((M + M.mT) / 2 if solver is cg else M), b, steps, x=x)

    assert torch.autograd.gradcheck(f, [v.clone().requires_grad_() for v in inputs], eps=1e-6, atol=1e-6)


def test_adjoint_recipe_of_the_docstring_where_the_iterates_gradient_falls_short():
    # an eigenvector is solved in one step; the gradient of that step knows the operator along one direction only
    values = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).requires_grad_()
    g = normal(1, 3, seed=7)
    unrolled = torch.autograd.grad((cg(lambda x: values * x, b, steps=5).x * g).sum(), b)[0]
    assert not torch.allclose(unrolled, g / values)

    scale = values.clone().requires_grad_()
    x = cg(lambda v: values * v, b.detach(), steps=5).x
    adjoint = cg(lambda v: values * v, g, steps=5, tol=0.0).x
    torch.testing.assert_close(adjoint, g / values)  # the gradient in b
    in_A = torch.autograd.grad(-dot(adjoint, scale * x).sum(), scale)[0]
    torch.testing.assert_close(in_A, -g * b.detach() / values**2)


@SOLVERS
def test_no_host_reads_and_one_call_of_the_operator_per_step(solver, matrices):
    calls = 0

    def A(x):
        nonlocal calls
        calls += 1
        return apply(matrices)(x)

    b, guess = normal(B, *D), normal(B, *D, seed=8)
    with no_host_reads():
        run(solver, A, b, 6)
        assert calls == 6
        run(solver, A, b, 6, x=guess)
    assert calls == 13
    calls = 0
    run(solver, A, b, N + 5)
    assert calls == (N if solver is gmres else N + 5)


@SOLVERS
def test_float32_keeps_its_type_and_comes_close(solver, matrices):
    b = normal(B, *D)
    x, residual = solver(apply(matrices.float()), b.float(), steps=N + 8)
    assert x.dtype == residual.dtype == torch.float32
    torch.testing.assert_close(x.double(), exact(matrices, b), atol=1e-4, rtol=1e-3)


@SOLVERS
def test_errors(solver, matrices):
    A, b = apply(matrices), normal(B, *D)
    with pytest.raises(RangeError, match=r"steps: got 0; expected >= 1"):
        solver(A, b, steps=0)
    with pytest.raises(ShapeError, match=r"x: got \(5, 4\); expected \(5, 2, 3, 2\)"):
        solver(A, b, x=normal(5, 4), steps=1)
    with pytest.raises(ShapeError, match=r"A\(x\): got \(5, 1, 3, 2\)"):
        solver(lambda x: x[:, :1], b, steps=1)
    with pytest.raises(ShapeError, match=r"b: got \(3,\); expected \(B, \*D\)"):
        solver(A, normal(3), steps=1)
    with pytest.raises(DTypeError, match=r"b: got torch.int64"):
        solver(A, torch.ones(2, 3, dtype=torch.int64), steps=1)


# conjugate gradients alone


def test_cg_needs_as_many_steps_as_there_are_distinct_eigenvalues():
    q = torch.linalg.qr(normal(1, N, N, seed=9)).Q
    values = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat_interleave(N // 3)
    A = q @ torch.diag_embed(values)[None] @ q.mT
    b = normal(1, *D)
    assert cg(apply(A), b, steps=2, tol=0.0).residual > 1e-3
    torch.testing.assert_close(cg(apply(A), b, steps=3, tol=0.0).x, exact(A, b), atol=1e-10, rtol=0)


def test_cg_error_obeys_the_chebyshev_bound_for_each_condition_number():
    A, b = spd(CONDITIONS), normal(B, *D)
    right = exact(A, b)
    energy = lambda e: dot(e, apply(A)(e)).sqrt()  # noqa: E731
    root = torch.tensor(CONDITIONS, dtype=torch.float64).sqrt()
    for steps in (2, 5, 8):
        bound = 2 * ((root - 1) / (root + 1)) ** steps
        assert (energy(cg(apply(A), b, steps=steps, tol=0.0).x - right) <= bound * energy(right)).all()


def test_cg_freezes_each_sample_at_its_own_tolerance_bit_for_bit():
    A, b = spd([1.01, 1e3]), normal(2, *D)
    history = [cg(apply(A), b, steps=s, tol=1e-6) for s in (1, 2, 3, 4, 40)]
    assert torch.equal(history[3].x[0], history[4].x[0])
    assert torch.equal(history[3].residual[0], history[4].residual[0])
    assert not torch.equal(history[3].x[1], history[4].x[1])
    assert (history[4].residual <= 1e-6 * norm(b)).all()
    # and it froze at the first step that met the tolerance, not later
    met = next(h for h in history if h.residual[0] <= 1e-6 * norm(b)[0])
    assert torch.equal(met.x[0], history[4].x[0])


def test_cg_without_tolerance_survives_many_steps_past_convergence():
    A, b = spd(CONDITIONS), normal(B, *D)
    for dtype, atol in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        x = cg(apply(A.to(dtype)), b.to(dtype), steps=300, tol=0.0).x
        torch.testing.assert_close(x.double(), exact(A, b), atol=atol, rtol=0)


def test_cg_stops_at_negative_curvature_and_says_so_in_the_residual():
    diagonal = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]], dtype=torch.float64)
    b = torch.ones(2, 3, dtype=torch.float64)
    x, residual = cg(lambda v: diagonal * v, b, steps=5)
    torch.testing.assert_close(x[0], 1 / diagonal[0])
    assert (x[1] == 0).all()
    torch.testing.assert_close(residual[1], norm(b)[1])


def test_cg_refuses_a_negative_tolerance():
    with pytest.raises(RangeError, match=r"tol of cg: got -1.0; expected >= 0"):
        cg(lambda x: x, normal(2, 3), steps=1, tol=-1.0)


# gmres alone


def test_gmres_minimises_the_residual_over_the_krylov_space():
    A, b = general(), normal(B, *D)
    for m in (1, 3, 6):
        powers = [b.reshape(B, N)]
        for _ in range(m):
            powers.append((A @ powers[-1].unsqueeze(-1)).squeeze(-1))
        images = torch.linalg.qr(torch.stack(powers[1:], -1)).Q  # an orthonormal basis of A K_m
        best = powers[0] - (images @ (images.mT @ powers[0].unsqueeze(-1))).squeeze(-1)
        torch.testing.assert_close(gmres(apply(A), b, steps=m).residual, norm(best), atol=1e-10, rtol=1e-8)


def test_gmres_solves_the_cyclic_shift_which_stalls_until_the_last_step():
    b = torch.zeros(1, 5, dtype=torch.float64)
    b[0, 0] = 1
    shift = lambda x: x.roll(1, 1)  # noqa: E731
    assert gmres(shift, b, steps=4).residual == 1
    x, residual = gmres(shift, b, steps=5)
    torch.testing.assert_close(shift(x), b)
    assert residual < 1e-12


def test_gmres_stops_gaining_when_the_space_is_exhausted():
    # a projector: one direction spans the whole Krylov space of a vector in its range
    u = normal(N, 2, seed=10)
    P = (u @ torch.linalg.pinv(u))[None]
    inside = apply(P)(normal(1, *D))
    x, residual = gmres(apply(P), inside, steps=8)
    torch.testing.assert_close(x, inside, atol=1e-12, rtol=0)
    assert residual < 1e-12


def test_gmres_on_a_singular_inconsistent_system_stays_bounded():
    diagonal = torch.tensor([[1.0, 2.0, 0.0]], dtype=torch.float64)
    x, residual = gmres(lambda v: diagonal * v, torch.ones(1, 3, dtype=torch.float64), steps=3)
    assert norm(x) < 1e6
    torch.testing.assert_close(residual, torch.ones(1, dtype=torch.float64), atol=1e-10, rtol=0)
    zero = gmres(lambda v: 0 * v, torch.ones(1, 3, dtype=torch.float64), steps=3)
    assert (zero.x == 0).all()
    torch.testing.assert_close(zero.residual[0] ** 2, torch.tensor(3.0, dtype=torch.float64))


# projections


def test_project_splits_into_parallel_and_orthogonal_parts():
    x, y = normal(B, *D), normal(B, *D, seed=11)
    parallel, orthogonal = project(x, y)
    torch.testing.assert_close(parallel + orthogonal, x)
    torch.testing.assert_close(dot(orthogonal, y), torch.zeros(B, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(norm(parallel) ** 2 + norm(orthogonal) ** 2, norm(x) ** 2)
    torch.testing.assert_close(parallel, (dot(x, y) / dot(y, y)).reshape(B, 1, 1, 1) * y)
    again, none = project(parallel, y)
    torch.testing.assert_close(again, parallel)
    torch.testing.assert_close(none, torch.zeros_like(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(project(x, -7 * y)[0], parallel)
    torch.testing.assert_close(project(x[1:2], y[1:2])[0], parallel[1:2])


def test_project_onto_zero_leaves_all_orthogonal_with_finite_gradients():
    x, y = normal(B, *D), normal(B, *D, seed=12)
    y[3] = 0
    x.requires_grad_(), y.requires_grad_()
    parallel, orthogonal = project(x, y)
    assert (parallel[3] == 0).all()
    assert torch.equal(orthogonal[3], x[3])
    grads = torch.autograd.grad((parallel**2).sum() + orthogonal.sum(), (x, y))
    assert all(g.isfinite().all() for g in grads)


def test_project_gradcheck_although_its_scale_is_detached():
    inputs = [normal(2, 3, seed=s).requires_grad_() for s in (13, 14)]
    assert torch.autograd.gradcheck(project, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_project_in_half_precision_neither_overflows_nor_changes_type(dtype):
    x, y = (200 * normal(2, 4, 64, 64, seed=s) for s in (15, 16))
    parallel, orthogonal = project(x.to(dtype), y.to(dtype))
    assert parallel.dtype == orthogonal.dtype == dtype
    want = project(x.to(dtype).double(), y.to(dtype).double())
    torch.testing.assert_close(parallel.double(), want[0], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(orthogonal.double(), want[1], atol=1, rtol=1e-2)


def test_project_onto_a_tiny_vector_does_not_underflow():
    x, y = normal(2, 8, dtype=torch.float32), normal(2, 8, seed=17, dtype=torch.float32)
    torch.testing.assert_close(project(x, 1e-30 * y)[0], project(x, y)[0])


def test_project_errors_and_host_reads():
    with pytest.raises(ShapeError, match=r"onto: got \(2, 4\); expected \(2, 3\)"):
        project(normal(2, 3), normal(2, 4))
    with no_host_reads():
        project(normal(2, 3), normal(2, 3))


# covariance

SHAPES = pytest.mark.parametrize(
    ("d_shape", "V_shape"),
    [((N,), (N, 3)), ((B, N), (B, N, 3)), ((B, N), (N, 3)), ((N,), (B, N, 3)), ((N,), (N, 0)), ((B, N), (B, N, 20))],
    ids=["shared", "batched", "batched-d", "batched-V", "diagonal", "over-full"],
)


def covariance(d_shape, V_shape):
    return DiagonalPlusLowRank(0.5 + normal(*d_shape, seed=18).square(), normal(*V_shape, seed=19))


@SHAPES
def test_covariance_against_its_dense_form(d_shape, V_shape):
    C, x = covariance(d_shape, V_shape), normal(B, *D)
    dense = C.to_dense()
    assert dense.shape == ((B, N, N) if 2 in (len(d_shape), len(V_shape) - 1) else (N, N))
    want = torch.diag_embed(C.d) + torch.einsum("...ik,...jk->...ij", C.V, C.V)
    torch.testing.assert_close(dense, want)
    torch.testing.assert_close(C.matmul(x).reshape(B, N, 1), dense @ x.reshape(B, N, 1))
    torch.testing.assert_close(C.solve(x).reshape(B, N, 1), torch.linalg.solve(dense, x.reshape(B, N, 1)))
    torch.testing.assert_close(C.solve(C.matmul(x)), x)
    torch.testing.assert_close(C.logdet(), torch.linalg.slogdet(dense).logabsdet)
    torch.testing.assert_close(C.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1))


@SHAPES
def test_sample_is_a_square_root_of_the_covariance(d_shape, V_shape):
    C = covariance(d_shape, V_shape)
    k = V_shape[-1]
    # the linear map from noise to draws, column by column: S S^T must be C, for each sample of the batch
    unit = torch.eye(N + k, dtype=torch.float64)
    columns = [C.sample(e[:N].expand(B, N).reshape(B, *D), e[N:].expand(B, k)).reshape(B, N) for e in unit]
    S = torch.stack(columns, -1)
    torch.testing.assert_close(S @ S.mT, C.to_dense().expand(B, N, N))


@SHAPES
def test_scaled_and_shifted(d_shape, V_shape):
    C, eye = covariance(d_shape, V_shape), torch.eye(N, dtype=torch.float64)
    each = torch.linspace(0.1, 2, B, dtype=torch.float64)
    for a, s in ((0.3, 0.7), (torch.tensor(0.3), torch.tensor(0.7)), (each, each.flip(0)), (0.3, each)):
        got = C.scaled(a).shifted(s).to_dense()
        a2, s2 = (v.double().reshape(-1, 1, 1) if isinstance(v, torch.Tensor) else v for v in (a, s))
        torch.testing.assert_close(
            got.expand(B, N, N), (a2**2 * C.to_dense() + s2**2 * eye).expand(B, N, N), rtol=1e-6, atol=0
        )
    pure_noise = C.scaled(0.0).shifted(2.0)
    torch.testing.assert_close(pure_noise.solve(normal(B, *D)), normal(B, *D) / 4)


def test_covariance_sample_alone_equals_itself_in_the_batch():
    C, x = covariance((B, N), (B, N, 3)), normal(B, *D)
    for k in range(B):
        alone = DiagonalPlusLowRank(C.d[k], C.V[k])
        torch.testing.assert_close(alone.solve(x[k : k + 1])[0], C.solve(x)[k])
        torch.testing.assert_close(alone.logdet(), C.logdet()[k])


def test_covariance_gradcheck_and_repeated_backward():
    d, V, x = (0.5 + normal(4, seed=20).square()).requires_grad_(), normal(4, 2, seed=21).requires_grad_(), normal(2, 4)
    assert torch.autograd.gradcheck(
        lambda d, V: (DiagonalPlusLowRank(d, V).solve(x), DiagonalPlusLowRank(d, V).logdet()), (d, V)
    )
    C = DiagonalPlusLowRank(d, V)
    C.logdet().backward()
    C.logdet().backward()


def test_covariance_reads_the_host_only_when_built_by_hand():
    d, V, x = torch.ones(N, dtype=torch.float64), normal(N, 3), normal(B, *D)
    with no_host_reads():
        C = DiagonalPlusLowRank.unchecked(d, V).scaled(torch.tensor(0.5)).shifted(0.1)
        C.solve(x), C.matmul(x), C.logdet(), C.trace(), C.sample(x, normal(B, 3))
    with pytest.raises(AssertionError, match="read on the host"), no_host_reads():
        DiagonalPlusLowRank(d, V)


def test_covariance_is_frozen():
    C = DiagonalPlusLowRank.unchecked(torch.ones(3), torch.ones(3, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        C.d = torch.zeros(3)


def test_covariance_errors():
    ones = torch.ones
    with pytest.raises(RangeError, match=r"diagonal d: got minimum 0; expected > 0. Add"):
        DiagonalPlusLowRank(torch.tensor([1.0, 0.0]), ones(2, 1))
    with pytest.raises(RangeError, match=r"diagonal d"):
        DiagonalPlusLowRank(torch.tensor([1.0, math.nan]), ones(2, 1))
    with pytest.raises(ShapeError, match=r"diagonal d: got \(2, 2, 2\); expected \(n,\) or \(B, n\)"):
        DiagonalPlusLowRank(ones(2, 2, 2), ones(2, 1))
    with pytest.raises(ShapeError, match=r"factor V: got \(3, 1\); expected \(2, k\) or \(B, 2, k\)"):
        DiagonalPlusLowRank(ones(2), ones(3, 1))
    with pytest.raises(ShapeError, match=r"factor V: got \(4, 2, 1\); expected \(2, k\) or \(3, 2, k\)"):
        DiagonalPlusLowRank(ones(3, 2), ones(4, 2, 1))
    with pytest.raises(DTypeError, match=r"factor V: got torch.float64; expected torch.float32"):
        DiagonalPlusLowRank(ones(2), ones(2, 1, dtype=torch.float64))
    with pytest.raises(DTypeError, match=r"diagonal d: got torch.int64"):
        DiagonalPlusLowRank(ones(2, dtype=torch.int64), ones(2, 1))

    C = DiagonalPlusLowRank(ones(3, 4), ones(4, 2))
    with pytest.raises(ShapeError, match=r"x: got \(3, 5\); expected \(3, \*D\) with prod D = 4"):
        C.solve(ones(3, 5))
    with pytest.raises(ShapeError, match=r"x: got \(2, 4\); expected \(3, \*D\)"):
        C.matmul(ones(2, 4))
    with pytest.raises(DTypeError, match=r"eps: got torch.float64"):
        C.sample(ones(3, 4, dtype=torch.float64), ones(3, 2))
    with pytest.raises(ShapeError, match=r"noise z: got \(3, 4\); expected \(3, 2\)"):
        C.sample(ones(3, 4), ones(3, 4))
    with pytest.raises(ShapeError, match=r"factor: got \(2,\); expected \(\) or \(3,\)"):
        C.scaled(ones(2))
