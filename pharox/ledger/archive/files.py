"""The files of an archive: for each part of the log its events, and the ticks that seal them.

    FOLDER/events/<first position>-<end position>.parquet
    FOLDER/ticks/<first position>-<end position>.parquet

Parquet has plain types here, so that any engine reads a folder as one table: ids are
text, and an event's ``data`` is the text that PostgreSQL prints, which its
digest covers. Events are in their sealed order. Parts overlap a little in that
order, so a tick may have events in several parts. It is stored with the first one,
together with the digests and positions of its events in the others.

A file gets its name once all of it is on the disk, and is never written again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import ArchiveFileError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as missing:
    raise ArchiveFileError(
        "an archive needs support for Parquet files: pip install 'pharox[archive]'"
    ) from missing

Row = dict[str, Any]

_MOMENT = pa.timestamp("us", tz="UTC")

EVENTS = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("version", pa.int16(), nullable=False),
        pa.field("digest", pa.binary(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("tx", pa.int64(), nullable=False),
        pa.field("recorded_at", _MOMENT, nullable=False),
        pa.field("expires_at", _MOMENT),
        pa.field("acquired_at", _MOMENT),
        pa.field("pool_id", pa.string(), nullable=False),
        pa.field("proxy_id", pa.string()),
        pa.field("lease_id", pa.string()),
        pa.field("consumer_id", pa.string()),
        pa.field("leases_before", pa.int32()),
        pa.field("leases_after", pa.int32()),
        pa.field("max_concurrency_before", pa.int32()),
        pa.field("max_concurrency_after", pa.int32()),
        pa.field("schema_version", pa.int16(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("status_before", pa.string()),
        pa.field("status_after", pa.string()),
        pa.field("selector", pa.string()),
        pa.field("consumer", pa.string()),
        pa.field("pool_name", pa.string()),
        pa.field("actor", pa.string()),
        pa.field("correlation_id", pa.string()),
        pa.field("proxy_ids", pa.list_(pa.string())),
        pa.field("data", pa.string()),
    ]
)
"""The columns of the table ``events``, after those of their row in ``seals``."""

TICKS = pa.schema(
    [
        pa.field("first_seq", pa.int64(), nullable=False),
        pa.field("last_seq", pa.int64(), nullable=False),
        pa.field("snapshot", pa.string(), nullable=False),
        pa.field("anchor", pa.int64(), nullable=False),
        pa.field("system_identifier", pa.int64(), nullable=False),
        pa.field("sealed_at", _MOMENT, nullable=False),
        pa.field("before", pa.binary(), nullable=False),
        pa.field("root", pa.binary(), nullable=False),
        pa.field("other_seqs", pa.list_(pa.int64())),
        pa.field("other_positions", pa.list_(pa.int64())),
        pa.field("other_digests", pa.list_(pa.binary())),
    ]
)
"""The columns of ``ticks``, the root ``before``, and the tick's events in other parts."""

_NAME = re.compile(r"([0-9]{15})-([0-9]{15})\.parquet")
_GROUP = 50_000
_PAGE = 2000


class Files(NamedTuple):
    """The files of the part of the log between two positions."""

    first: int
    end: int
    events: Path
    ticks: Path


def files_in(folder: Path, first: int, end: int) -> Files:
    """Return the files of a part of the log."""
    name = f"{first:015}-{end:015}.parquet"
    return Files(first, end, folder / "events" / name, folder / "ticks" / name)


def all_files_in(folder: Path) -> list[Files]:
    """Return the files of every part that a folder holds, oldest first.

    Raises
    ------
    ArchiveFileError
        If the folder holds none, or cannot be read.
    """
    with _file_errors(folder, "read"):
        names = sorted(path.name for path in (folder / "events").iterdir())
    parts = [
        files_in(folder, int(bounds[1]), int(bounds[2]))
        for bounds in map(_NAME.fullmatch, names)
        if bounds
    ]
    if not parts:
        raise ArchiveFileError(f"{folder} holds no archive", folder=str(folder))
    return parts


def write(path: Path, schema: pa.Schema, rows: Iterable[Row]) -> None:
    """Write rows into a new file, which gets its name once it is safely on the disk."""
    unfinished = path.with_name(f"{path.name}.part")
    with _file_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                rest = iter(rows)
                while group := list(islice(rest, _GROUP)):
                    writer.write_table(pa.Table.from_pylist(group, schema))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        _sync_folder(path.parent)


def read(path: Path, schema: pa.Schema) -> Generator[Row]:
    """Yield the rows of a file.

    Raises
    ------
    ArchiveFileError
        If it is missing, not such a file, or broken.
    """
    with _file_errors(path, "read"), pq.ParquetFile(path) as file:
        if not file.schema_arrow.equals(schema):
            raise ArchiveFileError(
                f"{path} does not have the columns of an archive", path=str(path)
            )
        for batch in file.iter_batches(_PAGE):
            # A broken file may have invalid text, or times that Python cannot represent.
            with _file_errors(path, "read", ValueError, OverflowError):
                rows = batch.to_pylist()
            yield from rows


@contextmanager
def _file_errors(path: Path, what: str, *others: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, *others) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ArchiveFileError(f"{path} cannot be {what}: {why}", path=str(path)) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
