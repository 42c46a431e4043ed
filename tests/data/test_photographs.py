"""Photographs and faces: crops are pieces of their photograph, the same ones always; faces come first."""

from __future__ import annotations

import pytest
import torch
from real_sets import need

from wayfield.core.errors import MissingExtraError, RangeError, UnknownNameError
from wayfield.core.noise import uniforms
from wayfield.data import sources
from wayfield.data.photographs import FACE_CLASSES, PHOTOGRAPHS, faces, photograph, photographs


@pytest.fixture(autouse=True)
def packages():
    need("scikit-image", "scikit-learn")


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [("astronaut", 512, 512), ("cat", 300, 451), ("coffee", 400, 600), ("rocket", 427, 640), ("temple", 427, 640)],
)
def test_sizes(name, height, width):
    x = photograph(name)
    assert tuple(x.shape) == (3, height, width)
    assert x.dtype == torch.float32
    assert -1 <= float(x.min()) < -0.8 < 0.8 < float(x.max()) <= 1
    assert tuple(photograph(name, shrink=4).shape) == (3, -(-height // 4), -(-width // 4))


def test_shrinking_takes_means_of_squares():
    whole = photograph("astronaut").double()
    means = whole.unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
    assert float((photograph("astronaut", shrink=4).double() - means).abs().max()) <= 0.51 / 127.5  # rounding to a byte


def test_every_crop_is_in_its_photograph():
    data = photographs(48, 3)
    assert (len(data), data.shape) == (18, (3, 48, 48))
    assert data.cond["label"].tolist() == [k for k in range(6) for _ in range(3)]
    assert data.classes == PHOTOGRAPHS
    for k in (0, 7, 17):
        x0, cond = data.batch([k])
        whole = photograph(PHOTOGRAPHS[cond["label"]])
        corners = (whole[:, :-47, :-47] == x0[0, :, :1, :1]).all(0).nonzero().tolist()
        assert any(torch.equal(whole[:, r : r + 48, c : c + 48], x0[0]) for r, c in corners)


def test_crops_are_where_the_formula_says():
    """Photograph 1, the cat, is 300 x 451: a crop of 48 has 253 x 404 places."""
    u, v = (uniforms(7, 3, 1, stage) for stage in (0, 1))
    whole, (x0, _) = photograph("cat"), photographs(48, 3, names=["cat"], seed=7).batch([2])
    r, c = int(u[2] * 253), int(v[2] * 404)
    assert torch.equal(x0[0], whole[:, r : r + 48, c : c + 48])


def test_a_crop_does_not_depend_on_how_many_or_which_others():
    few, many = photographs(32, 2), photographs(32, 5)
    assert torch.equal(few.pixels[2], many.pixels[5])
    assert torch.equal(photographs(32, 2, names=["cat"]).pixels, few.pixels[2:4])
    assert photographs(32, 2, names=["cat"]).cond["label"].tolist() == [1, 1]
    assert not torch.equal(photographs(32, 2, seed=1).pixels, few.pixels)


def test_crops_reach_every_corner():
    """A crop of side H - 1 has two rows to start at; all of them occur among 32 (missing one: chance 2 ** -30)."""
    whole = photograph("cat", shrink=2)
    seen = {bytes(p[:, :, 0].flatten().tolist()) for p in photographs(149, 32, names=["cat"], shrink=2).pixels}
    first = {bytes(p[:, 0].flatten().tolist()) for p in photographs(149, 32, names=["cat"], shrink=2).pixels}
    assert tuple(whole.shape) == (3, 150, 226)
    assert len(seen) > 2
    assert len(first) > 2


def test_faces():
    data = faces()
    assert (len(data), data.shape) == (200, (1, 25, 25))
    assert data.cond["label"].tolist() == [0] * 100 + [1] * 100
    assert (float(data.x.min()), float(data.x.max())) == (-1.0, 1.0)
    assert data.schema.null == {"label": len(FACE_CLASSES)}
    assert [len(faces(split)) for split in ("train", "test")] == [160, 40]
    assert torch.equal(faces("test").x[0], data.x[4])


def test_faces_are_the_numbers_of_the_package():
    import numpy as np

    stored = torch.from_numpy(np.load(sources.find("scikit-image") / "lfw_subset.npy"))
    assert torch.equal(faces().x[:, 0], stored.float() * 2 - 1)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: photograph("dog"), UnknownNameError),
        (lambda: photographs(names=["dog"]), UnknownNameError),
        (lambda: faces("training"), UnknownNameError),
        (lambda: photographs(301), RangeError),
        (lambda: photographs(151, shrink=2), RangeError),
        (lambda: photographs(0), RangeError),
        (lambda: photographs(8, 0), RangeError),
        (lambda: photographs(8, names=[]), RangeError),
        (lambda: photograph("cat", shrink=0), RangeError),
        (lambda: photograph("cat", shrink=301), RangeError),
    ],
)
def test_bad_requests_are_refused(call, error):
    with pytest.raises(error):
        call()


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "wayfield\[data\]"'):
        photograph("cat")
