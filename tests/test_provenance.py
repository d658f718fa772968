"""The recorded origin of a figure."""

import subprocess
from pathlib import Path

import pytest

from recblr import provenance as module

HERE = Path(module.__file__).resolve().parents[2]


@pytest.mark.skipif(not (HERE / ".git").exists(), reason="not in the project's repository")
def test_the_commit_of_the_package_is_recorded() -> None:
    head = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert str(module.provenance("recblr test")["commit"]).removesuffix("-dirty") == head


def test_the_commit_of_a_surrounding_repository_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), (*identity, "commit", "-q", "--allow-empty", "-m", "theirs")):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    installed = tmp_path / ".venv" / "lib" / "python3" / "site-packages" / "recblr" / "bench"
    installed.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(installed / "provenance.py"))
    assert module.provenance("recblr test")["commit"] is None


@pytest.mark.skipif(not (HERE / ".git").exists(), reason="not in the project's repository")
def test_without_git_no_commit_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.provenance("recblr test")["commit"] is None
