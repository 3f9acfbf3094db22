"""Old parts of the log leave as files, oldest first, while leasing goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pharox import ProxyManager
from pharox.errors import ArchivedError, ArchiveFileError, ConflictError, InvalidInputError
from pharox.events import Event
from pharox.ledger.archive import Outcome, archive, check
from pharox.ledger.archive import files as archive_files
from pharox.ledger.archive.reading import WithArchive
from pharox.ledger.rebuild import rebuild
from pharox.models.ids import NIL
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, clock_of, fill, run_sql, threads

from .full_parts import attached_to, full_parts, lease_often, small_parts, tables_of

LATE_EVENT = (
    "INSERT INTO pharox.events "
    "(recorded_at, schema_version, type, pool_id, consumer, consumer_id) VALUES "
    f"(pharox.clock(), 1, 'ConsumerRegistered', '{NIL}', %s, gen_random_uuid())"
)


def check_dense(events: Iterable[Event]) -> int:
    """Check that no event is missing from the first one on; return how many there are."""
    seqs = [event.seq for event in events]
    assert seqs == list(range(1, len(seqs) + 1))
    return len(seqs)


def last_seqs(outcome: Outcome) -> list[int | None]:
    return [part.last_seq for part in outcome.archived]


@contextmanager
def connected(storage: PostgresStorage) -> Iterator[psycopg.Connection[Any]]:
    """A connection of our own, which is left in a transaction until the block ends."""
    url = storage.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        yield connection


class TestArchive:
    """What leaves, and what is as before when it has left."""

    def test_full_parts_leave_oldest_first(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """Each full part is a file; the one that is being filled stays, and says so."""
        clock = full_parts(postgres)
        outcome = archive(postgres, clock.now, tmp_path)
        assert [(part.first_position, part.end_position) for part in outcome.archived] == [
            (0, 20),
            (20, 40),
            (40, 60),
        ]
        assert all(part.file.is_file() for part in outcome.archived)
        assert outcome.kept is not None
        assert (outcome.kept.first_position, outcome.kept.reason) == (60, "it is not full yet")
        assert attached_to(postgres) == {"events_60", "seals_60"}
        assert check(tmp_path).differences == []

    def test_what_is_left_behind_stays_until_it_is_dropped(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """Detached tables are kept and still refuse changes; a later run drops them."""
        clock = full_parts(postgres)
        before = tables_of(postgres)
        archive(postgres, clock.now, tmp_path)
        assert tables_of(postgres) == before
        with pytest.raises(psycopg.Error, match="append-only"):
            run_sql(postgres.engine, "DELETE FROM pharox.events_0")
        assert archive(postgres, clock.now, tmp_path, drop=True).archived == ()
        assert tables_of(postgres) == attached_to(postgres) == {"events_60", "seals_60"}

    def test_the_ledger_is_as_before(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """What stands is the same, nothing drifts, and the log goes on in order and sealed."""
        clock = full_parts(postgres)
        held = ProxyManager(postgres).acquire_proxy("pool", duration_seconds=86400)
        assert held is not None
        stats, proxies = postgres.list_pool_stats(), postgres.list_proxies(str(held.pool_id))
        outcome = archive(postgres, clock.now, tmp_path, drop=True)
        assert postgres.list_proxies(str(held.pool_id)) == proxies
        assert [(s.pool_name, s.leased_proxies, s.total_leases) for s in stats] == [
            (s.pool_name, s.leased_proxies, s.total_leases) for s in postgres.list_pool_stats()
        ]
        assert [lease.id for lease in postgres.list_leases() if lease.status == "active"] == [
            held.id
        ]
        assert postgres.verify() == []
        rebuild(postgres)
        lease_often(postgres, clock, 10)
        last = last_seqs(outcome)[-1]
        assert last is not None
        seqs = [event.seq for event in postgres.events(after=last)]
        assert seqs == list(range(last + 1, postgres.seal() + 1))
        assert postgres.verify() == []

    def test_later_parts_follow(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """A second run goes on where the first ended; together they are one archive."""
        clock = full_parts(postgres)
        first = archive(postgres, clock.now, tmp_path, drop=True)
        lease_often(postgres, clock, 20)
        clock.advance(3600)
        second = archive(postgres, clock.now, tmp_path, drop=True)
        assert first.archived[-1].end_position == second.archived[0].first_position
        assert check(tmp_path).differences == []
        assert postgres.verify() == []
        assert check_dense(WithArchive(postgres, tmp_path).events()) == postgres.seal()

    def test_ended_leases_are_pruned_with_their_events(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """The read model keeps no lease whose end is archived, and the log says so."""
        clock = full_parts(postgres)
        archive(postgres, clock.now, tmp_path)
        (limit,) = run_sql(postgres.engine, "SELECT max(last_recorded_at) FROM pharox.partitions")
        ends = [lease.released_at for lease in postgres.list_leases() if lease.released_at]
        assert ends
        assert min(ends) > limit[0]  # type: ignore[operator]
        assert "LeasesPruned" in {event.type for event in postgres.events(after=59)}

    def test_a_part_without_events_leaves_too(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """Positions that nobody used make an empty file, which holds nothing up."""
        clock = full_parts(postgres)
        run_sql(postgres.engine, "SELECT setval('pharox.events_position_seq', 130)")
        lease_often(postgres, clock, 8)
        clock.advance(3600)
        outcome = archive(postgres, clock.now, tmp_path)
        assert None in last_seqs(outcome)
        assert outcome.archived[-1].end_position == 140
        assert check(tmp_path).differences == []
        assert len(list(WithArchive(postgres, tmp_path).events())) == postgres.seal()

    def test_leasing_goes_on(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """No worker sees an error, no reader misses an event, and nothing drifts."""
        small_parts(postgres)
        clock = clock_of(postgres)
        fill(postgres, 8)
        manager, enough = ProxyManager(postgres), threading.Event()
        joined = WithArchive(postgres, tmp_path)

        def work(number: int) -> None:
            if number == 0:
                archive_until_enough()
            while number == 1 and not enough.wait(0.1):  # A part leaves when nobody reads it.
                read()
            while not enough.is_set():
                lease = manager.acquire_proxy("pool", consumer_name=f"worker-{number}")
                if lease is not None:
                    manager.release_proxy(lease)

        def read() -> None:
            check_dense(joined.events())
            with suppress(ArchivedError):
                check_dense(postgres.events())

        def archive_until_enough() -> None:
            archived = 0
            try:
                while archived < 8:
                    clock.advance(61)
                    # A reader takes as long as a busy machine lets it.
                    run = archive(postgres, clock.now, tmp_path, drop=True, patience_s=120)
                    archived += len(run.archived)
            finally:
                enough.set()

        threads(6, work)
        assert check(tmp_path).differences == []
        assert postgres.verify() == []
        assert check_dense(joined.events()) == postgres.seal()


class TestWhatStays:
    """Nothing leaves that could still change, or that was not asked for."""

    def test_later_events(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """A part with one event of the moment or later stays, and what follows it."""
        full_parts(postgres)
        moment = max(event.recorded_at for event in postgres.events() if event.position < 40)
        outcome = archive(postgres, moment, tmp_path)
        assert [part.end_position for part in outcome.archived] == [20]
        assert outcome.kept is not None
        assert "its last event is of" in outcome.kept.reason
        assert len(archive(postgres, moment + timedelta(seconds=1), tmp_path).archived) == 1

    def test_the_last_minute(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """What was recorded a moment ago stays, whatever is asked."""
        clock = full_parts(postgres)
        lease_often(postgres, clock, 15)
        assert len(archive(postgres, clock.now, tmp_path).archived) == 3

    def test_what_somebody_may_still_append_to(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """With an appender still running nothing is closed; its event comes along later."""
        clock = full_parts(postgres, leases=4)
        with connected(postgres) as slow:
            slow.execute(LATE_EVENT, ["late"])
            lease_often(postgres, clock, 30)
            clock.advance(3600)
            outcome = archive(postgres, clock.now, tmp_path, patience_s=0)
            assert outcome.archived == ()
            assert outcome.kept is not None
            assert outcome.kept.first_position == 0
            assert f"process {slow.info.backend_pid} may still append" in outcome.kept.reason
        outcome = archive(postgres, clock.now, tmp_path)
        assert outcome.archived
        events = list(WithArchive(postgres, tmp_path).events())
        assert "late" in {event.consumer for event in events}

    def test_what_is_not_full(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """A part that is being filled stays for that reason, whoever appends to it."""
        clock = full_parts(postgres, leases=2)
        with connected(postgres) as slow:
            slow.execute(LATE_EVENT, ["late"])
            outcome = archive(postgres, clock.now, tmp_path, patience_s=0)
        assert outcome.kept is not None
        assert outcome.kept.reason == "it is not full yet"

    def test_what_a_subscription_has_still_to_read(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """Parts behind its checkpoint leave, but for those in which it has parked events."""
        clock = full_parts(postgres)
        run_sql(postgres.engine, "INSERT INTO pharox.subscriptions VALUES ('mail', 45, 1)")
        park = (
            "INSERT INTO pharox.parked_events (subscription, seq, key, attempts, parked_at) "
            "VALUES ('mail', 25, 'key', 3, now())"
        )
        run_sql(postgres.engine, park)
        for end, change in (
            (20, "DELETE FROM pharox.parked_events"),
            (40, "UPDATE pharox.subscriptions SET checkpoint = 57"),
        ):
            outcome = archive(postgres, clock.now, tmp_path)
            assert [part.end_position for part in outcome.archived] == [end]
            assert outcome.kept is not None
            assert outcome.kept.reason == "subscription 'mail' has not read it yet"
            run_sql(postgres.engine, change)
        assert len(archive(postgres, clock.now, tmp_path).archived) == 1

    def test_readers_and_other_writers_do_not_matter(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """A transaction that writes elsewhere makes nothing wait."""
        clock = full_parts(postgres)
        with connected(postgres) as other:
            other.execute("CREATE TABLE pharox.elsewhere (id int)")
            assert len(archive(postgres, clock.now, tmp_path, patience_s=0).archived) == 3

    def test_an_append_to_what_has_left_fails(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """It is refused loudly, not lost."""
        archive(postgres, full_parts(postgres).now, tmp_path)
        late = (
            "INSERT INTO pharox.events "
            "(position, recorded_at, schema_version, type, pool_id, data) "
            f"VALUES (5, now(), 1, 'PoolRemoved', '{NIL}', '{{\"name\": \"x\"}}')"
        )
        with pytest.raises(psycopg.errors.CheckViolation, match="no partition"):
            run_sql(postgres.engine, late)


def after_the_late_one(events: Sequence[Event]) -> datetime:
    """Return a moment by which all was recorded that was sealed up to the late event."""
    late = next(event.seq for event in events if event.consumer == "late")
    return max(event.recorded_at for event in events[:late]) + timedelta(microseconds=1)


class TestStragglers:
    """An event can be sealed long after its neighbours; then parts overlap in the order."""

    @pytest.fixture
    def overlapping(self, postgres: PostgresStorage) -> PostgresStorage:
        """A ledger in which an event of the first part is sealed among those of the third."""
        clock = full_parts(postgres, leases=2)
        with connected(postgres) as slow:
            slow.execute(LATE_EVENT, ["late"])
            lease_often(postgres, clock, 20)
        lease_often(postgres, clock, 20)
        clock.advance(3600)
        return postgres

    def test_joined_they_are_in_order(self, overlapping: PostgresStorage, tmp_path: Path) -> None:
        """With the rest of the log, and file by file, the order is the sealed one."""
        before = list(overlapping.events())
        assert [event.seq for event in before] == list(range(1, len(before) + 1))
        assert sorted(before, key=lambda event: event.position) != before
        for moment in (after_the_late_one(before), before[-1].recorded_at):
            outcome = archive(overlapping, moment, tmp_path, drop=True)
            assert outcome.archived
            joined = WithArchive(overlapping, tmp_path)
            assert [event for event in joined.events() if event.seq <= len(before)] == before
            assert check(tmp_path).differences == []

    def test_parts_in_different_folders_check_together(
        self, overlapping: PostgresStorage, tmp_path: Path
    ) -> None:
        """A tick that covers two parts is with the first; alone, the second misses it."""
        before = list(overlapping.events())
        one, two = tmp_path / "one", tmp_path / "two"
        archive(overlapping, after_the_late_one(before), one)
        archive(overlapping, before[-1].recorded_at, two)
        assert check(one, two).differences == []
        assert any("is in no tick" in sentence for sentence in check(two).differences)
        joined = WithArchive(overlapping, one, two).events()
        assert [event for event in joined if event.seq <= len(before)] == before


KILLED = """
import os, signal, sys
from datetime import datetime
from pharox import connect
from pharox.ledger.archive import archive

name, event, times = sys.argv[3], sys.argv[4], int(sys.argv[5])

def watch(frame, what, _):
    global times
    if frame.f_code.co_name == name and what == event and "archive" in frame.f_code.co_filename:
        times -= 1
        if times == 0:
            os.kill(os.getpid(), signal.SIGKILL)

storage = connect()
sys.setprofile(watch)
archive(storage, datetime.fromisoformat(sys.argv[1]), sys.argv[2], drop=True)
"""

STEPS = [
    ("write", "call", 1),
    ("write", "return", 1),
    ("write", "return", 2),
    ("_sync_folder", "call", 4),
    ("_prepare", "call", 1),
    ("_record", "call", 1),
    ("_record", "return", 1),
    ("detach", "call", 2),
    ("_pending", "return", 6),
    ("detach", "return", 3),
    ("drop", "call", 1),
    ("drop", "return", 2),
]


class TestKilled:
    """A run that is killed is started again, and the end is as if nothing had been."""

    def start(
        self, postgres: PostgresStorage, moment: datetime, folder: Path, *step: object
    ) -> subprocess.Popen[bytes]:
        url = postgres.engine.url.render_as_string(hide_password=False)
        environment = {
            **os.environ,
            "PHAROX_DATABASE_URL": url,
            "PHAROX_SECRET_KEY": SECRET_KEY,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        arguments = [moment.isoformat(), str(folder), *map(str, step)]
        return subprocess.Popen([sys.executable, "-c", KILLED, *arguments], env=environment)

    @pytest.mark.one_server
    @pytest.mark.parametrize("step", STEPS, ids=lambda step: "-".join(map(str, step)))
    def test_between_two_steps(
        self, postgres: PostgresStorage, tmp_path: Path, step: tuple[object, ...]
    ) -> None:
        """Wherever it was killed, nothing is lost, and the next run completes it."""
        clock = full_parts(postgres)
        before = list(postgres.events())
        run = self.start(postgres, clock.now, tmp_path, *step)
        assert run.wait() == -signal.SIGKILL
        joined = WithArchive(postgres, tmp_path)
        assert [event for event in joined.events() if event.seq <= len(before)] == before
        archive(postgres, clock.now, tmp_path, drop=True)
        assert [event for event in joined.events() if event.seq <= len(before)] == before
        assert tables_of(postgres) == {"events_60", "seals_60"}
        assert check(tmp_path).differences == []
        assert not list(tmp_path.rglob("*.part"))
        assert postgres.verify() == []

    def test_while_a_part_is_on_its_way_out(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """A detach that waits for a reader is interrupted with its server process, then ended."""
        clock = full_parts(postgres)
        before = list(postgres.events())
        with connected(postgres) as reader:
            reader.execute("SELECT count(*) FROM pharox.events")
            run = self.start(postgres, clock.now, tmp_path, "nothing", "call", 1)
            pending = "SELECT count(*) FROM pg_inherits WHERE inhdetachpending"
            while run.poll() is None and run_sql(postgres.engine, pending) == [(0,)]:
                pass
            assert run.poll() is None
            run.kill()
            run.wait()
            run_sql(
                postgres.engine,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'DETACH' "
                "AND datname = current_database() AND pid <> pg_backend_pid()",
            )
        assert run_sql(postgres.engine, pending) == [(1,)]
        archive(postgres, clock.now, tmp_path, drop=True)
        assert tables_of(postgres) == {"events_60", "seals_60"}
        joined = WithArchive(postgres, tmp_path).events()
        assert [event for event in joined if event.seq <= len(before)] == before


class TestRefusals:
    """What cannot be done safely is refused in a sentence, and nothing leaves."""

    def test_a_moment_that_makes_no_sense(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """It must have a time zone and be over."""
        clock = full_parts(postgres)
        with pytest.raises(InvalidInputError, match="future"):
            archive(postgres, clock.now + timedelta(days=1), tmp_path)
        with pytest.raises(InvalidInputError, match="time zone"):
            archive(postgres, datetime(2026, 1, 1), tmp_path)
        assert not list(tmp_path.iterdir())

    def test_files_of_another_ledger(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """They are not overwritten, and the part stays."""
        clock = full_parts(postgres)
        files = archive_files.files_in(tmp_path, 0, 20)
        archive_files.write(files.ticks, archive_files.TICKS, [])
        archive_files.write(files.events, archive_files.EVENTS, [])
        bytes_before = files.events.read_bytes()
        with pytest.raises(ArchiveFileError, match="exists and does not"):
            archive(postgres, clock.now, tmp_path)
        assert files.events.read_bytes() == bytes_before
        assert "events_0" in attached_to(postgres)

    def test_something_else_in_the_way(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """A file that is not Parquet is an error."""
        clock = full_parts(postgres)
        path = archive_files.files_in(tmp_path, 0, 20).events
        path.parent.mkdir()
        path.write_text("my notes")
        with pytest.raises(ArchiveFileError, match="cannot be read"):
            archive(postgres, clock.now, tmp_path)
        assert path.read_text() == "my notes"

    def test_a_folder_that_cannot_be_written(
        self, postgres: PostgresStorage, tmp_path: Path
    ) -> None:
        """The error has the system's reason."""
        clock = full_parts(postgres)
        (tmp_path / "file").write_text("")
        with pytest.raises(ArchiveFileError, match="Not a directory"):
            archive(postgres, clock.now, tmp_path / "file" / "folder")
        assert "events_0" in attached_to(postgres)

    def test_a_changed_log(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """What is not what was sealed does not leave as if it were."""
        clock = full_parts(postgres)
        for statement in (
            "ALTER TABLE pharox.events_20 DISABLE TRIGGER events_are_append_only",
            "UPDATE pharox.events_20 SET consumer = 'somebody else' WHERE position = 25",
        ):
            run_sql(postgres.engine, statement)
        with pytest.raises(ArchiveFileError, match="differs from its seal"):
            archive(postgres, clock.now, tmp_path)
        assert "events_0" in attached_to(postgres)

    def test_no_drop_without_the_file(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """The last copy of a part is not dropped."""
        clock = full_parts(postgres)
        outcome = archive(postgres, clock.now, tmp_path)
        outcome.archived[0].file.rename(tmp_path / "elsewhere")
        with pytest.raises(ArchiveFileError, match="No such file"):
            archive(postgres, clock.now, tmp_path, drop=True)
        assert "events_0" in tables_of(postgres)

    def test_two_at_once(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """The second process gets an error."""
        clock = full_parts(postgres)
        with connected(postgres) as other:
            other.execute("SELECT pg_advisory_lock(1885890929, hashtext('pharox'))")
            with pytest.raises(ConflictError, match="another process"):
                archive(postgres, clock.now, tmp_path, patience_s=0)

    def test_without_the_extra(
        self, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without pyarrow or DuckDB, the error says what to install."""
        for library, module in (("pyarrow", "files"), ("duckdb", "reading")):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, library, None)
                patch.delitem(sys.modules, f"pharox.ledger.archive.{module}")
                with pytest.raises(ArchiveFileError, match=r"pip install 'pharox\[archive\]'"):
                    __import__(f"pharox.ledger.archive.{module}")


def test_a_part_that_somebody_reads_leaves_with_the_next_run(
    postgres: PostgresStorage, tmp_path: Path
) -> None:
    """The run does not wait for ever, the part stays readable, and the next run takes it out."""
    clock = full_parts(postgres)
    with postgres.engine.connect().execution_options(isolation_level="READ COMMITTED") as reader:
        reader.exec_driver_sql("SELECT count(*) FROM pharox.events")
        with pytest.raises(ConflictError, match="still reads"):
            archive(postgres, clock.now, tmp_path / "archive", patience_s=0.2)
        assert postgres.verify() == []
    archive(postgres, clock.now, tmp_path / "archive")
    assert "events_0" not in attached_to(postgres)
    assert postgres.verify() == []
