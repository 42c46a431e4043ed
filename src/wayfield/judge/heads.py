r"""Heads: what becomes of a judge's answers when they are to rank points, and how a judge learns to give such answers.

============  =======================================================  =================================================
head          score e(x_t, t, y), higher is better                     loss
============  =======================================================  =================================================
`Labels`      log p(y | x_t)                                           cross-entropy
`Captions`    V(x_t, t) . T(y), unit vectors: two towers               both ways, which belongs to which (CLIP)
`Realism`     logit of "real, not generated"                           binary cross-entropy
`Preference`  a reward                                                 -log sigmoid(e(x_t+) - e(x_t-)), the same t and
                                                                       noise for both
`Rating`      a rating                                                 squared error
============  =======================================================  =================================================

x_t: (m, *D) / V, T: (m, E). Where losses are weighed by alpha^2 / (alpha^2 + sigma^2) is for the trainer to say.

Reference: Radford et al. 2021, arXiv 2103.00020 (two towers); Bradley & Terry 1952 (preferences).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wayfield.core.errors import ConditionError
from wayfield.field.cond import Cond
from wayfield.field.nets.layers import initialise

__all__ = ["Captions", "Head", "Labels", "Preference", "Rating", "Realism"]


class Head(nn.Module):
    """What becomes of a judge's answers. pairs: whether it learns from pairs of data, the better first."""

    pairs = False

    @abstractmethod
    def forward(self, answer: Tensor, cond: Cond) -> Tensor:
        """Scores (m,) from answers (m, K) and the rows of the condition."""

    @abstractmethod
    def loss(self, answer: Tensor, target: Any) -> Tensor:
        """The loss of each row, (n,)."""


@final
class Labels(Head):
    """log p(y | x_t) of a class. of: the classes (m,) that a condition asks for / null: the one that means "none" and
    scores 0 / targets: classes (n,). A class that the judge does not have scores NaN, which a run refuses.
    """

    def __init__(self, of: Callable[[Cond], Tensor], null: int | None = None) -> None:
        super().__init__()
        self.of, self.null = of, null

    def forward(self, answer: Tensor, cond: Cond) -> Tensor:
        """See `Head`."""
        label = self.of(cond)
        known = label.clamp(0, answer.shape[1] - 1)
        score = torch.where(label == known, answer.log_softmax(1).gather(1, known[:, None])[:, 0], math.nan)
        return score if self.null is None else torch.where(label == self.null, 0, score)

    def loss(self, answer: Tensor, target: Any) -> Tensor:
        """See `Head`."""
        return F.cross_entropy(answer, target, reduction="none")


@final
class Captions(Head):
    """V(x_t, t) . T(y), with the text tower T: the sum of embedded tokens at their places, and a hidden layer.

    field: of the condition, tokens (m, L) of `values` kinds / width: E, the numbers of the judge's answer / targets:
    tokens (n, L); rows with the same tokens belong together.
    """

    def __init__(self, field: str, length: int, values: int, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.field, self.length, self.values = field, length, values
        self.words = nn.Linear(length * values, 2 * width)
        self.text = nn.Linear(2 * width, width)
        initialise(self, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # a linear layer would start with the scale of dense inputs; of these, L are 1
            self.words.weight.normal_(0, length**-0.5, generator=generator)
            self.text.weight.normal_(0, (2 * width) ** -0.5, generator=generator)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, answer: Tensor, cond: Cond) -> Tensor:
        """See `Head`."""
        if self.field not in cond:
            remedy = "Name the field that holds the prompt's tokens."
            raise ConditionError("condition of Captions", got=sorted(cond), expected=self.field, remedy=remedy)
        return (F.normalize(answer, dim=1) * self.told(cond[self.field]).to(answer)).sum(1)

    def told(self, tokens: Tensor) -> Tensor:
        """T, unit vectors (m, E)."""
        hot = tokens[:, :, None] == torch.arange(self.values, device=tokens.device)  # one_hot would read the device
        return F.normalize(self.text(self.words(hot.flatten(1).to(self.words.weight)).relu()), dim=1)

    def loss(self, answer: Tensor, target: Any) -> Tensor:
        """See `Head`."""
        near = self.log_scale.clamp(max=math.log(100.0)).exp() * F.normalize(answer, dim=1) @ self.told(target).T
        same = (target[:, None] == target[None]).all(2).to(near)
        truth = same / same.sum(1, keepdim=True)
        return -0.5 * ((truth * near.log_softmax(1)).sum(1) + (truth * near.T.log_softmax(1)).sum(1))


@final
class Realism(Head):
    """The logit of "real". targets: (n,), 1 for real and 0 for generated."""

    def forward(self, answer: Tensor, cond: Cond) -> Tensor:
        """See `Head`."""
        return answer[:, 0]

    def loss(self, answer: Tensor, target: Any) -> Tensor:
        """See `Head`."""
        return F.binary_cross_entropy_with_logits(answer[:, 0], target.to(answer), reduction="none")


@final
class Preference(Head):
    """A reward, learned from pairs (n, 2, *D) of data, the preferred first; targets are not read."""

    pairs = True

    def forward(self, answer: Tensor, cond: Cond) -> Tensor:
        """See `Head`."""
        return answer[:, 0]

    def loss(self, answer: Tensor, target: Any) -> Tensor:
        """See `Head`. answer: (n, 2, 1), of the preferred and of the other."""
        return F.softplus(answer[:, 1, 0] - answer[:, 0, 0])


@final
class Rating(Head):
    """A rating. targets: (n,), higher is better."""

    def forward(self, answer: Tensor, cond: Cond) -> Tensor:
        """See `Head`."""
        return answer[:, 0]

    def loss(self, answer: Tensor, target: Any) -> Tensor:
        """See `Head`."""
        return (answer[:, 0] - target).square()
