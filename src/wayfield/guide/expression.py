"""Guidance from text, as on the command line: `(3 * Away(NULL)).when(Interval(high=2.0)) + Auto(2)`.

The text is read as what it looks like, an expression of parts, numbers, strings and names, and of nothing else: no
import, no attribute, no function that is not listed. `repr` of a guidance is such a text.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from wayfield.core.errors import ConditionError, WayfieldError, unknown_name
from wayfield.field.binding import COND, NULL, Query
from wayfield.guide.codec import PARTS
from wayfield.guide.guidance import Guidance
from wayfield.guide.terms import Term

__all__ = ["SHORTHANDS", "parse_guidance"]

SHORTHANDS: Mapping[str, str] = {
    "apg": "wayfield.guide.apg",
    "apg_preset": "wayfield.guide.apg",
    "policy": "wayfield.guide.policy",
    "rlg": "wayfield.guide.rlg",
}
"""Functions that build expressions, and their modules."""

_NAMES = {"COND": COND, "NULL": NULL}
_METHODS = ("through", "when", "versus", "sigma", "from_ho_salimans")


def parse_guidance(text: str) -> Guidance | Term:
    """The guidance that a text spells.

    Raises ConditionError for other syntax, UnknownNameError for an unknown name, and what a part raises for its fields.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise _wrong(text, f"{error.msg} at column {error.offset}") from error
    try:
        made = _value(tree, text)
    except WayfieldError:
        raise
    except TypeError as error:  # too few, too many or unknown arguments
        raise _wrong(text, str(error)) from error
    if not isinstance(made, Guidance | Term):
        raise _wrong(text, f"a {type(made).__name__}")
    return made


def _value(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, (bool, int, float, str)):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.Name(id=name):
            raise unknown_name("name in a guidance", name, [*_NAMES, *PARTS, *SHORTHANDS])
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, text) for item in items)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, ast.Add | ast.Sub | ast.Mult):
            a, b = _value(left, text), _value(right, text)
            return a + b if isinstance(op, ast.Add) else a - b if isinstance(op, ast.Sub) else a * b
        case ast.Call(func=function, args=args, keywords=keywords) if all(k.arg for k in keywords):
            named = {str(k.arg): _value(k.value, text) for k in keywords}
            return _function(function, text)(*[_value(a, text) for a in args], **named)
    raise _wrong(text, ast.unparse(node))


def _function(node: ast.expr, text: str) -> Callable[..., Any]:
    match node:
        case ast.Name(id="Query"):
            return Query
        case ast.Name(id=name):
            known = {**PARTS, **SHORTHANDS}
            if name not in known:
                raise unknown_name("part", name, known)
            return getattr(importlib.import_module(known[name]), name)
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in PARTS and attr in _METHODS:
            return getattr(getattr(importlib.import_module(PARTS[name]), name), attr)
        case ast.Attribute(value=value, attr=attr) if attr in _METHODS:
            owner = _value(value, text)
            if isinstance(owner, Term):
                return getattr(owner, attr)
    raise _wrong(text, ast.unparse(node))


def _wrong(text: str, got: str) -> ConditionError:
    remedy = "Write e.g. 'CFG(3)', 'CFG(3).when(Interval(high=2.0))' or '3 * Away(NULL) + Auto(2)'."
    return ConditionError(f"guidance {text!r}", got=got, expected="an expression of guidance parts", remedy=remedy)
