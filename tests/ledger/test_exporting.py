"""Events as CloudEvents: what a line says, and where it goes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox import InMemoryStorage, IStorage, ProxyManager, Subscription, attributed
from pharox.errors import ArchivedError, ConflictError, InvalidInputError
from pharox.events import Event
from pharox.ledger.exporting import (
    Exporter,
    LineFile,
    LinePipe,
    cloud_event,
    ledger_source,
    line_of,
)
from pharox.ledger.exporting.outputs import StalledError
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage, fill
from tests.ledger.following import status_of, until
from tests.ledger.full_parts import full_parts
from tests.test_event_versions import FILES, read

SOURCE = "/pharox/tests"


def lease_once(storage: IStorage) -> None:
    """Make events with and without a pool, a proxy, a lease and a job."""
    fill(storage, 2, name="pool")
    manager = ProxyManager(storage)
    with attributed(actor="ana", correlation_id="job\t7"), manager.with_lease("pool", "crawler"):
        pass
    manager.acquire_proxy("nowhere")


def written(path: Path) -> list[dict[str, Any]]:
    """Return the CloudEvents of a file whose lines are all whole."""
    content = path.read_bytes()
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.splitlines()]


def seqs(path: Path) -> list[int]:
    return [int(each["id"]) for each in written(path)]


def check_conforms(found: dict[str, Any]) -> None:
    """Assert what CloudEvents 1.0 demands of attributes in JSON."""
    attributes = {name: value for name, value in found.items() if name != "data"}
    assert {"specversion", "id", "source", "type"} <= attributes.keys()
    for name, value in attributes.items():
        assert re.fullmatch("[a-z0-9]{1,20}", name)
        assert isinstance(value, str)
        assert value
        assert value.isprintable()
    assert attributes["specversion"] == "1.0"
    assert datetime.fromisoformat(attributes["time"]).tzinfo is not None
    assert attributes["datacontenttype"] == "application/json"


class TestCloudEvent:
    def test_every_type_of_event_conforms(self) -> None:
        """Attributes are as the specification has them, and the data is the whole event."""
        for file in FILES:
            event = read(json.loads(file.read_text()))
            found = json.loads(line_of(event, SOURCE))
            check_conforms(found)
            assert found["type"] == f"pharox.{event.type}"
            assert found["data"] == event.model_dump(mode="json")

    def test_it_says_whom_an_event_is_about(self, any_storage: AnyStorage) -> None:
        """Subject, partition key and job are those of the event, in memory and in PostgreSQL."""
        lease_once(any_storage)
        events = list(any_storage.events())
        found = [cloud_event(event, SOURCE) for event in events]
        for each in found:
            check_conforms(each)
        assert [each["id"] for each in found] == [str(n + 1) for n in range(len(events))]
        released = next(each for each in found if each["type"] == "pharox.LeaseReleased")
        event = next(event for event in events if event.type == "LeaseReleased")
        pool = f"pools/{event.pool_id}"
        assert released["subject"] == f"{pool}/proxies/{event.proxy_id}/leases/{event.lease_id}"
        assert released["partitionkey"] == str(event.proxy_id)
        assert released["correlationid"] == "job\\t7"
        assert released["data"]["correlation_id"] == "job\t7"
        unknown = next(each for each in found if each["data"].get("reason") == "unknown_pool")
        assert unknown.keys().isdisjoint({"subject", "correlationid"})

    @given(a=st.integers(1, 2**63 - 1), b=st.integers(1, 2**63 - 1))
    def test_sequences_sort_as_seqs_do(self, a: int, b: int) -> None:
        """As the extension demands: as strings, though they are numbers."""
        event = read(json.loads(FILES[0].read_text()))
        first, second = (
            cloud_event(event.model_copy(update={"seq": seq}), SOURCE)["sequence"] for seq in (a, b)
        )
        assert (first < second) == (a < b)

    def test_ledgers_have_sources_of_their_own(self, postgres: PostgresStorage) -> None:
        """A source names the cluster, the database and the schema, and is the same each time."""
        other = PostgresStorage(postgres.engine, schema="a ledger")
        found = ledger_source(postgres)
        assert re.fullmatch(r"/pharox/[0-9]{10,20}/[a-z0-9_]+/pharox", found)
        assert ledger_source(other) == found.removesuffix("pharox") + "a%20ledger"
        with pytest.raises(InvalidInputError, match="in PostgreSQL"):
            ledger_source(InMemoryStorage())
        with pytest.raises(InvalidInputError, match="is not a URI"):
            Exporter(postgres, LinePipe(1), source="two words")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


LINES = [line_of(read(json.loads(file.read_text())), SOURCE) for file in FILES[:3]]


class TestLineFile:
    @given(at=st.integers(0, sum(map(len, LINES))), zeros=st.integers(0, 5000))
    def test_half_a_line_is_cut_and_whole_ones_stay(
        self, tmp_path_factory: pytest.TempPathFactory, at: int, zeros: int
    ) -> None:
        """Wherever a write was cut off, and if zeros follow, as after a power failure."""
        file = tmp_path_factory.mktemp("cut") / "events.jsonl"
        begun = b"".join(LINES)[:at]
        whole = begun[: begun.rfind(b"\n") + 1]
        file.write_bytes(begun + b"\0" * zeros)
        with closing(LineFile(file)) as output:
            assert output.cut_bytes == len(begun) - len(whole) + zeros
            output.write(LINES[:1])
        assert file.read_bytes() == whole + LINES[0]

    def test_a_long_half_line_is_found(self, file: Path) -> None:
        """It may be longer than what is read at once."""
        file.write_bytes(LINES[0] + LINES[1][:-1] + b"x" * 200_000)
        LineFile(file).close()
        assert file.read_bytes() == LINES[0]

    def test_what_no_export_wrote_is_left_alone(self, file: Path) -> None:
        """Of a file of another kind nothing is cut off."""
        file.write_text('{"specversion": "1.0"}\nnotes of mine')
        with pytest.raises(InvalidInputError, match="not of an export"):
            LineFile(file)
        assert file.read_text().endswith("notes of mine")

    def test_one_process_writes_a_file(self, file: Path, tmp_path: Path) -> None:
        """Another one is refused, until the first has closed it; so is what is no file."""
        with closing(LineFile(file)), pytest.raises(ConflictError, match="another process"):
            LineFile(file)
        LineFile(file).close()
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(InvalidInputError, match="not a regular file"):
            LineFile(tmp_path / "fifo")
        with pytest.raises(IsADirectoryError):
            LineFile(tmp_path)

    def test_a_file_that_was_moved_is_begun_anew(self, file: Path, tmp_path: Path) -> None:
        """As logrotate moves them: what is written then goes into a new file of the name."""
        with closing(LineFile(file)) as output:
            output.write(LINES[:1])
            file.rename(tmp_path / "moved")
            output.write(LINES[1:])
        assert (tmp_path / "moved").read_bytes() == LINES[0]
        assert file.read_bytes() == b"".join(LINES[1:])

    def test_no_descriptor_but_its_own_is_closed(self, file: Path, tmp_path: Path) -> None:
        """If the new file cannot be opened, the next write tries again, and others' files live."""
        with closing(LineFile(file)) as output:
            file.rename(tmp_path / "moved")
            file.write_text("notes of mine")
            before = set(os.listdir("/proc/self/fd"))
            with pytest.raises(InvalidInputError, match="not of an export"):
                output.write(LINES[:1])
            with (tmp_path / "other").open("w") as other:
                with pytest.raises(InvalidInputError, match="not of an export"):
                    output.write(LINES[:1])
                other.write("still open")
            assert set(os.listdir("/proc/self/fd")) == before
            file.unlink()
            output.write(LINES)
            output.close()
        assert file.read_bytes() == b"".join(LINES)

    def test_of_a_failed_write_nothing_stays(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that is full in the middle of a line leaves whole lines."""
        write = os.write

        def half(descriptor: int, content: bytes) -> int:
            if len(content) < len(LINES[1]):
                raise OSError(28, "No space left on device")
            return write(descriptor, content[: len(content) // 2])

        with closing(LineFile(file)) as output:
            output.write(LINES[:1])
            monkeypatch.setattr(os, "write", half)
            with pytest.raises(OSError, match="No space left"):
                output.write(LINES[1:])
        assert file.read_bytes() == LINES[0]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pipe; the test may have closed the first."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


class TestExporter:
    def test_it_goes_on_where_it_was(self, postgres: PostgresStorage, file: Path) -> None:
        """Each event is in the file once, in order, whether one or several exports wrote it."""
        for change in (lease_once, lambda storage: storage.ensure_consumer("new")):
            change(postgres)
            with closing(LineFile(file)) as output:
                Exporter(postgres, output).run(follow=False)
            events = list(postgres.events())
            assert [each["data"] for each in written(file)] == [
                event.model_dump(mode="json") for event in events
            ]
        with closing(LineFile(file)) as output:
            exporter = Exporter(postgres, output)
            exporter.begin_again()
            exporter.run(follow=False)
        assert seqs(file) == 2 * [event.seq for event in events]

    def test_it_writes_what_was_asked_for(self, postgres: PostgresStorage, file: Path) -> None:
        """Types, a pool and a start select, and the rest is passed over."""
        lease_once(postgres)
        fill(postgres, 1, name="other")
        with closing(LineFile(file)) as output:
            Exporter(postgres, output, pool="other").run(follow=False)
            Exporter(postgres, output, types=["LeaseAcquired"], name="b").run(follow=False)
            Exporter(postgres, output, start="now", name="c").run(follow=False)
        assert [each["type"] for each in written(file)] == [
            "pharox.PoolRegistered",
            "pharox.ProxyRegistered",
            "pharox.LeaseAcquired",
        ]

    def test_a_file_of_others_ends_it(
        self, postgres: PostgresStorage, file: Path, tmp_path: Path
    ) -> None:
        """A file that took the place of the export is told at once; trying again mends nothing."""
        lease_once(postgres)
        with closing(LineFile(file)) as output:
            file.rename(tmp_path / "moved")
            file.write_text("notes of mine")
            with pytest.raises(InvalidInputError, match="not of an export"):
                Exporter(postgres, output).run()
        assert file.read_text() == "notes of mine"

    def test_an_archived_beginning_is_told(self, postgres: PostgresStorage, tmp_path: Path) -> None:
        """A new name cannot begin with what has left the log, but with what came after."""
        from pharox.ledger.archive import archive

        archive(postgres, before=full_parts(postgres, 10).now, folder=tmp_path / "archive")
        with closing(LineFile(tmp_path / "a")) as output:
            with pytest.raises(ArchivedError) as told:
                Exporter(postgres, output).run(follow=False)
            first = told.value.data["last_seq"] + 1
            Exporter(postgres, output, name="b", start=first).run(follow=False)
        assert seqs(tmp_path / "a")[0] == first

    def test_a_full_disk_ends_it_and_loses_nothing(
        self, postgres: PostgresStorage, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The checkpoint stays before what was not written, in a file and in a pipe."""
        lease_once(postgres)
        room, write = 2000, os.write

        def write_some(descriptor: int, content: bytes) -> int:
            nonlocal room
            if not room:
                raise OSError(28, "No space left on device")
            count = write(descriptor, content[:room])
            room -= count
            return count

        with closing(LineFile(file)) as output:
            exporter = Exporter(postgres, output)
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", write_some)
                with pytest.raises(OSError, match="No space left"):
                    exporter.run()
            assert (room, written(file)) == (0, [])
            exporter.run(follow=False)
        assert seqs(file) == [event.seq for event in postgres.events()]
        with Path("/dev/full").open("wb") as full, pytest.raises(OSError, match="No space left"):
            Exporter(postgres, LinePipe(full.fileno()), name="full").run()
        assert status_of(postgres, "full").checkpoint == 0

    def test_a_pipe_that_nobody_reads_is_waited_for(
        self, postgres: PostgresStorage, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then all that was due comes, once and in order; meanwhile no transaction is open."""
        monkeypatch.setattr("pharox.ledger.exporting.outputs.STALLED_S", 0.05)
        reading, writing = pipe
        os.set_blocking(writing, False)
        filling = 0
        while True:
            try:
                filling += os.write(writing, b"." * 4096)
            except BlockingIOError:
                break
        os.set_blocking(writing, True)
        with pytest.raises(StalledError):
            LinePipe(writing).write(LINES)
        lease_once(postgres)
        stop = threading.Event()
        thread = threading.Thread(target=Exporter(postgres, LinePipe(writing)).run, args=(stop,))
        thread.start()
        wanted = [event.seq for event in postgres.events()]
        with os.fdopen(os.dup(reading), "rb") as lines:
            assert lines.read(filling) == b"." * filling
            found = [json.loads(lines.readline())["id"] for _ in wanted]
        stop.set()
        thread.join()
        assert found == [str(seq) for seq in wanted]

    def test_it_ends_when_a_pipe_is_broken(
        self, postgres: PostgresStorage, pipe: tuple[int, int]
    ) -> None:
        """Also while there is nothing to write; what comes next is not lost."""
        reading, writing = pipe
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            Exporter(postgres, LinePipe(writing)).run()
        lease_once(postgres)
        with pytest.raises(BrokenPipeError):
            Exporter(postgres, LinePipe(writing)).run(follow=False)
        reading, other = os.pipe()
        Exporter(postgres, LinePipe(other)).run(follow=False)
        os.close(other)
        with os.fdopen(reading, "rb") as lines:
            assert json.loads(lines.readline())["id"] == "1"

    def test_another_one_waits_or_is_refused(
        self, postgres: PostgresStorage, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without following it is refused; one that follows goes on when the first ends."""
        monkeypatch.setattr("pharox.ledger.exporting.exporter.TAKE_OVER_S", 0)
        lease_once(postgres)
        other = file.with_name("other")
        stops = threading.Event(), threading.Event()
        with closing(LineFile(file)) as first, closing(LineFile(other)) as second:
            exporters = Exporter(postgres, first), Exporter(postgres, second)
            threads = [
                threading.Thread(target=exporter.run, args=(stop,))
                for exporter, stop in zip(exporters, stops, strict=True)
            ]
            threads[0].start()
            until(lambda: seqs(file) == [event.seq for event in postgres.events()])
            assert exporters[1].has_reader()
            for refused in (exporters[1].begin_again, lambda: exporters[1].run(follow=False)):
                with pytest.raises(ConflictError, match="'export'"):
                    refused()
            threads[1].start()
            stops[0].set()
            threads[0].join()
            postgres.ensure_consumer("new")
            until(lambda: seqs(other))
            stops[1].set()
            threads[1].join()
        assert seqs(file) + seqs(other) == [event.seq for event in postgres.events()]


@pytest.mark.parametrize("form", ["blocking", "awaited"])
def test_a_subscription_can_end_with_what_there_is(postgres: PostgresStorage, form: str) -> None:
    """Without following, all events up to the call are delivered, and the checkpoint is there."""
    heard: list[Event] = []
    subscription = Subscription("once", lambda delivery: heard.append(delivery.event))
    for change in (lambda _: None, lease_once, lambda _: None):
        change(postgres)
        if form == "blocking":
            subscription.run(postgres, follow=False)
        else:
            asyncio.run(subscription.run_async(postgres, follow=False))
        assert heard == list(postgres.events())
