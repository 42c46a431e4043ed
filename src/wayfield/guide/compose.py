r"""Several conditions at once: AND with positive weights, NOT with negative ones.

For conditions that are independent given the data, p(x | c_1, ..., c_K) is p(x) times the product of p(c_k | x), up to
a constant. Each factor is what its conditional prediction adds to the unconditional one; it can be weighted or divided
out.

.. math:: \hat{x}_0 = u + \sum_k w_k (c_k - u) \qquad\Longleftrightarrow\qquad
   \nabla \log p = \nabla \log p(x) + \sum_k w_k \nabla \log p(c_k | x)

u: the unconditional x0 (b, *D) / c_k: the x0 under condition k / w_k > 0: that condition holds, 1 is Bayes' rule and
more sharpens it / w_k < 0: it does not. One condition of weight w is `CFG(w)`. At one noise level this is exact; along
a run it is a heuristic, since diffusing a product of densities is not the product of diffused ones.

Reference: Liu et al. 2022, arXiv 2206.01714, conjunction and negation, written there in epsilon.
"""

from __future__ import annotations

from collections.abc import Mapping

from wayfield.core.errors import UnsupportedError
from wayfield.field.binding import NULL
from wayfield.guide.contrast import Away
from wayfield.guide.guidance import Guidance
from wayfield.guide.terms import Factor, check_factor

__all__ = ["compose"]


def compose(weights: Mapping[str, Factor]) -> Guidance:
    """AND and NOT of conditions, x0 = u + sum_k w_k (c_k - u).

    weights: condition -> weight; "cond" is the run's main one, others are given to `sample` as `conds`; a tuple gives
    every sample its own weight. 1 + len(weights) rows a sample; a weight of 0 costs nothing. For shapers and gates take
    the `term` of the result and keep base=NULL.
    Raises RangeError for weights that are not finite numbers, UnsupportedError for none, or for "null" among them.
    """
    if not weights or "null" in weights:
        raise UnsupportedError(
            "conditions to compose",
            got=list(weights),
            expected="at least one, and not 'null'",
            remedy="The unconditional prediction is where all of them start from; name the others.",
        )
    first, *others = [check_factor(f"weight of {k!r}", w) * Away(NULL, of=k) for k, w in weights.items()]
    return Guidance(sum(others, start=first), base=NULL)
