"""The one trainer of judges: it learns an exact posterior, repeats itself to the bit, and refuses what does not fit."""

import pytest
import torch
import torch.nn.functional as F

from wayfield.core.errors import DTypeError, NonFiniteError, RangeError, ShapeError
from wayfield.core.path import EDM, VP, Scales
from wayfield.judge import MLPJudge, Noisy, train_judge
from wayfield.train.levels import LogNormal

MEANS = torch.tensor([[-1.0, 0.3], [0.8, 0.5], [0.1, -1.0]])
SPREAD = 0.3


def draw(generator, n):
    """Three Gaussians of equal weight."""
    label = torch.randint(3, (n,), generator=generator)
    return MEANS[label] + SPREAD * torch.randn(n, 2, generator=generator), label


def exact(x, alpha, sigma):
    """log p(y | x_t)."""
    gap = x[:, None] - alpha[:, None, None] * MEANS
    return (-gap.square().sum(2) / (2 * (alpha**2 * SPREAD**2 + sigma**2))[:, None]).log_softmax(1)


def test_it_learns_the_noisy_posterior():
    judge = Noisy(MLPJudge(2, 3, width=32))
    losses = train_judge(judge, draw, F.cross_entropy, path=VP(), steps=400, batch=128, lr=3e-3)
    assert len(losses) == 400
    assert not judge.training
    generator = torch.Generator().manual_seed(7)
    x0, _ = draw(generator, 400)
    for t in (0.1, 0.3, 0.6):
        s = Scales(*(c.float() for c in VP().scales(torch.full((400,), t, dtype=torch.float64))))
        x = s.alpha[:, None] * x0 + s.sigma[:, None] * torch.randn(x0.shape, generator=generator)
        with torch.no_grad():
            got = judge(x, s).log_softmax(1)
        want = exact(x, s.alpha, s.sigma)
        kl = (want.exp() * (want - got)).sum(1).mean()
        blind = (want.exp() * (want - want.exp().mean(0).log())).sum(1).mean()
        assert kl < 0.02 + 0.05 * blind


def fresh(seed=0, **options):
    judge = Noisy(MLPJudge(2, 3, width=8))
    options = {"path": VP(), "steps": 5, "batch": 16, "seed": seed} | options
    return train_judge(judge, draw, F.cross_entropy, **options), judge


def test_equal_seeds_give_equal_weights_to_the_bit():
    before = torch.get_rng_state()
    (a, first), (b, second), (c, _) = fresh(), fresh(), fresh(seed=1)
    assert a == b
    assert a != c
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("levels", [(0.2, 0.4), LogNormal(-1.0, 0.1)])
def test_levels_are_those_asked_for(levels):
    seen = []

    class Spy(torch.nn.Linear):
        def forward(self, x, level):
            seen.append(level.sigma / level.alpha)
            return super().forward(x)

    train_judge(Spy(2, 3), draw, F.cross_entropy, path=EDM(10.0), steps=4, levels=levels)
    noise = torch.cat(seen)
    low, high = (2.0, 4.0) if isinstance(levels, tuple) else (0.2, 0.7)
    assert float(noise.min()) >= low - 1e-6
    assert float(noise.max()) <= high + 1e-6
    assert noise.unique().numel() > 500


def test_clean_judges_see_clean_data_and_no_level():
    judge = MLPJudge(2, 3, width=32, clean=True)
    train_judge(judge, draw, F.cross_entropy, path=VP(), steps=200, lr=3e-3, clean=True)
    x, label = draw(torch.Generator().manual_seed(3), 500)
    assert float((judge(x).argmax(1) == label).float().mean()) > 0.95


def test_only_the_parameters_asked_for_move():
    judge = Noisy(MLPJudge(2, 3, width=8))
    head = list(judge.net.head.parameters())
    before = {k: v.clone() for k, v in judge.state_dict().items()}
    train_judge(judge, draw, F.cross_entropy, path=VP(), steps=3, parameters=head)
    moved = {k for k, v in judge.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"net.head.weight", "net.head.bias"}


def test_a_broken_loss_names_its_step():
    calls = []

    def loss(answers, label):
        calls.append(0)
        return F.cross_entropy(answers, label) * (float("nan") if len(calls) == 3 else 1.0)

    judge = Noisy(MLPJudge(2, 3, width=8))
    with pytest.raises(NonFiniteError, match="step 2"):
        train_judge(judge, draw, loss, path=VP(), steps=5)
    assert not judge.training


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"steps": 0}, RangeError),
        ({"batch": 0}, RangeError),
        ({"lr": 0.0}, RangeError),
        ({"lr": float("nan")}, RangeError),
        ({"weight_decay": -1.0}, RangeError),
        ({"levels": (0.5, 0.5)}, RangeError),
        ({"levels": (0.0, 1.1)}, RangeError),
        ({"parameters": []}, DTypeError),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, error):
    with pytest.raises(error):
        fresh(**options)


def test_a_loss_of_every_row_is_refused():
    def rows(answers, label):
        return F.cross_entropy(answers, label, reduction="none")

    with pytest.raises(ShapeError, match="loss of a judge"):
        train_judge(Noisy(MLPJudge(2, 3)), draw, rows, path=VP(), steps=2)
