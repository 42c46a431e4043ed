r"""Every network evaluation goes through an `Ask`: one noisy point, questions by name, answers kept.

What several askers want at the same point is evaluated once; what is missing is grouped by network and concatenated
into as few calls as the batching policy allows. A `view` asks for fewer rows of the batch, or has "main" mean
another network; all views of a point share its answers. Gradients are asked for by name too, with grad=True.

=========  ===============================================  ==========
symbol     meaning                                          shape
=========  ===============================================  ==========
x          the noisy points, at this view's rows            (b, *D)
levels     network name -> numbers of the level             () or (B,)
=========  ===============================================  ==========
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from wayfield.core.errors import UnsupportedError
from wayfield.core.predict import Prediction
from wayfield.core.shapes import expand
from wayfield.field.answers import Answers
from wayfield.field.binding import COND, Binding, Query, renamed
from wayfield.field.blend import at_point
from wayfield.field.denoiser import Landing, Level
from wayfield.field.rows import Rows

__all__ = ["Ask"]


_SAME: Mapping[str, str] = {}


@final
class Ask:
    """Questions about the points x (b, *D) at one noise level. Callable with queries; returns one `Prediction` each.

    origin: the query whose x0 guidance pushes from, see `base` / landing: the level that the step goes to, if known /
    answers: what all views of the point share.
    """

    __slots__ = ("_nets", "_own", "_x", "_x0", "answers", "origin", "rows")

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
        self._nets = _SAME
        self.answers = Answers(binding, x, levels, landing) if _of is None else _of.answers
        self._own: dict[Query, Prediction] = self.answers.full if _of is None else {}
        self._x0: dict[Query, Tensor] = self.answers.x0 if _of is None else {}
        self._x: Tensor | None = x if _of is None else None

    def view(self, rows: Rows | None = None, nets: Mapping[str, str] | None = None) -> Ask:
        """The same point for fewer rows of the batch (among this view's), or with networks renamed."""
        answers = self.answers
        out = Ask(answers.binding, answers.x, answers.levels, self.origin, _of=self)
        out.rows = self.rows if rows is None else rows
        out._nets = renamed(self._nets, nets)
        return out

    @property
    def x(self) -> Tensor:
        """The noisy points, (b, *D)."""
        if self._x is None:
            self._x = self._pick(self.answers.x)
        return self._x

    @property
    def binding(self) -> Binding:
        """The networks and conditions of the run."""
        return self.answers.binding

    @property
    def calls(self) -> int:
        """Network calls at this point so far."""
        return self.answers.calls

    @property
    def evaluated(self) -> int:
        """Rows in those calls."""
        return self.answers.rows

    @property
    def level(self) -> Level:
        """The numbers of the level of the main network, laid out over x."""
        level = self.answers.levels[self._nets.get("main", "main")]
        if not level.alpha.ndim:
            return level
        return level.map(lambda c: expand(self._pick(c), self.x))

    @property
    def landing(self) -> Landing:
        """Where the step goes. Raises UnsupportedError in runs without a fixed grid."""
        if self.answers.landing is None:
            remedy = "Use a solver with a fixed grid."
            raise UnsupportedError("guidance that looks ahead", got="no grid", expected="a next level", remedy=remedy)
        return self.answers.landing

    @property
    def base(self) -> Tensor:
        """The x0-prediction that guidance pushes from, (b, *D)."""
        known = self._x0.get(self.origin)
        return self(self.origin)[0].x0 if known is None else known

    def __call__(self, *queries: Query) -> tuple[Prediction, ...]:
        """Answers in the order asked; only what is not yet known costs a network call."""
        own = self._own
        found = [own.get(q) for q in queries]
        if None in found:
            self._find([q for q in queries if q not in own])
            found = [own[q] for q in queries]
        return tuple(found)  # pyright: ignore[reportReturnType]

    def sides(self, plus: Query, minus: Query) -> tuple[Tensor, Tensor]:
        """Only the x0 of two answers, (b, *D) each, for those many who need no eps."""
        known = self._x0
        if plus in known and minus in known:
            return known[plus], known[minus]
        a, b = self(plus, minus)
        return a.x0, b.x0

    def told(self, net: str, cond: Mapping[str, Tensor]) -> Prediction:
        """The answer of a network to a condition made at this point: counted, but neither checked nor shared.

        cond: the network's fields, (b, ...) each, for this view's rows. Parts that ask so say it in `Part.extra`.
        """
        answers, real = self.answers, self._nets.get(net, net)
        level = answers.levels[real]
        answers.calls += 1
        answers.rows += len(self.x)
        level = level.map(self._pick) if level.alpha.ndim else level
        return answers.binding.nets[real].denoise(self.x, level, cond)

    def peek(self, query: Query) -> Prediction | None:
        """The answer if it is known for all of this view's rows, else None; never evaluates."""
        real = query._replace(net=self._nets.get(query.net, query.net))
        known = not self.answers.missing(((real, self.rows),))
        return self(query)[0] if known else None

    def known(self, query: Query) -> Ask | None:
        """The view of those of its rows at which a query has an answer; None if there are none."""
        if self.peek(query) is not None:
            return self
        some = self.answers.some.get(query._replace(net=self._nets.get(query.net, query.net)))
        if some is None or self.rows is None:
            return None if some is None else self.view(some[0])
        both = sorted(set(some[0].index) & set(self.rows.index))
        return self.view(Rows.of(both, self.x.device)) if both else None

    def supply(self, query: Query, answer: Prediction, rows: Rows | None = None, mask: Tensor | None = None) -> None:
        """An answer (B, *D) that no network gave, for some rows only if `rows` or `mask` (B,) says so."""
        answers, x0 = self.answers, answer.x0
        if mask is None:
            answers.keep(query, rows, answer if rows is None else answer.take(rows.tensor))
            return
        if query in answers.x0:
            x0 = torch.where(expand(mask, x0), x0, answers.x0[query])
        elif query in answers.some:
            known, net = answers.some.pop(query)
            mine = torch.where(expand(mask[known.tensor], net.x0), x0[known.tensor], net.x0)
            x0 = x0.index_copy(0, known.tensor, mine)
        answers.keep(query, None, Ask(answers.binding, answers.x, answers.levels).point(x0))

    def point(self, x0: Tensor) -> Prediction:
        """The pair whose x0 is given and whose eps is the one this point then has; eps is computed when first used."""
        level = self.answers.levels[self._nets.get("main", "main")]
        return at_point(x0, self.x, level.map(self._pick) if level.alpha.ndim else level)

    def express(self, x0: Tensor, space: str) -> Tensor:
        """x0 in another space at this point: "x0", "eps", or "native", what the main network answers with."""
        return x0 if space == "x0" else self.level.express(x0, self.x, space)

    def recover(self, y: Tensor, space: str) -> Tensor:
        """The x0 behind `express(x0, space)`."""
        return y if space == "x0" else self.level.recover(y, self.x, space)

    def column(self, values: tuple[float, ...]) -> Tensor:
        """One number per sample of the whole batch, at this view's rows and laid out over x: (b, 1, ...)."""
        return expand(self._pick(self.binding.column(values, self.answers.x)), self.x)

    @property
    def leaf(self) -> Tensor:
        """The noisy points (b, *D) as a function of what `pull` differentiates in."""
        with torch.enable_grad():
            return self._pick(self.answers.leaf())

    def pull(self, scalars: Tensor) -> Tensor:
        """The gradient in the noisy points, (b, *D), of scalars (b,) made from `leaf` or from gradient queries."""
        again, ones = torch.is_grad_enabled(), torch.ones_like(scalars)
        (g,) = torch.autograd.grad(scalars, self.answers.leaf(), ones, retain_graph=True, create_graph=again)
        return self._pick(g)

    def _find(self, missing: list[Query]) -> None:
        """Make these answers known to this view."""
        real = [q._replace(net=self._nets.get(q.net, q.net)) for q in missing] if self._nets else missing
        for grad in sorted({q.grad for q in real}, reverse=True):  # a gradient query serves its plain twin
            self.answers.fetch(tuple([(q, self.rows) for q in real if q.grad == grad]))
        self._own.update({q: self.answers.get(r, self.rows) for q, r in zip(missing, real, strict=True)})

    def _pick(self, x: Tensor) -> Tensor:
        return x if self.rows is None else x.index_select(0, self.rows.tensor)
