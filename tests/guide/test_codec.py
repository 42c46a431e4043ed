"""Guidance as JSON: it comes back equal, and nothing in a file is trusted."""

import json

import pytest

from wayfield.core.errors import CheckpointError, ConditionError, RangeError, UnknownNameError
from wayfield.field.binding import NULL, Query
from wayfield.guide import CFG, Auto, Away, Guidance
from wayfield.guide.codec import PARTS, from_json, to_json
from wayfield.guide.gates import Interval, Schedule, Stage, Steps

GUIDANCES = [
    CFG(4),
    CFG((1.0, 2.5), "negative"),
    CFG(4) + Auto(2) - 0.5 * Away(NULL, of=Query("second", "weak")),
    (3 * Away("negative")).when(Interval(high=2.0)).when(Schedule(((-1.0, 0.0), (1.0, 2.0)))),
    CFG(4).when(Steps((True, 0.5, False))).versus("base", 1.6).when(Stage(0)),
    Guidance(CFG(0.6), noise=NULL, clip=(-1.0, 1.0), rows="late"),
    Guidance(3 * Away(NULL), base=NULL),
]


@pytest.mark.parametrize("guidance", GUIDANCES, ids=str)
def test_round_trip(guidance):
    text = to_json(guidance)
    assert from_json(text) == guidance
    assert to_json(from_json(text)) == text
    json.loads(text, parse_constant=pytest.fail)  # strict JSON: no NaN, no Infinity


def test_every_part_resolves():
    for name, module in PARTS.items():
        assert getattr(__import__(module, fromlist=[name]), name).__name__ == name


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", CheckpointError),
        ("[]", CheckpointError),
        ('{"format": 2, "guidance": null}', CheckpointError),
        ('{"format": 1, "guidance": 3}', CheckpointError),
        ('{"format": 1, "guidance": {"part": "os.system", "command": "true"}}', UnknownNameError),
        ('{"format": 1, "guidance": {"part": "CFG", "scale": 3}}', CheckpointError),
        ('{"format": 1, "guidance": {"part": "CFG", "w": "3"}}', RangeError),
        ('{"format": 1, "guidance": {"function": "mine"}}', UnknownNameError),
    ],
)
def test_bad_texts(text, error):
    with pytest.raises(error):
        from_json(text)


def test_functions_need_names():
    with pytest.raises(ConditionError, match="functions="):
        to_json(CFG(2).when(Unknown()))  # type: ignore[arg-type]


class Unknown(Interval.__bases__[0]):  # a gate that is no dataclass
    def open(self, step, state):
        return True
