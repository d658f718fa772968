import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recblr.serving.events import DEPTH, Event, InvalidError, read_event, read_id, read_json

BODY = {"event_id": "e1", "user_id": "u", "item_id": "i", "timestamp": 1.5}


def test_an_event_is_read():
    assert read_event(BODY) == Event("e1", "u", "i", 1.5)
    assert read_event({**BODY, "user_id": 7, "timestamp": 3}) == Event("e1", "7", "i", 3.0)
    assert read_event({**BODY, "item_id": "007"}).item_id == "007"
    assert str(read_event({**BODY, "timestamp": -0.0}).timestamp) == "0.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": ""}, "user_id: must have 1 to 256 bytes, found 0"),
        ({"user_id": "é" * 129}, "user_id: must have 1 to 256 bytes, found 258"),
        ({"item_id": "a\0b"}, "item_id: holds a NUL"),
        ({"event_id": "\ud800"}, "event_id: a surrogate without its other half"),
        ({"timestamp": 2e15}, "timestamp: must be within ±1e\\+15, found 2000000000000000.0"),
        ({"timestamp": "1"}, "Expected `float`, got `str` - at `\\$.timestamp`"),
        ({"timestamp": 10**400}, "timestamp"),
        ({"timestamp": True}, "Expected `float`, got `bool`"),
        ({"user_id": True}, "user_id"),
        ({"user_id": None}, "user_id"),
        ({"more": 1}, "Object contains unknown field `more`"),
    ],
)
def test_what_is_wrong_with_an_event_is_said(change, message):
    with pytest.raises(InvalidError, match=message):
        read_event(BODY | change)


@pytest.mark.parametrize("body", [None, 1, "x", [], [BODY], {}, {"event_id": "e"}])
def test_anything_else_is_no_event(body):
    with pytest.raises(InvalidError):
        read_event(body)


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
        (b'{"a": {"\\ud800": 1}}', "a surrogate without its other half"),
    ],
)
def test_json_is_read_by_the_letter(text, message):
    with pytest.raises(InvalidError, match=message):
        read_json(text)


def test_pairs_of_surrogates_are_a_character():
    assert read_json(b'["\\ud83d\\ude00"]') == ["😀"]


def test_json_may_be_as_deep_as_allowed():
    assert read_json(b"[" * DEPTH + b"]" * DEPTH) is not None


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda it: st.lists(it) | st.dictionaries(st.text(), it),
    max_leaves=20,
))  # fmt: skip
def test_json_is_what_the_standard_library_reads(value):
    text = json.dumps(value).encode()
    assert read_json(text) == json.loads(text)


@given(st.text() | st.integers())
def test_an_id_is_text_or_refused(value):
    try:
        text = read_id(value, "id")
    except InvalidError:
        return
    assert text == str(value)
    assert 0 < len(text.encode()) <= 256
