import pytest
import torch

from wayfield.core.errors import RangeError, UnknownNameError, UnsupportedError
from wayfield.core.path import Trig
from wayfield.field.ask import Ask
from wayfield.field.batching import Batching, measure
from wayfield.field.binding import COND, NULL, Binding, Counts, Query
from wayfield.field.rows import Rows

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
    assert (a.calls, a.evaluated) == (calls, 12)
    den = mixture(Trig(), d=2)
    for label, got in zip((torch.tensor([0, 1, 0, 1]), 2, 1), answers, strict=True):
        want = den(x, torch.as_tensor(t, dtype=torch.float64), {"label": label})
        torch.testing.assert_close(got.x0, want.x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.eps, want.eps, rtol=1e-12, atol=1e-12)


def test_memo(mixture, randn64):
    a = ask_at(binding(mixture, Batching()), randn64(4, 2))
    first = a(COND)[0]
    assert a(COND, COND)[0] is first
    assert (a.calls, a.evaluated) == (1, 4)
    a(COND, NULL)
    assert (a.calls, a.evaluated) == (2, 8)


@pytest.mark.parametrize("rows", [None, (1, 3)])
def test_sides_are_the_x0_of_the_answers(mixture, randn64, rows):
    a = ask_at(binding(mixture, Batching()), randn64(4, 2))
    a = a if rows is None else a.view(Rows.of(rows, CPU))
    plus, minus = a.sides(COND, NULL)
    assert (a.calls, a.evaluated) == (1, 2 * (4 if rows is None else 2))
    for x0, answer in zip((plus, minus), a(COND, NULL), strict=True):
        assert torch.equal(x0, answer.x0)
    assert a.calls == 1
    assert plus is a.base or rows is not None


def test_networks_are_grouped_by_name(mixture, randn64):
    a = ask_at(binding(mixture, Batching(), weak=mixture(Trig(), d=2)), randn64(4, 2))
    main, weak, _ = a(COND, Query("cond", "weak"), NULL)
    assert (a.calls, a.evaluated) == (2, 12)
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


def exact(mixture, x, label, t=0.4):
    return mixture(Trig(), d=2)(x, t, {"label": label})


def rows(*index):
    return Rows.of(index, CPU)


class TestViews:
    labels = torch.tensor([0, 1, 0, 1])

    def test_fewer_rows_are_evaluated(self, mixture, randn64):
        x = randn64(4, 2)
        a = ask_at(binding(mixture, Batching()), x, [0.1, 0.3, 0.5, 0.7])
        view = a.view(rows(1, 3))
        (c, u), index = view(COND, NULL), torch.tensor([1, 3])
        assert (a.calls, a.evaluated) == (1, 4)
        t = torch.tensor([0.3, 0.7], dtype=torch.float64)
        for got, label in ((c, self.labels[index]), (u, torch.tensor([2, 2]))):
            want = exact(mixture, x[index], label, t)
            torch.testing.assert_close(got.x0, want.x0, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(view.point(got.x0).eps, want.eps, rtol=1e-10, atol=1e-10)
        assert torch.equal(view.x, x[index])

    def test_what_is_known_is_never_asked_again(self, mixture, randn64):
        x = randn64(4, 2)
        a = ask_at(binding(mixture, Batching()), x)
        a.view(rows(3, 1))(NULL)
        a.view(rows(0, 1))(NULL)  # one more row
        assert (a.calls, a.evaluated) == (2, 3)
        assert a.view(rows(0, 3)).peek(NULL) is not None
        assert a.peek(NULL) is None
        assert a.view(rows(2)).peek(NULL) is None
        (u,) = a(NULL)
        assert (a.calls, a.evaluated) == (3, 4)
        torch.testing.assert_close(u.x0, exact(mixture, x, 2).x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(u.eps, exact(mixture, x, 2).eps, rtol=1e-12, atol=1e-12)

    def test_whole_and_partial_branches_share_a_call(self, mixture, randn64):
        x = randn64(4, 2)
        a = ask_at(binding(mixture, Batching()), x)
        a.answers.fetch(((COND, None), (NULL, rows(2))))
        assert (a.calls, a.evaluated) == (1, 5)
        (u,) = a.view(rows(2))(NULL)
        torch.testing.assert_close(u.x0, exact(mixture, x[2:3], 2).x0, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a(COND)[0].x0, exact(mixture, x, self.labels).x0, rtol=1e-12, atol=1e-12)

    def test_renamed_networks(self, mixture, randn64):
        x, b = randn64(4, 2), binding(mixture, Batching(), weak=mixture(Trig(), d=2), third=mixture(Trig(), d=2))
        a = ask_at(b, x)
        view = a.view(nets={"main": "weak"}).view(rows(0), {"weak": "third"})
        view(COND)
        view(Query("cond", "weak"))
        assert a.peek(Query("cond", "weak")) is None
        assert a.view(rows(0)).peek(Query("cond", "weak")) is not None
        assert a.view(rows(0)).peek(Query("cond", "third")) is not None
        assert a.view(rows(0)).peek(COND) is None

    def test_spaces(self, mixture, randn64):
        x = randn64(4, 2)
        b = Binding({"main": mixture(Trig(), d=2, kind="x0")}, {"cond": {"label": 1}}, 4, CPU, Batching())
        a = ask_at(b, x, [0.1, 0.3, 0.5, 0.7])
        (c,) = a(COND)
        torch.testing.assert_close(a.express(c.x0, "eps"), c.eps, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(a.express(c.x0, "native"), c.x0, rtol=1e-10, atol=1e-10)
        for space in ("x0", "eps", "native"):
            torch.testing.assert_close(a.recover(a.express(c.x0, space), space), c.x0, rtol=1e-10, atol=1e-10)

    def test_supplied_answers_are_not_evaluated(self, mixture, randn64):
        x = randn64(4, 2)
        a = ask_at(binding(mixture, Batching()), x)
        mine = a.point(torch.full_like(x, 7.0))
        a.supply(NULL, mine, rows(0, 2))
        (u,) = a(NULL)
        assert (a.calls, a.evaluated) == (1, 2)
        assert bool((u.x0[[0, 2]] == 7).all())
        torch.testing.assert_close(u.x0[[1, 3]], exact(mixture, x[[1, 3]], 2).x0, rtol=1e-12, atol=1e-12)
        b = ask_at(binding(mixture, Batching()), x)
        b.answers.fetch(((NULL, rows(1, 2, 3)),))
        b.supply(NULL, mine, mask=torch.tensor([True, False, True, False]))
        torch.testing.assert_close(b(NULL)[0].x0, u.x0, rtol=1e-12, atol=1e-12)


class TestGradients:
    grad = Query("cond", grad=True)

    def test_pull_is_the_gradient_and_the_twin_is_served(self, mixture, randn64):
        x = randn64(4, 2)
        a = ask_at(binding(mixture, Batching()), x)
        with torch.no_grad():
            a(COND, NULL, self.grad)
            assert (a.calls, a.evaluated) == (2, 8)
            (c,) = a(self.grad)
            assert not a(COND)[0].x0.requires_grad
            with torch.enable_grad():
                energy = c.x0.square().sum(1) + c.eps.sum(1)
            got = a.pull(energy)
        leaf = x.clone().requires_grad_()
        want = exact(mixture, leaf, torch.tensor([0, 1, 0, 1]))
        (g,) = torch.autograd.grad(want.x0.square().sum() + want.eps.sum(), leaf)
        torch.testing.assert_close(got, g, rtol=1e-10, atol=1e-10)

    def test_partial_rows(self, mixture, randn64):
        x = randn64(4, 2)
        a = ask_at(binding(mixture, Batching()), x)
        with torch.no_grad():
            a.answers.fetch(((self.grad, rows(1, 2)),))
            a.answers.fetch(((COND, None),))
            assert (a.calls, a.evaluated) == (2, 4)
            view = a.view(rows(2))
            (pred,) = view(self.grad)
            with torch.enable_grad():
                got = view.pull(pred.x0.square().sum(1))
            c = a(COND)[0].x0
        leaf = x[2:3].clone().requires_grad_()
        (g,) = torch.autograd.grad(exact(mixture, leaf, 0).x0.square().sum(), leaf)
        torch.testing.assert_close(got, g, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(c, exact(mixture, x, torch.tensor([0, 1, 0, 1])).x0, rtol=1e-12, atol=1e-12)

    def test_beside_the_network(self, mixture, randn64):
        x = randn64(4, 2)
        a = ask_at(binding(mixture, Batching()), x)
        with torch.no_grad():
            view = a.view(rows(0, 3))
            with torch.enable_grad():
                got = view.pull(view.leaf.pow(3).sum(1))
        torch.testing.assert_close(got, 3 * x[[0, 3]].square(), rtol=1e-12, atol=1e-12)
        assert a.calls == 0


class TestBatching:
    def test_split(self):
        q, sizes = ["a", "b", "c"], [4, 4, 4]
        assert Batching().split(q, sizes, 10) == [q]
        assert Batching(merge_below=80).split(q, sizes, 10) == [["a", "b"], ["c"]]
        assert Batching(merge_below=79).split(q, sizes, 10) == [["a"], ["b"], ["c"]]
        assert Batching(max_rows=2).split(q, sizes, 10) == [["a"], ["b"], ["c"]]
        assert Batching(max_rows=6).split(q, [4, 1, 1], 10) == [q]
        assert Batching(max_rows=5).split(q, [4, 1, 1], 10) == [["a", "b"], ["c"]]

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


@pytest.mark.parametrize("t", [0.4, [0.1, 0.3, 0.5, 0.7]])
@pytest.mark.parametrize("index", [None, (1, 3)])
def test_a_condition_made_at_the_point_is_answered_and_counted(mixture, randn64, t, index):
    x, b = randn64(4, 2), binding(mixture, Batching(), weak=mixture(Trig(), d=2, spread=0.3))
    a = ask_at(b, x, t)
    rows = list(range(4)) if index is None else list(index)
    view = a.view(None if index is None else Rows.of(index, CPU), {"main": "weak"})
    got = view.told("main", {"label": torch.tensor([1, 0, 2, 1])[rows]})
    times = torch.as_tensor(t, dtype=torch.float64).expand(4)
    want = b.nets["weak"](x, times, {"label": torch.tensor([1, 0, 2, 1])}).take(torch.tensor(rows))
    torch.testing.assert_close(got.x0, want.x0, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.eps, want.eps, rtol=1e-12, atol=1e-12)
    assert (a.calls, a.evaluated) == (1, len(rows))


def test_where_a_step_lands_is_known_on_a_grid_only(mixture, randn64):
    with pytest.raises(UnsupportedError, match="fixed grid"):
        _ = ask_at(binding(mixture, Batching()), randn64(4, 2)).landing
