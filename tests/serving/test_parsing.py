import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recblr.errors import InputError
from recblr.serving.parsing import MAX_DEPTH, InvalidError, parse_event, parse_json
from recblr.serving.storage import Event

BODY = {"event_id": "e1", "user_id": "u", "item_id": "i", "timestamp": 1.5}


def test_an_event():
    assert parse_event(BODY) == Event("e1", "u", "i", 1.5)
    assert parse_event({**BODY, "user_id": 7, "timestamp": 3}) == Event("e1", "7", "i", 3.0)
    assert parse_event({**BODY, "item_id": "007"}).item_id == "007"
    assert str(parse_event({**BODY, "timestamp": -0.0}).timestamp) == "0.0"
    assert parse_event({**BODY, "timestamp": "2024-05-01T00:00:00.5Z"}).timestamp == 1714521600.5
    assert parse_event({**BODY, "timestamp": 1714521600500}).timestamp == 1714521600.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": ""}, "user_id: must have 1 to 256 bytes, found 0"),
        ({"user_id": "é" * 129}, "user_id: must have 1 to 256 bytes, found 258"),
        ({"item_id": "a\0b"}, "item_id: contains a NUL"),
        ({"event_id": "\ud800"}, "event_id: contains an unpaired surrogate"),
        (
            {"timestamp": 2e13},
            "timestamp: found the time 20000000000000, which is not",
        ),
        ({"timestamp": "now"}, "timestamp: found 'now'; send a number, or a date"),
        ({"timestamp": 10**400}, "timestamp: found "),
        ({"timestamp": float("inf")}, "timestamp: found 'inf'"),
        ({"timestamp": True}, "got `bool` - at `\\$.timestamp`"),
        ({"timestamp": None}, "got `null` - at `\\$.timestamp`"),
        ({"timestamp": [1]}, "got `array` - at `\\$.timestamp`"),
        ({"user_id": True}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"more": 1}, "Object contains unknown field `more`"),
    ],
)
def test_an_invalid_event(change, message):
    with pytest.raises(InputError, match=message) as error:
        parse_event(BODY | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("body", [None, 1, "x", [], [BODY], {}, {"event_id": "e"}])
def test_values_that_are_not_events(body):
    with pytest.raises(InvalidError):
        parse_event(body)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "line 1 column 2"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b'{"a": NaN}', "NaN, which is not JSON"),
        (b"-Infinity", "-Infinity"),
        (b'{"a": 1, "b": 2, "a": 1}', "'a' twice"),
        (b'[{"x": {"a": 1, "a": 2}}]', "'a' twice"),
        (b"[" * 33 + b"]" * 33, "more than 32 levels"),
        (b"[" * 100_000, "more than 32 levels|not JSON"),
        (b"1" * 5000, "too long"),
        (b'{"a": {"\\ud800": 1}}', "an unpaired surrogate"),
    ],
)
def test_invalid_json(text, message):
    with pytest.raises(InvalidError, match=message):
        parse_json(text)


def test_a_pair_of_surrogates_is_one_character():
    assert parse_json(b'["\\ud83d\\ude00"]') == ["😀"]


def test_json_of_the_maximum_depth():
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
))  # fmt: skip
def test_values_are_those_of_the_standard_library(value):
    text = json.dumps(value).encode()
    assert parse_json(text) == json.loads(text)
