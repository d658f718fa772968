"""Folders that appear whole or not at all."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recblr.errors import InputError


def check_absent(path: Path, overwrite: bool, mark: str) -> None:
    """Refuse early, before long work, to write over what is there.

    Args:
        path: the folder to be.
        overwrite: one of its own kind may be replaced.
        mark: the file by which that kind is known.
    """
    if not path.name:
        raise InputError(f"{path} is not a folder that can be written anew; name one")
    if path.exists() and not overwrite:
        raise InputError(
            f"{path} exists already; choose another folder or pass --overwrite "
            "(in Python overwrite=True)"
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; choose another folder")
    if path.exists() and not (path / mark).exists():
        raise InputError(
            f"{path} holds something else, there is no {mark} in it; choose another folder"
        )
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; create it first")


@contextmanager
def new_folder(path: Path, overwrite: bool, mark: str) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` that takes its name when the block ends well.

    Arguments as in :func:`check_absent`; the block is to write the file ``mark``.
    """
    check_absent(path, overwrite, mark)
    temporary = path.with_name(f".{path.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)  # what a crash left behind
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes that ask for the same out of an existing folder.

    Raises:
        InputError: another one is in it.
    """
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"another process is at work in {folder}; wait for it to end") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
