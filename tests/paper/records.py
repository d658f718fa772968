"""Records of hand-made runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recblr.paper.accuracy import MEMORY, Accuracy
from recblr.paper.measurements import Run, pack_ranks
from recblr.paper.report import Report

USERS = 400
BASELINE = {f"{name}@{k}": 0.01 * k for name in ("HR", "NDCG", "MRR") for k in (10, 20)}
ROWS = {"SASRec": ("sasrec",), "GRU4Rec": ("gru4rec",), "RecBLR": ("recblr",)}
PUBLISHED = {"SASRec": {"NDCG@10": 0.5}, "GRU4Rec": {"NDCG@10": 0.4}, "RecBLR": {"NDCG@10": 0.6}}
STUDY = Accuracy(
    title="A table", rows=ROWS, datasets={"beauty": ()}, published={"beauty": PUBLISHED},
    reference="RecBLR",
)  # fmt: skip
ON = "memory.enabled=true"
BOTH = replace(
    STUDY, rows=ROWS | {f"{name}{MEMORY}": (name.lower(), ON) for name in ("SASRec", "RecBLR")}
)
LINE = Accuracy(
    title="A line", axis="expansion factor", datasets={"beauty": (), "sports": ()},
    rows={f"{n}": ("recblr", f"model.expansion={n}") for n in (1, 2, 3)},
    optimum={"beauty": "2", "sports": "2"},
)  # fmt: skip


def run(model: str = "recblr", seed: int = 0, *settings: str, dataset: str = "beauty") -> Run:
    return Run(dataset, "", model, settings, seed)


def keep(folder: Path, run: Run, ranks: np.ndarray, data: str = "d1f6", **changes: Any) -> None:
    """Write the record of a run with these ranks (U,); masked they are one better."""
    packed = {"unmasked": pack_ranks(ranks), "masked": pack_ranks(ranks.clip(2) - 1)}
    record = {
        "dataset": run.dataset, "model": run.model, "seed": run.seed, "command": "recblr",
        "date": "2026-11-21T01:02+00:00", "commit": "abc", "hardware": "AMD", "threads": 1,
        "versions": {"torch": "2.13.0"}, "settings": run.recommender("cpu").settings,
        "examples": "all-positions", "parameters": 12_345, "epochs": 20, "best_epoch": 17,
        "ended": "epochs", "seconds": 60.0 + run.seed,
        "test": [{"protocol": {"data": data, "seen": seen},
                  "floors": {"popularity": BASELINE}} for seen in packed],
        "ranks": packed, **changes,
    }  # fmt: skip
    path = folder / run.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def hits(share: float, seed: int = 0) -> np.ndarray:
    """Ranks (U,): 1 for a share of the users, none of the others has a hit."""
    return np.where(np.random.default_rng(seed).permutation(USERS) < share * USERS, 1, 21)


def report(folder: Path, study: Accuracy = STUDY) -> Report:
    missing = {
        (dataset, row): "not run"
        for dataset in study.datasets
        for row, (model, *settings) in study.rows.items()
        if not any((folder / run(model, seed, *settings, dataset=dataset).file).exists()
                   for seed in range(3))
    }  # fmt: skip
    return study.report(folder, range(3), missing)


def line(report: Report, row: str, metric: str = "NDCG@10") -> Any:
    """The figures of a row on beauty."""
    lines = report.data["figures"]
    key = ("beauty", row, metric)
    return next(x for x in lines if (x["dataset"], x["row"], x["metric"]) == key)


def cells(text: str) -> list[list[str]]:
    """Of the lines of a Markdown table."""
    return [[*map(str.strip, line.split("|"))][1:-1] for line in text.splitlines() if "|" in line]


# ---- figures and verdicts ------------------------------------------------------------------------
