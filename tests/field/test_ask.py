import pytest
import torch

from wayfield.core.errors import RangeError, UnknownNameError
from wayfield.core.path import Trig
from wayfield.field.ask import COND, NULL, Ask, Binding, Counts, Query
from wayfield.field.batching import Batching, measure

CPU = torch.device("cpu")


def binding(mixture, batching, **nets):
    main = mixture(Trig(), d=2)
    given = {"cond": {"label": torch.tensor([0, 1, 0, 1])}, "negative": {"label": 1}}
    return Binding({"main": main, **nets}, given, 4, CPU, batching)


def ask_at(b, x, t=0.4):
    t = torch.as_tensor(t, dtype=torch.float64)
    return Ask(b, x, {name: den.level(t, dtype=x.dtype) for name, den in b.nets.items()})


@pytest.mark.parametrize(
    ("batching", "calls"), [(Batching(), 1), (Batching(merge_below=0), 3), (Batching(max_rows=8), 2)]
)
@pytest.mark.parametrize("t", [0.4, [0.1, 0.3, 0.5, 0.7]])
def test_answers_do_not_depend_on_batching(mixture, randn64, batching, calls, t):
    x = randn64(4, 2)
    a = ask_at(binding(mixture, batching), x, t)
    queries = (COND, NULL, Query("negative"))
    answers = a(*queries)
    assert (a.calls, a.rows) == (calls, 12)
    den = mixture(Trig(), d=2)
    for label, got in zip((torch.tensor([0, 1, 0, 1]), 2, 1), answers, strict=True):
        want = den(x, torch.as_tensor(t, dtype=torch.float64), {"label": label})
        torch.testing.assert_close(got.x0, want.x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.eps, want.eps, rtol=1e-12, atol=1e-12)


def test_memo(mixture, randn64):
    a = ask_at(binding(mixture, Batching()), randn64(4, 2))
    first = a(COND)[0]
    assert a(COND, COND)[0] is first
    assert (a.calls, a.rows) == (1, 4)
    a(COND, NULL)
    assert (a.calls, a.rows) == (2, 8)


def test_networks_are_grouped_by_name(mixture, randn64):
    a = ask_at(binding(mixture, Batching(), weak=mixture(Trig(), d=2)), randn64(4, 2))
    main, weak, _ = a(COND, Query("cond", "weak"), NULL)
    assert (a.calls, a.rows) == (2, 12)
    torch.testing.assert_close(main.x0, weak.x0, rtol=1e-12, atol=1e-12)


def test_point_completes_the_pair(mixture, randn64):
    x = randn64(4, 2)
    a = ask_at(binding(mixture, Batching()), x, [0.1, 0.3, 0.5, 0.7])
    (c,) = a(COND)
    torch.testing.assert_close(a.point(c.x0).eps, c.eps, rtol=1e-10, atol=1e-10)


def test_take(mixture, randn64):
    b = binding(mixture, Batching())
    x = randn64(4, 2)
    whole = ask_at(b, x)(COND)[0].x0
    rows = torch.tensor([3, 0])
    torch.testing.assert_close(ask_at(b.take(rows), x[rows])(COND)[0].x0, whole[rows], rtol=1e-12, atol=1e-12)


def test_unknown_names(mixture, randn64):
    a = ask_at(binding(mixture, Batching()), randn64(4, 2))
    with pytest.raises(UnknownNameError, match="Did you mean 'negative'"):
        a(Query("negativ"))
    with pytest.raises(UnknownNameError, match="unknown network"):
        a(Query("cond", "weak"))


def test_gradients_flow_through(mixture, randn64):
    x = randn64(4, 2).requires_grad_()
    c, u = ask_at(binding(mixture, Batching()), x)(COND, NULL)
    (g,) = torch.autograd.grad((c.x0 - u.x0).square().sum(), x)
    assert bool(g.isfinite().all())
    assert bool((g != 0).any())


class TestBatching:
    def test_split(self):
        x, q = torch.zeros(4, 10), ["a", "b", "c"]
        assert Batching().split(q, x) == [q]
        assert Batching(merge_below=80).split(q, x) == [["a", "b"], ["c"]]
        assert Batching(merge_below=79).split(q, x) == [["a"], ["b"], ["c"]]
        assert Batching(max_rows=2).split(q, x) == [["a"], ["b"], ["c"]]

    def test_default(self):
        assert Batching.default(torch.device("cuda")) == Batching()
        assert Batching.default(CPU).merge_below == 65_536

    def test_bad(self):
        with pytest.raises(RangeError):
            Batching(max_rows=0)
        with pytest.raises(RangeError):
            Batching(merge_below=-1)

    def test_measure_returns_a_policy(self):
        out = measure(lambda x: x @ x.mT, torch.zeros(1, 3), sizes=(1, 2), repeats=1)
        assert out.merge_below in (0, 6, 12)


def test_counts_add():
    assert Counts(1, 2, 3).plus(Counts(10, 20, 30)) == Counts(11, 22, 33)
