r"""One guidance for the first steps and another for the rest, which remembers from the first step on.

The first steps set the composition and may want a low plain scale; later ones can bear a high one under projection,
whose momentum sums the contrasts of all steps and should be there when it is first needed. Two gates side by side would
begin with an empty memory.

.. math:: \text{push} = \begin{cases} \text{first} & i < n_0 \\ \text{then} & i \ge n_0 \end{cases}
   \;=\; \text{then} + (\text{first} - \text{then}) [i < n_0]

Both copies of `then` remember the same in the first steps, and cancel up to rounding; afterwards the second stands
still. In the first steps what both terms ask is evaluated.

"APG mix", diffusers' guider for HunyuanImage 2.1, with its default numbers::

    handover(CFG(3.5), apg(10, r=10, beta=-0.5, variant="uncond_base"), 6)

Its start step, 5, is the last plain step, hence 6. Deviation: it projects what the network answers with, there a
velocity; `apg` is in x0, as its paper has it. With a network that predicts x0 the two agree.
"""

from __future__ import annotations

from wayfield.guide.terms import Term, check_part
from wayfield.guide.window import Unit, Window

__all__ = ["handover"]


def handover(first: Term, then: Term, steps: float, *, unit: Unit = "steps") -> Term:
    """`first` for some first steps, `then` after them, which remembers from the first step on.

    steps: how many, a whole number, or a share of the run, rounded down / unit: of `steps`, "steps" or "share".
    Raises DTypeError for what is no term, RangeError, UnknownNameError.
    """
    check_part("term", first, Term)
    check_part("term", then, Term)
    return then + (first - then).when(Window(0, steps, unit))
