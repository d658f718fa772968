"""The results of a search for settings: its trials, the best settings as TOML, a picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recblr.files import new_file

Settings = dict[str, dict[str, Any]]  # by section
State = Literal["finished", "stopped", "failed"]
BEST, PICTURE = "best.toml", "importances.png"  # the files that a search writes


@dataclass(frozen=True)
class Trial:
    """A trial that has ended.

    Attributes:
        number: from 0, in the order of start.
        state: "finished", "stopped" (early, by the search or at the end of the time) or "failed".
        settings: the searched settings, such as ``{"model.dim": 64}``.
        ndcg: validation NDCG@10 of network and memory, of a finished trial.
        network: validation NDCG@10 of the network alone, at the best epoch so far.
        epochs: the number of epochs.
        seconds: from start to end.
        reason: why it failed.
    """

    number: int
    state: State
    settings: dict[str, Any]
    ndcg: float | None
    network: float | None
    epochs: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class Tuning:
    """The result of a search, with all trials of its folder.

    Attributes:
        model: the name of the model.
        protocol: the protocol of all figures, "masked" or "unmasked".
        trials: by number.
        settings: all settings of the best trial, as :meth:`Recommender.configured` takes them.
        default: the finished trial that has all settings by the size of the log.
        importances: the share of each searched setting in the differences between finished trials (PED-
            ANOVA, arXiv 2304.10255); empty if these have only one figure.
        interrupted: whether Ctrl-C ended the search.
    """

    model: str
    protocol: str
    trials: list[Trial]
    settings: Settings
    default: Trial | None
    importances: dict[str, float]
    interrupted: bool

    def __repr__(self) -> str:
        best = self.ranking[0].ndcg
        return f"Tuning({self.model}, {len(self.trials)} trials, best {best:.4f} {self.protocol})"

    @property
    def ranking(self) -> list[Trial]:
        """The finished trials, best first."""
        finished = [trial for trial in self.trials if trial.ndcg is not None]
        return sorted(finished, key=lambda trial: -(trial.ndcg or 0.0))

    @property
    def summary(self) -> str:
        """The best trial, and among how many it was chosen."""
        best, states = self.ranking[0], [trial.state for trial in self.trials]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        default = ""
        if self.default is not None:
            default = f", {self.default.ndcg:.4f} by the size of the log"
        return (
            f"trial {best.number} is the best of {len(states)} ({counts}): validation NDCG@10 "
            f"({self.protocol}) {best.ndcg:.4f}{default}. The figure "
            "chose the trial, so it is optimistic"
        )


def write(out: Path, tuning: Tuning) -> None:
    """Write the settings of the best trial as TOML, and the picture of the importances."""
    lines = [
        f"# {tuning.summary}.",
        f"# recblr train LOG -o DIR --model {tuning.model} --config FILE",
    ]
    for section, values in tuning.settings.items():
        lines += ["", f"[{section}]"] if values else []
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    with new_file(out / BEST) as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if tuning.importances:
        with new_file(out / PICTURE) as path:
            _draw(tuning, path)


def _draw(tuning: Tuning, path: Path) -> None:
    from matplotlib.figure import Figure

    names = sorted(tuning.importances, key=lambda name: tuning.importances[name])
    figure = Figure((6, 1.2 + 0.35 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [tuning.importances[name] for name in names], color="#0072B2")
    axes.set(
        title=f"{tuning.model}, {len(tuning.ranking)} finished trials",
        xlabel="share in the differences of validation NDCG@10",
    )
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=160, format="png")
