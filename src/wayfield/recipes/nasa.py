"""NASA: does a negative prompt work inside a one-step model, where output guidance blends pictures?

Claim: subtracting the negative prompt's attention, at one strength chosen on another training seed, at least halves how
often the unwanted thing is drawn, costs at most 10 points of clear pictures, and beats guiding the output.

World: grey pictures of 16 x 16 with a disk, a square or a cross. A prompt is three words, [begin, kind, photo]; the
kind may also be "shape", and then a latent number decides in thirds which of the three is drawn, so what is right is
known. Student: one step from noise to picture; 64 patches of 2 x 2, width 64, 3 blocks of self-attention,
cross-attention (4 heads) and MLP; the four numbers that say what is drawn are the first pixels of the noise. Mean
squared error on fresh pairs, 4,000 steps of 128. Metrics, of 1,000 pictures for "shape" against each kind in turn, by a
classifier of clean pictures: the share of the unwanted kind, and the share of clear pictures, those with a confidence
above 0.9. Training seed 0 chooses alpha: the one that removes most among those that cost at most 10 points; the others
judge. Compared, from the same noise, are

    none         the prompt alone
    CFG w        (1 - w) f(unwanted) + w f(shape), w = 1.5 and 2.5: two calls' worth of rows
    embedding a  the prompt's embedding less a times the unwanted one's, a = 0.5 and 1
    NASA alpha   alpha = 0.05, 0.1, 0.2, 0.3, 0.5, 0.8 and 1

It may fail: the student has only ever seen one kind in a prompt. Bars were fixed before the first run.

Reference: Nguyen et al. 2024, SNOOPI, arXiv 2412.02687 (NASA).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wayfield import plots
from wayfield.core import grid as grids
from wayfield.core.path import Straight
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.field.nets.dit import sincos_places
from wayfield.field.nets.layers import Attention, initialise, table, zeroed
from wayfield.field.patch import install
from wayfield.guide.contrast import CFG
from wayfield.guide.guidance import Guidance
from wayfield.guide.nasa import NegativeAttention, negative
from wayfield.progress import track
from wayfield.recipes.report import Criterion, Report, at_least, at_most
from wayfield.sampling import sample

__all__ = ["run"]

CLAIM = (
    "Subtracting the negative prompt's attention inside a one-step model, at one strength chosen on another training "
    "seed, at least halves how often the unwanted thing is drawn, costs at most 10 points of clear pictures, and "
    "removes more than output guidance at equal or better quality."
)
KINDS = ("disk", "square", "cross")
BEGIN, PHOTO, SHAPE = 1, 6, 5
WORDS, WIDTH, SIDE = 3, 64, 16
ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0)
SCALES = (1.5, 2.5)
LESS = (0.5, 1.0)
ALLOWED = 0.1


@final
@dataclass(frozen=True)
class _Sizes:
    """steps, batch: of the student's training / reading: steps of the classifier's / samples: for each kind."""

    steps: int = 4000
    batch: int = 128
    reading: int = 1000
    samples: int = 1000


QUICK = _Sizes(30, 16, 30, 40)


def run(seeds: int = 4, quick: bool = False, out: FilePath = FilePath("runs/nasa")) -> Report:
    """The whole experiment. seeds: training seeds of the student, the first chooses alpha / quick: a small version that
    checks the machinery.
    """
    start, sizes = time.perf_counter(), QUICK if quick else _Sizes()
    reader, accuracy = _reader(sizes)
    runs: list[dict[str, Any]] = []
    for seed in track(range(seeds), "nasa: training seeds"):
        student, loss = _trained(seed, sizes)
        runs.append({"seed": seed, "loss": loss, "reader": accuracy} | _judged(student, reader, seed, sizes))
    return Report(
        method="nasa",
        claim=CLAIM,
        criteria=_verdict(runs),
        per_seed=runs,
        seconds=round(time.perf_counter() - start, 1),
        pictures=_pictures(runs, out),
    )


def _kind(z: Tensor, word: Tensor) -> Tensor:
    """Which of KINDS is right, (B,): the word's, and for "shape" the third that z_0 (B,) lies in."""
    thirds = (3 * torch.special.ndtr(z[:, 0])).long().clamp(0, 2)
    return torch.where(word == SHAPE, thirds, word - 2)


def _drawn(z: Tensor, kind: Tensor) -> Tensor:
    """The right pictures (B, 1, 16, 16) in [-1, 1]. z: (B, 4), of which the last three are centre and size."""
    place, size = 2.0 * torch.tanh(z[:, 1:3]) + (SIDE - 1) / 2, 4.5 + torch.tanh(z[:, 3])
    at = torch.arange(SIDE, dtype=z.dtype, device=z.device)
    y, x = ((at - c[:, None]).abs() for c in place.T)
    x, y, r = x[:, None, :], y[:, :, None], size[:, None, None]
    bar = r / 3
    disk, square = r - (x * x + y * y).sqrt(), 0.85 * r - torch.maximum(x, y)
    cross = torch.maximum(torch.minimum(r - x, bar - y), torch.minimum(r - y, bar - x))
    inside = torch.stack([disk, square, cross], 1)[torch.arange(len(z)), kind]
    return torch.tanh(1.5 * inside)[:, None]


def _prompt(word: Tensor) -> Tensor:
    """(B, 3) words."""
    return torch.stack([torch.full_like(word, BEGIN), word, torch.full_like(word, PHOTO)], 1)


class _Block(nn.Module):
    """Self-attention, cross-attention and an MLP, on h (B, N, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention = Attention(WIDTH, 4, own=True, zero=True)
        self.cross = Attention(WIDTH, 4, own=False, context_width=WIDTH, zero=True)
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), zeroed(nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h))
        h = h + self.cross(self.norm2(h), context)
        return h + self.outer(F.gelu(self.inner(self.norm3(h))))


class _Student(nn.Module):
    """net(x, time, cond) -> (B, 1, 16, 16) in one step, from the first four pixels of x and cond["context"]."""

    places: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.device("meta"):
            self.words, self.order = table(8, WIDTH), table(WORDS, WIDTH)
            self.stem, self.out = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
            self.blocks = nn.ModuleList(_Block() for _ in range(3))
            self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("places", sincos_places(SIDE // 2, SIDE // 2, WIDTH).float(), persistent=False)
        initialise(self, seed)

    def encode(self, prompt: Tensor) -> Tensor:
        """Words (B, 3) -> context (B, 3, width)."""
        return self.words(prompt) + self.order.weight

    def forward(self, x: Tensor, time: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        h = self.stem(x[:, 0, 0, :4])[:, None] + self.places
        for block in self.blocks:
            h = block(h, cond["context"])
        h = self.out(self.norm(h)).transpose(1, 2).unflatten(2, (SIDE // 2, SIDE // 2))
        return F.pixel_shuffle(h, 2)


def _descended(net: nn.Module, loss: Callable[[], Tensor], steps: int, name: str) -> float:
    """Adam with a cosine to zero; the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    kept = []
    for step in track(range(steps), name):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        fall.step()
        if step >= 0.9 * steps:
            kept.append(value.detach())
    net.eval().requires_grad_(False)
    return float(torch.stack(kept).mean())


def _trained(seed: int, sizes: _Sizes) -> tuple[_Student, float]:
    student, draw = _Student(seed), torch.Generator().manual_seed(1000 + seed)

    def loss() -> Tensor:
        x = torch.randn(sizes.batch, 1, SIDE, SIDE, generator=draw)
        word, z = torch.randint(2, SHAPE + 1, (sizes.batch,), generator=draw), x[:, 0, 0, :4]
        y = student(x, torch.ones(()), {"context": student.encode(_prompt(word))})
        return F.mse_loss(y, _drawn(z, _kind(z, word)))

    return student, _descended(student, loss, sizes.steps, "nasa: student")


def _reader(sizes: _Sizes) -> tuple[nn.Module, float]:
    """A classifier of clean pictures, and its accuracy on new ones."""
    with torch.device("meta"):
        layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU(), nn.Flatten()]
        net = nn.Sequential(*layers, nn.Linear(512, 64), nn.SiLU(), nn.Linear(64, 3))
    initialise(net, 0)
    draw = torch.Generator().manual_seed(999)

    def fresh(count: int) -> tuple[Tensor, Tensor]:
        kind = torch.randint(0, 3, (count,), generator=draw)
        return _drawn(torch.randn(count, 4, generator=draw), kind), kind

    def loss() -> Tensor:
        x, kind = fresh(sizes.batch)
        return F.cross_entropy(net(x), kind)

    _descended(net, loss, sizes.reading, "nasa: classifier")
    x, kind = fresh(2000)
    return net, float((net(x).argmax(1) == kind).double().mean())


def _judged(student: _Student, reader: nn.Module, seed: int, sizes: _Sizes) -> dict[str, Any]:
    """Figures for every arm, means over the three unwanted kinds."""
    schema = Schema({"context": Field((WORDS, WIDTH), "float32")})
    plain = Denoiser(student, Straight(), "x0", shape=(1, SIDE, SIDE), schema=schema)
    model, undo = install(plain, "nasa", NegativeAttention(("context",)))
    grid, sums, sheets = grids.uniform(Straight(), 1), {}, {}
    with torch.no_grad():
        wanted, *others = (student.encode(_prompt(torch.tensor([w])))[0] for w in (SHAPE, 2, 3, 4))
    for kind, other in enumerate(others):
        for name, (cond, rule) in _arms(wanted, other).items():
            off = negative({"context": other}, {"context": other}, 0.0)
            options = {"samples": sizes.samples, "seed": seed, "conds": {"negative": off}, "guidance": rule}
            result = sample(model, grid, cond=cond, **options)
            sure, read = reader(result.x).softmax(1).max(1)
            figures = sums.setdefault(name, {"share": 0.0, "clear": 0.0, "rows_per_sample": 1 + (rule is not None)})
            figures["share"] += float((read == kind).double().mean()) / 3
            figures["clear"] += float((sure > 0.9).double().mean()) / 3
            assert result.counts.rows == figures["rows_per_sample"] * sizes.samples
            if kind == 0:
                sheets[name] = result.x[:8]
    undo()
    return {"settings": sums, "_pictures": sheets}


def _arms(wanted: Tensor, other: Tensor) -> dict[str, tuple[dict[str, Any], Guidance | CFG | None]]:
    """Condition and guidance of every arm. wanted, other: contexts (3, width)."""

    def told(context: Tensor, alpha: float = 0.0) -> dict[str, Any]:
        return negative({"context": context}, {"context": other}, alpha)

    return {
        "none": (told(wanted), None),
        **{f"CFG {w:g}": (told(wanted), CFG(w, away="negative")) for w in SCALES},
        **{f"embedding {a:g}": (told(wanted - a * other), None) for a in LESS},
        **{f"NASA {a:g}": (told(wanted, a), None) for a in ALPHAS},
    }


def _chosen(run: Mapping[str, Any]) -> str:
    """The strength that removes most at the allowed price; the cheapest where none is."""
    settings = run["settings"]
    names = [f"NASA {a:g}" for a in ALPHAS]
    fair = [n for n in names if settings["none"]["clear"] - settings[n]["clear"] <= ALLOWED]
    return min(fair, key=lambda n: settings[n]["share"]) if fair else max(names, key=lambda n: settings[n]["clear"])


def _verdict(runs: Sequence[Mapping[str, Any]]) -> tuple[Criterion, ...]:
    """The card's criteria; the first seed chooses, the others judge, the worst of them counts."""
    name, judges = _chosen(runs[0]), [r["settings"] for r in (runs[1:] or runs)]
    kept = max(s[name]["share"] / max(s["none"]["share"], 1e-9) for s in judges)
    cost = max(s["none"]["clear"] - s[name]["clear"] for s in judges)
    best = [min((s[f"CFG {w:g}"] for w in SCALES), key=lambda figures: figures["share"]) for s in judges]
    more = min(b["share"] - s[name]["share"] for b, s in zip(best, judges, strict=True))
    clear = min(s[name]["clear"] - b["clear"] for b, s in zip(best, judges, strict=True))
    return (
        at_least("accuracy of the classifier on clean pictures, at least", runs[0]["reader"], 0.98),
        at_most(f"{name}: share of the unwanted kind / without it, worst seed, at most", kept, 0.5),
        at_most(f"{name}: clear pictures lost, worst seed, at most", cost, ALLOWED),
        Criterion(f"{name}: removes more than the CFG that removes most, worst seed, above", more, 0.0, more > 0),
        at_least(f"{name}: clear pictures more than that CFG's, worst seed, at least", clear, 0.0),
    )


def _pictures(runs: Sequence[dict[str, Any]], out: FilePath) -> tuple[str, ...]:
    """A sheet against "disk", and clear pictures against the unwanted share."""
    kept, *_ = [r.pop("_pictures") for r in runs]
    sheet = torch.cat(list(kept.values()))
    plots.save_sheet(out / "shapes.png", sheet, columns=len(kept["none"]), rows=list(kept), scale=3)

    def curve(names: Sequence[str]) -> list[tuple[float, float]]:
        mean = {k: [sum(r["settings"][n][k] for r in runs) / len(runs) for n in names] for k in ("share", "clear")}
        return list(zip(mean["share"], mean["clear"], strict=True))

    curves = {
        "NASA": curve(["none", *(f"NASA {a:g}" for a in ALPHAS)]),
        "output CFG": curve(["none", *(f"CFG {w:g}" for w in SCALES)]),
        "embedding": curve(["none", *(f"embedding {a:g}" for a in LESS)]),
    }
    plots.save_curves(out / "removal.png", curves, x="share of the unwanted kind", y="share of clear pictures")
    return ("shapes.png", "removal.png")
