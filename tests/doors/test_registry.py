"""The table of methods, its entry points, and the solvers and grids of the command line."""

import sys
from dataclasses import fields
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
import torch

from wayfield import registry
from wayfield.core.errors import MissingExtraError, UnknownNameError
from wayfield.registry import Method
from wayfield.sampling import sample
from wayfield.solve import DPM2M, Churn

MINE = Method("mine", "Mine", "nobody", "mine", "mine:run")


@pytest.fixture
def plugins(monkeypatch):
    """Entry points of other packages, some of them broken."""
    module = ModuleType("mine")
    module.METHOD, module.OTHER, module.NONE = MINE, Method("ddpm-ddim-ldm", "x", "x", "x", "x:x"), 3
    monkeypatch.setitem(sys.modules, "mine", module)

    def install(**values):
        points = [EntryPoint(name.replace("_", "-"), value, registry.GROUP) for name, value in values.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)

    return install


def test_every_line_is_text_and_leads_somewhere():
    for name, line in registry.methods().items():
        assert line.name == name
        assert all(isinstance(getattr(line, f.name), str) for f in fields(line))
        assert callable(registry.recipe(line))


def test_other_packages_add_lines(plugins):
    plugins(mine="mine:METHOD")
    assert list(registry.methods()) == [*registry.METHODS, "mine"]
    assert registry.method("mine") is MINE


@pytest.mark.parametrize("value", ["nowhere:METHOD", "mine:NOTHING", "mine:NONE", "mine:OTHER"])
def test_a_broken_entry_point_is_named_and_left_out(plugins, value):
    plugins(mine=value)
    with pytest.warns(RuntimeWarning, match="entry point 'mine'"):
        assert list(registry.methods()) == list(registry.METHODS)
    with pytest.raises(UnknownNameError, match="entry point 'mine'"):
        registry.method("mine")


def test_an_entry_point_cannot_take_a_name_of_ours(plugins):
    plugins(ddpm_ddim_ldm="mine:OTHER")
    with pytest.warns(RuntimeWarning, match="a name that wayfield has"):
        assert registry.methods() == registry.METHODS
    assert registry.method("ddpm-ddim-ldm") is registry.METHODS["ddpm-ddim-ldm"]


def test_unknown_names_suggest_the_nearest(path):
    with pytest.raises(UnknownNameError, match="Did you mean 'ddpm-ddim-ldm'"):
        registry.method("ddpm-dim-ldm")
    with pytest.raises(UnknownNameError, match="Did you mean 'unipc'"):
        registry.solver("unicp")
    with pytest.raises(UnknownNameError, match="Did you mean 'log-snr'"):
        registry.grid("logsnr", path, 5)


@pytest.mark.parametrize("name", registry.GRIDS)
def test_every_grid_ends_clean_on_every_path(name, path):
    grid = registry.grid(name, path, 6)
    assert grid.t[-1] == 0
    assert grid.steps in (6, 7)
    assert torch.isfinite(grid.scales.sigma).all()


@pytest.mark.parametrize("name", registry.SOLVERS)
def test_every_solver_draws_on_every_path(name, path, mixture):
    grid = registry.grid("karras", path, 6)
    result = sample(mixture(path, 2), grid, samples=3, cond={"label": 1}, solver=registry.solver(name, path))
    assert result.x.isfinite().all()
    assert result.x.shape == (3, 2)


def test_fields_of_the_table_are_given_on():
    assert registry.solver("dpm2m-sde") == DPM2M(eta=1.0)
    assert registry.solver("churn") == Churn()


def test_a_missing_package_is_named():
    with pytest.raises(MissingExtraError, match=r"pip install \"wayfield\[cli\]\""):
        registry.require("no_such_package_at_all")
