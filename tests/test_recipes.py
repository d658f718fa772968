"""The recipes of docs/recipes.md, where their packages are installed."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"


def run(heading: str) -> dict[str, Any]:
    """The names that the first block of the page and the block of a recipe define."""
    text = PAGE.read_text()
    (recipe,) = re.findall(rf"^## {heading}\n.*?^```py\n(.*?)^```", text, re.M | re.S)
    start = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)[0]
    start = start[: start.index("def show")]
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of these packages
        exec(compile(start + recipe, heading, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_tensorboard() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rec = run("TensorBoard")["rec"]
    events = EventAccumulator("runs/recblr").Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    ndcg = [event.value for event in events.Scalars("masked/NDCG@10")]
    assert max(ndcg) == pytest.approx(rec.trained.validation["NDCG@10"])


def test_mlflow() -> None:
    mlflow = pytest.importorskip("mlflow")
    rec = run("MLflow")["rec"]
    (found,) = mlflow.search_runs(output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "NDCG_at_10")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert max(metric.value for metric in history) == rec.trained.validation["NDCG@10"]
    assert found.data.params["dim"] == str(rec.config.dim)


def test_weights_and_biases(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    rec = run("Weights & Biases")["rec"]
    (kept,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    content = kept.read_bytes()
    for text in ("NDCG@10", repr(rec.memory)):
        assert text.encode() in content
