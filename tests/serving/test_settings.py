"""The settings of a server: where they come from, what is refused, and that their lists agree."""

import re
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from recblr.errors import InputError
from recblr.serving.settings import ServerSettings, as_toml, read_settings

ROOT = Path(__file__).parents[2]
SECRET = "postgresql://me:secret@host/db"


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "server.toml"
    path.write_text('port = 1\nworkers = 1\nmodel = "a"\nhead_seconds = 3\naccess_log = true\n')
    return path


def test_the_strongest_source_wins(toml: Path) -> None:
    environment = {"RECBLR_SERVE_PORT": "2", "RECBLR_SERVE_MODEL": "7", "RECBLR_STORE": "old"}
    given = {"port": 3, "store": None, "access_log": None}
    settings = read_settings(given, ["max_waiting=5"], toml, environment)
    assert settings == ServerSettings(
        model="7", store="old", port=3, head_seconds=3.0, access_log=True, max_waiting=5
    )
    stronger = {**environment, "RECBLR_SERVE_STORE": "new", "RECBLR_SERVE_KEYS": ""}
    assert read_settings({}, file=toml, environment=stronger).store == "new"
    assert read_settings({}, environment={}) == ServerSettings()


MISTAKES = {
    "port = 'x'": r"server.toml: port = 'x': must be int",
    "prot = 1": r"server.toml: prot: no such setting; did you mean port\?",
    "port = 65536": r"serve.port = 65536: must be in 0 .. 65535",
    "wait_seconds = 0": r"serve.wait_seconds = 0.0: must be above 0",
    "max_waiting = 0": r"serve.max_waiting = 0: must be at least 1",
    "path_prefix = 'a'": r"begin it with a slash",
    "host = '0.0.0.0'": r"create API keys with recblr key",
    "workers = 2": r"several workers share an event log in PostgreSQL and a cache in Redis",
    f"store = '{SECRET}'": r"server.toml: has a password and can be read by others; run chmod 600",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_in_the_file_names_its_place(line: str, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(line)
    file.chmod(0o644)
    with pytest.raises(InputError, match=MISTAKES[line]) as refused:
        read_settings({}, file=file, environment={})
    assert "secret" not in str(refused.value)


def test_unknown_names_elsewhere() -> None:
    with pytest.raises(
        InputError, match="SERVE_PROT: no such setting; did you mean RECBLR_SERVE_PORT"
    ):
        read_settings({}, environment={"RECBLR_SERVE_PROT": "1"})
    with pytest.raises(InputError, match="--set prot: no such setting; did you mean port"):
        read_settings({}, ["prot=1"], environment={})
    with pytest.raises(InputError, match="RECBLR_SERVE_PORT = 'many': must be int"):
        read_settings({}, environment={"RECBLR_SERVE_PORT": "many"})


@pytest.mark.parametrize(
    "url", [SECRET, "redis://:secret@host", "postgresql://host/db?password=secret"]
)
def test_passwords_only_where_others_cannot_read_them(url: str, tmp_path: Path) -> None:
    for given, changes in (({"store": url}, []), ({}, [f"cache={url}"])):
        with pytest.raises(InputError, match="all users of this machine can see") as refused:
            read_settings(given, changes, environment={})
        assert "secret" not in str(refused.value)
    file = tmp_path / "server.toml"
    file.write_text(f"store = '{url}'")
    file.chmod(0o600)
    for settings in (
        read_settings({}, file=file, environment={}),
        read_settings({}, environment={"RECBLR_SERVE_STORE": url}),
    ):
        assert settings.store == url
        assert "secret" not in as_toml(settings)
        assert "host" in as_toml(settings)


def test_settings_as_toml_are_read_back(tmp_path: Path) -> None:
    settings = ServerSettings(model='a "b"\\', port=1, access_log=True, wait_seconds=0.5)
    file = tmp_path / "server.toml"
    file.write_text(as_toml(settings))
    assert read_settings({}, file=file, environment={}) == settings
    every_line = re.sub(r"^# (?=\w+ = )", "", as_toml(settings), flags=re.MULTILINE)
    assert tomllib.loads(every_line) == asdict(settings)


def test_the_example_has_all_settings() -> None:
    """Write it by recblr serve --show-settings > examples/server.toml."""
    assert (ROOT / "examples" / "server.toml").read_text() == as_toml(ServerSettings())
