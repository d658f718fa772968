"""From a log to histories: reading, named data sets, splits, sequences, batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recblr.config import near
from recblr.data.datasets import DATASETS, load_dataset
from recblr.data.log import Interactions, read_log
from recblr.data.sequences import MARK, Sequences, prepare
from recblr.errors import InputError


def open_log(
    source: Any,
    core: int | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Sequences:
    """Anything that holds a log, ready to train on.

    Args:
        source: Sequences, Interactions, a Polars or pandas frame, the path of a log file or of a
            prepared folder, or the name of a data set.
        core: the k-core filter; by default that of the data set, or none (1).
        split: "leave-one-out" (default), "time" or "time-last".
        columns: our column names to those of the file.
    """
    if isinstance(source, str | Path) and (Path(source) / MARK).exists():
        source = Sequences.load(Path(source))
    if isinstance(source, Sequences):
        asked = (source.core if core is None else core, split or source.split.name)
        if asked != (source.core, source.split.name) or columns is not None:
            raise InputError(
                f"this data was prepared with core {source.core} and split {source.split.name}; "
                "prepare the log again to change that, or to name its columns"
            )
        return source
    if isinstance(source, str) and not Path(source).exists():
        if source in DATASETS:
            core = DATASETS[source].core if core is None else core
            source = load_dataset(source)
        elif source == Path(source).stem:  # a name, and not a path
            hint = near(source, DATASETS)
            raise InputError(f"{source}: no such file and no such data set{hint}")
    log = source if isinstance(source, Interactions) else read_log(source, columns=columns)
    return prepare(log, 1 if core is None else core, split or "leave-one-out")
