"""The exported graphs against the models in float64, and the exported folder."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from cli.fixtures import Run, answer, names
from conftest import TINY_TRAINING, Tiny
from recblr.data.batches import pack_latest
from recblr.errors import InputError
from recblr.export import _STEPS, export
from recblr.files import sha256
from recblr.memory import MemoryConfig
from recblr.models import MODELS, create_model
from recblr.models.gru4rec import GRU4RecConfig
from recblr.models.lrurec import LRURecConfig
from recblr.models.model import RecurrentModel
from recblr.models.recblr import RecBLRConfig
from recblr.recommender import Recommender, load

ROOT = Path(__file__).parent.parent
EXAMPLE, DOCS = ROOT / "examples" / "serve_onnx.py", ROOT / "docs" / "export.md"
RECURRENT = {name for name, (model, _) in MODELS.items() if issubclass(model, RecurrentModel)}
CASES = {
    "recblr": RecBLRConfig(dim=16),
    "recblr, smallest": RecBLRConfig(dim=1, layers=1, expansion=1, conv_width=1),
    "recblr, odd": RecBLRConfig(dim=5, layers=3, expansion=3, conv_width=2),
    "recblr, BD-LRU only": RecBLRConfig(dim=5, gated=False),
    "recblr, no convolution": RecBLRConfig(dim=5, convolution=False),
    "recblr, no PFFN": RecBLRConfig(dim=5, feed_forward=False),
    "gru4rec": GRU4RecConfig(dim=8, hidden=12, layers=1),
    "gru4rec, two layers": GRU4RecConfig(dim=5, hidden=3, layers=2),
    "lrurec": LRURecConfig(dim=8),
    "lrurec, smallest": LRURecConfig(dim=1, layers=1),
}
LENGTHS = [1, 2, 7, 31]

every_case = pytest.mark.parametrize("case", CASES)


def save(tiny: Tiny, name: str, config: Any, folder: Path) -> Recommender:
    """Save an artifact of the tiny log with weights large enough that every part affects the result."""
    torch.manual_seed(0)
    recommender = Recommender(name, config, TINY_TRAINING, device="cpu")
    recommender.data, recommender.trained = tiny.recommender.data, tiny.recommender.trained
    recommender.stages = tiny.recommender.stages
    data = recommender.data
    network = create_model(
        name,
        config,
        items=len(data.item_ids),
        users=data.users,
        max_length=TINY_TRAINING.max_length,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    recommender.network = network.eval()
    recommender.memory_choice, memory = None, tiny.recommender.memory
    assert memory is not None
    recommender.memory = replace(memory, weight=1.5, scale=10.0, repeat=-0.7)
    recommender.save(folder)
    return recommender


class Exported:
    """An exported folder, run by onnxruntime."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.sessions = {
            name: onnxruntime.InferenceSession(folder / f"{name}.onnx", options)
            for name in ("step", "score")
        }

    def initial_state(self, n: int) -> np.ndarray:
        return np.zeros((n, *self.manifest["step"]["inputs"]["state"]["shape"][1:]), np.float32)

    def step(self, items: Any, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = {"items": np.asarray(items, np.int64), "state": state}
        hidden, after = self.sessions["step"].run(None, inputs)
        return hidden, after

    def score(self, hidden: np.ndarray) -> np.ndarray:
        scores: np.ndarray = self.sessions["score"].run(None, {"hidden": hidden})[0]
        return scores


def assert_near(ours: np.ndarray, exact: Tensor) -> None:
    assert ours.dtype == np.float32
    assert exact.dtype == torch.float64
    torch.testing.assert_close(torch.from_numpy(ours).double(), exact, rtol=0, atol=2e-5)


@every_case
@torch.no_grad()
def test_steps_equal_a_pass_of_the_model_in_float64(tiny: Tiny, case: str, tmp_path: Path) -> None:
    name = case.partition(",")[0]
    network = save(tiny, name, CASES[case], tmp_path / "model").network.double()
    export(tmp_path / "model", tmp_path / "out")
    ours = Exported(tmp_path / "out")
    generator = torch.Generator().manual_seed(0)
    for length in LENGTHS:
        items = torch.randint(len(network.item_embeddings), (length,), generator=generator)
        zero_state = network.initial_state(1).double()
        hidden, last = network(items, torch.tensor([0, length]), zero_state)
        state = ours.initial_state(1)
        for row, item in enumerate(items.tolist()):
            vector, state = ours.step([item], state)
            assert_near(vector, hidden[row : row + 1])
            assert_near(ours.score(vector), hidden[row : row + 1] @ network.item_embeddings.t())
        assert_near(state, last)


@every_case
def test_a_batch_of_users_equals_each_user_alone(tiny: Tiny, case: str, tmp_path: Path) -> None:
    save(tiny, case.partition(",")[0], CASES[case], tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out")
    ours = Exported(tmp_path / "out")
    rng = np.random.default_rng(0)
    for count in (0, 1, 5):
        items = rng.integers(len(tiny.recommender.data.item_ids), size=count)
        before = rng.standard_normal(ours.initial_state(count).shape).astype(np.float32)
        hidden, after = ours.step(items, before)
        scores = ours.score(hidden)
        assert after.shape == before.shape
        assert len(hidden) == len(scores) == count
        for user in range(count):
            alone, alone_after = ours.step(items[user : user + 1], before[user : user + 1])
            np.testing.assert_allclose(hidden[user : user + 1], alone, rtol=0, atol=1e-5)
            np.testing.assert_allclose(after[user : user + 1], alone_after, rtol=0, atol=1e-5)
            np.testing.assert_allclose(scores[user : user + 1], ours.score(alone), atol=1e-5)


@torch.no_grad()
def test_the_step_is_exact_where_alpha_is_near_1(tiny: Tiny, tmp_path: Path) -> None:
    """α rounds to 1 and 1 - α² to 0, but the input must still reach the state."""
    config = RecBLRConfig(dim=4, layers=1, gated=False)
    recommender = save(tiny, "recblr", config, tmp_path / "model")
    recommender.network.layers[0].recurrent.lru.recurrence_gate.bias.fill_(-17.0)  # type: ignore[index, union-attr, operator]
    recommender.save(tmp_path / "model", overwrite=True)
    export(tmp_path / "model", tmp_path / "out")
    ours, network = Exported(tmp_path / "out"), recommender.network.double()
    items = torch.arange(9)
    _, exact = network.step(items, network.initial_state(9).double())
    _, state = ours.step(items, ours.initial_state(9))
    assert 1e-6 < exact.abs().median() < 1e-3
    np.testing.assert_allclose(state, exact, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_the_manifest(tiny: Tiny, name: str, tmp_path: Path) -> None:
    recommender = save(tiny, name, MODELS[name][1](), tmp_path / "model")
    manifest = export(tmp_path / "model", tmp_path / "out")
    out = tmp_path / "out"
    assert names(tmp_path) == {"model", "out"}
    files = {"step.onnx", "score.onnx", "memory.safetensors", "vocabulary.parquet"}
    assert names(out) == {*files, "manifest.json"}
    ours = Exported(out)
    assert ours.manifest == manifest
    assert manifest["files"] == {file: sha256(out / file) for file in files}
    for file in ("vocabulary.parquet", "memory.safetensors"):
        assert (out / file).read_bytes() == (tmp_path / "model" / file).read_bytes()
    about = {"file": "memory.safetensors", "weight": 1.5, "scale": 10.0, "repeat": -0.7,
             "reach": 8, "decay": 0.7}  # fmt: skip
    assert about.items() < manifest["memory"].items()
    assert manifest["memory"].keys() - about.keys() == {"formula"}
    digest = json.loads((tmp_path / "model" / "manifest.json").read_text())["digest"]
    assert manifest["model"] == {"name": name, "digest": digest, "max_length": 16}
    state = recommender.network.initial_state(1)
    assert manifest["step"]["inputs"]["state"]["shape"] == ["B", *state.shape[1:]]
    for graph, session in ours.sessions.items():
        for side, ends in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            kinds = {"tensor(int64)": "int64", "tensor(float)": "float32"}
            assert manifest[graph][side] == {
                end.name: {"type": kinds[end.type], "shape": end.shape} for end in ends
            }
    assert 0 < manifest["difference"] < 1e-4


def test_a_model_without_a_memory_exports_none(tiny: Tiny, tmp_path: Path) -> None:
    recommender = save(tiny, "recblr", CASES["recblr"], tmp_path / "model")
    recommender.memory_config, recommender.memory = MemoryConfig(enabled=False), None
    recommender.save(tmp_path / "model", overwrite=True)
    manifest = export(tmp_path / "model", tmp_path / "out")
    assert manifest["memory"] is None
    assert "memory.safetensors" not in names(tmp_path / "out")
    done = serve(tmp_path / "out", [str(recommender.data.item_ids[2])])
    assert (done.returncode, done.stderr) == (0, "")


@torch.no_grad()
def test_the_function_in_the_docs_adds_the_memory(tiny: Tiny, tmp_path: Path) -> None:
    recommender = save(tiny, "recblr", CASES["recblr"], tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out")
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    (lines,) = re.findall(r"def add_memory.*?\n\n\n", "".join(blocks), re.DOTALL)
    namespace: dict[str, Any] = {"np": np}
    exec(lines, namespace)
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())["memory"]
    matrix = load_file(tmp_path / "out" / "memory.safetensors")
    rng = np.random.default_rng(0)
    change = 0.0
    for length in (1, 3, 8, 9, 40):
        history = rng.integers(len(recommender.data.item_ids), size=length)
        batch = pack_latest(history, np.array([0]), np.array([length]), 16, "none")
        network, whole = recommender.network.score(batch)[0].numpy(), recommender.score(batch)[0]
        scores = namespace["add_memory"](network, history, about, matrix)
        np.testing.assert_allclose(scores, whole, rtol=0, atol=1e-5)
        change = max(change, np.abs(scores - network).max())
    assert change > 1


def test_models_without_a_step_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    assert set(_STEPS) == RECURRENT
    for name in MODELS.keys() - RECURRENT:
        save(tiny, name, MODELS[name][1](), tmp_path / name)
        with pytest.raises(
            InputError, match=f"{name} cannot be exported; use one of gru4rec, lrurec, rec"
        ):
            export(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", ["other values", "NaN"])
def test_a_graph_that_differs_is_not_written(
    tiny: Tiny, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change: Callable[..., Any] = {
        "other values": lambda x: x * x.op("Tanh"),
        "NaN": lambda x: x.op("Sub", x).op("Log"),
    }[wrong]
    monkeypatch.setattr("recblr.export._silu", change)
    with pytest.raises(InputError, match=r"PyTorch differ by .*; nothing was written"):
        export(tiny.artifact, tmp_path / "out")
    assert names(tmp_path) == set()


def test_a_catalogue_too_large_for_a_file_is_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recblr.export._LARGEST", 1000)
    with pytest.raises(InputError, match=r"the vectors of .* items take 0\.0 GiB; an ONNX"):
        export(tiny.artifact, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_names_the_extra_to_install(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=rf"^{package} is not .*'recblr\[export\]'$"):
                export(tiny.artifact, tmp_path / "out")
    assert names(tmp_path) == set()


# ---- on the command line -------------------------------------------------------------------------


def test_export_on_the_command_line(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    manifest = answer(run("export", tiny.artifact, "-o", "out", "--json"))
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())
    result = run("export", tiny.artifact, "-o", "out", "--overwrite")
    assert (result.code, result.err) == (0, "")
    assert result.out == f"recblr in out, within {manifest['difference']:.1e} of PyTorch\n"
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nowhere -o new", "nowhere is not a whole recblr artifact"),
        ("MODEL -o no/new", "the folder no does not exist"),
        ("MODEL -o MODEL", "is the folder of the model; choose another folder"),
        ("MODEL -o MODEL --overwrite", "is the folder of the model; choose another folder"),
        ("MODEL -o taken", "taken exists already"),
        ("MODEL -o taken --overwrite", "holds something else"),
    ],
)
def test_an_error_is_one_line_and_writes_nothing(
    run: Run, tiny: Tiny, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "taken").mkdir()
    result = run("export", *[tiny.artifact if word == "MODEL" else word for word in line.split()])
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(rf"recblr: .*{message}.*\n", result.err)
    assert names(tmp_path) == {"taken"}
    load(tiny.artifact)  # it is still complete


def test_the_help_fits_on_a_screen(run: Run) -> None:
    result = run("export", "--help")
    assert result.code == 0
    assert len(result.out.splitlines()) <= 45


# ---- the example ---------------------------------------------------------------------------------


def serve(folder: Path, history: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the example without torch and without this package."""
    code = (
        "import runpy, sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'recblr', 'polars', 'onnx'))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0])"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLE), str(folder), *history],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_example_recommends_the_items_of_recblr_recommend(
    run: Run, tiny: Tiny, tmp_path: Path
) -> None:
    items = tiny.recommender.data.item_ids.to_pylist()
    histories = [[items[2]], ["new", items[5], items[1]], [items[9], *items[:4] * 5], items[:-3]]
    assert len(histories[2]) > TINY_TRAINING.max_length
    export(tiny.artifact, tmp_path / "out")
    for history in histories:
        known = ",".join(item for item in history if item != "new")
        rows = answer(run("recommend", tiny.artifact, "--history", known, "--json"))
        done = serve(tmp_path / "out", history)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.split("\t") for line in done.stdout.splitlines()]
        assert [item for _, item in lines] == [row["item_id"] for row in rows]
        scores = [float(score) for score, _ in lines]
        assert scores == pytest.approx([row["score"] for row in rows], abs=1e-4)
    done = serve(tmp_path / "out", ["new"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the model knows none of these items; give ids as in vocabulary.parquet\n"
