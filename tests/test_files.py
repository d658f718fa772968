"""Folders are written completely or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest

from recblr.errors import InputError
from recblr.files import (
    check_absent,
    check_writable,
    exclusive_lock,
    new_folder,
    sha256,
    write_errors,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, text: str, overwrite: bool = False) -> None:
    with new_folder(path, overwrite, "manifest.json") as new:
        (new / text).write_text(text)
        (new / "manifest.json").write_text("{}")


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a", False, "manifest.json") as new:
        (new / "file").write_text("1")
        assert not (tmp_path / "a").exists()
        assert new.parent == tmp_path
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "1"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_no_files(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(overwrite: bool) -> None:
        with new_folder(tmp_path / "a", overwrite, "manifest.json") as new:
            (new / "half").write_text("")
            raise error

    with pytest.raises(error):
        fail(overwrite=False)
    assert names(tmp_path) == []
    write(tmp_path / "a", "old")
    with pytest.raises(error):
        fail(overwrite=True)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["manifest.json", "old"]


def test_overwrite_replaces_the_folder(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    write(tmp_path / "a", "new", overwrite=True)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["manifest.json", "new"]


def test_files_left_by_a_crash_are_replaced(tmp_path: Path) -> None:
    for name in ("a", ".a.writing", ".a.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("")
    write(tmp_path / "a", "new", overwrite=True)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["manifest.json", "new"]


def test_an_existing_folder_is_refused_early(tmp_path: Path) -> None:
    write(tmp_path / "a", "old")
    with pytest.raises(InputError, match=r"exists already.*--overwrite"):
        write(tmp_path / "a", "new")
    assert names(tmp_path / "a") == ["manifest.json", "old"]
    with pytest.raises(InputError, match="exists already"):
        check_absent(tmp_path / "a", False, "manifest.json")
    check_absent(tmp_path / "a", True, "manifest.json")


def test_another_kind_of_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        write(tmp_path / "thesis", "new", overwrite=True)
    assert names(tmp_path / "thesis") == ["chapter"]
    write(tmp_path / "a", "a model")
    with pytest.raises(InputError, match="something else, as it has no prepared"):
        check_absent(tmp_path / "a", True, "prepared.json")
    with pytest.raises(InputError, match="give a folder name"):
        check_absent(Path(), True, "manifest.json")


def test_a_missing_parent_is_refused(tmp_path: Path) -> None:
    for overwrite in (False, True):
        with pytest.raises(InputError, match="does not exist; create it first"):
            write(tmp_path / "none" / "a", "new", overwrite)
    assert names(tmp_path) == []


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"exists already|is a file"):
            write(tmp_path / "a", "new", overwrite)
    assert (tmp_path / "a").read_text() == "mine"
    assert names(tmp_path) == ["a"]


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        check_writable(tmp_path / name)
    check_writable(Path("/dev/null"))
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a folder; give a file"),
        ("no/a", "the folder .*/no does not exist; create it first"),
        ("file/a", "the folder .*/file does not exist"),
        ("a" * 300, "cannot be written .File name too long.; choose another path"),
        ("/proc/a", "^/proc/a: cannot be written"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=message):
        check_writable(tmp_path / name)
    if name:
        with pytest.raises(InputError, match=message):
            check_absent(tmp_path / name, False, "manifest.json")
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    def fill() -> None:
        with write_errors(tmp_path / "a"), open("/dev/full", "w") as file:
            file.write("x")

    with pytest.raises(InputError, match=r"/a: cannot be written \(No space left on device\)"):
        fill()


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert sha256(tmp_path / "a") == known


def test_only_one_process_holds_the_lock(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from recblr.errors import InputError
from recblr.files import exclusive_lock
try:
    with exclusive_lock(Path(sys.argv[1])):
        print("in")
except InputError as error:
    print(error)
"""

    def other() -> str:
        command = [sys.executable, "-c", script, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with exclusive_lock(tmp_path):
        assert other() == f"another process is using {tmp_path}; wait until it ends\n"
    assert other() == "in\n"
