"""Read archived events, alone or together with the log that is still in the database.

DuckDB reads the Parquet files, and only the row groups and columns that an extract
needs. Events come in their sealed order, as from a storage.
"""

from __future__ import annotations

import glob
import heapq
import json
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from itertools import chain, count, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import projections
from pharox.log import Extract, event_from_row
from pharox.log.tree import Inclusion, TreeHead
from projections import Finding, State

from ...errors import ArchivedError, ArchiveFileError, InvalidInputError
from ...events import Event
from ...models import Lease, ProxyPool, check_aware, check_whole
from ...storage.postgres import PostgresStorage
from ...storage.postgres.tree import tile_of
from .files import EVENTS, all_files_in

try:
    import duckdb
except ModuleNotFoundError as missing:
    raise ArchiveFileError(
        "reading an archive needs DuckDB: pip install 'pharox[archive]'"
    ) from missing

_PAGE = 2000
_CONDITIONS = {
    "after": "seq > $after",
    "upto": "seq <= $upto",
    "types": "type = ANY($types)",
    "pool_id": "pool_id = $pool_id",
    "proxy_id": "(proxy_id = $proxy_id OR list_contains(proxy_ids, $proxy_id))",
    "lease_id": "lease_id = $lease_id",
    "consumer": "consumer = $consumer",
    "since": "recorded_at >= $since",
    "until": "recorded_at < $until",
}
_COLUMNS = ", ".join(name for name in EVENTS.names if name not in ("version", "digest", "tx"))


def history(source: Path | str | Sequence[Path], extract: Extract) -> Iterator[Event]:
    """Yield the archived events of an extract, in the sealed order.

    Parameters
    ----------
    source:
        The folder of an archive, or some of its files of events.
    extract:
        Which events.

    Raises
    ------
    ArchiveFileError
        If the folder holds no archive, or a file of it cannot be read.
    """
    if isinstance(source, Path | str):
        source = [files.events for files in all_files_in(Path(source))]
    return heapq.merge(*(_events(path, extract) for path in source), key=attrgetter("seq"))


class WithArchive:
    """A ledger together with its archive, read as one log.

    Parameters
    ----------
    storage:
        The ledger.
    folders:
        The folders of its archive, which may have been moved since it was written.

    Raises
    ------
    ArchiveFileError
        If a folder does not exist.
    """

    def __init__(self, storage: PostgresStorage, *folders: Path | str) -> None:
        self._storage = storage
        self._folders = [Path(folder) for folder in folders]
        for folder in self._folders:
            if not folder.is_dir():
                raise ArchiveFileError(f"there is no folder {folder}", folder=str(folder))

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """Yield the whole log after a seq, in its sealed order."""
        return self.history(Extract(after=after))

    def lease_ids(self, beginning: str, *, limit: int = 10) -> list[UUID]:
        """Return the ids of leases in the live log that begin so; archived ones are not found."""
        return self._storage.lease_ids(beginning, limit=limit)

    def get_lease(self, lease_id: str) -> Lease | None:
        """Return a lease as the ledger has it, or None."""
        return self._storage.get_lease(lease_id)

    def history(self, extract: Extract) -> Iterator[Event]:
        """Yield the events of an extract, in the sealed order.

        Raises
        ------
        ArchivedError
            If it may need a part of the archive that none of the folders has.
        """
        # A part may be archived meanwhile. Start reading the live log first, then the list
        # of archived parts: a part can then be read twice, but never missed.
        live = cast("_Closable", self._storage.history(extract, live_only=True))
        with closing(live):
            begun = list(islice(live, 1))
            files = [self._file(part) for part in self._storage.archived_parts(extract)]
            last = 0
            for event in heapq.merge(
                history(files, extract), chain(begun, live), key=attrgetter("seq")
            ):
                if event.seq > last:
                    yield event
                last = event.seq

    def seq_at(self, moment: datetime) -> int:
        """Return the seq of the last event recorded at or before a moment; 0 if there is none."""
        try:
            return self._storage.seq_at(check_aware(moment))
        except ArchivedError:
            until = moment + timedelta(microseconds=1)
        files = [self._file(part) for part in self._storage.archived_parts(Extract(until=until))]
        latest = [found for path in files for found in _latest(path, until)]
        since = max((found["recorded_at"] for found in latest), default=None)
        live = self._storage.history(Extract(since=since, until=until), live_only=True)
        places = [(found["recorded_at"], found["position"], found["seq"]) for found in latest]
        places += [(event.recorded_at, event.position, event.seq) for event in live]
        return max(places)[2] if places else 0

    def state_at(self, seq: int) -> dict[str, State]:
        """Return every read model as it was after the event of this seq."""
        try:
            return self._storage.state_at(seq)
        except ArchivedError:
            wanted = projections.registered()
            states = projections.fold(self.history(Extract(upto=seq)), wanted)
            return projections.current(states, wanted)

    def prove_inclusion(self, seq: int, size: int | None = None) -> Inclusion:
        """Return the proof that an event is among the first ``size`` events, or all.

        Raises
        ------
        ArchivedError
            If it needs a part of the archive that none of the folders has.
        """
        after, upto = tile_of(check_whole(seq, "seq"))
        extract = Extract(after=after, upto=upto)
        files = [self._file(part) for part in self._storage.archived_parts(extract)]
        query = "SELECT * FROM read_parquet($path) WHERE seq > $after AND seq <= $upto"
        span = {"after": after, "upto": upto}
        rows = [row for path in files for row in _rows(path, query, span)]
        return self._storage.prove_inclusion(seq, size, archived=rows)

    def verify(self, *, limit: int = 100, heads: Collection[TreeHead]) -> list[Finding]:
        """Verify the ledger, and compare archived events with signed heads of the log's tree too.

        Raises
        ------
        ArchivedError
            If the ledger says that a part is archived, and none of the folders has its file.
        InvalidInputError
            If there are no heads: with nothing to compare, no file would be read.
        """
        if not heads:
            raise InvalidInputError("an archive is verified against signed heads of the log's tree")
        return self._storage.verify(limit=limit, heads=heads, archive=self._all_rows)

    def _all_rows(self, parts: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        files = [(part["first_seq"], self._file(part)) for part in parts if part["first_seq"]]
        return _in_order(files)

    def verify_notes(self) -> list[str]:
        """Return what verification cannot vouch for, one sentence each."""
        return self._storage.verify_notes(with_archive=True)

    def seal(self) -> int:
        """Seal the events up to now; return the last seq."""
        return self._storage.seal()

    def list_pools(self) -> Sequence[ProxyPool]:
        """Return the current pools."""
        return self._storage.list_pools()

    def _file(self, part: Mapping[str, Any]) -> Path:
        """Return the file with the events of an archived part."""
        name = Path(part["archive"]).name
        for folder in self._folders:
            if (path := folder / "events" / name).exists():
                return path
        looked = ", ".join(map(str, self._folders))
        raise ArchivedError(
            f"events {part['first_seq']} to {part['last_seq']} are archived in "
            f"{part['archive']}, and {looked} has no such file",
            last_seq=part["last_seq"],
            last_recorded_at=part["last_recorded_at"],
            archive=part["archive"],
        )


def _events(path: Path, extract: Extract) -> Iterator[Event]:
    given = extract.given()
    values = {name: _comparable(value) for name, value in given.items()}
    where = " AND ".join(_CONDITIONS[name] for name in given)
    # A scan of one file keeps its order, the sealed order.
    for row in _rows(path, f"SELECT {_COLUMNS} FROM read_parquet($path) WHERE {where}", values):  # noqa: S608 - our own words
        event = event_from_row({**row, "data": row["data"] and json.loads(row["data"])})
        yield extract.part(event)


def _in_order(files: Sequence[tuple[int, Path]]) -> Iterator[dict[str, Any]]:
    """Yield all rows of files by seq, each opened when its first seq is reached."""
    closed, number = deque(sorted(files)), count()
    opened: list[tuple[int, int, dict[str, Any], Iterator[dict[str, Any]]]] = []
    while closed or opened:
        if closed and (not opened or closed[0][0] <= opened[0][0]):
            rest = _rows(closed.popleft()[1], "SELECT * FROM read_parquet($path)", {})
        else:
            _, _, row, rest = heapq.heappop(opened)
            yield row
        for row in islice(rest, 1):
            heapq.heappush(opened, (row["seq"], next(number), row, rest))


def _latest(path: Path, until: datetime) -> Iterator[Mapping[str, Any]]:
    query = (
        "SELECT seq, position, recorded_at FROM read_parquet($path) WHERE recorded_at < $until "
        "ORDER BY recorded_at DESC, position DESC LIMIT 1"
    )
    return _rows(path, query, {"until": until})


def _rows(path: Path, query: str, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        # DuckDB must not fetch anything from the network.
        with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
            values = {**values, "path": glob.escape(str(path))}
            for batch in connection.sql(query, params=values).to_arrow_reader(_PAGE):
                yield from batch.to_pylist()
    except duckdb.Error as error:
        why = str(error).partition("\n")[0]
        raise ArchiveFileError(f"{path} cannot be read: {why}", path=str(path)) from error


def _comparable(value: Any) -> Any:
    """Return a value of an extract as it is in the files: ids are text there."""
    return value if isinstance(value, int | str | list | datetime) else str(value)


class _Closable(Iterator[Event]):
    def close(self) -> None: ...
