"""A Parquet file that is made in parts: what was killed goes on where it stopped."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recblr.errors import InputError


class Parts:
    """The parts of a Parquet file, numbered from 0; they lie in a folder, ``<path>.parts``.

    Args:
        path: the file to make.
        key: stands for all that its content depends on. Parts made under another are made anew.

    Raises:
        InputError: it cannot be written there.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self.folder = path, path.with_name(f"{path.name}.parts")
        self._metadata = {b"recblr": key.encode()}
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file")
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror})") from error

    def __contains__(self, number: int) -> bool:
        """Whether the part was made before, whole and under this key."""
        try:
            metadata = pq.read_schema(self._part(number)).metadata
        except (OSError, pa.ArrowException):
            return False
        return metadata == self._metadata

    def add(self, number: int, table: pa.Table) -> None:
        new = self.folder / "writing"
        pq.write_table(table.replace_schema_metadata(self._metadata), new)
        new.replace(self._part(number))

    def join(self, count: int) -> None:
        """Make the file of parts 0 .. count-1, at least one; it appears whole or not at all."""
        new = self.folder / "writing"
        with pq.ParquetWriter(new, pq.read_schema(self._part(0)).remove_metadata()) as writer:
            for number in range(count):
                with pq.ParquetFile(self._part(number)) as part:
                    writer.write_table(part.read())
        new.replace(self._path)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number}.parquet"
