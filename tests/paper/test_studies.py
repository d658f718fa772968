"""`recblr reproduce` as a person meets it: every study in small, what is kept, what goes wrong."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recblr import load
from recblr.cli import main as cli
from recblr.errors import DivergedError, InputError
from recblr.files import exclusive_lock
from recblr.paper import accuracy, studies
from recblr.paper.logs import MADE, SIMULATED, open_dataset
from recblr.paper.runs import Run
from recblr.paper.studies import STUDIES

METRICS = {f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (10, 20)}


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Reproduce = Callable[..., Result]


@pytest.fixture
def reproduce(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Reproduce:
    """Run the command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def main(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["recblr", "reproduce", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, captured.out, captured.err)

    return main


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models of the runs that are made from now on."""
    models: list[str] = []

    def make(run: Run, *arguments: Any) -> dict[str, Any]:
        models.append(run.model)
        return real(run, *arguments)

    real = accuracy.make
    monkeypatch.setattr(accuracy, "make", make)
    return models


# ---- every study ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of results: what one study has run, another does not run again."""
    return tmp_path_factory.mktemp("results")


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_in_small(reproduce: Reproduce, shared: Path, name: str) -> None:
    found = reproduce(name, "--quick", "-o", shared, "--device", "cpu")
    assert found.code == 0
    title = STUDIES[name].title
    assert found.out.startswith(f"{title}\n\nSmoke run: no published value.\n\n")
    assert "not measured" not in found.out
    content = json.loads((shared / f"{name}.json").read_text())
    assert content["verdict"] == "Smoke run: no published value."
    assert (content["not_measured"], content["title"]) == ([], title)
    assert (shared / f"{name}.md").read_text().startswith(f"# {title}\n")
    assert (shared / f"{name}.png").exists() == (name != "table2")
    index = (shared / "README.md").read_text()
    assert f"[{title}]({name}.md) |" in index
    assert all(f"| `recblr reproduce {other}" in index for other in STUDIES)

    again = reproduce(name, "--quick", "-o", shared, "--device", "cpu", "--json")
    assert (again.code, again.err) == (0, "")
    assert json.loads(again.out) == content


def test_a_table_of_models(reproduce: Reproduce, shared: Path) -> None:
    found = reproduce("table1", "--quick", "-o", shared, "--json")
    (rows,) = (it["rows"] for it in json.loads(found.out)["datasets"].values())
    assert list(rows) == [row.name for row in STUDIES["table1"].rows]
    for row in rows.values():
        assert row["unmasked"].keys() == row["masked"].keys() == METRICS
        (run,) = row["runs"]
        assert (run["seed"], run["epochs"]) == (0, 2)
    examples = {name: row["runs"][0]["examples"] for name, row in rows.items()}
    assert examples["RecBLR"] == examples["SASRec"] == "all-positions"
    assert (examples["BERT4Rec"], examples["FMLP-Rec"]) == ("cloze", "prefixes")


def test_rows_with_the_memory_are_of_the_plain_rows_training(
    reproduce: Reproduce, shared: Path
) -> None:
    found = reproduce("table1", "--quick", "-o", shared, "--json")
    ((_, of_data),) = json.loads(found.out)["datasets"].items()
    rows = of_data["rows"]
    assert set(of_data["floors"]) == {"popularity", "markov chain", "transitions"}
    assert (shared / SIMULATED / "floors.json").exists()
    assert of_data["against_memory"].keys() == {"SASRec + memory", "LRURec + memory"}
    for name in ("SASRec", "LRURec", "RecBLR"):
        (plain,), (both,) = rows[name]["runs"], rows[f"{name} + memory"]["runs"]
        same = ("seed", "epochs", "best_epoch", "parameters", "examples")
        assert [plain[it] for it in same] == [both[it] for it in same]
        assert both["seconds"] >= plain["seconds"]
        assert both["memory"].keys() == {"weight", "scale", "repeat", "unmasked", "masked"}
        assert "memory" not in plain
    page = (shared / "table1.md").read_text()
    assert "weight, scale, repeat of the memory" in page


# ---- what is kept --------------------------------------------------------------------------------

SMALL = ("table4", "--quick", "-o", "results", "--rows", "recblr")


def test_without_a_folder_a_smoke_run_leaves_nothing(reproduce: Reproduce, tmp_path: Path) -> None:
    assert reproduce("table2", "--quick").code == 0
    assert list(tmp_path.iterdir()) == []


def test_finished_runs_are_not_made_again(reproduce: Reproduce, made: list[str]) -> None:
    first = reproduce(*SMALL)
    assert (first.code, first.err) == (0, "1 of 1: simulated RecBLR seed 0\n")
    second = reproduce(*SMALL)
    assert (second.out, second.err) == (first.out, "")
    more = reproduce("table4", "--quick", "-o", "results", "--rows", "SASRec", "--seeds", "0,1")
    assert made == ["recblr", "sasrec", "sasrec"]
    assert re.search(r"\| SASRec +\| 0\.\d{4} ± 0\.\d{4} \|", more.out)
    assert re.search(r"\| RecBLR +\| 0\.\d{4}\*? +\|", more.out)  # it stays on the page
    assert "- LRURec: not measured: no run; `recblr reproduce table4 --quick`" in more.out


def test_a_run_by_other_settings_is_made_again(reproduce: Reproduce, made: list[str]) -> None:
    reproduce(*SMALL)
    (path,) = Path("results/simulated").glob("*.json")
    record = json.loads(path.read_text())
    record["settings"]["train"]["lr"] = 0.123
    path.write_text(json.dumps(record))
    assert "## simulated\n\nNot measured: no run" in reproduce(*SMALL, "--report-only").out
    assert reproduce(*SMALL).code == 0
    assert made == ["recblr", "recblr"]
    assert json.loads(path.read_text())["settings"]["train"]["lr"] != 0.123


PLAIN, BOTH = "recblr,seed=0", "recblr,memory.enabled=true,seed=0"
WITH_MEMORY = ("time", "--quick", "-o", "results", "--rows", "RecBLR + memory")


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
        found: dict[str, Any] = json.loads(records[1].read_text())
        return found

    found = again()
    assert manifest.read_text() == trained  # not trained again
    assert found["ranks"] == json.loads(both)["ranks"]
    assert found["memory"] == json.loads(both)["memory"]

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
    assert now.data.fingerprint == open_dataset(SIMULATED).fingerprint
    assert now.trained.ended == "epochs"


def test_an_interrupted_run_goes_on(reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch) -> None:
    from recblr.training.trainer import validate

    calls = 0

    def once(*arguments: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return validate(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("recblr.training.trainer.validate", once)
        stopped = reproduce(*SMALL)
    assert (stopped.code, stopped.err.splitlines()[-1]) == (130, "recblr: interrupted")
    assert list(Path("results").glob("simulated/*.json")) == []
    assert reproduce(*SMALL).code == 0
    (log,) = Path("results/.models").glob("simulated/recblr*/run.jsonl")
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert "resume" in events
    assert events.count("epoch") == 2

    whole = reproduce("table4", "--quick", "-o", "other", "--rows", "recblr")
    assert _figures("results") == _figures("other")
    assert whole.code == 0


def test_an_interrupted_study_has_its_page(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accuracy.make

    def stops(run: Run, *arguments: Any) -> dict[str, Any]:
        if run.model == "recblr":
            raise KeyboardInterrupt
        return real(run, *arguments)

    monkeypatch.setattr(accuracy, "make", stops)
    stopped = reproduce("table4", "--quick", "-o", "results")
    assert (stopped.code, stopped.err.splitlines()[-1]) == (130, "recblr: interrupted")
    page = Path("results/table4.md").read_text()
    assert re.search(r"\| SASRec +\| 0\.\d{4}", page)
    assert "- RecBLR: not measured: no run; `recblr reproduce table4 --quick`" in page


def _figures(folder: str) -> Any:
    rows = json.loads(Path(folder, "table4.json").read_text())["datasets"]["simulated"]["rows"]
    return rows["RecBLR"]["unmasked"]


def test_report_only_makes_nothing(reproduce: Reproduce, made: list[str]) -> None:
    found = reproduce("table3", "-o", "results", "--report-only")
    assert (found.code, found.err, made) == (0, "", [])
    assert "Of 120 published figures: 120 not measured." in found.out
    assert found.out.count("Not measured: no run; `recblr reproduce table3`") == 5
    assert sorted(path.name for path in Path("results").iterdir()) == [
        "README.md", "table3.json", "table3.md",
    ]  # fmt: skip


def test_the_index_stands_beside_the_default_folder(reproduce: Reproduce) -> None:
    assert reproduce("table2", "--report-only").code == 0
    assert Path("paper/results/table2.md").exists()
    assert "[Table 2: the data sets](results/table2.md)" in Path("paper/README.md").read_text()


# ---- what goes wrong -----------------------------------------------------------------------------


def test_data_that_cannot_be_had(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch, made: list[str]
) -> None:
    asked = []

    def nowhere(name: str) -> None:
        asked.append(name)
        raise InputError(f"{name} needs a login: get it somewhere\nand more")

    monkeypatch.setattr(accuracy.Accuracy, "open", staticmethod(nowhere))
    arguments = ("table4", "-o", "results", "--dataset", "xlong")
    found = reproduce(*arguments)
    assert (found.code, asked, made) == (0, ["xlong"], [])  # asked for once, not for every run
    reason = "Not measured: xlong needs a login: get it somewhere"
    assert f"## xlong\n\n{reason}\n" in found.out
    # The reason outlives the attempt.
    assert reason in reproduce("table4", "-o", "results", "--report-only").out
    assert asked == ["xlong"]


def test_a_run_that_diverges_does_not_end_the_study(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accuracy.make

    def diverges(run: Run, *arguments: Any) -> dict[str, Any]:
        if run.model == "sasrec":
            raise DivergedError("the loss is nan")
        return real(run, *arguments)

    monkeypatch.setattr(accuracy, "make", diverges)
    found = reproduce("table4", "--quick", "-o", "results")
    assert found.code == 0
    assert "- SASRec: not measured: the loss is nan" in found.out
    assert re.search(r"\| RecBLR +\| 0\.\d{4}", found.out)


def test_a_seed_that_diverges_is_named_beside_the_others(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accuracy.make

    def diverges(run: Run, *arguments: Any) -> dict[str, Any]:
        if run.seed == 1:
            raise DivergedError("the loss is nan")
        return real(run, *arguments)

    monkeypatch.setattr(accuracy, "make", diverges)
    found = reproduce(*SMALL, "--seeds", "0,1,2")
    line = "- RecBLR: without simulated RecBLR seed 1: the loss is nan"
    assert line in found.out
    assert line in reproduce(*SMALL, "--seeds", "0,1,2", "--report-only").out
    monkeypatch.setattr(accuracy, "make", real)
    assert line not in reproduce(*SMALL, "--seeds", "0,1,2").out


def test_out_of_memory_does_not_end_the_study(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*arguments: Any) -> dict[str, Any]:
        torch.empty(1 << 60)
        raise AssertionError("there was enough")

    monkeypatch.setattr(accuracy, "make", make)
    found = reproduce(*SMALL)
    assert (found.code, "Not measured: out of memory" in found.out) == (0, True)


def test_a_run_that_another_process_is_at_is_left_to_it(
    reproduce: Reproduce, tmp_path: Path
) -> None:
    work = tmp_path / "results/.models/simulated/recblr,seed=0.training"
    work.mkdir(parents=True)
    with exclusive_lock(work):
        found = reproduce(*SMALL)
    assert found.code == 0
    assert "another process is using" in found.err
    assert reproduce(*SMALL).err == "1 of 1: simulated RecBLR seed 0\n"


def test_an_unfinished_run_by_other_settings_is_begun_anew(
    reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recblr.training.trainer import validate

    def stop(*arguments: Any) -> dict[str, float]:
        patch.setattr("recblr.training.trainer.validate", interrupt)
        return validate(*arguments)

    def interrupt(*arguments: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recblr.training.trainer.validate", stop)
        assert reproduce(*SMALL).code == 130
    with monkeypatch.context() as patch:
        recipe = {"train": {"epochs": 3, "batch_size": 512, "max_length": 32}}
        patch.setitem(MADE, SIMULATED, replace(MADE[SIMULATED], recipe=recipe))
        found = reproduce(*SMALL)
    assert (found.code, found.err) == (0, "1 of 1: simulated RecBLR seed 0\n")
    assert "RecBLR: not measured" not in found.out


def test_what_is_not_ours_is_not_written_over(reproduce: Reproduce, tmp_path: Path) -> None:
    Path("README.md").write_text("mine")
    found = reproduce("table2", "--report-only", "-o", ".")
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "README.md is not ours to write over" in found.err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert Path("README.md").read_text() == "mine"

    found = reproduce("table2", "--report-only", "-o", "README.md")
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert "no folder can be written there" in found.err


def test_a_smoke_run_is_not_written_over_a_page(reproduce: Reproduce) -> None:
    assert reproduce("table2", "--report-only", "-o", "results").code == 0
    before = Path("results/table2.json").read_text()
    found = reproduce("table2", "--quick", "-o", "results")
    assert found.code == 2
    assert "is of 'recblr reproduce table2', not of 'recblr reproduce table2 --quick'" in found.err
    assert Path("results/table2.json").read_text() == before


def test_a_damaged_record_is_named(reproduce: Reproduce) -> None:
    reproduce(*SMALL)
    (path,) = Path("results/simulated").glob("*.json")
    path.write_text(path.read_text()[:100])
    found = reproduce(*SMALL)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert f"recblr: {path}: cannot be read" in found.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel1"], "unknown study 'tabel1'; did you mean table1?"),
        (["table4", "--dataset", "ml-2m"], "no data set 'ml-2m'; did you mean ml-1m?"),
        (["table4", "--rows", "sasrek"], "no row 'sasrek'; did you mean sasrec?"),
        (["table4", "--seeds", "0,one"], "--seeds 0,one: write whole numbers, such as 0,1,2"),
        (["table4", "--seeds", "-1"], "train.seed = -1: must be at least 0"),
        (["table4", "--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_mistakes_are_one_line(reproduce: Reproduce, arguments: list[str], message: str) -> None:
    found = reproduce(*arguments, "-o", "results")
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("recblr: ")
    assert message in found.err
    assert found.err.count("\n") == 1
    assert not Path("results").exists()


def test_help_fits_a_screen(reproduce: Reproduce, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = reproduce("--help").out.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100


def test_names_of_studies_are_those_of_the_paper() -> None:
    assert list(studies.STUDIES)[:8] == [
        "table1", "table2", "table3", "table4", "table5", "figure4", "figure5", "figure6",
    ]  # fmt: skip
