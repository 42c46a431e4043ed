"""Guidance from text: what it spells, and that nothing else is run."""

import pytest

from wayfield.core.errors import ConditionError, RangeError, UnknownNameError, WayfieldError
from wayfield.field.binding import NULL, Query
from wayfield.guide import CFG, Auto, Away, Guidance
from wayfield.guide.expression import SHORTHANDS, parse_guidance
from wayfield.guide.gates import Interval, Steps


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("CFG(4)", CFG(4)),
        (" CFG(w=4, away='negative') ", CFG(4, "negative")),
        ("CFG((1, 2.5))", CFG((1, 2.5))),
        ("3 * Away(NULL) + Auto(2) - 0.5 * Away('bad')", 3 * Away(NULL) + Auto(2) - 0.5 * Away("bad")),
        ("CFG(4).when(Interval(high=-2.0))", CFG(4).when(Interval(high=-2.0))),
        (
            "CFG(4).when(Interval.sigma(0.2, 1.6)).versus('base', 1.6)",
            CFG(4).when(Interval.sigma(0.2, 1.6)).versus("base", 1.6),
        ),
        ("Guidance(CFG(.6), noise=NULL, clip=(-1, 1))", Guidance(CFG(0.6), noise=NULL, clip=(-1, 1))),
        ("Away(Query('cond', 'weak'))", Away(Query("cond", "weak"))),
        ("-CFG(2).when(Steps([True, None is None]))", None),
    ],
)
def test_what_a_text_spells(text, want):
    if want is None:
        with pytest.raises(ConditionError):
            parse_guidance(text)
    else:
        assert parse_guidance(text) == want
        assert parse_guidance(repr(want)) == want


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", ConditionError),
        ("CFG(4", ConditionError),
        ("3", ConditionError),
        ("CFG()", ConditionError),
        ("CFG(4, 5, 6)", ConditionError),
        ("CFG(scale=4)", ConditionError),
        ("CFG(4) + 1", ConditionError),
        ("CFG(4) / 2", ConditionError),
        ("CFG(4).__class__", ConditionError),
        ("CFG(4).plan(1)", ConditionError),
        ("CFG(**{'w': 3})", ConditionError),
        ("__import__('os').system('true')", WayfieldError),
        ("[c for c in 'ab']", ConditionError),
        ("(lambda: 1)()", ConditionError),
        ("CFg(4)", UnknownNameError),
        ("Away(nul)", UnknownNameError),
        ("CFG('4')", RangeError),
        ("CFG(4).when(Interval(2, 1))", RangeError),
    ],
)
def test_nothing_else_is_run(text, error):
    with pytest.raises(error):
        parse_guidance(text)


def test_the_nearest_name_is_suggested():
    with pytest.raises(UnknownNameError, match="Did you mean 'Interval'"):
        parse_guidance("CFG(4).when(Intervall())")


def test_shorthands_resolve():
    for name, module in SHORTHANDS.items():
        assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_the_value_of_steps():
    assert parse_guidance("CFG(2).when(Steps((True, 0.5, False)))") == CFG(2).when(Steps((True, 0.5, False)))
