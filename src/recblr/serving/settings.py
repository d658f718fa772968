"""The settings of ``recblr serve``: the one list of them, and where their values come from."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import parse_qs, urlsplit

from recblr.config import (
    changed_settings,
    check,
    check_value,
    did_you_mean,
    expect_sizes,
    read_toml,
    toml_value,
)
from recblr.errors import InputError

POSTGRESQL = ("postgresql://", "postgres://")
MAX_WAITING = 256  # unanswered requests of a tenant in the engine
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PREFIX = "RECBLR_SERVE_"
OTHER_VARIABLES = {"RECBLR_STORE": "store", "RECBLR_STATE_CACHE": "cache"}  # of all commands
SECRETS = ("store", "cache")  # settings whose URL may have a password


def _setting(default: Any, meaning: str, metavar: str | None = None) -> Any:
    """A setting. With ``metavar``, a name of its value, it has an option of the command line."""
    return field(default=default, metadata={"meaning": meaning, "metavar": metavar})


@dataclass(frozen=True, repr=False)
class ServerSettings:
    """How a server runs. Paths are relative to the current folder; an empty text means none.

    Raises:
        InputError: a value has the wrong type or is out of range, or two of them contradict each other.
    """

    model: str = _setting("", "The folder of a trained model.")
    store: str = _setting(
        "events.sqlite", "The event log: a file, created if missing, or postgresql://….", "FILE|URL"
    )
    cache: str = _setting(
        "", "redis://… to share user states between the servers of a PostgreSQL log.", "URL"
    )
    host: str = _setting("127.0.0.1", "The address to listen on.", "TEXT")
    port: int = _setting(8000, "The port to listen on; 0 picks a free one.", "NUMBER")
    workers: int = _setting(1, "Processes that serve; several need PostgreSQL and Redis.", "NUMBER")
    keys: str = _setting("", "API keys to accept; recblr key creates the file.", "FILE")
    titles: str = _setting("", "A CSV or Parquet file with item_id and title.", "FILE")
    path_prefix: str = _setting("", "Serve below this path, as a proxy asks for it.", "/PATH")
    access_log: bool = _setting(False, "Log every request as a line of JSON.", "")
    max_url_bytes: int = _setting(8_192, "A longer URL is answered by 414.")
    max_head_bytes: int = _setting(32_768, "More bytes of request line and headers: 431.")
    max_body_bytes: int = _setting(1_000_000, "A larger body: 413.")
    head_seconds: float = _setting(10.0, "For request line and headers to arrive: 408.")
    body_seconds: float = _setting(10.0, "For a body to arrive: 408.")
    read_seconds: float = _setting(30.0, "For a client to read its answer; then disconnected.")
    idle_seconds: float = _setting(
        30.0, "A connection without a request is closed after this time."
    )
    max_connections: int = _setting(
        2_048, "Beyond it, the connection that has been idle longest is closed."
    )
    max_pipelined: int = _setting(
        16, "Requests that wait on one connection; beyond it, it is closed after the first answers."
    )
    max_running: int = _setting(
        64, "Requests of a tenant in work; fewer if several are active. The others wait."
    )
    max_waiting: int = _setting(256, "Requests of a tenant that wait; more: 429.")
    max_waiting_bytes: int = _setting(
        32_000_000, "Bytes of a tenant's bodies in memory; more: 429."
    )
    wait_seconds: float = _setting(10.0, "For a request to wait for its turn: 429.")
    stop_seconds: float = _setting(30.0, "For the last answers after SIGTERM.")
    cached_users: int = _setting(100_000, "States in memory without Redis; 0.6 GiB for 100,000.")
    postgresql_seconds: float = _setting(5.0, "For PostgreSQL to answer a statement: 503.")
    redis_seconds: float = _setting(0.5, "For Redis to answer; then states come from the log.")

    def __post_init__(self) -> None:
        check(self, "serve")
        for name, kind in kinds().items():
            if kind is float and not 0 < getattr(self, name) <= 1e6:
                raise InputError(
                    f"serve.{name} = {getattr(self, name)}: must be above 0 and at most 1,000,000"
                )
        sizes = [name for name, kind in kinds().items() if kind is int and name != "port"]
        expect_sizes(self, "serve", *sizes)
        expect_sizes(self, "serve", "max_running", at_most=MAX_WAITING)
        if not 0 <= self.port <= 65535:
            raise InputError(f"serve.port = {self.port}: must be in 0 .. 65535")
        if self.path_prefix and not self.path_prefix.startswith("/"):
            raise InputError(f"serve.path_prefix = {self.path_prefix}: begin it with a slash")
        if not self.keys and self.host not in LOOPBACK:
            raise InputError(
                f"serve.host = {self.host} accepts connections from other machines; create API keys "
                "with recblr key and pass them with --keys"
            )
        if self.workers > 1 and not (self.store.startswith(POSTGRESQL) and self.cache):
            raise InputError(
                f"serve.workers = {self.workers}: several workers share an event log in PostgreSQL and "
                "a cache in Redis; pass --store postgresql://… and --cache redis://…"
            )

    __repr__ = changed_settings


def kinds() -> dict[str, Any]:
    """The type of each setting."""
    return get_type_hints(ServerSettings)


def read_settings(
    given: Mapping[str, Any],
    changes: Iterable[str] = (),
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServerSettings:
    """Settings from the command line, before the environment, before a file, before the defaults.

    Args:
        given: values of options; None for those that are not given.
        changes: ``NAME=VALUE``, of ``--set``.
        file: a TOML file.
        environment: variables; those of this process if None.

    Raises:
        InputError: a name is unknown, a value is wrong, or a password is where others can read it.
    """
    values: dict[str, Any] = {}
    for place, name, value in (
        *_of_file(file),
        *_of_environment(os.environ if environment is None else environment),
        *_of_command_line(given, changes),
    ):
        values[name] = check_value(value, kinds()[name], place)
    return ServerSettings(**values)


_Values = Iterator[tuple[str, str, Any]]  # where a value was found, the setting, the value


def _of_file(file: Path | None) -> _Values:
    if file is None:
        return
    table = read_toml(file)
    for name, value in table.items():
        _check_name(name, f"{file}: {name}", kinds())
        yield f"{file}: {name}", name, value
    if any(_has_password(table.get(name)) for name in SECRETS) and file.stat().st_mode & 0o077:
        raise InputError(f"{file}: has a password and can be read by others; run chmod 600 {file}")


def _of_environment(environment: Mapping[str, str]) -> _Values:
    refuse_folder_of_downloads(environment)
    names = OTHER_VARIABLES | {f"{PREFIX}{name.upper()}": name for name in kinds()}
    for variable in environment:
        if variable.startswith(PREFIX):
            _check_name(variable, variable, names)
    for variable, name in names.items():
        if text := environment.get(variable):
            yield variable, name, _from_text(name, text)


def refuse_folder_of_downloads(environment: Mapping[str, str]) -> None:
    """InputError if RECBLR_CACHE, the folder of downloads, has the URL of Redis."""
    if "://" in environment.get("RECBLR_CACHE", ""):
        raise InputError(
            "RECBLR_CACHE is the folder of downloads; put the URL of Redis into RECBLR_STATE_CACHE"
        )


def _of_command_line(given: Mapping[str, Any], changes: Iterable[str]) -> _Values:
    for name, value in given.items():
        if value is not None:
            refuse_password(name, value)
            yield f"--{name.replace('_', '-')}", name, value
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise InputError(f"--set {change}: write NAME=VALUE, such as max_waiting=100")
        _check_name(name, f"--set {name}", kinds())
        refuse_password(name, text)
        yield f"--set {name}", name, _from_text(name, text)


def _check_name(name: str, place: str, names: Iterable[str]) -> None:
    if name not in names:
        raise InputError(f"{place}: no such setting{did_you_mean(name, names)}")


def _from_text(name: str, text: str) -> Any:
    return text if kinds()[name] is str else toml_value(text)


def refuse_password(name: str, url: Any) -> None:
    """InputError if the value of an option has a password, which other users of the machine can see."""
    if name in SECRETS and _has_password(url):
        raise InputError(
            f"--{name}: all users of this machine can see a password there; put the URL into the "
            f"environment as {PREFIX}{name.upper()}, or into the file of serve --config, with mode 0600"
        )


def _has_password(url: Any) -> bool:
    if not isinstance(url, str) or "://" not in url:
        return False
    try:
        parts = urlsplit(url)
        return bool(parts.password or "password" in parse_qs(parts.query))
    except ValueError:  # no URL; what opens it says so
        return False


def as_toml(settings: ServerSettings) -> str:
    """All settings with their meaning; those with their default are commented out, passwords hidden."""
    lines = [
        "# Settings of `recblr serve --config FILE`. A line that begins with # has the default."
    ]
    for f in fields(settings):
        value = getattr(settings, f.name)
        if _has_password(value):
            value = re.sub(r"(?<=:)[^:@/]+(?=@)|(?<=password=)[^&]*", "***", value)
        text = str(value).lower() if isinstance(value, bool) else _quoted(value)
        comment = "# " if value == f.default else ""
        lines += ["", f"# {f.metadata['meaning']}", f"{comment}{f.name} = {text}"]
    return "\n".join(lines) + "\n"


def as_table() -> str:
    """All settings as a table in Markdown."""
    rows = (
        f"| `{f.name}` | {f'`{_quoted(f.default)}`' if f.default else ''} | {f.metadata['meaning']} |"
        for f in fields(ServerSettings)
    )
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows])


def _quoted(value: Any) -> str:
    """A value as TOML: text in quotes, numbers with underscores."""
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'
    return f"{value:_}"
