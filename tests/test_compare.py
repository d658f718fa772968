"""Recommenders beside one another: the figures are each one's own, and like is compared with like."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import recblr
from conftest import TINY_MODEL, TINY_TRAINING, Tiny
from recblr.cli import main as cli
from recblr.compare.comparison import Comparison, Contender, Difference, compare
from recblr.compare.page import _apart, page
from recblr.data.batches import PackedBatch
from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.ranking import Evaluation
from recblr.evaluation.significance import difference_interval, holm, paired_test
from recblr.memory import MemoryConfig
from recblr.models import MODELS
from recblr.models.model import Model
from recblr.recommender import Recommender

SEEN = ("unmasked", "masked")
UNTRAINED = replace(TINY_TRAINING, epochs=1, lr=1e-9)


@dataclass(frozen=True)
class LastItemConfig:
    dim: int = 8


class LastItem(Model):
    """The vector of the last item: a model that keeps no state."""

    def __init__(
        self, items: int, config: LastItemConfig, users: int = 0, max_length: int = 0
    ) -> None:
        super().__init__(items, config)
        self.embedding = nn.Embedding(items, config.dim)
        self.turn = nn.Linear(config.dim, config.dim)

    @property
    def item_embeddings(self) -> Tensor:
        return self.embedding.weight

    def hidden(self, batch: PackedBatch) -> Tensor:
        vectors: Tensor = self.turn(self.embedding(batch.items[batch.positions]))
        return vectors


@pytest.fixture(scope="module", autouse=True)
def last_item() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "last-item", (LastItem, LastItemConfig))
        yield


@pytest.fixture(scope="module")
def folders(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny model, one that has learned nothing, and one without a state, on one log."""
    home = tmp_path_factory.mktemp("compared")
    dull = Recommender("recblr", replace(TINY_MODEL, dim=4), UNTRAINED, MemoryConfig(enabled=False))
    dull.fit(tiny.log, out=home / "dull")
    shorter = replace(TINY_TRAINING, max_length=5)
    Recommender("last-item", LastItemConfig(), shorter).fit(tiny.log, out=home / "last")
    return [tiny.artifact, home / "dull", home / "last"]


@pytest.fixture(scope="module")
def compared(folders: list[Path]) -> Comparison:
    return compare(folders)


def contenders(comparison: Comparison) -> dict[str, Contender]:
    return {contender.label: contender for contender in comparison.contenders}


def gains(evaluation: Evaluation) -> np.ndarray:
    return metrics.per_user(evaluation.ranks)["NDCG@10"]


# ---- figures -------------------------------------------------------------------------------------


def test_each_is_measured_as_it_measures_itself(folders: list[Path], compared: Comparison) -> None:
    assert [contender.label for contender in compared.contenders] == ["model", "dull", "last"]
    for folder, contender in zip(folders, compared.contenders, strict=True):
        assert contender.folder == str(folder)
        alone = recblr.load(folder).evaluate()
        assert [e.to_json() for e in contender.evaluations.values()] == [e.to_json() for e in alone]
        assert tuple(contender.evaluations) == compared.protocols == SEEN
        for evaluation in alone:
            assert compared.floors[evaluation.protocol.seen] == evaluation.floors
    lengths = [c.evaluations["masked"].protocol.max_length for c in compared.contenders]
    assert lengths == [c.cost.max_length for c in compared.contenders] == [16, 16, 5]


def test_each_is_set_against_the_best(compared: Comparison) -> None:
    """The p of all comparisons, of both protocols, are one family."""
    p, found = [], []
    for seen in SEEN:
        best, *others = compared.ranking(seen)
        assert best.differences[seen] is None
        assert best.verdict(seen) == "best"
        theirs = gains(best.evaluations[seen])
        for other in others:
            ours = gains(other.evaluations[seen])
            assert ours.mean() <= theirs.mean()
            difference = other.differences[seen]
            assert difference is not None
            assert difference.mean == pytest.approx(ours.mean() - theirs.mean(), rel=1e-12)
            assert difference.interval == difference_interval(ours, theirs)
            assert difference.interval[0] <= difference.mean <= difference.interval[1]
            p.append(paired_test(ours, theirs))
            found.append(difference.p)
    assert len(found) == 4
    assert found == holm(np.array(p)).tolist()
    assert found != p


def test_a_model_that_learned_nothing_is_worse_and_a_copy_as_good(
    tiny: Tiny, folders: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny.artifact, tmp_path / "copy")
    found = contenders(compare([tiny.artifact, folders[1], tmp_path / "copy"]))
    for seen in SEEN:
        assert found["model"].verdict(seen) == "best"
        assert found["dull"].verdict(seen) == "worse"
        assert found["copy"].verdict(seen) == "as good within the noise"
        assert found["copy"].differences[seen] == Difference(0.0, (0.0, 0.0), 1.0)


def test_costs(tiny: Tiny, compared: Comparison) -> None:
    found = {label: contender.cost for label, contender in contenders(compared).items()}
    weights = tiny.recommender.network.state_dict().values()
    assert found["model"].parameters == sum(weight.numel() for weight in weights)
    assert found["last"].parameters == 24 * 8 + 8 * 8 + 8
    assert found["model"].training_seconds == tiny.recommender.trained.seconds > 0
    config = tiny.recommender.config
    assert found["model"].user_bytes == 4 * config.layers * config.state_rows * config.channels
    assert found["last"].user_bytes == 4 * 5
    assert found["last"].step_us is None
    for label in ("model", "dull"):
        step = found[label].step_us
        assert step is not None
        assert 0 < step < 1e5
    assert all(0 < cost.recommend_ms < 1e4 for cost in found.values())


def test_json_is_strict_and_whole(tiny: Tiny, compared: Comparison) -> None:
    plain: dict[str, Any] = json.loads(json.dumps(compared.to_json(), allow_nan=False))
    assert plain["headline"] == compared.headline
    assert plain["log"] == compared.log == str(tiny.log)
    assert {"date", "hardware", "threads", "versions"} <= plain.keys()
    for contender in compared.contenders:
        row = plain["artifacts"][contender.label]
        assert row["model"] == contender.model
        assert row["recommend_ms"] == contender.cost.recommend_ms
        for seen, evaluation in zip(SEEN, row["evaluations"], strict=True):
            assert evaluation["protocol"]["seen"] == seen
            assert evaluation["metrics"] == contender.evaluations[seen].metrics
            assert evaluation["verdict"] == contender.verdict(seen)
            difference = contender.differences[seen]
            assert (evaluation["difference"] is None) == (difference is None)
            if difference is not None:
                assert evaluation["difference"]["p"] == difference.p


# ---- the outcome in words ------------------------------------------------------------------------


def with_outcome(
    comparison: Comparison,
    values: dict[str, tuple[float, float | None]],
    spread: float = 0.05,
    floor: float = 0.1,
) -> Comparison:
    """Made-up NDCG@10 and p under both protocols, by label, and the NDCG@10 of the floors."""
    changed = []
    for label, (ndcg, p) in values.items():
        contender = comparison.contenders[0]
        interval = (max(0.0, ndcg - spread), min(1.0, ndcg + spread))
        evaluations = {
            seen: replace(
                found,
                metrics={**found.metrics, "NDCG@10": ndcg},
                intervals={**found.intervals, "NDCG@10": interval},
                floors={name: {**row, "NDCG@10": floor} for name, row in found.floors.items()},
            )
            for seen, found in contender.evaluations.items()
        }
        difference = None if p is None else Difference(-0.1, (-0.2, 0.0), p)
        differences = dict.fromkeys(SEEN, difference)
        changed.append(
            replace(contender, label=label, evaluations=evaluations, differences=differences)
        )
    return replace(comparison, contenders=changed)


def test_the_headline(compared: Comparison) -> None:
    four = {"a": (0.7, 0.05), "b": (0.6, 0.049), "c": (0.9, None), "d": (0.5, 0.0001)}
    found = with_outcome(compared, four)
    assert [contender.label for contender in found.ranking("masked")] == ["c", "a", "b", "d"]
    told = "c is best by NDCG@10; a is as good within the noise; b and d are worse"
    assert found.headline == f"Under both protocols {told}."
    found = with_outcome(compared, four, floor=0.9)
    told += "; popularity, markov chain and transitions are not beaten"
    assert found.headline == f"Under both protocols {told}."

    equal = with_outcome(compared, {"a": (0.2, None), "b": (0.2, 1.0), "c": (0.2, 1.0)})
    assert equal.headline == (
        "Under both protocols a is best by NDCG@10; b and c are as good within the noise."
    )

    first = with_outcome(compared, {"a": (0.9, None), "b": (0.8, 0.9)}).contenders
    other = with_outcome(compared, {"a": (0.7, 0.01), "b": (0.8, None)}).contenders
    mixed = [
        replace(
            ours,
            evaluations={**ours.evaluations, "masked": theirs.evaluations["masked"]},
            differences={**ours.differences, "masked": theirs.differences["masked"]},
        )
        for ours, theirs in zip(first, other, strict=True)
    ]
    assert replace(compared, contenders=mixed).headline == (
        "Seen items unmasked: a is best by NDCG@10; b is as good within the noise. "
        "Seen items masked: b is best by NDCG@10; a is worse."
    )


def test_labels_are_as_short_as_tells_them_apart(tiny: Tiny, tmp_path: Path) -> None:
    places = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"]
    for place in places:
        shutil.copytree(tiny.artifact, place)
    found = compare(places)
    assert [contender.label for contender in found.contenders] == ["a/x", "b/x", "b/y"]
    assert [contender.label for contender in compare(places[1:]).contenders] == ["x", "y"]


# ---- another log ---------------------------------------------------------------------------------


def test_another_log_in_another_order_of_items(
    tiny: Tiny, folders: list[Path], tmp_path: Path
) -> None:
    """Two models of one catalogue in unlike orders, on a log with an item that neither knows."""
    Recommender("recblr", TINY_MODEL, UNTRAINED).fit(tiny.frame[::-1], out=tmp_path / "turned")
    known = [recblr.load(folder).data.item_ids for folder in (folders[0], tmp_path / "turned")]
    assert not known[0].equals(known[1])
    with pytest.raises(InputError, match="name one log to measure both on"):
        compare([folders[0], tmp_path / "turned"])

    first = pl.col("user_id") == tiny.frame["user_id"][0]
    odd = tiny.frame.with_columns(
        item_id=pl.when(first).then(pl.lit("new")).otherwise(pl.col("item_id"))
    )
    theirs = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    odd.rename(theirs).write_csv(tmp_path / "odd.csv")
    with pytest.warns(UserWarning, match="does not know 1 of the 25 items of that log"):
        found = compare([folders[0], tmp_path / "turned"], tmp_path / "odd.csv", columns=theirs)
    assert found.log == str(tmp_path / "odd.csv")
    for contender in found.contenders:
        with pytest.warns(UserWarning, match="does not know 1"):
            alone = recblr.load(contender.folder).evaluate(odd)
        assert [e.metrics for e in contender.evaluations.values()] == [e.metrics for e in alone]
        assert {e.protocol.users for e in alone} == {tiny.frame["user_id"].n_unique() - 1}


def test_the_log_trained_on_named_as_another_one(tiny: Tiny, folders: list[Path]) -> None:
    found, default = compare(folders[:2], tiny.log), compare(folders[:2])
    for ours, theirs in zip(found.contenders, default.contenders, strict=True):
        assert ours.differences == theirs.differences


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unlike(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts that differ from the tiny one in one thing each."""
    home = tmp_path_factory.mktemp("unlike")
    item, user = tiny.frame["item_id"][0], tiny.frame["user_id"][0]
    alike = tiny.frame.with_columns(timestamp=pl.int_range(pl.len()).over("user_id"))
    logs = {
        "split": (alike, {"split": "time"}),
        "core": (tiny.frame, {"core": 2}),
        "catalogue": (tiny.frame.filter(pl.col("item_id") != item), {}),
        "data": (tiny.frame.filter(pl.col("user_id") != user), {}),
    }
    for name, (frame, settings) in logs.items():
        Recommender("recblr", TINY_MODEL, UNTRAINED).fit(frame, out=home / name, **settings)
    return {name: home / name for name in logs}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("split", "leave-one-out and time"),
        ("core", "1 and 2"),
        ("catalogue", r"24 items \(hash \w{8}\) and 23 items \(hash \w{8}\)"),
        ("data", r"\w{16} and \w{16}; name one log to measure both on"),
    ],
)
def test_unlike_logs_do_not_compare(
    tiny: Tiny, folders: list[Path], unlike: dict[str, Path], field: str, values: str
) -> None:
    message = rf"^model and {field} do not compare: {field} {values}$"
    with pytest.raises(InputError, match=message):
        compare([tiny.artifact, folders[1], unlike[field]])
    if field == "data":
        compare([tiny.artifact, unlike[field]], tiny.log)
    else:
        with pytest.raises(InputError, match=message):
            compare([tiny.artifact, unlike[field]], tiny.log)


def test_ids_of_another_type_are_another_catalogue(tiny: Tiny, tmp_path: Path) -> None:
    numbers = tiny.frame.with_columns(pl.col("item_id").rank("dense").cast(pl.Int64))
    texts = numbers.with_columns(pl.col("item_id").cast(pl.String))
    for name, frame in (("numbers", numbers), ("texts", texts)):
        Recommender("recblr", TINY_MODEL, UNTRAINED).fit(frame, out=tmp_path / name)
    with pytest.raises(InputError, match="numbers and texts do not compare: catalogue 24 items"):
        compare([tmp_path / "numbers", tmp_path / "texts"], tiny.log)


# ---- the page ------------------------------------------------------------------------------------

VOID = {"meta", "line", "circle"}


class Reader(HTMLParser):
    """Checks that tags are balanced and collects what a page shows, names and refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.shown).split())


def numbers_of(attrs: dict[str, str | None], *names: str) -> list[float]:
    return [float(attrs[name] or "") for name in names if name in attrs]


def assert_drawn_inside(reader: Reader) -> None:
    width = height = 0.0
    for tag, attrs in reader.tags:
        if tag == "svg":
            _, _, width, height = map(float, (attrs["viewbox"] or "").split())
        for x in numbers_of(attrs, "x", "x1", "x2", "cx"):
            assert 0 <= x <= width
        for y in numbers_of(attrs, "y", "y1", "y2", "cy"):
            assert 0 <= y <= height
        if tag == "i":
            places = map(float, re.findall(r"([\d.-]+)%", attrs["style"] or ""))
            assert 0 <= sum(places) <= 100.02


def test_the_page_shows_what_was_found(compared: Comparison) -> None:
    text = page(compared)
    reader = Reader(text)
    assert text.startswith("<!doctype html>")
    assert compared.headline in reader.text
    assert_drawn_inside(reader)
    for seen in SEEN:
        for contender in compared.contenders:
            evaluation, difference = contender.evaluations[seen], contender.differences[seen]
            for name, value in evaluation.metrics.items():
                low, high = evaluation.intervals[name]
                assert f"{value:.4f} {low:.4f} … {high:.4f}" in reader.text
            assert f"{contender.label} {contender.verdict(seen)}" in reader.text
            if difference is not None:
                assert f"p = {difference.p:.4f}" in reader.text
            for name, values in evaluation.slices.items():
                assert f"{name} {values['users']:,}" in reader.text
                assert f"{values['NDCG@10']:.4f}" in reader.text
        for name, floor in compared.floors[seen].items():
            assert f"{name} {floor['HR@10']:.4f}" in reader.text
    for contender in compared.contenders:
        assert f"{contender.cost.parameters:,}" in reader.text
        assert f"{contender.cost.user_bytes:,}" in reader.text
    protocol = compared.contenders[0].evaluations["masked"].protocol
    for fact in (protocol.data, protocol.ties, "all 24 items", compared.provenance["date"]):
        assert fact in reader.text


def test_the_page_needs_nothing_else(compared: Comparison) -> None:
    text = page(compared)
    tags = {tag for tag, _ in Reader(text).tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "base"}
    assert not re.search(r"https?:|//|@import|url\(|\bon\w+=", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_names_are_escaped(compared: Comparison) -> None:
    odd = "<script>\"&'$x ${log}"
    changed = with_outcome(compared, {odd: (0.9, None), f"{odd}2": (0.8, 0.01)})
    changed = replace(changed, log=odd)
    reader = Reader(page(changed))
    assert {tag for tag, _ in reader.tags} == {tag for tag, _ in Reader(page(compared)).tags}
    assert f"Recommenders compared on {odd}" in reader.text
    assert any(attrs.get("title") == f"{odd}2" for _, attrs in reader.tags)


def with_costs(comparison: Comparison, **values: float | None) -> Comparison:
    costly = [
        replace(contender, cost=replace(contender.cost, **values))
        for contender in comparison.contenders
    ]
    return replace(comparison, contenders=costly)


@pytest.mark.parametrize("seconds", [0.0, 1e-4, 0.3, 25.0, 3e3, 1e6, 1e9])
def test_any_training_time_is_drawn(compared: Comparison, seconds: float) -> None:
    changed = with_costs(compared, training_seconds=seconds)
    assert_drawn_inside(Reader(page(changed)))
    quick = replace(compared.contenders[0].cost, training_seconds=0.01)
    mixed = [replace(changed.contenders[0], cost=quick), *changed.contenders[1:]]
    assert_drawn_inside(Reader(page(replace(changed, contenders=mixed))))


@pytest.mark.parametrize("ndcg", [0.0, 1.0])
def test_equal_outcomes_are_drawn(compared: Comparison, ndcg: float) -> None:
    outcome = {"a": (ndcg, None), "b": (ndcg, 1.0)}
    assert_drawn_inside(Reader(page(with_outcome(compared, outcome, spread=0.0, floor=ndcg))))


def test_without_states_no_steps_are_drawn(compared: Comparison) -> None:
    caption = "one more event of one user"
    assert caption in page(compared)
    assert caption not in page(with_costs(compared, step_us=None))


def test_many_are_drawn(compared: Comparison) -> None:
    values = {f"model {n}": (0.5 + n / 1e4, None if n == 39 else 0.5) for n in range(40)}
    reader = Reader(page(with_outcome(compared, values)))
    assert_drawn_inside(reader)
    assert all(f"model {n} " in reader.text for n in range(40))


@given(st.lists(st.floats(0, 100), max_size=6).map(sorted))
def test_labels_stand_apart(heights: list[float]) -> None:
    found = _apart(heights, 16, 110)
    assert len(found) == len(heights)
    assert all(after - before >= 16 - 1e-9 for before, after in pairwise(found))
    assert all(height <= 110 for height in found)
    if all(after - before >= 16 for before, after in pairwise(heights)):
        assert found == heights


# ---- the command line ----------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def main(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recblr", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert isinstance(end.value.code, int)
        return end.value.code, *capsys.readouterr()

    return main


def test_the_command(
    run: Run, tiny: Tiny, folders: list[Path], compared: Comparison, tmp_path: Path
) -> None:
    code, out, err = run(*folders, "--html", "report.html", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["headline"] == compared.headline
    assert told["artifacts"]["last"]["evaluations"] == json.loads(
        json.dumps(compared.to_json()["artifacts"]["last"]["evaluations"])
    )
    assert compared.headline in Reader((tmp_path / "report.html").read_text()).text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_what_a_person_reads(run: Run, folders: list[Path], compared: Comparison) -> None:
    code, out, err = run(*folders)
    assert (code, err) == (0, "")
    assert out.startswith(f"{compared.headline}\n")
    assert max(map(len, out.splitlines()[1:-1])) <= 100
    for seen in SEEN:
        for contender in compared.contenders:
            evaluation = contender.evaluations[seen]
            hits, gain = (f"{evaluation.metrics[name]:.4f}" for name in ("HR@10", "NDCG@10"))
            assert re.search(rf"^ {contender.label} +{hits} +{gain} ", out, re.MULTILINE)
            low, high = evaluation.intervals["NDCG@10"]
            assert f"{low:.4f}-{high:.4f}" in out
            difference = contender.differences[seen]
            assert difference is None or f"p = {difference.p:.4f}" in out
        for name, floor in compared.floors[seen].items():
            numbers = f"{floor['HR@10']:.4f} +{floor['NDCG@10']:.4f}"
            assert re.search(rf"^ \({name}\) +{numbers} *$", out, re.MULTILINE)
    parameters = compared.contenders[2].cost.parameters
    assert re.search(rf"^ last +last-item +5 +{parameters} .* 20 *$", out, re.MULTILINE)
    assert "protocol: leave-one-out test, 1-core, full ranking of 24 items" in out


def test_a_name_that_looks_like_markup(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    for name in ("[red]", "[b] </b>"):
        shutil.copytree(tiny.artifact, tmp_path / name.replace("/", ""))
    code, out, _ = run(*sorted(tmp_path.iterdir()))
    assert code == 0
    assert re.search(r"^ \[red\] ", out, re.MULTILINE)


MISTAKES: dict[str, tuple[str, str]] = {
    "one only": ("MODEL", "a comparison needs two artifacts or more"),
    "missing folder": ("MODEL nowhere", "nowhere is not a whole recblr artifact"),
    "twice": ("MODEL MODEL/../model", "is named twice"),
    "columns without a log": ("MODEL DULL --columns user_id=who", "columns belong to a log"),
    "missing log": ("MODEL DULL --log no.csv", r"no\.csv: no such file"),
    "unlike logs": ("MODEL SPLIT", "model and split do not compare: split leave-one-out and time"),
    "no place for the report": ("MODEL DULL --html no/report.html", "folder no does not exist"),
    "a folder as the report": ("MODEL DULL --html .", r"\.: cannot be written \(.*directory"),
    "unknown device": ("MODEL DULL --device gpu", "unknown device 'gpu'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(
    run: Run, tiny: Tiny, folders: list[Path], unlike: dict[str, Path], mistake: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    line, message = MISTAKES[mistake]
    places = {"MODEL": tiny.artifact, "DULL": folders[1], "SPLIT": unlike["split"]}
    words = [
        re.sub("MODEL|DULL|SPLIT", lambda found: str(places[found[0]]), word)
        for word in line.split()
    ]
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"recblr: .*{message}.*\n", err), err
    assert list(tmp_path.iterdir()) == []
