"""`recblr reproduce`: every study in small, what is kept, what goes wrong."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cli.fixtures import Result
from conftest import slow
from recblr import load
from recblr.errors import DivergedError, InputError
from recblr.files import exclusive_lock
from recblr.paper import studies
from recblr.paper.logs import MADE, open_dataset
from recblr.paper.measurements import Run
from recblr.paper.studies import STUDIES

SMALL = ("table4", "--quick", "-o", "results", "--rows", "recblr")
PLAIN, BOTH = "recblr,seed=0", "recblr,memory.enabled=true,seed=0"
WITH_MEMORY = ("time", "--quick", "-o", "results", "--rows", "RecBLR + memory")


Reproduce = Callable[..., Result]


@pytest.fixture
def reproduce(run: Reproduce) -> Reproduce:
    return partial(run, "reproduce")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models of the runs that are made from now on."""
    models: list[str] = []

    def make(run: Run, *arguments: Any) -> dict[str, Any]:
        models.append(run.model)
        return real(run, *arguments)

    real = Run.make
    monkeypatch.setattr(Run, "make", make)
    return models


def fail(patch: pytest.MonkeyPatch, error: BaseException, **where: Any) -> None:
    """Raise the error instead of making the runs with these attributes."""

    def make(run: Run, *arguments: Any) -> dict[str, Any]:
        if all(getattr(run, name) == value for name, value in where.items()):
            raise error
        return real(run, *arguments)

    real = Run.make
    patch.setattr(Run, "make", make)


def content(folder: str = "results", study: str = "table4") -> Any:
    return json.loads(Path(folder, f"{study}.json").read_text())


def verdict(text: str, row: str) -> str:
    """The verdict of a row in the first table of a page."""
    head, *lines = ([*map(str.strip, x.split("|"))] for x in text.splitlines() if "|" in x)
    return next(line[head.index("verdict")] for line in lines if line[1] == row)


# ---- every study ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of results: what one study has run, another does not run again."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.parametrize(
    "name",
    ["table1", "table2", "table3", "table4", "table5", pytest.param("figure4", marks=slow), "figure5",
     pytest.param("figure6", marks=slow), "examples", "lengths", "sparsity", "time", "diversity",
     "defaults"],
)  # fmt: skip
def test_every_study_in_small(reproduce: Reproduce, shared: Path, name: str) -> None:
    result = reproduce(name, "--quick", "-o", shared, "--device", "cpu")
    title = STUDIES[name].title
    first = (
        re.escape(title) + r"\n\n(## simulated: NDCG@10\n\n)?\| "
    )  # a page starts with its table
    assert (result.code, bool(re.match(first, result.out))) == (0, True)
    if name not in ("table5", "figure4"):  # of claims about longer histories
        assert "not measured" not in result.out
    page = content(str(shared), name)
    assert (page["not_measured"], page["failed"], page["title"]) == ([], {}, title)
    assert re.match("# " + first, (shared / f"{name}.md").read_text())
    assert (shared / f"{name}.png").exists() == (name != "table2")
    index = (shared / "README.md").read_text()
    assert f"[{title}]({name}.md) " in index
    assert all(f"`recblr reproduce {other}" in index for other in STUDIES)

    again = reproduce(name, "--quick", "-o", shared, "--device", "cpu", "--json")
    assert (again.code, again.err) == (0, "")
    assert json.loads(again.out) == page


def test_a_table_of_models(reproduce: Reproduce, shared: Path) -> None:
    page = json.loads(reproduce("table1", "--quick", "-o", shared, "--json").out)
    runs = {run["row"]: run for run in page["runs"]}
    assert runs.keys() == STUDIES["table1"].rows.keys()
    assert {(run["seed"], run["epochs"]) for run in runs.values()} == {(0, 2)}
    metrics = {f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (10, 20)}
    rows = {*runs, "popularity", "markov chain", "transitions"}
    assert {(line["row"], line["metric"]) for line in page["figures"] if "mean" in line} == {
        (row, metric) for row in rows for metric in metrics
    }
    examples = {name: run["examples"] for name, run in runs.items()}
    assert examples["RecBLR"] == examples["SASRec"] == "all-positions"
    assert (examples["BERT4Rec"], examples["FMLP-Rec"]) == ("cloze", "prefixes")
    assert (shared / "simulated" / "floors.json").exists()
    for name in ("SASRec", "LRURec", "RecBLR"):
        plain, both = runs[name], runs[f"{name} + memory"]
        for same in ("seed", "epochs", "best_epoch", "parameters", "examples"):
            assert plain[same] == both[same]
        assert both["seconds"] >= plain["seconds"]
        assert both["memory"].keys() == {"weight", "scale", "repeat", "unmasked", "masked"}
        assert "memory" not in plain


# ---- what is kept --------------------------------------------------------------------------------


def test_finished_runs_are_not_made_again(reproduce: Reproduce, made: list[str]) -> None:
    first = reproduce(*SMALL)
    assert (first.code, first.err) == (0, "1 of 1: simulated RecBLR seed 0\n")
    second = reproduce(*SMALL)
    assert (second.out, second.err) == (first.out, "")
    more = reproduce("table4", "--quick", "-o", "results", "--rows", "SASRec", "--seeds", "0,1")
    assert made == ["recblr", "sasrec", "sasrec"]
    assert re.search(r"\| SASRec +\| 0\.\d{4} \| 0\.\d{4} \|", more.out)
    assert re.search(r"\| RecBLR +\| 0\.\d{4} \|  ", more.out)  # it stays on the page
    assert verdict(more.out, "LRURec") == "not measured: not run"


def test_a_run_by_other_settings_is_made_again(reproduce: Reproduce, made: list[str]) -> None:
    reproduce(*SMALL)
    (path,) = Path("results/simulated").glob("*.json")
    record = json.loads(path.read_text())
    record["settings"]["train"]["lr"] = 0.123
    path.write_text(json.dumps(record))
    assert verdict(reproduce(*SMALL, "--report-only").out, "all") == "not measured: not run"
    assert reproduce(*SMALL).code == 0
    assert made == ["recblr", "recblr"]
    assert json.loads(path.read_text())["settings"]["train"]["lr"] != 0.123


def test_a_memory_is_fitted_to_the_network_that_is_there(reproduce: Reproduce) -> None:
    records = [Path(f"results/simulated/{name}.json") for name in (PLAIN, BOTH)]
    manifest = Path(f"results/.models/simulated/{PLAIN}/manifest.json")
    assert reproduce(*WITH_MEMORY).code == 0  # the plain run, then the memory
    plain, both = (path.read_text() for path in records)
    trained = manifest.read_text()
    assert json.loads(both)["validation"] == json.loads(plain)["validation"]
    assert json.loads(both)["settings"]["memory"]["enabled"]
    assert not json.loads(plain)["settings"]["memory"]["enabled"]
    assert not (manifest.parent.parent / BOTH).exists()

    def again() -> dict[str, Any]:
        records[1].unlink()
        assert reproduce(*WITH_MEMORY).code == 0
        assert records[0].read_text() == plain  # once made, not written anew
        record: dict[str, Any] = json.loads(records[1].read_text())
        return record

    record = again()
    assert manifest.read_text() == trained  # not trained again
    assert record["ranks"] == json.loads(both)["ranks"]
    assert record["memory"] == json.loads(both)["memory"]

    shutil.rmtree(manifest.parent)  # as in a fresh clone
    assert again()["ranks"] == json.loads(both)["ranks"]
    assert manifest.exists()


@pytest.mark.parametrize("what", ["settings", "data", "interrupted"])
def test_a_network_that_is_not_todays_is_trained_again(reproduce: Reproduce, what: str) -> None:
    reproduce(*WITH_MEMORY)
    model = Path(f"results/.models/simulated/{PLAIN}")
    kept = load(model)
    if what == "settings":
        kept.training = replace(kept.training, lr=0.1)
    elif what == "data":
        kept.data = replace(kept.data, items=kept.data.items[::-1])
    else:
        kept.trained = replace(kept.trained, ended="interrupted")
    kept.save(model, overwrite=True)
    Path(f"results/simulated/{BOTH}.json").unlink()
    reproduce(*WITH_MEMORY)
    now = load(model)
    assert now.training.lr != 0.1
    assert now.data.fingerprint == open_dataset("simulated").fingerprint
    assert now.trained.ended == "epochs"


def stop_after(patch: pytest.MonkeyPatch, epochs: int) -> None:
    """Interrupt training in the validation after so many epochs."""
    from recblr.training.trainer import validate

    def stop(*arguments: Any) -> Any:
        nonlocal epochs
        epochs -= 1
        if epochs < 0:
            raise KeyboardInterrupt
        return validate(*arguments)

    patch.setattr("recblr.training.trainer.validate", stop)


def test_an_interrupted_run_goes_on(reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        stopped = reproduce(*SMALL)
    assert (stopped.code, stopped.err.splitlines()[-1]) == (130, "recblr: interrupted")
    assert list(Path("results").glob("simulated/*.json")) == []
    assert reproduce(*SMALL).code == 0
    (log,) = Path("results/.models").glob("simulated/recblr*/run.jsonl")
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "resume" in events
    assert events.count("epoch") == 2
    assert reproduce("table4", "--quick", "-o", "other", "--rows", "recblr").code == 0
    assert content("results")["figures"] == content("other")["figures"]


def test_an_unfinished_run_by_other_settings_is_begun_anew(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert reproduce(*SMALL).code == 130
    with monkeypatch.context() as patch:
        recipe = {"train": {"epochs": 3, "batch_size": 512, "max_length": 32}}
        patch.setitem(MADE, "simulated", {**MADE["simulated"], "recipe": recipe})
        result = reproduce(*SMALL)
    assert (result.code, result.err) == (0, "1 of 1: simulated RecBLR seed 0\n")
    assert verdict(result.out, "RecBLR") == ""


def test_an_interrupted_study_has_its_page(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch, KeyboardInterrupt(), model="recblr")
    stopped = reproduce("table4", "--quick", "-o", "results")
    assert (stopped.code, stopped.err.splitlines()[-1]) == (130, "recblr: interrupted")
    page = Path("results/table4.md").read_text()
    assert [verdict(page, row) for row in ("SASRec", "RecBLR")] == ["", "not measured: not run"]


def test_folders(reproduce: Reproduce, made: list[str], tmp_path: Path) -> None:
    assert reproduce("table2", "--quick").code == 0
    assert list(tmp_path.iterdir()) == []  # a smoke run leaves nothing
    result = reproduce("table3", "-o", "results", "--report-only")
    assert (result.code, result.err, made) == (0, "", [])
    assert result.out.count("published figures: 24 not measured") == 5
    names = ["README.md", "table3.json", "table3.md"]
    assert sorted(path.name for path in Path("results").iterdir()) == names
    assert reproduce("table2", "--report-only").code == 0
    assert Path("paper/results/table2.md").exists()  # the index lies beside the default folder
    assert "[Table 2: the data sets](results/table2.md)" in Path("paper/README.md").read_text()


# ---- what goes wrong -----------------------------------------------------------------------------


def test_a_data_set_that_is_not_available(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch, made: list[str]
) -> None:
    asked = []

    def nowhere(name: str) -> None:
        asked.append(name)
        raise InputError(f"{name} needs a login: get it somewhere\nand more")

    monkeypatch.setattr(studies, "open_dataset", nowhere)
    result = reproduce("table4", "-o", "results", "--dataset", "xlong")
    assert (result.code, asked, made) == (0, ["xlong"], [])  # asked for once, not for every run
    assert "data set not available: xlong needs a login: get it somewhere and more\n" in result.err
    reason = "not measured: data set not available"
    assert verdict(result.out, "all") == reason
    assert "login" not in result.out + Path("results/table4.md").read_text()
    # The reason outlives the attempt, also where an older page has the error itself.
    page = content()
    page["failed"] = dict.fromkeys(page["failed"], "xlong needs a login: get it somewhere")
    Path("results/table4.json").write_text(json.dumps(page))
    assert reason in reproduce("table4", "-o", "results", "--report-only").out
    assert {*content()["failed"].values()} == {"data set not available"}
    assert asked == ["xlong"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DivergedError("the loss is nan"), "training diverged"),
        (InputError("no such thing"), "could not start"), (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
    ],
)  # fmt: skip
def test_a_run_that_fails_does_not_end_the_study(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    fail(monkeypatch, error, model="sasrec")
    result = reproduce("table4", "--quick", "-o", "results")
    assert result.code == 0
    assert f"simulated SASRec seed 0: {reason}: {error}" in result.err
    assert verdict(result.out, "SASRec") == f"not measured: {reason}"
    assert verdict(result.out, "RecBLR") == ""


def test_a_seed_that_diverges_is_named(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "without simulated RecBLR seed 1: training diverged"
    with monkeypatch.context() as patch:
        fail(patch, DivergedError("the loss is nan"), seed=1)
        assert reason in reproduce(*SMALL, "--seeds", "0,1,2").out
        assert reason in reproduce(*SMALL, "--seeds", "0,1,2", "--report-only").out
    assert reason not in reproduce(*SMALL, "--seeds", "0,1,2").out


def test_a_run_that_another_process_is_making_is_left_to_it(
    reproduce: Reproduce, tmp_path: Path
) -> None:
    work = tmp_path / "results/.models/simulated/recblr,seed=0.training"
    work.mkdir(parents=True)
    with exclusive_lock(work):
        result = reproduce(*SMALL)
    assert (result.code, "could not start: " in result.err) == (0, True)
    assert reproduce(*SMALL).err == "1 of 1: simulated RecBLR seed 0\n"


def test_another_file_is_not_replaced(reproduce: Reproduce, tmp_path: Path) -> None:
    Path("README.md").write_text("mine")
    result = reproduce("table2", "--report-only", "-o", ".")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "README.md is not an index of studies" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert Path("README.md").read_text() == "mine"
    result = reproduce("table2", "--report-only", "-o", "README.md")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "this folder cannot be written" in result.err

    assert reproduce("table2", "--report-only", "-o", "results").code == 0
    before = content(study="table2")
    result = reproduce("table2", "--quick", "-o", "results")
    assert result.code == 2
    assert "is of 'recblr reproduce table2', not of 'recblr reproduce table2 --quick'" in result.err
    assert content(study="table2") == before


def test_a_damaged_record_is_named(reproduce: Reproduce) -> None:
    reproduce(*SMALL)
    (path,) = Path("results/simulated").glob("*.json")
    for text, message in ((path.read_text()[:100], "cannot be read"), ("[]", "no JSON object")):
        path.write_text(text)
        result = reproduce(*SMALL)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert re.search(rf"recblr: {path}: .*{message}", result.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel1"], "unknown study 'tabel1'; did you mean table1?"),
        (["table4", "--dataset", "ml-2m"], "no data set 'ml-2m'; did you mean ml-1m?"),
        (["table4", "--rows", "sasrek"], "no row 'sasrek'; did you mean sasrec?"),
        (["table4", "--seeds", "0,one"], "--seeds 0,one: "),
        (["table4", "--seeds", "-1"], "train.seed = -1: must be at least 0"),
        (["table4", "--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_mistakes_are_one_line(reproduce: Reproduce, arguments: list[str], message: str) -> None:
    result = reproduce(*arguments, "-o", "results")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("recblr: ")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not Path("results").exists()
