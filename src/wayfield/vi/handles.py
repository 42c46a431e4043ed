"""What a program is given when it is run: a handle that draws, and one that returns given values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from torch.distributions import Distribution

from wayfield.core.errors import DTypeError, UnknownNameError, UnsupportedError, WayfieldError
from wayfield.vi.program import Program, Site
from wayfield.vi.strategy import Strategy

if TYPE_CHECKING:
    from wayfield.vi.run import Run
    from wayfield.vi.stochastic import StochasticDensity

__all__ = ["Drawing", "Named", "Replaying"]


class Named:
    """Names of a run: a prefix while in a nested program, and no name twice."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.prefix = ""

    def add(self, site: Site) -> None:
        """Keep a site. Raises WayfieldError for a name that is there already."""
        if site.name in self.sites:
            remedy = "Give every site of a program its own name, in a loop f'z{k}'."
            raise WayfieldError(f"site {site.name!r}", got="the name twice", expected="distinct names", remedy=remedy)
        self.sites[site.name] = site

    def call(self, prefix: str, program: Program, *args: Any) -> Any:
        """See `Handle.call`."""
        outer, self.prefix = self.prefix, f"{self.prefix}{prefix}/"
        try:
            return program(self, *args)
        finally:
            self.prefix = outer

    def factor(self, name: str, log_weight: Tensor) -> None:
        """See `Handle.factor`."""
        self.add(Site(self.prefix + name, None, None, given=True, known=log_weight))

    def adopt(self, name: str, dist: StochasticDensity, values: Mapping[str, Site], log_w: Tensor, given: bool) -> Any:
        """Name what a stochastic density drew or was given, and its weight; gives what the program gets."""
        if dist.alone is not None:
            site = values[dist.alone]
            self.add(Site(name or dist.alone, None, site.value, given=given, known=log_w, width=site.event_dims))
            return site.value
        zero = torch.zeros((), dtype=log_w.dtype)
        for key, site in values.items():
            label = f"{name}/{key}" if name else key
            self.add(Site(label, None, site.value, given=given, known=zero, width=site.event_dims))
        self.add(Site(name or "density", None, None, given=given, known=log_w))
        return {key: site.value for key, site in values.items()}


def _held(name: str, dist: StochasticDensity, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given values that belong to a stochastic density."""
    if dist.alone is not None:
        own = name or dist.alone
        return {dist.alone: given[own]} if own in given else {}
    start = f"{name}/" if name else ""
    return {key.removeprefix(start): value for key, value in given.items() if key.startswith(start)}


@final
class Drawing(Named):
    """The handle that draws. given: values of sites that are conditioned on instead."""

    def __init__(self, run: Run, given: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.run, self.given = run, given or {}

    def sample(self, name: str, dist: Any, strategy: Strategy | None = None) -> Any:
        """See `Handle.sample`."""
        name = self.prefix + name
        if not isinstance(dist, Distribution):
            return self.density(name, _checked(name, dist))
        if name in self.given:
            self.add(Site(name, dist, self.given[name], given=True))
            return self.given[name]
        site = self.run.draw(name, dist, strategy)
        self.add(site)
        return site.value

    def density(self, name: str, dist: StochasticDensity, *args: Any) -> Any:
        """Draw from a stochastic density, or weigh its given values."""
        if self.given and (values := _held(name, dist, self.given)):
            log_w = dist.estimate_log_density(self.run, values, *args)
            return self.adopt(name, dist, _sites(values), log_w, given=True)
        drawn, log_w = dist.random_weighted(self.run, *args)
        return self.adopt(name, dist, drawn, log_w, given=False)

    def observe(self, name: str, dist: Distribution, value: Tensor | None) -> Tensor:
        """See `Handle.observe`."""
        name = self.prefix + name
        if value is None:
            site = self.run.draw(name, dist, None)
            self.add(replace(site, given=True))
            assert site.value is not None
            return site.value
        self.add(Site(name, dist, value, given=True))
        return value

    def finish(self) -> None:
        """Refuse given values the program never asked for (UnsupportedError)."""
        _unused(self.given, self.sites, "Give values of the program's own sites.")


@final
class Replaying(Named):
    """The handle that returns given values."""

    def __init__(self, run: Run, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.run, self.given = run, given

    def sample(self, name: str, dist: Any, strategy: Strategy | None = None) -> Any:
        """See `Handle.sample`."""
        name = self.prefix + name
        if not isinstance(dist, Distribution):
            return self.density(name, _checked(name, dist))
        value = self._value(name)
        self.add(Site(name, dist, value, strategy))
        return value

    def density(self, name: str, dist: StochasticDensity, *args: Any) -> Any:
        """Weigh the given values of a stochastic density."""
        values = _held(name, dist, self.given)
        log_w = dist.estimate_log_density(self.run, values, *args)
        return self.adopt(name, dist, _sites(values), log_w, given=False)

    def observe(self, name: str, dist: Distribution, value: Tensor | None) -> Tensor:
        """See `Handle.observe`."""
        value = self._value(self.prefix + name) if value is None else value
        self.add(Site(self.prefix + name, dist, value, given=True))
        return value

    def _value(self, name: str) -> Tensor:
        try:
            return self.given[name]
        except KeyError:
            remedy = f"Here are {sorted(self.given)}. Draw it in the guide under this name, or observe it in the model."
            raise UnknownNameError(f"site {name!r}", got="no value", expected="a value for it", remedy=remedy) from None

    def finish(self) -> None:
        """Refuse values the program never asked for (UnsupportedError)."""
        _unused(self.given, self.sites, "Sample it in the model too, or marginalise it: vi.marginal(guide, keep=...).")


def _checked(name: str, dist: Any) -> StochasticDensity:
    if not hasattr(dist, "random_weighted"):
        remedy = "Give one of torch.distributions, or vi.marginal(...), vi.normalize(...)."
        raise DTypeError(f"site {name!r}", got=type(dist).__name__, expected="a distribution", remedy=remedy)
    return dist


def _sites(values: Mapping[str, Tensor]) -> dict[str, Site]:
    return {key: Site(key, None, value) for key, value in values.items()}


def _unused(given: Mapping[str, Tensor], sites: Mapping[str, Site], remedy: str) -> None:
    if extra := sorted(given.keys() - sites.keys()):
        raise UnsupportedError(f"site {extra[0]!r}", got=f"values for {extra}", expected=sorted(sites), remedy=remedy)
