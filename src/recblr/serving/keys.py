"""API keys of tenants: stored as hashes, compared in constant time."""

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path

from recblr.errors import InputError
from recblr.files import check_writable, write_errors

ADMIN = "admin"  # the tenant that may swap models and read metrics, and has no users
MAX_BYTES = 10_000_000  # of a file of keys
DEFAULT_TENANT = "default"  # the tenant of all users of a server without keys


class Keys:
    """The API keys that a server accepts.

    A key has 256 random bits, so one round of SHA-256 is enough to hide it.

    Raises:
        InputError: ``path`` is not a file written by :func:`add_key`.
    """

    def __init__(self, path: Path) -> None:
        self._hashes = _read(path)

    def tenant(self, key: str) -> str | None:
        """The tenant of a key, or None. All hashes are compared, whichever matches."""
        digest, owner = _hash(key), None
        for tenant, hashes in self._hashes.items():
            for stored in hashes:
                if hmac.compare_digest(stored, digest):
                    owner = tenant
        return owner


def add_key(path: Path, tenant: str) -> str:
    """Create a key for a tenant and add its hash to a file, which is created if missing.

    The key itself is not stored. A tenant may have several keys.
    """
    if not tenant or not tenant.isprintable():
        raise InputError(f"tenant {tenant!r}: give a name of letters, digits or dashes")
    check_writable(path)
    hashes = _read(path) if path.exists() else {}
    key = secrets.token_urlsafe(32)
    hashes.setdefault(tenant, []).append(_hash(key))
    new = path.with_name(f".{path.name}.new")
    with write_errors(path):
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(hashes, file, indent=1)
        new.replace(path)
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> dict[str, list[str]]:
    """The hashes of a key file by tenant."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.loads(file.read(MAX_BYTES))  # a device may have no end
        if all(len(digest) == 64 for hashes in content.values() for digest in hashes):
            return {str(tenant): list(hashes) for tenant, hashes in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not a key file: {error}; create one with recblr key") from None
    raise InputError(f"{path} is not a key file; create one with recblr key")
