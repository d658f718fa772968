"""Tune: search the settings of a model on the validation part of a log, by Optuna.

A trial trains a model with the settings that it tries. Its figure is the validation NDCG@10 of the
network and the memory of transitions together, as that is what is saved and served. Each trial reports
the network's figure after every epoch, and successive halving (ASHA, arXiv 1810.05934) stops all but a
third after 3 epochs, and of these all but a third after 9.

What is searched stands beside each configuration, in its attribute ``search``. Settings that are not
searched follow from the size of the log, and trial 0 has all settings by the size of the log.
"""

import multiprocessing
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from recblr.allocator import keep_freed_memory
from recblr.config import Range, Search, check_count, check_value
from recblr.data import open_log
from recblr.data.columns import Columns
from recblr.data.sequences import Sequences
from recblr.errors import DivergedError, InputError, from_extra, out_of_memory
from recblr.files import check_absent, exclusive_lock, write_errors
from recblr.models import find_model
from recblr.progress import NamedLines, report
from recblr.recommender import Recommender
from recblr.sizing import build_settings, by_size
from recblr.training.config import TrainConfig
from recblr.training.trainer import Epoch, with_usable_protocol
from recblr.tuning_results import Settings, State, Trial, Tuning, write

if TYPE_CHECKING:
    import optuna

STUDY = "study.db"  # of the folder
MINUTES = 20.0
FIRST_RUNG, REDUCTION = 3, 3  # of successive halving: epochs, and one in so many goes on
RANDOM_TRIALS = 5  # before the sampler has enough trials to learn from


@dataclass(frozen=True)
class _Job:
    """What a process needs to make trials."""

    path: Path  # of the study
    data: Sequences
    model: str
    settings: Settings  # of what is not searched, and of trial 0
    space: dict[str, Range | tuple[Any, ...]]  # by "section.name"
    protocol: Literal["masked", "unmasked"]
    device: str
    trials: int | None
    deadline: float  # of time.time()

    @property
    def first(self) -> dict[str, Any]:
        """The searched settings of trial 0."""
        model, training, _ = build_settings(self.model, self.settings)
        sections = {"model": model, "train": training}
        parts = {name: name.split(".") for name in self.space}
        return {name: getattr(sections[section], key) for name, (section, key) in parts.items()}

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """All settings, with these values of searched ones."""
        settings = {section: dict(each) for section, each in self.settings.items()}
        for name, value in values.items():
            section, key = name.split(".")
            settings[section][key] = value
        return settings


def tune(
    log: Any, out: str | Path, model: str = "recblr", *, minutes: float | None = None,
    trials: int | None = None, jobs: int = 1, settings: Mapping[str, Mapping[str, Any]] | None = None,
    core: int | None = None, split: str | None = None, columns: Columns | None = None,
    device: str = "auto",
) -> Tuning:  # fmt: skip
    """Search the settings of a model on the validation part of a log.

    The test part has no influence. Ctrl-C ends the search and keeps what has finished.

    Args:
        log: a log as for :func:`recblr.open_log`, as are ``core``, ``split`` and ``columns``.
        out: the folder of the study, of ``best.toml`` with the settings of the best trial, and of
            ``importances.png``. If it holds a study of the same log and model, the search goes on.
        model: a name in :data:`recblr.models.MODELS`.
        minutes: how long to search; 20 if ``trials`` is not given. A trial that is then in training is
            stopped after its epoch.
        trials: the number of trials in the folder after which the search ends.
        jobs: the number of processes, which share the threads of torch. Above 1, a script needs
            ``if __name__ == "__main__":`` around the call.
        settings: settings by section that are not searched.
        device: as in :class:`recblr.Recommender`.

    Raises:
        InputError: the log cannot be read, a setting is wrong, the folder belongs to another study, no
            trial has finished, or Optuna is not installed.
    """
    started, optuna, out = time.time(), _library(), Path(out)
    for name, count in (("trials", trials), ("jobs", jobs)):
        if count is not None:
            check_count(count, name)
    minutes = check_value(
        MINUTES if minutes is None and trials is None else minutes, float | None, "minutes"
    )
    if minutes is not None and not minutes > 0:
        raise InputError(f"minutes must be positive, found {minutes}")
    given = {section: dict(values) for section, values in (settings or {}).items()}
    Recommender.configured(model, given, device)  # checks all three
    check_absent(out, True, STUDY)
    data = open_log(log, core, split, columns)
    data.expect_targets("validation")
    data = replace(data, summary={})  # so that not every trial reports what orders the events
    deadline = float("inf") if minutes is None else started + 60 * minutes
    job = _prepare(out / STUDY, data, model, given, device, trials, deadline)
    with write_errors(out):
        out.mkdir(exist_ok=True)
    with exclusive_lock(out):
        study, state = _open_study(job), optuna.trial.TrialState
        _close_running(study, state.PRUNED)  # of a process that was killed
        if not study.get_trials(deepcopy=False, states=(state.COMPLETE, state.WAITING)):
            study.enqueue_trial(job.first)
        interrupted = False
        try:
            _search(job, 0, threading.Lock()) if jobs == 1 else _search_in_processes(job, jobs)
            _close_running(study, state.FAIL)  # of a process that died
        except KeyboardInterrupt:
            interrupted = True
            _close_running(study, state.PRUNED)
        result = _result(job, study, interrupted)
        with write_errors(out):
            write(out, result)
    return result


def _library() -> Any:
    """Optuna, which takes half a second to import."""
    with from_extra("tune"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _prepare(
    path: Path, data: Sequences, model: str, given: Settings, device: str, trials: int | None,
    deadline: float,
) -> _Job:  # fmt: skip
    """The job, with settings by the size of the log and the space of what is not given."""
    memory = build_settings(model, given)[2].enabled
    sized = by_size(data, model, {name: given.get(name, {}) for name in ("model", "train")}, memory)
    settings = {**sized, "memory": dict(given.get("memory", {}))}
    training = with_usable_protocol(build_settings(model, settings)[1], data)
    protocol = training.selection_protocol
    settings["train"]["selection_protocol"] = protocol

    searches: tuple[tuple[str, Search], ...] = (
        ("model", find_model(model)[1].search), ("train", TrainConfig.search),
    )  # fmt: skip
    space = {
        f"{section}.{name}": values
        for section, search in searches
        for name, values in search.items()
        if name not in given.get(section, {})
    }
    job = _Job(path, data, model, settings, {}, protocol, device, trials, deadline)
    for name, values in space.items():
        try:  # what another setting forbids is not searched
            for value in (values.low, values.high) if isinstance(values, Range) else values:
                build_settings(model, job.with_values({name: value}))
        except InputError:
            continue
        job.space[name] = values
    return job


def _open_study(job: _Job, number: int = 0) -> "optuna.Study":
    """The study of a job, created if it does not exist; each process has another ``number``.

    Raises:
        InputError: the file is not a study, or of another log, model, settings or space.
    """
    optuna = _library()
    from sqlalchemy.exc import DatabaseError

    halving = optuna.pruners.SuccessiveHalvingPruner(FIRST_RUNG, REDUCTION)
    try:
        # A URL could not hold every path.
        storage = optuna.storages.RDBStorage(
            "sqlite:///study.db",
            engine_kwargs={"creator": lambda: sqlite3.connect(job.path, timeout=60)},
        )
        study = optuna.create_study(
            storage=storage, study_name="recblr", direction="maximize", load_if_exists=True,
            pruner=halving,
        )  # fmt: skip
    except DatabaseError as error:
        raise InputError(f"{job.path} is not a study of Optuna; choose another folder") from error
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=RANDOM_TRIALS, multivariate=True, constant_liar=True,
        seed=job.settings["train"].get("seed", 0) + 1000 * number + len(study.trials),
    )  # fmt: skip
    parts = {
        "log": job.data.fingerprint, "model": job.model, "set of settings": job.settings,
        "search space": {name: repr(values) for name, values in job.space.items()},
    }  # fmt: skip
    for name, value in parts.items():
        if study.user_attrs.get(name, value) != value:
            raise InputError(
                f"{job.path.parent} holds a search with another {name}; choose another folder"
            )
        study.set_user_attr(name, value)
    return study


def _close_running(study: "optuna.Study", state: Any) -> None:
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=state)


def _search_in_processes(job: _Job, jobs: int) -> None:
    """Search in several processes until all have ended; Ctrl-C ends them."""
    context = multiprocessing.get_context("spawn")  # a forked process cannot use the GPU
    lock, threads = context.Lock(), max(1, torch.get_num_threads() // jobs)
    processes = [
        context.Process(target=_work, args=(job, number, lock, threads), daemon=True)
        for number in range(jobs)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            time.sleep(0.2)  # a join could miss Ctrl-C
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
            process.join()
        raise
    for process in processes:
        if process.exitcode:
            report(f"a process of the search died (exit code {process.exitcode})")


def _work(job: _Job, number: int, lock: AbstractContextManager[Any], threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    torch.set_num_threads(threads)
    keep_freed_memory()
    _search(job, number, lock, named=True)


def _search(job: _Job, number: int, lock: AbstractContextManager[Any], named: bool = False) -> None:
    """Make trials until time or number is reached; with ``named``, their lines begin with the trial."""
    optuna = _library()
    from optuna.trial import TrialState

    study, stderr = _open_study(job, number), sys.stderr
    while True:
        with lock:
            all_trials = study.get_trials(deepcopy=False)
            started = sum(trial.state != TrialState.WAITING for trial in all_trials)
            if time.time() >= job.deadline or (job.trials is not None and started >= job.trials):
                return
            trial = study.ask()
        values = {name: _suggest(trial, name, each) for name, each in job.space.items()}
        name = f"trial {trial.number}"
        chosen = ", ".join(f"{key} = {value}" for key, value in values.items())
        report(f"{name}: {chosen}")
        sys.stderr = NamedLines(name, stderr) if named else stderr
        try:
            ndcg = _train(job, trial, values)
            study.tell(trial, ndcg)
            how = f"validation NDCG@10 {ndcg:.4f}"
        except optuna.TrialPruned:
            study.tell(trial, state=TrialState.PRUNED)
            how = "stopped"
        except (DivergedError, MemoryError, RuntimeError) as error:
            if not isinstance(error, DivergedError) and not out_of_memory(error):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            trial.set_user_attr("reason", reason)
            study.tell(trial, state=TrialState.FAIL)
            how = f"failed ({reason})"
        finally:
            sys.stderr = stderr
        report(f"{name}: {how}")


def _suggest(trial: "optuna.Trial", name: str, values: Range | tuple[Any, ...]) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(name, values)
    return _rounded(trial.suggest_float(name, values.low, values.high, log=values.log))


def _rounded(value: Any) -> Any:
    """A float with three digits, as people write it; any other value as it is."""
    return float(f"{value:.3g}") if isinstance(value, float) else value


def _train(job: _Job, trial: "optuna.Trial", values: Mapping[str, Any]) -> float:
    """Train with these values; return the validation NDCG@10 of network and memory.

    Raises:
        optuna.TrialPruned: another trial was better, or the time is over.
        DivergedError: the loss is not finite.
        KeyboardInterrupt: Ctrl-C.
    """
    optuna = _library()
    recommender = Recommender.configured(job.model, job.with_values(values), job.device)

    def on_epoch(epoch: Epoch) -> None:
        trial.report(epoch.validation[job.protocol]["NDCG@10"], epoch.number)
        last = epoch.number == recommender.training.epochs
        if trial.should_prune() or (time.time() >= job.deadline and not last):
            raise optuna.TrialPruned

    recommender.fit(job.data, on_epoch=on_epoch)
    trained = recommender.trained
    if trained.ended == "interrupted":
        raise KeyboardInterrupt
    assert trained.validation is not None
    choice = recommender.memory_choice
    return trained.validation["NDCG@10"] if choice is None else getattr(choice.best, job.protocol)


def _result(job: _Job, study: "optuna.Study", interrupted: bool) -> Tuning:
    """The result of all trials of a study.

    Raises:
        InputError: no trial has finished.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    states: dict[TrialState, State] = {
        TrialState.COMPLETE: "finished", TrialState.PRUNED: "stopped", TrialState.FAIL: "failed"
    }  # fmt: skip
    trials = [
        Trial(
            trial.number, states[trial.state],
            {name: _rounded(trial.params[name]) for name in job.space if name in trial.params},
            trial.value if trial.state == TrialState.COMPLETE else None,
            max(trial.intermediate_values.values(), default=None),
            len(trial.intermediate_values),
            trial.duration.total_seconds() if trial.duration else 0.0,
            trial.user_attrs.get("reason", ""),
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.state in states
    ]  # fmt: skip
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        failed = next((f", {trial.reason}" for trial in trials if trial.reason), "")
        raise InputError(
            f"no trial has finished ({len(trials)} begun{failed}); call again with more --minutes or "
            "--trials"
        )
    importances: dict[str, float] = {}
    if len({trial.ndcg for trial in finished}) > 1 and job.space:
        evaluator = PedAnovaImportanceEvaluator()
        importances = get_param_importances(study, evaluator=evaluator)
    best = max(finished, key=lambda trial: trial.ndcg or 0.0)
    default = next((trial for trial in finished if trial.settings == job.first), None)
    settings = job.with_values(best.settings)
    return Tuning(job.model, job.protocol, trials, settings, default, importances, interrupted)
