"""Events of log files are added to an event log once, and in the order of the file."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from conftest import Tiny
from recblr.data.log import read_log
from recblr.data.preparing import prepare
from recblr.errors import InputError
from recblr.recommender import load
from recblr.serving.model import ServedModel
from recblr.serving.replay import replay
from recblr.serving.requests import Query
from recblr.serving.storage import Event
from serving.fixtures import Store

NOW = 1714521600
Rows = list[tuple[Any, ...]]


@pytest.fixture
def ids(a: ServedModel) -> list[str]:
    return [str(name) for name in a.item_ids]


class Replay:
    """Replays rows of (user, item, time) or (user, item) as a log file into one store."""

    def __init__(self, model: Path, store: Store, folder: Path) -> None:
        self.model, self.store, self.folder = model, store, folder

    def __call__(self, rows: Rows, name: str = "clicks.csv") -> tuple[int, int]:
        """How many events were added, and how many were there."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        header = ["user_id", "item_id", "timestamp"][: len(rows[0])]
        pl.DataFrame(rows, header, orient="row").write_csv(path)
        result = replay(self.model, self.store.name, str(path))
        assert result["added"] + result["present"] == len(rows)
        return result["added"], result["present"]

    def items(self, user: str = "u") -> list[str]:
        log = self.store.log()
        events = log.events(("default", user))
        log.close()
        return [item for _, _, item, _ in events]


@pytest.fixture
def add(models: Path, store: Store, tmp_path: Path) -> Replay:
    return Replay(models / "a", store, tmp_path)


def test_files_of_one_name_are_different_logs(add: Replay, ids: list[str]) -> None:
    day1: Rows = [("u", ids[0], NOW), ("v", ids[1], NOW)]
    day2: Rows = [("u", ids[2], NOW + 9), ("v", ids[1], NOW + 9)]
    assert add(day1, "day1/clicks.csv") == (2, 0)
    assert add(day2, "day2/clicks.csv") == (2, 0)
    assert add(day1 + day2, "both.csv") == (0, 4)
    assert (add.items(), add.items("v")) == ([ids[0], ids[2]], [ids[1], ids[1]])


def test_equal_rows_are_as_many_events(add: Replay, ids: list[str]) -> None:
    once: Rows = [("u", ids[0], NOW)]
    assert add(once * 2) == (2, 0)
    assert add(once) == (0, 1)
    assert add(once * 3) == (1, 2)
    assert add.items() == [ids[0]] * 3


def test_events_that_came_in_another_way_are_known(
    add: Replay, a: ServedModel, ids: list[str]
) -> None:
    """Over HTTP, with ids of the client, and by replay in version 0.1.0, with names of files."""
    engine = add.store.engine(a)
    events = [
        Event("client", "u", ids[0], float(NOW)),
        Event("clicks.csv:000000000001", "u", ids[1], float(NOW)),
    ]
    engine.record("default", events).result(60)
    engine.close()
    assert add([("u", ids[0], NOW), ("u", ids[1], NOW), ("u", ids[2], NOW)]) == (1, 2)


def test_rows_at_one_time_keep_their_order(add: Replay, ids: list[str]) -> None:
    rows: Rows = [("u", item, NOW) for item in ids * 2]
    assert add(rows) == (len(rows), 0)
    assert add.items() == ids * 2
    assert add([*rows[:5], ("u", ids[0], NOW - 1)]) == (1, 5)
    assert add.items() == [ids[0], *ids, *ids]


def test_a_log_that_is_newest_first_has_one_order_in_prepare_and_in_replay(
    add: Replay, ids: list[str]
) -> None:
    rows: Rows = [("u", ids[number % 3], NOW + number // 2) for number in range(60)]
    assert add(rows[::-1]) == (60, 0)
    data = prepare(read_log(add.folder / "clicks.csv"))
    assert (
        add.items()
        == [data.item_ids[row].as_py() for row in data.items]
        == [row[1] for row in rows]
    )
    again = replay(add.model, add.store.name, str(add.folder / "clicks.csv"))
    assert (again["added"], again["order"]) == (0, data.summary["order"])
    assert "newest first" in again["order"]


def test_nanoseconds_keep_their_order(add: Replay, ids: list[str]) -> None:
    """Though float64 does not distinguish them."""
    rows: Rows = [
        ("u", item, 1_700_000_000_000_000_000 + 10 * number) for number, item in enumerate(ids)
    ]
    assert add(rows[::-1]) == (len(ids), 0)
    assert add.items() == ids
    assert add(rows) == (0, len(ids))


def test_replayed_users_get_what_the_recommender_recommends(
    add: Replay, a: ServedModel, tiny: Tiny
) -> None:
    tied = tiny.frame.with_columns(pl.lit(NOW).alias("timestamp"))
    assert add(tied.rows()) == (len(tied), 0)
    lengths = tied.group_by("user_id", maintain_order=True).len()
    users = lengths.filter(pl.col("len") <= 16)[
        "user_id"
    ].to_list()  # offline reads the last 16 events
    engine, offline = add.store.engine(a), load(add.model)
    for user in users[:30]:
        history = tied.filter(pl.col("user_id") == user)["item_id"].to_list()
        expected = offline.recommend(histories=[history], k=3)["item_id"].to_list()
        ranked = engine.recommend(("default", user), Query(3)).result(60)
        assert [a.item_ids[row] for row in ranked.rows] == expected
    engine.close()


def test_an_id_that_another_event_has_is_an_error(add: Replay, ids: list[str]) -> None:
    assert add([("u", ids[0], NOW)]) == (1, 0)
    log = add.store.log()
    ((_, event_id, *_),) = log.events(("default", "u"))
    with log.transaction():
        log.erase(("default", "u"))
        log.add([("default", Event(event_id, "v", ids[1], 1.0))])
    log.close()
    with pytest.raises(InputError, match=f"^another event in .* has the id {event_id!r}"):
        add([("u", ids[0], NOW)])
    assert add.items() == []


def test_two_logs_without_times_have_no_order(add: Replay, ids: list[str]) -> None:
    rows: Rows = [("u", ids[1]), ("v", ids[1]), ("u", ids[0])]
    assert add(rows) == (3, 0)
    assert add(rows) == (0, 3)
    assert add([*rows, ("u", ids[2])]) == (1, 3)  # the file has grown
    assert add.items() == [ids[1], ids[0], ids[2]]
    with pytest.raises(InputError, match="has no times, and user 'u' has events of another log"):
        add([("u", ids[2]), ("u", ids[1])], "other.csv")
    assert add(rows) == (0, 3)
    assert add([("w", ids[2])], "other.csv") == (1, 0)
    assert add([("u", ids[0], NOW)], "later.csv") == (1, 0)
    assert add(rows) == (0, 3)
    assert add.items() == [ids[1], ids[0], ids[2], ids[0]]


@pytest.mark.parametrize("row", [("u" * 257, "i"), ("u", "é" * 129), ("u\0", "i")])
def test_ids_have_the_limits_of_http(add: Replay, row: tuple[str, str]) -> None:
    with pytest.raises(InputError, match=r"clicks.csv: line 2, .*(must have 1 to 256 bytes|NUL)"):
        add([(*row, NOW)])


def test_times_that_cannot_be_stored_are_refused(add: Replay, ids: list[str]) -> None:
    with pytest.raises(
        InputError, match=r"clicks.csv: found the time 20240501123000, which is not"
    ):
        add([("u", ids[0], 20240501123000)])


def test_items_that_the_model_does_not_know_are_named(add: Replay, ids: list[str]) -> None:
    message = f"item '{ids[0]}x' is not in the log of the model .did you mean '{ids[0]}'..; their"
    with pytest.warns(UserWarning, match=message):
        assert add([("u", f"{ids[0]}x", NOW)]) == (1, 0)
