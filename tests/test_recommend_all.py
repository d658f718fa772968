"""recommend_all writes what recommend returns, also after interruptions."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from cli.fixtures import Run, names
from conftest import TINY_MODEL, TINY_TRAINING, Tiny
from recblr.data.batches import PackedBatch
from recblr.errors import InputError
from recblr.files import exclusive_lock
from recblr.recommender import Recommender, load

pytestmark = pytest.mark.filterwarnings("ignore:.* of 150 users (or histories )?get no item")
BLOCK, PART = 7, 20  # users; 150 of them are 22 blocks in 11 parts of two


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "recblr.evaluation.ranking._BLOCK_NUMBERS",
        {"cpu": BLOCK * 256 * TINY_TRAINING.max_length},
    )
    monkeypatch.setattr("recblr.recommending._PART_USERS", PART)


@pytest.fixture
def ours(tiny: Tiny) -> Recommender:
    return load(tiny.artifact)


def expected(recommender: Recommender, **options: Any) -> pl.DataFrame:
    return recommender.recommend(users=recommender.data.user_ids.to_pylist(), **options)


class Blocks:
    """Counts the scored blocks, and raises KeyboardInterrupt at block ``stop``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.stop = 0, -1
        score = Recommender.score

        def counted(recommender: Recommender, batch: PackedBatch) -> torch.Tensor:
            if self.count == self.stop:
                raise KeyboardInterrupt
            self.count += 1
            return score(recommender, batch)

        monkeypatch.setattr(Recommender, "score", counted)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> Blocks:
    return Blocks(monkeypatch)


def kill(recommender: Recommender, blocks: Blocks, stop: int, **options: Any) -> None:
    """Recommend to all users and interrupt at block ``stop``."""
    blocks.stop = stop
    with pytest.raises(KeyboardInterrupt):
        recommender.recommend_all("out.parquet", **options)
    blocks.count, blocks.stop = 0, -1


@pytest.mark.parametrize(
    "options",
    [{}, {"k": 1}, {"k": 99}, {"k": 5, "hide_seen": False}, {"allow": 4}, {"deny": 4}],
    ids=str,
)
def test_the_file_equals_recommend(
    ours: Recommender, options: dict[str, Any], tmp_path: Path
) -> None:
    items = ours.data.item_ids.to_pylist()
    options = {
        name: items[:value] if name in ("allow", "deny") else value
        for name, value in options.items()
    }
    ours.recommend_all(tmp_path / "out.parquet", **options)
    frame = pl.read_parquet(tmp_path / "out.parquet")
    assert frame.equals(expected(ours, **options))
    assert names(tmp_path) == {"out.parquet"}


def test_the_columns_of_the_file(ours: Recommender, tmp_path: Path) -> None:
    """Also if the path looks like a partition of a data set."""
    (tmp_path / "k=3").mkdir()
    ours.recommend_all(tmp_path / "k=3" / "out.parquet", k=3)
    with pq.ParquetFile(tmp_path / "k=3" / "out.parquet") as file:
        kinds = {field.name: str(field.type) for field in file.schema_arrow}
        assert file.schema_arrow.metadata is None
        assert file.num_row_groups == 11
    assert list(kinds) == ["user_id", "item_id", "score", "rank"]
    assert (kinds["score"], kinds["rank"]) == ("float", "int64")


def test_integer_ids(tiny: Tiny, tmp_path: Path) -> None:
    code = pl.col("user_id", "item_id").rank("dense").cast(pl.Int64)
    numbers = Recommender("recblr", TINY_MODEL, replace(TINY_TRAINING, epochs=1))
    numbers.fit(tiny.frame.with_columns(code))
    numbers.recommend_all(tmp_path / "out.parquet", k=2)
    frame = pl.read_parquet(tmp_path / "out.parquet")
    assert frame.schema["user_id"] == frame.schema["item_id"] == pl.Int64
    assert frame.equals(expected(numbers, k=2))


@pytest.mark.parametrize("stop", [0, 1, 2, 5, 21])
def test_a_repeated_call_continues_a_killed_one(
    ours: Recommender, blocks: Blocks, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    everything = expected(ours, k=3)
    blocks.count = 0
    kill(ours, blocks, stop, k=3)
    assert names(tmp_path) == {"out.parquet.parts"}
    ours.recommend_all("out.parquet", k=3)
    assert blocks.count == 22 - stop // 2 * 2  # two blocks a part; complete parts are kept
    assert pl.read_parquet("out.parquet").equals(everything)
    assert names(tmp_path) == {"out.parquet"}


def test_an_incomplete_part_is_written_again(
    ours: Recommender, blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    everything = expected(ours, k=3)
    blocks.count = 0
    kill(ours, blocks, 6, k=3)
    complete = Path("out.parquet.parts/1.parquet").read_bytes()
    for name in ("1.parquet", "writing"):
        Path("out.parquet.parts", name).write_bytes(complete[: len(complete) // 2])
    Path("out.parquet.parts/2.parquet").write_bytes(b"")
    ours.recommend_all("out.parquet", k=3)
    assert blocks.count == 20
    assert pl.read_parquet("out.parquet").equals(everything)


def changed(change: Callable[[Recommender], None]) -> Callable[[Recommender], dict[str, Any]]:
    def apply(recommender: Recommender) -> dict[str, Any]:
        change(recommender)
        return {}

    return apply


def shorter(recommender: Recommender) -> None:
    recommender.training = replace(recommender.training, max_length=TINY_TRAINING.max_length - 1)


@torch.no_grad()
def other_weights(recommender: Recommender) -> None:
    recommender.network.layers[0].recurrent.lru.lam.add_(0.5)  # type: ignore[index, union-attr]


def other_log(recommender: Recommender) -> None:
    items = recommender.data.items.copy()
    items[-1] = (items[-1] + 1) % len(recommender.data.item_ids)
    recommender.data = replace(recommender.data, items=items)


CHANGES: dict[str, Callable[[Recommender], dict[str, Any]]] = {
    "k": lambda recommender: {"k": 4},
    "hide_seen": lambda recommender: {"hide_seen": False},
    "allow": lambda recommender: {"allow": recommender.data.item_ids.to_pylist()[:9]},
    "deny": lambda recommender: {"deny": recommender.data.item_ids.to_pylist()[:1]},
    "weights": changed(other_weights),
    "max_length": changed(shorter),
    "log": changed(other_log),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_of_another_model_log_or_call_are_not_used(
    ours: Recommender, blocks: Blocks, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kill(ours, blocks, 21, k=3)
    options = {"k": 3} | CHANGES[change](ours)
    ours.recommend_all("out.parquet", **options)
    assert blocks.count == 22
    assert pl.read_parquet("out.parquet").equals(expected(ours, **options))
    assert names(tmp_path) == {"out.parquet"}


def test_the_same_model_loaded_again_continues(
    tiny: Tiny, blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kill(load(tiny.artifact), blocks, 20, k=3)
    load(tiny.artifact).recommend_all("out.parquet", k=3)
    assert blocks.count == 2


def test_an_older_file_is_replaced_only_when_the_new_one_is_complete(
    ours: Recommender, blocks: Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out.parquet").write_text("old")
    kill(ours, blocks, 21)
    assert Path("out.parquet").read_text() == "old"
    ours.recommend_all("out.parquet")
    assert pl.read_parquet("out.parquet").equals(expected(ours))


def test_only_one_process_writes_a_file(
    ours: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = Path("out.parquet.parts")
    parts.mkdir()
    with exclusive_lock(parts), pytest.raises(InputError, match="another process is using"):
        ours.recommend_all("out.parquet")
    ours.recommend_all("out.parquet")
    assert names(tmp_path) == {"out.parquet"}


def test_a_file_that_cannot_be_written_is_refused(ours: Recommender, tmp_path: Path) -> None:
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "taken.parquet.parts").write_text("")
    before = names(tmp_path)
    for name, message in (
        ("folder.parquet", "is a folder; give a file"),
        ("taken.parquet", "cannot be written"),
        ("no/out.parquet", "does not exist; create it first"),
    ):
        with pytest.raises(InputError, match=message):
            ours.recommend_all(tmp_path / name)
    for options, message in (
        ({"k": 0}, "k must be at least 1"),
        ({"allow": []}, "leave no item"),
    ):
        with pytest.raises(InputError, match=message):
            ours.recommend_all(tmp_path / "out.parquet", **options)
    assert names(tmp_path) == before


# ---- on the command line -------------------------------------------------------------------------


def test_all_users_on_the_command_line(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    items = tiny.recommender.data.item_ids.to_pylist()
    arguments = ["--all", "-k", 3, "--deny", items[0], "--no-hide-seen", "-o", "out.parquet"]
    result = run("recommend", tiny.artifact, *arguments)
    assert (result.code, result.out, result.err) == (
        0,
        "recommendations for 150 users in out.parquet\n",
        "",
    )
    frame = pl.read_parquet("out.parquet")
    assert frame.equals(expected(tiny.recommender, k=3, deny=[items[0]], hide_seen=False))
    assert names(tmp_path) == {"out.parquet"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--all", "--all writes Parquet: give -o FILE.parquet"),
        ("--all -o out.csv", "--all writes Parquet: give -o FILE.parquet"),
        ("--all -o out.parquet --json", "no --json"),
        ("--all -o out.parquet --user ada", "exactly one of"),
        ("--all -o no/out.parquet", "the folder no does not exist"),
        ("--all -o out.parquet -k 0", "k must be at least 1"),
        ("--all -o out.parquet --allow x", "allow: item 'x' is not in the log of the model"),
    ],
)
def test_a_mistake_with_all_is_one_line_and_leaves_no_files(
    run: Run, tiny: Tiny, tmp_path: Path, line: str, message: str
) -> None:
    result = run("recommend", tiny.artifact, *line.split())
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(rf"recblr: .*{message}.*\n", result.err)
    assert names(tmp_path) == set()


SELECTIONS: dict[str, dict[str, Any]] = {
    "plain": {}, "seen": {"hide_seen": False}, "k": {"k": 200},
    "few allowed": {"allow": range(6), "hide_seen": False}, "denied": {"deny": range(20, 24)},
}  # fmt: skip


@pytest.mark.parametrize("name", SELECTIONS)
def test_a_scan_gives_what_all_scores_give(
    ours: Recommender, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without lists of candidates, and with a memory; in exact arithmetic no scores tie."""
    options = dict(SELECTIONS[name])
    for key in ("allow", "deny"):
        if key in options:
            options[key] = [ours.data.item_ids[row].as_py() for row in options[key]]
    every, users = ours.data.item_ids.to_pylist(), ours.data.user_ids.to_pylist()
    lists = [every[place % 5 :: 3] for place in range(len(users))]
    plain, ranked = expected(ours, **options), expected(ours, candidates=lists, **options)
    monkeypatch.setattr("recblr.recommending._SCAN_ITEMS", 1)
    monkeypatch.setattr("recblr.recommending._SCAN_HISTORIES", 100)
    monkeypatch.setattr("recblr.recommending._SCAN_BLOCK", 9)
    monkeypatch.setattr("recblr.retrieval._SCORE_ALL", 0)
    monkeypatch.setattr(Recommender, "score", None)  # is not called
    columns = ["user_id", "item_id", "rank"]
    for all_scores, scanned in (
        (plain, expected(ours, **options)), (ranked, expected(ours, candidates=lists, **options))
    ):  # fmt: skip
        assert scanned[columns].equals(all_scores[columns])
        torch.testing.assert_close(
            scanned["score"].to_torch(), all_scores["score"].to_torch(), rtol=1e-5, atol=1e-5
        )
    ours.recommend_all(tmp_path / "all.parquet", **options)
    assert pl.read_parquet(tmp_path / "all.parquet")[columns].equals(plain[columns])


@pytest.mark.parametrize("count", [1, 2, 5, 22])
def test_shards_together_equal_one_file(ours: Recommender, tmp_path: Path, count: int) -> None:
    ours.recommend_all(tmp_path / "all.parquet")
    for number in range(1, count + 1):
        ours.recommend_all(tmp_path / "parts", shard=(number, count))
    files = sorted((tmp_path / "parts").iterdir())
    assert len(files) == count
    assert pl.concat(map(pl.read_parquet, files)).equals(pl.read_parquet(tmp_path / "all.parquet"))


def test_wrong_shards_are_refused(ours: Recommender, tiny: Tiny, tmp_path: Path, run: Run) -> None:
    for shard in ((0, 2), (3, 2), (1, 23)):
        with pytest.raises(InputError, match="shard"):
            ours.recommend_all(tmp_path / "parts", shard=shard)
        assert not (tmp_path / "parts").exists()
    assert not (tmp_path / "parts").exists() or not list((tmp_path / "parts").iterdir())
    for arguments in (["--all", "--shard", "1"], ["--all", "--shard", "1/2"], ["--shard", "1/2"]):
        result = run("recommend", tiny.artifact, *arguments, "-o", "out.parquet")
        assert result.code == 2
        assert re.fullmatch("recblr: (--shard|give exactly one) .*\n", result.err)
    assert run("recommend", tiny.artifact, "--all", "--shard", "2/2", "-o", "parts").code == 0
    assert [file.name for file in Path("parts").iterdir()] == ["2-of-2.parquet"]
