"""The shape of the source: small files, and imports that point one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "recblr"
LONGEST = 400  # lines of a file
# A module imports from the lines above its own, and within its own package.
LAYERS = [
    {"errors"},
    {"ranks"},
    {"renamed", "progress", "device", "files", "parts", "allocator", "timing", "provenance"},
    {"config"},
    {"data", "ops"},
    {"models"},
    {"memory"},
    {"evaluation"},
    {"memory_search", "training", "presets", "retrieval"},
    {"inverted_file"},
    {"artifact_checks"},
    {"artifact", "sizing"},
    {"audience"},
    {"recommending", "updating", "similar"},
    {"vectors"},
    {"fitted"},
    {"recommender", "tuning_results"},
    {"tuning", "influence", "export", "compare", "demo", "doctor"},
    {"serving"},
    {"benchmark"},
    {"paper"},
    {"cli"},
    {"__main__"},
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """The modules and packages of ``recblr`` that a file imports, by their first name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "recblr":
            names = [f"recblr.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("recblr."))


@pytest.mark.parametrize("file", files("src", "benchmarks", "tests"), ids=lambda file: file.name)
def test_no_file_is_long(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("file", files("src/recblr"), ids=lambda file: file.name)
def test_imports_point_one_way(file: Path) -> None:
    module = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if module == "__init__":  # the public names, from wherever they are
        return
    for name in imported(file):
        assert name == module or LAYER_OF[name] < LAYER_OF[module], f"{module} imports {name}"
