"""The documentation stays true: every Python block runs, each page as one script; so do docstrings."""

import doctest
import importlib
import json
import pkgutil
import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest

import recblr
from recblr.models import MODELS
from recblr.training.config import TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFERENCE = [
    name
    for page in sorted((ROOT / "docs" / "api").glob("*.md"))
    for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
]
MODULES = [
    "recblr",
    *(
        module.name
        for module in pkgutil.walk_packages(recblr.__path__, "recblr.")
        if not module.name.endswith("._kernels")  # plain C, not a Python module
    ),
]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(blocks), page.name, "exec"), {})


def test_the_tutorial_runs_and_is_kept_without_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads((ROOT / "examples" / "tutorial.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    monkeypatch.chdir(tmp_path)
    exec("\n".join("".join(cell["source"]) for cell in code), {})


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_names_what_exists(name: str) -> None:
    assert pkgutil.resolve_name(name).__doc__


def test_the_page_of_settings_has_them_all() -> None:
    training, models = (ROOT / "docs" / "settings.md").read_text().split("## `[model]`")
    found = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", training, re.MULTILINE)
    assert found == [(f.name, json.dumps(f.default)) for f in fields(TrainConfig)]
    for name, (_, config) in MODELS.items():
        (row,) = re.findall(rf"^\| `{name}` \| (.+) \|$", models, re.MULTILINE)
        stated = re.findall(r"`(\w+) = (\S+)`", row)
        assert stated == [(f.name, json.dumps(f.default)) for f in fields(config)]


def test_the_figures_are_those_of_the_results() -> None:
    tables = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    for page in tables["PAGES"]:
        text = page.read_text()
        assert text == tables["write"](text), "run python benchmarks/tables.py"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert failures == 0
