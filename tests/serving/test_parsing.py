import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recblr.data.vocabulary import check_id
from recblr.errors import InputError
from recblr.serving import parsing
from recblr.serving.http_input import read_ids
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


class CountedKey(str):
    """A key that counts how often it is compared or hashed."""

    count = 0

    def __eq__(self, other: object) -> bool:
        CountedKey.count += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        CountedKey.count += 1
        return str.__hash__(self)


@pytest.mark.parametrize("number", [1000, 4000])
def test_the_work_to_find_a_duplicate_key_is_linear(number):
    keys = [CountedKey(key) for key in range(number)]
    CountedKey.count = 0
    with pytest.raises(InvalidError, match="twice in one object"):
        parsing._unique_keys([(key, 1) for key in [*keys, CountedKey(number - 1)]])
    assert CountedKey.count < 8 * number


def test_bodies_of_many_values_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(parsing.json, "loads", lambda *_, **__: pytest.fail("decoded"))
    for text in (b"[" + b"1," * 60_000 + b"1]", b'{"a":' * 60_000, b"," * 10**6):
        with pytest.raises(InvalidError, match="more than 50,000 commas and colons"):
            parse_json(text)


def test_a_message_does_not_repeat_a_long_key():
    key = "k" * 100_000
    with pytest.raises(InvalidError) as error:
        parse_json(json.dumps({key: 1})[:-1].encode() + f', "{key}": 2}}'.encode())
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("values", [["a", 7], ["é" * 128], ["x" * 256], [1, 2], []])
def test_ids_of_a_list_are_those_one_by_one(values):
    assert read_ids(values, "deny") == tuple(check_id(value, "deny") for value in values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", ""], r"deny\[1\]: must have 1 to 256 bytes, found 0"),
        (["a", "x" * 257], r"deny\[1\]: must have"),
        (["a\0"], r"deny\[0\]: contains a NUL"),
        (["a"] * 20_001, "deny: give at most 20,000 ids, found 20,001"),
    ],
)
def test_lists_that_are_no_ids_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        read_ids(values, "deny")


JSON_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from(':,"\\aé\n'), max_size=4),
    lambda each: st.lists(each, max_size=3)
    | st.dictionaries(st.sampled_from(["a", "b:", "c"]), each, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(JSON_TEXTS, st.booleans())
def test_both_ways_to_parse_give_the_same(value, escaped):
    text = json.dumps(value, ensure_ascii=escaped).encode()
    parsed = parse_json(text)
    assert parsed == parsing._parse_slowly(text)
    assert json.dumps(parsed) == json.dumps(parsing._parse_slowly(text))  # 7 is not 7.0


def test_a_key_that_is_there_twice_is_found_beside_texts_with_colons():
    for text in (
        b'{"a": 1, "a": 2}',
        b'{"a": ":", "b": {"c": 1, "c": 1}}',
        b'[{"a:": 1, "a:": 1}]',
    ):
        with pytest.raises(InvalidError, match="twice in one object"):
            parse_json(text)
    assert parse_json(b'{"a": ":", "b": "12:30"}') == {"a": ":", "b": "12:30"}
