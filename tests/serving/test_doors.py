"""Python, the command line and HTTP take the same ids and lists to mean the same."""

import csv
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.fixtures import Run
from conftest import SOAK, Tiny
from helpers import untrained
from recblr.errors import InputError
from recblr.recommender import Recommender, load
from recblr.serving.model import ServedModel
from serving.fixtures import OpenSite

EXAMPLES = 1_000 if SOAK else 30
LISTS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list, "tuple": tuple, "generator": iter, "numpy": lambda ids: np.array(ids, object),
    "pandas": lambda ids: pd.Series(ids, dtype=object),
    "polars": lambda ids: pl.Series(ids, strict=False, dtype=pl.Object) if ids else [],
    "scalars": lambda ids: [np.str_(x) if isinstance(x, str) else np.int64(x) for x in ids],
    "arrow": lambda ids: [pa.scalar(name) for name in ids],
}  # fmt: skip
UNKNOWN: dict[str, list[Any]] = {
    "text": ["x", "C001-I0002", "1", 'a,"b"', "é ", "c001-i0002 "],
    "numbers": [9999, -1, "07", "1_0", "x", " 3"],
}


@pytest.fixture(scope="module")
def artifacts(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a model whose ids are text, and of one whose ids are whole numbers."""
    folder = tmp_path_factory.mktemp("doors") / "numbers"
    code = pl.col("user_id", "item_id").rank("dense").cast(pl.Int64)
    untrained().fit(tiny.frame.with_columns(code)).save(folder)
    return {"text": tiny.artifact, "numbers": folder}


def as_csv(ids: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="").writerow(ids)
    return text.getvalue()


def of_filters(lines: list[str]) -> list[str]:
    """The warnings about ``allow`` and ``deny``."""
    return [line for line in lines if line.startswith(("allow:", "deny:"))]


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_the_doors_agree(
    kind: str, artifacts: dict[str, Path], open_site: OpenSite, run: Run
) -> None:
    folder = artifacts[kind]
    recommender, site = load(folder), open_site(model=ServedModel(folder))
    known = recommender.data.item_ids.to_pylist()
    ids = st.lists(st.sampled_from(known) | st.sampled_from(UNKNOWN[kind]), max_size=6)

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )  # fmt: skip
    @given(
        history=ids, deny=ids, allow=st.none() | ids, collect=st.sampled_from(list(LISTS)),
        hide_seen=st.booleans(),
    )  # fmt: skip
    def test(
        history: list[Any], deny: list[Any], allow: Any, collect: str, hide_seen: bool
    ) -> None:
        offline, named = in_python(recommender, history, deny, allow, LISTS[collect], hide_seen)
        options = ["--history", as_csv(history), "--deny", as_csv(deny), "--unknown", "popular"]
        options += [] if allow is None else ["--allow", as_csv(allow)]
        options += ["-k", 99, "--json"] + ["--no-hide-seen"] * (not hide_seen)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            result = run("recommend", folder, *options)
        lines = [line.removeprefix("recblr: ") for line in result.err.splitlines()]
        assert result.code == (2 if offline is None else 0)
        body = {"history": history, "deny": deny, "allow": allow, "k": 99, "hide_seen": hide_seen}
        answer = site.client.post("/v1/recommend", json=body).json()
        online = {item["item_id"]: item["score"] for item in answer["items"]}
        assert of_filters(named) == of_filters(lines) == of_filters(answer.get("warnings", []))
        if offline is None:
            assert lines[-1] == "allow and deny leave no item that the model knows"
            assert (online, answer["reason"]) == ({}, "allow, deny and hide_seen leave none")
            return
        rows = json.loads(result.out)
        assert {row["item_id"]: row["score"] for row in rows} == pytest.approx(offline, abs=1e-4)
        assert online == pytest.approx(offline, abs=1e-4)
        assert ("reason" in answer) == (not offline or not set(history) & set(known))

    test()


def in_python(
    recommender: Recommender, history: list[Any], deny: list[Any], allow: Any,
    collect: Callable[[list[Any]], Any], hide_seen: bool,
) -> tuple[dict[Any, float] | None, list[str]]:  # fmt: skip
    """The score of each item, None if no item may be recommended, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            frame = recommender.recommend(
                histories=[collect(history)], deny=collect(deny), k=np.int64(99),
                allow=None if allow is None else collect(allow), hide_seen=hide_seen,
                unknown="popular",
            )  # fmt: skip
        except InputError:
            scores = None
        else:
            scores = dict(zip(frame["item_id"], frame["score"], strict=True))
    return scores, [str(warning.message) for warning in caught]
