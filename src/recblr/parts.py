"""Write a Parquet file in parts, so that a killed process can continue."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recblr.errors import InputError


class Parts:
    """The parts of a Parquet file, numbered from 0, in the folder ``<path>.parts``.

    Args:
        path: the file to write.
        key: a hash of everything that the content depends on; parts with another key do not count.

    Raises:
        InputError: ``path`` is a folder, or the folder of parts cannot be created.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self.folder = path, path.with_name(f"{path.name}.parts")
        self._metadata = {b"recblr": key.encode()}
        if path.is_dir():
            raise InputError(f"{path} is a folder; give a file")
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror}); choose another file"
            ) from error

    def __contains__(self, number: int) -> bool:
        """Whether a complete part with this number and key exists."""
        try:
            metadata = pq.read_schema(self._part(number)).metadata
        except (OSError, pa.ArrowException):
            return False
        return metadata == self._metadata

    def add(self, number: int, table: pa.Table) -> None:
        """Write a part; it appears complete or not at all."""
        new = self.folder / "writing"
        pq.write_table(table.replace_schema_metadata(self._metadata), new)
        new.replace(self._part(number))

    def join(self, count: int) -> None:
        """Join the parts 0 .. count-1 into the file; it appears complete or not at all."""
        new = self.folder / "writing"
        with pq.ParquetWriter(new, pq.read_schema(self._part(0)).remove_metadata()) as writer:
            for number in range(count):
                with pq.ParquetFile(self._part(number)) as part:
                    writer.write_table(part.read())
        new.replace(self._path)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number}.parquet"
