"""What a measured figure stands beside."""

import subprocess
from pathlib import Path

import pytest

from recblr import provenance as module

HERE = Path(module.__file__).resolve().parents[2]


@pytest.mark.skipif(not (HERE / ".git").exists(), reason="not in the project's repository")
def test_the_commit_is_that_of_the_package() -> None:
    head = subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert str(module.provenance("recblr test")["commit"]).removesuffix("-dirty") == head


def test_a_commit_of_somebody_elses_repository_is_not_named(
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
def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module.provenance("recblr test")["commit"] is None
