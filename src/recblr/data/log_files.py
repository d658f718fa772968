"""The files of a log, on this machine or in an object store."""

import difflib
import glob
import io
import re
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa

from recblr.data.values import shorten
from recblr.errors import InputError

STDIN = "-"
_Path = TypeVar("_Path", bound=PurePath)
_FOREIGN = {"prepared.json": "a prepared folder", "model.safetensors": "a trained model"}


@dataclass(frozen=True)
class LogFile:
    """One file.

    Attributes:
        path: its path; in an object store, from the bucket on.
        name: the file in messages.
        size: in bytes; 0 for a pipe.
        folders: the names of its folders, below the folder that was given.
        store: the object store, a file system of Arrow; None for this machine.
    """

    path: PurePath
    name: str
    size: int
    folders: tuple[str, ...] = ()
    store: Any = None

    def open(self) -> io.BufferedReader:
        """Open the file for reading from anywhere."""
        if self.store is None:
            return Path(self.path).open("rb")
        return io.BufferedReader(self.store.open_input_file(str(self.path)), 1 << 20)


def is_remote(source: str) -> bool:
    """Whether a source is a URI such as ``s3://bucket/clicks/``, and not a path."""
    return "://" in source


def name_of(source: Any) -> str:
    """The name of a log in messages; that of a URI has neither its user nor its options."""
    if not isinstance(source, str | Path):
        return "<frame>"
    if not is_remote(str(source)):
        return "<stdin>" if str(source) == STDIN else str(source)
    uri = urlsplit(str(source))
    return f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path}"


def find_files(source: str) -> list[LogFile]:
    """The files of a path or URI, or of all that a pattern matches, in order of their names.

    A folder stands for its files and those of its folders, except names that start with a dot or an
    underscore. Numbers in names count by their value.

    Raises:
        InputError: there is no file, or the folder is none of a log.
    """
    files = (_stored_files if is_remote(source) else _local_files)(source)
    if not files:
        raise InputError(f"{name_of(source)}: holds no files; check the path")
    return sorted(files, key=lambda file: [
        (part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split("([0-9]+)", str(file.path))
    ])  # fmt: skip


def _local_files(source: str) -> list[LogFile]:
    root = Path(source)
    if root.exists():
        matches = [root]
    elif glob.has_magic(source):
        matches = [Path(match) for match in glob.glob(source, recursive=True)]
    else:
        beside = root.parent.iterdir() if root.parent.is_dir() else ()
        siblings = [each.name for each in beside if each.exists()]
        close = difflib.get_close_matches(root.name, siblings, 1)
        hint = f"did you mean {root.with_name(close[0])}?" if close else "check the path"
        raise InputError(f"{root}: no such file; {hint}")
    paths: set[Path] = set()
    for match in matches:
        is_folder = match.is_dir()
        below = [path for path in match.rglob("*") if path.is_file()] if is_folder else [match]
        paths.update(_of_log(match, below, str(match)))
    sizes = {path: path.stat().st_size if path.is_file() else 0 for path in paths}
    return [
        LogFile(path, str(path), size, _folders(path, root, root.is_dir()))
        for path, size in sizes.items()
    ]


def _stored_files(source: str) -> list[LogFile]:
    """The files of a URI, in whose path ``*`` and ``[…]`` match a part of a name."""
    from pyarrow import fs

    uri, name = urlsplit(source), name_of(source)
    names = uri.path.rstrip("/").split("/")
    fixed = next((n for n, each in enumerate(names) if set(each) & set("*[")), len(names))
    address = urlunsplit(uri._replace(path="/".join(names[:fixed])))
    try:
        store, top = fs.FileSystem.from_uri(address)
        info = store.get_file_info(top)
        if info.type == fs.FileType.NotFound:
            raise InputError(f"{name}: no such file; check the address")
        found = (
            [info] if info.is_file else store.get_file_info(fs.FileSelector(top, recursive=True))
        )
    except (OSError, pa.ArrowException) as error:
        problem = shorten(str(error).replace(address, name), 160)  # the address may contain keys
        raise InputError(
            f"{name}: cannot be reached ({problem}); check the address, the network and the credentials"
        ) from None
    sizes = {PurePosixPath(each.path): each.size for each in found if each.is_file}
    inside = {path: [path] for path in sizes}
    for path in sizes:
        for folder in path.parents:
            inside.setdefault(folder, []).append(path)
    if fixed == len(names):
        root = PurePosixPath(top)
        matches = [root] if root in inside else []
    else:
        root = PurePosixPath(glob.escape(top), *map(unquote, names[fixed:]))
        depth = len(root.parts)
        matches = [path for path in inside if len(path.parts) == depth and path.match(str(root))]
    return [
        LogFile(
            path, f"{uri.scheme}://{path}", sizes[path],
            _folders(path, root, root in inside and root not in sizes), store,
        )
        for match in matches
        for path in _of_log(match, inside[match], f"{uri.scheme}://{match}")
    ]  # fmt: skip


def _of_log(match: _Path, files: list[_Path], name: str) -> list[_Path]:
    """The ``files`` in a folder, or the file itself, without hidden ones."""
    for marker, what in _FOREIGN.items():
        if match / marker in files:
            raise InputError(f"{name}: is {what}, not a log; give the file or folder of a log")
    return [
        file for file in files if not any(part[0] in "._" for part in file.relative_to(match).parts)
    ]


def _folders(path: PurePath, root: PurePath, root_is_folder: bool) -> tuple[str, ...]:
    """The names of the folders of a file, below the folder ``root`` or that a pattern matches."""
    if path == root:
        return ()
    return (path.relative_to(root) if root_is_folder else path).parts[:-1]
