"""Archived events are read from their files, and never silently left out."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharox import ProxyManager
from pharox.errors import ArchivedError, ArchiveFileError
from pharox.events import Event
from pharox.ledger.archive import archive
from pharox.ledger.archive import reading as archived
from pharox.ledger.archive.reading import WithArchive
from pharox.log import Extract
from pharox.storage.postgres import PostgresStorage
from tests.conftest import clock_of

from .full_parts import full_parts, small_parts
from .lives import COMMANDS, Command, Life

PICK = st.integers(0, 10**6)


def extract_of(events: list[Event], wanted: set[str], pick: int) -> Extract:
    """Return the extract of all that some event of the log has, by the names in ``wanted``."""
    event = events[pick % len(events)]
    facts: dict[str, object] = {
        "after": event.seq // 2,
        "upto": event.seq + pick % 50,
        "types": {event.type, "LeaseAcquired"},
        "pool_id": event.pool_id,
        "proxy_id": event.proxy_id,
        "lease_id": event.lease_id,
        "consumer": event.consumer,
        "target": getattr(event, "target", None),
        "since": event.recorded_at,
        "until": event.recorded_at + timedelta(seconds=pick % 100),
    }
    return Extract(**{name: facts[name] for name in wanted})  # type: ignore[arg-type]


def test_joined_they_are_the_log(postgres: PostgresStorage, tmp_path: Path) -> None:
    """Any extract, moment and state is what it was before a part of the log left."""
    small_parts(postgres)
    clock = clock_of(postgres)
    joined = WithArchive(postgres, tmp_path)

    @given(
        commands=COMMANDS,
        wanted=st.lists(st.sets(st.sampled_from(Extract._fields), max_size=3), max_size=4),
        pick=PICK,
    )
    @settings(max_examples=12)
    def check(commands: list[Command], wanted: list[set[str]], pick: int) -> None:
        Life(postgres, clock).lead(commands)
        clock.advance(120)
        events = list(joined.events())
        seq = pick % len(events)
        extracts = [extract_of(events, names, pick)._replace(upto=len(events)) for names in wanted]
        before = [list(joined.history(extract)) for extract in extracts]
        state, places = joined.state_at(seq), [joined.seq_at(e.recorded_at) for e in events[-5:]]
        archive(postgres, clock.now, tmp_path, drop=bool(pick % 2))
        assert list(islice(joined.events(), len(events))) == events
        assert [list(joined.history(extract)) for extract in extracts] == before
        assert joined.state_at(seq) == state
        assert [joined.seq_at(e.recorded_at) for e in events[-5:]] == places
        assert postgres.verify() == []

    check()


class TestFolder:
    """The files alone."""

    def test_they_hold_what_left(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """A folder yields its events in order; an awkward name is no pattern."""
        clock = full_parts(postgres)
        before = list(postgres.events())
        folder = tmp_path / "a [1]* folder?"
        outcome = archive(postgres, clock.now, folder)
        last = outcome.archived[-1].last_seq
        assert last is not None
        assert list(archived.history(folder, Extract())) == before[:last]
        assert list(archived.history([outcome.archived[1].file], Extract())) == [
            event for event in before if 20 <= event.position < 40
        ]

    @pytest.mark.parametrize("given", Extract._fields)
    def test_each_condition_means_the_same(
        self, postgres: PostgresStorage, tmp_path: Path, given: str
    ) -> None:
        """An extract finds in the files what it finds in the log."""
        clock = full_parts(postgres)
        events = list(postgres.events())
        events = events[: archive(postgres, clock.now, tmp_path).archived[-1].last_seq]
        for event in events[5:40:5]:
            extract = extract_of([event], {given}, 7)
            found = list(archived.history(tmp_path, extract))
            held = [event for event in events if extract.holds(event)]
            assert found == [extract.part(event) for event in held]

    def test_a_broken_file_is_told(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """It is no traceback of the library's."""
        outcome = archive(postgres, full_parts(postgres).now, tmp_path)
        outcome.archived[0].file.write_bytes(b"PAR1 no longer PAR1")
        with pytest.raises(ArchiveFileError, match="cannot be read"):
            list(archived.history(tmp_path, Extract()))

    def test_an_empty_folder_is_told(self, tmp_path: Path) -> None:
        """As is one that is not there."""
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(ArchiveFileError):
                list(archived.history(folder, Extract()))


class TestWithoutArchive:
    """What the ledger says to who does not read the archive along."""

    @pytest.fixture
    def last(self, postgres: PostgresStorage, tmp_path: Path) -> tuple[int, datetime]:
        """Archive the beginning of a log; return the last of its seqs and moments."""
        clock = full_parts(postgres)
        events = list(postgres.events())
        seq = archive(postgres, clock.now, tmp_path).archived[-1].last_seq
        assert seq is not None
        return seq, max(event.recorded_at for event in events[:seq])

    def test_there_is_no_silent_beginning(
        self, postgres: PostgresStorage, last: tuple[int, datetime]
    ) -> None:
        """A query that needs an archived event gets an error that says where it is."""
        seq, moment = last
        for ask in (
            lambda: list(postgres.events()),
            lambda: list(postgres.events(after=seq - 1)),
            lambda: list(postgres.history(Extract(types=["PoolRegistered"]))),
            lambda: list(postgres.history(Extract(consumer="worker-1"))),
            lambda: list(postgres.history(Extract(since=moment))),
            lambda: list(islice(postgres.follow(0), 1)),
            lambda: postgres.seq_at(moment - timedelta(seconds=1)),
            lambda: postgres.state_at(seq - 1),
        ):
            with pytest.raises(ArchivedError, match="are archived in") as error:
                ask()
            assert error.value.data["last_seq"] == seq
            assert error.value.data["last_recorded_at"] == moment

    def test_what_came_later_is_there(
        self, postgres: PostgresStorage, last: tuple[int, datetime]
    ) -> None:
        """From the end of the archive on, by seq or by moment, all is as ever."""
        seq, moment = last
        after = list(postgres.events(after=seq))
        assert [event.seq for event in after] == list(range(seq + 1, postgres.seal() + 1))
        later = Extract(since=moment + timedelta(microseconds=1))
        assert list(postgres.history(later)) == after
        assert next(iter(postgres.follow(seq))) == after[0]
        assert postgres.seq_at(moment) == seq
        assert postgres.state_at(seq).keys() == postgres.state_at(seq + 1).keys()

    def test_a_lease_is_whole_if_its_beginning_is_there(
        self, postgres: PostgresStorage, last: tuple[int, datetime]
    ) -> None:
        """A lease of after the archive can be asked for, one that began before it cannot."""
        seq, _ = last
        lease = ProxyManager(postgres).acquire_proxy("pool")
        assert lease is not None
        (acquired,) = postgres.history(Extract(lease_id=lease.id))
        assert acquired.type == "LeaseAcquired"
        ended = next(e for e in postgres.events(after=seq) if e.type == "LeaseReleased")
        for unknown in (ended.lease_id, UUID(int=1)):
            if unknown not in {e.lease_id for e in postgres.events(after=seq) if e != ended}:
                with pytest.raises(ArchivedError):
                    list(postgres.history(Extract(lease_id=unknown)))

    def test_a_moved_archive_is_looked_for(
        self, postgres: PostgresStorage, tmp_path: Path, last: tuple[int, datetime]
    ) -> None:
        """An archive may be moved; where it is not, the error says where it was."""
        moved = tmp_path / "moved"
        with pytest.raises(ArchiveFileError, match="there is no folder"):
            WithArchive(postgres, moved)
        moved.mkdir()
        with pytest.raises(ArchivedError, match="has no such file"):
            list(WithArchive(postgres, moved).events())
        for name in ("events", "ticks"):
            (tmp_path / name).rename(moved / name)
        assert len(list(WithArchive(postgres, tmp_path, moved).events())) == postgres.seal()
        assert last
