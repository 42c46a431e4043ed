import math

import pytest
import torch
from torch import nn

from wayfield.core.errors import ConditionError, DTypeError, RangeError, ShapeError, UnknownNameError
from wayfield.core.path import EDM, VP, Straight, Trig
from wayfield.core.predict import KINDS, Kind, convert
from wayfield.core.schedule import tabulated
from wayfield.field.cond import Field, Schema, concat
from wayfield.field.denoiser import Denoiser


class AnswerIn(nn.Module):
    """The exact mixture answer, spoken in another output kind."""

    def __init__(self, exact, path, kind):
        super().__init__()
        self.exact, self.path, self.kind = exact, path, kind

    def forward(self, x_in, time, cond):
        scales = self.path.scales(time.double())
        q = (scales.sigma**2 + (scales.alpha * self.kind.sigma_data) ** 2).sqrt()[:, None]
        x = x_in * q if self.kind.name == "edm" else x_in
        return convert(self.kind, self.exact(x, time, cond), scales)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_the_same_pair(path, mixture, name, randn64):
    exact = mixture(path, d=3)
    kind = Kind(name, 0.6)
    den = Denoiser(AnswerIn(exact, path, kind), path, kind, schema=exact.schema)
    x, t = randn64(5, 3), torch.linspace(0.05, 0.9, 5, dtype=torch.float64)
    got, want = den(x, t), exact(x, t)
    torch.testing.assert_close(got.x0, want.x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.eps, want.eps, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["x0", "eps", "v", "velocity"])
def test_a_model_of_one_path_runs_on_another(path, mixture, name, randn64):
    """The exact denoiser of path A, asked at points of path B, is the exact denoiser of path B."""
    home = VP()
    kind = Kind(name)
    den = Denoiser(AnswerIn(mixture(home, d=3), home, kind), home, kind, schema=mixture(home).schema)
    want = mixture(path, d=3)
    t = path.time(torch.linspace(3, -3, 6, dtype=torch.float64))
    x = randn64(6, 3)
    level = den.level(t, path=path)
    got = den.denoise(x, level, den.schema.bind_null(6, "cpu"))
    torch.testing.assert_close(got.x0, want(x, t).x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got.eps, want(x, t).eps, rtol=1e-7, atol=1e-7)


def test_levels_beyond_the_models_path_are_marked():
    den = Denoiser(nn.Identity(), EDM(10.0), "x0", call=lambda net, x, t, c: x)
    t = torch.tensor([EDM(80.0).at_sigma(9.0), EDM(80.0).at_sigma(20.0)], dtype=torch.float64)
    ok = torch.stack([c for c in den.level(t, path=EDM(80.0)) if c is not None], 1).isfinite().all(1)
    assert ok.tolist() == [True, False]


def test_time_inputs():
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)

    def seen(time, path=Trig()):
        return Denoiser(nn.Identity(), path, "v", time=time).level(t).c_time

    assert torch.equal(seen("t"), t)
    assert torch.equal(seen("1000t"), 1000 * t)
    a, s, _, _ = Trig().scales(t)
    torch.testing.assert_close(seen("log_sigma/4"), (s / a).log() / 4)
    torch.testing.assert_close(seen("log_snr"), 2 * (a / s).log())
    torch.testing.assert_close(seen("index", tabulated("linear", 1000)), torch.tensor([299.0, 599.0]).double())
    with pytest.raises(DTypeError):
        seen("index")
    assert math.isfinite(float(Denoiser(nn.Identity(), Trig(), "v", time="log_snr").level(torch.ones(())).c_time))


def test_mixed_precision_network(randn64):
    class Half(nn.Module):
        def forward(self, x, time, cond):
            assert x.dtype == torch.float32
            return (0.5 * x).bfloat16()

    den = Denoiser(Half(), Straight(), "velocity")
    pred = den(randn64(2, 3).float(), 0.5)
    assert pred.x0.dtype == pred.eps.dtype == torch.float32


def test_a_network_of_another_type():
    """It is given points of its own type; times and the state keep theirs."""

    class Low(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False, dtype=torch.bfloat16)
            nn.init.eye_(self.layer.weight)

        def forward(self, x, time, cond):
            assert (x.dtype, time.dtype) == (torch.bfloat16, torch.float32)
            return self.layer(x)

    x = torch.ones(2, 3)
    pred = Denoiser(Low(), Straight(), "velocity", dtype=torch.bfloat16)(x, 0.5)
    assert pred.x0.dtype == torch.float32
    torch.testing.assert_close(pred.x0, 0.5 * x)
    with pytest.raises(DTypeError, match=r"make the Denoiser with dtype=torch\.bfloat16"):
        Denoiser(Low(), Straight(), "velocity")(x, 0.5)


def test_bad_input(randn64):
    with pytest.raises(UnknownNameError):
        Denoiser(nn.Identity(), Straight(), "velocitee")
    with pytest.raises(UnknownNameError):
        Denoiser(nn.Identity(), Straight(), "v", time="tt")
    with pytest.raises(DTypeError):
        Denoiser(nn.Identity(), "straight", "v")
    den = Denoiser(nn.Identity(), Straight(), "v", shape=(3,), call=lambda net, x, t, c: x[:, :1])
    with pytest.raises(RangeError):
        den(randn64(2, 3), 1.5)
    with pytest.raises(ShapeError, match="points"):
        den(randn64(2, 4), 0.5)
    with pytest.raises(ShapeError, match="network output"):
        den(randn64(2, 3), 0.5)


class TestSchema:
    schema = Schema({"label": Field(values=11), "style": Field((2,), "float32")}, {"label": 10, "style": [0.0, 0.0]})

    def test_one_value_serves_all_rows(self):
        c = self.schema.bind({"label": 3, "style": torch.ones(4, 2)}, 4, "cpu")
        assert c["label"].tolist() == [3, 3, 3, 3]
        assert c["style"].shape == (4, 2)
        null = self.schema.bind(None, 2, "cpu")
        assert null["label"].tolist() == [10, 10]
        both = concat([c, c])
        assert both["label"].shape == (8,)

    @pytest.mark.parametrize(
        "cond",
        [
            {"label": 11, "style": [0.0, 0.0]},
            {"label": -1, "style": [0.0, 0.0]},
            {"label": 1.5, "style": [0.0, 0.0]},
            {"label": [1, 2, 3], "style": [0.0, 0.0]},
            {"label": 3},
            {"label": 3, "style": [0.0, 0.0, 0.0]},
        ],
    )
    def test_misfits(self, cond):
        with pytest.raises(ConditionError):
            self.schema.bind(cond, 2, "cpu")

    def test_unknown_name_gets_the_nearest(self):
        with pytest.raises(UnknownNameError, match="Did you mean 'label'"):
            self.schema.bind({"lable": 3, "style": [0.0, 0.0]}, 2, "cpu")

    def test_no_null(self):
        with pytest.raises(ConditionError, match="label dropping"):
            Schema({"label": Field(values=3)}).bind(None, 2, "cpu")
        with pytest.raises(ConditionError):
            Schema({"label": Field(values=3)}, {})
        assert Schema().bind(None, 2, "cpu") == {}
