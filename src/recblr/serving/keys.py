"""Keys of tenants: kept as hashes, compared in constant time."""

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path

from recblr.errors import InputError

ADMIN = "admin"  # may swap models and read the metrics, and has no users


class Keys:
    """Who a key belongs to.

    Keys are 256 random bits, so that one round of SHA-256 hides them.

    Raises:
        InputError: ``path`` is no file of :func:`add_key`.
    """

    def __init__(self, path: Path) -> None:
        self._hashes = _read(path)

    def tenant(self, key: str) -> str | None:
        """The tenant, or None; every hash is compared, whichever fits."""
        digest, found = _hash(key), None
        for tenant, hashes in self._hashes.items():
            for one in hashes:
                if hmac.compare_digest(one, digest):
                    found = tenant
        return found


def add_key(path: Path, tenant: str) -> str:
    """Make a key for a tenant and keep its hash in a file, made if it is not there.

    The key is not kept; a tenant may have several.
    """
    if not tenant or not tenant.isprintable():
        raise InputError(f"tenant {tenant!r}: give a name of letters, digits or dashes")
    hashes = _read(path) if path.exists() else {}
    key = secrets.token_urlsafe(32)
    hashes.setdefault(tenant, []).append(_hash(key))
    new = path.with_name(f".{path.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(hashes, file, indent=1)
    new.replace(path)
    return key


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def _read(path: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(path.read_text())
        if all(len(one) == 64 for hashes in found.values() for one in hashes):
            return {str(tenant): list(hashes) for tenant, hashes in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is no file of keys: {error}; make one with recblr key") from None
    raise InputError(f"{path} is no file of keys; make one with recblr key")
