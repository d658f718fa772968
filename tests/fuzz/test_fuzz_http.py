"""HTTP bodies and queries: answers are right or name the place, and what is stored is what was sent."""

import json
import math
import time
from collections.abc import Callable
from functools import cache
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.meaning import id_text, sent_time
from fuzz.outcomes import Outcomes, fuzz
from recblr.errors import InputError
from serving.fixtures import Site

SECONDS = 1_700_000_000
TIMES: list[Any] = [
    SECONDS, SECONDS + 0.25, SECONDS * 1000 + 1, SECONDS * 10**6 + 1, SECONDS * 10**9 + 1000,
    SECONDS * 10**9 + 1, 7, 0, -0.0, 1e300, 20240501123000, "2024-05-01", "2024-05-01 10:00:00.5",
    "2024-05-01T10:00:00+02:00", "2024-02-30", "9999-12-31", "1700000000", "now", "2024-05-01T10:00",
]  # fmt: skip
NAN, SURROGATE = math.nan, "\ud800"  # the body is not JSON then
ODD: list[Any] = [None, True, 1.5, [], {}, "", "\0", NAN, SURROGATE, 2**64, 10**400, "x" * 257]
IDS = ["i", "7", "07", "a/b", "?&%2F", "é", " ", "..", 7, -1, 2**63 - 1]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


def mostly(usual: st.SearchStrategy[Any], odd: list[Any]) -> st.SearchStrategy[Any]:
    """Of ten values, nine usual ones."""
    return st.integers(0, 9).flatmap(lambda number: usual if number else st.sampled_from(odd))


def ask(site: Site, method: str, url: str, body: Any = None) -> Any:
    """The answer; InputError with its message if it has a status of 400 to 499."""
    headers = {} if body is None else {"content-type": "application/json"}
    content = None if body is None else json.dumps(body)
    answer = site.client.request(method, url, content=content, headers=headers)
    while answer.status_code == 503:  # a disk that other programs keep busy for seconds; try again
        time.sleep(float(answer.headers["retry-after"]))
        answer = site.client.request(method, url, content=content, headers=headers)
    assert answer.status_code < 500, answer.text
    if answer.status_code != 200:
        raise InputError(answer.json()["error"])
    return answer.json()


def is_json(body: Any) -> bool:
    try:
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # also of an unpaired surrogate
        return False
    return True


# ---- events --------------------------------------------------------------------------------------


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """An event, now and then with a field that is missing, wrong or unknown."""
    event = {
        "event_id": draw(mostly(st.sampled_from(IDS) | TEXT, ODD)),
        "user_id": draw(mostly(st.sampled_from(["u", "v", 7]), ODD)),
        "item_id": draw(mostly(st.sampled_from(IDS) | TEXT, ODD)),
        "timestamp": draw(mostly(st.sampled_from(TIMES) | NUMBERS, ODD)),
    }
    if draw(st.integers(0, 19)) == 0:
        del event[draw(st.sampled_from([*event]))]
    return event | draw(mostly(st.just({}), [{"more": 1}]))


def status_of(event: dict[str, Any], stored: dict[str, tuple[str, str, float]]) -> str:
    """The status that the event has to get after the ``stored`` ones; it is stored if accepted."""
    if event.keys() != {"event_id", "user_id", "item_id", "timestamp"}:
        return "rejected"
    event_id, user_id, item_id = (
        id_text(event[f"{kind}_id"]) for kind in ("event", "user", "item")
    )
    time = sent_time(event["timestamp"])
    if event_id is None or user_id is None or item_id is None or time is None:
        return "rejected"
    content = user_id, item_id, float(time / 10**9)
    if event_id in stored:
        return "duplicate" if stored[event_id] == content else "rejected"
    stored[event_id] = content
    return "accepted"


def test_events(site: Site, keep: Callable[..., None]) -> None:
    outcomes, numbers = Outcomes(), count()

    @fuzz(2000)
    @given(st.lists(events(), min_size=1, max_size=4), st.booleans())
    def test(sent: list[dict[str, Any]], alone: bool) -> None:
        number = next(numbers)
        for event in sent:  # users and events of this request only
            for name in {"event_id", "user_id"} & event.keys():
                if id_text(event[name]):
                    event[name] = f"{number} {event[name]}"[:256]
        body = sent[0] if alone else {"events": sent}
        outcome = outcomes.of(lambda: ask(site, "POST", "/v1/events", body))
        if not is_json(body):
            assert isinstance(outcome, str)
            return
        stored: dict[str, tuple[str, str, float]] = {}
        expected = [status_of(event, stored) for event in (sent[:1] if alone else sent)]
        if isinstance(outcome, str):
            results = [{"status": "rejected", "reason": outcome}]
        else:
            results = outcome.value["results"]
        assert [result["status"] for result in results] == expected, (sent, results)
        for result, event in zip(results, sent, strict=False):
            if "reason" in result:
                assert any(name in result["reason"] for name in (*event, "missing")), result
        check_stored(site, stored)

    test()
    assert outcomes.counts["results"] > 0 < outcomes.counts["errors"]
    keep("fuzz of HTTP events", **outcomes.figures())


def check_stored(site: Site, stored: dict[str, tuple[str, str, float]]) -> None:
    """The users of the events have these events, and no others."""
    found: dict[str, tuple[str, str, float]] = {}
    for user in {user for user, _, _ in stored.values()}:
        answer = ask(site, "GET", f"/v1/users/{quote(user, safe='')}?history=9")
        for event in answer["history"]:
            found[event["event_id"]] = user, event["item_id"], event["timestamp"]
    assert found.keys() == stored.keys()
    for event_id, content in stored.items():
        assert found[event_id] == (*content[:2], pytest.approx(content[2], rel=1e-15, abs=1e-6))


# ---- recommendations -----------------------------------------------------------------------------

KS = mostly(st.sampled_from([1, 2, 5, 24, 1000]), [0, -1, 1001, 10**30, "3", 2.0, True, None])
SEEN = ["c001-i0002", "c000-i0001", "unknown"]  # the items of ann


def ids(site: Site) -> st.SearchStrategy[Any]:
    """A list of ids, mostly known ones; now and then none."""
    known = st.sampled_from([str(item) for item in site.engine.model.item_ids])
    return mostly(st.lists(mostly(known, [*IDS, *ODD]), max_size=4), [None, "c001-i0002", {}, [[]]])


def known_warnings(site: Site, body: dict[str, Any]) -> list[str]:
    """The beginnings of the warnings that an answer has to have."""
    lists = {name: body.get(name) or [] for name in ("history", "allow", "deny")}
    knows = site.engine.model.knows
    return [name for name, each in lists.items() if not all(knows(str(item)) for item in each)]


def is_valid(body: dict[str, Any]) -> bool:
    given_lists = [body[name] for name in ("history", "allow", "deny") if name in body]
    lists = [each for each in given_lists if each is not None]
    return (
        body.keys() <= {"user_id", "history", "allow", "deny", "k", "hide_seen"}
        and (body.get("user_id") is None) != (body.get("history") is None)
        and (body.get("user_id") is None or id_text(body["user_id"]) is not None)
        and all(type(each) is list and None not in map(id_text, each) for each in lists)
        and body.get("deny", []) is not None
        and type(body.get("k", 10)) is int and 1 <= body.get("k", 10) <= 1000
        and type(body.get("hide_seen", True)) is bool
    )  # fmt: skip


def expect_items(answer: dict[str, Any], every: dict[str, float], allowed: Any, k: int) -> None:
    """The best k of the allowed items, with the scores in ``every``, the full ranking."""
    expected = [item for item in every if allowed(item)][:k]
    found = {item["item_id"]: item["score"] for item in answer["items"]}
    assert len(found) == len(answer["items"]) == len(expected)
    assert [*found.values()] == pytest.approx([every[item] for item in expected], abs=1e-4)
    assert all(
        allowed(item) and every[item] == pytest.approx(found[item], abs=1e-4) for item in found
    )
    assert found or answer["reason"]


@pytest.fixture
def rank_all(site: Site) -> Callable[..., dict[str, float]]:
    """The scores of all items for a user or after a history, best first."""
    for number, item in enumerate(SEEN):
        event = {"event_id": item, "user_id": "ann", "item_id": item, "timestamp": SECONDS + number}
        ask(site, "POST", "/v1/events", event)

    @cache
    def rank(user: str | None, history: tuple[str, ...] = ()) -> dict[str, float]:
        whom = {"history": history} if user is None else {"user_id": user}
        answer = ask(site, "POST", "/v1/recommend", {**whom, "k": 1000, "hide_seen": False})
        return {item["item_id"]: item["score"] for item in answer["items"]}

    return rank


def test_recommend(
    site: Site, rank_all: Callable[..., dict[str, float]], keep: Callable[..., None]
) -> None:
    outcomes = Outcomes()
    users = mostly(st.sampled_from(["ann", "bob", 7]), ODD)
    bodies = st.fixed_dictionaries(
        {}, optional={"allow": ids(site), "deny": ids(site), "k": KS,
                      "hide_seen": mostly(st.booleans(), ["true", 1, None])},
    )  # fmt: skip
    whom = st.one_of(
        st.fixed_dictionaries({"user_id": users}), st.fixed_dictionaries({"history": ids(site)}),
        st.sampled_from([{}, {"user_id": "ann", "history": []}, {"user": "ann"}]),
    )  # fmt: skip

    @fuzz(2000)
    @given(bodies, whom)
    def test(options: dict[str, Any], whom: dict[str, Any]) -> None:
        body = options | whom
        outcome = outcomes.of(lambda: ask(site, "POST", "/v1/recommend", body))
        if isinstance(outcome, str):
            assert not (is_json(body) and is_valid(body)), (body, outcome)
            assert not is_json(body) or any(name in outcome for name in (*body, "user_id"))
            return
        assert is_valid(body), body
        answer = outcome.value
        beginnings = [text.partition(":")[0] for text in answer.get("warnings", [])]
        assert beginnings == known_warnings(site, body)
        history = tuple(map(str, body.get("history") or ()))
        user = None if body.get("user_id") is None else str(body["user_id"])
        seen = SEEN if user == "ann" else history
        hidden = seen if body.get("hide_seen", True) else ()
        denied = {*map(str, body.get("deny", [])), *hidden}
        allow = None if body.get("allow") is None else {*map(str, body["allow"])}
        expect_items(
            answer, rank_all(user, history),
            lambda item: item not in denied and (allow is None or item in allow), body.get("k", 10),
        )  # fmt: skip

    test()
    assert outcomes.counts["results"] > 0 < outcomes.counts["errors"]
    keep("fuzz of HTTP recommendations", **outcomes.figures())


RIGHT_KS = ["1", "3", "24", "1000", "5.0", "1e1"]
SWITCHES = {"true": True, "1": True, "false": False, "0": False}
PAIRS = st.tuples(
    mostly(st.just("k"), ["limit", "K", "", "user_id"]),
    mostly(st.sampled_from(RIGHT_KS), ["0", "-1", "03", "x", "", "9" * 50, "1001", "5.5"]),
) | st.tuples(st.just("hide_seen"), mostly(st.sampled_from([*SWITCHES]), ["yes", ""]))


def test_queries(
    site: Site, rank_all: Callable[..., dict[str, float]], keep: Callable[..., None]
) -> None:
    outcomes = Outcomes()

    @fuzz(2000)
    @given(mostly(st.sampled_from([b"ann", b"bob", b"a/b"]), [b"", b"\xff", b"\0", b"x" * 257]),
           st.lists(PAIRS, max_size=3))  # fmt: skip
    def test(user: bytes, pairs: list[tuple[str, str]]) -> None:
        query = "&".join(f"{name}={value}" for name, value in pairs)
        url = f"/v1/users/{quote(user, safe='')}/recommendations?{query}"
        outcome = outcomes.of(lambda: ask(site, "GET", url))
        values = dict(pairs)
        wrong = {
            "no parameter": bool(values.keys() - {"k", "hide_seen"}),
            "twice": len(values) < len(pairs),
            "k": any(name == "k" and text not in RIGHT_KS for name, text in pairs),
            "hide_seen": any(name == "hide_seen" and text not in SWITCHES for name, text in pairs),
            "user_id": user in (b"\xff", b"\0", b"x" * 257),
            "no such path": user == b"",
        }
        if isinstance(outcome, str):
            assert any(is_wrong and name in outcome for name, is_wrong in wrong.items()), outcome
            return
        assert not any(wrong.values()), (url, wrong)
        hides = user == b"ann" and SWITCHES[values.get("hide_seen", "true")]
        k = int(float(values.get("k", 10)))
        every = rank_all(user.decode())
        expect_items(outcome.value, every, lambda item: not (hides and item in SEEN), k)

    test()
    assert outcomes.counts["results"] > 0 < outcomes.counts["errors"]
    keep("fuzz of HTTP queries", **outcomes.figures())
