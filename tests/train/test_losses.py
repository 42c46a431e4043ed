"""One loss: its weights are the table's, its factors the papers', its gradient that of a loss written by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from wayfield.core.errors import ConditionError, DTypeError, RangeError, ShapeError, SingularError, UnknownNameError
from wayfield.core.noise import Address, SeededNoise
from wayfield.core.path import EDM, VP, Cosine, Straight, Trig
from wayfield.core.predict import KINDS, Kind
from wayfield.field.cond import Field, Schema
from wayfield.field.denoiser import Denoiser
from wayfield.train.losses import WEIGHTS, Weight, denoising_loss, drop_labels, error_factor

PATHS = [Straight(), Trig(), VP(), Cosine(), EDM(10.0)]
T = torch.tensor([0.02, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)
SD = 0.6


def normal(seed: int, *shape: int) -> torch.Tensor:
    return SeededNoise(seed, shape[0]).draw(shape[1:], Address(0)).double()


class Given(nn.Module):
    """Answers with a fixed tensor, whatever it is asked."""

    def __init__(self, y: torch.Tensor) -> None:
        super().__init__()
        self.y = nn.Parameter(y)

    def forward(self, x, time, cond):
        return self.y


def table(name: str, a, s, da, ds):
    """The column w of the table, written out again."""
    snr = a**2 / s**2
    return {
        "x0": torch.ones_like(a),
        "eps": snr,
        "v": snr + 1,
        "velocity": ((a * ds - da * s) / s) ** 2,
        "edm": snr + 1 / SD**2,
        "min_snr": snr.clamp(max=5.0),
        "p2": snr / (1 + snr),
    }[name]


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize(("kind", "weight"), list(itertools.product(KINDS, WEIGHTS)))
def test_loss_is_the_table_s_weight_times_the_squared_x0_error(path, kind, weight):
    x0, eps, y = normal(1, 5, 2, 3), normal(2, 5, 2, 3), normal(3, 5, 2, 3)
    denoiser = Denoiser(Given(y), path, Kind(kind, SD))
    loss = denoising_loss(denoiser, x0, {}, T, eps, weight=weight)
    scales = path.scales(T)
    a, s = (c[:, None, None] for c in scales[:2])
    D = denoiser.denoise(a * x0 + s * eps, denoiser.level(T), {}).x0
    expected = table(weight, *scales) * (D - x0).square().flatten(1).mean(1)
    assert torch.allclose(loss, expected, rtol=1e-11, atol=1e-12)
    assert torch.allclose(Weight(weight, sigma_data=SD)(scales), table(weight, *scales), rtol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_a_kind_under_its_own_weight_is_a_plain_squared_error(path):
    scales = path.scales(torch.cat([torch.tensor([1e-6, 1 - 1e-9], dtype=torch.float64), T]))
    pairs = [("x0", "x0"), ("eps", "eps"), ("velocity", "velocity"), ("edm", "edm")]
    for kind, weight in pairs + [("v", "v")] * (path in (Trig(), VP(), Cosine())):
        assert torch.allclose(error_factor(Kind(kind, SD), weight, scales), torch.ones_like(scales.alpha), rtol=1e-12)


def test_edm_weight_times_c_out_squared_is_one():
    sigma = torch.logspace(-3, 2, 50, dtype=torch.float64)
    scales = EDM(1.0).scales(sigma)
    c_out = sigma * SD / (sigma**2 + SD**2).sqrt()
    assert torch.allclose(Weight("edm", sigma_data=SD)(scales) * c_out**2, torch.ones_like(sigma), rtol=1e-12)


def test_edm_target_has_unit_variance_at_every_level():
    x0, eps = SD * normal(4, 200_000, 1), normal(5, 200_000, 1)
    for sigma in (0.002, 0.1, 0.5, 2.0, 80.0):
        A, B = Kind("edm", SD).row(EDM(80.0).scales(torch.tensor(sigma / 80.0, dtype=torch.float64)))
        assert float((A * x0 + B * eps).var()) == pytest.approx(1.0, rel=0.01)


def test_min_snr_and_p2_settings():
    scales = Straight().scales(T)
    snr = (scales.alpha / scales.sigma) ** 2
    assert torch.allclose(Weight("min_snr", gamma=2.0)(scales), snr.clamp(max=2.0))
    assert torch.allclose(Weight("p2", gamma=0.5, k=3.0)(scales), snr / (3.0 + snr) ** 0.5)


def test_a_function_of_log_snr_is_a_weight():
    denoiser = Denoiser(Given(normal(3, 5, 2)), VP(), "eps")
    losses = [
        denoising_loss(denoiser, normal(1, 5, 2), {}, T, normal(2, 5, 2), weight=w)
        for w in ("v", lambda q: q.exp() + 1)
    ]
    assert torch.allclose(*losses, rtol=1e-10)


class Small(nn.Module):
    """A linear network that also hears the time and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(normal(11, 3, 3).float())
        self.b = nn.Parameter(normal(12, 4, 3).float())

    def forward(self, x, time, cond):
        return torch.tanh(x @ self.w + time[:, None]) + self.b[cond["label"]]


def test_gradient_is_that_of_a_hand_written_edm_loss():
    x0, eps, label = normal(1, 6, 3).float(), normal(2, 6, 3).float(), torch.tensor([0, 1, 2, 3, 0, 1])
    sigma = torch.tensor([0.05, 0.2, 0.7, 1.5, 4.0, 9.0])
    net = Small()
    denoiser = Denoiser(net, EDM(10.0), Kind("edm", SD), "log_sigma/4", schema=Schema({"label": Field(values=4)}))
    denoising_loss(denoiser, x0, {"label": label}, sigma.double() / 10, eps, weight="edm").mean().backward()
    ours = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    # Karras et al. 2022, eq. 2-8, as one would write it
    s, sd = sigma[:, None], SD
    noisy = x0 + s * eps
    F = net(noisy / (s**2 + sd**2).sqrt(), s[:, 0].log() / 4, {"label": label})
    D = sd**2 / (s**2 + sd**2) * noisy + s * sd / (s**2 + sd**2).sqrt() * F
    ((s**2 + sd**2) / (s * sd) ** 2 * (D - x0) ** 2).mean().backward()
    for mine, theirs in zip(ours, net.parameters(), strict=True):
        assert torch.allclose(mine, theirs.grad, rtol=2e-4, atol=1e-5)


def test_ends_of_a_path_stay_finite_in_float32():
    ends = torch.tensor([1e-5, 1.0], dtype=torch.float64)
    for kind, weight in (("velocity", "velocity"), ("v", "v"), ("x0", "min_snr"), ("edm", "edm")):
        denoiser = Denoiser(Given(normal(3, 2, 4).float()), Straight(), kind)
        loss = denoising_loss(denoiser, normal(1, 2, 4).float(), {}, ends, normal(2, 2, 4).float(), weight=weight)
        assert bool(loss.isfinite().all())


SCHEMA = Schema({"label": Field(values=4), "box": Field((2,), "float32")}, {"label": 3, "box": [0.0, -1.0]})


def test_dropped_rows_hold_the_null_condition():
    cond = {"label": torch.tensor([0, 1, 2]), "box": torch.ones(3, 2)}
    out = drop_labels(cond, SCHEMA, torch.tensor([True, False, True]))
    assert out["label"].tolist() == [0, 3, 2]
    assert out["box"].tolist() == [[1.0, 1.0], [0.0, -1.0], [1.0, 1.0]]
    assert cond["label"].tolist() == [0, 1, 2]
    assert drop_labels({}, Schema(), torch.tensor([False])) == {}


def test_dropping_needs_a_null_and_one_flag_per_row():
    with pytest.raises(ConditionError, match="null"):
        drop_labels({"label": torch.tensor([0])}, Schema({"label": Field(values=4)}), torch.tensor([False]))
    with pytest.raises(ShapeError, match="keep"):
        drop_labels(
            {"label": torch.tensor([0, 1])}, Schema({"label": Field(values=4)}, {"label": 3}), torch.tensor([True])
        )
    with pytest.raises(ConditionError, match="caption"):
        drop_labels(
            {"caption": torch.tensor([0])}, Schema({"label": Field(values=4)}, {"label": 3}), torch.tensor([True])
        )


def loss(**changes):
    given = {
        "x0": torch.zeros(2, 3),
        "t": torch.tensor([0.1, 0.2]),
        "eps": torch.zeros(2, 3),
        "kind": "v",
        "weight": "v",
    } | changes
    denoiser = Denoiser(Given(torch.zeros(2, 3)), Straight(), given["kind"], shape=(3,))
    return denoising_loss(denoiser, given["x0"], {}, given["t"], given["eps"], weight=given["weight"])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"weight": "snr"}, UnknownNameError),
        ({"eps": torch.zeros(2, 4)}, ShapeError),
        ({"eps": torch.zeros(2, 3, dtype=torch.int64)}, DTypeError),
        ({"x0": torch.zeros(2, 4), "eps": torch.zeros(2, 4)}, ShapeError),
        ({"t": torch.tensor(0.5)}, ShapeError),
        ({"t": torch.tensor([0.5, 1.0]), "kind": "eps"}, SingularError),
        ({"t": torch.tensor([0.5, 0.0]), "kind": "x0"}, SingularError),
    ],
)
def test_bad_input_is_refused(changes, error):
    with pytest.raises(error):
        loss(**changes)


@pytest.mark.parametrize("settings", [{"gamma": 0.0}, {"k": -1.0}, {"sigma_data": 0.0}])
def test_bad_weight_settings_are_refused(settings):
    with pytest.raises(RangeError):
        Weight("p2", **settings)
