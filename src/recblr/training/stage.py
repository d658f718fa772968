"""The stages in the making of a model: fitted, then perhaps refitted or updated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from recblr.data.sequences import Sequences
from recblr.errors import InputError

Kind = Literal["fit", "refit", "update", "memory-only update"]


@dataclass(frozen=True)
class Stage:
    """One stage. The last one describes the weights and the memory that a model holds."""

    kind: Kind
    data: str  # fingerprint of the log and its split
    events: int  # of the log
    trained_events: int  # events of the log that the weights were trained on
    updates: int | None  # of the weights in this stage; None for a fit, which has epochs
    seconds: float

    @staticmethod
    def of(kind: Kind, data: Sequences, updates: int | None, seconds: float) -> "Stage":
        """A stage that ends with ``data`` as the log of the model."""
        trained = data.training_events
        return Stage(kind, data.fingerprint, len(data.items), trained, updates, round(seconds, 2))


def describe(stages: Sequence[Stage]) -> str:
    """What the weights of a model were trained on, in words."""
    last = stages[-1]
    share = "all" if last.trained_events == last.events else f"{last.trained_events:,} of"
    kinds = ", ".join(stage.kind for stage in stages)
    return f"{kinds}; trained on {share} {last.events:,} events of its log"


def expect_held_out(stages: Sequence[Stage]) -> None:
    """InputError if a model was trained on the events that its log would hold out."""
    if stages[-1].kind != "fit":
        raise InputError(
            f"no event of the model's log is held out ({describe(stages)}); give a log of later "
            'events, or see "measured" in manifest.json for the metrics of before'
        )


def describe_unseen(stages: Sequence[Stage]) -> str:
    """One line about the newest events of its log that a model was not trained on; "" if none."""
    last = stages[-1]
    if last.trained_events == last.events:
        return ""
    return (
        f"the model was trained on {last.trained_events:,} of the {last.events:,} events of its log, "
        "not on the newest ones; recblr train --refit and recblr update train on all"
    )
