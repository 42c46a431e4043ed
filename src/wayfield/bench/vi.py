"""Suite "vi": what a gradient step of variational inference costs beside the same by hand, Pyro and Storchastic.

A step clears the gradients, computes a bound and runs backward, on one CPU thread. Everyone has the same networks, and
for the comparison the same draws: value and every gradient must agree before anything is timed. By hand means
torch.distributions written out for the one model, without handles or names. Arguments are not validated, which is work
for a first step only; "pyro, checks on" is Pyro as it comes, which validates in every step.

Cases: "vae" at batch 64 to 1024; "chain", ten latent sites; "mixture", one of ten clusters by enumeration; "air" with
REINFORCE, ENUM and MVD for its choices. Rows against "wayfield, REINFORCE" hold one strategy against another, whose
numbers agree in expectation only: the ratio of steps is that of epochs. `calls` counts runs of the body in a step,
`rows` those of the batch.

"compiled" is torch.compile as one graph, given eager's random numbers so that it can be compared as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from wayfield.bench import timing
from wayfield.bench.peers import peer
from wayfield.bench.timing import OutputsDifferError, Row, close, one_thread, spread
from wayfield.bench.vi_air import AIR, CANVAS, SCORE
from wayfield.bench.vi_models import VAE, Bound, Chain, Clusters, Model
from wayfield.core.errors import MissingExtraError
from wayfield.vi import MVD, Enum, Objective, Run
from wayfield.vi.objective import unvalidated
from wayfield.vi.seeding import seeded

__all__ = ["Case", "cases", "compete", "run"]

BATCHES, ROWS, SEED, BACKEND = (64, 128, 256, 512, 1024), 64, 0, "inductor"
OURS, HAND, PYRO, COMPILED = "wayfield", "by hand", "pyro", "wayfield, compiled"

Step = Callable[[], Tensor]
"""Clears the gradients, computes the bound, (), and runs backward."""


@final
@dataclass(frozen=True, eq=False)
class Case:
    """One model and its data. compiled: with rows of torch.compile / peers: beside by hand and other libraries /
    others: versions by another strategy, timed beside it without a comparison of numbers.
    """

    name: str
    model: Model
    x: Tensor
    compiled: bool = True
    peers: bool = True
    others: Mapping[str, Model] = field(default_factory=dict)


def run(quick: bool) -> list[Row]:
    """All cases; quick takes one batch of the VAE."""
    out: list[Row] = []
    for case in cases(BATCHES[:1] if quick else BATCHES):
        out += compete(case, 5 if quick else 40)
    return out


def cases(batches: tuple[int, ...] = BATCHES) -> Iterator[Case]:
    """Every case, with the same networks and data in every call."""
    generator = torch.Generator().manual_seed(SEED)
    with seeded(SEED):
        vae, chain, clusters, air = VAE(), Chain(), Clusters(), AIR(SCORE)
    for batch in batches:
        yield Case(f"vae, batch {batch}", vae, (torch.rand(batch, 784, generator=generator) < 0.5).float())
    yield Case("chain, ten sites", chain, torch.randn(ROWS, generator=generator))
    yield Case("mixture, enumerated", clusters, torch.randn(2 * ROWS, 32, generator=generator))
    x = torch.rand(ROWS, CANVAS, CANVAS, generator=generator)
    yield Case("air, REINFORCE", air, x)
    beside = {f"{OURS}, REINFORCE": air}
    yield Case("air, ENUM", air.by(Enum()), x, compiled=False, others=beside)
    yield Case("air, MVD", air.by(MVD()), x, compiled=False, peers=False, others=beside)


def compete(case: Case, rounds: int, warmups: int = 3) -> list[Row]:
    """Compare numbers, then times. Raises OutputsDifferError, naming the peer, before anything is timed."""
    weights = list(case.model.parameters())
    steps = {OURS: _wayfield(case.model, case.x)}
    if case.peers:
        steps |= {HAND: _step(weights, case.model.by_hand, case.x), **_libraries(case, weights)}
    with one_thread(), _unchecked():
        if case.compiled:
            steps |= _compiled(case, weights)
        wanted = _numbers(steps[OURS], weights)
        for name, step in steps.items():
            _agree(case.name, name, _numbers(step, weights), wanted)
        steps |= {name: _wayfield(other, case.x) for name, other in case.others.items()}
        taken = timing.interleaved(list(steps.values()), rounds, warmups=warmups)
    times, calls = dict(zip(steps, taken, strict=True)), runs_of_the_body(case.model.objective(), case.x)
    return [Row(case.name, a, b, *spread(times[a], times[b]), calls, len(case.x)) for a, b in _pairs(steps)]


def runs_of_the_body(objective: Objective, x: Tensor) -> int:
    """How often one call runs the objective's body, once its first call has checked it."""
    count = 0

    def body(run: Run, *args: Any) -> Tensor:
        nonlocal count
        count += 1
        return objective.body(run, *args)

    counted = replace(objective, body=body)
    counted(x, seed=SEED)
    count = 0
    counted(x, seed=SEED)
    return count


def _pairs(steps: Mapping[str, Step]) -> list[tuple[str, str]]:
    """Subject and peer of every row."""
    plain = [(OURS, name) for name in steps if name != OURS and not name.endswith("compiled")]
    return plain + [(COMPILED, name) for name in (HAND, f"{HAND}, compiled", PYRO) if {COMPILED, name} <= steps.keys()]


def _step(weights: list[nn.Parameter], bound: Bound, x: Tensor) -> Step:
    def step() -> Tensor:
        for w in weights:
            w.grad = None
        value = bound(x)
        value.backward()
        return value

    return step


def _wayfield(model: Model, x: Tensor) -> Step:
    """As a user calls it, seed included, once the first call has checked it."""
    objective = model.objective()
    objective(x, seed=SEED)
    return _step(list(model.parameters()), lambda x: objective(x, seed=SEED).surrogate, x)


def _compiled(case: Case, weights: list[nn.Parameter]) -> dict[str, Step]:
    """The surrogate and the loop by hand, one graph each; none, with a warning, where this machine cannot compile."""
    torch.compiler.reset()
    objective, by_hand = case.model.objective(), case.model.by_hand
    objective(case.x, seed=SEED)
    options: dict[str, Any] | None = {"fallback_random": True} if BACKEND == "inductor" else None
    ours, hand = (
        torch.compile(f, fullgraph=True, dynamic=False, backend=BACKEND, options=options)
        for f in (lambda x: objective.surrogate(x), lambda x: by_hand(x))
    )

    def seeding(x: Tensor) -> Tensor:
        with seeded(SEED), unvalidated():
            return ours(x)

    steps = {COMPILED: _step(weights, seeding, case.x), f"{HAND}, compiled": _step(weights, hand, case.x)}
    try:
        for step in steps.values():
            step()
    except RuntimeError as error:
        print(f"warning: {case.name}: no rows for compiled: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        return {}
    return steps


def _libraries(case: Case, weights: list[nn.Parameter]) -> dict[str, Step]:
    """The other libraries that are installed and have the model."""
    out: dict[str, Step] = {}
    try:
        pyro, bound = peer("pyro"), case.model.pyro()
    except MissingExtraError as error:
        print(f"warning: {case.name}: no row for pyro: {error}", file=sys.stderr)
    else:

        def checking(x: Tensor) -> Tensor:
            with pyro.validation_enabled(True):
                return bound(x)

        out = {PYRO: _step(weights, bound, case.x), f"{PYRO}, checks on": _step(weights, checking, case.x)}
    if isinstance(case.model, VAE):
        try:
            step = case.model.storchastic(case.x)
        except MissingExtraError as error:
            print(f"warning: {case.name}: no row for storchastic: {error}", file=sys.stderr)
        else:
            out["storchastic"] = step
    return out


@contextmanager
def _unchecked() -> Iterator[None]:
    """Nobody validates arguments; Pyro, where installed, neither its own things."""
    with unvalidated():
        try:
            pyro = peer("pyro")
        except MissingExtraError:
            yield
            return
        with pyro.validation_enabled(False):
            yield


def _numbers(step: Step, weights: list[nn.Parameter]) -> list[Tensor]:
    """Value and gradients of a step whose draws start from the seed."""
    with seeded(SEED):
        value = step()
    return [value.detach(), *(w.new_zeros(()) if w.grad is None else w.grad for w in weights)]


def _agree(case: str, name: str, got: list[Tensor], wanted: list[Tensor]) -> None:
    """Each to 1e-4 of its own largest number: rounding in single precision."""
    if all(close(a.reshape(-1), b.reshape(-1)) for a, b in zip(got, wanted, strict=True)):
        return
    raise OutputsDifferError(
        f"case {case!r}",
        got=f"another value or gradient from {name!r}, value {float(got[0]):.6g}",
        expected=f"that of wayfield, {float(wanted[0]):.6g}",
        remedy="Give both the same networks, data and draws.",
    )
