"""How far back an event may depend on another: who finds it (an open question of the paper).

A model is trained on short distances (data/recall.py), then asked at many times as far as well. A
model with a state reads a longer history as it is; one without sees the last events it was built for.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recblr.allocator import keep_freed_memory
from recblr.data.associative_recall import AssociativeRecall, simulate_recall
from recblr.data.batches import pack
from recblr.data.sequences import Sequences
from recblr.models.model import Model, RecurrentModel
from recblr.paper import figures
from recblr.paper.report import Cell, Record, Report, Why, read_record, replace_file, table
from recblr.paper.runs import configured, made_by
from recblr.presets import for_model
from recblr.provenance import provenance
from recblr.recommender import Recommender

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG = "recall"
FEWEST = 20  # test users
ABOUT = """Now and again a user buys the same brand again, one of {brands}; in between come things that
tell nothing (`data/recall.py`). Users are trained on, validated or tested, not two of these. Trained on
{users:,} histories of {length:,} events with purchases up to {last} events apart; asked also in longer
ones, whose last purchase lies farther from the one before. Shown are the shares of purchases that rank
first of all items, ± their deviation over several seeds; a guess is right in 1 of {brands}. There are
{asked} test users, {fewest} where it is far. A model finds it where nine of ten are right."""


@dataclass(frozen=True)
class Distances:
    """The study.

    Attributes:
        title: how its page is headed.
        rows: models by their label.
        recall: what is trained on.
        farther: what the last of its distances is replaced by when they are asked for.
        settings: of training, as on the command line.
    """

    title: str
    rows: dict[str, str]
    recall: AssociativeRecall
    farther: tuple[int, ...]
    settings: tuple[str, ...]

    def open(self, name: str) -> Sequences:
        """The log that is trained on."""
        return simulate_recall(self.recall)[0]

    def smoke(self) -> "Distances":
        """The same, much smaller."""
        recall = AssociativeRecall(distances=(4, 8), brands=2, others=2, users=(60, 10, 10))
        settings = ("train.epochs=2", "train.batch_size=256", "model.dim=16")
        return replace(self, recall=recall, farther=(80,), settings=settings)

    def cells(self, seeds: Sequence[int], device: str) -> list[Cell]:
        """A run of every model and seed."""
        return [
            Cell(LOG, row, f"{row} seed {seed}", partial(self._find, model, seed),
                 partial(self._make, model, seed))
            for seed in seeds
            for row, model in self.rows.items()
        ]  # fmt: skip

    def report(self, folder: Path, seeds: Sequence[int], why: Why) -> Report:
        """What the runs in ``folder`` come to."""
        found = {
            row: [it for seed in seeds if (it := self._find(model, seed, folder)) is not None]
            for row, model in self.rows.items()
        }
        found = {row: records for row, records in found.items() if records}
        distances = self._distances()
        data: dict[str, Any] = {
            row: {
                "right": _each(np.mean, records, distances),
                "deviation": _each(np.std, records, distances, ddof=1)
                if len(records) > 1
                else None,
                "seconds": float(np.mean([it["seconds"] for it in records])),
                "seeds": len(records),
            }
            for row, records in found.items()
        }
        lines = [
            [row, *_shares(it), f"{it['seconds']:,.0f}", str(it["seeds"])]
            for row, it in data.items()
        ]
        missing = [f"- {row}: not measured: {reason}" for (_, row), reason in why.items()]
        head = ["answers right", *(f"{d:,} events back" for d in distances), "seconds", "seeds"]
        farthest = {row: self._farthest(it["right"], distances) for row, it in data.items()}
        headline = "; ".join(
            f"{row} finds it {d:,} events back" if d else f"{row} does not find it"
            for row, d in farthest.items()
        )
        about = ABOUT.format(
            brands=self.recall.brands, users=self.recall.users[0], asked=self.recall.users[2],
            length=self.recall.length, last=self.recall.distances[-1], fewest=FEWEST,
        )  # fmt: skip
        return Report(
            headline=headline,
            verdict=f"{headline}." if headline else "",
            summary="\n\n".join(
                [*([table(head, lines)] * bool(lines)), "\n".join(missing)]
            ).strip(),
            details=about,
            data={"distances": distances, "rows": data},
            records=[record for records in found.values() for record in records],
            draw=partial(_draw, distances, data, 1 / self.recall.brands) if data else None,
        )

    def _distances(self) -> list[int]:
        return [*sorted(set(self.recall.distances)), *self.farther]

    def _farthest(self, right: Sequence[float | None], distances: Sequence[int]) -> int:
        """The greatest distance up to which at least nine of ten answers are right; 0 if none is."""
        farthest = 0
        for share, distance in zip(right, distances, strict=True):
            if share is None or share < 0.9:
                break
            farthest = distance
        return farthest

    def _recommender(self, model: str, seed: int, device: str) -> Recommender:
        length = self.recall.length
        fixed = [f"train.max_length={length}", f"train.window={length}", f"train.seed={seed}"]
        still = for_model({"model": {"dropout": 0.0}}, model)
        return configured(model, still, [*fixed, *self.settings], device)

    def _path(self, model: str, seed: int, folder: Path) -> Path:
        return folder / LOG / f"{model},seed={seed}.json"

    def _asked(self) -> dict[str, Any]:
        """What is trained on and asked, as JSON values."""
        asked: dict[str, Any] = json.loads(
            json.dumps({"recall": asdict(self.recall), "farther": self.farther})
        )
        return asked

    def _find(self, model: str, seed: int, folder: Path) -> Record | None:
        found = read_record(self._path(model, seed, folder))
        if found is None or found["asked"] != self._asked():
            return None
        return made_by(self._recommender(model, seed, "cpu"), found)

    def _make(self, model: str, seed: int, folder: Path, command: str, device: str) -> Record:
        keep_freed_memory()
        recommender = self._recommender(model, seed, device)
        origin = provenance(command, recommender.device.type)  # before it, as in runs.make
        trained = recommender.fit(self.open(LOG)).trained
        if trained.ended == "interrupted":
            raise KeyboardInterrupt
        record = {
            "dataset": LOG,
            "model": model,
            "seed": seed,
            **origin,
            "settings": recommender.settings,
            "asked": self._asked(),
            "epochs": trained.epoch,
            "best_epoch": trained.best_epoch,
            "seconds": round(trained.seconds, 1),
            "right": self._right(recommender.network),
        }
        replace_file(self._path(model, seed, folder), json.dumps(record, indent=1) + "\n")
        return record

    @torch.no_grad()
    def _right(self, model: Model) -> dict[str, float]:
        """By distance, the share of the test users' answers that rank first."""
        found: dict[str, float] = {}
        *near, last = self.recall.distances
        for distance in (last, *self.farther):
            if distance > last and not isinstance(model, RecurrentModel):
                continue
            users = max(FEWEST, self.recall.users[2] * last // distance)
            asked = replace(
                self.recall, distances=(*near, distance), users=(1, 1, users),
                seed=self.recall.seed + 1,
            )  # fmt: skip
            shares = answers_right(model, asked)
            shown = shares if distance == last else [distance]
            found |= {str(it): shares[it] for it in shown}
        return found


def _each(
    statistic: Callable[..., Any],
    records: Sequence[Record],
    distances: Sequence[int],
    **options: Any,
) -> list[float | None]:
    """Of the shares of several seeds, by distance; None for those that a model cannot be asked at."""
    return [
        float(statistic([it["right"][str(d)] for it in records], **options))
        if str(d) in records[0]["right"]
        else None
        for d in distances
    ]


def _shares(row: dict[str, Any]) -> list[str]:
    """As they stand in the table."""
    spreads = row["deviation"] or [None] * len(row["right"])
    return [
        "cannot" if share is None else f"{share:.1%}" + (f" ± {spread:.1%}" if spread else "")
        for share, spread in zip(row["right"], spreads, strict=True)
    ]


def answers_right(model: Model, recall: AssociativeRecall) -> dict[int, float]:
    """By distance, the share of answers of the test users that score higher than all other items."""
    data, rows = simulate_recall(recall)
    device = model.item_embeddings.device
    right = []
    for user, of_user in enumerate(rows, len(data.offsets) - 1 - len(rows)):
        begin, end = data.offsets[user : user + 1], data.offsets[user + 1 : user + 2]
        batch = pack(data.items, begin, end - 1, "all")
        asked = torch.from_numpy(of_user - begin - 1)
        batch = replace(batch, positions=asked, targets=batch.targets[asked]).to(device)
        scores = model.hidden(batch) @ model.item_embeddings.t()
        own = scores.gather(1, batch.targets.unsqueeze(1))
        right.append(((scores >= own).sum(1) == 1).float().cpu().numpy())
    shares, distances = np.stack(right).mean(0), np.array(recall.distances)
    return {int(d): float(shares[distances == d].mean()) for d in np.unique(distances)}


def _draw(distances: Sequence[int], data: dict[str, Any], chance: float, figure: "Figure") -> None:
    """Shares by distance, a line a model, the last one in vermilion; dashed what a guess gives."""
    figure.set_size_inches(6.6, 3.4)
    axes = figure.subplots()
    for number, (row, it) in zip(reversed(range(len(data))), data.items(), strict=True):
        points = [(d, s) for d, s in zip(distances, it["right"], strict=True) if s is not None]
        axes.semilogx(
            *zip(*points, strict=True), color=figures.COLOURS[number], label=row,
            marker=figures.MARKERS[number], markersize=5 + 2 * number,  # none hides another
        )  # fmt: skip
    axes.axhline(chance, color=figures.GREY, ls="--", lw=1, label="a guess")
    axes.set_ylim(0, 1.07)
    axes.set_xlabel("events between a key and its answer")
    axes.set_ylabel("answers right")
    axes.set_xticks(distances, [f"{d:,}" if d < 10_000 else f"{d // 1000}k" for d in distances])
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
