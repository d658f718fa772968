"""The study of lengths: models are trained on events that depend on one not far back, and tested on
events that depend on one farther back (data/associative_recall.py)."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recblr.data.associative_recall import AssociativeRecall, simulate_recall
from recblr.data.batches import pack
from recblr.models.model import Model, RecurrentModel
from recblr.paper import logs
from recblr.paper.charts import curves
from recblr.paper.measurements import Run
from recblr.paper.report import Line, Missing, Record, Report, Study, table
from recblr.recommender import Recommender

FEWEST = 20  # test users
LEARNED = 0.9  # of the answers right


@dataclass(frozen=True)
class DistanceRun(Run):
    """A run whose test is the share of right answers by distance, of the training's and farther."""

    farther: Sequence[int] = ()

    @property
    def asked(self) -> Any:
        """What is trained on and tested, as JSON values."""
        asked = {"recall": asdict(logs.recall(self.dataset)), "farther": self.farther}
        return json.loads(json.dumps(asked))

    def find(self, folder: Path) -> Record | None:
        record = super().find(folder)
        return record if record and record["asked"] == self.asked else None

    @torch.no_grad()
    def test(self, recommender: Recommender) -> Record:
        model, recall = recommender.network, logs.recall(self.dataset)
        *near, last = recall.distances
        right: dict[str, float] = {}
        for distance in (last, *self.farther):
            if distance == last or isinstance(model, RecurrentModel):
                users = (1, 1, max(FEWEST, recall.users[2] * last // distance))
                distances, seed = (*near, distance), recall.seed + 1
                test = replace(recall, distances=distances, users=users, seed=seed)
                for asked, share in answers_right(model, test).items():
                    right.setdefault(str(asked), share)
        return {"asked": self.asked, "right": right}


@dataclass(frozen=True, kw_only=True)
class Distances(Study):
    """The study of distances; ``farther`` are those of the test beyond those of the training."""

    farther: Sequence[int]

    def small(self) -> "Distances":
        return replace(self, datasets={"recall-small": ()}, farther=[80])

    def measurements(self, seeds: Sequence[int], device: str) -> list[DistanceRun]:
        """A run of every model and seed."""
        return [
            DistanceRun(dataset, row, model, settings, seed, self.farther)
            for dataset in self.datasets
            for seed in seeds
            for row, (model, *settings) in self.rows.items()
        ]

    def report(self, folder: Path, seeds: Sequence[int], missing: Missing) -> Report:
        ((dataset, recall),) = ((name, logs.recall(name)) for name in self.datasets)
        records: dict[str, list[Record]] = {row: [] for row in self.rows}
        for run in self.measurements(seeds, "cpu"):
            records[run.row] += [record] if (record := run.find(folder)) else []
        right: dict[str, dict[float, float]] = {}
        lines: list[Line] = []
        for row, kept in records.items():
            line: Line = {"model": row}
            for distance in map(str, [*recall.distances, *self.farther]):
                shares = [r["right"][distance] for r in kept if distance in r["right"]]
                if shares:
                    right.setdefault(row, {})[int(distance)] = float(np.mean(shares))
                spread = f" ± {np.std(shares, ddof=1):.1%}" if len(shares) > 1 else ""
                cannot = "cannot" if kept else ""
                line[distance] = f"{np.mean(shares):.1%}{spread}" if shares else cannot
            seconds = float(np.mean([r["seconds"] for r in kept])) if kept else None
            note = "" if kept else f"not measured: {missing[dataset, row]}"
            lines.append({**line, "seconds": seconds, "seeds": len(kept) or None, "note": note})
        learned: dict[str, float] = {}
        for row, answers in right.items():
            missed = min((d for d in answers if answers[d] < LEARNED), default=np.inf)
            learned[row] = max((d for d in answers if d < missed), default=0)
        reached = ", ".join(f"{row} {distance:,}" for row, distance in learned.items())
        headline = f"events back with nine of ten answers right: {reached}" if right else ""
        label = "events between a purchase and the one it repeats"
        return Report(
            headline=headline,
            table=table([*lines[0]], lines),
            sentences=[f"{dataset}: {headline}."] if right else [],
            data={"figures": lines, "right": right, "learned": learned},
            records=[record for kept in records.values() for record in kept],
            picture=partial(curves, {"answers right": right}, label, "log") if right else None,
        )


def answers_right(model: Model, recall: AssociativeRecall) -> dict[int, float]:
    """By distance, the share of answers of the test users that score higher than all other items."""
    data, rows = simulate_recall(recall)
    right = []
    for user, of_user in enumerate(rows, len(data.offsets) - 1 - len(rows)):
        begin, end = data.offsets[user : user + 1], data.offsets[user + 1 : user + 2]
        batch = pack(data.items, begin, end - 1, "all")
        asked = torch.from_numpy(of_user - begin - 1)
        batch = replace(batch, positions=asked, targets=batch.targets[asked]).to(model.device)
        scores = model.hidden(batch) @ model.item_embeddings.t()
        own = scores.gather(1, batch.targets.unsqueeze(1))
        right.append(((scores >= own).sum(1) == 1).float().cpu().numpy())
    shares, distances = np.stack(right).mean(0), np.array(recall.distances)
    return {int(d): float(shares[distances == d].mean()) for d in np.unique(distances)}
