"""The folder of a training run, beside that of its model: checkpoints and run logs."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recblr.errors import InputError
from recblr.files import check_absent, exclusive_lock, write_errors
from recblr.training import stored
from recblr.training.checkpoint import BEST, CHECKPOINT

REFIT = "refit"  # the folder in it of the second run, on all events
LOG = "run.jsonl"


def has_checkpoint(out: Path) -> bool:
    """Whether there is a checkpoint of a run for the model in the folder ``out``."""
    return stored.exists(_work(out) / CHECKPOINT)


def _work(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def check_run(out: Path, resume: bool, overwrite: bool, marker: str) -> Path:
    """Check before long work that a run can start or continue.

    Args:
        out: the folder of the model; ``overwrite`` and ``marker`` are those of :func:`check_absent`.
        resume: whether to continue an earlier run.

    Returns:
        The folder of the run, which may not exist.

    Raises:
        InputError: ``out`` exists, there is nothing to resume, or there is but ``resume`` is false.
    """
    check_absent(out, overwrite or resume, marker)
    work, unfinished = _work(out), has_checkpoint(out)
    if resume and not unfinished:
        raise InputError(f"nothing to resume: {work} holds no checkpoint; leave out --resume")
    if unfinished and not resume and not overwrite:
        raise InputError(
            f"{work} holds an unfinished run; pass --resume to go on or --overwrite to drop it"
        )
    return work


@contextmanager
def locked_run(work: Path, resume: bool) -> Iterator[None]:
    """Create and lock the folder of a run; without ``resume``, remove what an earlier run has left."""
    with write_errors(work):
        work.mkdir(exist_ok=True)
    with exclusive_lock(work):
        if not resume:
            for name in (CHECKPOINT, BEST):
                stored.remove(work / name)
            (work / LOG).unlink(missing_ok=True)
            shutil.rmtree(work / REFIT, ignore_errors=True)
        yield


def copy_logs(work: Path, out: Path) -> None:
    """Write the run logs of a run as one file into the folder of its model."""
    parts = [path for path in (work / LOG, work / REFIT / LOG) if path.exists()]
    (out / LOG).write_text("".join(path.read_text(encoding="utf-8") for path in parts), "utf-8")
