"""Move old parts of the log into Parquet files that can be verified without the database.

A part leaves the database only after its files have been read back and compared
with the log, digest by digest. Parts leave oldest first, so the archive is the
beginning of the log. Every step can be repeated: a killed run is started again
and continues where it ended.

    write the files, compare  ->  prune leases, take a snapshot  ->  list as archived  ->  detach

Readers look at the list, so after that step a reader that needs an archived event
learns where it is. Afterwards all folds of the log begin with the snapshot.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pharox.log.canonical import digest

from ...errors import ArchiveFileError, InvalidInputError
from ...models import check_aware
from ...storage.postgres import PostgresStorage, snapshots, tree
from ..archive_check import Checked, check
from ..maintenance_lock import maintenance_lock
from . import files as archive_files
from . import statements as archive_statements
from .files import EVENTS, TICKS, Files, files_in
from .parts import Part, Parts
from .statements import Contents

__all__ = ["Archived", "Checked", "Kept", "Outcome", "archive", "check"]

_SETTLED = timedelta(minutes=1)
"""How much later than its decision a command may be recorded: see ``prune_leases``."""

_SKEW = timedelta(minutes=1)
"""How far a caller's clock may be ahead of the database's."""


Rows = Generator[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Archived:
    """An archived part of the log: its seqs (None if it was empty) and its file of events."""

    first_position: int
    end_position: int
    first_seq: int | None
    last_seq: int | None
    file: Path


@dataclass(frozen=True, slots=True)
class Kept:
    """The first part that stays, and why. All later parts stay too."""

    first_position: int
    end_position: int
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did; ``kept`` is None if the log has no further part."""

    archived: tuple[Archived, ...]
    kept: Kept | None


def archive(
    storage: PostgresStorage,
    before: datetime,
    folder: Path | str,
    *,
    drop: bool = False,
    patience_s: float = 10,
) -> Outcome:
    """Archive every closed part of the log whose events were all recorded before a moment.

    Leasing continues meanwhile. Leases that ended in these parts are pruned from the
    read model. Parts that a subscription has not read yet stay.

    Parameters
    ----------
    storage:
        The ledger. Its role must own the tables.
    before:
        The moment, with a time zone. Events of the last minute always stay.
    folder:
        Where to write the files. Existing files are never overwritten.
    drop:
        Drop the tables of archived parts from the database, also those of earlier
        runs, each after its file has been compared again.
    patience_s:
        How many seconds to wait for a transaction that may still append to a
        part, and for another run.

    Raises
    ------
    InvalidInputError
        If the moment has no time zone or is in the future.
    ArchiveFileError
        If the folder cannot be written, a file of another log is in the way,
        or a file differs from the log when it is read back. No part has left the
        database without a verified file.
    ConflictError
        If another process is archiving the same ledger.
    """
    check_aware(before)
    storage.seal()
    with storage._driver.connection() as connection:
        archiving = _Archiving(storage, Parts(connection, storage.schema), Path(folder).absolute())
        with maintenance_lock(connection, storage.schema, patience_s):
            return archiving.run(before, drop=drop, patience_s=patience_s)


class _Archiving:
    """One archiving run over one ledger."""

    def __init__(self, storage: PostgresStorage, parts: Parts, folder: Path) -> None:
        self._storage = storage
        self._parts = parts
        self._folder = folder

    def run(self, before: datetime, *, drop: bool, patience_s: float) -> Outcome:
        # The order makes every step repeatable: files are compared before a part is listed,
        # and it is listed before its tables are detached.
        now = self._parts.clock()
        if before > now + _SKEW:
            raise InvalidInputError(f"{before.isoformat()} is in the future", value=before)
        listed = self._parts.listed()
        self._detach([part for part in listed if part.archive], patience_s)
        leaving, kept = self._choose(listed, min(before, now - _SETTLED), patience_s)
        if leaving:
            self._complete_tick()
        for part, contents in leaving.items():
            self._write(part, contents)
        if leaving:
            self._prepare(leaving)
            self._record(leaving)
            self._detach(list(leaving), patience_s)
        if drop:
            self._drop([part for part in self._parts.listed() if part.archive])
        return Outcome(
            tuple(
                Archived(*part[:2], contents.first_seq, contents.last_seq, self._files(part).events)
                for part, contents in leaving.items()
            ),
            kept,
        )

    def _choose(
        self, listed: list[Part], before: datetime, patience_s: float
    ) -> tuple[dict[Part, Contents], Kept | None]:
        """Return the parts that can leave, oldest first, and the first one that cannot."""
        handed_out = self._parts.handed_out()
        appending = self._parts.outlast_appenders(patience_s)
        # Seal after the appenders have ended: all events of closed parts are visible now.
        self._storage.seal()
        leaving: dict[Part, Contents] = {}
        for part in listed:
            if part.archive:
                continue
            if reason := _why_open(part, handed_out, appending):
                return leaving, Kept(part.first, part.end, reason)
            contents = self._contents(part)
            if reason := _why_recent(contents, before) or self._why_unread(contents):
                return leaving, Kept(part.first, part.end, reason)
            leaving[part] = contents
        return leaving, None

    def _contents(self, part: Part) -> Contents:
        with self._storage.session() as session:
            statement = archive_statements.contents(self._storage.schema, part)
            return Contents(**session.rows(statement)[0])

    def _why_unread(self, contents: Contents) -> str | None:
        with self._storage.session() as session:
            rows = session.rows(archive_statements.slowest_subscription(self._storage.schema))
        if not rows or rows[0]["seq"] >= (contents.last_seq or 0):
            return None
        return f"subscription {rows[0]['name']!r} has not read it yet"

    def _complete_tick(self) -> None:
        """Complete the last tick, so that no archived tick grows later."""
        with self._storage.session() as session:
            session.run(archive_statements.complete_tick(self._storage.schema))

    def _write(self, part: Part, contents: Contents) -> None:
        """Write the files of a part unless they exist, and compare them with the log."""
        files = self._files(part)
        for path, schema, rows in (
            (files.ticks, TICKS, self._ticks(part, contents)),
            (files.events, EVENTS, self._events(part)),
        ):
            if not path.exists():
                archive_files.write(path, schema, rows)
        _compare(files.ticks, self._ticks(part, contents), archive_files.read(files.ticks, TICKS))
        self._compare_events(part, files)

    def _compare_events(self, part: Part, files: Files) -> None:
        _compare(files.events, self._events(part), _authentic(files.events))

    def _events(self, part: Part) -> Rows:
        with self._storage.session() as session:
            yield from session.stream(archive_statements.part_events(self._storage.schema, part))

    def _ticks(self, part: Part, contents: Contents) -> Rows:
        with self._storage.session() as session:
            yield from session.stream(
                archive_statements.part_ticks(self._storage.schema, part),
                first_seq=contents.first_seq,
                last_seq=contents.last_seq,
            )

    def _prepare(self, leaving: dict[Part, Contents]) -> None:
        """Keep the tree, prune leases and take a snapshot: nothing needs these events then."""
        last = max(c.last_seq or 0 for c in leaving.values())
        with self._storage.session() as session:
            query = tree.keep(self._storage.schema, last)
            session.rows(query.statement, **query.values)
        settled = [c.settled_at for c in leaving.values() if c.settled_at is not None]
        if settled:
            self._storage.prune_leases(max(settled) + timedelta(microseconds=1))
            with self._storage.session() as session:
                base = snapshots.archived_upto(session, self._storage.schema)
            self._storage.take_snapshot(max(base, last))

    def _record(self, leaving: dict[Part, Contents]) -> None:
        """List the parts as archived, all at once: the snapshot is after the last of them."""
        statement = archive_statements.record(self._storage.schema)
        with self._storage.session() as session:
            for part, contents in leaving.items():
                session.run(
                    statement,
                    first_position=part.first,
                    first_seq=contents.first_seq,
                    last_seq=contents.last_seq,
                    first_recorded_at=contents.first_recorded_at,
                    last_recorded_at=contents.last_recorded_at,
                    archive=str(self._files(part).events),
                )

    def _detach(self, parts: list[Part], patience_s: float) -> None:
        for part in parts:
            if self._parts.is_attached(part):
                self._parts.detach(part, patience_s)

    def _drop(self, parts: list[Part]) -> None:
        for part in parts:
            if self._parts.has_events(part):
                self._compare_events(part, self._files(part))
            if self._parts.is_kept(part):
                self._parts.drop(part)

    def _files(self, part: Part) -> Files:
        """Return the files of a part: where they are, or where to write them."""
        folder = self._folder if part.archive is None else Path(part.archive).parents[1]
        return files_in(folder, part.first, part.end)


def _why_open(part: Part, handed_out: int, appending: int | None) -> str | None:
    if part.end > handed_out:
        return "it is not full yet"
    if appending is not None:
        return f"the transaction of process {appending} may still append to it"
    return None


def _why_recent(contents: Contents, before: datetime) -> str | None:
    if contents.unsealed:
        return f"{contents.unsealed} of its events are not sealed yet"
    if contents.settled_at is not None and contents.settled_at >= before:
        return f"its last event is of {contents.settled_at.astimezone(UTC).isoformat()}"
    return None


def _authentic(path: Path) -> Rows:
    """Yield the rows of a file of events, each checked against its sealed digest."""
    for row in archive_files.read(path, EVENTS):
        if digest(row) != row["digest"]:
            raise ArchiveFileError(
                f"event {row['seq']} in {path} differs from its seal; `pharox verify` shows "
                "whether the log was changed",
                path=str(path),
                seq=row["seq"],
            )
        yield row


def _compare(path: Path, log: Rows, kept: Rows) -> None:
    with closing(log), closing(kept):
        differs = any(ours != theirs for ours, theirs in zip_longest(log, kept))
    if differs:
        raise ArchiveFileError(
            f"{path} exists and does not hold this part of the log; give another folder, or move "
            "the file",
            path=str(path),
        )
