"""Write files and folders, lock folders, hash files."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from recblr.errors import InputError


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system inside the block into an InputError that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written ({reason}); choose another path") from error


def check_writable(path: Path) -> None:
    """Check before long work that a file can be written.

    Raises:
        InputError: it is a folder, or it cannot be created or changed.
    """
    with write_errors(path):
        if path.is_dir():
            raise InputError(f"{path} is a folder; give a file")
        if not path.parent.is_dir():
            raise InputError(f"the folder {path.parent} does not exist; create it first")
        if not path.exists():
            path.touch(exist_ok=False)
            path.unlink()
        elif path.is_file():  # a pipe would wait for its reader
            path.open("ab").close()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename it to ``path`` if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_absent(path: Path, overwrite: bool, marker: str) -> None:
    """Check before long work that a new folder can be written.

    Args:
        path: the folder to write.
        overwrite: whether a folder that contains the file ``marker`` may be replaced.
        marker: the file that identifies this kind of folder.

    Raises:
        InputError: the folder exists and may not be replaced, or it cannot be created.
    """
    if not path.name:
        raise InputError(f"{path} cannot be created as a new folder; give a folder name")
    with write_errors(path):
        if path.exists() and not overwrite:
            raise InputError(
                f"{path} exists already; choose another folder or pass --overwrite "
                "(in Python overwrite=True)"
            )
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; choose another folder")
        if path.exists() and not (path / marker).exists():
            raise InputError(
                f"{path} holds something else, as it has no {marker}; choose another folder"
            )
        if not path.parent.is_dir():
            raise InputError(f"the folder {path.parent} does not exist; create it first")
        tempfile.TemporaryDirectory(prefix=f".{path.name}.writing", dir=path.parent).cleanup()


@contextmanager
def new_folder(path: Path, overwrite: bool, marker: str) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, and rename it to ``path`` if the block succeeds.

    The arguments are those of :func:`check_absent`; the block writes the file ``marker``.
    """
    check_absent(path, overwrite, marker)
    temporary = path.with_name(f".{path.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with write_errors(path):
            temporary.mkdir()
            yield temporary
            if path.exists():
                old = path.with_name(f".{path.name}.old")
                shutil.rmtree(old, ignore_errors=True)  # left by a crash
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
            else:
                temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock an existing folder against other processes that use this lock.

    Raises:
        InputError: another process holds the lock.
    """
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"another process is using {folder}; wait until it ends") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
