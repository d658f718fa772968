"""API keys of tenants: a file of their hashes, which a running server reads again when it changes."""

import hashlib
import json
import logging
import re
import secrets
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recblr.errors import InputError
from recblr.files import check_writable, new_file, write_errors

ADMIN = "admin"  # the tenant that may swap models and read metrics, and has no users
TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_BYTES = 10_000_000  # of a file of keys
DEFAULT_TENANT = "default"  # the tenant of all users of a server without keys

log = logging.getLogger("recblr.keys")


@dataclass(frozen=True)
class Key:
    """What is stored of a key.

    Attributes:
        tenant: the owner.
        hash: SHA-256 of the key; its first 8 digits name the key.
        created: seconds since 1970; 0 if unknown.
        expires: seconds since 1970; infinity if never.
    """

    tenant: str
    hash: str
    created: float = 0.0
    expires: float = float("inf")

    @property
    def name(self) -> str:
        return self.hash[:8]


class Keys:
    """The API keys that a server accepts.

    A key has 256 random bits, so one round of SHA-256 is enough to hide it, and the time of looking up
    its hash reveals nothing about others.

    Raises:
        InputError: ``path`` is not a file written by :func:`add_key`.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read_at = path, _changed_at(path)
        self._keys = {key.hash: key for key in read_keys(path)}

    def tenant(self, key: str) -> str | None:
        """The tenant of a key, or None."""
        stored = self._keys.get(_hash(key))
        return None if stored is None or stored.expires < time.time() else stored.tenant

    def reload(self, only_if_changed: bool = False) -> None:
        """Read the file again. If it is not a key file, the keys stay as they were."""
        changed_at = _changed_at(self._path)
        if only_if_changed and changed_at == self._read_at:
            return
        self._read_at = changed_at
        try:
            self._keys = {key.hash: key for key in read_keys(self._path)}
        except InputError as error:
            log.error("keys not reloaded: %s", error)
        else:
            log.warning("%d keys reloaded from %s", len(self._keys), self._path)


def add_key(path: Path, tenant: str, rotate: bool = False, grace: float = 0.0) -> str:
    """Create a key for a tenant and add its hash to a file, which is created if missing.

    The key itself is not stored. A tenant may have several keys; with ``rotate`` the others expire
    after ``grace`` seconds.
    """
    if not TENANT.fullmatch(tenant):
        raise InputError(
            f"tenant {tenant!r}: give 1 to 64 letters, digits, dots, dashes and underscores, of which "
            "the first is a letter or digit"
        )
    check_writable(path)
    keys = read_keys(path) if path.exists() else []
    text, now = secrets.token_urlsafe(32), time.time()
    if rotate:
        keys = [
            replace(key, expires=min(key.expires, now + grace)) if key.tenant == tenant else key
            for key in keys
        ]  # fmt: skip
    _write(path, [*keys, Key(tenant, _hash(text), now)])
    return text


def revoke_key(path: Path, name: str) -> Key:
    """Remove the key with a name from a file.

    Raises:
        InputError: there is no such key.
    """
    keys = read_keys(path)
    found = [key for key in keys if name and key.hash.startswith(name)]
    if len(found) != 1:
        raise InputError(f"{path}: no key {name!r}; recblr key list shows the names")
    check_writable(path)
    _write(path, [key for key in keys if key is not found[0]])
    return found[0]


def read_keys(path: Path) -> list[Key]:
    """The keys of a file; those of version 0.1.0 are hashes without dates."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.read(MAX_BYTES))  # a device may have no end
        return [_key(tenant, value) for tenant, values in content.items() for value in values]
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a key file: {error}; create one with recblr key") from None


def _key(tenant: str, value: Any) -> Key:
    key = Key(tenant, value) if isinstance(value, str) else Key(tenant=tenant, **value)
    if len(key.hash) != 64 or not isinstance(key.created + key.expires, float):
        raise ValueError("a hash is not SHA-256")
    return key


def _write(path: Path, keys: list[Key]) -> None:
    content: dict[str, list[dict[str, Any]]] = {}
    for key in keys:
        values = {name: value for name, value in asdict(key).items() if name != "tenant"}
        if key.expires == float("inf"):
            del values["expires"]
        content.setdefault(key.tenant, []).append(values)
    with write_errors(path), new_file(path) as new:
        new.touch(mode=0o600)
        new.write_text(json.dumps(content, indent=1))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _changed_at(path: Path) -> tuple[int, int]:
    """What changes when a file is written or replaced; zeros if it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_ino
