"""The metrics are each recommender's own; only comparable recommenders are comparison."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import recblr
from cli.fixtures import Run, answer, names
from compare.fixtures import SEEN, UNTRAINED, with_outcome
from conftest import TINY_MODEL, Tiny
from recblr.compare.comparison import Comparison, Contender, Difference, compare
from recblr.errors import InputError
from recblr.evaluation import metrics
from recblr.evaluation.evaluate import Evaluation
from recblr.evaluation.significance import difference_interval, holm, paired_test
from recblr.recommender import Recommender


def contenders(comparison: Comparison) -> dict[str, Contender]:
    return {contender.label: contender for contender in comparison.contenders}


def gains(evaluation: Evaluation) -> np.ndarray:
    return metrics.per_user(evaluation.ranks)["NDCG@10"]


# ---- values --------------------------------------------------------------------------------------


def test_metrics_are_those_of_evaluate(
    compared_folders: list[Path], comparison: Comparison
) -> None:
    assert [contender.label for contender in comparison.contenders] == ["model", "dull", "last"]
    for folder, contender in zip(compared_folders, comparison.contenders, strict=True):
        assert contender.folder == str(folder)
        alone = recblr.load(folder).evaluate()
        assert [e.to_json() for e in contender.evaluations.values()] == [e.to_json() for e in alone]
        assert tuple(contender.evaluations) == comparison.protocols == SEEN
        for evaluation in alone:
            assert comparison.baselines[evaluation.protocol.seen] == evaluation.baselines
    lengths = [c.evaluations["masked"].protocol.max_length for c in comparison.contenders]
    assert lengths == [c.cost.max_length for c in comparison.contenders] == [16] * 3


def test_differences_from_the_best(comparison: Comparison) -> None:
    """Holm's correction covers all comparisons, of both protocols."""
    p, reported = [], []
    for seen in SEEN:
        best, *others = comparison.ranking(seen)
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
            reported.append(difference.p)
    assert len(reported) == 4
    assert reported == holm(np.array(p)).tolist()
    assert reported != p


def test_an_untrained_model_is_worse_and_a_copy_is_as_good(
    tiny: Tiny, compared_folders: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny.artifact, tmp_path / "copy")
    by_label = contenders(compare([tiny.artifact, compared_folders[1], tmp_path / "copy"]))
    for seen in SEEN:
        assert by_label["model"].verdict(seen) == "best"
        assert by_label["dull"].verdict(seen) == "worse"
        assert by_label["copy"].verdict(seen) == "as good within the noise"
        assert by_label["copy"].differences[seen] == Difference(0.0, (0.0, 0.0), 1.0)


def test_costs(tiny: Tiny, comparison: Comparison) -> None:
    costs = {label: contender.cost for label, contender in contenders(comparison).items()}
    weights = tiny.recommender.network.state_dict().values()
    assert costs["model"].parameters == sum(weight.numel() for weight in weights)
    assert costs["last"].parameters == 24 * 8 + 8 * 8 + 8
    assert costs["model"].training_seconds == tiny.recommender.trained.seconds > 0
    config = tiny.recommender.config
    assert costs["model"].user_bytes == 4 * config.layers * config.state_rows * config.channels
    assert costs["last"].user_bytes == 4 * 16
    assert costs["last"].step_us is None
    for label in ("model", "dull"):
        step = costs[label].step_us
        assert step is not None
        assert 0 < step < 1e5
    assert all(0 < cost.recommend_ms < 1e4 for cost in costs.values())


def test_json_is_strict_and_complete(tiny: Tiny, comparison: Comparison) -> None:
    plain: dict[str, Any] = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert plain["headline"] == comparison.headline
    assert plain["log"] == comparison.log == str(tiny.log)
    assert {"date", "hardware", "threads", "versions"} <= plain.keys()
    for contender in comparison.contenders:
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


# ---- headline and labels -------------------------------------------------------------------------


def test_the_headline(comparison: Comparison) -> None:
    four = {"a": (0.7, 0.05), "b": (0.6, 0.049), "c": (0.9, None), "d": (0.5, 0.0001)}
    changed = with_outcome(comparison, four)
    assert [contender.label for contender in changed.ranking("masked")] == ["c", "a", "b", "d"]
    outcome = "c is best by NDCG@10; a is as good within the noise; b and d are worse"
    assert changed.headline == f"Under both protocols {outcome}."
    changed = with_outcome(comparison, four, baseline=0.9)
    outcome += "; popularity, markov chain and transitions are not beaten"
    assert changed.headline == f"Under both protocols {outcome}."

    equal = with_outcome(comparison, {"a": (0.2, None), "b": (0.2, 1.0), "c": (0.2, 1.0)})
    assert equal.headline == (
        "Under both protocols a is best by NDCG@10; b and c are as good within the noise."
    )

    first = with_outcome(comparison, {"a": (0.9, None), "b": (0.8, 0.9)}).contenders
    other = with_outcome(comparison, {"a": (0.7, 0.01), "b": (0.8, None)}).contenders
    mixed = [
        replace(
            ours,
            evaluations={**ours.evaluations, "masked": theirs.evaluations["masked"]},
            differences={**ours.differences, "masked": theirs.differences["masked"]},
        )
        for ours, theirs in zip(first, other, strict=True)
    ]
    assert replace(comparison, contenders=mixed).headline == (
        "Seen items unmasked: a is best by NDCG@10; b is as good within the noise. "
        "Seen items masked: b is best by NDCG@10; a is worse."
    )


def test_labels_are_short_and_differ(tiny: Tiny, tmp_path: Path) -> None:
    places = [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"]
    for place in places:
        shutil.copytree(tiny.artifact, place)
    comparison = compare(places)
    assert [contender.label for contender in comparison.contenders] == ["a/x", "b/x", "b/y"]
    assert [contender.label for contender in compare(places[1:]).contenders] == ["x", "y"]


@pytest.mark.parametrize("folders", [None, 3, "model", [1, 2]])
def test_what_are_no_folders(folders: Any) -> None:
    with pytest.raises(InputError, match=r"folders: |is not the path of an artifact"):
        compare(folders)


def test_folders_of_any_kind(comparison: Comparison, compared_folders: list[Path]) -> None:
    again = compare(path for path in compared_folders)
    assert again.headline == comparison.headline


def test_representations_are_short(comparison: Comparison) -> None:
    assert repr(comparison).startswith("Comparison(3 models, best by NDCG@10: ")
    assert len(repr(comparison)) <= 120
    assert all(len(repr(contender)) <= 120 for contender in comparison.contenders)
    named = with_outcome(comparison, {"a<b>": (0.2, None), "b": (0.1, 0.04)})
    html = named._repr_html_()
    assert "a&lt;b&gt;" in html
    assert "<b>" not in html
    assert html.count("<table>") == len(SEEN)
    for seen in SEEN:
        assert f"<th>{seen}</th>" in html
    assert html.count("<td>worse</td><td>0.0400</td>") == len(SEEN)


# ---- another log ---------------------------------------------------------------------------------


def test_another_log_and_catalogues_in_different_orders(
    tiny: Tiny, compared_folders: list[Path], tmp_path: Path
) -> None:
    """Two models number one catalogue differently; the log has an item that neither knows."""
    Recommender("recblr", TINY_MODEL, UNTRAINED).fit(tiny.frame[::-1], out=tmp_path / "reversed")
    known = [
        recblr.load(folder).data.item_ids for folder in (compared_folders[0], tmp_path / "reversed")
    ]
    assert not known[0].equals(known[1])
    with pytest.raises(InputError, match="give one log to measure both on"):
        compare([compared_folders[0], tmp_path / "reversed"])

    first = pl.col("user_id") == tiny.frame["user_id"][0]
    odd = tiny.frame.with_columns(
        item_id=pl.when(first).then(pl.lit("new")).otherwise(pl.col("item_id"))
    )
    theirs = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    odd.rename(theirs).write_csv(tmp_path / "odd.csv")
    with pytest.warns(UserWarning, match="does not know 1 of the 25 items of that log"):
        comparison = compare(
            [compared_folders[0], tmp_path / "reversed"], tmp_path / "odd.csv", columns=theirs
        )
    assert comparison.log == str(tmp_path / "odd.csv")
    for contender in comparison.contenders:
        with pytest.warns(UserWarning, match="does not know 1"):
            alone = recblr.load(contender.folder).evaluate(odd)
        assert [e.metrics for e in contender.evaluations.values()] == [e.metrics for e in alone]
        assert {e.protocol.users for e in alone} == {tiny.frame["user_id"].n_unique()}
        assert {e.population.unknown_history for e in alone} == {1}


def test_the_training_log_given_as_a_log(tiny: Tiny, compared_folders: list[Path]) -> None:
    given, default = compare(compared_folders[:2], tiny.log), compare(compared_folders[:2])
    for ours, theirs in zip(given.contenders, default.contenders, strict=True):
        assert ours.differences == theirs.differences


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_data(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifacts whose data differs from that of the tiny model in one property each."""
    home = tmp_path_factory.mktemp("other_data")
    item, user = tiny.frame["item_id"][0], tiny.frame["user_id"][0]
    by_time = tiny.frame.with_columns(timestamp=pl.int_range(pl.len()).over("user_id"))
    logs = {
        "split": (by_time, {"split": "time"}),
        "core": (tiny.frame, {"core": 2}),
        "catalogue": (tiny.frame.filter(pl.col("item_id") != item), {}),
        "data": (tiny.frame.filter(pl.col("user_id") != user), {}),
        "max_length": (tiny.log, {}),
    }
    for name, (frame, settings) in logs.items():
        training = replace(UNTRAINED, max_length=5) if name == "max_length" else UNTRAINED
        Recommender("recblr", TINY_MODEL, training).fit(frame, out=home / name, **settings)
    return {name: home / name for name in logs}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("split", "leave-one-out and time"),
        ("core", "1 and 2"),
        ("catalogue", r"24 items \(hash \w{8}\) and 23 items \(hash \w{8}\)"),
        ("data", r"\w{16} and \w{16}; give one log to measure both on"),
        ("max_length", "16 and 5; train one of them again with the train.max_length of the other"),
    ],
)
def test_different_data_cannot_be_compared(
    tiny: Tiny, compared_folders: list[Path], other_data: dict[str, Path], field: str, values: str
) -> None:
    message = rf"^model and {field} cannot be compared because their {field} differs: {values}$"
    with pytest.raises(InputError, match=message):
        compare([tiny.artifact, compared_folders[1], other_data[field]])
    if field == "data":
        compare([tiny.artifact, other_data[field]], tiny.log)
    else:
        with pytest.raises(InputError, match=message):
            compare([tiny.artifact, other_data[field]], tiny.log)


def test_ids_of_different_types_are_different_catalogues(tiny: Tiny, tmp_path: Path) -> None:
    numbers = tiny.frame.with_columns(pl.col("item_id").rank("dense").cast(pl.Int64))
    texts = numbers.with_columns(pl.col("item_id").cast(pl.String))
    for name, frame in (("numbers", numbers), ("texts", texts)):
        Recommender("recblr", TINY_MODEL, UNTRAINED).fit(frame, out=tmp_path / name)
    with pytest.raises(
        InputError, match="numbers and texts cannot be compared because their catalogue"
    ):
        compare([tmp_path / "numbers", tmp_path / "texts"], tiny.log)


# ---- the command line ----------------------------------------------------------------------------


def test_the_command_writes_json_and_a_report(
    run: Run, compared_folders: list[Path], comparison: Comparison, tmp_path: Path
) -> None:
    printed = answer(run("compare", *compared_folders, "--html", "report.html", "--json"))
    assert printed["headline"] == comparison.headline
    assert printed["artifacts"]["last"]["evaluations"] == json.loads(
        json.dumps(comparison.to_json()["artifacts"]["last"]["evaluations"])
    )
    assert comparison.headline in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert names(tmp_path) == {"report.html"}


def test_the_command_prints_tables(
    run: Run, compared_folders: list[Path], comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    result = run("compare", *compared_folders)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"{comparison.headline}\n")
    tables = [line for line in result.out.splitlines()[1:] if line.startswith(" ")]
    assert max(map(len, tables)) <= 100
    for seen in SEEN:
        for contender in comparison.contenders:
            evaluation = contender.evaluations[seen]
            hits, gain = (f"{evaluation.metrics[name]:.4f}" for name in ("HR@10", "NDCG@10"))
            assert re.search(rf"^ {contender.label} +{hits} +{gain} ", result.out, re.MULTILINE)
            low, high = evaluation.intervals["NDCG@10"]
            assert f"{low:.4f}-{high:.4f}" in result.out
            difference = contender.differences[seen]
            assert difference is None or f"p = {difference.p:.4f}" in result.out
        for name, row in comparison.baselines[seen].items():
            numbers = f"{row['HR@10']:.4f} +{row['NDCG@10']:.4f}"
            assert re.search(rf"^ \({name}\) +{numbers} *$", result.out, re.MULTILINE)
    parameters = comparison.contenders[2].cost.parameters
    assert re.search(rf"^ last +last-item +{parameters} .* 64 *$", result.out, re.MULTILINE)
    assert "protocol: leave-one-out test, 1-core, full ranking of 24 items" in result.out


def test_a_folder_name_with_markup(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    for name in ("[red]", "[b] <b>"):
        shutil.copytree(tiny.artifact, tmp_path / name)
    result = run("compare", *sorted(tmp_path.iterdir()))
    assert result.code == 0
    assert re.search(r"^ \[red\] ", result.out, re.MULTILINE)


MISTAKES: dict[str, tuple[str, str]] = {
    "one folder": ("MODEL", "a comparison needs at least two artifacts"),
    "missing folder": ("MODEL nowhere", "nowhere is not a whole recblr artifact"),
    "twice": ("MODEL MODEL/../model", "is given twice"),
    "columns without a log": (
        "MODEL DULL --columns user_id=who",
        "columns are given without a log",
    ),
    "missing log": ("MODEL DULL --log no.csv", r"no\.csv: no such file"),
    "split": (
        "MODEL SPLIT",
        "model and split cannot be compared because their split differs: leave",
    ),
    "folder of the report": ("MODEL DULL --html no/report.html", "folder no does not exist"),
    "report is a folder": ("MODEL DULL --html .", r"\. is a folder; give a file"),
    "unknown device": ("MODEL DULL --device gpu", "unknown device 'gpu'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gives_one_line(
    run: Run, tiny: Tiny, compared_folders: list[Path], other_data: dict[str, Path], mistake: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    arguments, message = MISTAKES[mistake]
    folders = {"MODEL": tiny.artifact, "DULL": compared_folders[1], "SPLIT": other_data["split"]}
    for name, folder in folders.items():
        arguments = arguments.replace(name, str(folder))
    result = run("compare", *arguments.split())
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(rf"recblr: .*{message}.*\n", result.err), result.err
    assert names(tmp_path) == set()
