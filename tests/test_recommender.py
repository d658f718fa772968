"""Recommendations in the log's own ids, and an artifact that is whole or refused."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import numpy as numpy_arrays
from safetensors.torch import load_file, save_file

import recblr
from conftest import TINY_MODEL, TINY_TRAINING, Tiny, assert_same_tensors
from recblr.artifact import _digest
from recblr.errors import DivergedError, InputError
from recblr.files import sha256
from recblr.memory import MemoryConfig
from recblr.models.fpmc import FPMCConfig
from recblr.recommender import Recommender, load
from recblr.training.trainer import TrainConfig

FILES = {
    "config.json",
    "histories.parquet",
    "manifest.json",
    "memory.safetensors",
    "model.safetensors",
    "vocabulary.parquet",
}
LOSS = "recblr.training.trainer.cross_entropy"


def untrained() -> Recommender:
    return Recommender("recblr", TINY_MODEL, replace(TINY_TRAINING, epochs=1))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def history_of(frame: pl.DataFrame, user: Any) -> list[Any]:
    """A user's items in order of time, straight from the log."""
    rows = frame.with_row_index().filter(pl.col("user_id") == user).sort("timestamp", "index")
    return rows["item_id"].to_list()


def scores_of(recommender: Recommender, history: list[Any]) -> dict[Any, float]:
    """Every item's score after a history: the model's, and what the memory adds, from equation (1)."""
    ids = recommender.data.item_ids.to_pylist()
    latest = history[-recommender.training.max_length :]
    items = torch.tensor([ids.index(item) for item in latest])
    with torch.no_grad():
        hidden, _ = recommender.network(items, torch.tensor([0, len(items)]))
        scores = hidden[-1] @ recommender.network.item_embeddings.T
    memory = recommender.memory
    assert memory is not None
    rows = items[-memory.config.reach :].flip(0)
    decay = memory.config.decay ** torch.arange(len(rows))
    m = decay @ torch.from_numpy(memory.matrix.toarray())[rows]
    scores += memory.weight * torch.log1p(memory.scale * m)
    scores[[ids.index(item) for item in set(history)]] += memory.repeat
    return dict(zip(ids, scores.tolist(), strict=True))


# ---- recommend -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hide_seen", [True, False])
@pytest.mark.parametrize("k", [1, 5])
def test_recommends_the_best_scores(tiny: Tiny, k: int, hide_seen: bool) -> None:
    users = tiny.recommender.data.user_ids.to_pylist()[::10]
    frame = tiny.recommender.recommend(users=users, k=k, hide_seen=hide_seen)
    for user in users:
        history = history_of(tiny.frame, user)
        scores = scores_of(tiny.recommender, history)
        left = [item for item in scores if not (hide_seen and item in history)]
        best = sorted(left, key=lambda item: -scores[item])[:k]
        rows = frame.filter(pl.col("user_id") == user)
        assert rows["item_id"].to_list() == best
        assert rows["score"].to_list() == pytest.approx([scores[i] for i in best], abs=1e-5)
        assert rows["rank"].to_list() == list(range(1, len(best) + 1))
    assert frame["user_id"].unique(maintain_order=True).to_list() == users


def test_the_frame(tiny: Tiny) -> None:
    schema = {"user_id": pl.String, "item_id": pl.String, "score": pl.Float32, "rank": pl.Int64}
    users = tiny.recommender.data.user_ids.to_pylist()[:3]
    assert tiny.recommender.recommend(users=users).schema == schema
    nobody = tiny.recommender.recommend(users=[])
    assert nobody.is_empty()
    assert nobody.schema == schema
    frame = tiny.recommender.recommend(histories=[history_of(tiny.frame, users[0])])
    assert frame.schema == {**schema, "user_id": pl.Int64}
    assert set(frame["user_id"]) == {0}


def test_a_user_and_the_same_history_agree(tiny: Tiny) -> None:
    users = tiny.recommender.data.user_ids.to_pylist()
    by_user = tiny.recommender.recommend(users=users, k=7)
    by_history = tiny.recommender.recommend(
        histories=[history_of(tiny.frame, user) for user in users], k=7
    )
    assert by_user.drop("user_id").equals(by_history.drop("user_id"))
    assert [users[row] for row in by_history["user_id"]] == by_user["user_id"].to_list()


def test_users_in_blocks_are_users_at_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    users = tiny.recommender.data.user_ids.to_pylist()
    at_once = tiny.recommender.recommend(users=users)
    monkeypatch.setattr(
        "recblr.evaluation.ranking._BLOCK", 7 * 256 * tiny.recommender.training.max_length
    )
    in_blocks = tiny.recommender.recommend(users=users)
    assert in_blocks.select("user_id", "item_id", "rank").equals(
        at_once.select("user_id", "item_id", "rank")
    )
    np.testing.assert_allclose(in_blocks["score"], at_once["score"], rtol=0, atol=1e-5)


def test_a_user_asked_for_twice_is_answered_twice(tiny: Tiny) -> None:
    user = tiny.recommender.data.user_ids[3].as_py()
    once = tiny.recommender.recommend(users=[user], k=3)
    assert tiny.recommender.recommend(users=[user, user], k=3).height == 2 * once.height


def test_allow_and_deny(tiny: Tiny) -> None:
    items = tiny.recommender.data.item_ids.to_pylist()
    user = tiny.recommender.data.user_ids[0].as_py()

    def offered(**options: Any) -> list[Any]:
        frame = tiny.recommender.recommend(users=[user], k=99, hide_seen=False, **options)
        assert frame["score"].is_sorted(descending=True)
        return frame["item_id"].to_list()

    everything = offered()
    assert sorted(everything) == sorted(items)
    some = items[2:9]
    kept = [item for item in everything if item in some]
    assert offered(allow=some) == kept
    assert offered(allow=[*some, "unheard of"]) == kept
    assert offered(deny=[*some, "unheard of"]) == [i for i in everything if i not in some]
    assert offered(allow=iter(some), deny=iter(some[:3])) == [i for i in kept if i in some[3:]]
    for options in ({"allow": []}, {"allow": ["unheard of"]}, {"deny": items}):
        with pytest.raises(InputError, match="leave no item"):
            offered(**options)


def test_fewer_than_k_are_left(tiny: Tiny) -> None:
    items = tiny.recommender.data.item_ids.to_pylist()
    short, long, full = items[:2], items[:-1], items
    frame = tiny.recommender.recommend(histories=[short, long, full], k=len(items) - 2)
    counts = frame["user_id"].value_counts().sort("user_id")
    assert counts.rows() == [(0, len(items) - 2), (1, 1)]
    assert frame.filter(pl.col("user_id") == 1)["item_id"].to_list() == [items[-1]]
    assert frame["score"].is_finite().all()
    allowed = tiny.recommender.recommend(histories=[short], allow=items[1:4])
    assert sorted(allowed["item_id"]) == sorted(items[2:4])


def test_unknown_items_of_a_history_are_passed_over(tiny: Tiny) -> None:
    items = tiny.recommender.data.item_ids.to_pylist()
    with_unknown = [["new", items[0], "newer", items[1]]]
    frame = tiny.recommender.recommend(histories=with_unknown)
    assert frame.equals(tiny.recommender.recommend(histories=[items[:2]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give users or histories"),
        ({"users": ["a"], "histories": [["b"]]}, "give users or histories"),
        ({"users": ["nobody"]}, "user 'nobody' is not in the log"),
        ({"users": [7]}, "user 7 is not in the log"),
        ({"histories": [["x", "y"]]}, r"history 0 has no item that the model knows: \['x', 'y'\]"),
        ({"histories": [[]]}, "history 0 has no item"),
        ({"histories": [["x"]], "k": 0}, "k must be at least 1, found 0"),
    ],
)
def test_what_cannot_be_answered(tiny: Tiny, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny.recommender.recommend(**options)


def test_scores_that_are_not_finite_are_never_ranked(tiny: Tiny) -> None:
    broken = load(tiny.artifact)
    with torch.no_grad():
        broken.network.norm.bias[0] = math.nan
    with pytest.raises(DivergedError, match="not finite"):
        broken.recommend(users=[broken.data.user_ids[0].as_py()])


@pytest.mark.parametrize(
    "rename",
    [
        pytest.param(lambda code: pl.format("{}", code.cast(pl.String).str.zfill(3)), id="007"),
        pytest.param(lambda code: code.cast(pl.Int64) * -1_000_000_007, id="int64"),
        pytest.param(lambda code: code.cast(pl.Int32), id="int32"),
        pytest.param(lambda code: pl.format("NA, “{}”\n", code), id="odd text"),
    ],
)
def test_ids_come_back_as_they_went_in(
    tiny: Tiny, rename: Callable[[pl.Expr], pl.Expr], tmp_path: Path
) -> None:
    codes = [pl.col(name).rank("dense") for name in ("user_id", "item_id")]
    frame = tiny.frame.with_columns(rename(code) for code in codes)
    untrained().fit(frame).save(tmp_path / "model")
    recommender = load(tmp_path / "model")
    users = frame["user_id"].unique().to_list()
    offers = recommender.recommend(users=users, k=3, hide_seen=False)
    assert set(offers["user_id"]) == set(users)
    assert set(offers["item_id"]) <= set(frame["item_id"])
    item = offers["item_id"][0]
    assert type(item) is type(frame["item_id"][0])
    only = recommender.recommend(histories=[[item]], allow=[item], hide_seen=False)
    assert only["item_id"].to_list() == [item]
    # As text, such as on a command line, they are taken for the same ids.
    texts = [str(user) for user in users]
    assert recommender.user_ids(texts) == users
    assert recommender.item_ids([str(item)]) == [item]


def test_text_is_no_id_of_a_log_of_numbers(tiny: Tiny) -> None:
    code = pl.col("user_id", "item_id").rank("dense").cast(pl.Int64)
    recommender = untrained().fit(tiny.frame.with_columns(code))
    with pytest.raises(InputError, match="whole numbers"):
        recommender.user_ids(["u7"])
    with pytest.raises(InputError, match="user '7' is not in the log"):
        recommender.recommend(users=["7"])


def test_a_history_is_seen_as_far_as_in_evaluation(tiny: Tiny) -> None:
    """Scores come of the last max_length events; what was seen before stays hidden all the same."""
    items = tiny.recommender.data.item_ids.to_pylist()
    long = [items[5]] + items[:4] * 5
    assert len(long) > TINY_TRAINING.max_length
    frame = tiny.recommender.recommend(histories=[long], k=99)
    assert items[5] not in frame["item_id"].to_list()
    cut = tiny.recommender.recommend(histories=[long[-16:]], k=99, deny=[items[5]])
    assert frame.equals(cut)


def test_fitting_again_forgets_the_first_log(tiny: Tiny) -> None:
    recommender = untrained().fit(tiny.frame)
    recommender.evaluate()
    recommender.recommend(users=[tiny.frame["user_id"][0]])
    other = tiny.frame.with_columns(pl.col("user_id", "item_id") + "!")
    recommender.fit(other.reverse())
    assert recommender.measured == []
    user = other["user_id"][0]
    frame = recommender.recommend(users=[user], hide_seen=False, k=1)
    scores = scores_of(recommender, history_of(other.reverse(), user))
    assert frame["item_id"][0] == max(scores, key=lambda item: scores[item])
    with pytest.raises(InputError, match="not in the log"):
        recommender.recommend(users=[tiny.frame["user_id"][0]])


# ---- evaluate ------------------------------------------------------------------------------------


def test_evaluate_counts_what_recommend_would_show(tiny: Tiny) -> None:
    """HR@10 by hand: hide the last event of every history and look for it among the scores."""
    hits: dict[str, list[bool]] = {"unmasked": [], "masked": []}
    for user in tiny.recommender.data.user_ids.to_pylist():
        *history, target = history_of(tiny.frame, user)
        scores = scores_of(tiny.recommender, history)
        above = [i for i in scores if scores[i] >= scores[target] and i != target]
        hits["unmasked"].append(len(above) < 10)
        unseen = [item for item in above if item not in history]
        hits["masked"].append(target not in history and len(unseen) < 10)
    for evaluation in tiny.recommender.evaluate():
        seen = evaluation.protocol.seen
        assert evaluation.metrics["HR@10"] == pytest.approx(np.mean(hits.pop(seen)), abs=1e-12)
        assert evaluation.protocol.part == "test"
        assert evaluation.protocol.max_length == TINY_TRAINING.max_length
        assert evaluation.protocol.candidates == len(tiny.recommender.data.item_ids)
        assert evaluation.protocol.data == tiny.recommender.data.fingerprint
    assert hits == {}


def test_evaluating_the_same_log_again_is_the_same(tiny: Tiny) -> None:
    ours = [evaluation.to_json() for evaluation in tiny.recommender.evaluate()]
    for log in (tiny.log, str(tiny.log), tiny.frame):
        assert [e.to_json() for e in tiny.recommender.evaluate(log)] == ours
    validation = tiny.recommender.evaluate(part="validation")
    choice = tiny.recommender.memory_choice
    assert choice is not None
    for evaluation in validation:
        chosen = getattr(choice.best, evaluation.protocol.seen)
        assert evaluation.metrics["NDCG@10"] == pytest.approx(chosen, abs=1e-6)
    assert tiny.recommender.measured == ours, "only the test is kept"


def test_a_users_vector_is_the_users_in_another_log_too(tiny: Tiny) -> None:
    training = replace(TINY_TRAINING, epochs=1)
    rec = Recommender("fpmc", FPMCConfig(dim=8), training).fit(tiny.frame)
    ours = [evaluation.to_json() for evaluation in rec.evaluate()]
    assert [evaluation.to_json() for evaluation in rec.evaluate(tiny.frame)] == ours
    strangers = tiny.frame.with_columns(pl.format("{}?", pl.col("user_id")).alias("user_id"))
    assert rec.evaluate(strangers)[0].metrics != ours[0]["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sasrec", TINY_MODEL), "the config of sasrec is a SASRecConfig, not RecBLRConfig"),
        (("recblr", {"dim": 16}), "the config of recblr is a RecBLRConfig"),
        (("recblr", None, {"epochs": 1}), "training is a TrainConfig"),
    ],
)
def test_a_configuration_of_another_kind_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recommender(*arguments)


def test_a_model_is_trained_as_its_paper_says() -> None:
    assert Recommender("caser").training.weight_decay == 1e-5
    assert Recommender.configured("caser", {"train": {"lr": 0.1}}).training.weight_decay == 1e-5
    ours = Recommender.configured("caser", {"train": {"weight_decay": 0.0}})
    assert ours.training.weight_decay == 0.0
    assert Recommender("sasrec").training == TrainConfig()


def test_without_a_folder_nothing_is_resumed(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="name it by out"):
        untrained().fit(tiny.frame, resume=True)


def test_another_log_is_read_in_the_models_vocabulary(tiny: Tiny) -> None:
    a, b, c, d = tiny.recommender.data.item_ids.to_pylist()[:4]
    histories = {
        "plain": [a, b, c, d],
        "unknown inside": ["?", a, "?", b, c, d],  # as if it were not there
        "unknown before": [a, b, c, "?", d],  # in the place of the validation event, too
        "unknown target": [a, b, c, "!"],
        "only unknown": ["?", "?", "?", d],  # nothing to predict from
    }
    rows = [(user, item) for user, items in histories.items() for item in items]
    log = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    with pytest.warns(UserWarning, match="does not know 2 of the 6 items of that log; they leave"):
        unmasked, masked = tiny.recommender.evaluate(log)
    scores = scores_of(tiny.recommender, [a, b, c])
    rank = sum(score >= scores[d] for score in scores.values())
    ranks = {"plain": rank, "unknown inside": rank, "unknown before": rank}
    ranks["unknown target"] = len(scores) + 1
    found = dict(zip([list(histories)[u] for u in unmasked.users], unmasked.ranks, strict=True))
    assert found == ranks
    unseen = [scores[item] >= scores[d] for item in scores if item not in (a, b, c)]
    assert masked.ranks.tolist() == [sum(unseen)] * 3 + [len(scores) + 1]
    assert unmasked.protocol.data != tiny.recommender.data.fingerprint


def test_a_log_of_unknown_items_says_so(tiny: Tiny) -> None:
    log = pl.DataFrame({"user_id": ["a"] * 5, "item_id": ["?", "!", "?", "!", "?"]})
    with pytest.raises(InputError, match="knows none of the 2 items of that log"):
        tiny.recommender.evaluate(log)


def test_an_id_is_no_list_of_ids(tiny: Tiny) -> None:
    calls: list[dict[str, Any]] = [
        {"users": "u7"}, {"histories": ["u7"]}, {"histories": [["a"]], "deny": "u7"},
    ]  # fmt: skip
    for options in calls:
        with pytest.raises(
            InputError, match=r"^'u7' is one id where a list is due; write \['u7'\]"
        ):
            tiny.recommender.recommend(**options)


def test_a_prepared_log_must_be_prepared_alike(tiny: Tiny) -> None:
    other = recblr.prepare(recblr.read_log(tiny.frame), core=2)
    with pytest.raises(InputError, match="prepared with core 2"):
        tiny.recommender.evaluate(other)


# ---- the artifact --------------------------------------------------------------------------------


@pytest.fixture
def copy(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.artifact, tmp_path / "copy"))


def rehash(folder: Path) -> None:
    """Make the manifest agree with the files, as a careful forger would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: sha256(folder / name) for name in manifest["files"]}
    manifest["digest"] = _digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_is_loaded_is_what_was_saved(tiny: Tiny) -> None:
    ours, theirs = tiny.recommender, recblr.load(tiny.artifact)
    assert_same_tensors(ours.network.state_dict(), theirs.network.state_dict())
    assert (theirs.model, theirs.config, theirs.training) == ("recblr", TINY_MODEL, TINY_TRAINING)
    assert theirs.trained == ours.trained
    assert theirs.data.fingerprint == ours.data.fingerprint
    assert not theirs.network.training
    users = ours.data.user_ids.to_pylist()
    assert theirs.recommend(users=users).equals(ours.recommend(users=users))
    again, before = theirs.evaluate(), ours.evaluate()
    assert [e.to_json() for e in again] == [e.to_json() for e in before]


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
def test_the_split_is_kept(tiny: Tiny, split: str, tmp_path: Path) -> None:
    frame = tiny.frame.with_columns(timestamp=pl.int_range(pl.len()).over("user_id"))
    ours = untrained().fit(frame, core=5, split=split)
    ours.save(tmp_path / "model")
    theirs = load(tmp_path / "model")
    assert (theirs.data.core, theirs.data.split.name) == (5, split)
    for part in ("train_end", "validation", "test"):
        np.testing.assert_array_equal(
            getattr(theirs.data.split, part), getattr(ours.data.split, part)
        )
    assert theirs.data.fingerprint == ours.data.fingerprint
    assert [e.to_json() for e in theirs.evaluate(frame)] == [e.to_json() for e in ours.evaluate()]


def test_the_files_and_nothing_that_could_run(tiny: Tiny, tmp_path: Path) -> None:
    assert names(tiny.artifact) == FILES | {"run.jsonl"}
    tiny.recommender.save(tmp_path / "model")
    assert names(tmp_path) == {"model"}
    assert names(tmp_path / "model") == FILES
    starts = {
        "model.safetensors": b"",
        "memory.safetensors": b"",
        "config.json": b"{",
        "manifest.json": b"{",
    }
    for name in FILES:
        content = (tmp_path / "model" / name).read_bytes()
        assert content.startswith(starts.get(name, b"PAR1"))
        # A pickle begins with its protocol; a safetensors file with the length of its JSON.
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"))


def test_the_manifest_says_what_is_in_it(tiny: Tiny) -> None:
    manifest = json.loads((tiny.artifact / "manifest.json").read_text())
    assert manifest["files"] == {n: sha256(tiny.artifact / n) for n in FILES - {"manifest.json"}}
    assert manifest["format"] == 1
    assert manifest["versions"].keys() == {"recblr", "torch", "python"}
    assert manifest["data"]["fingerprint"] == tiny.recommender.data.fingerprint
    assert manifest["data"]["kept"]["users"] == tiny.frame["user_id"].n_unique()
    assert manifest["measured"] == [e.to_json() for e in tiny.recommender.evaluate()]
    assert manifest["training"]["best_epoch"] == tiny.recommender.trained.best_epoch
    settings = json.loads((tiny.artifact / "config.json").read_text())
    assert settings["model"] == {"name": "recblr", **asdict(TINY_MODEL)}


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_byte_is_found(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    for place in np.linspace(0, len(content) - 1, 12).astype(int):
        damaged = bytearray(content)
        damaged[place] ^= 1
        if name == "manifest.json" and chr(content[place]) in " \n":
            damaged[place] = ord("x")
        (copy / name).write_bytes(damaged)
        with pytest.raises(InputError):
            load(copy)
    (copy / name).write_bytes(content)
    load(copy)


def test_a_changed_result_is_found(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["measured"][0]["metrics"]["HR@10"] = 0.99
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        load(copy)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_or_shortened_file_is_refused(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"damaged|not a whole recblr artifact"):
        load(copy)
    (copy / name).unlink()
    with pytest.raises(InputError, match=f"not a whole recblr artifact.*{name}"):
        load(copy)


def test_no_folder_is_no_artifact(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="not a whole recblr artifact"):
            load(folder)


def change_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return act


def change_config(section: str, key: str, value: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        settings = json.loads((folder / "config.json").read_text())
        settings[section][key] = value
        (folder / "config.json").write_text(json.dumps(settings))

    return act


def poison(weights: dict[str, torch.Tensor]) -> None:
    weights["embedding.weight"][3, 2] = math.nan


def overflow(weights: dict[str, torch.Tensor]) -> None:
    weights["layers.0.recurrent.lru.lam"][0] = math.inf


def shorten(weights: dict[str, torch.Tensor]) -> None:
    weights["embedding.weight"] = weights["embedding.weight"][1:].clone()


def drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["norm.bias"]


def add(weights: dict[str, torch.Tensor]) -> None:
    weights["more"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        pytest.param(change_weights(poison), "a weight is not finite", id="nan"),
        pytest.param(change_weights(overflow), "a weight is not finite", id="inf"),
        pytest.param(change_weights(shorten), "do not have the shapes", id="shape"),
        pytest.param(change_weights(drop), "do not have the shapes", id="dropped"),
        pytest.param(change_weights(add), "do not have the shapes", id="added"),
        pytest.param(change_config("model", "dim", 32), "do not have the shapes", id="dim"),
        pytest.param(change_config("model", "dim", "16"), "model.dim = '16'", id="type"),
        pytest.param(change_config("model", "dim", 0), "model.dim = 0", id="range"),
        pytest.param(change_config("model", "dims", 16), "did you mean dim", id="unknown"),
        pytest.param(change_config("train", "max_length", -1), "train.max_length", id="train"),
        pytest.param(change_config("model", "name", "other"), "not a whole", id="model"),
        pytest.param(
            lambda folder: (folder / "config.json").write_text("{"), "not a whole", id="no json"
        ),
        pytest.param(
            lambda folder: (folder / "config.json").write_text('{"model": "recblr"}'),
            "not a whole",
            id="other json",
        ),
        pytest.param(
            lambda folder: (folder / "vocabulary.parquet").write_bytes(b"PAR1"),
            "not a whole",
            id="no parquet",
        ),
        pytest.param(
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04K\x01."),
            "not a whole",
            id="pickle",
        ),
    ],
)
def test_what_does_not_fit_is_refused_whatever_its_hash(
    copy: Path, act: Callable[[Path], None], message: str
) -> None:
    load(copy)
    act(copy)
    rehash(copy)
    with pytest.raises(InputError, match=message):
        load(copy)


# ---- the memory of transitions -------------------------------------------------------------------


def test_the_memory_is_loaded_as_it_was_saved(tiny: Tiny) -> None:
    ours, theirs = tiny.recommender, load(tiny.artifact)
    assert ours.memory is not None
    assert theirs.memory is not None
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(
            getattr(ours.memory.matrix, name), getattr(theirs.memory.matrix, name)
        )
    numbers = ("config", "weight", "scale", "repeat")
    assert [getattr(ours.memory, n) for n in numbers] == [
        getattr(theirs.memory, n) for n in numbers
    ]
    assert theirs.memory_choice == ours.memory_choice
    assert theirs.memory_config == MemoryConfig()


def test_without_it_scores_are_the_models(tiny: Tiny, tmp_path: Path) -> None:
    settings = {"model": asdict(TINY_MODEL), "train": asdict(TINY_TRAINING)}
    settings["memory"] = {"enabled": False}
    recommender = Recommender.configured("recblr", settings).fit(tiny.log)
    assert recommender.memory is None
    assert_same_tensors(recommender.network.state_dict(), tiny.recommender.network.state_dict())
    recommender.save(tmp_path / "model")
    assert names(tmp_path / "model") == FILES - {"memory.safetensors"}
    again = load(tmp_path / "model")
    assert again.memory is None
    users = tiny.recommender.data.user_ids.to_pylist()[:3]
    assert again.recommend(users).equals(recommender.recommend(users))
    validation = recommender.evaluate(part="validation")
    assert validation[0].metrics == recommender.trained.validation


def test_an_artifact_of_version_0_1_0_loads(tiny: Tiny, copy: Path) -> None:
    """It had no memory, and no word of one."""
    (copy / "memory.safetensors").unlink()
    settings = json.loads((copy / "config.json").read_text())
    del settings["memory"]
    (copy / "config.json").write_text(json.dumps(settings))
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["memory"], manifest["files"]["memory.safetensors"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    rehash(copy)
    old = load(copy)
    assert old.memory is None
    assert old.settings["memory"]["enabled"] is False
    assert old.evaluate(part="validation")[0].metrics == tiny.recommender.trained.validation


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("values", np.float32(np.nan), "a value is not finite"),
        ("items", 10_000, "not a whole"),
        ("ends", -1, "not a whole"),
    ],
)
def test_a_broken_memory_is_refused_whatever_its_hash(
    copy: Path, name: str, value: float, message: str
) -> None:
    arrays = numpy_arrays.load_file(copy / "memory.safetensors")
    arrays[name][len(arrays[name]) // 2] = value
    numpy_arrays.save_file(arrays, copy / "memory.safetensors")
    rehash(copy)
    with pytest.raises(InputError, match=message):
        load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"files": {}}', '{"files": 3}'])
def test_a_manifest_of_other_json_is_refused(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="not a whole recblr artifact"):
        load(copy)


def test_saving_overwrites_only_when_told(tiny: Tiny, copy: Path) -> None:
    (copy / "mine.txt").write_text("keep")
    before = {path: path.read_bytes() for path in copy.iterdir()}
    with pytest.raises(InputError, match="exists already"):
        tiny.recommender.save(copy)
    assert {path: path.read_bytes() for path in copy.iterdir()} == before
    tiny.recommender.save(copy, overwrite=True)
    assert names(copy) == FILES
    assert names(copy.parent) == {"copy"}
    load(copy)
    with pytest.raises(InputError, match="does not exist"):
        tiny.recommender.save(copy.parent / "no" / "model")


def test_a_save_that_fails_leaves_what_was_there(
    tiny: Tiny, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("recblr.artifact.pq.write_table", full)
    for folder in (copy, copy.parent / "new"):
        with pytest.raises(OSError, match="no space"):
            tiny.recommender.save(folder, overwrite=True)
    assert names(copy.parent) == {"copy"}
    load(copy)


# ---- fit with out= -------------------------------------------------------------------------------


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    from recblr.ops.cross_entropy import cross_entropy

    calls = 0

    def loss(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == number:
            raise error
        return cross_entropy(*arguments)

    monkeypatch.setattr(LOSS, loss)


def test_out_keeps_the_model_its_measure_and_its_run(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "model"
    recommender = Recommender("recblr", TINY_MODEL, TINY_TRAINING).fit(tiny.frame, out=str(out))
    assert names(tmp_path) == {"model"}
    assert [e["protocol"]["seen"] for e in recommender.measured] == ["unmasked", "masked"]
    assert load(out).measured == recommender.measured, "what was measured stays with the model"
    assert_same_tensors(load(out).network.state_dict(), tiny.recommender.network.state_dict())
    run = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert [line["event"] for line in run] == ["start", "epoch", "epoch", "end"]


def test_out_is_refused_before_training(tiny: Tiny, copy: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        untrained().fit(tiny.frame, out=copy)
    with pytest.raises(InputError, match="does not exist"):
        untrained().fit(tiny.frame, out=copy / "no" / "model")
    with pytest.raises(InputError, match="no such file"):
        untrained().fit(tiny.log.with_name("no.csv"), out=copy.parent / "new")
    with pytest.raises(InputError, match="nothing to resume"):
        untrained().fit(tiny.frame, out=copy.parent / "new", resume=True)
    assert names(copy.parent) == {"copy"}
    untrained().fit(tiny.frame, out=copy, overwrite=True)
    assert load(copy).trained.epoch == 1
    assert names(copy.parent) == {"copy"}


@pytest.mark.parametrize("out", ["model", None])
def test_a_log_that_cannot_be_measured_is_refused_before_training(
    out: str | None, tmp_path: Path
) -> None:
    log = pl.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [1, 2, 1, 2]})
    with pytest.raises(InputError, match="no user has an event to predict in the validation part"):
        untrained().fit(log, out=out and tmp_path / out)
    assert names(tmp_path) == set()


def test_interrupt_and_resume(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, work = tmp_path / "model", tmp_path / "model.training"
    long = replace(TINY_TRAINING, epochs=3)

    def start(**options: Any) -> Recommender:
        return Recommender("recblr", TINY_MODEL, long).fit(tiny.frame, out=out, **options)

    with monkeypatch.context() as patch:
        interrupt_at(8, patch, KeyboardInterrupt())
        stopped = start()
    assert stopped.trained.ended == "interrupted"
    assert names(tmp_path) == {"model", "model.training"}
    assert names(work) == {"run.jsonl", "checkpoint.safetensors", "lock"}
    assert load(out).trained.epoch == 1
    with pytest.raises(InputError, match="exists already"):
        start()
    with pytest.raises(InputError, match="of another run"):
        untrained().fit(tiny.frame, out=out, resume=True)

    resumed = start(resume=True)
    assert names(tmp_path) == {"model"}
    whole = Recommender("recblr", TINY_MODEL, long).fit(tiny.frame)
    assert_same_tensors(load(out).network.state_dict(), whole.network.state_dict())
    assert replace(resumed.trained, seconds=0) == replace(whole.trained, seconds=0)
    run = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    assert [line["event"] for line in run] == (
        ["start", "epoch", "end", "resume", "epoch", "epoch", "end"]
    )
    with pytest.raises(InputError, match="nothing to resume"):
        start(resume=True)


def test_an_unfinished_run_is_not_dropped_by_accident(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "model", tmp_path / "model.training"
    long = Recommender("recblr", TINY_MODEL, TINY_TRAINING)
    with monkeypatch.context() as patch:
        interrupt_at(8, patch, DivergedError("the loss is nan"))
        with pytest.raises(DivergedError):
            long.fit(tiny.frame, out=out)
    assert names(tmp_path) == {"model.training"}
    checkpoint = (work / "checkpoint.safetensors").read_bytes()
    with pytest.raises(InputError, match="unfinished run; pass --resume"):
        untrained().fit(tiny.frame, out=out)
    with pytest.raises(InputError, match="no such file"):
        untrained().fit(tmp_path / "no.csv", out=out, overwrite=True)
    assert (work / "checkpoint.safetensors").read_bytes() == checkpoint
    untrained().fit(tiny.frame, out=out, overwrite=True)
    assert names(tmp_path) == {"model"}


def test_a_run_stopped_before_its_first_epoch_is_simply_begun_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(2, patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            untrained().fit(tiny.frame, out=tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(InputError, match="nothing to resume"):
        untrained().fit(tiny.frame, out=tmp_path / "model", resume=True)
    untrained().fit(tiny.frame, out=tmp_path / "model")
    assert names(tmp_path) == {"model"}
    run = (tmp_path / "model" / "run.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in run] == ["start", "epoch", "end"]


# ---- configuration -------------------------------------------------------------------------------


def test_configured_from_plain_values() -> None:
    recommender = Recommender.configured(
        "recblr", {"model": {"dim": 16, "dropout": 0}, "train": {"lr": 0.01, "seed": 3}}
    )
    assert recommender.config == replace(TINY_MODEL, layers=2, dropout=0.0)
    assert (recommender.training.lr, recommender.training.seed) == (0.01, 3)
    assert Recommender.configured("recblr", {}).training == recblr.TrainConfig()


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("recbler", {}, "unknown model 'recbler'; did you mean recblr"),
        ("recblr", {"trian": {}}, "no such section of settings: trian; did you mean train"),
        ("recblr", {"train": {"learning_rate": 1}}, "train.learning_rate: no such setting"),
        (
            "recblr",
            {"train": {"examples": "all"}},
            "choose one of auto, all-positions, prefixes, cloze",
        ),
        ("recblr", {"train": {"hide_seen": "yes"}}, "train.hide_seen = 'yes': must be bool"),
        ("recblr", {"train": {"epochs": True}}, "train.epochs = True: must be int"),
        ("recblr", {"model": {"layers": 1.5}}, "model.layers = 1.5: must be int"),
    ],
)
def test_a_typo_is_an_error(model: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recommender.configured(model, settings)


def test_a_device_that_is_not_there_is_an_error(tiny: Tiny) -> None:
    for use in (
        lambda: Recommender(device="cuda:99"),
        lambda: Recommender.configured("recblr", {}, "cuda:99"),
        lambda: load(tiny.artifact, "cuda:99"),
    ):
        with pytest.raises(InputError, match="no device 'cuda:99'"):
            use()
    on_cpu = load(tiny.artifact, "cpu")
    assert on_cpu.device == on_cpu.network.item_embeddings.device == torch.device("cpu")


def test_the_public_names_are_there() -> None:
    for name in recblr.__all__:
        assert getattr(recblr, name).__name__ == name
    assert recblr.__version__ == version("recblr")
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = recblr.Recomender
