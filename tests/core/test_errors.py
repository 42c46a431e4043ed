import pickle

import pytest

from wayfield.core import errors
from wayfield.core.errors import MissingExtraError, RangeError, UnknownNameError, WayfieldError, unknown_name

BUILTIN = {
    "CheckpointError": OSError,
    "ConditionError": ValueError,
    "DTypeError": TypeError,
    "DeviceError": ValueError,
    "GridError": ValueError,
    "MissingExtraError": ImportError,
    "NonFiniteError": ArithmeticError,
    "RangeError": ValueError,
    "ShapeError": ValueError,
    "SingularError": ArithmeticError,
    "UnknownNameError": KeyError,
    "UnsupportedError": ValueError,
}


@pytest.mark.parametrize("name", BUILTIN)
def test_each_is_what_a_python_programmer_would_catch(name):
    error = getattr(errors, name)("thing", got=3, expected="2", remedy="Do.")
    assert isinstance(error, BUILTIN[name])
    assert isinstance(error, WayfieldError)
    assert str(error) == "thing: got 3; expected 2. Do."
    again = pickle.loads(pickle.dumps(error))  # they cross process borders
    assert (type(again), str(again)) == (type(error), str(error))


def test_all_are_listed():
    assert set(BUILTIN) == {n for n in errors.__all__ if n.endswith("Error")} - {"WayfieldError"}


def test_nearest_name_ignores_case():
    assert "Did you mean 'EDM'?" in str(unknown_name("path", "Edm", ["EDM", "VE", "VP"]))
    assert "Choose one of: EDM, VE." in str(unknown_name("path", "zzzz", ["VE", "EDM"]))
    assert isinstance(unknown_name("path", "x", ["y"]), UnknownNameError)
    assert issubclass(RangeError, ValueError)
    assert issubclass(MissingExtraError, ImportError)
