"""Recommender.evaluate, on the fitted log and on other logs."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

import recblr
from conftest import TINY_TRAINING, Tiny
from helpers import history_of, scores_of
from recblr.errors import InputError
from recblr.evaluation.evaluate import Population
from recblr.evaluation.ranking import MISSED
from recblr.models.fpmc import FPMCConfig
from recblr.recommender import Recommender


def test_evaluate_measures_the_rank_of_the_last_event(tiny: Tiny) -> None:
    """HR@10, with a plain loop over the scores before the last event of every history."""
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


def test_evaluating_the_fitted_log_again_gives_the_same_metrics(tiny: Tiny) -> None:
    ours = [evaluation.to_json() for evaluation in tiny.recommender.evaluate()]
    for log in (tiny.log, str(tiny.log), tiny.frame):
        assert [e.to_json() for e in tiny.recommender.evaluate(log)] == ours
    validation = tiny.recommender.evaluate(part="validation")
    choice = tiny.recommender.memory_choice
    assert choice is not None
    for evaluation in validation:
        chosen = getattr(choice.best, evaluation.protocol.seen)
        assert evaluation.metrics["NDCG@10"] == pytest.approx(chosen, abs=1e-6)
    assert tiny.recommender.measured == ours, "only the test part is kept"


def test_user_vectors_are_found_by_id_in_another_log(tiny: Tiny) -> None:
    training = replace(TINY_TRAINING, epochs=1)
    rec = Recommender("fpmc", FPMCConfig(dim=8), training).fit(tiny.frame)
    ours = [evaluation.to_json() for evaluation in rec.evaluate()]
    assert [evaluation.to_json() for evaluation in rec.evaluate(tiny.frame)] == ours
    strangers = tiny.frame.with_columns(pl.format("{}?", pl.col("user_id")).alias("user_id"))
    assert rec.evaluate(strangers)[0].metrics != ours[0]["metrics"]


def test_another_log_is_evaluated_with_the_items_of_the_model(tiny: Tiny) -> None:
    a, b, c, d = tiny.recommender.data.item_ids.to_pylist()[:4]
    histories = {
        "plain": [a, b, c, d],
        "unknown inside": ["?", a, "?", b, c, d],  # ignored
        "unknown before": [a, b, c, "?", d],  # also as the validation event
        "unknown target": [a, b, c, "!"],
        "only unknown": ["?", "?", "?", d],  # nothing to predict from
        "short": [a, b],  # no event to predict
    }
    rows = [(user, item) for user, items in histories.items() for item in items]
    log = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    with pytest.warns(
        UserWarning, match="does not know 2 of the 6 items of that log; they are removed"
    ):
        unmasked, masked = tiny.recommender.evaluate(log)
    scores = scores_of(tiny.recommender, [a, b, c])
    rank = sum(score >= scores[d] for score in scores.values())
    ranks = {"plain": rank, "unknown inside": rank, "unknown before": rank}
    ranks["unknown target"] = ranks["only unknown"] = MISSED
    measured = dict(zip([list(histories)[u] for u in unmasked.users], unmasked.ranks, strict=True))
    assert measured == ranks
    unseen = [scores[item] >= scores[d] for item in scores if item not in (a, b, c)]
    assert masked.ranks.tolist() == [sum(unseen)] * 3 + [MISSED] * 2
    assert unmasked.population == masked.population == Population(5, 1, 1, 1, 0)
    assert str(unmasked.population) == (
        "1 missed (no item of the history is known), 1 missed (the target is not known), "
        "1 left out (no event to predict)"
    )
    assert unmasked.protocol.data != tiny.recommender.data.fingerprint


def test_users_of_unknown_items_count_as_missed(tiny: Tiny) -> None:
    """Half of the users of another log have only new items: the figures are half as high."""
    ours = tiny.recommender.evaluate()
    news = tiny.frame.with_columns(
        user_id=pl.format("new {}", "user_id"), item_id=pl.format("new {}", "item_id")
    )
    with pytest.warns(UserWarning, match="does not know 24 of the 48 items"):
        theirs = tiny.recommender.evaluate(pl.concat([tiny.frame, news]))
    users = tiny.frame["user_id"].n_unique()
    for own, other in zip(ours, theirs, strict=True):
        assert other.protocol.users == other.population.users == 2 * users
        assert other.population.unknown_history == users
        for name, value in own.metrics.items():
            assert other.metrics[name] == pytest.approx(value / 2, rel=1e-12)
        assert other.to_json()["population"]["unknown_history"] == users
        repeats = int((ours[1].ranks == MISSED).sum())
        assert str(own.population) == f"{repeats} missed if masked (the target is in the history)"


def test_an_unknown_part_is_refused(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="part = 'tets': choose one of validation, test"):
        tiny.recommender.evaluate(part="tets")  # type: ignore[arg-type]


def test_a_log_of_unknown_items_is_refused(tiny: Tiny) -> None:
    log = pl.DataFrame({"user_id": ["a"] * 5, "item_id": ["?", "!", "?", "!", "?"]})
    with pytest.raises(InputError, match="knows none of the 2 items of that log"):
        tiny.recommender.evaluate(log)


def test_a_log_prepared_differently_is_refused(tiny: Tiny) -> None:
    other = recblr.prepare(recblr.read_log(tiny.frame), core=2)
    with pytest.raises(InputError, match="prepared with core 2"):
        tiny.recommender.evaluate(other)
