r"""Every network evaluation goes through an `Ask`: one noisy point, questions by name, answers kept.

What several askers want at the same point is evaluated once; what is missing is grouped by network and concatenated
into as few calls as the batching policy allows. Calls and rows are counted here and nowhere else. A `view` asks for
fewer rows of the batch, or has "main" mean another network; all views of a point share its answers. Gradients are
asked for by name too: queries with grad=True are evaluated apart, under autograd, and also serve whoever wants the
same without.

=========  ===============================================  ==========
symbol     meaning                                          shape
=========  ===============================================  ==========
x          the noisy points, at this view's rows            (b, *D)
levels     network name -> numbers of the level             () or (B,)
=========  ===============================================  ==========
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import UnsupportedError
from wayfield.core.predict import Prediction, with_graph
from wayfield.core.shapes import expand
from wayfield.field.binding import COND, Binding, Call, Query, Want, renamed
from wayfield.field.denoiser import Landing, Level
from wayfield.field.mixture import at_point
from wayfield.field.rows import Rows

__all__ = ["Ask"]


class _Memo:
    """What all views of one point share. full: answers for the whole batch / some: for known rows of it."""

    __slots__ = ("binding", "calls", "full", "landing", "leaf", "levels", "rows", "some", "x")

    def __init__(self, binding: Binding, x: Tensor, levels: Mapping[str, Level], landing: Landing | None) -> None:
        self.binding, self.x, self.levels, self.landing = binding, x, levels, landing
        self.calls = self.rows = 0
        self.full: dict[Query, Prediction] = {}
        self.some: dict[Query, tuple[Rows, Prediction]] = {}
        self.leaf: Tensor | None = None


@final
class Ask:
    """Questions about the points x (b, *D) at one noise level. Callable with queries; returns one `Prediction` each.

    origin: the query whose x0 guidance pushes from, see `base` / landing: the level that the step goes to, if known.
    """

    __slots__ = ("_memo", "_nets", "_own", "_x", "origin", "rows")

    def __init__(
        self,
        binding: Binding,
        x: Tensor,
        levels: Mapping[str, Level],
        origin: Query = COND,
        landing: Landing | None = None,
        *,
        _of: Ask | None = None,
    ) -> None:
        self.origin = origin
        self.rows: Rows | None = None
        self._nets: Mapping[str, str] = {}
        self._memo = _Memo(binding, x, levels, landing) if _of is None else _of._memo
        self._own: dict[Query, Prediction] = self._memo.full if _of is None else {}
        self._x: Tensor | None = x if _of is None else None

    def view(self, rows: Rows | None = None, nets: Mapping[str, str] | None = None) -> Ask:
        """The same point for fewer rows of the batch (among this view's), or with networks renamed."""
        memo = self._memo
        out = Ask(memo.binding, memo.x, memo.levels, self.origin, _of=self)
        out.rows = self.rows if rows is None else rows
        out._nets = renamed(self._nets, nets)
        return out

    @property
    def x(self) -> Tensor:
        """The noisy points, (b, *D)."""
        if self._x is None:
            self._x = self._pick(self._memo.x)
        return self._x

    @property
    def binding(self) -> Binding:
        """The networks and conditions of the run."""
        return self._memo.binding

    @property
    def calls(self) -> int:
        """Network calls at this point so far."""
        return self._memo.calls

    @property
    def evaluated(self) -> int:
        """Rows in those calls."""
        return self._memo.rows

    @property
    def level(self) -> Level:
        """The numbers of the level of the main network, laid out over x."""
        level = self._memo.levels[self._nets.get("main", "main")]
        if not level.alpha.ndim:
            return level
        return level.map(lambda c: expand(self._pick(c), self.x))

    @property
    def landing(self) -> Landing:
        """Where the step goes. Raises UnsupportedError in runs without a fixed grid."""
        if self._memo.landing is None:
            remedy = "Use a solver with a fixed grid."
            raise UnsupportedError("guidance that looks ahead", got="no grid", expected="a next level", remedy=remedy)
        return self._memo.landing

    @property
    def base(self) -> Tensor:
        """The x0-prediction that guidance pushes from, (b, *D)."""
        return self(self.origin)[0].x0

    def __call__(self, *queries: Query) -> tuple[Prediction, ...]:
        """Answers in the order asked; only what is not yet known costs a network call."""
        own, missing = self._own, []
        for query in queries:
            if query not in own:
                missing.append(query)
        if missing:
            real = [q._replace(net=self._nets.get(q.net, q.net)) for q in missing] if self._nets else missing
            for grad in sorted({q.grad for q in real}, reverse=True):  # a gradient query serves its plain twin
                self.fetch(tuple([(q, self.rows) for q in real if q.grad == grad]))
            if own is not self._memo.full:
                own.update({q: self._answer(r) for q, r in zip(missing, real, strict=True)})
        return tuple([own[q] for q in queries])

    def fetch(self, wants: tuple[Want, ...]) -> None:
        """Evaluate what is not yet known of queries (networks by their real names) for rows of the whole batch."""
        memo = self._memo
        if memo.full or memo.some:
            wants = self._missing(wants)
        if wants:
            self.run(memo.binding.layout(wants, memo.x))

    def run(self, calls: tuple[Call, ...]) -> None:
        """Make network calls of things not known yet."""
        for call in calls:
            self._evaluate(call)

    def told(self, net: str, cond: Mapping[str, Tensor]) -> Prediction:
        """The answer of a network to a condition made at this point: counted, but neither checked nor shared.

        cond: the network's fields, (b, ...) each, for this view's rows. Parts that ask so say it in `Part.extra`.
        """
        memo, real = self._memo, self._nets.get(net, net)
        level = memo.levels[real]
        memo.calls += 1
        memo.rows += len(self.x)
        return memo.binding.nets[real].denoise(self.x, level if not level.alpha.ndim else level.map(self._pick), cond)

    def peek(self, query: Query) -> Prediction | None:
        """The answer if it is known for all of this view's rows, else None; never evaluates."""
        real = query._replace(net=self._nets.get(query.net, query.net))
        known = not self._missing(((real, self.rows),))
        return self(query)[0] if known else None

    def known(self, query: Query) -> Ask | None:
        """The view of those of its rows at which a query has an answer; None if there are none."""
        if self.peek(query) is not None:
            return self
        some = self._memo.some.get(query._replace(net=self._nets.get(query.net, query.net)))
        if some is None or self.rows is None:
            return None if some is None else self.view(some[0])
        both = sorted(set(some[0].index) & set(self.rows.index))
        return self.view(Rows.of(both, self.x.device)) if both else None

    def supply(self, query: Query, answer: Prediction, rows: Rows | None = None, mask: Tensor | None = None) -> None:
        """An answer (B, *D) that no network gave, for some rows only if `rows` or `mask` (B,) says so."""
        memo, x0 = self._memo, answer.x0
        if mask is None:
            self._keep(query, rows, answer if rows is None else answer.take(rows.tensor))
            return
        if query in memo.full:
            x0 = torch.where(expand(mask, x0), x0, memo.full[query].x0)
        elif query in memo.some:
            known, net = memo.some.pop(query)
            mine = torch.where(expand(mask[known.tensor], net.x0), x0[known.tensor], net.x0)
            x0 = x0.index_copy(0, known.tensor, mine)
        memo.full[query] = Ask(memo.binding, memo.x, memo.levels).point(x0)

    def point(self, x0: Tensor) -> Prediction:
        """The pair whose x0 is given and whose eps is the one this point then has; eps is computed when first used."""
        return at_point(x0, self.x, self.level)

    def express(self, x0: Tensor, space: str) -> Tensor:
        """x0 in another space at this point: "x0", "eps", or "native", what the main network answers with."""
        return x0 if space == "x0" else self.level.express(x0, self.x, space)

    def recover(self, y: Tensor, space: str) -> Tensor:
        """The x0 behind `express(x0, space)`."""
        return y if space == "x0" else self.level.recover(y, self.x, space)

    def column(self, values: tuple[float, ...]) -> Tensor:
        """One number per sample of the whole batch, at this view's rows and laid out over x: (b, 1, ...)."""
        return expand(self._pick(self.binding.column(values, self._memo.x)), self.x)

    @property
    def leaf(self) -> Tensor:
        """The noisy points (b, *D) as a function of what `pull` differentiates in."""
        with torch.enable_grad():
            return self._pick(self._leaf())

    def pull(self, scalars: Tensor) -> Tensor:
        """The gradient in the noisy points, (b, *D), of scalars (b,) made from `leaf` or from gradient queries."""
        again, ones = torch.is_grad_enabled(), torch.ones_like(scalars)
        (g,) = torch.autograd.grad(scalars, self._leaf(), ones, retain_graph=True, create_graph=again)
        return self._pick(g)

    def _leaf(self) -> Tensor:
        memo = self._memo
        if memo.leaf is None:
            memo.leaf = memo.x if memo.x.requires_grad else memo.x.detach().requires_grad_()
        return memo.leaf

    def _pick(self, x: Tensor) -> Tensor:
        return x if self.rows is None else x.index_select(0, self.rows.tensor)

    def _answer(self, query: Query) -> Prediction:
        """A known answer at this view's rows. query: with the real name of its network."""
        known, pred = None, self._memo.full.get(query)
        if pred is None:
            known, pred = self._memo.some[query]
        if self.rows is None or known == self.rows:
            return pred
        index = self.rows.within(known)
        return pred.take(index) if not query.grad else with_graph(lambda: pred.take(index))

    def _missing(self, wants: tuple[Want, ...]) -> tuple[Want, ...]:
        """What of these wants is not known yet."""
        memo, out = self._memo, []
        for query, rows in wants:
            if query in memo.full:
                continue
            if query not in memo.some:
                out.append((query, rows))
                continue
            known = set(memo.some[query][0].index)
            wanted = range(memo.binding.batch) if rows is None else rows.index
            rest = [k for k in wanted if k not in known]
            if rest:
                out.append((query, Rows.of(rest, memo.x.device)))
        return tuple(out)

    def _evaluate(self, call: Call) -> None:
        memo = self._memo
        memo.calls += 1
        memo.rows += sum(call.sizes)
        if not call.wants[0][0].grad:
            pair = call.denoise(memo.x, memo.levels)
            self._keep(*call.wants[0], pair) if len(call.sizes) == 1 else self._share(call, pair)
            return
        pair = with_graph(lambda: call.denoise(self._leaf(), memo.levels))
        for k, (query, rows) in enumerate(call.wants):
            pred = with_graph(lambda k=k: pair.map(lambda y: y.split_with_sizes(call.sizes)[k]))
            self._keep(query, rows, pred)
            twin = query._replace(grad=False)
            if twin not in memo.full and twin not in memo.some:  # it serves who wants the same without
                self._keep(twin, rows, pred.map(_settled))

    def _share(self, call: Call, pair: Prediction) -> None:
        sizes = call.sizes
        for i, x0 in enumerate(pair.x0.split_with_sizes(sizes)):
            self._keep(*call.wants[i], Prediction(x0, lambda i=i: pair.eps.split_with_sizes(sizes)[i], pair.tied))

    def _keep(self, query: Query, rows: Rows | None, pred: Prediction) -> None:
        """Remember an answer, joined in rising order with what was known for other rows."""
        memo = self._memo
        if rows is None:
            memo.full[query] = pred
            return
        if query in memo.some:
            known, before = memo.some[query]
            both = known.index + rows.index
            order = torch.tensor(sorted(range(len(both)), key=both.__getitem__), device=memo.x.device)
            rows = Rows.of(both, memo.x.device)
            joined = functools.partial(lambda new: before.join(new).take(order), pred)
            pred = with_graph(joined) if query.grad else joined()
        memo.some[query] = (rows, pred)
        if len(rows.index) == memo.binding.batch:
            memo.full[query] = memo.some.pop(query)[1]


def _settled(x: Tensor) -> Tensor:
    """Without the graph of a gradient query, unless the run as a whole is differentiated."""
    return x if torch.is_grad_enabled() else x.detach()
